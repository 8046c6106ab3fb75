"""Schema versions in order, applied by Alembic."""

from sqlalchemy import Connection

from scoring.adapters.sql.database import Database, revision
from scoring.adapters.sql.schema import HEAD


def migrate(database: Database) -> bool:
    """Bring a database to the newest schema; False if it was there already.

    Looks before it loads Alembic, so that the usual start costs one query.
    """
    with database.write() as connection:
        # The write lock is held: of two first starts on one file, one creates the tables.
        if revision(connection) == HEAD:
            return False
        _upgrade(connection)
    return True


def _upgrade(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415 - heavy, and needed once in a database's life
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", "scoring.adapters.sql:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
