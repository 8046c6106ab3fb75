"""Schema versions in order, applied by Alembic."""

from typing import TYPE_CHECKING

from sqlalchemy import Connection

from scoring.adapters.sql.database import Database, revision
from scoring.adapters.sql.schema import HEAD
from scoring.errors import Misconfigured, Transient

if TYPE_CHECKING:
    from alembic.config import Config


BEGIN_MSSQL = "SELECT COUNT(*) FROM INFORMATION_SCHEMA.TABLES"
"""Begin a transaction: the driver does so with the first statement that reads a table."""

LOCK_MSSQL = (
    "SET NOCOUNT ON; DECLARE @code INT;"
    " EXEC @code = sp_getapplock @Resource = 'migrate', @LockMode = 'Exclusive';"
    " SELECT @code"
)
"""Take SQL Server's lock for the rest of the transaction; a negative code means that it was not."""


def migrate(database: Database) -> bool:
    """Bring a database to the newest schema; False if it was there already.

    Looks before it loads Alembic or takes a lock, so that the usual start costs one query and
    waits for nobody.

    Raises
    ------
    Misconfigured
        The schema is of a newer program: nothing was changed.
    """
    with database.read() as connection:
        if revision(connection) == HEAD:
            return False
    with database.write() as connection:
        # A lock is held: of two first starts on one database, one creates the tables.
        _lock(connection)
        found = revision(connection)
        if found == HEAD:
            return False
        _upgrade(connection, found)
    return True


def _lock(connection: Connection) -> None:
    """Wait for another process that migrates; in SQLite the transaction is lock enough."""
    match connection.dialect.name:
        case "postgresql":
            lock = "SELECT pg_advisory_xact_lock(hashtext('migrate'))"
            connection.exec_driver_sql(lock).close()
        case "mssql":
            connection.exec_driver_sql(BEGIN_MSSQL).scalar()
            refuse_lock(connection.exec_driver_sql(LOCK_MSSQL).scalar_one())


def refuse_lock(code: int) -> None:
    """Raise `Transient` if ``sp_getapplock`` returned a negative code: it holds no lock then."""
    if code < 0:
        message = f"another process migrates the database: sp_getapplock returned {code}"
        raise Transient(message)


def _upgrade(connection: Connection, found: str | None) -> None:
    from alembic import command  # noqa: PLC0415 - heavy, and needed once in a database's life
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", "scoring.adapters.sql:migrations")
    _refuse_unknown(config, found)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _refuse_unknown(config: "Config", found: str | None) -> None:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - as above

    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        problem = (
            f"the database is at schema {found}, which this program does not know (it knows up to"
            f" {HEAD}): use the newer program that wrote it"
        )
        raise Misconfigured([problem])
