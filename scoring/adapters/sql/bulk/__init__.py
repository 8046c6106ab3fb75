"""Rows in sets: the statements whose speed decides, each in its engine's quickest form.

SQLite takes ``executemany`` of a native upsert. PostgreSQL and SQL Server take all rows of a
statement in one JSON parameter: one round trip, whatever their number.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Table,
    and_,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    true,
)

from scoring.adapters.sql import schema, texts
from scoring.adapters.sql.bulk import mssql, postgresql, sqlite
from scoring.adapters.sql.bulk.upsert import Row, Upsert
from scoring.aggregates import Partials
from scoring.ledger import HubAnswer

__all__ = [
    "ABSENCE",
    "ANSWER",
    "MERGE",
    "PREDICT",
    "REPLAYED",
    "SUSPECT",
    "Row",
    "Upsert",
    "after",
    "insert",
    "mark_replayed",
    "merge_partials",
    "most_changed",
    "up_to",
    "upsert_absences",
    "upsert_answers",
    "upsert_looks",
    "upsert_predictions",
    "upsert_suspects",
]

_ENGINES: dict[str, Any] = {"sqlite": sqlite, "postgresql": postgresql, "mssql": mssql}


def merge_partials(connection: Connection, partition: str, partials: Partials) -> None:
    """Merge partials into a partition's rows; every row touched becomes pending."""
    columns = (
        *(partials.count, partials.mean, partials.m2, partials.min),
        *(partials.max, partials.last, partials.last_time, partials.late_enqueued),
    )
    rows = [
        (device, sensor, start, partition, *numbers)
        for (device, sensor, start), *numbers in zip(
            partials.keys, *(column.tolist() for column in columns), strict=True
        )
    ]
    _upsert(connection, MERGE, rows)


