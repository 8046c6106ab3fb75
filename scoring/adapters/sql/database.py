"""Databases: transactions, and what schema they have."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, event

from scoring.adapters.sql.engines import POOL, Pool, connect, read_options
from scoring.adapters.sql.failures import translated_errors

SETTINGS = (
    "SELECT is_read_committed_snapshot_on, snapshot_isolation_state FROM sys.databases"
    " WHERE database_id = DB_ID()"
)
"""SQL Server's settings of isolation; see `isolation`."""

SNAPSHOT_ON = 1
"""`snapshot_isolation_state` where snapshots are allowed; other states are off, or on the way."""


class Database:
    """A database and its transactions.

    Parameters
    ----------
    url
        As `engines.connect` takes it.
    pool
        The connections to a server.

    Raises
    ------
    Misconfigured
        The text is neither a URL nor a connection string of a supported database.
    """

    def __init__(self, url: str, pool: Pool = POOL) -> None:
        self.url = url
        with translated_errors():
            self.engine = connect(url, pool)
        self._has_connected = False
        self._has_snapshots: bool | None = None
        event.listen(self.engine, "connect", self._note_connection)

    @classmethod
    def file(cls, path: Path) -> "Database":
        """Open the embedded SQLite database of a file."""
        return cls(f"sqlite:///{path}")

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: all of the block happens, or nothing.

        Read each result completely before the next statement of the connection: SQL Server's
        driver refuses a statement while rows of another one are left.
        """
        with self._translated_errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view of the database that blocks no writer."""
        with self._translated_errors():
            options = read_options(self.engine.dialect, has_snapshots=self._sees_snapshots())
            with self.engine.connect() as connection:
                yield connection.execution_options(**options)

    def execute_alone(self, statement: str) -> None:
        """Execute a statement outside a transaction, with the only connection of this process."""
        self.engine.dispose()
        with self._translated_errors(), self.engine.connect() as connection:
            alone = connection.execution_options(isolation_level="AUTOCOMMIT")
            alone.exec_driver_sql(statement)

    def forget_isolation(self) -> None:
        """Look again at the settings of isolation before the next read: they have changed."""
        self._has_snapshots = None

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    def _sees_snapshots(self) -> bool:
        """Whether SQL Server lets a read of several statements see one state; asked once."""
        if self.engine.dialect.name != "mssql":
            return False
        if self._has_snapshots is None:
            with self.engine.connect() as connection:
                row = connection.exec_driver_sql(SETTINGS).one()
            self._has_snapshots = row[1] == SNAPSHOT_ON
        return self._has_snapshots

    def _note_connection(self, *_: object) -> None:
        self._has_connected = True

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        # Asked when the block ends: a first connection may be made within it.
        with translated_errors(self.engine.dialect.name, lambda: self._has_connected):
            yield


def revision(connection: Connection) -> str | None:
    """Which migration the database is at; None for an empty one."""
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    found: str | None = connection.exec_driver_sql(
        "SELECT version_num FROM alembic_version"
    ).scalar()
    return found
