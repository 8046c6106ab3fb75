"""Repair gaps, replay rejects, rebuild windows: what sets right what went wrong before."""

import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.aggregates import WindowTable, aggregate
from scoring.errors import Conflict, ScoringError, cause_of
from scoring.handlers.hub import HubProgress
from scoring.handlers.ingest import Ingest, IngestOutcome, write_segment
from scoring.horizon import PartitionState
from scoring.instants import SECOND
from scoring.ports import (
    Blobs,
    EventLog,
    Gap,
    IngestChange,
    IngestStore,
    IngestTransaction,
    RebuildStore,
    RejectKey,
    Segment,
    StoredReject,
)
from scoring.readings import EventBatch, Partition, Readings
from scoring.retrying import retried
from scoring.windows import PartitionProgress

REPLAY_ROWS = 1_000
"""Rejects replayed in one transaction."""

REBUILD_WINDOWS = 100_000
"""Windows that a rebuild deletes, or merges in memory before it writes them, in one transaction."""

REBUILD_SEGMENTS = 500
"""Segments that a rebuild adds in one transaction at most."""

STILL = 30 * SECOND
"""Microseconds that a high-water mark must stand still before what follows it counts as skipped."""

Progress = Callable[[int, int], None]
"""Told how much of how much is done."""

log = logging.getLogger("scoring.repair")


def _tell_nobody(_: object) -> None:
    """Take note of nothing."""


@dataclass(frozen=True, slots=True)
class RepairGaps:
    """Reads again what the host skipped, through the same ingest handler."""

    store: IngestStore
    log: EventLog
    ingest: Ingest
    hub: HubProgress

    def __call__(
        self, now: int, tell: Callable[[IngestOutcome], None] = _tell_nobody
    ) -> IngestOutcome:
        """Repair what can be repaired; what the hub no longer holds becomes ``lost``.

        What the hub holds beyond a high-water mark that stands still was skipped too: a host's
        checkpoint can pass the last events of a partition, and nothing that follows would show it.

        A gap that fails keeps nobody from those after it: its error is logged, and the first one
        is raised in the end.

        Parameters
        ----------
        now
            Epoch microseconds UTC.
        tell
            Told what became of each event batch, also where a gap fails.
        """
        self.hub.ask(now)
        for state in self.store.states():
            if _stands_still(state, now) and self.log.holds(state.partition):
                self.hub.note_skipped(state)
        newest = self.store.partitions()
        outcome, failure = IngestOutcome(), None
        for gap in self._repairable():
            try:
                for batch in self._retained(gap, is_gone=gap.epoch != newest[gap.partition]):
                    applied = self.ingest(batch)
                    outcome += applied
                    tell(applied)
            except Exception as error:  # noqa: BLE001 - a defect that one gap meets is its own too
                _log_failure("repair.gap_failed", gap.facts, error)
                failure = failure or error
        if failure:
            raise failure
        return outcome

    def _repairable(self) -> list[Gap]:
        """Give the open gaps of this system's hub.

        What another hub skipped only that hub can give again, or no longer have.
        """
        ours: list[Gap] = []
        others: list[Gap] = []
        for gap in self.store.gaps("open"):
            (ours if self.log.holds(gap.partition) else others).append(gap)
        if others:
            hubs = sorted({gap.partition.hub for gap in others})
            log.warning("repair.gaps_skipped", extra={"count": len(others), "hubs": hubs})
        return ours

    def _retained(self, gap: Gap, *, is_gone: bool) -> Iterator[EventBatch]:
        """Give what the hub still holds of a gap, and mark the rest as lost."""
        # Events of an epoch that ended went with the hub that held them.
        answer = None if is_gone else self.log.look(gap.partition)
        kept_from = max(answer.first, gap.first) if answer else gap.last + 1
        if kept_from > gap.first:
            last = min(kept_from - 1, gap.last)
            lost = Gap(gap.partition, gap.epoch, gap.first, last, "lost")
            self.store.mark_lost(lost)
            log.warning("repair.lost", extra=lost.facts | {"events": lost.events})
        if kept_from <= gap.last:
            yield from self.log.read(gap.partition, kept_from, gap.last)


