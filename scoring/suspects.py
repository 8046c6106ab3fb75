"""Sensors that may be why a part of a run failed, and how they are narrowed down.

One bad sensor must not keep a fleet from being scored. When a part fails, its sensors become
suspects, and the next run exports them in parts of half the size. A suspect that is scored is one
no longer. After some runs the culprit fails in a part of its own; once it has failed alone in
`ALONE` runs that scored other parts, it is set aside: its windows are answered with
``model_failed`` and the cause, and the engine never sees them.

Those that are set aside are tried again, all in one run: where no failed part is tolerated, that
run fails for their sake. Hence at most one run a day is such a trial.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scoring.instants import SECOND

ALONE = 3
"""Runs in which a sensor has to fail alone before it is set aside."""

SET_ASIDE = 24 * 3600 * SECOND
"""Microseconds after which a sensor that is set aside is tried again with its new windows.

Also how long no run tries any of them after one that did.
"""

Sensor = tuple[str, str]
"""Device and sensor."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A sensor of a part that failed.

    Attributes
    ----------
    fleet_version
        The fleet that the part was scored with: a sensor is no suspect to another fleet.
    run_number
        The newest run that made it a suspect, so that no run counts twice.
    rows, sensors
        The most windows and sensors that its next part holds; a sensor stays whole.
    failures
        Runs in which it failed in a part of its own, while other parts were scored.
    cause
        Why its part failed, one line.
    set_aside_at
        When it was set aside, epoch microseconds UTC; None while it is only a suspect.
    newest_aside
        The newest window start that a run has answered as set aside, since then; None if none was.
    tried_at, tried_in
        When a run last tried it although it was set aside, epoch microseconds UTC, and the number
        of that run; None if none has.
    """

    device: str
    sensor: str
    fleet_version: str
    run_number: int
    rows: int
    sensors: int
    failures: int
    cause: str
    set_aside_at: int | None = None
    newest_aside: int | None = None
    tried_at: int | None = None
    tried_in: int | None = None

    @property
    def key(self) -> Sensor:
        """What tells it from the others."""
        return self.device, self.sensor

    def is_due(self, first_start: int, now: int) -> bool:
        """Return whether a sensor that is set aside should be tried again.

        It should if its windows have changed since they were set aside, and after `SET_ASIDE`.

        Parameters
        ----------
        first_start
            Start of the oldest of the sensor's windows in the run.
        """
        if self.set_aside_at is None or now - self.set_aside_at >= SET_ASIDE:
            return True
        return self.newest_aside is not None and first_start <= self.newest_aside


def may_try(known: Iterable[Suspect], now: int) -> bool:
    """Return whether a run that begins now may try suspects that are set aside."""
    last = max((one.tried_at for one in known if one.tried_at is not None), default=None)
    return last is None or now - last >= SET_ASIDE


@dataclass(frozen=True, slots=True)
class FailedPart:
    """A part of a run that failed, and what is known of it.

    Attributes
    ----------
    sensors
        All sensors in it.
    is_certain
        Whether the part itself is known to have failed while others were scored: then it counts.
    """

    sensors: tuple[Sensor, ...]
    rows: int
    cause: str
    is_certain: bool


def suspected(
    failed: Iterable[FailedPart],
    known: Mapping[Sensor, Suspect],
    fleet_version: str,
    run_number: int,
    now: int,
) -> list[Suspect]:
    """Return the suspects that the failed parts of a run add or change.

    Parameters
    ----------
    known
        The suspects so far, of any fleet.
    now
        Epoch microseconds UTC.
    """
    changed = []
    for part in failed:
        for sensor in part.sensors:
            before = known.get(sensor)
            if before is not None and before.fleet_version != fleet_version:
                before = None
            if before is None or before.run_number < run_number:
                changed.append(_after(part, sensor, before, fleet_version, run_number, now))
    return changed


def _after(  # noqa: PLR0913, PLR0917 - all that a suspect is made of
    part: FailedPart,
    sensor: Sensor,
    before: Suspect | None,
    fleet_version: str,
    run_number: int,
    now: int,
) -> Suspect:
    failures = before.failures if before else 0
    failures += part.is_certain and len(part.sensors) == 1
    return Suspect(
        *sensor,
        fleet_version,
        run_number,
        rows=max(1, part.rows // 2),
        sensors=max(1, len(part.sensors) // 2),
        failures=failures,
        cause=part.cause,
        # Which windows were set aside before says nothing of those that have failed now.
        set_aside_at=now if failures >= ALONE else None,
        tried_at=before.tried_at if before else None,
        tried_in=before.tried_in if before else None,
    )
