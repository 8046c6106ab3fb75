"""SQL Server's settings of isolation: who turns them on, and what a process says without them."""

import logging
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import event

from scoring.adapters.sql import isolation
from scoring.adapters.sql.database import SETTINGS, Database
from scoring.adapters.sql.isolation import TURN_ON, Isolation
from tests.services import ODBC


@dataclass
class Server:
    """Stands for SQL Server: it has the two settings, and notes what it is told."""

    read_committed: bool = False
    snapshot: int = 0
    refusal: Exception | None = None
    told: list[tuple[str, bool]] = field(default_factory=list)
    """Statements, each with whether it was outside a transaction."""
    open: int = 0

    def connect(self, *_: object) -> "Session":
        self.open += 1
        return Session(self)


class Session:
    """A driver connection of a `Server`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.autocommit = False
        self.timeout = 0

    def cursor(self) -> "Cursor":
        return Cursor(self)

    def add_output_converter(self, *_: object) -> None:
        pass

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        self.server.open -= 1


class Cursor:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows: list[tuple[Any, ...]] = []
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1

    def __enter__(self) -> "Cursor":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: str, *_: object) -> None:
        server = self._session.server
        server.told.append((statement, self._session.autocommit))
        if statement == SETTINGS:
            self.description = [(name, int, None, None, None, None, None) for name in "ab"]
            self._rows = [(server.read_committed, server.snapshot)]
        elif statement in TURN_ON:
            assert server.open == 1, "it has to be the only connection"
            if server.refusal:
                raise server.refusal
            if statement == TURN_ON[0]:
                server.snapshot = 1
            else:
                server.read_committed = True

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._rows.pop(0) if self._rows else None

    def fetchall(self) -> list[tuple[Any, ...]]:
        rows, self._rows = self._rows, []
        return rows

    def close(self) -> None:
        pass


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def on_mssql(server: Server, monkeypatch: pytest.MonkeyPatch) -> Database:
    ODBC.require()
    made = Database("Driver=none;Server=127.0.0.1;UID=u")
    monkeypatch.setattr(made.engine.dialect, "initialize", lambda _: None)
    monkeypatch.setattr(
        made.engine.dialect, "default_isolation_level", "READ COMMITTED", raising=False
    )
    event.listen(made.engine, "do_connect", server.connect)
    return made


def levels(server: Server) -> list[str]:
    return [one for one, _ in server.told if one.startswith("SET TRANSACTION ISOLATION LEVEL")]


def test_migrate_turns_both_on_outside_a_transaction_as_the_only_connection(
    server: Server, on_mssql: Database
) -> None:
    assert isolation.turn_on(on_mssql) == []

    assert (server.read_committed, server.snapshot) == (True, 1)
    assert [one for one in server.told if one[0] in TURN_ON] == [(one, True) for one in TURN_ON]
    assert TURN_ON[1].endswith("WITH NO_WAIT")


def test_what_is_on_already_is_left_alone(server: Server, on_mssql: Database) -> None:
    server.read_committed, server.snapshot = True, 1

    assert isolation.turn_on(on_mssql) == []

    assert not [one for one, _ in server.told if one in TURN_ON]


def test_a_refusal_is_a_warning(server: Server, on_mssql: Database) -> None:
    assert on_mssql.engine.dialect.dbapi is not None
    text = "[42000] ALTER DATABASE failed because a lock could not be had (5061) (SQLExecDirectW)"
    server.refusal = on_mssql.engine.dialect.dbapi.ProgrammingError("42000", text)

    warnings = isolation.turn_on(on_mssql)

    assert [warning.partition(":")[0] for warning in warnings] == list(TURN_ON)
    assert all("(5061)" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("read_committed", "snapshot", "named"),
    [
        (True, 1, []),
        (False, 1, ["READ_COMMITTED_SNAPSHOT"]),
        (True, 0, ["ALLOW_SNAPSHOT_ISOLATION"]),
        (True, 3, ["ALLOW_SNAPSHOT_ISOLATION"]),
        (False, 0, ["READ_COMMITTED_SNAPSHOT", "ALLOW_SNAPSHOT_ISOLATION"]),
    ],
)
def test_a_process_that_starts_only_says_what_follows(  # noqa: PLR0913, PLR0917
    server: Server,
    on_mssql: Database,
    caplog: pytest.LogCaptureFixture,
    read_committed: bool,
    snapshot: int,
    named: list[str],
) -> None:
    server.read_committed, server.snapshot = read_committed, snapshot

    with caplog.at_level(logging.WARNING):
        isolation.check(on_mssql)

    causes = [str(vars(record)["cause"]) for record in caplog.records]
    assert [cause.partition(" ")[0] for cause in causes] == named
    assert {record.message for record in caplog.records} <= {"database.isolation_off"}
    assert not [one for one, _ in server.told if one in TURN_ON]


def test_a_read_sees_one_state_where_snapshots_are_allowed(
    server: Server, on_mssql: Database
) -> None:
    with on_mssql.read() as connection:
        connection.exec_driver_sql("SELECT 2")
    assert not [one for one in levels(server) if "SNAPSHOT" in one]

    isolation.turn_on(on_mssql)
    server.told.clear()
    with on_mssql.read() as connection:
        connection.exec_driver_sql("SELECT 2")

    statements = [one for one, _ in server.told]
    assert statements.index("SET TRANSACTION ISOLATION LEVEL SNAPSHOT") < statements.index(
        "SELECT 2"
    )
    # The connection goes back as it came: a write is none of a snapshot.
    assert levels(server)[-1] == "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"


def test_other_engines_have_no_such_settings(database: Database) -> None:
    if database.engine.dialect.name == "mssql":
        pytest.skip("an SQL Server has them")

    assert isolation.check(database) == Isolation()
    assert isolation.turn_on(database) == []
