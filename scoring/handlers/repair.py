"""Repair gaps, replay rejects, rebuild windows: what sets right what went wrong before."""

import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.aggregates import WindowTable, aggregate
from scoring.errors import ScoringError, cause_of
from scoring.handlers.ingest import Ingest, IngestOutcome, later, write_segment
from scoring.ports import (
    Blobs,
    EventLog,
    Gap,
    IngestChange,
    IngestStore,
    IngestTransaction,
    RebuildStore,
    RejectKey,
    StoredReject,
)
from scoring.readings import EventBatch, Partition, Readings
from scoring.retrying import retried

REPLAY_ROWS = 1_000
"""Rejects replayed in one transaction."""

REBUILD_WINDOWS = 100_000
"""Windows of one partition that a rebuild merges in memory before it writes them."""

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

    def __call__(self, tell: Callable[[IngestOutcome], None] = _tell_nobody) -> IngestOutcome:
        """Repair what can be repaired; what the hub no longer holds becomes ``lost``.

        A gap that fails keeps nobody from those after it: its error is logged, and the first one
        is raised in the end.

        Parameters
        ----------
        tell
            Told what became of each event batch, also where a gap fails.
        """
        newest = self.store.partitions()
        outcome, failure = IngestOutcome(), None
        for gap in self._repairable():
            try:
                for batch in self._retained(gap, is_gone=gap.epoch < newest[gap.partition]):
                    applied = self.ingest(batch)
                    outcome += applied
                    tell(applied)
            except Exception as error:  # noqa: BLE001 - a defect that one gap meets is its own too
                _log_failure(gap, error)
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
        for gap in self.store.gaps():
            if gap.state == "open":
                (ours if self.log.holds(gap.partition) else others).append(gap)
        if others:
            hubs = sorted({gap.partition.hub for gap in others})
            log.warning("repair.gaps_skipped", extra={"count": len(others), "hubs": hubs})
        return ours

    def _retained(self, gap: Gap, *, is_gone: bool) -> Iterator[EventBatch]:
        """Give what the hub still holds of a gap, and mark the rest as lost."""
        # Events of an epoch that ended went with the hub that held them.
        oldest = None if is_gone else self.log.oldest(gap.partition)
        kept_from = gap.last + 1 if oldest is None else max(oldest, gap.first)
        if kept_from > gap.first:
            last = min(kept_from - 1, gap.last)
            lost = Gap(gap.partition, gap.epoch, gap.first, last, "lost")
            self.store.mark_lost(lost)
            log.warning("repair.lost", extra=_facts(lost) | {"events": lost.events})
        if kept_from <= gap.last:
            yield from self.log.read(gap.partition, kept_from, gap.last)


def _log_failure(gap: Gap, error: Exception) -> None:
    facts = _facts(gap) | {"error": type(error).__name__, "cause": cause_of(error)}
    # Only one error is raised: nobody else would show where a defect is.
    trace = None if isinstance(error, ScoringError) else error
    log.warning("repair.gap_failed", extra=facts, exc_info=trace)


def _facts(gap: Gap) -> dict[str, Any]:
    return {
        "hub": gap.partition.hub,
        "partition": gap.partition.id,
        "epoch": gap.epoch,
        "first_sequence": gap.first,
        "last_sequence": gap.last,
    }


@dataclass(frozen=True, slots=True)
class ReplayRejects:
    """Decodes rejects again, with the settings of today; what can be read now is counted."""

    store: IngestStore
    ingest: Ingest

    def __call__(self) -> tuple[int, int]:
        """Give how many rejects were replayed, and how many stay rejected."""
        replayed = stay = 0
        for partition in self.store.partitions():
            after: RejectKey | None = None
            while True:
                rejects, done = self._step(partition, after)
                replayed, stay = replayed + done, stay + len(rejects) - done
                if not rejects:
                    break
                after = rejects[-1].key
        return replayed, stay

    @retried
    def _step(
        self, partition: Partition, after: RejectKey | None
    ) -> tuple[list[StoredReject], int]:
        """Replay some rejects, in one transaction; gives them, and how many could be read."""
        with self.store.transaction(partition) as transaction:
            rejects = transaction.rejects(after, REPLAY_ROWS)
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
        progress = transaction.progress
        watermark = progress.watermark if progress else None
        segments = [
            write_segment(self.ingest.blobs, batch, int(epoch), readings.where(epochs == epoch))
            for epoch in (np.unique(epochs) if self.ingest.raw_segments else ())
        ]
        return IngestChange(
            epochs=(),
            partials=aggregate(readings, self.ingest.window),
            rejects=[],
            segments=segments,
            watermark=later(watermark, readings.event_time),
            last_enqueued=progress.last_enqueued if progress else 0,
            events=0,
            readings=len(readings),
            late=0,
            replayed=keys,
        )


@dataclass(frozen=True, slots=True)
class RebuildWindows:
    """Computes all windows anew from the raw segments: another size, or a repaired bug."""

    store: RebuildStore
    blobs: Blobs

    def __call__(self, window: int, progress: Progress) -> int:
        """Rebuild in one transaction; gives the number of readings.

        Parameters
        ----------
        window
            Size of the new windows, microseconds.
        """
        readings = 0
        with self.store.rebuild(window) as transaction:
            segments = transaction.segments
            done = 0
            for partition, own in groupby(segments, key=lambda entry: entry[0]):
                table = WindowTable()
                for _, segment in own:
                    read = _read_segment(self.blobs.read(segment.blob)[0])
                    table.add(aggregate(read, window))
                    readings, done = readings + len(read), done + 1
                    progress(done, len(segments))
                    if len(table) > REBUILD_WINDOWS:
                        transaction.merge(partition, table.take())
                transaction.merge(partition, table.take())
        return readings


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
