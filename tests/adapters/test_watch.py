"""The look at all active runs: one that fails keeps nobody from the others."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from scoring import instants
from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.sql.runs import SqlRunStore
from scoring.bootstrap import App
from scoring.errors import Misconfigured, ScoringError, StorageUnusable, TooManyRuns, Transient
from scoring.fleet import Model, Training, train_model
from scoring.handlers.ending import INPUT_GONE, UNKNOWN
from scoring.ports import BlobInfo, EngineReport, EngineState, LogTail, ScoringOrder
from scoring.predictions import INPUT_SCHEMA, read_table, write_table
from scoring.runs import RunState, ScoringRun, part_name
from scoring.settings import Settings
from scoring.suspects import Suspect
from tests.adapters.stores import P0, partials, predictions, save

BEGIN = 1_577_836_800 * instants.SECOND
LATER = BEGIN + 86_400 * instants.SECOND
NOW = instants.moment(BEGIN + 10**12)


@dataclass
class ScriptedEngine:
    """Says of each run what it was told to: a report, or an error."""

    said: dict[str, EngineReport | Exception] = field(default_factory=dict)
    polled: list[str] = field(default_factory=list)

    def submit(self, order: ScoringOrder) -> None:
        self.said[order.run_id] = EngineReport(EngineState.RUNNING)

    def poll(self, run_id: str) -> EngineReport | None:
        self.polled.append(run_id)
        said = self.said[run_id]
        if isinstance(said, Exception):
            raise said
        return said

    def cancel(self, run_id: str) -> None:
        """Nothing to stop."""

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def app(tmp_path: Path, engine: ScriptedEngine) -> Iterator[App]:
    given = {
        "SCORING_DATA": str(tmp_path / "data"),
        "SCORING_WINDOW": "1min",
        "SCORING_MAX_ACTIVE_RUNS": "3",
    }
    with App(Settings.load(given)) as app:
        app.__dict__["engine"] = engine
        model = train_model(np.random.default_rng(1).normal(3, 2, (40, 1)), Training())
        app.shelf.publish([Model("d1", "s1", model)], ("mean",), instants.moment(BEGIN))
        yield app


@pytest.fixture
def runs(app: App) -> list[str]:
    """Submit three runs, oldest first."""
    found = []
    for number in range(3):
        rows = {(f"d{number}", "s1", BEGIN): [1.0]}
        save(app.database, P0, partials=partials(rows), watermark=LATER, last_enqueued=BEGIN)
        now = NOW + timedelta(seconds=number)
        run = app.submit("timer", app.shelf.current(), now, f"00000{number}")
        assert run is not None
        found.append(run.run_id)
    return found


def keys_of(table: pa.Table) -> list[list[Any]]:
    columns = [table[name] for name in ("device", "sensor", "window_start")]
    return [
        column.cast("int64" if number == 2 else "string").to_pylist()
        for number, column in enumerate(columns)
    ]


def states(app: App) -> list[str]:
    return [run.state.value for run in reversed(app.queries.runs(10))]


@pytest.mark.parametrize(
    "error", [Transient("no route"), Misconfigured(["key"]), KeyError("a"), RuntimeError("b")]
)
def test_a_run_that_fails_keeps_nobody_from_those_after_it(
    app: App, engine: ScriptedEngine, runs: list[str], error: Exception
) -> None:
    engine.said[runs[0]] = error

    with pytest.raises(type(error)) as raised:
        app.watch(NOW, "000000")

    assert raised.value is error
    assert engine.polled == runs
    assert states(app) == ["submitted", "running", "running"]


def test_blobs_of_one_run_that_cannot_be_listed_keep_nobody_from_the_others(
    app: App, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = FolderBlobs.list

    def faulty(self: FolderBlobs, prefix: str) -> Iterator[BlobInfo]:
        if runs[1] in prefix:
            message = "the container does not answer"
            raise Transient(message)
        return listed(self, prefix)

    monkeypatch.setattr(FolderBlobs, "list", faulty)

    with pytest.raises(Transient, match="does not answer"):
        app.watch(NOW, "000000")

    assert states(app) == ["running", "submitted", "running"]


def test_of_several_failures_the_first_is_raised_and_each_is_logged_with_its_cause(
    app: App, engine: ScriptedEngine, runs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    engine.said |= {runs[0]: Transient("no route"), runs[2]: KeyError("secret of a statement")}

    with pytest.raises(Transient, match="no route"), caplog.at_level(logging.WARNING):
        app.watch(NOW, "000000")

    said = [record for record in caplog.records if record.getMessage() == "watch.run_failed"]
    assert [(vars(one)["run"], vars(one)["cause"], bool(one.exc_info)) for one in said] == [
        (runs[0], "no route", False),
        (runs[2], "KeyError", True),
    ]


def test_the_next_look_goes_on_where_a_failure_stopped_this_one(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    engine.said[runs[0]] = Transient("no route")
    with pytest.raises(ScoringError):
        app.watch(NOW, "000000")
    engine.said[runs[0]] = EngineReport(EngineState.FAILED, "out of memory")

    app.watch(NOW, "000000")

    assert states(app) == ["failed", "running", "running"]


def test_what_was_looked_at_is_told_also_where_another_run_fails(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    engine.said[runs[1]] = Transient("no route")
    told: list[tuple[str, RunState]] = []

    with pytest.raises(Transient):
        app.watch(NOW, "000000", lambda run: told.append((run.run_id, run.state)))

    assert told == [(runs[0], RunState.RUNNING), (runs[2], RunState.RUNNING)]


def test_a_process_that_is_stopped_looks_at_nothing_more(
    app: App, engine: ScriptedEngine, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: ScriptedEngine, run_id: str) -> None:
        engine.polled.append(run_id)
        raise KeyboardInterrupt

    monkeypatch.setattr(ScriptedEngine, "poll", stopped)

    with pytest.raises(KeyboardInterrupt):
        app.watch(NOW, "000000")

    assert engine.polled == runs[:1]


def test_what_the_engine_says_of_a_run_is_shown_with_it(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    engine.said[runs[0]] = EngineReport(
        EngineState.QUEUED, status="Preparing", link="https://studio/r"
    )

    app.watch(NOW, "000000")

    shown = app.queries.run(runs[0])
    assert (shown.state, shown.engine_status) == (RunState.SUBMITTED, "Preparing")
    assert shown.link == "https://studio/r"


def test_a_run_that_failed_keeps_its_cause_and_its_logs(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    logs = (
        LogTail("child/user_logs/std_log_0.txt", "Traceback\nMemoryError\n"),
        LogTail("../odd//näme/..", "kept all the same"),
    )
    engine.said[runs[1]] = EngineReport(
        EngineState.FAILED, "score: out of memory", status="Failed", logs=logs
    )

    app.watch(NOW, "000000")
    app.watch(NOW, "000000")

    assert app.queries.run(runs[1]).cause == "score: out of memory"
    names = app.logs.names(runs[1])
    assert names == ["_/odd/_/n_me/_", "child/user_logs/std_log_0.txt"]
    assert [app.logs.read(runs[1], name) for name in names] == [logs[1].text, logs[0].text]
    assert app.logs.names(runs[0]) == []


def test_a_run_that_cannot_be_submitted_says_why_until_it_is(
    app: App, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: ScriptedEngine, __: ScoringOrder) -> None:
        raise Misconfigured(["no pipeline is published"])

    save(
        app.database,
        P0,
        partials=partials({("d", "s1", BEGIN): [1.0]}),
        watermark=LATER,
        last_enqueued=BEGIN,
    )
    with monkeypatch.context() as patch, pytest.raises(Misconfigured):
        patch.setattr(ScriptedEngine, "submit", refuse)
        app.submit("timer", app.shelf.current(), NOW, "000009")
    (waiting,) = app.queries.runs(1)
    app.watch(NOW, "000000")

    assert waiting.state == RunState.EXPORTED
    assert waiting.cause == "not submitted yet: settings: no pipeline is published"
    shown = app.queries.run(waiting.run_id)
    assert (shown.state, shown.cause) == (RunState.RUNNING, "")


def test_what_keeps_a_run_from_being_followed_is_seen_with_it_until_a_look_goes_well(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    app.watch(NOW, "000000")
    going, engine.said[runs[0]] = engine.said[runs[0]], Misconfigured(["access is denied"])
    for _ in range(2):
        with pytest.raises(Misconfigured):
            app.watch(NOW, "000000")
    kept = app.queries.run(runs[0])
    engine.said[runs[0]] = going
    app.watch(NOW, "000000")

    assert kept.state == RunState.RUNNING
    assert kept.cause == "could not be followed: settings: access is denied"
    shown = app.queries.run(runs[0])
    assert (shown.state, shown.cause) == (RunState.RUNNING, "")


def test_what_keeps_a_part_from_being_indexed_is_seen_with_the_run(
    app: App, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: FolderBlobs, prefix: str) -> Iterator[BlobInfo]:
        raise Transient("no route to " + prefix)

    with monkeypatch.context() as patch, pytest.raises(Transient):
        patch.setattr(FolderBlobs, "list", refuse)
        app.watch(NOW, "000000")

    assert "could not be followed: no route to" in app.queries.run(runs[0]).cause


def test_an_error_that_is_noted_already_is_not_written_again(
    app: App, engine: ScriptedEngine, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.said[runs[0]] = Transient("no route")
    noted: list[str] = []
    note = SqlRunStore.note

    def count(self: SqlRunStore, run: ScoringRun, state: RunState, cause: str) -> None:
        noted.append(cause)
        note(self, run, state, cause)

    monkeypatch.setattr(SqlRunStore, "note", count)
    for _ in range(3):
        with pytest.raises(Transient):
            app.watch(NOW, "000000")

    assert noted == ["could not be followed: no route"]


def test_a_run_that_failed_after_all_has_the_cause_of_its_failure(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    engine.said[runs[0]] = Transient("no route")
    with pytest.raises(Transient):
        app.watch(NOW, "000000")
    engine.said[runs[0]] = EngineReport(EngineState.FAILED, "out of memory")
    app.watch(NOW, "000000")

    assert app.queries.run(runs[0]).cause == "out of memory"


HOUR = timedelta(hours=1)


def queued(app: App, engine: ScriptedEngine, run: str, status: str) -> None:
    engine.said[run] = EngineReport(EngineState.QUEUED, status=status)


def test_a_run_that_waits_too_long_fails_and_says_what_it_waited_for(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    queued(app, engine, runs[0], "Running, step score: Queued, nodes: none")

    app.watch(NOW + 2 * HOUR, "000000")
    waiting = states(app)
    app.watch(NOW + 2 * HOUR + timedelta(seconds=1), "000001")

    assert waiting == ["submitted", "running", "running"]
    failed = app.queries.run(runs[0])
    assert failed.state == RunState.FAILED
    assert failed.cause == (
        "not started within 2:00:00, and canceled then; the engine says: Running, step score:"
        " Queued, nodes: none"
    )
    assert failed.job_is_open


def test_the_deadline_counts_from_when_the_engine_began(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    began = instants.of(NOW + 5 * HOUR)
    engine.said[runs[0]] = EngineReport(EngineState.RUNNING, started=began)

    app.watch(NOW + 11 * HOUR, "000000")
    going = app.queries.run(runs[0]).state
    app.watch(NOW + 11 * HOUR + timedelta(seconds=1), "000001")

    assert going == RunState.RUNNING
    failed = app.queries.run(runs[0])
    assert failed.state == RunState.FAILED
    assert failed.cause.startswith("not done within 6:00:00 of its start")


def test_a_run_whose_start_is_not_known_has_both_limits(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    app.watch(NOW + 8 * HOUR, "000000")
    going = app.queries.run(runs[0]).state
    app.watch(NOW + 8 * HOUR + timedelta(seconds=1), "000001")

    assert going == RunState.RUNNING
    assert app.queries.run(runs[0]).cause.startswith("not done within 8:00:00,")


def test_a_run_that_the_engine_loses_is_given_to_it_a_number_of_times(
    app: App, engine: ScriptedEngine, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    monkeypatch.setattr(ScriptedEngine, "poll", lambda *_: None)
    monkeypatch.setattr(ScriptedEngine, "submit", lambda _, order: given.append(order.run_id))

    for turn in range(12):
        app.watch(NOW, f"{turn:06}")

    assert given == runs * 10
    assert states(app) == ["failed"] * 3
    assert app.queries.run(runs[0]).cause == "the engine lost the run 11 times"


def test_a_run_that_cannot_be_followed_is_given_up_when_it_has_had_all_its_time(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    engine.said[runs[0]] = Transient("no route")
    limit = timedelta(hours=8)

    with pytest.raises(Transient):
        app.watch(NOW + limit - timedelta(seconds=1), "000000")
    assert states(app)[0] == "submitted"
    app.watch(NOW + limit + timedelta(seconds=1), "000000")

    assert states(app)[0] == "failed"
    assert app.queries.run(runs[0]).cause == "not known to be done within 8:00:00: no route"


@pytest.mark.parametrize("error", [Transient("no route"), KeyError("a defect")])
def test_an_engine_that_refuses_a_run_again_has_not_lost_it_again(
    app: App,
    engine: ScriptedEngine,
    runs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def refuse(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ScriptedEngine, "poll", lambda *_: None)
        patch.setattr(ScriptedEngine, "submit", refuse)
        for turn in range(30):
            with pytest.raises(type(error)):
                app.watch(NOW, f"{turn:06}")
    app.watch(NOW, "000030")

    assert states(app) == ["running"] * 3
    assert [app.submit.store.run(run).losses for run in runs] == [0] * 3


def test_a_defect_in_following_ends_at_the_deadline_too(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    engine.said[runs[0]] = KeyError("a")

    app.watch(NOW + timedelta(hours=9), "000000")

    assert (states(app)[0], app.queries.run(runs[0]).cause) == (
        "failed",
        "not known to be done within 8:00:00: KeyError",
    )


def test_a_run_that_cannot_be_completed_says_why_and_is_given_up(
    app: App, engine: ScriptedEngine, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: FolderBlobs, prefix: str) -> Iterator[BlobInfo]:
        message = f"no route to {prefix}"
        raise Transient(message)

    engine.said[runs[0]] = EngineReport(EngineState.COMPLETED)
    monkeypatch.setattr(FolderBlobs, "list", refuse)
    for hours in (1, 31):
        with pytest.raises(Transient):
            app.watch(NOW + timedelta(hours=hours), "000000")
    kept = app.queries.run(runs[0])
    app.watch(NOW + timedelta(hours=33), "000000")

    assert kept.state == RunState.SCORED
    assert kept.cause.startswith("could not be followed: no route")
    assert states(app)[0] == "failed"
    assert app.queries.run(runs[0]).cause.startswith("not known to be done within 8:00:00: no rou")


@pytest.mark.parametrize(
    ("end", "counts"), [("cancel", False), ("queue", False), ("fail", True), ("late", True)]
)
def test_a_trial_counts_unless_the_engine_never_came_to_it(
    app: App, engine: ScriptedEngine, end: str, counts: bool
) -> None:
    store, fleet = app.submit.store, app.shelf.current()
    store.save_suspects([Suspect("d1", "s1", fleet, 0, 1, 1, 3, "boom", set_aside_at=0)])
    rows = partials({("d1", "s1", BEGIN): [1.0]})
    save(app.database, P0, partials=rows, watermark=LATER, last_enqueued=BEGIN)
    run = app.submit("timer", fleet, NOW, "000009")
    assert run is not None
    (tried,) = store.suspects()
    assert (tried.tried_at, tried.tried_in) == (instants.of(NOW), run.number)

    later = NOW + timedelta(hours=9)
    match end:
        case "cancel":
            app.watch.cancel(run.run_id, NOW)
        case "queue":
            queued(app, engine, run.run_id, "Queued")
            app.watch(later, "000000")
        case "fail":
            engine.said[run.run_id] = EngineReport(EngineState.FAILED, "killed")
            app.watch(later, "000000")
        case _:
            engine.said[run.run_id] = EngineReport(EngineState.RUNNING, started=instants.of(NOW))
            app.watch(later, "000000")

    assert app.queries.run(run.run_id).state in {RunState.FAILED, RunState.CANCELED}
    assert [bool(one.tried_at) for one in store.suspects()] == [counts]


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
def test_a_run_whose_aside_part_is_gone_after_it_was_answered_completes(
    app: App, engine: ScriptedEngine, damage: str
) -> None:
    store = app.submit.store
    (fleet,) = {app.shelf.current()}
    store.save_suspects(
        [Suspect("d1", "s1", fleet, 0, 1, 1, 3, "boom", set_aside_at=instants.of(NOW))]
    )
    rows = partials({("d1", "s1", BEGIN): [1.0]})
    save(app.database, P0, partials=rows, watermark=LATER, last_enqueued=BEGIN)
    run = app.submit("timer", fleet, NOW, "000009")
    assert run is not None
    assert run.state == RunState.SCORED
    (part,) = store.parts(run)
    name = run.aside_prefix + part_name(part.number)
    if damage == "deleted":
        app.blobs.delete(name)
    else:
        app.blobs.write(name, app.blobs.read(name)[0][:50])

    app.watch(NOW, "000000")

    assert app.queries.run(run.run_id).state == RunState.COMPLETED
    assert app.queries.windows("d1", "s1", None, None, 1)[0].status == "model_failed"


@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_the_sensors_of_an_input_part_that_cannot_be_read_are_suspects(
    tmp_path: Path, engine: ScriptedEngine, damage: str
) -> None:
    given = {
        "SCORING_DATA": str(tmp_path / "data"),
        "SCORING_WINDOW": "1min",
        "SCORING_PART_ROWS": "4",
        "SCORING_ERROR_THRESHOLD": "-1",
        "SCORING_MINI_BATCH_ERROR_THRESHOLD": "-1",
    }
    with App(Settings.load(given)) as app:
        app.__dict__["engine"] = engine
        rows = partials({(f"d{number}", "s", BEGIN): [1.0] for number in range(12)})
        save(app.database, P0, partials=rows, watermark=LATER, last_enqueued=BEGIN)
        run = app.submit("timer", "f1", NOW, "000000")
        assert run is not None
        lost, *scored = app.submit.store.parts(run)
        name = run.input_prefix + part_name(lost.number)
        theirs = read_table(app.blobs.read(name)[0], INPUT_SCHEMA, name)["device"].to_pylist()
        if damage == "removed":
            app.blobs.delete(name)
        else:
            app.blobs.write(name, app.blobs.read(name)[0][:50])
        for part in scored:
            name = run.input_prefix + part_name(part.number)
            table = read_table(app.blobs.read(name)[0], INPUT_SCHEMA, name)
            answers = [(*row, 1.0) for row in zip(*keys_of(table), strict=True)]
            answer = write_table(predictions(*answers))
            app.blobs.write(run.prediction_prefix + part_name(part.number), answer)
        engine.said[run.run_id] = EngineReport(EngineState.COMPLETED)

        app.watch(NOW, "000000")

        suspects = app.submit.store.suspects()
        assert sorted(one.device for one in suspects) == sorted(theirs)
        assert {(one.rows, one.failures) for one in suspects} == {(max(1, lost.rows // 2), 0)}
        why = INPUT_GONE if damage == "removed" else "no predictions"
        assert app.submit.store.part(run, lost.number).cause == why


def test_a_job_that_cannot_be_followed_for_a_defect_keeps_nobody_from_the_active_runs(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    app.watch.cancel(runs[0], NOW)
    engine.said[runs[0]] = KeyError("a")

    app.watch(NOW, "000000")

    assert states(app) == ["canceled", "running", "running"]


def test_an_answer_that_comes_late_says_nothing_of_a_run_that_has_gone_on(
    app: App, runs: list[str]
) -> None:
    run = app.submit.store.run(runs[0])
    app.submit.store.note(run, RunState.EXPORTED, "not submitted yet: read timed out")

    assert app.queries.run(runs[0]).cause == ""


def test_a_run_that_cannot_be_exported_says_why_and_is_given_up(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        message = "the disk is full"
        raise StorageUnusable(message)

    rows = partials({("d", "s1", BEGIN): [1.0]})
    save(app.database, P0, partials=rows, watermark=LATER, last_enqueued=BEGIN)
    monkeypatch.setattr(type(app.blobs), "create", refuse)
    with pytest.raises(StorageUnusable):
        app.submit("timer", app.shelf.current(), NOW, "000009")

    with pytest.raises(StorageUnusable):
        app.watch(NOW + HOUR, "000000")
    (waiting,) = app.queries.runs(1)
    app.watch(NOW + 2 * HOUR + timedelta(seconds=1), "000000")

    assert (waiting.state, waiting.cause) == ("claimed", "not exported yet: the disk is full")
    (ended,) = app.queries.runs(1)
    assert (ended.state, ended.cause) == (
        *("failed", "not submitted within 2:00:00: the disk is full"),
    )


def test_a_part_that_answers_other_windows_fails(
    app: App, engine: ScriptedEngine, runs: list[str]
) -> None:
    table = predictions(("ghost", "s", BEGIN, 1.0))
    app.blobs.write(f"predictions/{runs[0]}/part-00000.parquet", write_table(table))
    engine.said[runs[0]] = EngineReport(EngineState.COMPLETED)

    app.watch(NOW, "000000")

    assert states(app)[0] == "failed"
    assert "for other windows" in app.queries.run(runs[0]).cause


def test_a_run_that_cannot_be_submitted_is_given_up_when_it_has_waited(
    app: App, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: ScriptedEngine, __: ScoringOrder) -> None:
        raise Misconfigured(["no pipeline is published"])

    monkeypatch.setattr(ScriptedEngine, "submit", refuse)
    rows = partials({("d", "s1", BEGIN): [1.0]})
    save(app.database, P0, partials=rows, watermark=LATER, last_enqueued=BEGIN)
    for _ in range(2):
        with pytest.raises(Misconfigured):
            app.submit("timer", app.shelf.current(), NOW, "000009")
            app.watch(NOW + 2 * HOUR, "000000")
    app.watch(NOW + 2 * HOUR + timedelta(seconds=1), "000000")

    (run,) = app.queries.runs(9)
    assert (run.state, run.cause) == (
        RunState.FAILED,
        "not submitted within 2:00:00: settings: no pipeline is published",
    )
    assert app.queries.status().pending == 1


def test_the_job_of_a_run_that_has_ended_is_canceled_until_it_has_ended_too(
    app: App, engine: ScriptedEngine, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    canceled: list[str] = []
    monkeypatch.setattr(ScriptedEngine, "cancel", lambda _, run_id: canceled.append(run_id))
    app.watch.cancel(runs[0], NOW)

    app.watch(NOW, "000000")
    (job,) = app.queries.status().open_jobs
    engine.said[runs[0]] = EngineReport(EngineState.CANCELED)
    app.watch(NOW, "000001")

    assert canceled == [runs[0]] * 2
    assert (job.run_id, job.engine_status) == (runs[0], "running")
    assert app.queries.status().open_jobs == []
    assert app.queries.run(runs[0]).state == RunState.CANCELED


def test_what_keeps_the_job_of_a_run_that_has_ended_from_being_followed_is_no_failure(
    app: App, engine: ScriptedEngine, runs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    app.watch.cancel(runs[0], NOW)
    engine.said[runs[0]] = Misconfigured(["access is denied"])

    app.watch(NOW, "000000")

    assert [vars(record)["run"] for record in caplog.records] == [runs[0]]
    (job,) = app.queries.status().open_jobs
    assert (job.run_id, job.engine_status) == (
        runs[0],
        "could not be asked: settings: access is denied",
    )


def test_a_job_that_the_engine_does_not_know_is_said_to_be_unknown_until_it_is_forgotten(
    app: App, engine: ScriptedEngine, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedEngine, "poll", lambda *_: None)
    app.watch.cancel(runs[0], NOW)

    app.watch.follow_jobs(NOW)
    (job,) = app.queries.status().open_jobs
    app.watch.follow_jobs(NOW + timedelta(hours=1))

    assert job.engine_status == UNKNOWN
    assert app.queries.status().open_jobs == []
    assert app.queries.run(runs[0]).engine_status == ""


def test_a_run_is_canceled_though_the_engine_cannot_be_asked(
    app: App, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: ScriptedEngine, __: str) -> None:
        message = "no route"
        raise Transient(message)

    monkeypatch.setattr(ScriptedEngine, "cancel", refuse)

    assert app.watch.cancel(runs[0], NOW).state == RunState.CANCELED
    assert app.queries.run(runs[0]).job_is_open


def test_a_timer_that_finds_too_many_runs_makes_none_and_says_why(
    app: App, runs: list[str]
) -> None:
    rows = partials({("d9", "s1", BEGIN): [1.0]})
    save(app.database, P0, partials=rows, watermark=LATER, last_enqueued=BEGIN)

    with pytest.raises(TooManyRuns, match="3 runs are active"):
        app.submit("timer", app.shelf.current(), NOW, "000009")

    assert app.queries.status().pending == 1
