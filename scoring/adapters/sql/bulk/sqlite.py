"""Upserts of SQLite: ``executemany`` of a native one.

SQLAlchemy writes the text once, and the rows go to the driver as they are: 1,000 rows through its
handling of parameters cost more than SQLite itself.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Table, and_, bindparam
from sqlalchemy.dialects import sqlite

from scoring.adapters.sql.bulk.upsert import Row, Upsert


def upsert(connection: Connection, what: Upsert, rows: Sequence[Row]) -> None:
    """Insert rows, or change those that stand."""
    connection.exec_driver_sql(_statement(what), [tuple(row) for row in rows])


def insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows that give every column of the table in order."""
    names = table.c.keys()
    connection.execute(table.insert(), [dict(zip(names, row, strict=True)) for row in rows])


def update(connection: Connection, what: Upsert, rows: Sequence[Row]) -> None:
    """Change the rows that stand."""
    table = what.table
    given: dict[str, Any] = {name: bindparam(f"given_{name}") for name in what.names}
    same = and_(*(table.c[name] == given[name] for name in what.key))
    statement = table.update().where(same).values(what.change(table.c, given))
    names = [f"given_{name}" for name in what.names]
    connection.execute(statement, [dict(zip(names, row, strict=True)) for row in rows])


@cache
def _statement(what: Upsert) -> str:
    statement = sqlite.insert(what.table)
    old, new = what.table.c, statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=what.key,
        set_=what.change(old, new),
        where=None if what.where is None else what.where(old, new),
    )
    dialect = sqlite.dialect(paramstyle="qmark")
    return str(statement.compile(dialect=dialect, column_keys=what.names))
