"""Ingest an event batch: every event counted once, none silently missing."""

import io
from collections import Counter
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scoring import ledger
from scoring.aggregates import Partials, aggregate
from scoring.ledger import HubAnswer, Slice
from scoring.ports import (
    Blobs,
    EventLog,
    IngestChange,
    IngestStore,
    IngestTransaction,
    Segment,
    StoredReject,
)
from scoring.readings import I64, EventBatch, Partition, ReadingDecoder, Readings, Reject
from scoring.retrying import retried
from scoring.windows import PartitionProgress, Windowing

SEGMENT_SCHEMA = pa.schema(
    [
        pa.field("device", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("sensor", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("event_time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("sequence_number", pa.int64(), nullable=False),
    ]
)
"""One row a reading, in the order of the events."""


@dataclass(frozen=True, slots=True)
class IngestOutcome:
    """What became of one event batch.

    Attributes
    ----------
    late
        Readings whose window was final already; they are merged all the same.
    missing
        Events newly known to be missing, or found, if negative: the change of the open gaps.
    empty
        New events with neither a reading nor a reject: empty arrays.
    rejects
        Rejects by reason code.
    """

    events: int = 0
    duplicates: int = 0
    readings: int = 0
    late: int = 0
    missing: int = 0
    empty: int = 0
    rejects: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "IngestOutcome") -> "IngestOutcome":
        return IngestOutcome(
            self.events + other.events,
            self.duplicates + other.duplicates,
            self.readings + other.readings,
            self.late + other.late,
            self.missing + other.missing,
            self.empty + other.empty,
            self.rejects + other.rejects,
        )


@dataclass(frozen=True, slots=True)
class Ingest:
    """The ingest handler.

    Attributes
    ----------
    windowing
        The size of the store's own windows, once it has any, counts instead of this one's.
    raw_segments
        Whether the accepted readings are kept as segments in `blobs`.
    log
        The hub that is asked where its events may be those of a hub that was created again; None
        where no hub can be asked.
    """

    store: IngestStore
    blobs: Blobs
    decoder: ReadingDecoder
    windowing: Windowing
    raw_segments: bool = True
    log: EventLog | None = None

    def __call__(self, batch: EventBatch) -> IngestOutcome:
        """Apply what is new in the batch, in one transaction.

        Raises
        ------
        Transient, StorageUnusable
            Tried a few times, the former: the same batch again is safe.
        """
        if not len(batch):
            return IngestOutcome()
        # Decoding needs no lock, and duplicates are rare: do it before the lock is taken.
        return self._apply(batch, *self.decoder.decode(batch))

    @retried
    def _apply(self, batch: EventBatch, readings: Readings, rejects: list[Reject]) -> IngestOutcome:
        with self.store.transaction(batch.partition) as transaction:
            log = self._log_to_ask(transaction, batch)
            if log is None:
                return self._save(transaction, batch, readings, rejects)
            known = ledger.in_order(transaction.epochs)
        # Outside the row lock: a hub that is slow to answer holds up nobody else.
        created = known[-1].created if known else None
        is_same = created is not None and log.created_at() == created
        answer = None if is_same else log.look(batch.partition)
        with self.store.transaction(batch.partition) as transaction:
            return self._save(transaction, batch, readings, rejects, answer)

    def _save(
        self,
        transaction: IngestTransaction,
        batch: EventBatch,
        readings: Readings,
        rejects: list[Reject],
        answer: HubAnswer | None = None,
    ) -> IngestOutcome:
        """Apply what is new in the batch, once the hub has given an answer if it was asked."""
        missing = _missing(transaction)
        if answer:
            changed = ledger.admit(transaction.epochs, answer, transaction.answer)
            transaction.admit(changed, answer)
        numbers, times = batch.sequence_numbers, batch.enqueued_times
        is_file = batch.partition.is_file
        slices = ledger.apply(transaction.epochs, numbers, times, is_file=is_file)
        if not slices:
            return IngestOutcome(len(batch), len(batch))
        work = _New.of(batch, slices, readings, rejects)
        change = self._change(transaction, work)
        transaction.save(change)
        return _outcome(work, change, _missing(transaction) - missing)

    def _log_to_ask(self, transaction: IngestTransaction, batch: EventBatch) -> EventLog | None:
        """Return the hub if it must be asked before the batch is applied, else None."""
        epochs, times = transaction.epochs, batch.enqueued_times
        if self.log is None or not ledger.has_pause(epochs, times):
            return None
        if not self.log.holds(batch.partition):
            return None
        return None if ledger.is_answered(epochs, times, transaction.answer) else self.log

    def _change(self, transaction: IngestTransaction, work: "_New") -> IngestChange:
        progress = transaction.progress or PartitionProgress(None, 0)
        reached = work.reached()
        newest = max(progress.last_enqueued, int(reached.max()))
        arrived = self.arrive(
            transaction,
            work.batch.partition,
            work.readings,
            work.batch.enqueued_times[work.readings.event],
            reached[work.readings.event],
        )
        watermark = arrived.watermark
        if not work.batch.partition.is_file:
            watermark = self.windowing.floor(watermark, newest)
        return IngestChange(
            epochs=tuple(part.epoch for part in work.slices),
            partials=arrived.partials,
            rejects=[work.stored(reject) for reject in work.rejects],
            segments=self._write_segments(work, arrived) if self.raw_segments else [],
            watermark=watermark,
            last_enqueued=newest,
            events=work.events,
            readings=len(work.readings),
            late=arrived.late,
        )

    def arrive(
        self,
        transaction: IngestTransaction,
        partition: Partition,
        readings: Readings,
        enqueued_times: I64,
        reached: I64,
    ) -> "Arrival":
        """Put readings into windows; of delivered ones and of replayed ones alike.

        Parameters
        ----------
        enqueued_times, reached
            As of `Windowing.arrive`.
        """
        size = transaction.window or self.windowing.size
        windowing = replace(self.windowing, size=size)
        before = transaction.progress.watermark if transaction.progress else None
        times = readings.event_time
        if partition.is_file:
            watermark, late = windowing.arrive_from_file(before, times)
            partials = aggregate(readings, size)
        else:
            watermark, late = windowing.arrive(before, times, enqueued_times, reached)
            partials = aggregate(readings, size, np.where(late, enqueued_times, 0))
        return Arrival(watermark, partials, int(np.count_nonzero(late)))

    def _write_segments(self, work: "_New", arrived: "Arrival") -> list[Segment]:
        return [
            arrived.noted(write_segment(self.blobs, work.batch, part.epoch.number, readings))
            for part in work.slices
            if len(readings := work.readings_of(part.epoch.number))
        ]


@dataclass(frozen=True, slots=True)
class Arrival:
    """The effect of readings on their partition and on windows.

    Attributes
    ----------
    watermark
        The partition's, after them.
    late
        How many came when their window was final already.
    """

    watermark: int | None
    partials: Partials
    late: int

    def noted(self, segment: Segment) -> Segment:
        """Return a segment of these readings with the enqueued time of the newest late one."""
        late = int(self.partials.late_enqueued.max(initial=0))
        return replace(segment, late_enqueued=late)


@dataclass(frozen=True, slots=True)
class _New:
    """What an event batch holds that was not applied before.

    Attributes
    ----------
    epoch_of
        Number of the epoch that each event was applied to, -1 for duplicates.
    """

    batch: EventBatch
    slices: list[Slice]
    epoch_of: I64
    readings: Readings
    rejects: list[Reject]

    @classmethod
    def of(
        cls, batch: EventBatch, slices: list[Slice], readings: Readings, rejects: list[Reject]
    ) -> "_New":
        epoch_of = np.full(len(batch), -1)
        for part in slices:
            epoch_of[part.events] = part.epoch.number
        new = epoch_of >= 0
        kept = [reject for reject in rejects if new[reject.event]]
        readings = readings.where(new[readings.event])
        return cls(batch, slices, epoch_of, _in_order(batch, epoch_of, readings), kept)

    @property
    def events(self) -> int:
        return int(np.count_nonzero(self.epoch_of >= 0))

    @property
    def empty(self) -> int:
        """How many of its events have neither a reading nor a reject."""
        has_any = self.epoch_of < 0
        has_any[self.readings.event] = True
        has_any[[reject.event for reject in self.rejects]] = True
        return int(np.count_nonzero(~has_any))

    def reached(self) -> I64:
        """Return the greatest enqueued time of the new events up to each one, in their order."""
        enqueued, numbers = self.batch.enqueued_times, self.batch.sequence_numbers
        if (
            len(self.slices) == 1
            and self.events == len(numbers)
            and (numbers[1:] > numbers[:-1]).all()
        ):
            ordered: I64 = np.maximum.accumulate(enqueued)
            return ordered
        order = np.lexsort((numbers, self.epoch_of))
        reached = np.empty_like(enqueued)
        # Duplicates come first, and were enqueued before: they raise nothing.
        reached[order] = np.maximum.accumulate(np.where(self.epoch_of >= 0, enqueued, 0)[order])
        return reached

    def readings_of(self, epoch: int) -> Readings:
        return self.readings.where(self.epoch_of[self.readings.event] == epoch)

    def stored(self, reject: Reject) -> StoredReject:
        batch, event = self.batch, reject.event
        devices = batch.connection_device_ids
        return StoredReject(
            epoch=int(self.epoch_of[event]),
            sequence_number=int(batch.sequence_numbers[event]),
            position=reject.position,
            enqueued_time=int(batch.enqueued_times[event]),
            reason=reject.reason,
            detail=reject.detail,
            body=reject.body,
            connection_device_id=devices[event] if devices else None,
        )


def _in_order(batch: EventBatch, epoch_of: I64, readings: Readings) -> Readings:
    """Order readings by epoch and sequence number: nothing depends on the order of delivery."""
    numbers, epochs = batch.sequence_numbers[readings.event], epoch_of[readings.event]
    if (numbers[1:] >= numbers[:-1]).all() and (epochs[1:] == epochs[:-1]).all():
        return readings
    return readings.take(np.lexsort((numbers, epochs)))


def write_segment(
    blobs: Blobs, batch: EventBatch, epoch: int, readings: Readings, source: bytes = b""
) -> Segment:
    """Write readings of one epoch as a segment; gives its row of the manifest.

    It is written once: what a manifest names never changes. The name ends in a digest of the
    content, so that one that was written and never committed does not stand in the way of another
    one of the same range.

    Parameters
    ----------
    source
        Tells two segments apart that hold the same readings of one event.
    """
    numbers = batch.sequence_numbers[readings.event]
    columns = [readings.device, readings.sensor, readings.event_time, readings.value, numbers]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SEGMENT_SCHEMA, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays, schema=SEGMENT_SCHEMA), sink, compression="zstd")
    data = sink.getvalue()
    first, last = int(numbers[0]), int(numbers[-1])
    name = segment_name(
        batch.partition, epoch, first, last, blake2b(data + source, digest_size=4).hexdigest()
    )
    blobs.create(name, data)
    return Segment(epoch, first, last, name, len(readings))


def segment_name(partition: Partition, epoch: int, first: int, last: int, digest: str) -> str:
    """Name a segment by hub, epoch, partition, and sequence numbers that sort as text."""
    return f"raw/{partition.hub}/{epoch}/{partition.id}/{first:012d}-{last:012d}-{digest}.parquet"


def _outcome(work: _New, change: IngestChange, missing: int) -> IngestOutcome:
    return IngestOutcome(
        events=len(work.batch),
        duplicates=len(work.batch) - work.events,
        readings=change.readings,
        late=change.late,
        missing=missing,
        empty=work.empty,
        rejects=Counter(reject.reason for reject in change.rejects),
    )


def _missing(transaction: IngestTransaction) -> int:
    gaps = (gap for epoch in transaction.epochs for gap in epoch.gaps)
    return sum(last - first + 1 for first, last in gaps)
