"""A cluster of one node on a virtual clock: an engine that fails in every way that one can."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import pyarrow as pa

from scoring.errors import Transient
from scoring.instants import SECOND
from scoring.ports import Blobs, EngineReport, EngineState, ScoringOrder
from scoring.predictions import INPUT_SCHEMA, read_table, write_table
from scoring.runs import error_name
from tests.adapters.stores import predictions

MINUTE = 60 * SECOND

Sensor = tuple[str, str]
Window = tuple[str, str, int]
Version = tuple[int, int]
"""Number and sum of the readings of a window: each reading changes it."""

ENDED = (EngineState.COMPLETED, EngineState.FAILED, EngineState.CANCELED)


@dataclass(frozen=True, slots=True)
class Period:
    """From `since` until before `until`, microseconds."""

    since: int
    until: int

    def __contains__(self, moment: int) -> bool:
        return self.since <= moment < self.until


NEVER = Period(0, 0)


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, and when.

    Attributes
    ----------
    broken_image
        A job that starts then fails at once.
    no_quota
        No job starts then.
    poison
        When a part that holds the sensor cannot be scored.
    names_part
        Whether a part that cannot be scored leaves a file with its cause; else its worker dies.
    stops_at_once
        Whether a job ends with its first failed part; else it scores all other parts first.
    amnesia
        The engine loses every job at once then.
    errors
        Chance that a call fails and may be repeated: a submit before or after it was accepted.
    """

    broken_image: Period = NEVER
    no_quota: Period = NEVER
    poison: tuple[Sensor, Period] = (("", ""), NEVER)
    names_part: bool = True
    stops_at_once: bool = False
    amnesia: Period = NEVER
    errors: float = 0.0


@dataclass(slots=True)
class Job:
    """One run in the engine. `finishing` are the parts that are left, in the order they finish."""

    order: ScoringOrder
    accepted: int
    finishing: list[str]
    parts: int
    state: EngineState = EngineState.QUEUED
    cause: str = ""
    started: int | None = None
    stops_at: int | None = None

    def due(self, duration: int) -> int:
        """When the next part finishes."""
        assert self.started is not None
        done = self.parts - len(self.finishing)
        return self.started + duration * (done + 1) // self.parts


def version_of(score: float) -> Version:
    """Return the version of the data that gave a score."""
    return divmod(abs(int(score)), 1_000_000)


def _score(version: Version) -> float:
    count, total = version
    return float(count * 1_000_000 + total) * (1 if total % 5 == 0 else -1)


def versions(part: pa.Table) -> dict[Window, Version]:
    """Return the version of each window in an input part."""
    columns = [part[name].to_pylist() for name in ("device", "sensor")]
    columns += [part["window_start"].cast("int64").to_pylist()]
    columns += [part[name].to_pylist() for name in ("count", "mean")]
    return {
        (device, sensor, start): (count, round(count * mean))
        for device, sensor, start, count, mean in zip(*columns, strict=True)
    }


