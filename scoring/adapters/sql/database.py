"""Connections: one engine a database, transactions, and the translation of driver errors."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc

from scoring.errors import ScoringError, StorageUnusable, Transient

BUSY_TIMEOUT = 30
"""Seconds that a writer waits for another one's transaction."""

_UNUSABLE = ("full", "readonly", "read-only", "malformed", "not a database", "disk i/o error")
_TRANSIENT = ("locked", "busy")


class Database:
    """A database and its transactions.

    Parameters
    ----------
    url
        SQLAlchemy URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = (
            _sqlite(url) if url.startswith("sqlite") else create_engine(url, hide_parameters=True)
        )

    @classmethod
    def file(cls, path: Path) -> "Database":
        """Open the embedded SQLite database of a file."""
        return cls(f"sqlite:///{path}")

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: all of the block happens, or nothing."""
        with translated_errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view of the database that blocks no writer."""
        with translated_errors(), self.engine.connect() as connection:
            yield connection.execution_options(read_only=True)

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


def revision(connection: Connection) -> str | None:
    """Which migration the database is at; None for an empty one."""
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    found: str | None = connection.exec_driver_sql(
        "SELECT version_num FROM alembic_version"
    ).scalar()
    return found


def _sqlite(url: str) -> Engine:
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT, "isolation_level": None}
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        _use_wal(connection)
        # A commit is durable when it returns: what it covers is never delivered again.
        for pragma in ("synchronous=FULL", "cache_size=-65536"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # The driver's own BEGIN is deferred: two writers that both read first would deadlock.
        kind = "DEFERRED" if connection.get_execution_options().get("read_only") else "IMMEDIATE"
        connection.exec_driver_sql(f"BEGIN {kind}")

    return engine


def _use_wal(connection: Any) -> None:
    """Switch a new file to a write-ahead log.

    Of two processes that do so at once one is told at once that it is locked: SQLite does not
    wait here, whatever its timeout.
    """
    deadline = monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                raise
            sleep(0.01)
        else:
            return


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what SQLAlchemy and the drivers raise into this project's errors."""
    try:
        yield
    except exc.SQLAlchemyError as error:
        raise _translate(error) from error


def _translate(error: exc.SQLAlchemyError) -> ScoringError:
    text = str(getattr(error, "orig", None) or error)
    if isinstance(error, exc.TimeoutError):
        return Transient(f"no connection to the database was free: {text}")
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return Transient(f"the database is not reachable: {text}")
    if isinstance(error, (exc.OperationalError, exc.DatabaseError)):
        lowered = text.lower()
        if any(word in lowered for word in _TRANSIENT):
            return Transient(f"the database is busy: {text}")
        if any(word in lowered for word in _UNUSABLE) or "unable to open" in lowered:
            return StorageUnusable(f"the database cannot be used: {text}")
    if isinstance(error, exc.IntegrityError) and "unique" in text.lower():
        return Transient(f"another writer was first: {text}")
    return ScoringError(f"the database refused: {text}")
