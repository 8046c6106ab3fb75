"""Connections: how long they wait, that dead ones are replaced, and how they sign in."""

import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from azure.core.exceptions import AzureError, ClientAuthenticationError, ServiceRequestError
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from scoring.adapters.sql import engines
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.engines import Pool
from scoring.errors import Misconfigured, ScoringError, Transient
from tests.servers import PostgreSql, free_port, pgbouncer
from tests.services import ODBC, PGBOUNCER


@pytest.fixture
def on_postgresql(postgresql_server: PostgreSql) -> Iterator[Database]:
    database = Database(postgresql_server.url())
    yield database
    database.close()


def said(database: Database, statement: str) -> Any:
    with database.write() as connection:
        return connection.exec_driver_sql(statement).scalar()


class TestPostgreSql:
    def test_no_statement_waits_for_ever(self, on_postgresql: Database) -> None:
        assert said(on_postgresql, "SHOW lock_timeout") == "30s"
        assert said(on_postgresql, "SHOW statement_timeout") == "10min"

    def test_a_statement_that_takes_too_long_is_stopped_and_transient(
        self, postgresql_server: PostgreSql, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engines, "STATEMENT_TIMEOUT", 1)
        database = Database(postgresql_server.url())

        with pytest.raises(Transient, match="statement timeout"):
            said(database, "SELECT pg_sleep(60)")
        database.close()

    def test_a_connection_that_died_in_the_pool_is_replaced_unnoticed(
        self, on_postgresql: Database
    ) -> None:
        first = said(on_postgresql, "SELECT pg_backend_pid()")
        other = Database(on_postgresql.url)
        assert said(other, f"SELECT pg_terminate_backend({first}, 10000)")
        other.close()

        assert said(on_postgresql, "SELECT pg_backend_pid()") != first

    def test_a_connection_that_dies_in_a_transaction_is_transient(
        self, on_postgresql: Database
    ) -> None:
        with pytest.raises(Transient), on_postgresql.write() as connection:
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

        assert said(on_postgresql, "SELECT 1") == 1

    def test_a_peer_that_died_without_a_word_is_noticed(self, on_postgresql: Database) -> None:
        with on_postgresql.read() as connection:
            driver: Any = connection.connection.driver_connection
            chosen = driver.info.get_parameters()

        assert [chosen[f"keepalives_{name}"] for name in ("idle", "interval", "count")] == [
            *("60", "15", "4")
        ]


def mssql(*options: str) -> Database:
    """Open an SQL Server that nobody runs."""
    ODBC.require()
    server = f"Driver=none;Server=127.0.0.1,{free_port()};Database=d"
    return Database(";".join((server, *options)))


