"""Upserts of PostgreSQL: all rows in one JSON parameter, and its native ON CONFLICT."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Insert,
    LargeBinary,
    Table,
    TableValuedAlias,
    Text,
    Update,
    and_,
    bindparam,
    func,
    select,
)
from sqlalchemy import update as sqlalchemy_update
from sqlalchemy.dialects import postgresql

from scoring.adapters.sql.bulk.upsert import Row, Upsert, as_json


def upsert(connection: Connection, what: Upsert, rows: Sequence[Row]) -> None:
    """Insert rows, or change those that stand."""
    connection.execute(_statement(what), {"rows": what.json(rows)})


def insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows that give every column of the table in order."""
    connection.execute(_insertion(table), {"rows": as_json(table.c.keys(), rows)})


def update(connection: Connection, what: Upsert, rows: Sequence[Row]) -> None:
    """Change the rows that stand."""
    connection.execute(_change(what), {"rows": what.json(rows)})


@cache
def _insertion(table: Table) -> Insert:
    given = _given(table.c)
    values = (
        func.decode(given.c[column.name], "hex") if _is_bytes(column) else given.c[column.name]
        for column in table.c
    )
    return postgresql.insert(table).from_select(table.c.keys(), select(*values))


@cache
def _change(what: Upsert) -> Update:
    given = _given(what.table.c[name] for name in what.names)
    same = and_(*(what.table.c[name] == given.c[name] for name in what.key))
    return sqlalchemy_update(what.table).where(same).values(what.change(what.table.c, given.c))


@cache
def _statement(what: Upsert) -> Insert:
    given = _given(what.table.c[name] for name in what.names)
    rows = select(*(given.c[name] for name in what.names))
    statement = postgresql.insert(what.table).from_select(what.names, rows)
    old, new = what.table.c, statement.excluded
    return statement.on_conflict_do_update(
        index_elements=what.key,
        set_=what.change(old, new),
        where=None if what.where is None else what.where(old, new),
    )


def _given(columns: Iterable[Column[Any]]) -> TableValuedAlias:
    """Return the rows of the JSON parameter as a table named ``given``; bytes are digits there."""
    kinds = (Column(one.name, Text() if _is_bytes(one) else one.type) for one in columns)
    rows = func.json_to_recordset(bindparam("rows").cast(postgresql.JSON))
    return rows.table_valued(*kinds).render_derived(name="given", with_types=True)


def _is_bytes(column: Column[Any]) -> bool:
    return isinstance(column.type, LargeBinary)