def insert(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    """Insert rows that give every column of the table in order."""
    prose = {
        place: length
        for place, column in enumerate(table.c)
        if (length := texts.prose_length(column))
    }
    if values := [_cleaned(row, prose) for row in rows]:
        _ENGINES[connection.dialect.name].insert(connection, table, values)


def mark_replayed(connection: Connection, rows: Sequence[Row]) -> None:
    """Mark rejects as replayed: partition, epoch, sequence number, position."""
    if rows:
        _ENGINES[connection.dialect.name].update(connection, REPLAYED, rows)


def upsert_predictions(connection: Connection, rows: Sequence[Row]) -> None:
    """Write predictions over those of the same or an older run."""
    _upsert(connection, PREDICT, rows)


def upsert_suspects(connection: Connection, rows: Sequence[Row]) -> None:
    """Write suspects over what was known of them."""
    _upsert(connection, SUSPECT, rows)


def upsert_answers(connection: Connection, rows: Sequence[Row]) -> None:
    """Write what hubs said of partitions over what they said before, and not over what came later.

    Rows: partition, the answer, whether it is absent (False), when it was asked.
    """
    _upsert(connection, ANSWER, rows)


def upsert_absences(connection: Connection, rows: Sequence[Row]) -> None:
    """Write that hubs have partitions no more: partition, True, when they were asked."""
    _upsert(connection, ABSENCE, rows)


def upsert_looks(connection: Connection, rows: Sequence[Row]) -> None:
    """Write how much was applied of partitions, and since when; rows as `LOOK` names them."""
    _upsert(connection, LOOK, rows)


def after(columns: Sequence[ColumnElement[Any]], key: Row) -> ColumnElement[bool]:
    """Tell which rows come after a key, in the order of `columns`: keyset paging.

    Spelled out, because SQL Server has no comparison of rows.
    """
    first, *rest = columns
    value, *others = key
    greater: ColumnElement[bool] = first > value
    # The first comparison alone finds its place in an index.
    return (first >= value) & (greater | after(rest, others)) if rest else greater


def most_changed(connection: Connection, limit: int) -> int:
    """Return how many rows a statement may change, of a limit that is given."""
    is_mssql = connection.dialect.name == "mssql"
    return min(limit, mssql.MOST_CHANGED) if is_mssql else limit


def up_to(columns: Sequence[ColumnElement[Any]], key: Row) -> ColumnElement[bool]:
    """Return which rows stand at a key or before it, in the order of `columns`."""
    first, *rest = columns
    value, *others = key
    before: ColumnElement[bool] = first <= value
    # The first comparison alone finds them in an index.
    return before & ((first < value) | up_to(rest, others)) if rest else before


def _upsert(connection: Connection, upsert: Upsert, rows: Sequence[Row]) -> None:
    if rows:
        _ENGINES[connection.dialect.name].upsert(connection, upsert, rows)


def _cleaned(row: Row, prose: Mapping[int, int]) -> list[Any]:
    """Return a row whose texts for people are stored as they are: JSON passes by their types."""
    values = list(row)
    for place, length in prose.items():
        if values[place] is not None:
            values[place] = texts.clean(values[place], length)
    return values


# Written out: not every statement has parameters of its own.
_ZERO = literal_column("0.0", Double)
_SMALL = literal_column("1e-290", Double)
"""Of what is smaller a share may be none: the mean stays as it is."""
_SMALL_ROOT = literal_column("1e-157", Double)
"""Of what is smaller the square may be none: M2 would not grow by more than 1e-314 a reading."""


def _merged(old: Any, new: Any) -> dict[str, Any]:
    """Merge two partials by Chan's formula, as `scoring.aggregates` does."""
    total = old.count + new.count
    delta = new.mean - old.mean
    # Spelled out as a float: engines divide integers in their own ways.
    share = new.count / cast(total, Double)
    is_later = (new.last_time > old.last_time) | (
        (new.last_time == old.last_time) & (new.last > old.last)
    )
    # To PostgreSQL a product that is too small for a float is an error, and not 0.
    moved = case((func.abs(delta) > _SMALL, delta * share), else_=_ZERO)
    spread = delta * delta * (old.count * share)
    return {
        "count": total,
        "mean": old.mean + moved,
        "m2": old.m2 + new.m2 + case((func.abs(delta) > _SMALL_ROOT, spread), else_=_ZERO),
        "min": case((new.min < old.min, new.min), else_=old.min),
        "max": case((new.max > old.max, new.max), else_=old.max),
        "last": case((is_later, new.last), else_=old.last),
        "last_time": case((is_later, new.last_time), else_=old.last_time),
        "late_enqueued": case(
            (new.late_enqueued > old.late_enqueued, new.late_enqueued), else_=old.late_enqueued
        ),
        "claimed_by": null(),
    }


def _replacing(
    table: Table,
    where: Callable[[Any, Any], ColumnElement[bool]] | None = None,
    names: tuple[str, ...] = (),
) -> Upsert:
    given = names or tuple(column.name for column in table.c)
    values = [name for name in given if name not in table.primary_key.columns]
    return Upsert(table, given, lambda _, new: {name: new[name] for name in values}, where)


MERGE = Upsert(
    schema.window_partials,
    tuple(column.name for column in schema.window_partials.c if column.name != "claimed_by"),
    _merged,
)
PREDICT = _replacing(schema.predictions, lambda old, new: new.run_number >= old.run_number)
SUSPECT = _replacing(schema.suspects)
ANSWER = _replacing(
    schema.hub_answers,
    # As `HubAnswer.precedes`.
    lambda old, new: or_(
        old.created.is_(None),
        new.created.is_(None),
        new.created > old.created,
        and_(new.created == old.created, new.last >= old.last),
    ),
    ("partition", *(field.name for field in fields(HubAnswer)), "is_absent", "asked_at"),
)
ABSENCE = _replacing(
    schema.hub_answers,
    lambda old, new: or_(old.asked_at.is_(None), new.asked_at >= old.asked_at),
    ("partition", "is_absent", "asked_at"),
)
REPLAYED = Upsert(
    schema.rejects,
    tuple(column.name for column in schema.rejects.primary_key),
    lambda _, __: {"replayed": true()},
)
LOOK = _replacing(
    schema.hub_answers,
    names=("partition", "epoch", "moved_at", "behind_since", "applied", "stuck_since"),
)
