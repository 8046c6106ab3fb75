"""How each database is connected to: SQLite, PostgreSQL, SQL Server and Azure SQL.

===================  ==========================  ============================  ====================
What                 SQLite                      PostgreSQL                    SQL Server
===================  ==========================  ============================  ====================
wait for a lock      ``timeout``                 ``lock_timeout``              ``SET LOCK_TIMEOUT``
a statement          none: no server             ``statement_timeout``         query timeout (ODBC)
connecting           none                        ``connect_timeout``           login timeout (ODBC)
a server that died   none                        TCP keepalive                 keepalive (driver's)
pooled connections   as SQLAlchemy has it        `Pool`, asked if they live    the same
signing in           none                        by the URL                    by the string, or an
                                                                               Entra token for each
                                                                               new connection
===================  ==========================  ============================  ====================
"""

import sqlite3
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from scoring.errors import Misconfigured, Transient

BUSY_TIMEOUT = 30
"""Seconds that a writer waits for another one's lock."""

STATEMENT_TIMEOUT = 600
"""Seconds that one statement may take on a server."""

CONNECT_TIMEOUT = 15
"""Seconds to wait for a server that does not answer."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The connections of one process to a server.

    Attributes
    ----------
    size
        How many are kept.
    overflow
        How many more are made while it is busy. Every instance of a function app has a pool: all of
        them together must stay below what the server takes, 35 on the smallest of Azure's.
    is_behind_pooler
        Whether a pooler stands between that gives each transaction any connection of its own, as
        PgBouncer does in transaction mode: what is set or prepared on one is then not on the next.
    """

    size: int = 2
    overflow: int = 2
    is_behind_pooler: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """What SQLAlchemy makes an engine with."""
        return {
            "pool_size": self.size,
            "max_overflow": self.overflow,
            "pool_pre_ping": True,
            # Seconds to wait for a free one.
            "pool_timeout": 30,
            # Seconds: Azure's gateway closes a connection that idles for 30 min.
            "pool_recycle": 25 * 60,
            # The one used last comes first: those of a busy hour idle, and are made anew when
            # recycled.
            "pool_use_lifo": True,
        }


POOL = Pool()
"""What a process has if nobody says otherwise."""

_KEEPALIVE = {"keepalives_idle": 60, "keepalives_interval": 15, "keepalives_count": 4}
"""Seconds, seconds and times: what died without a word is noticed after two minutes, not hours."""

_SIGN_IN = ("uid=", "authentication=", "trusted_connection=yes")
"""Keywords of a connection string that says how to sign in; the driver refuses a token then."""

_ACCESS_TOKEN = 1256  # SQL_COPT_SS_ACCESS_TOKEN of msodbcsql.h
_DATABASE_SCOPE = "https://database.windows.net/.default"


def connect(url: str, pool: Pool = POOL) -> Engine:
    """Make an engine; it connects when it is first used.

    Parameters
    ----------
    url
        A SQLAlchemy URL (``sqlite:///...``, ``postgresql://...``), or an ODBC connection string of
        SQL Server. One without ``UID``, ``Authentication`` and ``Trusted_Connection`` signs in with
        an Entra token, the managed identity in Azure.

    Raises
    ------
    Misconfigured
        The text is none of these.
    """
    if "driver=" in url.lower():
        return _mssql(URL.create("mssql+pyodbc", query={"odbc_connect": url}), url, pool)
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        problem = "the database is neither a URL nor an ODBC connection string"
        raise Misconfigured([problem]) from error
    match parsed.get_backend_name():
        case "sqlite":
            return _sqlite(parsed)
        case "postgresql":
            return _postgresql(parsed.set(drivername="postgresql+psycopg"), pool)
    problem = f"databases of kind {parsed.get_backend_name()} are not supported"
    raise Misconfigured([problem])


def read_options(dialect: Dialect, *, has_snapshots: bool) -> dict[str, Any]:
    """Return the options of a connection that only reads, and sees one state of the database.

    Parameters
    ----------
    has_snapshots
        Whether an SQL Server allows transactions of isolation level SNAPSHOT.
    """
    options: dict[str, Any] = {"read_only": True}
    if dialect.name == "postgresql":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    if has_snapshots:
        options["isolation_level"] = "SNAPSHOT"
    return options


def _postgresql(url: URL, pool: Pool) -> Engine:
    arguments: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT, **_KEEPALIVE}
    if pool.is_behind_pooler:
        arguments["prepare_threshold"] = None
    engine = create_engine(url, hide_parameters=True, connect_args=arguments, **pool.arguments)
    # To PostgreSQL 0 means for ever.
    limits = {
        "lock_timeout": f"{max(BUSY_TIMEOUT * 1000, 1)}ms",
        "statement_timeout": f"{STATEMENT_TIMEOUT}s",
    }
    # Not as ``options`` of the start: PgBouncer refuses a connection that brings any.
    if pool.is_behind_pooler:

        @event.listens_for(engine, "begin")
        def limit(connection: Connection) -> None:
            connection.exec_driver_sql(_set(limits, is_local=True)).close()

    else:

        @event.listens_for(engine, "connect")
        def configure(connection: Any, _: object) -> None:
            connection.execute(_set(limits, is_local=False))
            connection.commit()

    return engine


def _set(settings: Mapping[str, str], *, is_local: bool) -> str:
    """Make a statement that sets parameters, for this transaction or this connection."""
    calls = (f"set_config('{name}', '{value}', {is_local})" for name, value in settings.items())
    return f"SELECT {', '.join(calls)}"


def _mssql(url: URL, connection_string: str, pool: Pool) -> Engine:
    arguments = {"timeout": CONNECT_TIMEOUT}
    engine = create_engine(url, hide_parameters=True, connect_args=arguments, **pool.arguments)
    # The driver manager's own pool would hand out connections that SQLAlchemy has closed.
    engine.dialect.dbapi.pooling = False  # type: ignore[union-attr]
    if not any(word in connection_string.lower() for word in _SIGN_IN):
        event.listen(engine, "do_connect", _signing_in())

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.timeout = STATEMENT_TIMEOUT
        with connection.cursor() as cursor:
            cursor.execute(f"SET LOCK_TIMEOUT {BUSY_TIMEOUT * 1000}")

    return engine


def _signing_in() -> Callable[[Dialect, object, object, dict[str, Any]], None]:
    """Sign in with a token instead of a password, asked for anew for every connection.

    One credential for all of them: it keeps a token until shortly before that expires.
    """
    credentials: list[Any] = []

    def give_token(_: Dialect, __: object, ___: object, parameters: dict[str, Any]) -> None:
        if not credentials:
            # Heavy, and for Azure only.
            from azure.identity import DefaultAzureCredential  # noqa: PLC0415

            credentials.append(DefaultAzureCredential())
        token = _token(credentials[0]).encode("utf-16-le")
        packed = struct.pack(f"<I{len(token)}s", len(token), token)
        parameters["attrs_before"] = {_ACCESS_TOKEN: packed}

    return give_token


def _token(credential: Any) -> str:
    from azure.core.exceptions import AzureError, ClientAuthenticationError  # noqa: PLC0415

    try:
        token: str = credential.get_token(_DATABASE_SCOPE).token
    except ClientAuthenticationError as error:
        problem = f"there is no identity to sign in to the database with: {_first_line(error)}"
        raise Misconfigured([problem]) from error
    except AzureError as error:
        message = f"Entra ID gives no token for the database: {_first_line(error)}"
        raise Transient(message) from error
    return token


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


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