def _stands_still(state: PartitionState, now: int) -> bool:
    """Return whether nothing was applied for a while though the hub holds more."""
    answer, since = state.answer, state.stuck_since
    if state.ended or answer is None or state.has_moved or answer.last <= state.high_water:
        return False
    return since is not None and since <= now - STILL


def _log_failure(event: str, facts: Mapping[str, object], error: Exception) -> None:
    extra = {**facts, "error": type(error).__name__, "cause": cause_of(error)}
    # Only one error is raised: nobody else would show where a defect is.
    trace = None if isinstance(error, ScoringError) else error
    log.warning(event, extra=extra, exc_info=trace)


@dataclass(frozen=True, slots=True)
class ReplayRejects:
    """Decodes rejects again, with the settings of today; what can be read now is counted."""

    store: IngestStore
    ingest: Ingest

    def __call__(self) -> tuple[int, int]:
        """Replay all rejects; return how many were, and how many stay rejected.

        A partition that fails keeps nobody from those after it: its error is logged, and the first
        one is raised in the end.
        """
        replayed, stay, failure = 0, 0, None
        for partition in self.store.partitions():
            try:
                done, left = self._all(partition, None, None, {})
                replayed, stay = replayed + done, stay + left
            except Exception as error:  # noqa: BLE001 - a defect of one partition is its own too
                facts = {"partition": str(partition)}
                _log_failure("replay.partition_failed", facts, error)
                failure = failure or error
        if failure:
            raise failure
        return replayed, stay

    def of_events(self, batch: EventBatch, *, by_stored_bodies: bool) -> tuple[int, int]:
        """Replay the rejects of events of a file that are read again, with other options.

        Parameters
        ----------
        batch
            By ascending sequence number, of a partition's first epoch.
        by_stored_bodies
            Decode what was rejected, an element of an event where the event has several; else the
            events as they are now, which then have one reading each.

        Returns
        -------
        tuple of int and int
            How many rejects were replayed, and how many stay rejected.
        """
        numbers = batch.sequence_numbers.tolist()
        bodies = {} if by_stored_bodies else dict(zip(numbers, batch.bodies, strict=True))
        before = (0, numbers[0] - 1, sys.maxsize)
        return self._all(batch.partition, before, numbers[-1], bodies)

    def _all(
        self,
        partition: Partition,
        after: RejectKey | None,
        last: int | None,
        bodies: Mapping[int, bytes],
    ) -> tuple[int, int]:
        replayed = stay = 0
        while True:
            rejects, done = self._step(partition, after, last, bodies)
            replayed, stay = replayed + done, stay + len(rejects) - done
            if not rejects:
                return replayed, stay
            after = rejects[-1].key

    @retried
    def _step(
        self,
        partition: Partition,
        after: RejectKey | None,
        last: int | None,
        bodies: Mapping[int, bytes],
    ) -> tuple[list[StoredReject], int]:
        """Replay some rejects, in one transaction; return them, and how many could be read."""
        with self.store.transaction(partition) as transaction:
            rejects = [
                replace(reject, body=bodies.get(reject.sequence_number, reject.body))
                for reject in transaction.rejects(after, REPLAY_ROWS, last)
            ]
            return rejects, self._replay(transaction, partition, rejects) if rejects else 0

    def _replay(
        self, transaction: IngestTransaction, partition: Partition, rejects: list[StoredReject]
    ) -> int:
        batch = _batch(partition, rejects)
        readings, bad = self.ingest.decoder.decode(batch)
        # An element that is still bad in part stays as it is: it must not be counted in halves.
        ok = ~np.isin(np.arange(len(rejects)), [reject.event for reject in bad])
        readings = readings.where(ok[readings.event])
        if not len(readings):
            return 0
        keys = tuple(rejects[i].key for i in np.unique(readings.event))
        transaction.save(self._change(transaction, batch, readings, rejects, keys))
        return len(keys)

    def _change(
        self,
        transaction: IngestTransaction,
        batch: EventBatch,
        readings: Readings,
        rejects: list[StoredReject],
        keys: tuple[RejectKey, ...],
    ) -> IngestChange:
        epochs = np.array([reject.epoch for reject in rejects])[readings.event]
        progress = transaction.progress or PartitionProgress(None, 0)
        # Everything up to the newest enqueued time was applied before.
        reached = np.full(len(readings), progress.last_enqueued, dtype=np.int64)
        enqueued = batch.enqueued_times[readings.event]
        arrived = self.ingest.arrive(transaction, batch.partition, readings, enqueued, reached)
        # An event may hold one reading twice: each is in the segment of its own reject.
        source = repr(keys[0]).encode()
        segments = [
            arrived.noted(
                write_segment(
                    self.ingest.blobs, batch, int(epoch), readings.where(epochs == epoch), source
                )
            )
            for epoch in (np.unique(epochs) if self.ingest.raw_segments else ())
        ]
        return IngestChange(
            epochs=(),
            partials=arrived.partials,
            rejects=[],
            segments=segments,
            watermark=arrived.watermark,
            last_enqueued=progress.last_enqueued,
            events=0,
            readings=len(readings),
            late=arrived.late,
            replayed=keys,
        )


