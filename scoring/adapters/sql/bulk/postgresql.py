"""Upserts of PostgreSQL: all rows in one JSON parameter, and its native ON CONFLICT."""

from collections.abc import Sequence
from functools import cache

from sqlalchemy import Column, Connection, Insert, bindparam, func, select
from sqlalchemy.dialects import postgresql

from scoring.adapters.sql.bulk.upsert import Row, Upsert


def upsert(connection: Connection, what: Upsert, rows: Sequence[Row]) -> None:
    """Insert rows, or change those that stand."""
    connection.execute(_statement(what), {"rows": what.json(rows)})


@cache
def _statement(what: Upsert) -> Insert:
    columns = [what.table.c[name] for name in what.names]
    given = (
        func.json_to_recordset(bindparam("rows").cast(postgresql.JSON))
        .table_valued(*(Column(column.name, column.type) for column in columns))
        .render_derived(name="given", with_types=True)
    )
    rows = select(*(given.c[name] for name in what.names))
    statement = postgresql.insert(what.table).from_select(what.names, rows)
    old, new = what.table.c, statement.excluded
    return statement.on_conflict_do_update(
        index_elements=what.key,
        set_=what.change(old, new),
        where=None if what.where is None else what.where(old, new),
    )
