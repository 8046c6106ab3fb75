"""What a database's errors mean, row by row, as the drivers make them."""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import psycopg
import pytest
import stamina
from sqlalchemy import event, exc

from scoring.adapters.sql.codes import NUMBERS, STATES
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.failures import translated_errors
from scoring.errors import DataRefused, Misconfigured, ScoringError, StorageUnusable, Transient
from scoring.retrying import retried
from tests.adapters.tds import ServerError, connection_string, self_signed, tds_server
from tests.servers import PostgreSql
from tests.services import ODBC

Kind = type[ScoringError]

# By Microsoft's documentation; see `codes` for the sources.
RECONFIGURING = {40197, 40501, 40613, 49918, 49919, 49920}
TRANSIENT = {
    *(926, 4221, 615, 10928, 10929, 10936, 1204, 1205, 1222, 3960, 701, 802, 8645, 8651),
    *(6005, 983, 976, 596, 40549, 40550, 40551, 40552, 40553, 233),
}
FULL = {40544, 1132, 1101, 1105, 1827, 9002, 3906, 823, 824}
SETUP = {
    *(18452, 18456, 18470, 18486, 18487, 18488, 4060, 4064, 916, 229, 262),
    *(40532, 40607, 40615, 40914, 47073),
}
DUPLICATE = {2601, 2627}
# Of the driver itself: a server does not send it.
DRIVER = {20}
EXPECTED: dict[int, Kind] = {
    **dict.fromkeys(TRANSIENT | RECONFIGURING, Transient),
    **dict.fromkeys(FULL, StorageUnusable),
    **dict.fromkeys(SETUP, Misconfigured),
    **dict.fromkeys(DUPLICATE, ScoringError),
}


def failure(database: Database) -> ScoringError:
    """Return the error of an attempt to read."""
    with pytest.raises(ScoringError) as caught, database.read() as connection:
        connection.exec_driver_sql("SELECT 1")
    return caught.value


def refused(number: int, text: str = "something failed") -> ScoringError:
    """Return the error of a server that answers with a number, through Microsoft's driver."""
    with tds_server(ServerError(number, text)) as port:
        return failure(Database(connection_string(port)))


class TestSqlServer:
    def test_every_row_of_the_table_is_tested(self) -> None:
        assert set(NUMBERS) == EXPECTED.keys() | DRIVER

    @pytest.mark.parametrize("number", sorted(EXPECTED))
    def test_a_number_means_what_microsoft_says(self, number: int) -> None:
        error = refused(number)

        assert type(error) is EXPECTED[number]
        assert f"({number})" in str(error)
        assert getattr(error, "wait", 0) == (5 if number in RECONFIGURING else 0)

    @pytest.mark.parametrize("number", [102, 208, 207, 50000])
    def test_a_number_that_is_not_known_is_not_transient(self, number: int) -> None:
        assert type(refused(number, "busy, locked, timeout")) is ScoringError

    def test_the_number_is_the_last_one_and_none_that_data_hold(self) -> None:
        text = "Incorrect value (1205) (SQLExecDirectW)\nand (40613) (SQLFetch) of 'a busy device'"

        assert type(refused(207, text)) is ScoringError
        assert type(refused(1205, text)) is Transient

    def test_a_database_that_was_there_before_is_waited_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        is_there = True

        def connect(*_: object) -> Any:
            return MagicMock() if is_there else None

        with tds_server(ServerError(4060)) as port:
            database = Database(connection_string(port))
            assert type(failure(database)) is Misconfigured

            monkeypatch.setattr(database.engine.dialect, "initialize", lambda _: None)
            event.listen(database.engine, "do_connect", connect)
            with database.write():
                pass
            database.close()
            is_there = False
            error = failure(database)

        assert isinstance(error, Transient)
        assert error.wait == 5

    def test_a_server_without_encryption_is_a_setup_mistake(self) -> None:
        with tds_server() as port:
            error = failure(Database(connection_string(port, "yes")))

        assert type(error) is Misconfigured
        assert "Encryption not supported" in str(error)

    def test_a_certificate_that_nobody_trusts_is_a_setup_mistake(self, tmp_path: Path) -> None:
        with tds_server(certificate=self_signed(tmp_path)) as port:
            error = failure(Database(connection_string(port, "yes")))

        assert type(error) is Misconfigured
        assert "certificate verify failed" in str(error)

    def test_a_server_that_hangs_up_is_transient(self) -> None:
        with tds_server() as port:
            # The driver would come again ten seconds later.
            at_once = f"{connection_string(port)};ConnectRetryCount=0"
            assert type(failure(Database(at_once))) is Transient

    @pytest.mark.parametrize(
        ("place", "expected"),
        [
            ("pk_partitions", Transient),
            ("pk_device_counts", Transient),
            ("pk_window_partials", ScoringError),
        ],
    )
    @pytest.mark.parametrize(
        "text",
        [
            "Violation of PRIMARY KEY constraint '{0}'. Cannot insert duplicate key in object"
            " 'dbo.x'. The duplicate key value is ({1}).",
            'Verletzung der PRIMARY KEY-Einschränkung "{0}". Ein doppelter Schlüssel kann in das'
            ' "dbo.x"-Objekt nicht eingefügt werden. Der doppelte Schlüsselwert ist ({1}).',
        ],
    )
    def test_a_duplicate_key_is_transient_only_where_first_writers_race(
        self, place: str, expected: Kind, text: str
    ) -> None:
        for device in ("d", "facts", "pk_facts", "pk_window_partials"):
            assert type(refused(2627, text.format(place, device))) is expected

    @pytest.mark.parametrize(
        "text",
        [
            "Cannot insert duplicate key row in object 'dbo.runs' with unique index"
            " 'ix_runs_request_key'. The duplicate key value is (pk_facts).",
            "Violation of UNIQUE KEY constraint 'UQ__runs__7D3D901B'. Cannot insert duplicate key"
            " in object 'dbo.runs'. The duplicate key value is (pk_facts).",
        ],
    )
    def test_a_duplicate_key_of_another_index_is_permanent(self, text: str) -> None:
        assert type(refused(2601, text)) is ScoringError

    def test_a_result_that_is_open_is_a_defect_and_not_transient(self) -> None:
        text = "[Microsoft][ODBC Driver 18 for SQL Server]Connection is busy with results for"
        error = odbc("HY000", f"{text} another command", 0)

        assert type(translated(error, "mssql")) is ScoringError

    @pytest.mark.parametrize(
        ("state", "expected"),
        [
            *((state, Transient) for state in ("HYT00", "HYT01", "08S01", "08001", "08003")),
            *((state, Misconfigured) for state in ("28000", "IM002", "IM003", "01000")),
            *((state, DataRefused) for state in ("22001", "22003", "23000")),
            *((state, ScoringError) for state in ("HY000", "42S02", "42000", "HY010")),
        ],
    )
    def test_a_state_decides_where_the_number_says_nothing(
        self, state: str, expected: Kind
    ) -> None:
        assert type(translated(odbc(state, "busy", 0), "mssql")) is expected

    @pytest.mark.parametrize("state", ["01000", "IM002", "IM003"])
    def test_a_driver_that_is_missing_is_told_apart_from_a_login(self, state: str) -> None:
        text = str(translated(odbc(state, "[unixODBC][Driver Manager] it is not there", 0)))

        assert "driver that the database names" in text
        assert "let us in" not in text