@dataclass(slots=True)
class Cluster:
    """An engine with one node, which takes the same time for every job.

    Attributes
    ----------
    clock
        Returns the virtual time, epoch microseconds UTC.
    written
        Told the name of each prediction part.
    duration, slowness
        Microseconds that a job takes, and that it goes on for after it was canceled.
    refuses
        Whether every submit fails before the job is accepted.
    loses_answer
        Whether the next submit fails after the job is accepted.
    accepted
        Input of each run in the order of acceptance; a run that was lost appears once.
    """

    blobs: Blobs
    clock: Callable[[], int]
    written: Callable[[str], None]
    random: Random
    faults: Faults = Faults()
    duration: int = 8 * MINUTE
    slowness: int = 3 * MINUTE
    refuses: bool = False
    loses_answer: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)
    accepted: dict[str, dict[Window, Version]] = field(default_factory=dict)
    part_sizes: dict[str, list[int]] = field(default_factory=dict)
    lost: int = 0
    _free_at: int = 0

    def submit(self, order: ScoringOrder) -> None:
        """Queue a job, or do nothing where there is one."""
        self.advance()
        if self.refuses:
            message = "the engine does not answer"
            raise Transient(message)
        if self._fails():
            message = "the connection was refused"
            raise Transient(message)
        if order.run_id not in self.jobs:
            self._accept(order)
        if self.loses_answer or self._fails():
            self.loses_answer = False
            message = "the connection was reset after the request was sent"
            raise Transient(message)

    def poll(self, run_id: str) -> EngineReport | None:
        """Tell how far the job is."""
        self.advance()
        if self._fails():
            message = "the engine is busy"
            raise Transient(message)
        job = self.jobs.get(run_id)
        if job is None:
            return None
        return EngineReport(job.state, job.cause, started=job.started)

    def cancel(self, run_id: str) -> None:
        """Stop a job: at once while it waits, and slowly while it runs."""
        self.advance()
        if self._fails():
            message = "the engine cannot cancel now"
            raise Transient(message)
        job = self.jobs.get(run_id)
        if job is None or job.state in ENDED:
            return
        if job.state == EngineState.QUEUED:
            job.state = EngineState.CANCELED
        elif job.stops_at is None:
            job.stops_at = self.clock() + self.slowness

    def wait(self, run_id: str, timeout: float) -> None:
        """Nobody waits on a virtual clock."""

    def close(self) -> None:
        """Nothing to close."""

    def forget(self, run_id: str) -> None:
        """Lose a job: it stops, and nobody knows that it ever was."""
        job = self.jobs.pop(run_id)
        self.lost += 1
        if job.state == EngineState.RUNNING:
            self._free_at = self.clock()

    def alive(self) -> list[str]:
        """Return the runs whose jobs have not ended."""
        return [run_id for run_id, job in self.jobs.items() if job.state not in ENDED]

    def advance(self) -> None:
        """Do all that the node has done until now."""
        now = self.clock()
        if now in self.faults.amnesia:
            for run_id in self.alive():
                self.forget(run_id)
        while job := self._current(now):
            if not self._work(job, now):
                return

    def _fails(self) -> bool:
        return self.random.random() < self.faults.errors

    def _accept(self, order: ScoringOrder) -> None:
        names = [blob.name.rpartition("/")[2] for blob in self.blobs.list(order.input_prefix)]
        self.jobs[order.run_id] = Job(order, self.clock(), names, len(names))
        inputs = [versions(self._input(order, name)) for name in names]
        given = {window: version for part in inputs for window, version in part.items()}
        assert len(given) == sum(map(len, inputs)), "a window was exported twice"
        assert self.accepted.setdefault(order.run_id, given) == given
        self.part_sizes[order.run_id] = [len({window[:2] for window in part}) for part in inputs]

    def _input(self, order: ScoringOrder, name: str) -> pa.Table:
        return read_table(self.blobs.read(order.input_prefix + name)[0], INPUT_SCHEMA, name)

    def _current(self, now: int) -> Job | None:
        """Return the job on the node, or start the next one; None where none can start."""
        waiting = []
        for job in self.jobs.values():
            if job.state == EngineState.RUNNING:
                return job
            if job.state == EngineState.QUEUED:
                waiting.append(job)
        if not waiting:
            return None
        job = waiting[0]
        start = max(job.accepted, self._free_at)
        if start in self.faults.no_quota:
            start = self.faults.no_quota.until
        if start > now:
            return None
        job.started, job.state = start, EngineState.RUNNING
        if start in self.faults.broken_image:
            self._end(job, EngineState.FAILED, start, "the image cannot be pulled")
        else:
            self._put_poison_last(job, start)
        return job

    def _put_poison_last(self, job: Job, start: int) -> None:
        """Let a part that fails be tried again until all others are scored."""
        sensor, period = self.faults.poison
        if start in period and not self.faults.stops_at_once:
            job.finishing.sort(key=lambda name: sensor in self._sensors(job, name))

    def _work(self, job: Job, now: int) -> bool:
        """Go on with a job; False if there is nothing more to do until now."""
        while job.state == EngineState.RUNNING:
            due = job.due(self.duration) if job.finishing else now
            if job.stops_at is not None and job.stops_at <= min(due, now):
                self._end(job, EngineState.CANCELED, job.stops_at)
            elif due > now:
                return False
            else:
                self._finish(job, job.finishing.pop(0), due)
        return True

    def _finish(self, job: Job, name: str, due: int) -> None:
        sensor, period = self.faults.poison
        if due in period and sensor in self._sensors(job, name):
            cause = f"worker 1 ended at {name}"
            if self.faults.names_part:
                text = f"{sensor[1]} cannot be scored\n"
                self.blobs.write(job.order.prediction_prefix + error_name(name), text.encode())
            self._end(job, EngineState.FAILED, due, cause)
            return
        windows = versions(self._input(job.order, name))
        rows = [(*window, _score(version)) for window, version in windows.items()]
        target = job.order.prediction_prefix + name
        self.blobs.write(target, write_table(predictions(*rows)))
        self.written(target)
        if not job.finishing:
            self._end(job, EngineState.COMPLETED, due)

    def _sensors(self, job: Job, name: str) -> Sequence[Sensor]:
        return [window[:2] for window in versions(self._input(job.order, name))]

    def _end(self, job: Job, state: EngineState, moment: int, cause: str = "") -> None:
        job.state, job.cause = state, cause
        self._free_at = moment
