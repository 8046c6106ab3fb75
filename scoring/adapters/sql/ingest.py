"""The ledger, the window partials and the rejects in SQL."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from scoring import ledger
from scoring.adapters.sql import bulk, texts
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.facts import WindowFacts, lock_claims, read_window_facts, write_fact
from scoring.adapters.sql.hubs import (
    IN_ORDER,
    lock_partition,
    newest_epochs,
    observe,
    parse_partition,
    read_answer,
    read_states,
    write_answer,
)
from scoring.adapters.sql.schema import (
    epochs,
    facts,
    gaps,
    hub_answers,
    partitions,
    rejects,
    segments,
)
from scoring.errors import Transient
from scoring.horizon import PartitionState
from scoring.ledger import Epoch, HubAnswer
from scoring.ports import FileNote, Gap, IngestChange, RejectKey, StoredReject
from scoring.readings import MAX_NAME, Partition
from scoring.retrying import retried
from scoring.windows import PartitionProgress

_FILE = "file:"
"""Before the hub of a file in the names of facts."""

GapRow = Row[Any]
"""A row of the table `gaps`."""


@dataclass(frozen=True, slots=True)
class _Transaction:
    """A locked partition; implements `ports.IngestTransaction`."""

    connection: Connection
    partition: str
    known: dict[int, Epoch]
    progress: PartitionProgress | None
    windows: WindowFacts

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """All epochs of the partition, with the changes of this transaction."""
        return tuple(self.known.values())

    @property
    def window(self) -> int | None:
        """Size of the store's windows, microseconds; None where it was never settled."""
        return self.windows.size

    @property
    def answer(self) -> HubAnswer | None:
        """The last answer of the hub about the partition; read on each access."""
        return read_answer(self.connection, self.partition)

    def admit(self, changed: Sequence[Epoch], answer: HubAnswer) -> None:
        """Write what the hub said, and the epochs that this opens or changes."""
        for epoch in changed:
            self._save_epoch(epoch)
        write_answer(self.connection, self.partition, answer)

    def save(self, change: IngestChange) -> None:
        """Write everything that the batch changes."""
        for epoch in change.epochs:
            self._save_epoch(epoch)
        rebuild = self._merge(change)
        bulk.insert(self.connection, rejects, self._reject_rows(change))
        bulk.insert(
            self.connection,
            segments,
            [
                (
                    *(self.partition, s.epoch, s.first_sequence, s.blob),
                    *(s.last_sequence, s.readings, rebuild, s.late_enqueued),
                )
                for s in change.segments
            ],
        )
        self._save_partition(change)
        replayed = [(self.partition, *key) for key in change.replayed]
        bulk.mark_replayed(self.connection, replayed)

    def rejects(
        self, after: RejectKey | None, limit: int, last: int | None = None
    ) -> list[StoredReject]:
        """Return the partition's rejects that were not replayed, ordered by their keys."""
        table = rejects.c
        key = (table.epoch, table.sequence_number, table.position)
        mine = (table.partition == self.partition) & ~table.replayed
        if after is not None:
            mine &= bulk.after(key, after)
        if last is not None:
            mine &= table.sequence_number <= last
        columns = (table.enqueued_time, table.reason, table.detail, table.body)
        statement = select(*key, *columns, table.connection_device_id).where(mine)
        rows = self.connection.execute(statement.order_by(*key).limit(limit)).all()
        return [StoredReject(*row) for row in rows]

    def _merge(self, change: IngestChange) -> int:
        """Merge partials, unless a rebuild will; return the rebuild that has counted them."""
        if not self.windows.are_deleted:
            bulk.merge_partials(self.connection, self.partition, change.partials)
            return self.windows.rebuild
        if len(change.partials) and not change.segments:
            message = (
                "windows are being rebuilt, and readings that are not kept as segments wait until"
                " the old windows are deleted"
            )
            raise Transient(message)
        return self.windows.rebuild - 1

    def _save_partition(self, change: IngestChange) -> None:
        table = partitions.c
        statement = (
            update(partitions)
            .where(table.partition == self.partition)
            .values(
                watermark=change.watermark,
                last_enqueued=change.last_enqueued,
                events=table.events + change.events,
                readings=table.readings + change.readings,
                rejects=table.rejects + len(change.rejects),
                late=table.late + change.late,
            )
        )
        self.connection.execute(statement)

    def _reject_rows(self, change: IngestChange) -> list[bulk.Row]:
        return [
            (
                *(self.partition, r.epoch, r.sequence_number, r.position, r.enqueued_time),
                *(r.reason, r.detail, r.body, _storable(r.connection_device_id), False),
            )
            for r in change.rejects
        ]

    def _save_epoch(self, epoch: Epoch) -> None:
        key = (epochs.c.partition == self.partition) & (epochs.c.epoch == epoch.number)
        values = {
            "first_sequence": epoch.first_sequence,
            "high_water": epoch.high_water,
            "first_enqueued": epoch.first_enqueued,
            "last_enqueued": epoch.last_enqueued,
            "created": epoch.created,
        }
        if not self.connection.execute(update(epochs).where(key).values(values)).rowcount:
            row = values | {"epoch": epoch.number}
            self.connection.execute(insert(epochs).values(partition=self.partition, **row))
        before = self.known.get(epoch.number)
        if (before.gaps if before else ()) != epoch.gaps:
            self._save_gaps(epoch)
        self.known[epoch.number] = epoch

    def _save_gaps(self, epoch: Epoch) -> None:
        """Shrink, split and close the rows of gaps, and add the new ones."""
        rows = _open_gaps(self.connection, self.partition, epoch.number)
        known = [(row.first_sequence, row.last_sequence) for row in rows]
        for row, gap in zip(rows, known, strict=True):
            rest = [open_ for open_ in epoch.gaps if gap[0] <= open_[0] <= gap[1]]
            if rest != [gap]:
                self._split_gap(row, rest)
        new = [gap for gap in epoch.gaps if not any(a <= gap[0] <= b for a, b in known)]
        _insert_gaps(self.connection, self.partition, epoch.number, "open", new)

    def _split_gap(self, row: GapRow, rest: list[ledger.Range]) -> None:
        repaired = [(row.first_sequence, row.last_sequence)]
        for first, last in rest:
            repaired = [piece for old in repaired for piece in ledger.without(old, first, last)]
        _replace_gap(self.connection, row, [(row.state, rest), ("repaired", repaired)])


