"""One file of readings as the event batches of a hub of its own."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from zlib import crc32

import numpy as np

from scoring.adapters.files.rows import (
    FileFormat,
    Keyed,
    csv_events,
    guess_format,
    ndjson_events,
)
from scoring.adapters.files.source import MAX_LINE, Progress, Source
from scoring.errors import BadInput, UnreadableSource
from scoring.ports import FileNote
from scoring.readings import EventBatch, FieldNames, Partition

_CANONICAL = FieldNames()


class ReadingsFile:
    """A file of readings; a context manager, because standard input leaves a temporary file.

    Attributes
    ----------
    hub
        Names the content: ``file-`` and 12 hexadecimal digits. The same content in as many
        partitions has the same name, and each of its events the same partition and sequence
        number, whatever other options are.
    format
        CSV or newline-delimited JSON.
    partitions
        Ids, ascending.
    size, digest
        Of the content in bytes, and what it is known by.
    enqueued_time
        Of the events that were not applied before, epoch microseconds UTC.
    applied
        By partition, the last sequence number that was applied before, and when that arrived: a
        file that was touched, copied or grown since must not seem to be another one.
    progress
        Of the event batches being read; its total is that of all passes.
    """

    def __init__(
        self,
        source: Source,
        columns: FieldNames,
        file_format: FileFormat,
        partitions: int,
        enqueued_time: int,
    ) -> None:
        self._source = source
        self._columns = columns
        self._key_column = columns.device
        self.format = file_format
        self.partitions = tuple(map(str, range(partitions)))
        self.enqueued_time = enqueued_time
        self._salt = json.dumps({"partitions": partitions}).encode()
        self.digest, self.size = source.digest(self._salt)
        self.hub = f"file-{self.digest[:12]}"
        self.applied: Mapping[str, tuple[int, int]] = {}
        self.progress = Progress(total=self.size)

    @classmethod
    def open(
        cls,
        path: Path | str,
        columns: FieldNames = _CANONICAL,
        *,
        file_format: FileFormat | None = None,
        partitions: int = 4,
        arrived_at: int | None = None,
    ) -> Self:
        """Read a file once to learn its identity; nothing of it is kept in memory.

        Parameters
        ----------
        path
            ``-`` is standard input. What is gzip is unpacked.
        columns
            Names of the columns of a CSV file, in any case, or of the fields of an NDJSON file.
        file_format
            None goes by the name's ending, or else by the first character.
        arrived_at
            The enqueued time of all events, epoch microseconds UTC; None takes the time when the
            file was last written.

        Raises
        ------
        UnreadableSource
            The file is not there, a folder, empty, no text, or lacks columns.
        """
        source = Source(path)
        try:
            head = source.head()
            _check_text(source, head)
            file_format = file_format or guess_format(source.suffix, head)
            enqueued_time = source.modified() if arrived_at is None else arrived_at
            opened = cls(source, columns, file_format, partitions, enqueued_time)
            opened._events(Progress())
        except BaseException:
            source.close()
            raise
        return opened

    def batches(
        self,
        batch_size: int = 1000,
        order: Sequence[str] | None = None,
        start_after: Mapping[str, int] | None = None,
    ) -> Iterator[EventBatch]:
        """Give the events as they come; memory holds one event batch a partition.

        Parameters
        ----------
        order
            Partitions to give one after the other, each by a pass of its own over the file, and
            no others; None mixes all of them in one pass.
        start_after
            Last sequence number, by partition, that is not wanted again.

        Raises
        ------
        UnreadableSource
            The file was cut off, or its gzip damaged, since it was opened.
        BadInput
            `order` names a partition that does not exist.
        """
        passes = [self.partitions] if order is None else [(one,) for one in order]
        if unknown := {one for wanted in passes for one in wanted} - set(self.partitions):
            message = f"no partition {', '.join(sorted(unknown))}; there are {self.partitions}"
            raise BadInput(message)
        self.progress = Progress(total=self.size * len(passes))
        return self._passes(passes, batch_size, dict(start_after or {}))

    @property
    def field_names(self) -> FieldNames:
        """The names of the fields in the bodies, for the decoder."""
        return _CANONICAL if self.format is FileFormat.CSV else self._columns

    @property
    def has_elements(self) -> bool:
        """Whether an event may have several readings, each of which may be rejected."""
        return self.format is FileFormat.NDJSON

    @property
    def note(self) -> FileNote:
        """The note by which the store knows the file."""
        return FileNote(self.size, self.digest, json.dumps([self.format, self._key_column]))

    def recognise(self, known: Mapping[str, FileNote], *others: FieldNames) -> bool:
        """Take the hub of the file that this one is or has grown from, if it is known.

        Parameters
        ----------
        known
            Files by their hubs.
        others
            Columns by which an earlier version may have known the file, beside this one's.

        Returns
        -------
        bool
            Whether it is known.

        Raises
        ------
        UnreadableSource
            What was the last line then is a part of a longer one now.
        """
        if self.hub in known:
            # What it was ingested as at first; it may have grown elsewhere since.
            return True
        earlier = self._earlier_salts({self._columns, _CANONICAL, *others})
        sizes = {note.size for note in known.values()}
        salts = self._source.digests([self._salt, *earlier], sizes) if known else {}
        grown = {hub: note for hub, note in known.items() if note.digest in salts}
        if not grown:
            return False
        self.hub = max(grown, key=lambda hub: grown[hub].size)
        if not self._source.ends_line_at(grown[self.hub].size):
            self._source.refuse(
                "was ingested when its last line was not yet whole: ingest the new lines by"
                " themselves"
            )
        salt = salts[grown[self.hub].digest]
        if salt != self._salt:
            self.format, self._key_column = earlier[salt]
        return True

    def deal_as(self, note: FileNote) -> None:
        """Deal events out to partitions as they were when the file was ingested first."""
        file_format, self._key_column = json.loads(note.keying)
        self.format = FileFormat(file_format)
        self._events(Progress())

    def _earlier_salts(self, columns: set[FieldNames]) -> dict[bytes, tuple[FileFormat, str]]:
        """Return what earlier versions began a file's digest with, and what that tells of it."""
        return {
            json.dumps([one, len(self.partitions), *astuple(names)]).encode(): (one, names.device)
            for one in FileFormat
            for names in columns
        }

    def close(self) -> None:
        """Remove the copy of standard input, where that was read."""
        self._source.close()

    def __enter__(self) -> Self:
        """Give the file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _passes(
        self, passes: Sequence[Sequence[str]], batch_size: int, start_after: dict[str, int]
    ) -> Iterator[EventBatch]:
        for wanted in passes:
            buffers = [
                _Buffer(
                    Partition(self.hub, one),
                    self.enqueued_time,
                    self.applied.get(one, (-1, 0)),
                    start_after.get(one, -1) + 1 if one in wanted else sys.maxsize,
                )
                for one in self.partitions
            ]
            yield from _batches(self._events(self.progress), buffers, batch_size)

    def _events(self, progress: Progress) -> Iterator[Keyed]:
        """Begin a pass over the file; raises at once where nothing in it could be read."""
        events = csv_events if self.format is FileFormat.CSV else ndjson_events
        try:
            lines = self._source.lines(self.size, progress)
            return events(lines, self._columns, self._key_column)
        except UnreadableSource as error:
            self._source.refuse(str(error), error)


@dataclass(slots=True)
class _Buffer:
    """The events of one partition that no event batch holds yet.

    Attributes
    ----------
    applied
        The last number that was applied before, and the enqueued time of those up to it.
    skipped
        How many of its first events are not wanted.
    seen
        How many events were counted so far.
    """

    partition: Partition
    enqueued_time: int
    applied: tuple[int, int]
    skipped: int
    seen: int = 0
    bodies: list[bytes] = field(default_factory=list)

    def flush(self) -> EventBatch:
        numbers = np.arange(self.seen - len(self.bodies), self.seen, dtype=np.int64)
        bodies, self.bodies = self.bodies, []
        last, arrived = self.applied
        enqueued = np.where(numbers <= last, arrived, self.enqueued_time)
        return EventBatch(self.partition, numbers, enqueued, bodies)


def _batches(
    events: Iterator[Keyed], buffers: list[_Buffer], batch_size: int
) -> Iterator[EventBatch]:
    """Deal events out to their partitions, and give each event batch that is full."""
    count = len(buffers)
    for key, body in events:
        buffer = buffers[crc32(key) % count]
        buffer.seen += 1
        if buffer.seen > buffer.skipped:
            buffer.bodies.append(body)
            if len(buffer.bodies) >= batch_size:
                yield buffer.flush()
    yield from (buffer.flush() for buffer in buffers if buffer.bodies)


def _check_text(source: Source, head: bytes) -> None:
    # Only its first line tells: further down, a NUL is the fault of its own line alone.
    if b"\0" in head.partition(b"\n")[0]:
        source.refuse("is binary or UTF-16; CSV or NDJSON in UTF-8 is needed")
    if head[:1] == b"[" and len(head) >= MAX_LINE and b"\n" not in head:
        source.refuse("is one long JSON array; each reading needs a line of its own")
