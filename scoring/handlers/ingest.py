"""Ingest an event batch: every event counted once, none silently missing."""

import io
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scoring import ledger
from scoring.aggregates import aggregate
from scoring.errors import Conflict
from scoring.ledger import Slice
from scoring.ports import Blobs, IngestChange, IngestStore, IngestTransaction, Segment, StoredReject
from scoring.readings import I64, EventBatch, Partition, ReadingDecoder, Readings, Reject
from scoring.retrying import retried
from scoring.windows import count_late

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
    rejects
        Rejects by reason code.
    """

    events: int = 0
    duplicates: int = 0
    readings: int = 0
    late: int = 0
    missing: int = 0
    rejects: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "IngestOutcome") -> "IngestOutcome":
        return IngestOutcome(
            self.events + other.events,
            self.duplicates + other.duplicates,
            self.readings + other.readings,
            self.late + other.late,
            self.missing + other.missing,
            self.rejects + other.rejects,
        )


@dataclass(frozen=True, slots=True)
class Ingest:
    """The ingest handler.

    Attributes
    ----------
    window, allowed_lateness
        Microseconds.
    raw_segments
        Whether the accepted readings are kept as segments in `blobs`.
    """

    store: IngestStore
    blobs: Blobs
    decoder: ReadingDecoder
    window: int
    allowed_lateness: int
    raw_segments: bool = True

    def __call__(self, batch: EventBatch) -> IngestOutcome:
        """Apply what is new in the batch, in one transaction.

        Raises
        ------
        Conflict
            The windows were rebuilt in another size: start again.
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
            self._check_window(transaction)
            slices = ledger.apply(transaction.epochs, batch.sequence_numbers, batch.enqueued_times)
            if not slices:
                return IngestOutcome(len(batch), len(batch))
            work = _New.of(batch, slices, readings, rejects)
            change = self._change(transaction, work)
            transaction.save(change)
        return _outcome(transaction, work, change)

    def _check_window(self, transaction: IngestTransaction) -> None:
        if transaction.window not in {None, self.window}:
            message = "the windows were rebuilt in another size since this process started"
            raise Conflict(message)

    def _change(self, transaction: IngestTransaction, work: "_New") -> IngestChange:
        before = transaction.progress
        watermark = before.watermark if before else None
        times = work.readings.event_time
        ends = [before.last_enqueued] if before else []
        ends += [part.epoch.last_enqueued for part in work.slices]
        return IngestChange(
            epochs=tuple(part.epoch for part in work.slices),
            partials=aggregate(work.readings, self.window),
            rejects=[work.stored(reject) for reject in work.rejects],
            segments=self._write_segments(work) if self.raw_segments else [],
            watermark=later(watermark, times),
            last_enqueued=max(ends),
            events=work.events,
            readings=len(work.readings),
            late=count_late(times, self.window, self.allowed_lateness, watermark),
        )

    def _write_segments(self, work: "_New") -> list[Segment]:
        return [
            write_segment(self.blobs, work.batch, part.epoch.number, readings)
            for part in work.slices
            if len(readings := work.readings_of(part.epoch.number))
        ]


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


def write_segment(blobs: Blobs, batch: EventBatch, epoch: int, readings: Readings) -> Segment:
    """Write readings of one epoch as a segment; gives its row of the manifest.

    It is written once: what a manifest names never changes. The name ends in a digest of the
    content, so that one that was written and never committed does not stand in the way of another
    one of the same range.
    """
    numbers = batch.sequence_numbers[readings.event]
    columns = [readings.device, readings.sensor, readings.event_time, readings.value, numbers]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SEGMENT_SCHEMA, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays, schema=SEGMENT_SCHEMA), sink, compression="zstd")
    data = sink.getvalue()
    first, last = int(numbers[0]), int(numbers[-1])
    name = segment_name(
        batch.partition, epoch, first, last, blake2b(data, digest_size=4).hexdigest()
    )
    blobs.create(name, data)
    return Segment(epoch, first, last, name, len(readings))


def segment_name(partition: Partition, epoch: int, first: int, last: int, digest: str) -> str:
    """Name a segment by hub, epoch, partition, and sequence numbers that sort as text."""
    return f"raw/{partition.hub}/{epoch}/{partition.id}/{first:012d}-{last:012d}-{digest}.parquet"


def _outcome(transaction: IngestTransaction, work: _New, change: IngestChange) -> IngestOutcome:
    before = {epoch.number: epoch for epoch in transaction.epochs}
    missing = sum(
        _missing(epoch.gaps) - _missing(before[epoch.number].gaps if epoch.number in before else ())
        for epoch in change.epochs
    )
    return IngestOutcome(
        events=len(work.batch),
        duplicates=len(work.batch) - work.events,
        readings=change.readings,
        late=change.late,
        missing=missing,
        rejects=Counter(reject.reason for reject in change.rejects),
    )


def later(watermark: int | None, event_times: I64) -> int | None:
    """Give the watermark after more readings: it never goes back."""
    newest = int(event_times.max()) if len(event_times) else None
    return max((mark for mark in (watermark, newest) if mark is not None), default=None)


def _missing(gaps: tuple[ledger.Range, ...]) -> int:
    return sum(last - first + 1 for first, last in gaps)