class SqlIngestStore:
    """Implements `ports.IngestStore` on any database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def transaction(self, partition: Partition) -> Iterator[_Transaction]:
        """Lock a partition; commits when the block ends, undoes all of it if the block raises."""
        name = str(partition)
        with self._database.write() as connection:
            progress = _lock(connection, name)
            yield _Transaction(
                connection,
                name,
                _read_epochs(connection, name),
                progress,
                read_window_facts(connection),
            )

    def states(self) -> list[PartitionState]:
        """Return how every partition stands."""
        with self._database.read() as connection:
            return read_states(connection)

    @retried
    def observe(
        self, answers: Mapping[Partition, HubAnswer | None], now: int
    ) -> list[PartitionState]:
        """Write the answers of hubs; return how every partition stands then."""
        with self._database.write() as connection:
            return observe(connection, answers, now)

    @retried
    def end_partition(self, partition: Partition) -> None:
        """Note that nothing will follow."""
        with self._database.write() as connection:
            statement = update(partitions).where(partitions.c.partition == str(partition))
            connection.execute(statement.values(ended=True))

    def partitions(self) -> dict[Partition, int]:
        """Give every partition that ever spoke, with its newest epoch."""
        newest = newest_epochs().c
        statement = select(newest.partition, newest.epoch)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return {parse_partition(name): last for name, last in rows}

    def applied(self, hub: str) -> dict[str, tuple[int, int]]:
        """Give a hub's partitions with their high-water marks, and when those were enqueued."""
        mine = epochs.c.partition.startswith(f"{hub}/", autoescape=True)
        columns = (epochs.c.partition, epochs.c.high_water, epochs.c.last_enqueued)
        statement = select(*columns).where(mine).order_by(*IN_ORDER)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return {parse_partition(name).id: (mark, enqueued) for name, mark, enqueued in rows}

    def files(self) -> dict[str, FileNote]:
        """Return the note of every file, by the hub that stands for it."""
        statement = select(facts.c.name, facts.c.value).where(facts.c.name.startswith(_FILE))
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return {name.removeprefix(_FILE): _file_note(value) for name, value in rows}

    @retried
    def note_file(self, hub: str, note: FileNote) -> FileNote:
        """Note that a file is about to be ingested, and return the note that counts."""
        mine = facts.c.name == _FILE + hub
        with self._database.write() as connection:
            # The update locks the row: of two that note the same file, the first keying counts.
            connection.execute(update(facts).where(mine).values(name=facts.c.name))
            value = connection.execute(select(facts.c.value).where(mine)).scalar()
            before = None if value is None else _file_note(value)
            if before:
                keying = before.keying or note.keying
                note = replace(note if note.size > before.size else before, keying=keying)
            write_fact(connection, _FILE + hub, f"{note.size}:{note.digest}:{note.keying}")
            if before and before.size < note.size:
                of_file = partitions.c.partition.startswith(f"{hub}/", autoescape=True)
                connection.execute(update(partitions).where(of_file).values(ended=False))
                # When it was seen to stand still was before it grew.
                looked = hub_answers.c.partition.startswith(f"{hub}/", autoescape=True)
                connection.execute(update(hub_answers).where(looked).values(moved_at=None))
        return note

    def gaps(self, state: str | None = None) -> list[Gap]:
        """Return gaps in the order of partitions and sequence numbers."""
        statement = select(gaps).order_by(gaps.c.partition, gaps.c.epoch, gaps.c.first_sequence)
        if state is not None:
            statement = statement.where(gaps.c.state == state)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return [Gap(parse_partition(row.partition), row.epoch, *row[2:]) for row in rows]

    @retried
    def mark_lost(self, gap: Gap) -> None:
        """Note that a range, part of an open gap, can no longer be had from the hub."""
        name = str(gap.partition)
        with self._database.write() as connection:
            _lock(connection, name)
            for row in _open_gaps(connection, name, gap.epoch):
                old = (row.first_sequence, row.last_sequence)
                rest = ledger.without(old, gap.first, gap.last)
                if row.state == "open" and rest != [old]:
                    lost = [(max(old[0], gap.first), min(old[1], gap.last))]
                    _replace_gap(connection, row, [("open", rest), ("lost", lost)])


