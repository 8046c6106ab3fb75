"""A connection that allows one open result at a time, as SQL Server's driver does without MARS."""

import sqlite3
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from sqlalchemy import Connection, Dialect, Engine, event


class BusyError(Exception):
    """A statement was sent while rows of another one were not read yet."""


class _SqliteCursor(sqlite3.Cursor):
    """A cursor that knows whether it was closed; psycopg's knows it without help."""

    closed = False

    def close(self) -> None:
        super().close()
        self.closed = True


class _SqliteConnection(sqlite3.Connection):
    def cursor(self, factory: Any = _SqliteCursor) -> Any:
        return super().cursor(factory)


def allow_one_result(engine: Engine) -> None:
    """Refuse a statement while the result of the connection's last one is open.

    SQLAlchemy closes a cursor once its last row is read. The cursors are held here, so that one
    that was only forgotten counts as open.
    """
    # By driver connection: the pool hands the same one to others.
    last: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()

    @event.listens_for(engine, "do_connect")
    def use_own_cursors(_: Dialect, __: Any, ___: Any, parameters: dict[str, Any]) -> None:
        if engine.dialect.name == "sqlite":
            parameters["factory"] = _SqliteConnection

    @event.listens_for(engine, "before_cursor_execute")
    def refuse_second(connection: Connection, cursor: Any, statement: str, *_: object) -> None:
        key = connection.connection.driver_connection
        if key in last:
            before, its_statement = last[key]
            if before is not cursor and not _is_closed(before):
                message = f"busy with the rows of {its_statement!r}: {statement!r}"
                raise BusyError(message)
        last[key] = (cursor, statement)

    @event.listens_for(engine, "reset")
    def forget(connection: Any, *_: object) -> None:
        # A transaction that ends closes what is open.
        last.pop(connection, None)


def _is_closed(cursor: Any) -> bool:
    if isinstance(cursor, (_SqliteCursor, psycopg.Cursor)):
        return cursor.closed
    # pyodbc refuses by itself what this is about.
    return True