def odbc(state: str, text: str, number: int) -> Exception:
    """Make an error as pyodbc does: of the class that the state has, with number and function."""
    ODBC.require()
    pyodbc = pytest.importorskip("pyodbc")
    kinds = {
        "08": pyodbc.OperationalError,
        "28": pyodbc.InterfaceError,
        "IM": pyodbc.InterfaceError,
        "22": pyodbc.DataError,
        "23": pyodbc.IntegrityError,
        "42": pyodbc.ProgrammingError,
        "HYT00": pyodbc.OperationalError,
        "HYT01": pyodbc.OperationalError,
    }
    kind = kinds.get(state) or kinds.get(state[:2]) or pyodbc.Error
    made: Exception = kind(state, f"[{state}] {text} ({number}) (SQLExecDirectW)")
    return made


def translated(
    original: Exception, engine: str = "mssql", statement: str | None = "SELECT 1"
) -> ScoringError:
    """Translate what a driver raises when it executes a statement."""
    base = {"mssql": Exception, "postgresql": psycopg.Error, "sqlite": sqlite3.Error}[engine]
    with pytest.raises(ScoringError) as caught, translated_errors(engine):
        raise exc.DBAPIError.instance(statement, (), original, base)
    return caught.value


class TestPostgreSql:
    STATES = sorted(s for s in STATES if not re.match("HY|IM|01", s) and len(s) == 5)

    @pytest.mark.parametrize("state", STATES)
    def test_a_state_that_the_server_raises_means_what_the_table_says(
        self, postgresql_server: PostgreSql, state: str
    ) -> None:
        expected: dict[str, Kind] = {
            **dict.fromkeys(("53100", "25006", "58030", "XX001"), StorageUnusable),
            **dict.fromkeys(("3D000", "42501", "26000", "42P05"), Misconfigured),
            "23505": ScoringError,
        }

        error = raised(postgresql_server, state)

        assert type(error) is expected.get(state, Transient)

    @pytest.mark.parametrize("state", ["42703", "42P01", "54000", "55000", "P0001", "XX000"])
    def test_a_state_that_is_not_known_is_not_transient(
        self, postgresql_server: PostgreSql, state: str
    ) -> None:
        assert type(raised(postgresql_server, state)) is ScoringError

    def test_a_duplicate_key_is_matched_by_its_constraint_and_not_by_data(
        self, postgresql_server: PostgreSql
    ) -> None:
        database = Database(postgresql_server.url())
        for table, expected in (("facts", Transient), ("others", ScoringError)):
            insert = "INSERT INTO pg_temp.%s VALUES ('facts'), ('facts')"
            create = "CREATE TEMPORARY TABLE %s (name text CONSTRAINT pk_%s PRIMARY KEY)"
            with pytest.raises(ScoringError) as caught, database.write() as connection:
                connection.exec_driver_sql(create % (table, table))
                connection.exec_driver_sql(insert % table)
            assert type(caught.value) is expected
        database.close()

    def test_a_server_that_is_not_there_is_transient_and_a_wrong_name_a_setup_mistake(
        self, postgresql_server: PostgreSql
    ) -> None:
        assert type(failure(Database("postgresql://u@127.0.0.1:1/d"))) is Transient
        assert type(failure(Database(postgresql_server.url("nowhere")))) is Misconfigured

    def test_a_server_without_a_free_connection_is_transient_and_the_settings_are_named(
        self, postgresql_server: PostgreSql
    ) -> None:
        owner = Database(postgresql_server.url())
        with owner.write() as connection:
            connection.exec_driver_sql("CREATE ROLE lonely LOGIN CONNECTION LIMIT 1")
        url = (
            postgresql_server.url()
            .replace("://", "://lonely@", 1)
            .replace("lonely@postgres@", "lonely@")
        )
        first, second = Database(url), Database(url)
        try:
            with first.read() as connection:
                connection.exec_driver_sql("SELECT 1").close()
                refused = failure(second)
        finally:
            first.close()
            with owner.write() as connection:
                connection.exec_driver_sql("DROP ROLE lonely")
            owner.close()

        assert type(refused) is Transient
        assert "SCORING_DATABASE_POOL_SIZE and SCORING_DATABASE_MAX_OVERFLOW" in str(refused)
        assert "SCORING_DATABASE_POOL_SIZE" in str(raised(postgresql_server, "53300"))


