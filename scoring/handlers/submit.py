"""Submit a scoring run: claim final windows, export them as input parts, hand them to the engine.

Each step is persisted before the next begins, and can be repeated by any process at any time: two
that drive one run do some work twice, and never differ in what counts.
"""

import io
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scoring import instants
from scoring.aggregates import Partials
from scoring.errors import Conflict, ScoringError
from scoring.ports import Blobs, Engine, RunStore, ScoringOrder
from scoring.predictions import INPUT_SCHEMA
from scoring.runs import (
    EVERYTHING,
    Part,
    RequestKey,
    RunState,
    Scope,
    ScoringRun,
    input_prefix,
    part_name,
    part_of,
    run_id,
)
from scoring.windows import horizon, last_final_start

CLAIM_LIMIT = 50_000
"""Windows claimed in one transaction: bounded, so that ingest is never blocked for long."""

ATTEMPTS = 3
"""How often a run is proposed while others are claiming."""

ROW_GROUP = 16_384
"""Rows of a part that are gathered before they are compressed."""


@dataclass(frozen=True, slots=True)
class SubmitRun:
    """The submit handler.

    Attributes
    ----------
    window, allowed_lateness, idle_timeout
        Microseconds.
    part_rows
        About how many windows an input part holds.
    """

    store: RunStore
    blobs: Blobs
    engine: Engine
    window: int
    allowed_lateness: int
    idle_timeout: int
    part_rows: int

    def __call__(  # noqa: PLR0913 - what only some callers have comes by keyword
        self,
        trigger: str,
        fleet_version: str,
        now: datetime,
        nonce: str,
        *,
        scope: Scope = EVERYTHING,
        request: RequestKey | None = None,
    ) -> ScoringRun | None:
        """Make one run of the pending final windows and submit it; None if there are none.

        Parameters
        ----------
        trigger
            Who asked: ``timer``, ``http``, ``manual``.
        nonce
            Six hexadecimal digits for the run's id.
        scope
            Which windows; those that are not final are never among them.
        request
            A request of the same key gets the run that was made for it.

        Raises
        ------
        Conflict
            The key was used for another request, or other runs are claiming all the time.
        """
        run = self.begin(trigger, fleet_version, now, nonce, scope=scope, request=request)
        return run and self.advance(run, now, nonce)

    def begin(  # noqa: PLR0913 - as above
        self,
        trigger: str,
        fleet_version: str,
        now: datetime,
        nonce: str,
        *,
        scope: Scope = EVERYTHING,
        request: RequestKey | None = None,
    ) -> ScoringRun | None:
        """Record the run and nothing more: whoever advances it later does the rest."""
        reached = self.horizon(now)
        if reached is None:
            return None
        last_start = last_final_start(reached, self.window, self.allowed_lateness)
        proposed = ScoringRun(
            number=0,
            run_id=run_id(now, nonce),
            state=RunState.CLAIMING,
            trigger=trigger,
            fleet_version=fleet_version,
            last_start=last_start if scope.until is None else min(last_start, scope.until - 1),
            created_at=instants.of(now),
            first_start=scope.since,
            devices=tuple(sorted(set(scope.devices))),
            rescore=scope.rescore,
            request=request,
        )
        return self._begin(proposed, now, nonce)

    def horizon(self, now: datetime) -> int | None:
        """Give the event time up to which everything has arrived; None if nothing ever did."""
        return horizon(self.store.progress(), instants.of(now), self.idle_timeout)

    def advance(self, run: ScoringRun, now: datetime, nonce: str) -> ScoringRun:
        """Drive a run, wherever it stopped, until the engine has it."""
        steps: dict[RunState, Callable[[ScoringRun], object]] = {
            RunState.CLAIMING: lambda run: self._claim(run, now),
            RunState.CLAIMED: lambda run: self._export(run, nonce),
            RunState.EXPORTED: lambda run: self._submit(run, now),
        }
        while step := steps.get(run.state):
            step(run)
            run = self.store.run(run.run_id)
        return run

    def resubmit(self, run: ScoringRun) -> None:
        """Hand a run to the engine, again if need be: the engine knows it by its id."""
        self.engine.submit(
            ScoringOrder(run.run_id, run.fleet_version, run.input_prefix, run.prediction_prefix)
        )

    def _begin(self, proposed: ScoringRun, now: datetime, nonce: str) -> ScoringRun | None:
        for _ in range(ATTEMPTS):
            run = self.store.begin_run(proposed)
            if run is None or run.answers(proposed):
                return run
            # Another claim is under way: once it has ended, this one can begin.
            self.advance(run, now, nonce)
        message = "other runs are claiming windows all the time: try again"
        raise Conflict(message)

    def _claim(self, run: ScoringRun, now: datetime) -> None:
        while self.store.claim(run, CLAIM_LIMIT):
            pass
        self.store.transition(run, RunState.CLAIMED, instants.of(now))

    def _export(self, run: ScoringRun, export: str) -> None:
        count = max(1, -(-self.store.count_claimed(run) // self.part_rows))
        parts = _Parts(count)
        for windows in self.store.claimed(run):
            parts.add(windows)
        prefix = input_prefix(run.run_id, export)
        for part, data in parts.finished():
            # Written once: what the engine was told to score never changes.
            self.blobs.create(prefix + part_name(part.number), data)
        recorded = self.store.record_export(run, export, parts.written)
        # Where the answer to it was lost and it is asked again, this very export was first.
        if not recorded and self.store.run(run.run_id).export != export:
            self.blobs.delete(prefix)

    def _submit(self, run: ScoringRun, now: datetime) -> None:
        try:
            self.resubmit(run)
        except ScoringError as error:
            # Whoever looks at the run sees what keeps it, until it is submitted after all.
            self.store.note(run, f"not submitted yet: {error}")
            raise
        self.store.transition(run, RunState.SUBMITTED, instants.of(now))


class _Parts:
    """Spreads windows over input parts, each sensor whole, as compressed Parquet in memory."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: dict[int, list[pa.Table]] = defaultdict(list)
        self._sinks: dict[int, tuple[io.BytesIO, pq.ParquetWriter]] = {}
        self._rows: dict[int, int] = defaultdict(int)

    @property
    def written(self) -> list[Part]:
        """The parts that have rows, in order."""
        return [Part(number, rows) for number, rows in sorted(self._rows.items())]

    def add(self, windows: Partials) -> None:
        numbers = part_numbers(windows, self._count)
        table = input_table(windows)
        for number in np.unique(numbers).tolist():
            rows = table.take(np.flatnonzero(numbers == number))
            self._rows[number] += rows.num_rows
            self._waiting[number].append(rows)
            if sum(waiting.num_rows for waiting in self._waiting[number]) >= ROW_GROUP:
                self._compress(number)

    def finished(self) -> list[tuple[Part, bytes]]:
        """Close the files; gives each part that has rows with its bytes."""
        for number in [number for number, tables in self._waiting.items() if tables]:
            self._compress(number)
        for _, writer in self._sinks.values():
            writer.close()
        return [(part, self._sinks[part.number][0].getvalue()) for part in self.written]

    def _compress(self, number: int) -> None:
        if number not in self._sinks:
            sink = io.BytesIO()
            self._sinks[number] = sink, pq.ParquetWriter(sink, INPUT_SCHEMA, compression="zstd")
        tables = pa.concat_tables(self._waiting.pop(number)).unify_dictionaries()
        self._sinks[number][1].write_table(tables)


def part_numbers(windows: Partials, count: int) -> np.ndarray:
    """Part of each window; int64, shape (windows,)."""
    known: dict[tuple[str, str], int] = {}
    numbers = np.empty(len(windows), dtype=np.int64)
    for row, (device, sensor, _) in enumerate(windows.keys):
        number = known.get((device, sensor))
        if number is None:
            number = known[device, sensor] = part_of(device, sensor, count)
        numbers[row] = number
    return numbers


def input_table(windows: Partials) -> pa.Table:
    """Windows as rows of an input part."""
    device, sensor, start = zip(*windows.keys, strict=True)
    columns = {
        "device": pa.array(device, pa.string()).dictionary_encode(),
        "sensor": pa.array(sensor, pa.string()).dictionary_encode(),
        "window_start": pa.array(start, pa.int64()),
        "count": windows.count,
        "mean": windows.mean,
        "std": windows.std(),
        "min": windows.min,
        "max": windows.max,
        "last": windows.last,
    }
    return pa.table(columns).cast(INPUT_SCHEMA)
