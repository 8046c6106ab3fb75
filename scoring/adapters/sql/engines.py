"""How each database is connected to: SQLite, PostgreSQL, SQL Server and Azure SQL."""

import sqlite3
import struct
from time import monotonic, sleep
from typing import Any

from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from scoring.errors import Misconfigured

BUSY_TIMEOUT = 30
"""Seconds that a writer waits for another one's lock."""

STATEMENT_TIMEOUT = 600
"""Seconds that one statement may take on a server."""

CONNECT_TIMEOUT = 15
"""Seconds to wait for a server that does not answer."""

_ACCESS_TOKEN = 1256  # SQL_COPT_SS_ACCESS_TOKEN of msodbcsql.h
_DATABASE_SCOPE = "https://database.windows.net/.default"


def connect(url: str) -> Engine:
    """Make an engine; it connects when it is first used.

    Parameters
    ----------
    url
        A SQLAlchemy URL (``sqlite:///...``, ``postgresql://...``), or an ODBC connection string of
        SQL Server. One without ``UID`` and ``Authentication`` signs in with an Entra token, the
        managed identity in Azure.

    Raises
    ------
    Misconfigured
        The text is none of these.
    """
    if "driver=" in url.lower():
        return _mssql(URL.create("mssql+pyodbc", query={"odbc_connect": url}), url)
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        problem = "the database is neither a URL nor an ODBC connection string"
        raise Misconfigured([problem]) from error
    match parsed.get_backend_name():
        case "sqlite":
            return _sqlite(parsed)
        case "postgresql":
            return _postgresql(parsed.set(drivername="postgresql+psycopg"))
    problem = f"databases of kind {parsed.get_backend_name()} are not supported"
    raise Misconfigured([problem])


def read_options(dialect: Dialect) -> dict[str, Any]:
    """Give the options of a connection that only reads, and sees one state of the database."""
    options: dict[str, Any] = {"read_only": True}
    if dialect.name == "postgresql":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    return options


def _postgresql(url: URL) -> Engine:
    # To PostgreSQL 0 means for ever.
    patience = max(BUSY_TIMEOUT * 1000, 1)
    limits = f"-c lock_timeout={patience}ms -c statement_timeout={STATEMENT_TIMEOUT}s"
    arguments = {"options": limits, "connect_timeout": CONNECT_TIMEOUT}
    return create_engine(url, hide_parameters=True, pool_pre_ping=True, connect_args=arguments)


def _mssql(url: URL, connection_string: str) -> Engine:
    engine = create_engine(
        url, hide_parameters=True, pool_pre_ping=True, connect_args={"timeout": CONNECT_TIMEOUT}
    )
    if not any(word in connection_string.lower() for word in ("uid=", "authentication=")):
        event.listen(engine, "do_connect", _give_token)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.timeout = STATEMENT_TIMEOUT
        with connection.cursor() as cursor:
            cursor.execute(f"SET LOCK_TIMEOUT {BUSY_TIMEOUT * 1000}")

    return engine


def _give_token(_: Dialect, __: object, ___: object, parameters: dict[str, Any]) -> None:
    """Sign in with a token instead of a password; it is asked for anew for every connection."""
    from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - heavy, and for Azure only

    token = DefaultAzureCredential().get_token(_DATABASE_SCOPE).token.encode("utf-16-le")
    packed = struct.pack(f"<I{len(token)}s", len(token), token)
    parameters["attrs_before"] = {_ACCESS_TOKEN: packed}


def _sqlite(url: URL) -> Engine:
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT, "isolation_level": None}
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        try:
            _use_wal(connection)
            # A commit is durable when it returns: what it covers is never delivered again.
            for pragma in ("synchronous=FULL", "cache_size=-65536"):
                connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error:
            # The pool knows nothing of it yet.
            connection.close()
            raise

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
