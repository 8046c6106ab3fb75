"""Three days of a fleet on a virtual clock, and a model of what was ingested when."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from heapq import heappop, heappush
from random import Random

import numpy as np

from scoring import instants
from scoring.bootstrap import App
from scoring.errors import Conflict, ScoringError, TooManyRuns, Transient
from scoring.fleet import Model, Training, train_model
from scoring.handlers.index import IndexPredictions
from scoring.readings import EventBatch, Partition
from scoring.runs import RunState, Scope, ScoringRun
from tests.simulated.cluster import ENDED, MINUTE, Cluster, Faults, Sensor, Version, Window

HOUR = 60 * MINUTE
DAY = 24 * HOUR
BEGIN = 1_767_571_200 * instants.SECOND
"""Monday, 5 January 2026, 00:00 UTC."""

WINDOW = 5 * MINUTE
SPLIT = "d3"
"""The device whose readings come by two partitions."""

SENSORS = tuple((f"d{device}", f"s{sensor}") for device in range(4) for sensor in range(3))

SETTINGS = {
    "SCORING_WINDOW": "5min",
    "SCORING_ALLOWED_LATENESS": "1min",
    "SCORING_IDLE_TIMEOUT": "10min",
    "SCORING_RAW_SEGMENTS": "false",
    "SCORING_PART_ROWS": "6",
    "SCORING_MAX_ACTIVE_RUNS": "2",
    "SCORING_MAX_RUN_WINDOWS": "300",
    "SCORING_QUEUE_LIMIT": "2h",
    "SCORING_RUN_DEADLINE": "30min",
}

CANCELED_IN = (
    *(RunState.CLAIMING, RunState.CLAIMED, RunState.EXPORTED),
    *(RunState.SUBMITTED, RunState.RUNNING, RunState.SCORED),
)
"""Every state in which a run can be canceled."""


class History:
    """Which data every window had at every step: a model of ingest that knows no store."""

    def __init__(self) -> None:
        self._changes: dict[Window, list[tuple[int, Version]]] = defaultdict(list)

    def add(self, step: int, window: Window, value: int) -> None:
        """Add one reading."""
        count, total = self.final(window) if window in self._changes else (0, 0)
        self._changes[window].append((step, (count + 1, total + value)))

    def at(self, step: int, window: Window) -> Version:
        """Return the data that a window had at the end of a step."""
        return next(version for when, version in reversed(self._changes[window]) if when <= step)

    def final(self, window: Window) -> Version:
        """Return the data that a window has in the end."""
        return self._changes[window][-1][1]

    def __iter__(self) -> Iterator[Window]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the store has found."""

    at: int
    pending: int
    active: int


