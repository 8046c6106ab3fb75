"""Pages of a list: each begins behind a key, by an index, however far into the list it is."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, literal, select, tuple_

from scoring.adapters.sql import bulk


def after(
    connection: Connection, columns: Sequence[ColumnElement[Any]], key: Sequence[Any]
) -> ColumnElement[bool]:
    """Tell which rows come after a key; as one comparison of rows, where an engine has it.

    Only that finds its place in an index at once, however many rows have the same first columns.
    """
    if connection.dialect.name == "mssql":
        return bulk.after(columns, key)
    return tuple_(*columns) > tuple_(*key)


def values(
    connection: Connection,
    column: ColumnElement[str],
    behind: str | None,
    limit: int,
    *conditions: ColumnElement[bool],
) -> list[str]:
    """Give the values that a column of the windows has, in order.

    From one value on to the next, by the index: the windows between them are never read. SQL
    Server has no minimum in a recursion, and reads them.
    """
    first = conditions if behind is None else (*conditions, column > behind)
    if connection.dialect.name == "mssql":
        listed = select(column).distinct().where(*first).order_by(column).limit(limit)
        return list(connection.execute(listed).scalars().all())
    start = select(func.min(column).label("name"), literal(1).label("place")).where(*first)
    found = start.cte("found", recursive=True)
    following = select(func.min(column)).where(*conditions, column > found.c.name)
    step = select(following.scalar_subquery(), found.c.place + 1)
    found = found.union_all(step.where(found.c.name.is_not(None), found.c.place < limit))
    names = select(found.c.name).where(found.c.name.is_not(None)).order_by(found.c.place)
    return list(connection.execute(names).scalars().all())
