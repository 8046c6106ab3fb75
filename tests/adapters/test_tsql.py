"""Every T-SQL text that the project can send is read by Microsoft's own parser."""

import json
import subprocess
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import ClauseElement, Connection, event
from sqlalchemy.dialects import mssql
from sqlalchemy.schema import CreateIndex, CreateTable

from scoring.adapters.sql import bulk, counts, paging
from scoring.adapters.sql.bulk.mssql import insertion, statements
from scoring.adapters.sql.database import SETTINGS, Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.isolation import TURN_ON
from scoring.adapters.sql.migrations import BEGIN_MSSQL, LOCK_MSSQL
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.sql.rebuild import SqlRebuildStore
from scoring.adapters.sql.runs import SqlRunStore
from scoring.adapters.sql.schema import metadata
from scoring.ledger import Epoch, HubAnswer
from scoring.ports import FileNote, Gap, Segment
from scoring.queries import AnomalyFilter
from scoring.runs import Part, RequestKey, RunState
from scoring.suspects import Suspect
from tests.adapters.stores import (
    NO_PARTIALS,
    NOW,
    P0,
    change,
    partials,
    predictions,
    proposed,
    reject,
)
from tests.adapters.test_mssql import INSERTED, SCRIPTS, UPSERTS, text_of
from tests.services import TSQLCHECK, tsqlcheck_program

DIALECT = mssql.dialect(paramstyle="qmark")  # type: ignore[no-untyped-call]
STORES = (SqlIngestStore, SqlRunStore, SqlRebuildStore, SqlQueries)
ANSWER = HubAnswer(5, 0, 9, 70)
EPOCH = Epoch(0, 0, 9, 0, 9, ((2, 3),), created=5)


