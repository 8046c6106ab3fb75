"""Transactions that fail for a moment: done again at once, and counted once, on each engine."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import numpy as np
import psycopg
import pytest
import stamina
from sqlalchemy import insert, update

from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.runs import SqlRunStore
from scoring.adapters.sql.schema import facts
from scoring.errors import Transient
from scoring.handlers.hub import HubProgress
from scoring.handlers.ingest import Ingest
from scoring.handlers.repair import ReplayRejects
from scoring.handlers.submit import SubmitRun
from scoring.horizon import HorizonRules
from scoring.instants import moment
from scoring.ports import Blobs
from scoring.readings import EventBatch, FieldNames, ReadingDecoder
from scoring.retrying import ATTEMPTS, retried
from scoring.runs import Part, RunState, ScoringRun
from scoring.windows import Windowing
from tests.adapters.stores import (
    MINUTE,
    NOW,
    P0,
    begun,
    claimed,
    contents,
    partials,
    predictions,
    proposed,
    save,
)
from tests.fakes.engine import NoEngine
from tests.fakes.event_log import no_hub

WINDOWING = Windowing(MINUTE, MINUTE, MINUTE)


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Try again at once, as often as ever."""
    with stamina.set_testing(True, attempts=ATTEMPTS):
        yield


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return FolderBlobs(tmp_path / "blobs")


@pytest.fixture
def ingest(database: Database, blobs: Blobs) -> Ingest:
    return Ingest(SqlIngestStore(database), blobs, ReadingDecoder(), WINDOWING)


