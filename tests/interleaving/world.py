"""One store, its blobs and an engine, what may go wrong with them, and what must hold."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import reduce
from random import Random

import numpy as np
import pyarrow as pa
from sqlalchemy import func, select

from scoring import instants
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.facts import Phase, read_window_facts
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.rebuild import SqlRebuildStore, settle_window
from scoring.adapters.sql.runs import SqlRunStore
from scoring.adapters.sql.schema import predictions, runs, window_partials
from scoring.aggregates import merge
from scoring.errors import CannotBegin, Conflict, InvalidPart, NotFound, Transient
from scoring.handlers.ending import EndRuns
from scoring.handlers.hub import HubProgress
from scoring.handlers.index import IndexPredictions
from scoring.handlers.submit import SubmitRun
from scoring.handlers.watch import WatchRuns
from scoring.horizon import HorizonRules
from scoring.ports import EngineReport, EngineState, ScoringOrder, Segment
from scoring.predictions import INPUT_SCHEMA, PREDICTION_SCHEMA, read_table, write_table
from scoring.readings import Partition
from scoring.runs import (
    RunLimits,
    RunState,
    Scope,
    ScoringRun,
    Tolerance,
    error_name,
)
from tests.adapters.stores import MINUTE, P0, P1, partials, save
from tests.fakes.blobs import MemoryBlobs
from tests.fakes.event_log import no_hub
from tests.interleaving.scheduler import on_commit

Window = tuple[str, str, int]

HOUR = 3600 * instants.SECOND

FAULTS = (
    *("none", "none", "part not scored", "predictions truncated", "predictions removed"),
    *("rows missing", "rows twice", "odd reason", "input removed", "poison", "silent poison"),
    *("engine fails", "job lost", "answer lost", "slow to stop", "broken image"),
)
"""What may be wrong with the engine, or with what it writes."""


_ENDED = """
    SELECT number, (SELECT count(*) FROM window_partials WHERE claimed_by = number),
        (SELECT count(*) FROM predictions WHERE run_number = number)
    FROM runs WHERE state IN ('failed', 'canceled')
