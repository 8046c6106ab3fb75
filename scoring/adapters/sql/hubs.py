"""Partitions in SQL: their locks, the answers of their hubs, and how they stand."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, fields
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    ScalarSelect,
    Subquery,
    func,
    insert,
    select,
    update,
)

from scoring.adapters.sql import bulk
from scoring.adapters.sql.schema import epochs, gaps, hub_answers, partitions
from scoring.horizon import PartitionState
from scoring.ledger import HubAnswer
from scoring.readings import Partition

_ANSWER = tuple(hub_answers.c[one.name] for one in fields(HubAnswer))


def parse_partition(name: str) -> Partition:
    """Split the stored name ``hub/id`` of a partition."""
    hub, _, number = name.rpartition("/")
    return Partition(hub, number)


def lock_partition(connection: Connection, name: str) -> bool:
    """Take a partition's row lock for the rest of the transaction; False if there is no row.

    By an update that changes nothing: every engine locks the row for it, without lock hints.
    """
    statement = update(partitions).where(partitions.c.partition == name)
    return connection.execute(statement.values(ended=partitions.c.ended)).rowcount > 0


IN_ORDER = (func.coalesce(epochs.c.created, epochs.c.first_enqueued), epochs.c.epoch)
"""The order of `ledger.in_order`, for the epochs of one partition."""

_NEWEST_FIRST = tuple(column.desc() for column in IN_ORDER)


def newest_epoch(partition: ColumnElement[str]) -> ScalarSelect[int]:
    """Return the number of the epoch of one partition whose hub was created last."""
    mine = select(epochs.c.epoch).where(epochs.c.partition == partition)
    return mine.order_by(*_NEWEST_FIRST).limit(1).scalar_subquery()


def newest_epochs() -> Subquery:
    """Return the epoch of each partition whose hub was created last."""
    place = func.row_number().over(partition_by=epochs.c.partition, order_by=_NEWEST_FIRST)
    numbered = select(epochs, place.label("place")).subquery()
    columns = (numbered.c[column.name] for column in epochs.c)
    return select(*columns).where(numbered.c.place == 1).subquery()


def read_answer(connection: Connection, partition: str) -> HubAnswer | None:
    """Return the last answer of the hub about a partition; None if it was never asked."""
    statement = select(*_ANSWER).where(hub_answers.c.partition == partition)
    row = connection.execute(statement).first()
    return None if row is None else _answer(row)


def write_answer(connection: Connection, partition: str, answer: HubAnswer) -> None:
    """Write an answer about a partition, unless a later one is known.

    The caller holds the partition's lock.
    """
    known = read_answer(connection, partition)
    if known and answer.precedes(known):
        return
    values = asdict(answer)
    mine = hub_answers.c.partition == partition
    if not connection.execute(update(hub_answers).where(mine).values(values)).rowcount:
        connection.execute(insert(hub_answers).values(partition=partition, **values))


def read_states(connection: Connection) -> list[PartitionState]:
    """Return how every partition stands."""
    ledger = newest_epochs()
    table, answers = partitions.c, hub_answers.c
    columns = (
        *(table.partition, table.watermark, table.last_enqueued, table.ended),
        *(ledger.c.epoch, ledger.c.first_sequence, ledger.c.high_water),
        *(answers.asked_at, answers.is_absent, answers.moved_at, answers.behind_since),
        *(answers.stuck_since, answers.epoch.label("seen_epoch"), answers.applied, table.events),
        ledger.c.created.label("epoch_created"),
        ledger.c.last_enqueued.label("mark_enqueued"),
        *(column.label(f"hub_{column.name}") for column in _ANSWER),
    )
    statement = (
        select(*columns)
        .join_from(partitions, ledger, table.partition == ledger.c.partition, isouter=True)
        .join(hub_answers, table.partition == answers.partition, isouter=True)
        .order_by(table.partition)
    )
    rows = connection.execute(statement).all()
    marks = {(row.partition, row.epoch): row.high_water for row in rows}
    skipped = _skipped(connection, marks)
    return [_state(row, skipped.get(row.partition)) for row in rows]


def _skipped(connection: Connection, marks: Mapping[tuple[str, int], int]) -> dict[str, int]:
    """Return the first numbers of the open gaps that reach to the marks of newest epochs."""
    columns = (gaps.c.partition, gaps.c.epoch, gaps.c.first_sequence, gaps.c.last_sequence)
    statement = select(*columns).where(gaps.c.state == "open")
    first: dict[str, int] = {}
    rows = connection.execute(
        statement.order_by(gaps.c.partition, gaps.c.first_sequence.desc())
    ).all()
    for partition, epoch, begin, end in rows:
        mark = marks.get((partition, epoch))
        # Several that adjoin each other were skipped one after another.
        if mark is not None and end == first.get(partition, mark + 1) - 1:
            first[partition] = begin
    return first


def observe(
    connection: Connection, answers: Mapping[Partition, HubAnswer | None], now: int
) -> list[PartitionState]:
    """Write answers, and since when each partition's ledger has stood where it stands.

    Whoever applies events writes answers too, and no lock keeps it from that: what was written
    meanwhile stays if it is of a later answer. Return how every partition stands then.
    """
    given = sorted((str(partition), answer) for partition, answer in answers.items())
    heard = [(name, *astuple(a), False, now) for name, a in given if a]
    bulk.upsert_answers(connection, heard)
    absent = [(name, True, now) for name, answer in given if answer is None]
    bulk.upsert_absences(connection, absent)
    states = [state if state.ended else state.looked_at(now) for state in read_states(connection)]
    looks = [
        (str(s.partition), s.epoch, s.moved_at, s.behind_since, s.events, s.stuck_since)
        for s in states
        if not s.ended
    ]
    bulk.upsert_looks(connection, looks)
    return states


def _answer(row: Sequence[Any]) -> HubAnswer | None:
    answer = HubAnswer(*row)
    return None if answer.last is None else answer


def _state(row: Row[Any], skipped_from: int | None) -> PartitionState:
    answer = _answer(row[-len(_ANSWER) :])
    has_epoch = row.epoch is not None
    return PartitionState(
        partition=parse_partition(row.partition),
        watermark=row.watermark,
        last_enqueued=row.last_enqueued,
        epoch=row.epoch,
        high_water=row.high_water if has_epoch else -1,
        mark_enqueued=row.mark_enqueued if has_epoch else 0,
        has_spoken=has_epoch and row.high_water >= row.first_sequence,
        hub_created=row.epoch_created,
        ended=row.ended,
        answer=answer,
        asked_at=row.asked_at,
        is_absent=bool(row.is_absent),
        moved_at=row.moved_at,
        behind_since=row.behind_since,
        stuck_since=row.stuck_since,
        events=row.events,
        has_moved=(row.seen_epoch, row.applied) != (row.epoch, row.events),
        skipped_from=skipped_from,
    )