@dataclass(frozen=True, slots=True)
class RebuildWindows:
    """Computes all windows anew from the raw segments: another size, or a repaired bug.

    In bounded steps: one that was stopped goes on where it was when it is called again, in any
    process. Meanwhile no run begins, and ingest goes on.
    """

    store: RebuildStore
    blobs: Blobs

    def __call__(self, window: int, progress: Progress) -> int:
        """Rebuild; return the number of readings that this call has added.

        Parameters
        ----------
        window
            Size of the new windows, microseconds.

        Raises
        ------
        Conflict
            A run is active, the raw store lacks readings, or a rebuild with windows of another size
            is under way.
        """
        self.store.begin(window)
        # None of them merges readings into the old windows any more.
        self.store.wait_for_writers()
        while self.store.clear(REBUILD_WINDOWS):
            pass
        readings, refused = 0, None
        while True:
            while segments := self.store.pending(REBUILD_SEGMENTS):
                if segments == refused:
                    # Nobody else adds them either.
                    message = "another rebuild has begun meanwhile: let that end first"
                    raise Conflict(message)
                added = self._fill(segments, window)
                refused = None if added else segments
                readings += added
                progress(*self.store.count())
            # None of them keeps readings as segments only any more.
            self.store.wait_for_writers()
            if self.store.end():
                return readings

    def _fill(self, segments: list[tuple[Partition, Segment]], window: int) -> int:
        """Add the first segments; return how many readings were added."""
        table, added, readings = WindowTable(), list[Segment](), 0
        for _, segment in segments:
            read = _read_segment(self.blobs.read(segment.blob)[0])
            late = np.full(len(read), segment.late_enqueued, dtype=np.int64)
            table.add(aggregate(read, window, late))
            added.append(segment)
            readings += len(read)
            if len(table) > REBUILD_WINDOWS:
                break
        partition = segments[0][0]
        return readings if self.store.fill(partition, window, added, table.take()) else 0


def _batch(partition: Partition, rejects: list[StoredReject]) -> EventBatch:
    return EventBatch(
        partition,
        np.array([reject.sequence_number for reject in rejects], dtype=np.int64),
        np.array([reject.enqueued_time for reject in rejects], dtype=np.int64),
        [reject.body for reject in rejects],
        [reject.connection_device_id for reject in rejects],
    )


def _read_segment(data: bytes) -> Readings:
    table = pq.read_table(io.BytesIO(data))
    return Readings(
        table["device"].to_pylist(),
        table["sensor"].to_pylist(),
        table["event_time"].cast(pa.int64()).to_numpy(),
        table["value"].to_numpy(),
        np.zeros(table.num_rows, dtype=np.int64),
    )
