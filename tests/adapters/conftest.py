"""A database of every engine, empty or migrated."""

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.engines import Pool
from scoring.adapters.sql.facts import CLAIMS
from scoring.adapters.sql.migrations import migrate
from scoring.adapters.sql.schema import facts, metadata
from tests.adapters.one_result import allow_one_result
from tests.servers import PostgreSql, pgbouncer, postgresql
from tests.services import MSSQL, PGBOUNCER, POSTGRESQL

ENGINES = (
    "sqlite",
    "postgresql",
    # What PostgreSQL does it does behind a pooler too; that is tried where there is time.
    pytest.param("pgbouncer", marks=pytest.mark.exhaustive),
    *(["mssql"] if MSSQL else []),
)

_numbers = count()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSql]:
    """Run a server for all tests of this process."""
    POSTGRESQL.require()
    with postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql_server: PostgreSql) -> Iterator[Database]:
    """Open one migrated database for all tests: making one for each would take minutes."""
    postgresql_server.execute("CREATE DATABASE migrated")
    database = Database(postgresql_server.url("migrated"))
    allow_one_result(database.engine)
    migrate(database)
    yield database
    database.close()


@pytest.fixture(scope="session")
def migrated_pgbouncer(
    postgresql_server: PostgreSql, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """Open the like behind PgBouncer in transaction mode."""
    PGBOUNCER.require()
    postgresql_server.execute("CREATE DATABASE pooled")
    with pgbouncer(postgresql_server, tmp_path_factory.mktemp("pgbouncer")) as url:
        database = Database(url("pooled"), Pool(is_behind_pooler=True))
        allow_one_result(database.engine)
        migrate(database)
        yield database
        database.close()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one migrated file, of which each test gets a copy."""
    path = tmp_path_factory.mktemp("migrated") / "store.db"
    database = Database.file(path)
    migrate(database)
    database.close()
    return path


def emptied(url: str) -> Database:
    """Open a database of SQL Server, and drop what other tests have made in it."""
    database = Database(url)
    with database.write() as connection:
        metadata.drop_all(connection)
        if connection.dialect.has_table(connection, "alembic_version"):
            connection.exec_driver_sql("DROP TABLE alembic_version")
    return database


@pytest.fixture(params=ENGINES)
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Open a database without a table."""
    if request.param == "sqlite":
        database = Database.file(tmp_path / "store.db")
    elif request.param == "mssql":
        database = emptied(str(MSSQL))
    else:
        server: PostgreSql = request.getfixturevalue("postgresql_server")
        name = f"empty{next(_numbers)}"
        server.execute(f"CREATE DATABASE {name}")
        database = Database(server.url(name))
    yield database
    database.close()


@pytest.fixture(params=ENGINES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Give a database of the newest schema, without a row, whose results are read one by one."""
    if request.param in ("postgresql", "pgbouncer"):
        shared: Database = request.getfixturevalue(f"migrated_{request.param}")
        restore(shared)
        yield shared
        return
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("migrated_sqlite")
        shutil.copyfile(template, tmp_path / "store.db")
        database = Database.file(tmp_path / "store.db")
    else:
        database = emptied(str(MSSQL))
        migrate(database)
    allow_one_result(database.engine)
    yield database
    database.close()


def restore(database: Database) -> None:
    """Bring a migrated PostgreSQL database back to what it was when it was made."""
    # TRUNCATE gives every table and index new files, which takes 100 times as long.
    renumber = "SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'"
    with database.write() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
        connection.exec_driver_sql(renumber).close()
        connection.execute(facts.insert().values(name=CLAIMS, value=""))
