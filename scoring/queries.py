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


@dataclass(frozen=True, slots=True)
class DeviceCounts:
    """What is known of one device or sensor now, windows counted once; sensor empty for all."""

    device: str
    sensor: str
    scored: int
    anomalies: int
    not_scored: int


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What came in and what waits.

    Attributes
    ----------
    pending
        Windows changed since they were last claimed, final or not.
    """

    window: int
    partitions: list[PartitionStatus]
    gaps: dict[str, GapCounts] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)
    windows: int = 0
    pending: int = 0


class Queries(Protocol):
    """Reads, and nothing else. Every list is bounded."""

    def status(self) -> StoreStatus:
        """Tell what came in and what waits."""

    def runs(self, limit: int) -> list[RunSummary]:
        """Give the newest runs first."""

    def run(self, run_id: str) -> RunSummary:
        """Give one run; raise `NotFound` where there is none."""

    def anomalies(self, which: AnomalyFilter, limit: int) -> list[Anomaly]:
        """Give anomalies, newest window first."""

    def windows(
        self, device: str, sensor: str, since: int | None, until: int | None, limit: int
    ) -> list[ScoredWindow]:
        """Give the newest `limit` windows of a sensor in ``[since, until)``, oldest first."""

    def rejects(self, reason: str | None, limit: int) -> list[RejectRow]:
        """Give rejects in the order of partitions and sequence numbers."""

    def counts(self, run_id: str | None, *, by_sensor: bool, limit: int) -> list[DeviceCounts]:
        """Count predictions by device or sensor, the most anomalous first.

        Of the windows that a run was the last to score, or of all.
        """

    def count_scored(self, since: int) -> int:
        """Count the scored windows that start at or after `since`."""

    def sensors(self) -> list[tuple[str, str]]:
        """Give every (device, sensor) that has windows, in order."""

    def history(self, until: int) -> Iterator[Partials]:
        """Give all windows that end at or before `until`, merged, by device, sensor and start.

        In sets of bounded size; no window is split over two of them.
        """
