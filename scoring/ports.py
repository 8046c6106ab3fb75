"""What the handlers need of the outside world, and nothing of how it is done."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from scoring.aggregates import Partials
from scoring.horizon import PartitionState
from scoring.ledger import Epoch, HubAnswer
from scoring.readings import EventBatch, Partition
from scoring.runs import NO_LIMITS, Part, RunLimits, RunState, ScoringRun
from scoring.suspects import Sensor, Suspect
from scoring.windows import PartitionProgress


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob's full name, its size in bytes, and a tag that changes when its content does."""

    name: str
    etag: str
    size: int


class Blobs(Protocol):
    """Named, immutable-when-read blocks of bytes; names use ``/``."""

    def read(self, name: str) -> tuple[bytes, BlobInfo]:
        """Give a blob's whole content, of one moment; raise `NotFound` where there is none."""

    def write(self, name: str, data: bytes | Path) -> BlobInfo:
        """Put a blob in place at once and durably, over what stood there.

        `data` that is a file is never wholly in memory.
        """

    def create(self, name: str, data: bytes | Path) -> BlobInfo:
        """Put a blob where none stands.

        One of this very content is taken to be this one, written before: the answer to a write
        may be lost, and who writes again must not take itself for another writer.

        Raises
        ------
        Conflict
            A blob of another content stands there: it stays.
        """

    def replace(self, name: str, data: bytes | Path, etag: str) -> BlobInfo:
        """Put a blob over the one with this tag.

        One of this very content is taken to be this one, as by `create`.

        Raises
        ------
        Conflict
            The blob was changed or removed since it had the tag: nothing is written.
        """

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Give the blobs whose names begin with `prefix`, in the order of their names."""

    def delete(self, prefix: str) -> None:
        """Remove the blobs whose names begin with `prefix`; none is no error."""

    def fetch(self, prefix: str, folder: Path) -> None:
        """Place the blobs below `prefix` as files into `folder`, by their names after `prefix`.

        A file has its name once it is whole, and is of one moment. It is never wholly in memory.
        The files are to be read only: an adapter may link instead of copy.
        """


class EngineState(StrEnum):
    """What an engine says of a run that it knows."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class LogTail:
    """The end of a log file of what failed; `name` uses ``/``."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class EngineReport:
    """How far an engine is with one run.

    Attributes
    ----------
    cause
        Why it failed, one line, else empty.
    parts_done
        Prediction parts finished so far, where the engine can tell.
    status
        The engine's own words for how it stands, such as ``Preparing``; empty if it has none.
    link
        A page where people can look at the run; empty if there is none.
    logs
        Of what failed.
    started
        When the engine began to score the run, epoch microseconds UTC; None while the run waits
        for its turn or for nodes, and where the engine cannot tell.
    """

    state: EngineState
    cause: str = ""
    parts_done: int = 0
    status: str = ""
    link: str = ""
    logs: tuple[LogTail, ...] = ()
    started: int | None = field(default=None, compare=False)

    @property
    def has_ended(self) -> bool:
        """Whether the engine is done with the run."""
        return self.state not in {EngineState.QUEUED, EngineState.RUNNING}


@dataclass(frozen=True, slots=True)
class ScoringOrder:
    """All that an engine needs to score a run; the prefixes are those of blobs."""

    run_id: str
    fleet_version: str
    input_prefix: str
    prediction_prefix: str


class Engine(Protocol):
    """Scores input parts into prediction parts, somewhere, in its own time."""

    def submit(self, order: ScoringOrder) -> None:
        """Start the run, or do nothing if a run of this id was already accepted.

        Returns at once. Raises `Transient` if it is not known whether the run was accepted:
        submitting again is always safe.
        """

    def poll(self, run_id: str) -> EngineReport | None:
        """Tell how far the run is; None if no run of this id was ever accepted, or it was lost."""

    def cancel(self, run_id: str) -> None:
        """Stop the run; nothing happens if it has ended.

        For a run that is unknown the request is kept: if it is submitted later, by any process, it
        ends as canceled and is not scored, and until then `poll` gives None.
        """

    def wait(self, run_id: str, timeout: float) -> EngineReport | None:
        """Wait until it is worth looking at the run again, and then do as `poll` does.

        `timeout`, in seconds, is the longest for a run of this process; one that runs elsewhere is
        not asked after more often than is proper there.
        """


RejectKey = tuple[int, int, int]
"""Epoch, sequence number and position of a reject, in its partition."""


@dataclass(frozen=True, slots=True)
class StoredReject:
    """An element that could not be read, where it stood, and why."""

    epoch: int
    sequence_number: int
    position: int
    enqueued_time: int
    reason: str
    detail: str
    body: bytes
    connection_device_id: str | None = None

    @property
    def key(self) -> RejectKey:
        """What tells it from the partition's other rejects."""
        return self.epoch, self.sequence_number, self.position


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the raw store: a row of its manifest.

    Attributes
    ----------
    late_enqueued
        Enqueued time of the newest reading in it that came when its window was final already, epoch
        microseconds UTC; 0 if none did. A rebuild that forgot it would have a backfill that is
        under way scored in halves.
    """

    epoch: int
    first_sequence: int
    last_sequence: int
    blob: str
    readings: int
    late_enqueued: int = 0


@dataclass(frozen=True, slots=True)
class IngestChange:
    """All that one event batch changes in one partition.

    Attributes
    ----------
    epochs
        The ledger's epochs that changed, as they are now.
    watermark, last_enqueued
        The partition's, after the batch.
    events, late
        How many were new; how many of their readings came to windows already final.
    replayed
        Rejects that could be read after all.
    """

    epochs: tuple[Epoch, ...]
    partials: Partials
    rejects: list[StoredReject]
    segments: list[Segment]
    watermark: int | None
    last_enqueued: int
    events: int
    readings: int
    late: int
    replayed: tuple[RejectKey, ...] = ()


class IngestTransaction(Protocol):
    """A partition's ledger, locked against other writers of the partition."""

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """What has been applied so far."""

    @property
    def window(self) -> int | None:
        """Size of the store's windows, microseconds; None where it was never settled."""

    @property
    def progress(self) -> PartitionProgress | None:
        """The partition's watermark before the batch; None if the partition is new."""

    @property
    def answer(self) -> HubAnswer | None:
        """The last answer of the hub about the partition; None if it was never asked."""

    def admit(self, changed: Sequence[Epoch], answer: HubAnswer) -> None:
        """Write what the hub said, and the epochs that this opens or changes."""

    def rejects(
        self, after: RejectKey | None, limit: int, last: int | None = None
    ) -> list[StoredReject]:
        """Return the partition's rejects that were not replayed, ordered by their keys.

        Parameters
        ----------
        last
            The greatest sequence number that is wanted.
        """

    def save(self, change: IngestChange) -> None:
        """Write everything that the batch changes."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Sequence numbers of a partition that were never delivered, both ends included.

    Attributes
    ----------
    state
        ``open``, ``repaired`` or ``lost``.
    """

    partition: Partition
    epoch: int
    first: int
    last: int
    state: str

    @property
    def events(self) -> int:
        """How many events it spans."""
        return self.last - self.first + 1

    @property
    def facts(self) -> dict[str, str | int]:
        """Its place, as lines of the log name it."""
        return {
            "hub": self.partition.hub,
            "partition": self.partition.id,
            "epoch": self.epoch,
            "first_sequence": self.first,
            "last_sequence": self.last,
        }


