"""Make fleets and check them: train on the store's windows, import files, hold one to the light."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from scoring import instants
from scoring.errors import Conflict, NotFound
from scoring.fleet import (
    FleetReport,
    Imported,
    Model,
    Refused,
    Training,
    Untrained,
    check_fleet,
    import_models,
    train_fleet,
)
from scoring.fleet.matching import Columns
from scoring.fleet.naming import PATTERN, Listed, Names, Pattern, normalised
from scoring.handlers.fleets import FleetShelf, SensorRows, Updated, sensor_rows
from scoring.queries import Queries

Progress = Callable[[float, float], None]
"""Told how much of how much is done."""


TRAINED_ON = ("mean", "std", "min", "max")
"""Features of a first fleet that is trained."""

IMPORTED_WITH = ("mean",)
"""Features of a first fleet that is imported."""

_ATTEMPTS = 5
"""How often trained models are put over the fleet, each time that another became current."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A sensor that keeps the model of the fleet before, and why."""

    device: str
    sensor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of training.

    Attributes
    ----------
    models
        How many were trained and are in the fleet.
    kept
        Sensors with an older model.
    untrained
        Sensors without any.
    windows, used
        How many windows there are of all sensors, and how many of them were taken to train on.
    """

    version: str
    models: int
    kept: list[Kept]
    untrained: list[Untrained]
    windows: int = 0
    used: int = 0


@dataclass(frozen=True, slots=True)
class ImportedFleet:
    """What came of an import.

    Attributes
    ----------
    version
        Empty if every file was refused: nothing is published then.
    models
        How many came in.
    unknown
        How many of them are of sensors that the store has not seen; 0 while it has seen none.
    """

    version: str
    models: int
    unknown: int
    refused: list[Refused]


@dataclass(frozen=True, slots=True)
class TrainFleet:
    """Trains a model for each sensor on its windows in the store."""

    queries: Queries
    shelf: FleetShelf
    processes: int

    def __call__(  # noqa: PLR0913 - the last is by keyword
        self,
        features: tuple[str, ...] | None,
        training: Training,
        until: int,
        now: datetime,
        progress: Progress,
        *,
        since: int | None = None,
        fresh: bool = False,
    ) -> Trained:
        """Train, and publish the current fleet with the models put over it.

        Imported models stay, also one that was imported meanwhile.

        Parameters
        ----------
        features
            None for those of the current fleet.
        since, until
            Only windows that start and end between these instants are trained on.
        fresh
            Replace the whole current fleet.

        Raises
        ------
        NotFound
            No sensor can be trained on its windows, with the reason: nothing is published.
        BadInput
            The current fleet has other features, and is not to be replaced.
        Conflict
            Another fleet became current meanwhile, and the one before was to be replaced.
        """
        before = self.shelf.mark()
        features = self.shelf.features(features, TRAINED_ON, fresh=fresh)
        total = len(self.queries.sensors())
        models: list[Model] = []
        untrained: list[Untrained] = []
        counts: list[int] = []
        history = sensor_rows(self.queries.history(until, since), features)
        for one in train_fleet(
            _counted(history, counts),
            features,
            training,
            now,
            processes=self.processes,
            progress=lambda done: progress(done, total),
        ):
            models.append(one) if isinstance(one, Model) else untrained.append(one)
        if not models:
            span = f" from {instants.text(since)}" if since is not None else ""
            message = (
                f"no sensor of {total} can be trained on windows{span} before"
                f" {instants.text(until)}"
            )
            if untrained:
                first = untrained[0]
                message += f"; sensor {first.sensor} of device {first.device}: {first.reason}"
            raise NotFound(message)
        if fresh:
            updated = self.shelf.replace(models, features, now, before)
        else:
            updated = self._put_over(models, features, now)
        used = sum(min(count, training.max_windows) for count in counts)
        return replace(_trained(updated, models, untrained), windows=sum(counts), used=used)

    def _put_over(self, models: list[Model], features: tuple[str, ...], now: datetime) -> Updated:
        """Put the models over the fleet that is current by now: training took its time."""
        for _ in range(_ATTEMPTS - 1):
            with suppress(Conflict):
                return self.shelf.update(models, features, now, keep_imported=True)
        return self.shelf.update(models, features, now, keep_imported=True)


def _counted(history: Iterable[SensorRows], counts: list[int]) -> Iterator[SensorRows]:
    """Pass sensors on, and note how many windows each has."""
    for one in history:
        counts.append(len(one[2]))
        yield one


def _trained(updated: Updated, models: list[Model], untrained: list[Untrained]) -> Trained:
    """Tell the sensors that have an older model from those that have none."""
    reasons = {normalised((one.device, one.sensor)): one.reason for one in untrained}
    kept = {}
    for info in updated.kept:
        key = normalised((info.device, info.sensor))
        why = reasons.get(key, "has no windows to train on")
        why = "was imported; --fresh replaces it" if info.is_imported else why
        kept[key] = Kept(info.device, info.sensor, why)
    without = [one for one in untrained if normalised((one.device, one.sensor)) not in kept]
    new = sum(normalised((one.device, one.sensor)) not in kept for one in models)
    return Trained(updated.version, new, [*kept.values()], without)


@dataclass(frozen=True, slots=True)
class Naming:
    """How files are told apart, and the columns of their models.

    Attributes
    ----------
    listed
        A CSV file that names the files' sensors, instead of the pattern.
    renamed, by_position
        As in `Columns`.
    """

    pattern: str = PATTERN
    listed: Path | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    by_position: bool = False

    def names(self, sensors: Iterable[tuple[str, str]]) -> Names:
        """Return the way to tell a file's sensor, with those that are known to the store."""
        return Listed.of(self.listed) if self.listed else Pattern.of(self.pattern, sensors)


