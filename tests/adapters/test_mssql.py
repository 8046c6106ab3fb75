"""SQL Server: what can be held without a server, and the contract where one is given.

``SCORING_TEST_MSSQL`` holds an ODBC connection string; then the project's own T-SQL is applied.
"""

import os
from pathlib import Path

import pytest
from sqlalchemy.dialects import mssql
from sqlalchemy.schema import CreateIndex, CreateTable

from scoring.adapters.sql import bulk, engines
from scoring.adapters.sql.bulk.mssql import statements
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.schema import metadata
from scoring.errors import Misconfigured, Transient
from tests.servers import free_port

DIALECT = mssql.dialect()  # type: ignore[no-untyped-call]

# What the project's T-SQL does without, so that it needs no hints and no newer server.
FORBIDDEN = ("MERGE ", "UPDLOCK", "HOLDLOCK", "READPAST", "CREATE OR ALTER", "EXCLUDED.")


def driver() -> Path:
    """Find Microsoft's driver as PyPI's mssql-python-odbc carries it."""
    package = pytest.importorskip("mssql_python_odbc")
    folder = Path(package.__file__).parent / "libs/linux/debian_ubuntu/x86_64/lib"
    return next(folder.glob("libmsodbcsql-18*"))


def connection_string(port: int) -> str:
    pytest.importorskip("pyodbc", exc_type=ImportError)
    return (
        f"Driver={driver()};Server=tcp:127.0.0.1,{port};Database=d;UID=u;PWD=secret;"
        "Encrypt=no;ConnectRetryCount=0"
    )


@pytest.mark.parametrize("upsert", [bulk.MERGE, bulk.PREDICT])
def test_an_upsert_is_an_update_and_an_insert_of_one_json_parameter_each(
    upsert: bulk.Upsert,
) -> None:
    update, insert = statements(upsert)

    assert update.split()[:3] == ["UPDATE", upsert.table.name, "SET"]
    assert insert.split()[:3] == ["INSERT", "INTO", upsert.table.name]
    assert "WHERE NOT EXISTS" in insert
    for statement in (update, insert):
        assert statement.count("?") == statement.count("OPENJSON(?)") == 1
        assert not [word for word in FORBIDDEN if word in statement.upper()]
        assert all(f"{name} " in statement for name in upsert.names)


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_every_table_and_index_compiles(table: object) -> None:
    created = str(CreateTable(table).compile(dialect=DIALECT))  # type: ignore[arg-type]
    indexes = [str(CreateIndex(i).compile(dialect=DIALECT)) for i in table.indexes]  # type: ignore[attr-defined]

    assert not [word for word in FORBIDDEN if word in " ".join([created, *indexes]).upper()]


def test_a_server_that_is_not_there_is_transient_and_no_secret_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "CONNECT_TIMEOUT", 1)
    database = Database(connection_string(free_port()))

    with pytest.raises(Transient, match="not reachable") as caught, database.read() as connection:
        connection.exec_driver_sql("SELECT 1")

    assert "secret" not in str(caught.value)


def test_a_driver_that_is_not_there_is_misconfigured() -> None:
    pytest.importorskip("pyodbc", exc_type=ImportError)
    database = Database("Driver={No Such Driver};Server=127.0.0.1;UID=u;PWD=secret")

    with pytest.raises(Misconfigured) as caught, database.read() as connection:
        connection.exec_driver_sql("SELECT 1")

    assert "secret" not in str(caught.value)


@pytest.mark.skipif("SCORING_TEST_MSSQL" not in os.environ, reason="no SQL Server was given")
def test_the_projects_t_sql_is_applied_by_a_real_server() -> None:
    database = Database(os.environ["SCORING_TEST_MSSQL"])
    with database.write() as connection:
        metadata.drop_all(connection)
        metadata.create_all(connection)
        for upsert in (bulk.MERGE, bulk.PREDICT):
            for statement in statements(upsert):
                connection.exec_driver_sql(statement, ("[]",))
    database.close()