@dataclass(frozen=True, slots=True)
class FileNote:
    """The identity of a file that is or was ingested.

    Attributes
    ----------
    size, digest
        Of its content in bytes, and what it is known by.
    keying
        How its events were dealt out to partitions when it was ingested first, in the words of the
        files' adapter; empty of a file that an earlier version has ingested.
    """

    size: int
    digest: str
    keying: str = ""


class IngestStore(Protocol):
    """Where the ledger, the window partials and the rejects are."""

    def transaction(self, partition: Partition) -> AbstractContextManager[IngestTransaction]:
        """Lock a partition; commits when the block ends, undoes all of it if the block raises."""

    def states(self) -> list[PartitionState]:
        """Return how every partition stands."""

    def observe(
        self, answers: Mapping[Partition, HubAnswer | None], now: int
    ) -> list[PartitionState]:
        """Write the answers of hubs; return how every partition stands then.

        Parameters
        ----------
        answers
            None for a partition that its hub does not have. What was said of partitions that are
            not among them stays.
        now
            When the hubs were asked, epoch microseconds UTC.
        """

    def end_partition(self, partition: Partition) -> None:
        """Note that nothing will follow: the partition holds no window open any longer."""

    def partitions(self) -> dict[Partition, int]:
        """Give every partition that ever spoke, with its newest epoch."""

    def applied(self, hub: str) -> dict[str, tuple[int, int]]:
        """Give a hub's partitions with their high-water marks, and when those were enqueued."""

    def files(self) -> dict[str, FileNote]:
        """Return the note of every file, by the hub that stands for it."""

    def note_file(self, hub: str, note: FileNote) -> FileNote:
        """Note that a file is about to be ingested, and return the note that counts.

        The keying that was noted first stays, and so does the note of a larger content. If the file
        has grown, its partitions have not ended: more will follow.
        """

    def gaps(self, state: str | None = None) -> list[Gap]:
        """Return the gaps of a state, or all on record, repaired and lost ones too."""

    def mark_lost(self, gap: Gap) -> None:
        """Note that a range, part of an open gap, can no longer be had from the hub."""


