"""What hubs said of their partitions, and how the partitions stand, in SQL."""

from collections.abc import Mapping, Sequence
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
from scoring.adapters.sql.schema import epochs, hub_answers, partitions
from scoring.horizon import PartitionState
from scoring.ledger import HubAnswer
from scoring.readings import Partition

_ANSWER = tuple(
    hub_answers.c[name] for name in ("created", "beginning", "last", "last_enqueued", "is_empty")
)


def parse_partition(name: str) -> Partition:
    """Split the stored name ``hub/id`` of a partition."""
    hub, _, number = name.rpartition("/")
    return Partition(hub, number)


def birth() -> ColumnElement[int]:
    """Return the expression by which `ledger.in_order` orders the epochs of a partition."""
    return func.coalesce(epochs.c.created, epochs.c.first_enqueued)


def newest_epoch(partition: ColumnElement[str]) -> ScalarSelect[int]:
    """Return the number of the epoch of one partition whose hub was created last."""
    order = (birth().desc(), epochs.c.epoch.desc())
    mine = select(epochs.c.epoch).where(epochs.c.partition == partition)
    return mine.order_by(*order).limit(1).scalar_subquery()


def newest_epochs() -> Subquery:
    """Return the epoch of each partition whose hub was created last."""
    order = (birth().desc(), epochs.c.epoch.desc())
    place = func.row_number().over(partition_by=epochs.c.partition, order_by=order)
    numbered = select(epochs, place.label("place")).subquery()
    columns = (numbered.c[column.name] for column in epochs.c)
    return select(*columns).where(numbered.c.place == 1).subquery()


def read_answer(connection: Connection, partition: str) -> HubAnswer | None:
    """Return what the hub last said of a partition; None if it was never asked."""
    statement = select(*_ANSWER).where(hub_answers.c.partition == partition)
    row = connection.execute(statement).first()
    return None if row is None else _answer(row)


def write_answer(connection: Connection, partition: str, answer: HubAnswer) -> None:
    """Write what the hub said of a partition, by whoever holds the partition's lock."""
    values = {
        "created": answer.created,
        "beginning": answer.beginning,
        "last": answer.last,
        "last_enqueued": answer.last_enqueued,
        "is_empty": answer.is_empty,
    }
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
        *(answers.epoch.label("seen_epoch"), answers.high_water.label("seen_mark")),
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
    return [_state(row) for row in connection.execute(statement)]


def observe(
    connection: Connection, answers: Mapping[Partition, HubAnswer | None], now: int
) -> None:
    """Write answers, and since when each partition's ledger has stood where it stands."""
    rows = []
    for state in read_states(connection):
        if state.ended:
            continue
        if state.partition in answers:
            seen = state.asked(answers[state.partition], now)
        else:
            seen = state.looked_at(now)
        rows.append(_row(seen))
    bulk.upsert_answers(connection, rows)


def _row(state: PartitionState) -> tuple[Any, ...]:
    """Return a state as a row of `hub_answers`."""
    said: tuple[Any, ...] = (None,) * len(_ANSWER)
    if answer := state.answer:
        said = (*(answer.created, answer.beginning, answer.last, answer.last_enqueued),)
        said += (answer.is_empty,)
    looked = (state.epoch, state.high_water, state.moved_at, state.behind_since)
    return (str(state.partition), *said, state.is_absent, state.asked_at, *looked)


def _answer(row: Sequence[Any]) -> HubAnswer | None:
    created, beginning, last, last_enqueued, is_empty = row
    return None if last is None else HubAnswer(created, beginning, last, last_enqueued, is_empty)


def _state(row: Row[Any]) -> PartitionState:
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
        has_moved=(row.seen_epoch, row.seen_mark) != (row.epoch, row.high_water),
    )
