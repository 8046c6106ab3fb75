"""SQL Server: what can be held without a server, and the contract where one is given.

``SCORING_TEST_MSSQL`` holds an ODBC connection string; then the project's own T-SQL is applied.
"""

import json
import re
from collections.abc import Callable, Iterable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import String, Table, select
from sqlalchemy.dialects import mssql
from sqlalchemy.dialects.mssql.pyodbc import dialect as pyodbc_dialect
from sqlalchemy.schema import CreateIndex, CreateTable, DDLElement
from sqlalchemy.types import TypeEngine

from scoring.adapters.sql import bulk, counts, engines, migrations, schema
from scoring.adapters.sql.bulk.mssql import insertion, statements, stored
from scoring.adapters.sql.bulk.upsert import as_json
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.schema import metadata, sensor_counts
from scoring.errors import Misconfigured, Transient
from tests.adapters.tds import connection_string
from tests.servers import free_port
from tests.services import MSSQL, NO_SQL_SERVER, ODBC

DIALECT = mssql.dialect()  # type: ignore[no-untyped-call]

# What the project's T-SQL does without, so that it needs no hints and no newer server.
FORBIDDEN = ("MERGE ", "UPDLOCK", "HOLDLOCK", "READPAST", "CREATE OR ALTER", "EXCLUDED.")


UPSERTS = [
    *(bulk.MERGE, bulk.PREDICT, bulk.SUSPECT, bulk.ANSWER),
    *(counts.ADD_TO_SENSORS, counts.ADD_TO_DEVICES),
]
INSERTED = [schema.rejects, schema.segments, schema.gaps, schema.run_parts]
NAMES = {"device", "sensor", "partition"}
OPENJSON = re.compile(
    r"\(SELECT (.*?) FROM OPENJSON\(CAST\((?:\?|:keys) AS NVARCHAR\(max\)\)\)"
    r" WITH \((.*?)\)\) AS given"
)

# Bytes of a key: of a table that is stored in its order, and of any other index.
CLUSTERED, OTHER = 900, 1700


def key_bytes(columns: Iterable[Any]) -> int:
    """Add up the most bytes that columns of a key may have."""
    sizes = {"BIGINT": 8, "INTEGER": 4, "BIT": 1}
    types = [column.type.compile(dialect=DIALECT) for column in columns]
    return sum(
        2 * int(type_[9 : type_.index(")")]) if type_.startswith("NVARCHAR(") else sizes[type_]
        for type_ in types
    )


@pytest.mark.parametrize("upsert", UPSERTS, ids=lambda upsert: upsert.table.name)
def test_an_upsert_is_an_update_and_an_insert_of_one_json_parameter_each(
    upsert: bulk.Upsert,
) -> None:
    update, insert = statements(upsert)

    assert update.split()[:3] == ["UPDATE", upsert.table.name, "SET"]
    assert insert.split()[:3] == ["INSERT", "INTO", upsert.table.name]
    assert "WHERE NOT EXISTS" in insert
    for statement in (update, insert):
        assert statement.count("?") == statement.count("OPENJSON(CAST(? AS NVARCHAR(max)))") == 1
        assert not [word for word in FORBIDDEN if word in statement.upper()]
        assert all(f"{name} " in statement for name in upsert.names)


@pytest.mark.parametrize(
    "statement",
    [
        *(one for upsert in UPSERTS for one in statements(upsert)),
        *map(insertion, INSERTED),
        str(counts.LOOK_UP["mssql"]),
    ],
)
def test_what_comes_out_of_json_is_compared_as_what_is_stored(statement: str) -> None:
    (given,) = OPENJSON.findall(statement)
    chosen, types = (part.split(", ") for part in given)

    for column in NAMES & {type_.split()[0] for type_ in types}:
        assert f"{column} COLLATE Latin1_General_BIN2 AS {column}" in chosen
        assert [type_ for type_ in types if type_.startswith(f"{column} NVARCHAR(")]
    # OPENJSON takes no collation, and a text of another type would lose characters.
    assert not [type_ for type_ in types if "COLLATE" in type_ or " VARCHAR" in type_]


def test_bytes_pass_through_json_as_hexadecimal_digits() -> None:
    statement = insertion(schema.rejects)

    assert "CONVERT(VARBINARY(max), body, 2) AS body" in statement
    assert " body NVARCHAR(max)," in statement
    assert as_json(["body"], [(b"\x00\xff",)]) == '[{"body":"00ff"}]'


