"""What people ask of the system: rows to show, and the port that gives them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from scoring.aggregates import Partials
from scoring.runs import RunState


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """How far one partition has come; instants in epoch microseconds UTC.

    Attributes
    ----------
    late
        Readings that came to a window already final.
    missing
        Events in gaps that are neither repaired nor lost.
    """

    partition: str
    epoch: int
    high_water: int
    watermark: int | None
    last_enqueued: int
    ended: bool
    events: int
    readings: int
    rejects: int
    late: int
    missing: int

    def lag_seconds(self, now: int) -> float | None:
        """Return the seconds since the newest event; None where none was, or none will follow."""
        return None if self.ended or not self.last_enqueued else (now - self.last_enqueued) / 1e6


@dataclass(frozen=True, slots=True)
class GapCounts:
    """Gaps and their events by what became of them: ``open``, ``repaired`` or ``lost``."""

    gaps: int = 0
    events: int = 0


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run and what came of it.

    Attributes
    ----------
    windows, parts
        What was exported; 0 until then.
    indexed_parts, indexed, scored, anomalies
        Prediction parts indexed so far, their rows, and what they say.
    first_start, devices, rescore
        What the run was limited to, as of `runs.ScoringRun`.
    engine_status, link
        The engine's own word for how it stands, and a page about it; empty if it has none.
    submitted_at
        When the engine last took it; None until then.
    job_is_open
        The engine may be at work on it: for a run that has ended, still.
    failed_parts
        Parts that failed; their windows are pending again.
    """

    number: int
    run_id: str
    state: RunState
    trigger: str
    fleet_version: str
    last_start: int
    created_at: int
    ended_at: int | None
    cause: str
    parts: int
    windows: int
    indexed_parts: int
    indexed: int
    scored: int
    anomalies: int
    first_start: int | None = None
    devices: tuple[str, ...] = ()
    rescore: bool = False
    engine_status: str = ""
    link: str = ""
    submitted_at: int | None = None
    job_is_open: bool = False
    failed_parts: int = 0

    @property
    def not_scored(self) -> int:
        """Indexed predictions that say why there is no score."""
        return self.indexed - self.scored


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One anomalous window."""

    device: str
    sensor: str
    window_start: int
    anomaly_score: float
    run_id: str

    @property
    def key(self) -> "AnomalyKey":
        """Where it stands in the order of anomalies."""
        return self.window_start, self.device, self.sensor


AnomalyKey = tuple[int, str, str]
"""Window start, device and sensor: newest window first, then by name."""


@dataclass(frozen=True, slots=True)
class AnomalyFilter:
    """Which anomalies; None leaves a thing open. The range is ``[since, until)``."""

    device: str | None = None
    sensor: str | None = None
    run_id: str | None = None
    since: int | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class ScoredWindow:
    """One window of a sensor, merged over partitions, with what is known of it."""

    window_start: int
    count: int
    mean: float
    std: float
    min: float
    max: float
    last: float
    status: str | None
    anomaly_score: float | None
    is_anomaly: bool | None
    reason: str | None
    run_id: str | None


@dataclass(frozen=True, slots=True)
class RejectRow:
    """One reject, its body cut to what a person can look at."""

    partition: str
    epoch: int
    sequence_number: int
    position: int
    enqueued_time: int
    reason: str
    detail: str
    body: str
    replayed: bool

    @property
    def key(self) -> "RejectRowKey":
        """What tells it from all others."""
        return self.partition, self.epoch, self.sequence_number, self.position


RejectRowKey = tuple[str, int, int, int]
"""Partition, epoch, sequence number and position."""


@dataclass(frozen=True, slots=True)
class DeviceCounts:
    """What is known of one device or sensor now, windows counted once; sensor empty for all."""

    device: str
    sensor: str
    scored: int
    anomalies: int
    not_scored: int


@dataclass(frozen=True, slots=True)
class SensorAnomalies:
    """How many windows of one sensor a run called anomalous, and no newer run said otherwise."""

    device: str
    sensor: str
    anomalies: int


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A run that has ended while the engine may still be at work on it.

    Attributes
    ----------
    engine_status
        The engine's own word for how it stands.
    """

    run_id: str
    state: RunState
    ended_at: int | None
    engine_status: str


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What came in and what waits.

    Attributes
    ----------
    pending
        Windows changed since they were last claimed, final or not.
    active_runs
        Ids of the runs that have not ended, oldest first.
    open_jobs
        The first runs that have ended while the engine may still be at work on them.
    suspects, set_aside
        Sensors that may be why a part failed, and those of them whose windows are set aside.
    is_rebuilding
        Whether a rebuild of the windows has begun and not ended: until then no run begins, and
        windows may be few.
    """

    window: int
    partitions: list[PartitionStatus]
    gaps: dict[str, GapCounts] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)
    windows: int = 0
    pending: int = 0
    active_runs: list[str] = field(default_factory=list)
    open_jobs: list[OpenJob] = field(default_factory=list)
    suspects: int = 0
    set_aside: int = 0
    is_rebuilding: bool = False


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits, and what never came: the figures to raise an alarm on.

    Attributes
    ----------
    pending
        Windows changed since they were last claimed, as of `StoreStatus`, but one of two
        partitions counts twice; at most `limit` of `Queries.backlog`.
    missing
        Events in gaps that are neither repaired nor lost.
    """

    pending: int
    missing: int