def _file_note(value: str) -> FileNote:
    size, _, rest = value.partition(":")
    digest, _, keying = rest.partition(":")
    return FileNote(int(size), digest, keying)


def _storable(device: str | None) -> str | None:
    """Give the sender of a reject, or None where its name can be no device's.

    A name that is too long or holds a NUL is refused in every reading: nobody replays it.
    """
    return None if device is None or texts.clean(device, MAX_NAME) != device else device


def _lock(connection: Connection, partition: str) -> PartitionProgress | None:
    """Take the partition's row lock; return None for a partition that is new."""
    if not lock_partition(connection, partition):
        # No partition is added while a rebuild begins or ends.
        lock_claims(connection)
        if not lock_partition(connection, partition):
            values = {"events": 0, "readings": 0, "rejects": 0, "late": 0, "last_enqueued": 0}
            row = insert(partitions).values(partition=partition, ended=False, **values)
            connection.execute(row)
            return None
    columns = (partitions.c.watermark, partitions.c.last_enqueued, partitions.c.ended)
    mine = select(*columns).where(partitions.c.partition == partition)
    return PartitionProgress(*connection.execute(mine).one())


def _read_epochs(connection: Connection, partition: str) -> dict[int, Epoch]:
    """Return the epochs of a partition with their open gaps, in one statement."""
    is_open = (gaps.c.partition == epochs.c.partition) & (gaps.c.epoch == epochs.c.epoch)
    is_open &= gaps.c.state != "repaired"
    statement = (
        select(epochs, gaps.c.first_sequence.label("gap"), gaps.c.last_sequence.label("gap_end"))
        .join_from(epochs, gaps, is_open, isouter=True)
        .where(epochs.c.partition == partition)
        .order_by(epochs.c.epoch, gaps.c.first_sequence)
    )
    rows = connection.execute(statement).all()
    missing: dict[int, list[ledger.Range]] = defaultdict(list)
    for row in rows:
        if row.gap is not None:
            missing[row.epoch].append((row.gap, row.gap_end))
    return {
        row.epoch: Epoch(
            *(row.epoch, row.first_sequence, row.high_water),
            *(row.first_enqueued, row.last_enqueued),
            gaps=tuple(missing[row.epoch]),
            created=row.created,
        )
        for row in rows
    }


def _open_gaps(connection: Connection, partition: str, epoch: int) -> list[GapRow]:
    """Rows of what was never applied: open gaps, and lost ones, which may yet turn up."""
    statement = (
        select(gaps)
        .where(gaps.c.partition == partition, gaps.c.epoch == epoch, gaps.c.state != "repaired")
        .order_by(gaps.c.first_sequence)
    )
    return list(connection.execute(statement).all())


def _replace_gap(
    connection: Connection, row: GapRow, pieces: list[tuple[str, list[ledger.Range]]]
) -> None:
    """Put ranges, each list of them with its state, in the place of one row."""
    key = (gaps.c.partition == row.partition) & (gaps.c.epoch == row.epoch)
    connection.execute(delete(gaps).where(key & (gaps.c.first_sequence == row.first_sequence)))
    for state, ranges in pieces:
        _insert_gaps(connection, row.partition, row.epoch, state, ranges)


def _insert_gaps(
    connection: Connection, partition: str, epoch: int, state: str, ranges: list[ledger.Range]
) -> None:
    rows = [(partition, epoch, first, last, state) for first, last in ranges]
    bulk.insert(connection, gaps, rows)
