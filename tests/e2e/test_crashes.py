"""The system dies at every point where it touches the world, and is started again."""

import math
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from scoring import instants
from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.event_log import FolderEventLog
from scoring.bootstrap import App, nonce
from scoring.errors import NotFound
from scoring.fleet import Model, Training, score_part, train_model
from scoring.ports import BlobInfo, Blobs, EngineReport, EngineState, ScoringOrder
from scoring.predictions import INPUT_SCHEMA, read_table, write_table
from scoring.readings import EventBatch, Partition
from scoring.settings import Settings

START = datetime(2026, 1, 5, tzinfo=UTC)
SECOND = instants.SECOND
WINDOW = 60 * SECOND


class Crash(BaseException):
    """The process is gone: nothing in the code under test may catch this."""


@dataclass
class Faults:
    """Counts the points where the world is touched, and crashes at one of them."""

    crash_at: int | None = None
    passed: int = 0

    def point(self) -> None:
        self.passed += 1
        if self.passed == self.crash_at:
            raise Crash


class FaultyBlobs(FolderBlobs):
    """A folder that may crash before and after each change, and before each read."""

    def __init__(self, root: Path, faults: Faults) -> None:
        super().__init__(root)
        self._faults = faults

    def read(self, name: str) -> tuple[bytes, BlobInfo]:
        self._faults.point()
        return super().read(name)

    def write(self, name: str, data: bytes | Path) -> BlobInfo:
        return self._disturbed(super().write, name, data)

    def create(self, name: str, data: bytes | Path) -> BlobInfo:
        return self._disturbed(super().create, name, data)

    def replace(self, name: str, data: bytes | Path, etag: str) -> BlobInfo:
        return self._disturbed(super().replace, name, data, etag)

    def _disturbed(self, write: Callable[..., BlobInfo], *what: Any) -> BlobInfo:
        self._faults.point()
        info = write(*what)
        self._faults.point()
        return info

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        self._faults.point()
        return super().list(prefix)

    def delete(self, prefix: str) -> None:
        self._faults.point()
        super().delete(prefix)
        self._faults.point()


@dataclass
class RemoteEngine:
    """An engine that is a service of its own: it survives, and goes on, when its caller dies.

    It scores one part with each poll, so that runs are seen half done.
    """

    app: App | None = None
    faults: Faults = field(default_factory=Faults)
    orders: dict[str, ScoringOrder] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)

    def submit(self, order: ScoringOrder) -> None:
        self.faults.point()
        if order.run_id not in self.orders:
            self.accepted.append(order.run_id)
            self.orders[order.run_id] = order
        self.faults.point()

    def poll(self, run_id: str) -> EngineReport | None:
        self.faults.point()
        if run_id not in self.orders:
            return None
        left = self._unscored(self.orders[run_id])
        if left:
            self._score(self.orders[run_id], left[0])
            return EngineReport(EngineState.RUNNING)
        return EngineReport(EngineState.COMPLETED)

    def cancel(self, run_id: str) -> None:
        raise NotImplementedError

    def wait(self, run_id: str, timeout: float) -> None:
        """Nothing to wait for: each poll does some work."""

    def close(self) -> None:
        """Nothing to close."""

    def _unscored(self, order: ScoringOrder) -> list[str]:
        done = {name.rpartition("/")[2] for name in _names(self._disk, order.prediction_prefix)}
        names = [name.rpartition("/")[2] for name in _names(self._disk, order.input_prefix)]
        return [name for name in names if name not in done]

    def _score(self, order: ScoringOrder, name: str) -> None:
        assert self.app is not None
        data, _ = self._disk.read(order.input_prefix + name)
        part = read_table(data, INPUT_SCHEMA, name)
        predictions = score_part(self.app.shelf.open(order.fleet_version), part)
        self._disk.write(order.prediction_prefix + name, write_table(predictions))

    @property
    def _disk(self) -> Blobs:
        """The same blobs, past the faults: the engine is not the process that dies."""
        assert self.app is not None
        return FolderBlobs(self.app.folder / "blobs")


def _names(blobs: Blobs, prefix: str) -> list[str]:
    return [blob.name for blob in blobs.list(prefix)]


