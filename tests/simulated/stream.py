"""An event hub on a virtual clock, a host that delivers from it, and what was scored when."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from scoring import instants
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.rebuild import settle_window
from scoring.adapters.sql.runs import SqlRunStore
from scoring.handlers.hub import HubProgress
from scoring.handlers.ingest import Ingest, IngestOutcome
from scoring.handlers.repair import RepairGaps
from scoring.handlers.submit import SubmitRun
from scoring.horizon import HorizonRules, Standing
from scoring.ports import Gap
from scoring.predictions import INPUT_SCHEMA, read_table
from scoring.readings import EventBatch, Partition, ReadingDecoder
from scoring.runs import RunState, ScoringRun
from scoring.windows import Windowing
from tests.fakes.blobs import MemoryBlobs
from tests.fakes.engine import NoEngine
from tests.fakes.event_log import MemoryHub

SECOND = instants.SECOND
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
BEGIN = 1_767_571_200 * SECOND
"""Monday, 5 January 2026, 00:00 UTC."""

WINDOWING = Windowing(5 * MINUTE, 2 * MINUTE, 10 * MINUTE)
RULES = HorizonRules(idle_timeout=5 * MINUTE, stall_timeout=HOUR)
SENSOR = "s"

Window = tuple[str, int]
"""Device and start."""


@dataclass(frozen=True)
class Scoring:
    """One scoring of a window: the run, when it was submitted, and how many readings it had."""

    run: str
    at: int
    count: int


@dataclass
class Sent:
    """A reading as it was sent; values differ, so that sums tell which were counted.

    Attributes
    ----------
    generation
        Of the hub, and so the number of its epoch.
    """

    window: Window
    enqueued: int
    value: float
    partition: str = ""
    generation: int = 0
    number: int = 0
    time: int = 0

    def is_in(self, gap: Gap) -> bool:
        """Return whether the reading's event is one of a gap."""
        place = (gap.partition.id, gap.epoch)
        return place == (self.partition, self.generation) and gap.first <= self.number <= gap.last