@dataclass(frozen=True, slots=True)
class OpenGap:
    """A range of sequence numbers that is neither repaired nor lost, both ends included."""

    epoch: int
    first_sequence: int
    last_sequence: int

    @property
    def events(self) -> int:
        """How many events it spans."""
        return self.last_sequence - self.first_sequence + 1


class Queries(Protocol):
    """Reads, and nothing else. Every list is bounded.

    ``after`` is where the page before ended: a list goes on behind it, whatever came in since.
    """

    def status(self) -> StoreStatus:
        """Tell what came in and what waits."""

    def partitions(self, limit: int, after: str | None = None) -> list[PartitionStatus]:
        """Give partitions in the order of their names."""

    def gaps(self, first: str, last: str) -> dict[str, dict[str, GapCounts]]:
        """Count gaps by partition and what became of them.

        Of the partitions from `first` to `last`, in the order of `partitions`; one without a gap
        is left out.
        """

    def open_gaps(self, first: str, last: str, limit: int) -> dict[str, list[OpenGap]]:
        """Give the first `limit` open gaps of each partition, by epoch and sequence number.

        Of partitions as for `gaps`.
        """

    def backlog(self, limit: int) -> Backlog:
        """Count what waits; of the pending windows at most `limit`, so that it takes no longer."""

    def runs(self, limit: int, after: int | None = None) -> list[RunSummary]:
        """Give the newest runs first; `after` is a run's number."""

    def run(self, run_id: str) -> RunSummary:
        """Give one run; raise `NotFound` where there is none."""

    def anomalies(
        self, which: AnomalyFilter, limit: int, after: AnomalyKey | None = None
    ) -> list[Anomaly]:
        """Give anomalies, newest window first."""

    def windows(
        self, device: str, sensor: str, since: int | None, until: int | None, limit: int
    ) -> list[ScoredWindow]:
        """Give the newest `limit` windows of a sensor in ``[since, until)``, oldest first."""

    def rejects(
        self, reason: str | None, limit: int, after: RejectRowKey | None = None
    ) -> list[RejectRow]:
        """Give rejects in the order of partitions and sequence numbers."""

    def devices(self, limit: int, after: str | None = None) -> list[DeviceCounts]:
        """Give the devices that have windows, scored or not, in the order of their names."""

    def anomalous_devices(
        self, limit: int, after: tuple[int, str] | None = None
    ) -> list[DeviceCounts]:
        """Give the devices that have anomalies, the most anomalous first.

        `after` is a number of anomalies and a device.
        """

    def device_sensors(
        self, device: str, limit: int, after: str | None = None
    ) -> list[DeviceCounts]:
        """Give the sensors of a device that have windows, in the order of their names."""

    def counts(self, run_id: str | None, *, by_sensor: bool, limit: int) -> list[DeviceCounts]:
        """Count predictions by device or sensor, the most anomalous first.

        Of the windows that a run was the last to score, or of all.
        """

    def anomalous_sensors(self, run_id: str, limit: int) -> list[SensorAnomalies]:
        """Give the sensors with anomalies in a run, the most anomalous first."""

    def run_sensors(
        self, run_id: str, limit: int, after: tuple[str, str] | None = None
    ) -> list[DeviceCounts]:
        """Give all sensors of a run as `counts` does, in the order of their names."""

    def count_scored(self, since: int) -> int:
        """Count the scored windows that start at or after `since`."""

    def sensors(self) -> list[tuple[str, str]]:
        """Give every (device, sensor) that has windows, in order."""

    def history(self, until: int, since: int | None = None) -> Iterator[Partials]:
        """Give all windows that end at or before `until`, merged, by device, sensor and start.

        With `since` only those that start then or later. In sets of bounded size; no window is
        split over two of them.

        Raises
        ------
        RebuildUnderWay
            Windows are being rebuilt.
        """
