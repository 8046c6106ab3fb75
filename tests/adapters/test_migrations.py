"""Schema versions: what the migrations make is what the code expects."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from scoring.adapters.sql import schema
from scoring.adapters.sql.database import Database, revision
from scoring.adapters.sql.migrations import migrate
from scoring.adapters.sql.schema import HEAD, metadata
from scoring.bootstrap import App
from scoring.errors import Misconfigured, StorageUnusable
from scoring.settings import Settings
from tests.adapters.stores import claimed, contents, deliver, impatient, partials, save

ROOT = Path(__file__).parents[2]
MIGRATE = """
import sys
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.migrations import migrate
from scoring.adapters.sql.rebuild import settle_window
from alembic import command

print("ready", flush=True)
sys.stdin.readline()
database = Database(sys.argv[1])
print(migrate(database), settle_window(database, None, int(sys.argv[2])))
database.close()
"""


def config() -> Config:
    made = Config()
    made.set_main_option("script_location", "scoring.adapters.sql:migrations")
    return made


def rows_of(database: Database) -> list[tuple[Any, ...]]:
    """Read which run has each window."""
    statement = "SELECT device, claimed_by FROM window_partials"
    with database.read() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]


def stamp(database: Database, version: str) -> None:
    with database.write() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")  # noqa: S608


@pytest.fixture
def database(empty_database: Database) -> Database:
    """Give a migrated database of the test's own: these tests change the schema."""
    migrate(empty_database)
    return empty_database


class TestMigrations:
    def test_the_newest_migration_is_the_one_the_code_expects(self) -> None:
        assert ScriptDirectory.from_config(config()).get_heads() == [HEAD]

    def test_they_make_the_schema_that_the_code_describes(self, database: Database) -> None:
        with database.read() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []

    def test_a_table_that_no_migration_makes_is_noticed(self, database: Database) -> None:
        with database.write() as connection:
            connection.exec_driver_sql("DROP TABLE segments")

        with database.read() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata)

    def test_what_a_comparison_leaves_out_is_the_same_too(self, tmp_path: Path) -> None:
        # Alembic compares neither keys nor checks nor options of tables: SQLite has them as text.
        database = Database.file(tmp_path / "store.db")
        migrate(database)
        described = Database.file(tmp_path / "described.db")
        with described.write() as connection:
            metadata.create_all(connection)

        found, expected = statements(database), statements(described)
        database.close()
        described.close()

        assert found == expected

    def test_the_windows_have_room_for_updates_as_the_code_describes(
        self, migrated_postgresql: Database
    ) -> None:
        options = "SELECT reloptions FROM pg_class WHERE relname = 'window_partials'"
        described = schema.window_partials.dialect_options["postgresql"]["with"]

        with migrated_postgresql.read() as connection:
            (found,) = connection.exec_driver_sql(options).scalars()

        assert found == [f"{name}={value}" for name, value in described.items()]

    def test_a_database_that_is_there_already_is_left_alone(self, database: Database) -> None:
        deliver(database, [0, 5])
        before = contents(database)

        assert migrate(database) is False
        assert contents(database) == before

    def test_an_empty_database_is_brought_to_the_newest(self, empty_database: Database) -> None:
        assert migrate(empty_database) is True

        with empty_database.read() as connection:
            assert revision(connection) == HEAD

    def test_down_and_up_again_gives_the_same(self, database: Database) -> None:
        made = config()
        with database.write() as connection:
            made.attributes["connection"] = connection
            command.downgrade(made, "base")
            assert set(inspect(connection).get_table_names()) <= {"alembic_version"}

        assert migrate(database) is True
        with database.read() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []

    def test_windows_that_ended_runs_have_kept_are_pending_again(self, database: Database) -> None:
        save(database, partials=partials({("d", "s", 0): [1.0], ("e", "s", 0): [1.0]}))
        run = claimed(database)
        made = config()
        with database.write() as connection:
            # As a version has left it that did not lock a run before it gave windows back.
            connection.exec_driver_sql("UPDATE runs SET state = 'canceled'")
            made.attributes["connection"] = connection
            command.downgrade(made, "0004")
        assert {row[-1] for row in rows_of(database)} == {run.number}

        migrate(database)

        assert {row[-1] for row in rows_of(database)} == {None}

    def test_a_migration_that_fails_leaves_nothing(
        self, empty_database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = import_module("scoring.adapters.sql.migrations.versions.0001_first_schema")
        create = module.op.create_index

        def fail(name: str, *arguments: object, **options: object) -> None:
            create(name, *arguments, **options)
            raise RuntimeError

        monkeypatch.setattr("alembic.op.create_index", fail)

        with pytest.raises(RuntimeError):
            migrate(empty_database)

        with empty_database.read() as connection:
            assert inspect(connection).get_table_names() == []

    def test_a_start_waits_for_no_writer(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = impatient(database, monkeypatch)

        with database.write() as connection:
            connection.exec_driver_sql("UPDATE runs SET state = state")
            assert migrate(other) is False
        other.close()

    def test_processes_that_start_at_once_on_one_new_database_make_one_schema(
        self, empty_database: Database
    ) -> None:
        command_line = [sys.executable, "-c", MIGRATE, empty_database.url]
        processes = [
            subprocess.Popen(
                [*command_line, str(size)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for size in (1, 2, 3)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=60) for process in processes]

        assert [errors for _, errors in said] == [""] * len(processes)
        answers = [output.split() for output, _ in said]
        assert sorted(migrated for migrated, _ in answers) == ["False", "False", "True"]
        assert len({window for _, window in answers}) == 1


class TestOtherSchemas:
    @pytest.mark.parametrize("version", ["9999", "0000", "feedc0de"])
    def test_one_that_is_not_known_is_refused_and_left_alone(
        self, database: Database, version: str
    ) -> None:
        stamp(database, version)
        before = contents(database)

        with pytest.raises(Misconfigured, match=rf"schema {version}.*knows up to {HEAD}"):
            migrate(database)

        assert contents(database) == before
        with database.read() as connection:
            assert revision(connection) == version

    def test_the_app_refuses_a_store_of_a_newer_program(self, tmp_path: Path) -> None:
        settings = Settings.load({"SCORING_DATA": str(tmp_path / "data")})
        with App(settings) as app:
            stamp(app.database, "9999")

        with App(settings) as app, pytest.raises(Misconfigured, match="schema 9999"):
            _ = app.queries

    def test_a_file_that_is_no_database_is_unusable(self, tmp_path: Path) -> None:
        (tmp_path / "store.db").write_bytes(b"no database " * 1000)
        database = Database.file(tmp_path / "store.db")

        with pytest.raises(StorageUnusable, match="not a database"):
            migrate(database)
        database.close()

    def test_a_database_that_cannot_be_there_is_unusable(self, tmp_path: Path) -> None:
        database = Database.file(tmp_path / "nowhere" / "store.db")

        with pytest.raises(StorageUnusable, match="unable to open"):
            migrate(database)
        database.close()


def statements(database: Database) -> dict[str, list[str]]:
    """Give the parts of each table's and index's statement; their order may differ."""
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql > ''")
        return {
            name: sorted(" ".join(part.split()) for part in sql.replace('"', "").strip().split(","))
            for name, sql in rows
            if name != "alembic_version"
        }
