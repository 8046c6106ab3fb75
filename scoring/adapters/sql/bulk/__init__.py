"""Rows in sets: the statements whose speed decides, each in its engine's quickest form.

SQLite takes ``executemany`` of a native upsert; SQLAlchemy writes the text once, and the rows go
to the driver as they are, since 1,000 rows through its parameter handling cost more than SQLite.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, case, func, null
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import Insert
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from scoring.adapters.sql import schema
from scoring.aggregates import Partials

Row = Sequence[Any]


def merge_partials(connection: Connection, partition: str, partials: Partials) -> None:
    """Merge partials into a partition's rows; every row touched becomes pending."""
    columns = (
        partials.count,
        partials.mean,
        partials.m2,
        partials.min,
        partials.max,
        partials.last,
        partials.last_time,
    )
    rows = [
        (device, sensor, start, partition, *numbers)
        for (device, sensor, start), *numbers in zip(
            partials.keys, *(column.tolist() for column in columns), strict=True
        )
    ]
    _many(connection, _merge_statement(), rows)


def insert(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    """Insert rows that give every column of the table in order."""
    _many(connection, _insert_statement(table), list(rows))


def upsert_predictions(connection: Connection, rows: list[Row]) -> None:
    """Write predictions over those of the same or an older run."""
    _many(connection, _prediction_statement(), rows)


def after(columns: Sequence[ColumnElement[Any]], key: Row) -> ColumnElement[bool]:
    """Tell which rows come after a key, in the order of `columns`: keyset paging.

    Spelled out, because SQL Server has no comparison of rows.
    """
    first, *rest = columns
    value, *others = key
    greater: ColumnElement[bool] = first > value
    return greater | ((first == value) & after(rest, others)) if rest else greater


def _many(connection: Connection, statement: str, rows: Sequence[Row]) -> None:
    if rows:
        connection.exec_driver_sql(statement, [tuple(row) for row in rows])


@cache
def _insert_statement(table: Table) -> str:
    return _text(sqlite.insert(table))


@cache
def _merge_statement() -> str:
    table = schema.window_partials
    statement = sqlite.insert(table)
    old, new = table.c, statement.excluded
    total = old.count + new.count
    delta = new.mean - old.mean
    is_later = (new.last_time > old.last_time) | (
        (new.last_time == old.last_time) & (new.last > old.last)
    )
    return _text(
        statement.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={
                "count": total,
                "mean": old.mean + delta * new.count / total,
                "m2": old.m2 + new.m2 + delta * delta * old.count * new.count / total,
                "min": func.min(old.min, new.min),
                "max": func.max(old.max, new.max),
                "last": case((is_later, new.last), else_=old.last),
                "last_time": func.max(old.last_time, new.last_time),
                "claimed_by": null(),
            },
        ),
        leave_out={"claimed_by"},
    )


@cache
def _prediction_statement() -> str:
    table = schema.predictions
    statement = sqlite.insert(table)
    new = statement.excluded
    values = [column for column in table.c if not column.primary_key]
    return _text(
        statement.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={column.name: new[column.name] for column in values},
            where=new.run_number >= table.c.run_number,
        )
    )


def _text(statement: Insert, leave_out: frozenset[str] | set[str] = frozenset()) -> str:
    columns: ReadOnlyColumnCollection[str, Any] = statement.table.c
    names = [column.name for column in columns if column.name not in leave_out]
    dialect = sqlite.dialect(paramstyle="qmark")
    return str(statement.compile(dialect=dialect, column_keys=names))