class World:
    """Ingest, timers, triggers, people and the cluster, one event after another.

    Attributes
    ----------
    claimed_at
        The step in which each run claimed its windows, of runs that were driven step by step.
    canceled
        How many runs were canceled in each state.
    looks
        One a virtual minute.
    suspected
        Sensors that were ever set aside.
    errors
        How often an error of each class kept a timer from its work.
    """

    def __init__(self, app: App, seed: int, faults: Faults) -> None:
        self.random = Random(seed)
        self.time = BEGIN
        self.step = 0
        self.app = app
        self.cluster = Cluster(
            app.blobs, lambda: self.time, self._on_written, Random(seed + 1), faults
        )
        app.__dict__["engine"] = self.cluster
        model = train_model(np.random.default_rng(1).normal(3, 2, (40, 1)), Training())
        models = [Model(*sensor, model) for sensor in SENSORS]
        self.fleet = app.shelf.publish(models, ("mean",), instants.moment(BEGIN))
        self.history = History()
        self.claimed_at: dict[str, int] = {}
        self.exported_at: dict[str, int] = {}
        self.rescores: set[str] = set()
        self.canceled: Counter[RunState] = Counter()
        self.refusals: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.looks: list[Look] = []
        self.suspected: set[Sensor] = set()
        self.log: list[str] = []
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._scheduled = 0
        self._numbers: Counter[Partition] = Counter()
        self._ingest = app.ingest()
        self._index = IndexPredictions(app.submit.store, app.blobs)

    @property
    def now(self) -> datetime:
        """The virtual time."""
        return instants.moment(self.time)

    def at(self, time: int, action: Callable[[], None]) -> None:
        """Schedule an action."""
        self._scheduled += 1
        heappush(self._queue, (time, self._scheduled, action))

    def run(self, until: int) -> None:
        """Carry out all that is scheduled before `until`."""
        while self._queue and self._queue[0][0] < until:
            self.time, _, action = heappop(self._queue)
            self.step += 1
            action()

    def note(self, text: str) -> None:
        """Add a line to the log that is shown on failure."""
        elapsed = self.time - BEGIN
        self.log.append(f"{elapsed / HOUR:8.3f} h  step {self.step}  {text}")

    # Devices.

    def deliver(self, start: int) -> None:
        """Ingest the readings of one window of each sensor, and perhaps a few late ones."""
        readings = [
            (sensor, start + offset)
            for sensor in SENSORS
            for offset in (MINUTE, WINDOW - MINUTE // 2)
        ]
        self._send(readings)
        if self.random.random() < 0.25:
            back = self.random.randint(3, 70) * WINDOW
            if start - back >= BEGIN:
                self._send([(self.random.choice(SENSORS), start - back + 2 * MINUTE)])

    def _send(self, readings: list[tuple[Sensor, int]]) -> None:
        batches: dict[Partition, list[tuple[Sensor, int, int]]] = defaultdict(list)
        for number, (sensor, time) in enumerate(readings):
            by = number + self.random.randint(0, 1) if sensor[0] == SPLIT else int(sensor[0][1])
            value = self.random.randint(1, 100)
            batches[Partition("hub", str(by % 2))].append((sensor, time, value))
        for partition, rows in sorted(batches.items()):
            first = self._numbers[partition]
            self._numbers[partition] += len(rows)
            self._ingest(self._batch(partition, first, rows))
            for sensor, time, value in rows:
                window = (*sensor, time // WINDOW * WINDOW)
                self.history.add(self.step, window, value)

    def _batch(
        self, partition: Partition, first: int, rows: list[tuple[Sensor, int, int]]
    ) -> EventBatch:
        bodies = [
            f'{{"device":"{device}","sensor":"{name}","ts":"{instants.text(time)}",'
            f'"value":{value}}}'.encode()
            for (device, name), time, value in rows
        ]
        numbers = np.arange(first, first + len(rows))
        return EventBatch(partition, numbers, np.full(len(rows), self.time), bodies)

    # Timers and triggers.

    def submit(self) -> None:
        """Do as the submit timer does."""
        self._attempt("submit", lambda: self.app.submit("timer", self.fleet, self.now, self._nonce))
        self._note_exports()
        assert len(self.active()) <= self.app.settings.max_active_runs

    def watch(self) -> None:
        """Do as the watch timer does, and look at the store."""
        self.cluster.advance()
        self._attempt("watch", lambda: self.app.watch(self.now, self._nonce))
        self._note_exports()
        self.suspected |= {
            suspect.key for suspect in self.app.submit.store.suspects() if suspect.set_aside_at
        }
        pending = sum(1 for _ in self._pending())
        self.looks.append(Look(self.time, pending, len(self.active())))

    def active(self) -> list[ScoringRun]:
        """Return the runs that have not ended."""
        return self.app.submit.store.active_runs()

    def _pending(self) -> Iterator[object]:
        with self.app.database.read() as connection:
            yield from connection.exec_driver_sql(
                "SELECT 1 FROM window_partials WHERE claimed_by IS NULL"
            )

    @property
    def _nonce(self) -> str:
        return f"{self.step:06x}"

    def _attempt(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except TooManyRuns as error:
            assert "SCORING_MAX_ACTIVE_RUNS is 2" in str(error)
            self.refusals[name] += 1
        except Transient as error:
            self.errors[name] += 1
            self.note(f"{name}: {error}")

    def _note_exports(self) -> None:
        for run in self.active():
            if run.export and run.run_id not in self.exported_at:
                self.exported_at[run.run_id] = self.step
                self.note(f"run {run.number} exported, {run.state}")

    def _on_written(self, name: str) -> None:
        """Deliver what the blob trigger says of a prediction part: at least once, some day."""
        times = self.random.choice((1, 1, 1, 2))
        for _ in range(times):
            late = self.random.random() < 0.05
            delay = self.random.randint(0, 180 if late else 2) * MINUTE
            self.at(self.time + delay, partial(self._index, name))  # type: ignore[arg-type]

    # People.

    def cancel_in(self, state: RunState) -> None:
        """Cancel a run that is in this state, now or as soon as there is one."""
        if not self._CANCEL[state](self):
            self.at(self.time + MINUTE, partial(self.cancel_in, state))

    def rescore(self, device: str, since: int, until: int) -> None:
        """Ask for the windows of a device to be scored again."""
        scope = Scope(since, until, (device,), rescore=True)
        try:
            run = self.app.submit("http", self.fleet, self.now, self._nonce, scope=scope)
        except (Conflict, Transient) as error:
            self.note(f"rescore: {error}")
            self.at(self.time + MINUTE, partial(self.rescore, device, since, until))
            return
        assert run is not None
        self.rescores.add(run.run_id)
        self._note_exports()

    def lose_a_job(self) -> None:
        """Make the engine lose a job, now or as soon as there is one."""
        alive = self.cluster.alive()
        if alive:
            self.note(f"lost {alive[0]}")
            self.cluster.forget(alive[0])
        else:
            self.at(self.time + MINUTE, self.lose_a_job)

    def die_while_claiming(self) -> None:
        """Begin a run, claim a few windows, and do no more: the process is gone."""
        if run := self._begin():
            self.app.submit.store.claim(run, 5)
        else:
            self.at(self.time + MINUTE, self.die_while_claiming)

    def _begin(self) -> ScoringRun | None:
        try:
            run = self.app.submit.begin("manual", self.fleet, self.now, self._nonce)
        except TooManyRuns:
            return None
        return run if run and run.state == RunState.CLAIMING else None

    def _claim_all(self, run: ScoringRun) -> None:
        store = self.app.submit.store
        while store.claim(run, 7):
            self.note(f"run {run.number} claimed a chunk")
        assert store.transition(run, RunState.CLAIMED, self.time)

    def _cancel(self, run: ScoringRun, state: RunState) -> bool:
        current = self.app.submit.store.run(run.run_id)
        assert current.state == state
        ended = self.app.watch.cancel(run.run_id, self.now)
        assert ended.state == RunState.CANCELED
        self.canceled[state] += 1
        self.note(f"run {run.number} canceled while {state}")
        return True

    def _cancel_claiming(self) -> bool:
        if run := self._begin():
            self.app.submit.store.claim(run, self.random.choice((1, 5, 20)))
            self._send([(SENSORS[0], self.time - 20 * MINUTE)])
            return self._cancel(run, RunState.CLAIMING)
        return False

    def _cancel_claimed(self) -> bool:
        if run := self._begin():
            self._claim_all(run)
            return self._cancel(run, RunState.CLAIMED)
        return False

    def _cancel_exported(self) -> bool:
        run = self._begin()
        if run is None:
            return False
        self._claim_all(run)
        # Either the engine does not know the run, or it is at work on it.
        self.cluster.refuses = self.canceled[RunState.EXPORTED] % 2 == 0
        self.cluster.loses_answer = not self.cluster.refuses
        run = self.app.submit.store.run(run.run_id)
        try:
            self.app.submit.advance(run, self.now, self._nonce)
        except ScoringError as error:
            self.note(f"run {run.number} was not submitted: {error}")
        self.cluster.refuses = False
        self._note_exports()
        current = self.app.submit.store.run(run.run_id)
        return current.state == RunState.EXPORTED and self._cancel(current, RunState.EXPORTED)

    def _cancel_following(self, state: RunState) -> bool:
        run = next((run for run in self.active() if run.state == state), None)
        return run is not None and self._cancel(run, state)

    def _cancel_scored(self) -> bool:
        self.cluster.advance()
        for run in self.active():
            job = self.cluster.jobs.get(run.run_id)
            if job is not None and job.state in ENDED and not job.cause:
                self.app.submit.store.transition(run, RunState.SCORED, self.time)
                return self._cancel(run, RunState.SCORED)
        return False

    _CANCEL: dict[RunState, Callable[["World"], bool]] = {  # noqa: RUF012 - never changes
        RunState.CLAIMING: _cancel_claiming,
        RunState.CLAIMED: _cancel_claimed,
        RunState.EXPORTED: _cancel_exported,
        RunState.SUBMITTED: lambda self: self._cancel_following(RunState.SUBMITTED),
        RunState.RUNNING: lambda self: self._cancel_following(RunState.RUNNING),
        RunState.SCORED: _cancel_scored,
    }