@pytest.fixture
def failing(database: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Have commits fail, so often, before or after they were carried out; gives the attempts."""

    def fail(times: int, *, carried_out: bool = False) -> list[str]:
        dialect = database.engine.dialect
        original, commits = dialect.do_commit, list[str]()

        def commit(connection: Any) -> None:
            commits.append("commit")
            failed = len(commits) <= times
            if carried_out or not failed:
                original(connection)
            if failed:
                raise lost(dialect.name)

        monkeypatch.setattr(dialect, "do_commit", commit)
        return commits

    return fail


def lost(engine: str) -> Exception:
    """Make the error of a commit whose outcome is not known, as the driver of an engine does."""
    message = "the connection was lost"
    if engine == "postgresql":
        return psycopg.errors.AdminShutdown(message)
    if engine == "mssql":
        pyodbc = pytest.importorskip("pyodbc")
        text = f"[08S01] {message} (10054) (SQLEndTran)"
        made: Exception = pyodbc.OperationalError("08S01", text)
        return made
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


def batch(first: int, last: int, body: bytes | None = None) -> EventBatch:

    numbers = np.arange(first, last + 1)
    bodies = [
        body or b'{"device":"d","sensor":"s","ts":%d,"value":%d.5}' % (n * 1000, n)
        for n in numbers.tolist()
    ]
    return EventBatch(P0, numbers, numbers * 1_000_000, bodies)


class TestIngest:
    def test_an_event_batch_whose_transaction_fails_is_applied_all_the_same(
        self, ingest: Ingest, failing: Callable[..., list[str]]
    ) -> None:
        commits = failing(2)

        outcome = ingest(batch(0, 9))

        assert len(commits) == 3
        assert (outcome.events, outcome.duplicates, outcome.readings) == (10, 0, 10)

    def test_an_event_batch_whose_answer_is_lost_counts_once(
        self,
        ingest: Ingest,
        failing: Callable[..., list[str]],
        database: Database,
        blobs: Blobs,
    ) -> None:
        failing(1, carried_out=True)

        ingest(batch(0, 9))

        rows = contents(database)
        assert sum(row[4] for row in rows["window_partials"]) == 10
        assert len(rows["segments"]) == len(list(blobs.list("raw/"))) == 1

    def test_a_database_that_stays_away_is_transient_and_nothing_happened(
        self, ingest: Ingest, failing: Callable[..., list[str]], database: Database
    ) -> None:
        before, commits = contents(database), failing(1000)

        with pytest.raises(Transient):
            ingest(batch(0, 9))

        assert len(commits) == ATTEMPTS
        assert contents(database) == before

    def test_a_segment_that_was_written_before_is_used_and_never_written_over(
        self, ingest: Ingest, failing: Callable[..., list[str]], blobs: Blobs
    ) -> None:
        with pytest.raises(Transient):
            failing(ATTEMPTS)
            ingest(batch(0, 9))
        before = list(blobs.list("raw/"))

        ingest(batch(0, 9))

        assert list(blobs.list("raw/")) == before


class TestReplay:
    @pytest.mark.parametrize("carried_out", [True, False])
    def test_rejects_are_replayed_once_whatever_fails(
        self,
        ingest: Ingest,
        database: Database,
        failing: Callable[..., list[str]],
        *,
        carried_out: bool,
    ) -> None:
        ingest(batch(0, 9, b'{"id":"d","sensor":"s","ts":1000,"value":1.5}'))
        today = Ingest(
            ingest.store, ingest.blobs, ReadingDecoder(FieldNames(device="id")), WINDOWING
        )
        failing(1, carried_out=carried_out)

        ReplayRejects(today.store, today)()

        rows = contents(database)
        assert sum(row[4] for row in rows["window_partials"]) == 10
        assert ReplayRejects(today.store, today)() == (0, 0)


class LosingRunStore(SqlRunStore):
    """A store that is asked twice: the answer to the first time was lost."""

    def record_export(self, run: ScoringRun, export: str, parts: list[Part]) -> bool:
        super().record_export(run, export, parts)
        return super().record_export(run, export, parts)


def submitter(store: SqlRunStore, database: Database, blobs: Blobs) -> SubmitRun:
    """Make a submit handler of a store that no hub feeds."""
    hub = HubProgress(SqlIngestStore(database), no_hub(), HorizonRules(MINUTE))
    return SubmitRun(store, blobs, NoEngine(), hub, MINUTE, part_rows=10)


def test_an_export_that_is_recorded_twice_keeps_its_parts(database: Database, blobs: Blobs) -> None:
    save(database, partials=partials({("d", "s", 0): [1.0]}))
    run, store = claimed(database), LosingRunStore(database)
    submit = submitter(store, database, blobs)

    run = submit.advance(run, moment(NOW), "e1")

    assert run.state == RunState.SUBMITTED
    assert [blob.name for blob in blobs.list(run.input_prefix)] == [
        f"{run.input_prefix}part-00000.parquet"
    ]


def test_the_parts_of_an_export_that_lost_are_removed(database: Database, blobs: Blobs) -> None:
    save(database, partials=partials({("d", "s", 0): [1.0]}))
    run = claimed(database)
    submit = submitter(SqlRunStore(database), database, blobs)
    assert SqlRunStore(database).record_export(run, "theirs", [Part(0, 1)])

    run = submit.advance(run, moment(NOW), "ours")

    assert run.export == "theirs"
    assert list(blobs.list("runs/")) == []


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_two_that_meet_in_a_deadlock_both_come_through(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(facts), [{"name": n, "value": ""} for n in ("a", "b")])
    both_have_one, attempts, one_is_through = Barrier(2), list[str](), Event()

    @retried
    def touch(first: str, second: str) -> None:
        attempts.append(first)
        if len(attempts) > 2:
            # Earlier, it could take its row again before the other one wakes up, and meet it again.
            one_is_through.wait()
        with database.write() as connection:
            for name in (first, second):
                statement = update(facts).where(facts.c.name == name)
                connection.execute(statement.values(value=facts.c.value + first))
                if len(attempts) <= 2 and name == first:
                    both_have_one.wait()
        one_is_through.set()

    threads = [Thread(target=touch, args=pair) for pair in ("ab", "ba")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(attempts) == 3
    values = {row[0]: sorted(row[1]) for row in contents(database)["facts"]}
    assert (values["a"], values["b"]) == (["a", "b"], ["a", "b"])


@pytest.mark.parametrize("carried_out", [True, False])
class TestRuns:
    """Every step of a run is repeated where its commit fails, carried out or not."""

    @pytest.fixture
    def store(self, database: Database) -> SqlRunStore:
        save(database, partials=partials({("d", "s", 0): [1.0]}))
        return SqlRunStore(database)

    def test_a_run_is_recorded_once(
        self, store: SqlRunStore, failing: Callable[..., list[str]], *, carried_out: bool
    ) -> None:
        failing(1, carried_out=carried_out)

        run = store.begin_run(proposed())

        assert run is not None
        assert [one.run_id for one in store.active_runs()] == [run.run_id] == ["r1"]

    def test_a_run_goes_from_its_claim_to_its_end(
        self,
        database: Database,
        store: SqlRunStore,
        failing: Callable[..., list[str]],
        *,
        carried_out: bool,
    ) -> None:
        run = begun(database)
        failing(1, carried_out=carried_out)
        while store.claim(run, 100):
            pass
        assert store.count_claimed(run) == 1

        failing(1, carried_out=carried_out)
        store.transition(run, RunState.CLAIMED, NOW)
        failing(1, carried_out=carried_out)
        store.record_export(run, "e1", [Part(0, 1)])
        assert store.run("r1").export == "e1"

        store.transition(run, RunState.SUBMITTED, NOW)
        failing(1, carried_out=carried_out)
        store.index_part(store.run("r1"), 0, "tag", predictions(("d", "s", 0, 1.0)))
        assert [part.indexed_rows for part in store.parts(run)] == [1]

        store.transition(run, RunState.FAILING, NOW)
        failing(1, carried_out=carried_out)
        store.finish(run, 100, NOW)
        assert store.count_claimed(run) == 0
        assert store.run("r1").state == RunState.FAILED