def raised(server: PostgreSql, state: str) -> ScoringError:
    """Return the error of a statement that PostgreSQL ends with a state."""
    database = Database(server.url())
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'busy, locked' USING ERRCODE = '{state}'; END $$"
    with pytest.raises(ScoringError) as caught, database.write() as connection:
        connection.exec_driver_sql(raising)
    database.close()
    return caught.value


class TestSqlite:
    @pytest.mark.parametrize(
        ("statement", "expected"),
        [
            ("SELECT busy_column", "no such column"),
            ("SELECT 1 FROM locked", "no such table"),
            ("SELEC 1", "syntax error"),
        ],
    )
    def test_a_statement_that_is_wrong_is_not_transient(
        self, tmp_path: Path, statement: str, expected: str
    ) -> None:
        database = Database.file(tmp_path / "store.db")
        with (
            pytest.raises(ScoringError, match=expected) as caught,
            database.write() as connection,
        ):
            connection.exec_driver_sql(statement)
        database.close()

        assert type(caught.value) is ScoringError

    def test_a_duplicate_key_is_matched_by_its_table(self, tmp_path: Path) -> None:
        database = Database.file(tmp_path / "store.db")
        for table, expected in (("facts", Transient), ("others", ScoringError)):
            with pytest.raises(ScoringError) as caught, database.write() as connection:
                connection.exec_driver_sql(f"CREATE TABLE {table} (facts TEXT PRIMARY KEY)")
                connection.exec_driver_sql(f"INSERT INTO {table} VALUES ('facts'), ('facts')")  # noqa: S608
            assert type(caught.value) is expected
        database.close()


class TestPauses:
    @pytest.fixture
    def pauses(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
        """Note the pauses between attempts instead of making them."""
        found: list[float] = []

        def note(details: stamina.instrumentation.RetryDetails) -> None:
            found.append(details.wait_for)

        before = stamina.instrumentation.get_on_retry_hooks()
        stamina.instrumentation.set_on_retry_hooks([note])
        monkeypatch.setattr("time.sleep", lambda _: None)
        yield found
        stamina.instrumentation.set_on_retry_hooks(before)

    @pytest.mark.parametrize(("wait", "least", "most"), [(5.0, 5.0, 5.0), (0.0, 0.1, 0.4)])
    def test_only_an_error_that_asks_for_it_is_waited_for(
        self, pauses: list[float], wait: float, least: float, most: float
    ) -> None:
        attempts = []

        @retried
        def unit() -> None:
            attempts.append(1)
            if len(attempts) == 1:
                message = "away"
                raise Transient(message, wait=wait)

        unit()

        assert len(pauses) == 1
        assert least <= pauses[0] <= most