class RebuildStore(Protocol):
    """A store whose windows are rebuilt from segments, in bounded steps.

    Every step is a transaction of its own, and can be repeated by any process at any time. While a
    rebuild is under way no run begins, and ingest goes on: readings whose windows are being deleted
    are kept as segments, and added later like all others.
    """

    def begin(self, window: int) -> bool:
        """Begin to rebuild with windows of `window` microseconds; False if one is under way.

        Raises
        ------
        Conflict
            A run is active, the raw store does not hold every reading that was counted, or a
            rebuild with windows of another size is under way.
        """

    def wait_for_writers(self) -> None:
        """Wait for event batches that began to be applied before: later ones know the phase."""

    def clear(self, limit: int) -> bool:
        """Delete about `limit` of the old windows; False once none is left.

        If the size has changed, their predictions go with them.
        """

    def pending(self, limit: int) -> list[tuple[Partition, Segment]]:
        """Return the first `limit` segments that no new window holds, all of one partition."""

    def fill(
        self, partition: Partition, window: int, added: Sequence[Segment], partials: Partials
    ) -> bool:
        """Merge the partials of segments into a partition's windows; they become pending.

        False, and nothing is changed, if one of the segments was added by somebody else, or windows
        of this size are not being filled any more.
        """

    def end(self) -> bool:
        """End the rebuild; False if segments are left."""

    def count(self) -> tuple[int, int]:
        """Return how many segments were added, and how many there are."""


class EventLog(Protocol):
    """The hub's retained events, for reading again what was not delivered."""

    def holds(self, partition: Partition) -> bool:
        """Whether the partition is of this hub, so that what it lacks is lost."""

    def survey(self) -> dict[Partition, HubAnswer]:
        """Ask the hub about all partitions that it has."""

    def look(self, partition: Partition) -> HubAnswer | None:
        """Ask the hub about a partition; None if it has none of this id."""

    def created_at(self) -> int | None:
        """Return when the hub was created, epoch microseconds UTC; None if it cannot tell.

        Cheaper than `look`. The answer may be `ledger.CLOCK_TOLERANCE` old: within that time no hub
        is created again.
        """

    def read(self, partition: Partition, first: int, last: int) -> Iterator[EventBatch]:
        """Give the retained events of a range of sequence numbers, in event batches."""


@dataclass(frozen=True, slots=True)
class IndexedPart:
    """What the index knows of one prediction part.

    Attributes
    ----------
    is_aside
        As of `runs.Part`.
    cause
        Why the part failed, so that nothing of it is indexed any more; empty if it did not.
    """

    number: int
    rows: int
    etag: str | None = None
    indexed_rows: int | None = None
    scored: int | None = None
    anomalies: int | None = None
    is_aside: bool = False
    cause: str = ""