@pytest.fixture
def executed(
    migrated_sqlite: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[Database, list[tuple[ClauseElement, list[str]]]]:
    """Return a database and the statements that it is given; pages are those of SQL Server."""
    path = tmp_path / "store.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    database, found = Database.file(path), list[tuple[ClauseElement, list[str]]]()

    def note(_: Connection, clause: Any, many: Any, one: Any, __: object) -> None:
        rows = [*many, one] if isinstance(many, (list, tuple)) else [one]
        keys = sorted({key for row in rows if isinstance(row, dict) for key in row})
        found.append((clause, keys))

    def of_mssql(name: str) -> None:
        original = getattr(paging, name)

        def page(connection: Connection, *arguments: Any) -> Any:
            dialect = SimpleNamespace(name="mssql")
            like = SimpleNamespace(dialect=dialect, execute=connection.execute)
            return original(like, *arguments)

        monkeypatch.setattr(paging, name, page)

    of_mssql("after")
    of_mssql("values")
    event.listen(database.engine, "before_execute", note)
    return database, found


class Calls:
    """Calls methods of a store, and knows which."""

    def __init__(self, store: Any, called: set[str]) -> None:
        self._store, self._called = store, called

    def __getattr__(self, name: str) -> Any:
        self._called.add(f"{type(self._store).__name__}.{name}")
        return getattr(self._store, name)


def play(database: Database) -> set[str]:
    """Call every method of every store with arguments that reach each statement; return names."""
    called: set[str] = set()
    ingest, runs, rebuild, queries = (Calls(store(database), called) for store in STORES)
    play_ingest(ingest)
    play_runs(runs)
    play_queries(queries)
    play_rebuild(rebuild)
    return called


def play_ingest(store: Any) -> None:
    segments = [Segment(0, 0, 9, "raw/0", 1, 0)]
    with store.transaction(P0) as transaction:
        transaction.admit([EPOCH], ANSWER)
        filled = replace(EPOCH, gaps=((3, 3),))
        windows = partials({("d", "s", 0): [1.0]})
        transaction.save(
            change(epochs=(filled,), partials=windows, rejects=[reject(1)], segments=segments)
        )
        transaction.rejects((0, 0, 0), 10, 9)
        transaction.save(change(replayed=[(0, 1, 0)], readings=1))
        transaction.answer  # noqa: B018
    store.states()
    store.observe({P0: ANSWER}, 100)
    store.observe({P0: None}, 101)
    store.partitions(), store.applied("hub"), store.files(), store.gaps("open")
    store.mark_lost(Gap(P0, 0, 3, 3, "open"))
    for size in (1, 2):
        store.note_file("file", FileNote(size, "digest", "keying"))
    store.end_partition(P0)


def play_runs(store: Any) -> None:
    given: dict[str, Any] = {"first_start": 0, "devices": ("d",), "enqueued_until": None}
    run = store.begin_run(replace(proposed(), request=RequestKey("k", "d"), **given))
    store.begin_run(replace(proposed("r2"), rescore=True, enqueued_until=NOW))
    store.claim(run, 1), store.claim(run, 1), store.count_claimed(run)
    list(store.claimed(run))
    store.transition(run, RunState.CLAIMED, NOW)
    store.record_export(run, "e1", [Part(0, 1), Part(1, 1)])
    store.open_job(run)
    store.transition(run, RunState.SUBMITTED, NOW)
    run = store.run("r1")
    store.lose_job(run, NOW), store.note(run, RunState.SUBMITTED, "x")
    store.note_engine(run, "Running", "link")
    for tag in ("a", "b"):
        store.index_part(run, 0, tag, predictions(("d", "s", 0, 1.0)))
    store.fail_parts(run, {1: "cause"})
    store.parts(run), store.part(run, 0), store.active_runs(), store.open_jobs()
    store.save_suspects([Suspect("d", "s", "f1", 1, 1, 1, 1, "cause")])
    store.suspects(), store.unanswered(run), store.forget_trials(run), store.clear_suspects(run)
    store.transition(run, RunState.SCORED, NOW)
    store.finish(run, 1, NOW), store.finish(run, 1, NOW)
    store.close_job(run)


def play_queries(store: Any) -> None:
    store.status(), store.partitions(5, "a"), store.gaps("a", "z"), store.open_gaps("a", "z", 5)
    store.backlog(5), store.rejects("not_json", 5, ("a", 0, 0, 0))
    store.runs(5, 9), store.run("r1")
    which = AnomalyFilter(device="d", sensor="s", run_id="r1", since=0, until=9)
    store.anomalies(AnomalyFilter(), 5), store.anomalies(which, 5, (0, "a", "b"))
    for run_id in (None, "r1"):
        for by_sensor in (False, True):
            store.counts(run_id, by_sensor=by_sensor, limit=5)
    store.anomalous_sensors("r1", 5), store.run_sensors("r1", 5, ("a", "b")), store.count_scored(0)
    store.windows("d", "s", 0, 9, 5), store.devices(5), store.devices(5, "a")
    store.anomalous_devices(5), store.anomalous_devices(5, (9, "a"))
    store.device_sensors("d", 5), store.device_sensors("d", 5, "a"), store.sensors()
    list(store.history(NOW))


def play_rebuild(store: Any) -> None:
    store.wait_for_writers()
    store.begin(1000)
    while store.clear(1):
        pass
    store.pending(5), store.count()
    store.fill(P0, 1000, [Segment(0, 0, 9, "raw/0", 1, 0)], NO_PARTIALS)
    store.end()


def compiled(clause: ClauseElement, keys: list[str]) -> str:
    options = {"render_postcompile": True}
    made = clause.compile(dialect=DIALECT, column_keys=keys or None, compile_kwargs=options)
    return str(made)


def errors(texts: list[str], *options: str) -> dict[str, Any]:
    """Return what the parser finds wrong, by text."""
    TSQLCHECK.require()
    given = json.dumps([{"name": one, "sql": one} for one in texts])
    command = [str(tsqlcheck_program()), "--json", *options]
    said = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    return {one["name"]: one["errors"] for one in json.loads(said.stdout) if one["errors"]}


@pytest.mark.parametrize("options", [("--level", "150"), ("--level", "160"), ("--azure",)])
def test_every_text_is_t_sql(
    executed: tuple[Database, list[tuple[ClauseElement, list[str]]]], options: tuple[str, ...]
) -> None:
    TSQLCHECK.require()
    database, clauses = executed
    called = play(database)
    database.close()
    public = {
        f"{store.__name__}.{name}"
        for store in STORES
        for name in dir(store)
        if not name.startswith("_")
    }
    assert called == public

    texts = [BEGIN_MSSQL, LOCK_MSSQL, SETTINGS, *TURN_ON, f"SET LOCK_TIMEOUT {30_000}"]
    texts += text_of(script.module.upgrade for script in reversed(SCRIPTS)).split(";\n\n")
    texts += text_of(script.module.downgrade for script in SCRIPTS).split(";\n\n")
    for table in metadata.sorted_tables:
        texts += [str(CreateTable(table).compile(dialect=DIALECT))]
        texts += [str(CreateIndex(index).compile(dialect=DIALECT)) for index in table.indexes]
    upserts = [*UPSERTS, bulk.ABSENCE, bulk.LOOK, bulk.REPLAYED]
    texts += [text for upsert in upserts for text in statements(upsert)]
    texts += [insertion(table) for table in INSERTED]
    texts += [str(counts.LOOK_UP["mssql"].compile(dialect=DIALECT))]
    texts += {compiled(*one) for one in clauses if one[0] is not counts.LOOK_UP["sqlite"]}

    assert len(texts) > 200
    assert errors(texts, *options) == {}


def test_a_text_that_is_not_t_sql_is_found() -> None:
    assert errors(["SELECT 1", "SELECT 1 LIMIT 1"]).keys() == {"SELECT 1 LIMIT 1"}