class System:
    """What survives a crash: the folder and the engine. `app` is the process, begun anew."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        shutil.copytree(template, folder)
        self.engine = RemoteEngine()

    def start(self, faults: Faults) -> App:
        app = App(
            Settings.load(
                {
                    "SCORING_DATA": str(self.folder),
                    "SCORING_WINDOW": "1min",
                    "SCORING_ALLOWED_LATENESS": "30s",
                    "SCORING_IDLE_TIMEOUT": "1min",
                    "SCORING_PART_ROWS": "3",
                }
            )
        )
        self.engine.app, self.engine.faults = app, faults
        app.__dict__["engine"] = self.engine
        app.__dict__["blobs"] = FaultyBlobs(self.folder / "blobs", faults)
        _watch_statements(app, faults)
        return app


def _watch_statements(app: App, faults: Faults) -> None:
    engine = app.database.engine

    def before(*_: Any) -> None:
        faults.point()

    event.listen(engine, "before_cursor_execute", before)
    # A commit that was carried out, but whose caller never learned of it.
    original = engine.dialect.do_commit

    def commit(connection: Any) -> None:
        faults.point()
        original(connection)
        faults.point()

    engine.dialect.do_commit = commit  # type: ignore[assignment, method-assign]


def _batch(partition: str, numbers: list[int], minutes: float) -> EventBatch:
    """One reading an event, of two sensors in turn, and an unreadable one among them."""
    times = [instants.of(START + timedelta(minutes=minutes, seconds=2 * n)) for n in numbers]
    bodies = [
        b'{"device": 1}'
        if number % 7 == 3
        else f'{{"device":"d{partition}","sensor":"s{number % 2}",'
        f'"ts":"{instants.text(time)}","value":{np.sin(number) + number / 7}}}'.encode()
        for number, time in zip(numbers, times, strict=True)
    ]
    return EventBatch(
        Partition("hub", partition),
        np.array(numbers),
        np.array([time + SECOND for time in times]),
        bodies,
    )


def _script(app: App) -> None:
    """Run the program that is killed and started again: two waves, a gap, a repair, two runs."""
    ingest = app.ingest()
    for batch in (_batch("0", [*range(20)], 0), _batch("1", [*range(25)], 0)):
        ingest(batch)
    ingest(_batch("0", [*range(30, 60)], 1))  # 20-29 never came
    _run(app, START + timedelta(minutes=5))
    FolderEventLog(app.folder / "events").append(_batch("0", [*range(20, 30)], 0.2))
    app.repair_gaps(instants.of(START + timedelta(minutes=5)))
    ingest(_batch("1", [*range(15, 40)], 0))  # some of them again, some late
    _run(app, START + timedelta(minutes=10))


def _run(app: App, now: datetime) -> None:
    for run in app.submit.store.active_runs():
        app.see_through(run, lambda: now, lambda done, total: None)
    if new := app.submit("test", _fleet(app), now, nonce()):
        app.see_through(new, lambda: now, lambda done, total: None)


def _fleet(app: App) -> str:
    try:
        return app.shelf.current()
    except NotFound:
        x = np.random.default_rng(1).normal(3, 2, (40, 1))
        model = train_model(x, Training())
        # s1 of partition 1's device has no model: its windows must be accounted for all the same.
        models = [Model(d, s, model) for d, s in (("d0", "s0"), ("d0", "s1"), ("d1", "s0"))]
        return app.shelf.publish(models, ("mean",), START)


def _tables(folder: Path) -> dict[str, Any]:
    """All that must not depend on crashes."""
    with closing(sqlite3.connect(folder / "store.db")) as database:
        return {
            "windows": database.execute(
                "SELECT device, sensor, window_start, partition, count, min, max, last, last_time,"
                " claimed_by IS NULL, mean, m2 FROM window_partials ORDER BY 1, 2, 3, 4"
            ).fetchall(),
            **{
                name: database.execute(
                    f"SELECT * FROM {name} ORDER BY 1, 2, 3"  # noqa: S608 - our own names
                ).fetchall()
                for name in ("partitions", "epochs", "gaps", "rejects")
            },
            "coverage": database.execute(
                "SELECT device, sensor, window_start, status, is_anomaly, anomaly_score"
                " FROM predictions ORDER BY 1, 2, 3"
            ).fetchall(),
            "segments": database.execute(
                "SELECT partition, sum(readings) FROM segments GROUP BY 1 ORDER BY 1"
            ).fetchall(),
            "run states": database.execute("SELECT DISTINCT state FROM runs").fetchall(),
        }


def _assert_same(found: dict[str, Any], wanted: dict[str, Any], crash_at: int) -> None:
    for name, rows in wanted.items():
        assert len(found[name]) == len(rows), (name, crash_at)
        for row, other in zip(found[name], rows, strict=True):
            assert all(map(_is_same, row, other)), (name, crash_at, row, other)


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=1e-12, abs_tol=1e-12)
    return bool(value == other)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with an empty store and a fleet: what need not be made for every crash."""
    folder = tmp_path_factory.mktemp("template") / "data"
    with App(Settings.load({"SCORING_DATA": str(folder), "SCORING_WINDOW": "1min"})) as app:
        assert app.window == WINDOW
        _fleet(app)
    return folder


@pytest.fixture(scope="session")
def undisturbed(
    template: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], int]:
    """Give the tables without a crash, and how many points there are to crash at."""
    system, faults = System(tmp_path_factory.mktemp("calm") / "data", template), Faults()
    with system.start(faults) as app:
        _script(app)
    return _tables(system.folder), faults.passed


def _with_crash(system: System, crash_at: int, script: Callable[[App], None]) -> None:
    with pytest.raises(Crash), system.start(Faults(crash_at)) as app:
        script(app)
    with system.start(Faults()) as app:
        script(app)


def test_the_undisturbed_script_does_all_that_can_be_disturbed(
    undisturbed: tuple[dict[str, Any], int],
) -> None:
    tables, points = undisturbed
    assert points > 200
    assert {row[3] for row in tables["coverage"]} == {"scored", "no_model"}
    assert [row[-1] for row in tables["gaps"]] == ["repaired"]
    assert len(tables["rejects"]) > 5
    assert tables["run states"] == [("completed",)]
    assert not any(row[9] for row in tables["windows"])
    assert len(tables["coverage"]) == len({row[:3] for row in tables["windows"]})


SHARES = 16
"""Tests that the points are spread over, so that they can run side by side."""

SAMPLE = 1
"""Shares that every run of the tests takes; the others are for the exhaustive one."""


@pytest.mark.parametrize(
    "share",
    [
        pytest.param(share, marks=[] if share < SAMPLE else pytest.mark.exhaustive)
        for share in range(SHARES)
    ],
)
def test_a_crash_at_any_point_leaves_the_same_tables_after_the_same_program_ran_again(
    share: int,
    template: Path,
    undisturbed: tuple[dict[str, Any], int],
    tmp_path: Path,
) -> None:
    tables, points = undisturbed
    for crash_at in range(1 + share, points + 1, SHARES):
        system = System(tmp_path / f"{crash_at}", template)
        _with_crash(system, crash_at, _script)
        _assert_same(_tables(system.folder), tables, crash_at)
        assert len(system.engine.accepted) == len(set(system.engine.accepted))
        shutil.rmtree(system.folder)