def test_rows_and_what_is_looked_up_hold_names_as_they_are_stored() -> None:
    rows = [("a ", "s", 0, 0, 0), ("a", "s", 0, 0, 0)]

    assert stored(list(sensor_counts.c), rows) == [["a \x7f", "s", 0, 0, 0], rows[1]]

    named = select(sensor_counts.c.device).where(sensor_counts.c.device.in_(["a ", "b"]))
    values = str(named.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True}))
    assert "IN (N'a \x7f', N'b')" in values
    process = sensor_counts.c.device.type.dialect_impl(DIALECT).result_processor(DIALECT, None)
    assert process is not None
    assert [process(name) for name in ("a \x7f", "b")] == ["a ", "b"]


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_every_table_and_index_compiles(table: Table) -> None:
    created = str(CreateTable(table).compile(dialect=DIALECT))
    indexes = [str(CreateIndex(i).compile(dialect=DIALECT)) for i in table.indexes]

    assert not [word for word in FORBIDDEN if word in " ".join([created, *indexes]).upper()]


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_every_text_is_of_any_characters_and_compared_by_them(table: Table) -> None:
    created = str(CreateTable(table).compile(dialect=DIALECT))

    for column in table.c:
        if isinstance(column.type, String):
            type_ = column.type.compile(dialect=DIALECT)
            assert re.fullmatch(r"NVARCHAR\((\d+|max)\) COLLATE Latin1_General_BIN2", type_)
            assert f"{type_} " in created
    for word in (" VARCHAR", "IMAGE", " TEXT", "NTEXT"):
        assert word not in created


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_the_longest_keys_have_room(table: Table) -> None:
    is_clustered = table.primary_key.dialect_options["mssql"]["clustered"] is not False

    assert key_bytes(table.primary_key) <= (CLUSTERED if is_clustered else OTHER)
    # No table is out of order without need.
    assert is_clustered == (key_bytes(table.primary_key) <= CLUSTERED)
    for index in table.indexes:
        assert key_bytes(index.columns) <= OTHER


SCRIPTS = list(ScriptDirectory(str(Path(migrations.__file__).parent)).walk_revisions())
"""The newest first."""


def text_of(steps: Iterable[Callable[[], None]]) -> str:
    """Return the T-SQL of migrations."""
    found, dialect = StringIO(), mssql.dialect()  # type: ignore[no-untyped-call]
    dialect.default_schema_name = "dbo"
    context = MigrationContext.configure(
        dialect=dialect, opts={"as_sql": True, "output_buffer": found, "literal_binds": True}
    )
    with Operations.context(context):
        for step in steps:
            step()
    return found.getvalue()


def test_a_column_goes_with_its_default() -> None:
    """SQL Server drops no column that a constraint speaks of."""
    given = text_of(script.module.upgrade for script in reversed(SCRIPTS))
    defaults = set(re.findall(r"ALTER TABLE (\w+) ADD (\w+) [^;]*? DEFAULT ", given))
    taken = text_of(script.module.downgrade for script in SCRIPTS if script.down_revision)
    dropped = re.findall(r"ALTER TABLE (\w+) DROP COLUMN (\w+)", taken)
    freed = re.findall(r"object_id\('(?:\w+\.)?(\w+)'\)\s+and col_name\([^)]*\) = '(\w+)'", taken)

    assert defaults
    assert defaults <= set(dropped)
    assert defaults <= set(freed)


def test_the_migrations_make_the_same_columns_and_keys_as_the_code_describes() -> None:
    made = " ".join(text_of(script.module.upgrade for script in reversed(SCRIPTS)).split())
    # Columns that came later, by their table.
    later = {
        "runs": (
            *("engine_status ", "link ", "submitted_at ", "losses ", "job_is_open "),
            "enqueued_until ",
        ),
        "run_parts": ("is_aside ", "cause "),
        "epochs": ("created ",),
        "window_partials": ("late_enqueued ",),
        "segments": ("rebuild ", "late_enqueued "),
        "suspects": ("tried_at ", "tried_in "),
        "hub_answers": ("applied ", "stuck_since "),
    }
    # A column that went again.
    assert "ALTER TABLE hub_answers DROP COLUMN high_water;" in made
    made = made.replace(" high_water BIGINT NULL, moved_at", " moved_at")

    for table in metadata.sorted_tables:
        elements: list[DDLElement] = [CreateTable(table), *map(CreateIndex, table.indexes)]
        for element in elements:
            text = " ".join(str(element.compile(dialect=DIALECT)).split())
            parts = text.split(", ")
            added = [p for p in parts if p.startswith(later.get(table.name, "-"))]
            assert ", ".join(p for p in parts if p not in added) in made
            assert all(f"ALTER TABLE {table.name} ADD {column}" in made for column in added)


