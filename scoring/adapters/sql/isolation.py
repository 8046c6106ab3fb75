"""SQL Server's two settings by which readers see one state of the database and block nobody.

READ_COMMITTED_SNAPSHOT lets a statement read what was committed when it began; without it readers
wait for writers. ALLOW_SNAPSHOT_ISOLATION lets a transaction of several statements see one state.
Azure SQL has both on; elsewhere both are off in a new database. Source:
https://learn.microsoft.com/sql/t-sql/statements/alter-database-transact-sql-set-options
"""

import logging
from dataclasses import dataclass

from scoring.adapters.sql.database import SETTINGS, SNAPSHOT_ON, Database
from scoring.errors import ScoringError

log = logging.getLogger(__name__)

TURN_ON = (
    "ALTER DATABASE CURRENT SET ALLOW_SNAPSHOT_ISOLATION ON",
    # It needs to be the only connection: without NO_WAIT it would wait for the others to go.
    "ALTER DATABASE CURRENT SET READ_COMMITTED_SNAPSHOT ON WITH NO_WAIT",
)
"""Statements that turn the settings on; they are not allowed in a transaction."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """Which of the two settings are on; both where the engine has none."""

    read_committed_snapshot: bool = True
    snapshot: bool = True

    @property
    def warnings(self) -> list[str]:
        """What follows from the settings that are off, a sentence each."""
        found = []
        if not self.read_committed_snapshot:
            found.append(
                "READ_COMMITTED_SNAPSHOT is off: readers and writers of the database wait for each"
                " other; run `migrate` while nothing else is connected"
            )
        if not self.snapshot:
            found.append(
                "ALLOW_SNAPSHOT_ISOLATION is off: figures that are read by several statements may"
                " not fit together; run `migrate`"
            )
        return found


def check(database: Database) -> Isolation:
    """Return the settings, and log what follows from those that are off."""
    isolation = _read(database)
    for warning in isolation.warnings:
        log.warning("database.isolation_off", extra={"cause": warning})
    return isolation


def turn_on(database: Database) -> list[str]:
    """Turn on the settings that are off; return a warning for each that the server refuses."""
    isolation = _read(database)
    refused = []
    for statement, is_on in zip(
        TURN_ON, (isolation.snapshot, isolation.read_committed_snapshot), strict=True
    ):
        if not is_on:
            try:
                database.execute_alone(statement)
            except ScoringError as error:
                refused.append(f"{statement}: {error}")
    database.forget_isolation()
    return refused


def _read(database: Database) -> Isolation:
    if database.engine.dialect.name != "mssql":
        return Isolation()
    with database.write() as connection:
        row = connection.exec_driver_sql(SETTINGS).one()
    return Isolation(bool(row[0]), row[1] == SNAPSHOT_ON)
