"""Upserts of SQLite: ``executemany`` of a native one.

SQLAlchemy writes the text once, and the rows go to the driver as they are: 1,000 rows through its
handling of parameters cost more than SQLite itself.
"""

from collections.abc import Sequence
from functools import cache

from sqlalchemy import Connection
from sqlalchemy.dialects import sqlite

from scoring.adapters.sql.bulk.upsert import Row, Upsert


def upsert(connection: Connection, what: Upsert, rows: Sequence[Row]) -> None:
    """Insert rows, or change those that stand."""
    connection.exec_driver_sql(_statement(what), [tuple(row) for row in rows])


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