def test_a_server_that_is_not_there_is_transient_and_no_secret_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "CONNECT_TIMEOUT", 1)
    database = Database(connection_string(free_port()))

    with pytest.raises(Transient, match="not reachable") as caught, database.read() as connection:
        connection.exec_driver_sql("SELECT 1")

    assert "secret" not in str(caught.value)


def test_a_driver_that_is_not_there_is_misconfigured() -> None:
    ODBC.require()
    database = Database("Driver={No Such Driver};Server=127.0.0.1;UID=u;PWD=secret")

    with pytest.raises(Misconfigured) as caught, database.read() as connection:
        connection.exec_driver_sql("SELECT 1")

    assert "is not installed" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_no_parameter_that_may_hold_a_name_is_sent_in_a_code_page() -> None:
    ODBC.require()
    dbapi = pytest.importorskip("pyodbc")
    dialect = pyodbc_dialect(dbapi=dbapi)  # type: ignore[no-untyped-call]
    columns = [column for table in metadata.sorted_tables for column in table.c]
    types: list[TypeEngine[Any]] = [c.type for c in columns if isinstance(c.type, String)]
    types += [bind.type for bind in counts.LOOK_UP["mssql"].compile(dialect=dialect).binds.values()]

    for type_ in types:
        sent = type_.dialect_impl(dialect).get_dbapi_type(dbapi)
        assert dbapi.SQL_WVARCHAR in (sent if isinstance(sent, tuple) else (sent,))


@pytest.mark.parametrize("code", [-1, -2, -3, -999])
def test_a_lock_that_was_not_granted_is_not_taken_for_one(code: int) -> None:
    with pytest.raises(Transient, match=f"sp_getapplock returned {code}"):
        migrations.refuse_lock(code)


@pytest.mark.parametrize("code", [0, 1])
def test_a_lock_that_was_granted_at_once_or_later_is_held(code: int) -> None:
    migrations.refuse_lock(code)


def test_a_bit_is_compared_before_it_is_a_condition() -> None:
    assert "CASE WHEN (predictions.is_anomaly = 1)" in str(
        select(*counts.totals()).compile(dialect=DIALECT)
    )


@pytest.mark.skipif(MSSQL is None, reason=NO_SQL_SERVER)
def test_the_projects_t_sql_is_applied_by_a_real_server() -> None:
    database = Database(str(MSSQL))
    with database.write() as connection:
        metadata.drop_all(connection)
        metadata.create_all(connection)
        for upsert in UPSERTS:
            for statement in statements(upsert):
                connection.exec_driver_sql(statement, ("[]",))
        for table in INSERTED:
            connection.exec_driver_sql(insertion(table), ("[]",))
        assert connection.execute(counts.LOOK_UP["mssql"], {"keys": "[]"}).all() == []
    database.close()


class Recorder:
    """A connection that notes what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[str, int]] = []

    def exec_driver_sql(self, statement: str, parameters: tuple[str]) -> None:
        self.given.append((statement, len(json.loads(parameters[0]))))


@pytest.mark.parametrize("rows", [1, 4_000, 9_001])
def test_no_statement_changes_so_many_rows_that_the_whole_table_is_locked(rows: int) -> None:
    connection: Any = Recorder()
    suspects = [(f"d{n}", "s", "f1", 1, 1, 1, 1, "", *[None] * 4) for n in range(rows)]
    segments = [["x"] * len(schema.segments.c) for _ in range(rows)]

    bulk.mssql.upsert(connection, bulk.SUSPECT, suspects)
    bulk.mssql.update(connection, bulk.SUSPECT, suspects)
    bulk.mssql.insert(connection, schema.segments, segments)

    assert max(count for _, count in connection.given) <= bulk.mssql.MOST_CHANGED < 5_000
    assert sum(count for _, count in connection.given) == 4 * rows


@pytest.mark.parametrize("what", UPSERTS, ids=lambda what: what.table.name)
def test_rows_are_looked_up_by_the_key_however_many_the_server_takes_them_for(
    what: bulk.Upsert,
) -> None:
    change, addition = statements(what)

    # The hint keeps the order, too: the rows that are given come first.
    assert change.index("OPENJSON") < change.index(" INNER LOOP JOIN ")
    assert addition.endswith(" OPTION (LOOP JOIN)")


def test_a_page_begins_with_a_comparison_that_an_index_can_use() -> None:
    table = schema.rejects.c
    clause = bulk.after((table.epoch, table.sequence_number, table.position), (1, 2, 3))

    text = str(clause.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True}))

    assert text == (
        "rejects.epoch >= 1 AND (rejects.epoch > 1 OR rejects.sequence_number >= 2"
        " AND (rejects.sequence_number > 2 OR rejects.position > 3))"
    )
