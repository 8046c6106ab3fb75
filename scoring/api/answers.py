"""What requests are answered with. Instants are ISO 8601 in UTC."""

from functools import lru_cache
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from scoring import instants
from scoring.runs import RunState

# Rows of one page often have an instant in common.
_written = lru_cache(maxsize=4096)(instants.text)


def _text(instant: object) -> object:
    return _written(instant) if isinstance(instant, int) else instant


OPEN_GAPS = 100
"""Open gaps that a partition shows."""

PARTS = 1000
"""Parts that a run shows."""

When = Annotated[str, BeforeValidator(_text), Field(json_schema_extra={"format": "date-time"})]
Row = TypeVar("Row")


class Answer(BaseModel):
    """Base of all answers: made of the attributes of what the system gives."""

    model_config = ConfigDict(from_attributes=True)


class Page(Answer, Generic[Row]):
    """One page of a list; without `next_cursor` it is the last."""

    items: list[Row]
    next_cursor: str | None = None


class RunAccepted(Answer):
    """A run that was started, as it was asked for: a repeated request gets the same."""

    run_id: str
    trigger: str
    fleet_version: str
    first_start: When | None
    last_start: When
    devices: list[str]
    rescore: bool
    created_at: When
    location: str


class NothingToScore(Answer):
    """No run was started: no window that was asked for is pending and final."""

    detail: str


class Run(Answer):
    """One run and what came of it so far."""

    run_id: str
    state: RunState
    trigger: str
    fleet_version: str
    first_start: When | None
    last_start: When
    devices: list[str]
    rescore: bool
    created_at: When
    ended_at: When | None
    cause: str = Field(description="Why it failed or is incomplete, else empty.")
    engine_status: str = Field(description="The engine's own word for how it stands.")
    link: str = Field(description="A page about it, such as Azure ML studio's; else empty.")
    submitted_at: When | None = Field(description="When the engine last took it.")
    job_is_open: bool = Field(
        description="The engine may be at work on it; for a run that has ended, still."
    )
    parts: int
    failed_parts: int = Field(description="Parts that failed; their windows are pending again.")
    windows: int
    indexed_parts: int
    indexed: int
    scored: int
    anomalies: int
    not_scored: int


class RunPart(Answer):
    """One input part, and what was indexed of its predictions."""

    number: int
    rows: int
    indexed_rows: int | None
    scored: int | None
    anomalies: int | None
    is_aside: bool = Field(description="Of sensors that are set aside: the engine never saw it.")
    cause: str = Field(description="Why it failed; empty if it did not.")


class SensorCounts(Answer):
    """Predictions of one sensor; of windows that no newer run has scored since."""

    device: str
    sensor: str
    scored: int
    anomalies: int
    not_scored: int


class SensorAnomalies(Answer):
    """Anomalies of one sensor."""

    device: str
    sensor: str
    anomalies: int


class RunDetail(Run):
    """A run with its parts, and its most anomalous sensors; its list of sensors has them all."""

    part: list[RunPart] = Field(max_length=PARTS, description="The first ones.")
    more_parts: bool = Field(description="Whether `part` leaves some out; `parts` counts them all.")
    logs: list[str] = Field(description="Names of the logs that are kept of a failed run.")
    by_sensor: list[SensorAnomalies]


class RunLog(Answer):
    """The end of a log that was kept of a failed run."""

    name: str
    text: str


class AnomalousWindow(Answer):
    """One anomalous window."""

    device: str
    sensor: str
    window_start: When
    anomaly_score: float
    run_id: str


class Device(Answer):
    """One device: its windows scored, anomalous and not scored, each once."""

    device: str
    scored: int
    anomalies: int
    not_scored: int


class Window(Answer):
    """One window of a sensor with what is known of it; never scored, if `status` is null."""

    window_start: When
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


class Reject(Answer):
    """An element that could not be read; its body is cut to 200 bytes."""

    partition: str
    epoch: int
    sequence_number: int
    position: int
    enqueued_time: When
    reason: str
    detail: str
    body: str
    replayed: bool


class Replayed(Answer):
    """How many rejects could be read after all, and how many not."""

    replayed: int
    stay_rejected: int


class Gaps(Answer):
    """Gaps of one kind, and their events."""

    gaps: int
    events: int


class OpenGap(Answer):
    """A range of sequence numbers that never came, both ends included."""

    epoch: int
    first_sequence: int
    last_sequence: int
    events: int


class Partition(Answer):
    """How far one partition has come."""

    partition: str
    epoch: int
    high_water: int
    watermark: When | None
    last_enqueued: When
    ended: bool
    lag_seconds: float | None = Field(
        description="Since its newest event; null once it ended, or before it had one."
    )
    standing: str = Field(
        description="active, idle, ended; behind: windows wait for it; stalled, absent, abandoned:"
        " they do not any more."
    )
    behind: int = Field(description="Events, at least, that the hub held and nobody had applied.")
    behind_since: When | None
    asked_at: When | None = Field(description="When the hub was last asked.")
    events: int
    readings: int
    rejects: int
    late: int
    missing: int
    gaps: dict[str, Gaps] = Field(description="By what became of them: open, repaired, lost.")
    open_gaps: list[OpenGap] = Field(
        max_length=OPEN_GAPS, description="The first open ones; `gaps` counts them all."
    )


class Finding(Answer):
    """What is wrong with one sensor's model."""

    device: str
    sensor: str
    why: str


class FleetFindings(Answer):
    """What is wrong with a fleet; `total` counts what the lists, cut to the limit, leave out."""

    version: str
    clean: bool
    tried: bool = Field(description="Whether models were tried on their windows.")
    total: dict[str, int]
    missing: list[Finding]
    orphans: list[Finding]
    stale: list[Finding]
    degenerate: list[Finding]


class Health(Answer):
    """The process answers."""

    status: str = "ok"


class Ready(Answer):
    """Everything that is needed can be reached."""

    status: str = "ok"
    checks: dict[str, str]


def made_of(source: Any, **more: Any) -> dict[str, Any]:
    """Give the attributes of a dataclass with slots, and some more."""
    return {name: getattr(source, name) for name in source.__slots__} | more