"""
_ACTIVE = "SELECT count(*) FROM runs WHERE state NOT IN ('failed', 'canceled', 'completed')"

POISONS = frozenset({"poison", "silent poison"})
POISON = ("d0", "s0")
"""The sensor that nothing can score, where a fault says so."""


def score_of(count: int, mean: float) -> float:
    """Score a window so that each of its states has another score."""
    return count + mean / 1024


@dataclass
class _Job:
    order: ScoringOrder
    state: EngineState = EngineState.QUEUED
    stopping: int = -1
    polls: int = 0
    cause: str = ""
    scored: set[str] = field(default_factory=set)


class Engine:
    """Scores a part with each look at a job; what goes wrong is the fault's."""

    def __init__(
        self, blobs: MemoryBlobs, fault: str, touched: Callable[[str], None], random: Random
    ) -> None:
        self.jobs: dict[str, _Job] = {}
        self.fault = fault
        self.faults_left = 2
        self._blobs = blobs
        self._touched = touched
        self._random = random

    def submit(self, order: ScoringOrder) -> None:
        self._touched(f"submit {order.run_id}")
        inputs = [name for name in self._blobs.content if name.startswith(order.input_prefix)]
        assert inputs or self.fault == "input removed", "a node is started for nothing"
        job = self.jobs.get(order.run_id)
        if job is None:
            self.jobs[order.run_id] = _Job(order)
        if self._strikes("answer lost"):
            message = "the answer to the submission was lost"
            raise Transient(message)

    def poll(self, run_id: str) -> EngineReport | None:
        self._touched(f"poll {run_id}")
        job = self.jobs.get(run_id)
        if job is None:
            return None
        if self._strikes("job lost"):
            del self.jobs[run_id]
            return None
        self._go_on(job)
        started = None if job.state == EngineState.QUEUED else 0
        return EngineReport(job.state, job.cause, status=job.state.value, started=started)

    def cancel(self, run_id: str) -> None:
        self._touched(f"cancel {run_id}")
        job = self.jobs.get(run_id)
        if job and job.state in {EngineState.QUEUED, EngineState.RUNNING} and job.stopping < 0:
            job.stopping = 3 if self.fault == "slow to stop" else 0
            if not job.stopping:
                job.state = EngineState.CANCELED

    def wait(self, run_id: str, timeout: float) -> EngineReport | None:
        raise NotImplementedError

    @property
    def at_work(self) -> set[str]:
        """Runs whose jobs have not ended."""
        return {
            run_id
            for run_id, job in self.jobs.items()
            if job.state in {EngineState.QUEUED, EngineState.RUNNING}
        }

    def _strikes(self, fault: str) -> bool:
        if self.fault != fault or not self.faults_left or self._random.random() < 0.3:
            return False
        self.faults_left -= 1
        return True

    def _go_on(self, job: _Job) -> None:
        if job.state == EngineState.QUEUED:
            job.state = EngineState.RUNNING
            return
        if job.state != EngineState.RUNNING:
            return
        if job.stopping == 0:
            job.state = EngineState.CANCELED
            return
        job.stopping -= job.stopping > 0
        if self._strikes("broken image"):
            job.state, job.cause = EngineState.FAILED, "the image cannot be pulled"
            return
        names = [
            info.removeprefix(job.order.input_prefix)
            for info in sorted(self._blobs.content)
            if info.startswith(job.order.input_prefix)
        ]
        left = [name for name in names if name not in job.scored]
        if left:
            job.scored.add(left[0])
            self._score(job, left[0])
        elif job.state == EngineState.RUNNING:
            job.state = EngineState.COMPLETED

    def _score(self, job: _Job, name: str) -> None:
        table = read_table(self._blobs.content[job.order.input_prefix + name], INPUT_SCHEMA, name)
        key = list(zip(table["device"].to_pylist(), table["sensor"].to_pylist(), strict=True))
        target = job.order.prediction_prefix + name
        if self.fault in POISONS and POISON in key:
            if self.fault == "poison":
                error = job.order.prediction_prefix + error_name(name)
                self._blobs.content[error] = b"RuntimeError: no such kernel\0"
            job.state, job.cause = EngineState.FAILED, f"{name} failed"
            return
        if self._strikes("engine fails"):
            job.state, job.cause = EngineState.FAILED, "out of memory"
        elif self._strikes("part not scored"):
            return
        elif self._strikes("input removed"):
            del self._blobs.content[job.order.input_prefix + name]
        else:
            data = write_table(self._predictions(table))
            if self._strikes("predictions truncated"):
                data = data[: len(data) // 2]
            if not self._strikes("predictions removed"):
                self._blobs.content[target] = data

    def _predictions(self, table: pa.Table) -> pa.Table:
        count, mean = table["count"].to_pylist(), table["mean"].to_pylist()
        rows = list(range(table.num_rows))
        odd = set()
        if self._strikes("rows missing"):
            rows = rows[1:]
        elif self._strikes("rows twice") and len(rows) > 1:
            rows = [rows[-1], *rows[1:]]
        elif self.fault == "odd reason":
            odd = {rows[0]}
        reason = ["Input X contains NaN\0\ud800" + "x" * 700 if r in odd else None for r in rows]
        score = [None if r in odd else score_of(count[r], mean[r]) for r in rows]
        columns = {
            "device": table["device"].take(pa.array(rows, pa.int64())),
            "sensor": table["sensor"].take(pa.array(rows, pa.int64())),
            "window_start": table["window_start"].take(pa.array(rows, pa.int64())),
            "anomaly_score": pa.array(score, pa.float64()),
            "is_anomaly": pa.array([s and s > 2 for s in score], pa.bool_()),
            "status": pa.array(
                ["model_failed" if r in odd else "scored" for r in rows]
            ).dictionary_encode(),
            "reason": pa.array(
                [r and r.encode(errors="replace").decode() for r in reason], pa.string()
            ).dictionary_encode(),
        }
        return pa.table(columns).cast(PREDICTION_SCHEMA)


class World:
    """A store with windows to score, and the exact account of what was put into it."""

    def __init__(self, database: Database, random: Random, touched: Callable[[str], None]) -> None:
        self.database = database
        settle_window(database, MINUTE, MINUTE)
        self.random = random
        self.fault = random.choice(FAULTS)
        self.blobs = MemoryBlobs(touched)
        self.engine = Engine(self.blobs, self.fault, touched, Random(random.random()))
        self.tolerance = Tolerance(-1, -1) if random.random() < 0.5 else Tolerance()
        # Windows of a claim and of a release, and runs that may be active at once.
        self.chunk = random.choice([1, 2, 50])
        self.active = random.choice([1, 2])
        self.now = 10 * 24 * HOUR
        self.readings: dict[Window, list[float]] = defaultdict(list)
        self.scored_again = False
        self.segments: dict[str, tuple[Window, float]] = {}
        self._stored_by: dict[int, int] = {}
        self._nonces = iter(range(10**6))
        devices = random.choice([2, 3])
        for number in range(devices):
            for start in range(random.choice([1, 2])):
                self._read((f"d{number}", "s0", start * MINUTE), P0)
                if random.random() < 0.6:
                    self._read((f"d{number}", "s0", start * MINUTE), P1)

    # What actors do.

    def submit(self) -> None:
        """Be a timer."""
        try:
            self._submit_handler()("timer", "v1", self._moment(), self._nonce())
        except (CannotBegin, Transient):
            return

    def rescore(self) -> None:
        """Score everything again."""
        self.scored_again = True
        scope = Scope(rescore=True)
        try:
            self._submit_handler()("manual", "v1", self._moment(), self._nonce(), scope=scope)
        except (CannotBegin, Transient):
            return

    def watch(self, times: int = 4) -> None:
        """Be the timer that watches."""
        for _ in range(times):
            try:
                self._watch_handler()(self._moment(), self._nonce())
            except Transient:
                continue

    def cancel(self) -> None:
        """Cancel the newest active run."""
        for run in reversed(SqlRunStore(self.database).active_runs()):
            try:
                self._ending().cancel(run.run_id, self._moment())
            except (Conflict, NotFound):
                continue
            return

    def index(self) -> None:
        """Be the blob trigger: deliver what is there, and some of it twice."""
        index = IndexPredictions(SqlRunStore(self.database), self.blobs)
        names = [name for name in sorted(self.blobs.content) if name.endswith(".parquet")]
        for name in [name for name in names if name.startswith("predictions/")] * 2:
            try:
                index(name)
            except (NotFound, InvalidPart):
                continue

    def late(self) -> None:
        """Bring late readings."""
        for _ in range(2):
            window = self.random.choice(sorted(self.readings))
            self._read(window, self.random.choice([P0, P1]))

    def rebuild(self) -> None:
        """Compute all windows anew."""
        try:
            self._rebuild()
        except Conflict:
            return

    def _rebuild(self) -> None:
        store = SqlRebuildStore(self.database)
        store.begin(MINUTE)
        # What was scored before is pending again.
        self.scored_again = True
        store.wait_for_writers()
        while store.clear(self.chunk):
            pass
        while not store.end():
            while pending := store.pending(self.chunk):
                added = [segment for _, segment in pending]
                sets = [partials({w: [v]}) for w, v in (self.segments[s.blob] for s in added)]
                store.fill(pending[0][0], MINUTE, added, reduce(merge, sets))
            store.wait_for_writers()

    # What must hold.

    def check_step(self) -> None:
        """Hold what holds at each moment."""
        with self.database.read() as connection:
            rows = connection.exec_driver_sql(_ENDED).all()
            (active,) = connection.exec_driver_sql(_ACTIVE).scalars()
        assert active <= self.active, "too many runs are active"
        for number, owned, stored in rows:
            assert not owned, f"run {number} has ended and owns windows"
            before = self._stored_by.setdefault(number, stored)
            assert stored <= before, f"predictions of run {number} were stored after its end"

    def drain(self) -> None:
        """Let timers go on, one after the other, until nothing waits."""
        self.engine.faults_left = 0
        with self.database.read() as connection:
            is_rebuilt = read_window_facts(connection).phase is Phase.DONE
        if not is_rebuilt:
            self._rebuild()
        healthy = [window for window in self.readings if window[:2] != POISON]
        for _ in range(200):
            self.now += 60 * instants.SECOND
            if self.fault in POISONS and self.random.random() < 0.2:
                # A sensor is set aside only if others are scored, which need something to score.
                self._read(self.random.choice(healthy), P0)
            self.watch(1)
            self.submit()
            if self._is_calm():
                break
        else:
            message = f"does not come to rest: {self._unrest()}"
            raise AssertionError(message)
        for _ in range(3):
            self.now += HOUR
            self.watch(3)

    def check_end(self) -> None:
        """Hold what holds once all is done."""
        store = SqlRunStore(self.database)
        assert store.active_runs() == []
        assert store.open_jobs() == [], "jobs that nobody knows to have ended"
        assert self.engine.at_work == set(), "jobs that nobody follows"
        self._check_owners()
        self._check_predictions()
        if not self.scored_again:
            self._check_scored_once()

    def _check_owners(self) -> None:
        table = window_partials.c
        statement = select(
            table.device, table.sensor, table.window_start, table.claimed_by, table.count
        )
        with self.database.read() as connection:
            rows = connection.execute(statement).all()
            states = {
                key: value for key, value in connection.execute(select(runs.c.number, runs.c.state))
            }
        counts: dict[Window, int] = defaultdict(int)
        for device, sensor, start, owner, count in rows:
            assert owner is not None, "a window is pending for ever"
            assert states[owner] == "completed", f"a run that is {states[owner]} owns a window"
            counts[device, sensor, start] += count
        assert counts == {window: len(values) for window, values in self.readings.items()}

    def _check_predictions(self) -> None:
        table = predictions.c
        statement = select(
            *(table.device, table.sensor, table.window_start, table.status),
            *(table.anomaly_score, table.reason, runs.c.state),
        ).join_from(predictions, runs, runs.c.number == table.run_number)
        with self.database.read() as connection:
            rows = connection.execute(statement).all()
        assert {tuple(row[:3]) for row in rows} == set(self.readings)
        assert len(rows) == len(self.readings)
        for *window, status, score, reason, state in rows:
            values = self.readings[tuple(window)]
            assert state == "completed"
            if status == "scored":
                expected = score_of(len(values), float(np.mean(values)))
                assert abs(score - expected) < 1e-9, (window, score, expected)
            elif self.fault == "odd reason":
                assert len(reason) <= 400
                assert reason.startswith("Input X")
            else:
                assert self.fault in POISONS, (window, status, reason)
                assert tuple(window[:2]) == POISON
                assert re.match(r"set aside after \d failed runs: ", reason)

    def _check_scored_once(self) -> None:
        """No state of a window is scored by two runs that completed, but by `rescore`."""
        store = SqlRunStore(self.database)
        seen: dict[tuple[Window, int], str] = {}
        for run in self._runs():
            if run.state != RunState.COMPLETED or run.rescore:
                continue
            for part in store.parts(run):
                if part.is_aside or part.etag is None:
                    continue
                name = f"{run.input_prefix}part-{part.number:05}.parquet"
                table = read_table(self.blobs.content[name], INPUT_SCHEMA, name)
                columns = (table[c].to_pylist() for c in ("device", "sensor"))
                starts = table["window_start"].cast(pa.int64()).to_pylist()
                for device, sensor, start, count in zip(
                    *columns, starts, table["count"].to_pylist(), strict=True
                ):
                    other = seen.setdefault(((device, sensor, start), count), run.run_id)
                    assert other == run.run_id, f"{other} and {run.run_id} scored the same"

    def _runs(self) -> list[ScoringRun]:
        store = SqlRunStore(self.database)
        with self.database.read() as connection:
            ids = connection.execute(select(runs.c.run_id).order_by(runs.c.number)).scalars().all()
        return [store.run(run_id) for run_id in ids]

    def _is_calm(self) -> bool:
        pending = select(func.count()).where(window_partials.c.claimed_by.is_(None))
        with self.database.read() as connection:
            waits = connection.execute(pending).scalar_one()
        return not waits and not SqlRunStore(self.database).active_runs()

    def _unrest(self) -> list[tuple[str, str, str]]:
        return [(run.run_id, run.state.value, run.cause) for run in self._runs()[-5:]]

    def _read(self, window: Window, partition: Partition) -> None:
        value = float(self.random.randrange(64))
        number = len(self.segments)
        segment = Segment(0, number, number, f"raw/{number}", 1)
        self.segments[segment.blob] = (window, value)
        with on_commit(lambda: self.readings[window].append(value)):
            save(
                self.database,
                partition,
                partials=partials({window: [value]}),
                segments=[segment],
                readings=1,
                watermark=1000 * MINUTE,
                last_enqueued=1000 * MINUTE,
            )

    def _moment(self) -> datetime:
        return instants.moment(self.now)

    def _nonce(self) -> str:
        return f"{next(self._nonces):06x}"

    def _submit_handler(self) -> SubmitRun:
        return SubmitRun(
            store=SqlRunStore(self.database),
            blobs=self.blobs,
            engine=self.engine,
            allowed_lateness=MINUTE,
            hub=HubProgress(SqlIngestStore(self.database), no_hub(), HorizonRules(MINUTE)),
            part_rows=2,
            limits=RunLimits(self.active, 10**6),
        )

    def _ending(self) -> EndRuns:
        store = SqlRunStore(self.database)
        return EndRuns(
            store=store,
            blobs=self.blobs,
            engine=self.engine,
            index=IndexPredictions(store, self.blobs),
            tolerance=self.tolerance,
        )

    def _watch_handler(self) -> WatchRuns:
        return WatchRuns(
            store=SqlRunStore(self.database),
            blobs=self.blobs,
            engine=self.engine,
            submit=self._submit_handler(),
            ending=self._ending(),
            deadline=10**5 * HOUR,
            queue_limit=10**5 * HOUR,
        )