class RunStore(Protocol):
    """Where runs, their claims and their predictions are."""

    def begin_run(self, run: ScoringRun, limits: RunLimits = NO_LIMITS) -> ScoringRun | None:
        """Record a new run in state ``claiming``, with its number.

        Gives instead the run that was made for a request of the same key, or the one that is
        claiming already, if there is one; and None if no window is there that it could take.
        A run whose windows are more than the limit gets an earlier `last_start`: the oldest
        windows come first.

        Raises
        ------
        TooManyRuns
            As many runs are active as the limits allow.
        RebuildUnderWay
            Windows are being rebuilt.
        BadInput
            More windows would be scored again than the limits allow.
        """

    def claim(self, run: ScoringRun, limit: int) -> int:
        """Take about `limit` final windows in the run's scope for it; 0 when none are left.

        Pending ones; of a run that scores again, those of older runs too. None for a run that is
        not claiming any more.
        """

    def count_claimed(self, run: ScoringRun) -> int:
        """Tell about how many windows the run has, and at least that many."""

    def claimed(self, run: ScoringRun) -> Iterator[Partials]:
        """Give the run's windows, merged over partitions, ordered by device, sensor and start.

        A window that has changed since it was claimed, or that a newer run has claimed, is not
        among them: the run that takes the change scores it. In sets of bounded size; no window is
        split over two of them.
        """

    def record_export(self, run: ScoringRun, export: str, parts: list[Part]) -> bool:
        """Make an export the one that counts; False if another one was first."""

    def transition(self, run: ScoringRun, new: RunState, now: int, cause: str = "") -> bool:
        """Move a run on; False if it was in no state that `new` may follow."""

    def finish(self, run: ScoringRun, limit: int, now: int) -> bool:
        """Take a step towards the end of a run; True if this step ended it.

        A run that is failing or canceling gives about `limit` of its windows back, and one that is
        scored those that its failed parts left without a prediction. The transaction that gives
        the last ones back also ends the run. It waits for parts that are being indexed: nothing
        of the run is indexed after its windows went back.
        """

    def open_job(self, run: ScoringRun) -> bool:
        """Note that the engine is about to be given the run; False if it must not be any more."""

    def lose_job(self, run: ScoringRun, now: int) -> None:
        """Note that the engine had lost the run, and has it again."""

    def close_job(self, run: ScoringRun) -> None:
        """Note that the engine is done with the run."""

    def open_jobs(self) -> list[ScoringRun]:
        """Give the runs that have ended while the engine may still be at work on them."""

    def fail_parts(self, run: ScoringRun, causes: Mapping[int, str]) -> None:
        """Note why parts failed, by number; those that are indexed by now stay as they are."""

    def note(self, run: ScoringRun, state: RunState, cause: str) -> None:
        """Set the run's cause and nothing else, if it is in a state; elsewhere it stays."""

    def note_engine(self, run: ScoringRun, status: str, link: str | None = None) -> None:
        """Note the engine's word for how a run stands, and a page about it."""

    def run(self, run_id: str) -> ScoringRun:
        """Give one run; raise `NotFound` where there is none."""

    def active_runs(self) -> list[ScoringRun]:
        """Give the runs that have not ended, oldest first."""

    def parts(self, run: ScoringRun) -> list[IndexedPart]:
        """Give the exported parts of a run with what was indexed of them."""

    def part(self, run: ScoringRun, number: int) -> IndexedPart:
        """Give one part; raise `NotFound` where the run has none of the number."""

    def index_part(self, run: ScoringRun, part: int, etag: str, predictions: pa.Table) -> bool:
        """Replace what a prediction part said before; False if there is nothing new to index.

        That is: this content is indexed already, the part has failed, or the run's windows were
        given back. A prediction of a newer run is never overwritten.

        Raises
        ------
        InvalidPart
            The part has two rows of one window, or a value that the database refuses. Nothing of
            it is stored.
        """

    def unanswered(self, run: ScoringRun) -> list[Sensor]:
        """Return the sensors with windows of the run that it has no prediction of, in order."""

    def suspects(self) -> list[Suspect]:
        """Give the sensors that may be why a part failed."""

    def save_suspects(self, changed: Sequence[Suspect]) -> None:
        """Add suspects, or replace what was known of them."""

    def forget_trials(self, run: ScoringRun) -> None:
        """Forget that a run has tried suspects: the engine did not come to it."""

    def clear_suspects(self, run: ScoringRun) -> None:
        """Forget the suspects that the engine has scored in a run."""