@dataclass
class Stream:
    """A hub, a host that delivers from it, timers, and the account of what was sent.

    Attributes
    ----------
    checkpoints
        The next number that the host delivers of each partition.
    scored
        What each window was scored with, in the order of the runs.
    gaps
        What was on record as missing when each run was submitted.
    """

    database: Database
    hub: MemoryHub
    now: int = BEGIN
    windowing: Windowing = WINDOWING
    touched: Callable[[str], None] = lambda _: None
    checkpoints: dict[str, int] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    scored: dict[Window, list[Scoring]] = field(default_factory=lambda: defaultdict(list))
    gaps: dict[str, list[Gap]] = field(default_factory=dict)
    random: Random = field(default_factory=lambda: Random(0))

    def __post_init__(self) -> None:
        settle_window(self.database, self.windowing.size, self.windowing.size)
        self.blobs = MemoryBlobs(self.touched)
        self.store = SqlIngestStore(self.database)
        self.runs = SqlRunStore(self.database)
        self.progress = HubProgress(self.store, self.hub, RULES)
        decoder = ReadingDecoder()
        self.ingest = Ingest(self.store, self.blobs, decoder, self.windowing, log=self.hub)
        self.repair = RepairGaps(self.store, self.hub, self.ingest, self.progress)
        self.submitter = SubmitRun(
            self.runs,
            self.blobs,
            NoEngine(),
            self.progress,
            self.windowing.allowed_lateness,
            part_rows=10_000,
        )

    def read(
        self, partition: str, device: str, event_time: int, enqueued: int | None = None
    ) -> None:
        """Have a device send a reading."""
        at = self.now if enqueued is None else enqueued
        value = float(len(self.sent))
        body = {"device": device, "sensor": SENSOR, "ts": event_time // 1000, "value": value}
        event = self.hub.send(partition, [json.dumps(body).encode()], [at])
        start = event_time // self.windowing.size * self.windowing.size
        number = int(event.sequence_numbers[0])
        self.sent.append(
            Sent((device, start), at, value, partition, self.hub.generation, number, event_time)
        )

    def deliver(self, *partitions: str, batch_size: int = 100) -> IngestOutcome:
        """Have the host deliver all that waits."""
        outcome = IngestOutcome()
        for partition in partitions or [one.id for one in self.hub.survey()]:
            for batch in self.waiting(partition, batch_size):
                outcome += self.ingest(batch)
                self.checkpoints[partition] = int(batch.sequence_numbers[-1]) + 1
        return outcome

    def waiting(self, partition: str, batch_size: int = 100) -> Iterable[EventBatch]:
        """Return what the host would deliver."""
        answer = self.hub.look(Partition(self.hub.name, partition))
        if answer is None or answer.is_empty:
            return
        first = max(self.checkpoints.get(partition, 0), answer.beginning)
        for begin in range(first, answer.last + 1, batch_size):
            yield self.hub.batch(partition, begin, min(begin + batch_size - 1, answer.last))

    def submit(self) -> ScoringRun | None:
        """Be the timer that submits runs."""
        nonce = f"{self.random.randrange(16**6):06x}"
        run = self.submitter("timer", "f1", instants.moment(self.now), nonce)
        if run:
            self.note(run)
        return run

    def end_runs(self) -> None:
        """Have every run be scored and complete."""
        for run in self.runs.active_runs():
            for state in (RunState.SCORED, RunState.COMPLETED):
                self.runs.transition(run, state, self.now)

    def mend(self) -> IngestOutcome:
        """Be the timer that repairs gaps."""
        return self.repair(self.now)

    def standings(self) -> dict[str, Standing]:
        """Return how each partition of the hub stands."""
        return {
            state.partition.id: standing
            for state, standing in self.progress.standings(self.now)
            if state.partition.hub == self.hub.name
        }

    @property
    def missing(self) -> dict[tuple[str, int], list[tuple[int, int, str]]]:
        """Return the gaps by partition and epoch, without those that were repaired."""
        gaps: dict[tuple[str, int], list[tuple[int, int, str]]] = defaultdict(list)
        for gap in self.store.gaps():
            if gap.state != "repaired":
                gaps[gap.partition.id, gap.epoch].append((gap.first, gap.last, gap.state))
        return dict(gaps)

    def counts(self) -> dict[Window, tuple[int, float]]:
        """Return count and sum of every window in the store."""
        with self.database.read() as connection:
            rows = connection.exec_driver_sql(
                "SELECT device, window_start, sum(count), sum(count * mean)"
                " FROM window_partials GROUP BY device, window_start"
            ).all()
        return {(device, start): (int(count), float(total)) for device, start, count, total in rows}

    def expected(self, sent: Iterable[Sent] | None = None) -> dict[Window, tuple[int, float]]:
        """Return count and sum of every window of what was sent."""
        counts: dict[Window, tuple[int, float]] = {}
        for one in self.sent if sent is None else sent:
            count, total = counts.get(one.window, (0, 0.0))
            counts[one.window] = (count + 1, total + one.value)
        return counts

    def note(self, run: ScoringRun) -> None:
        """Note what a run was given to score."""
        self.gaps[run.run_id] = self.store.gaps("open")
        for name in sorted(self.blobs.content):
            if not name.startswith(run.input_prefix):
                continue
            table = read_table(self.blobs.content[name], INPUT_SCHEMA, name)
            starts = table["window_start"].cast(pa.int64()).to_pylist()
            devices, counts = table["device"].to_pylist(), table["count"].to_pylist()
            for device, start, count in zip(devices, starts, counts, strict=True):
                self.scored[device, start].append(Scoring(run.run_id, self.now, count))
        self.blobs.delete(f"runs/{run.run_id}/")


def close(
    found: dict[Window, tuple[int, float]], expected: dict[Window, tuple[int, float]]
) -> bool:
    """Return whether windows agree, sums up to rounding."""
    if found.keys() != expected.keys():
        return False
    return all(
        found[key][0] == expected[key][0] and bool(np.isclose(found[key][1], expected[key][1]))
        for key in expected
    )


def hurry(connection: Any, _: object) -> None:
    """Have SQLite wait for no disk: nothing here outlives the process."""
    connection.execute("PRAGMA synchronous=OFF")