@pytest.fixture
def behind(
    postgresql_server: PostgreSql, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Return the URL of a database behind PgBouncer."""
    PGBOUNCER.require()
    with pgbouncer(postgresql_server, tmp_path_factory.mktemp("pgbouncer")) as url:
        yield url("postgres")


class TestBehindAPooler:
    def test_a_connection_is_not_refused_for_what_it_brings(self, behind: str) -> None:
        database = Database(behind)
        assert said(database, "SELECT 1") == 1
        assert said(database, "SHOW lock_timeout") == "30s"
        database.close()

    def test_one_statement_again_and_again_works_on_whatever_connection(self, behind: str) -> None:
        database = Database(behind, Pool(is_behind_pooler=True))
        assert list(self.prepared(behind, database)) == [*range(30)]
        database.close()

    def test_without_the_setting_a_statement_that_is_prepared_is_a_setup_mistake(
        self, behind: str
    ) -> None:
        database = Database(behind)
        with pytest.raises(Misconfigured, match="SCORING_DATABASE_POOLER"):
            list(self.prepared(behind, database))
        database.close()

    def prepared(self, behind: str, database: Database) -> Iterator[int]:
        """Run a statement that psycopg prepares at its sixth time, on either of two connections.

        The pooler connects twice for two transactions at a time, and alternates from then on; the
        pool's own question whether a connection lives takes every second turn.
        """
        with psycopg.connect(behind) as one, psycopg.connect(behind) as other:
            one.execute("SELECT 1")
            other.execute("SELECT 1")
        with psycopg.connect(behind, autocommit=True, prepare_threshold=None) as spare:
            for number in range(30):
                if number % 3 == 0:
                    spare.execute("SELECT 1")
                with database.write() as connection:
                    found = connection.exec_driver_sql("SELECT %s::int", (number,)).scalar()
                assert found is not None
                yield found

    def test_limits_hold_in_every_transaction_and_stay_with_it(
        self, behind: str, postgresql_server: PostgreSql
    ) -> None:
        database = Database(behind, Pool(is_behind_pooler=True))
        for _ in range(5):
            assert said(database, "SHOW statement_timeout") == "10min"
            with database.read() as connection:
                assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "30s"
        bare = psycopg.connect(behind, autocommit=True, prepare_threshold=None)
        for _ in range(5):
            row = bare.execute("SHOW statement_timeout").fetchone()
            assert row == ("0",)
        bare.close()
        database.close()

    def test_a_parameter_that_the_pooler_refuses_is_a_setup_mistake(self, behind: str) -> None:
        database = Database(behind + "?options=-c%20lock_timeout%3D1s")
        with pytest.raises(Misconfigured, match="unsupported startup parameter"):
            said(database, "SELECT 1")
        database.close()


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1/none", "mssql"])
def test_connections_are_few_not_old_and_held_against_dead_ones(url: str) -> None:
    database = mssql("UID=u") if url == "mssql" else Database(url)
    pool: Any = database.engine.pool

    assert isinstance(pool, QueuePool)
    assert (pool.size(), pool._max_overflow, pool._timeout) == (2, 2, 30)
    assert pool._pre_ping
    assert pool._recycle < 30 * 60


def test_the_driver_managers_own_pool_is_off() -> None:
    database = mssql("UID=u")

    assert database.engine.dialect.dbapi is not None
    assert database.engine.dialect.dbapi.pooling is False


class Identity:
    """Stands for Azure's; gives another token each time, or fails."""

    def __init__(self) -> None:
        self.made = 0
        self.scopes: list[str] = []
        self.failure: Exception | None = None

    def get_token(self, scope: str) -> SimpleNamespace:
        self.scopes.append(scope)
        if self.failure:
            raise self.failure
        return SimpleNamespace(token=f"token {len(self.scopes)}")


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Identity:
    one = Identity()

    def make() -> Identity:
        one.made += 1
        return one

    monkeypatch.setattr("azure.identity.DefaultAzureCredential", make)
    return one


def attempted(database: Database, times: int) -> list[dict[str, Any]]:
    """Connect so often, and give what the driver would have been told of each time."""
    told: list[dict[str, Any]] = []

    def note(_: Any, __: Any, ___: Any, parameters: dict[str, Any]) -> None:
        told.append(dict(parameters))

    event.listen(database.engine, "do_connect", note)
    for _ in range(times):
        with pytest.raises(ScoringError):
            said(database, "SELECT 1")
    return told


class TestSigningIn:
    def test_every_new_connection_has_a_token_of_its_own_by_one_credential(
        self, identity: Identity
    ) -> None:
        told = attempted(mssql(), 2)

        packed = [connection["attrs_before"][1256] for connection in told]
        assert packed == [
            struct.pack("<I", 14) + text.encode("utf-16-le") for text in ("token 1", "token 2")
        ]
        assert identity.scopes == ["https://database.windows.net/.default"] * 2
        assert identity.made == 1

    @pytest.mark.parametrize(
        "option", ["UID=u", "Authentication=ActiveDirectoryMsi", "Trusted_Connection=yes"]
    )
    def test_a_string_that_says_how_to_sign_in_needs_no_token(
        self, identity: Identity, option: str
    ) -> None:
        (told,) = attempted(mssql(option), 1)

        assert "attrs_before" not in told
        assert identity.made == 0

    @pytest.mark.parametrize(
        ("failure", "meant"),
        [
            (ClientAuthenticationError("no managed identity\nand more"), Misconfigured),
            (ServiceRequestError("no route"), Transient),
        ],
    )
    def test_a_token_that_cannot_be_had_is_told_in_our_words(
        self, identity: Identity, failure: AzureError, meant: Callable[..., ScoringError]
    ) -> None:
        identity.failure = failure
        database = mssql()

        with pytest.raises(ScoringError, match="database") as caught:
            said(database, "SELECT 1")

        assert caught.type is meant
        assert caught.value.__cause__ is failure
        assert "and more" not in str(caught.value)
