"""Upserts of SQL Server: all rows in one JSON parameter, an UPDATE and then an INSERT.

They are safe without lock hints where something else keeps two writers from the same keys, as
the ledger's row lock and the lock of a run's part do.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import ClauseElement, Connection, Dialect
from sqlalchemy.dialects import mssql

from scoring.adapters.sql.bulk.upsert import Row, Upsert

_DIALECT: Dialect = mssql.dialect()  # type: ignore[no-untyped-call]


def upsert(connection: Connection, what: Upsert, rows: Sequence[Row]) -> None:
    """Change the rows that stand, then insert the others."""
    given = what.json(rows)
    for statement in statements(what):
        connection.exec_driver_sql(statement, (given,))


@cache
def statements(what: Upsert) -> tuple[str, str]:
    """Give the two statements; each takes the rows as its only parameter."""
    table, given = _name(what.table.name), what.table.alias("given")
    old, new = what.table.c, given.c
    rows = f"OPENJSON(?) WITH ({', '.join(map(_column, _columns(what)))}) AS given"
    same = " AND ".join(_text(old[name] == new[name]) for name in what.key)
    changes = ", ".join(
        f"{_name(name)} = {_text(value)}" for name, value in what.change(old, new).items()
    )
    where = "" if what.where is None else f" WHERE {_text(what.where(old, new))}"
    names = ", ".join(map(_name, what.names))
    values = ", ".join(_text(new[name]) for name in what.names)
    # Names come from the schema alone, values from the one parameter.
    return (
        f"UPDATE {table} SET {changes} FROM {table} INNER JOIN {rows} ON {same}{where}",  # noqa: S608
        f"INSERT INTO {table} ({names}) SELECT {values} FROM {rows}"  # noqa: S608
        f" WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE {same})",
    )


def _columns(what: Upsert) -> list[Any]:
    return [what.table.c[name] for name in what.names]


def _column(column: Any) -> str:
    return f"{_name(column.name)} {column.type.compile(dialect=_DIALECT)}"


def _name(name: str) -> str:
    return _DIALECT.identifier_preparer.quote(name)


def _text(clause: ClauseElement) -> str:
    return str(clause.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))
