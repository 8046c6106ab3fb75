"""Upserts of SQL Server: all rows in one JSON parameter, an UPDATE and then an INSERT.

They are safe without lock hints where something else keeps two writers from the same keys, as
the ledger's row lock and the lock of a run's part do. Where nothing does, as with counts, the
second of two first writers is refused a duplicate key, and does its work again (see `failures`).
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from sqlalchemy import ClauseElement, Connection, Dialect, Table
from sqlalchemy.dialects import mssql

from scoring.adapters.sql.bulk.upsert import Row, Upsert, as_json
from scoring.adapters.sql.schema import NAME
from scoring.adapters.sql.texts import guarded

_DIALECT: Dialect = mssql.dialect()  # type: ignore[no-untyped-call]

_BYTES = "VARBINARY(max)"

SEEK = "LOOP JOIN"
"""How rows of a parameter are looked up: one after the other, each by the key of the table.

SQL Server takes OPENJSON for 50 rows, however many there are, and may plan to read the whole table
for them. A hint for one join also keeps the order in which the two are written.

Source: https://learn.microsoft.com/sql/t-sql/queries/hints-transact-sql-join
"""

MOST_CHANGED = 4_000
"""Rows that one statement changes at most.

From 5,000 locks of a statement on one table or index on, SQL Server locks the whole table, and
everybody who ingests has to wait.

Source: https://learn.microsoft.com/sql/relational-databases/sql-server-transaction-locking-and-row-versioning-guide
"""

JSON_TEXT = mssql.NVARCHAR(None)
"""The type of the one parameter."""


def upsert(connection: Connection, what: Upsert, rows: Sequence[Row]) -> None:
    """Change the rows that stand, then insert the others."""
    for parameter in _parameters(what, rows):
        for statement in statements(what):
            connection.exec_driver_sql(statement, (parameter,))


def insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows that give every column of the table in order."""
    for some in _bounded(rows):
        parameter = as_json(table.c.keys(), stored(list(table.c), some))
        connection.exec_driver_sql(insertion(table), (parameter,))


def update(connection: Connection, what: Upsert, rows: Sequence[Row]) -> None:
    """Change the rows that stand."""
    for parameter in _parameters(what, rows):
        connection.exec_driver_sql(statements(what)[0], (parameter,))


def _parameters(what: Upsert, rows: Sequence[Row]) -> Iterator[str]:
    columns = _columns(what)
    return (what.json(stored(columns, some)) for some in _bounded(rows))


def _bounded(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    return (rows[start : start + MOST_CHANGED] for start in range(0, len(rows), MOST_CHANGED))


@cache
def insertion(table: Table) -> str:
    """Return the statement that inserts rows; it takes them as its only parameter."""
    names = ", ".join(_name(column.name) for column in table.c)
    # Names come from the schema alone, values from the one parameter.
    return (
        f"INSERT INTO {_name(table.name)} ({names})"  # noqa: S608
        f" SELECT {names} FROM {given(table.c, '?')}"
    )


def stored(columns: Sequence[Any], rows: Sequence[Row]) -> list[Row]:
    """Give rows with their names as SQL Server stores them."""
    names = [place for place, column in enumerate(columns) if column.type is NAME]
    return [_with_names_stored(row, names) for row in rows]


def given(columns: Iterable[Any], parameter: str) -> str:
    """Give the rows of a JSON parameter as a table named ``given``.

    What comes out of JSON has the database's own collation, and OPENJSON takes no other: the
    columns get theirs before anything is compared with them.
    """
    kinds = {_name(column.name): _kind(column) for column in columns}
    types = ", ".join(f"{name} {type_}" for name, (type_, _) in kinds.items())
    chosen = ", ".join(_chosen(name, *kind) for name, kind in kinds.items())
    # Bytes come as hexadecimal digits.
    types = types.replace(_BYTES, "NVARCHAR(max)")
    # pyodbc sends a text as NTEXT, or as NVARCHAR of twice its length: a plan for each length.
    cast = f"CAST({parameter} AS NVARCHAR(max))"
    # Names come from the schema alone.
    return f"(SELECT {chosen} FROM OPENJSON({cast}) WITH ({types})) AS given"  # noqa: S608


@cache
def statements(what: Upsert) -> tuple[str, str]:
    """Give the two statements; each takes the rows as its only parameter."""
    table, old, new = _name(what.table.name), what.table.c, what.table.alias("given").c
    rows = given(_columns(what), "?")
    same = " AND ".join(_text(old[name] == new[name]) for name in what.key)
    changes = ", ".join(
        f"{_name(name)} = {_text(value)}" for name, value in what.change(old, new).items()
    )
    where = "" if what.where is None else f" WHERE {_text(what.where(old, new))}"
    names = ", ".join(map(_name, what.names))
    values = ", ".join(_text(new[name]) for name in what.names)
    # Names come from the schema alone, values from the one parameter.
    return (
        f"UPDATE {table} SET {changes} FROM {rows} INNER {SEEK} {table} ON {same}{where}",  # noqa: S608
        f"INSERT INTO {table} ({names}) SELECT {values} FROM {rows}"  # noqa: S608
        f" WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE {same}) OPTION ({SEEK})",
    )


def _chosen(name: str, type_: str, collation: str) -> str:
    if type_ == _BYTES:
        return f"CONVERT({_BYTES}, {name}, 2) AS {name}"
    return f"{name} COLLATE {collation} AS {name}" if collation else name


def _columns(what: Upsert) -> list[Any]:
    return [what.table.c[name] for name in what.names]


def _with_names_stored(row: Row, names: Sequence[int]) -> Row:
    changed = {place: guarded(row[place]) for place in names}
    if all(row[place] is name for place, name in changed.items()):
        return row
    return [changed.get(place, value) for place, value in enumerate(row)]


def _kind(column: Any) -> tuple[str, str]:
    """Give the type of a column without its collation, and that; empty where it has none."""
    type_, _, collation = column.type.compile(dialect=_DIALECT).partition(" COLLATE ")
    return type_, collation


def _name(name: str) -> str:
    return _DIALECT.identifier_preparer.quote(name)


def _text(clause: ClauseElement) -> str:
    return str(clause.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))