@dataclass(frozen=True, slots=True)
class ImportModels:
    """Imports model files, on top of the current fleet."""

    queries: Queries
    shelf: FleetShelf

    def __call__(
        self,
        folder: Path,
        naming: Naming,
        features: tuple[str, ...] | None,
        now: datetime,
        *,
        fresh: bool = False,
    ) -> ImportedFleet:
        """Import, and publish the current fleet with the models put over it.

        Parameters
        ----------
        features
            None for those of the current fleet.
        fresh
            Replace the whole current fleet.

        Raises
        ------
        BadInput
            The current fleet has other features and is not to be replaced; there is no folder; or
            the naming is of no use.
        Conflict
            Another fleet became current meanwhile.
        """
        before = self.shelf.mark()
        features = self.shelf.features(features, IMPORTED_WITH, fresh=fresh)
        sensors = self.queries.sensors()
        columns = Columns(features, naming.renamed, naming.by_position)
        found = list(import_models(folder, columns, naming.names(sensors)))
        models = [one.model for one in found if isinstance(one, Imported)]
        refused = [one for one in found if isinstance(one, Refused)]
        if not models:
            return ImportedFleet("", 0, 0, refused)
        if fresh:
            updated = self.shelf.replace(models, features, now, before)
        else:
            updated = self.shelf.update(models, features, now)
        known = set(map(normalised, sensors))
        unknown = sum(normalised((one.device, one.sensor)) not in known for one in models)
        return ImportedFleet(updated.version, len(models), unknown if known else 0, refused)


@dataclass(frozen=True, slots=True)
class CheckFleet:
    """Compares a fleet with the sensors and windows of the store."""

    queries: Queries
    shelf: FleetShelf

    def __call__(self, now: datetime, version: str | None = None) -> FleetReport:
        """Report missing, orphaned, stale and degenerate models."""
        fleet = self.shelf.open(version)
        windows = self.queries.history(instants.of(now))
        return check_fleet(
            fleet, self.queries.sensors(), now, sample=sensor_rows(windows, fleet.features)
        )
