"""The event hub of the embedded system: each partition's events in a folder of Arrow files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scoring.errors import StorageUnusable
from scoring.ledger import HubAnswer
from scoring.readings import EventBatch, Partition
from scoring.storage import DRAFT, draft_of, remove_abandoned, storage_errors, sync_file

_NAME = re.compile(r"(\d+)-(\d+)\.arrow")
_SCHEMA = pa.schema(
    [
        pa.field("sequence_number", pa.int64(), nullable=False),
        pa.field("enqueued_time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("body", pa.binary(), nullable=False),
        pa.field("connection_device_id", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, order=True)
class _Segment:
    """One file of events, named by its first and last sequence number."""

    first: int
    last: int
    path: Path


class FolderEventLog:
    """Keeps events as ``<root>/<hub>/<partition>/<first>-<last>.arrow``, and gives them again.

    A partition only grows: numbers at or below its newest are taken to be there already. So the
    same events may be appended again, however they are cut, as a producer does that was killed
    and starts anew.

    Raises
    ------
    StorageUnusable
        By every method: the folder cannot be read or written, or a file in it is damaged.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def append(self, batch: EventBatch) -> None:
        """Keep the events that are newer than all of their partition.

        Parameters
        ----------
        batch
            By ascending sequence number.
        """
        segments = self._segments(batch.partition)
        known = max((segment.last for segment in segments), default=-1)
        start = int(np.searchsorted(batch.sequence_numbers, known, side="right"))
        if start < len(batch):
            numbers = batch.sequence_numbers
            name = f"{numbers[start]:020}-{numbers[-1]:020}.arrow"
            self._write(self._folder(batch.partition) / name, _table(batch).slice(start))

    def holds(self, partition: Partition) -> bool:
        """Whether any event of the partition's hub was kept here."""
        return self._folder(partition).parent.exists()

    def read(
        self, partition: Partition, first: int, last: int, batch_size: int = 1000
    ) -> Iterator[EventBatch]:
        """Give the events from `first` to `last`, both included, by ascending sequence number.

        What is not kept is simply absent. No event batch holds more than `batch_size` events.
        """
        position = first
        for segment in self._segments(partition):
            if segment.last < position or segment.first > last:
                continue
            table = self._load(segment.path)
            numbers = _numpy(table, "sequence_number")
            start, end = np.searchsorted(numbers, [position, last + 1]).tolist()
            for place in range(start, end, batch_size):
                yield _event_batch(partition, table.slice(place, min(batch_size, end - place)))
            # Two producers at once leave segments that overlap: nothing is given twice.
            position = max(position, segment.last + 1)

    def survey(self) -> dict[Partition, HubAnswer]:
        """Return what is kept of the partitions of all hubs."""
        with storage_errors(self._root, "read"):
            folders = [*self._root.glob("*/*/")]
        names = ((unquote(folder.parent.name), unquote(folder.name)) for folder in folders)
        answers = {one: self.look(one) for one in sorted(Partition(*name) for name in names)}
        return {one: answer for one, answer in answers.items() if answer}

    def created_at(self) -> int | None:
        """Return None: nothing is known of that."""
        return None

    def look(self, partition: Partition) -> HubAnswer | None:
        """Return what is kept of a partition; nothing is known of when its hub was created."""
        segments = self._segments(partition)
        if not segments:
            return HubAnswer(None, 0, -1, 0, True) if self.holds(partition) else None
        newest = max(segments, key=lambda segment: segment.last)
        enqueued = _numpy(self._load(newest.path), "enqueued_time")
        return HubAnswer(None, segments[0].first, newest.last, int(enqueued.max()))

    def _folder(self, partition: Partition) -> Path:
        # Names come from outside: quoted, "." too, none can lead out of the root.
        return self._root.joinpath(
            *(quote(name, safe="").replace(".", "%2E") for name in (partition.hub, partition.id))
        )

    def _segments(self, partition: Partition) -> list[_Segment]:
        """List a partition's files by their names alone; none is opened."""
        folder = self._folder(partition)
        with storage_errors(folder, "read"):
            try:
                paths = [*folder.iterdir()]
            except FileNotFoundError:
                return []
        for path in paths:
            if path.name.startswith(DRAFT):
                remove_abandoned(path)
        named = [(path, _NAME.fullmatch(path.name)) for path in paths]
        return sorted(_Segment(int(name[1]), int(name[2]), path) for path, name in named if name)

    def _write(self, path: Path, table: pa.Table) -> None:
        """Put a file in place at once: a reader or a crash never sees half of it."""
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft_of(path) as draft:
                with pa.OSFile(str(draft), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
                    writer.write_table(table)
                sync_file(draft)
                draft.replace(path)

    def _load(self, path: Path) -> pa.Table:
        with storage_errors(path, "read"), path.open("rb") as file:
            try:
                return pa.ipc.open_file(file).read_all()
            except pa.ArrowInvalid as error:
                message = f"cannot read {path}: it is damaged: {error}"
                raise StorageUnusable(message) from error


def _table(batch: EventBatch) -> pa.Table:
    devices = batch.connection_device_ids
    columns = [
        pa.array(batch.sequence_numbers, pa.int64()),
        pa.array(batch.enqueued_times, pa.int64()).cast(_SCHEMA.field("enqueued_time").type),
        pa.array(batch.bodies, pa.binary()),
        pa.nulls(len(batch), pa.string()) if devices is None else pa.array(devices, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def _event_batch(partition: Partition, table: pa.Table) -> EventBatch:
    devices = table["connection_device_id"]
    return EventBatch(
        partition,
        _numpy(table, "sequence_number"),
        _numpy(table, "enqueued_time"),
        table["body"].to_pylist(),
        None if devices.null_count == len(devices) else devices.to_pylist(),
    )


def _numpy(table: pa.Table, column: str) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = table[column].cast(pa.int64()).to_numpy()
    return numbers
