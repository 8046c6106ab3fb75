"""Interleave all that reads from a hub: hosts, repair, rebuilds, runs, and hubs created again."""

import io
from collections import Counter, defaultdict
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import select

from scoring import instants
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.facts import Phase, WindowFacts, read_window_facts
from scoring.adapters.sql.rebuild import SqlRebuildStore
from scoring.adapters.sql.schema import epochs, hub_answers, segments, window_partials
from scoring.errors import CannotBegin, Conflict, ScoringError, Transient
from scoring.handlers.repair import RebuildWindows
from scoring.readings import EventBatch
from scoring.runs import RunState
from tests.fakes.event_log import MemoryHub
from tests.simulated.stream import BEGIN, HOUR, MINUTE, SECOND, Sent, Stream

DEVICES = {"0": ("d0", "quick"), "1": ("d1", "fast", "slow")}
AHEAD = {"slow": -25 * MINUTE, "fast": 290 * SECOND, "quick": 290 * SECOND}
"""How far clocks are ahead of the hub's."""

Place = tuple[str, int, int]
"""Partition, generation of its hub, and sequence number of an event."""


class Incoming:
    """A hub and all who read from it, and the exact account of what was sent."""

    def __init__(self, database: Database, random: Random, touched: Callable[[str], None]) -> None:
        self.database = database
        self.random = random
        self.fault = random.choice(["none", "none", "skipped batches", "expired", "unreachable"])
        hub = MemoryHub("hub", 2, BEGIN - HOUR, touched)
        self.created = {BEGIN - HOUR: 0}
        self.stream = Stream(database, hub, touched=touched, random=random)
        self.resized = False
        self.rebuilt = False
        # The last number of each partition of each hub that the store was ever told of.
        self.seen: dict[tuple[str, int], int] = defaultdict(lambda: -1)
        for _ in range(random.randrange(1, 4)):
            self._send(random.randrange(1, 6))

    # What actors do.

    def host(self) -> None:
        """Deliver from a partition, as one of two hosts that both hold it may."""
        hub = self.stream.hub
        self._disturb()
        partition = self.random.choice(["0", "1"])
        for _ in range(2):
            self._send(self.random.randrange(3))
            generation = hub.generation
            # Fetched at once: they may be applied when the hub has been created again.
            for batch in self._fetched(partition):
                last = int(batch.sequence_numbers[-1])
                if self.fault == "skipped batches" and self.random.random() < 0.3:
                    self._checkpoint(partition, generation, last)
                    continue
                self._ingest(batch, generation)

    def repair(self) -> None:
        """Be the timer that repairs gaps."""
        self._pass(MINUTE)
        self._disturb()
        try:
            self.stream.mend()
        except ScoringError:
            return

    def submit(self) -> None:
        """Be the timer that submits runs."""
        self._pass(self.random.choice([1, 3, 5]) * MINUTE)
        self._disturb()
        try:
            run = self.stream.submit()
        except (CannotBegin, Conflict, Transient):
            return
        if run and run.state is RunState.SUBMITTED:
            self.stream.runs.transition(run, RunState.SCORED, self.stream.now)
            self.stream.runs.transition(run, RunState.COMPLETED, self.stream.now)

    def tick(self) -> None:
        """Have devices send, all be delivered, and the timer submit a run at once."""
        self.stream.hub.is_reachable = True
        self._send(4)
        self.stream.deliver()
        self.stream.submit()
        self._end_runs()

    def recreate(self) -> None:
        """Delete the hub, and create it again."""
        hub = self.stream.hub
        self._pass(10 * SECOND)
        hub.create(2, self.stream.now)
        self.created[self.stream.now] = hub.generation
        self._pass(10 * SECOND)
        # The host goes on at its checkpoint, in the middle of the new hub or at its beginning.
        for partition in self.stream.checkpoints:
            self.stream.checkpoints[partition] = self.random.randrange(3)
        self._send(self.random.randrange(1, 6))

    def expire(self) -> None:
        """Drop the oldest events of a partition."""
        self.stream.hub.expire(self.random.choice(["0", "1"]), self.random.randrange(1, 6))

    def rebuild(self) -> None:
        """Compute all windows anew, in another size or the same."""
        size = self.random.choice([5, 5, 2]) * MINUTE
        self._rebuild(size)

    # What must hold.

    def check_step(self) -> None:
        """Hold what holds at each moment."""
        if self._facts().phase is not Phase.DONE:
            active = [run.state for run in self.stream.runs.active_runs()]
            assert RunState.CLAIMING not in active, "a run claims windows that are being rebuilt"
        with self.database.read() as connection:
            for row in connection.execute(select(hub_answers)):
                if row.last is not None:
                    key = (row.partition.rpartition("/")[2], self.created[row.created])
                    self.seen[key] = max(self.seen[key], row.last)
        assert max(self._counted().values(), default=1) == 1, "an event is counted twice"

    def drain(self) -> None:
        """Let hosts and timers go on until nothing waits."""
        stream = self.stream
        self.fault = "none"
        stream.hub.is_reachable = True
        if self._facts().phase is not Phase.DONE:
            self._rebuild(self._facts().size or 0)
        for _ in range(3):
            self._pass(MINUTE)
            stream.deliver()
            stream.mend()
        for _ in range(40):
            self._pass(5 * MINUTE)
            stream.mend()
            self._end_runs()
            self.submit()
            if self._is_calm():
                return
        message = f"does not come to rest: {stream.standings()}, {stream.missing}"
        raise AssertionError(message)

    def check_end(self) -> None:
        """Hold what holds once all is done."""
        counted = self._counted()
        lost = self.stream.missing
        assert all(state == "lost" for gaps in lost.values() for *_, state in gaps), lost
        gone = self._places(lost)
        for partition, generation, number in counted:
            key = (partition, generation)
            self.seen[key] = max(self.seen[key], number)
        expected = self._expected()
        for one in self.stream.sent:
            place = (one.partition, one.generation, one.number)
            if place not in counted and place not in gone:
                # Nobody can know what a hub took before it was first seen, or after it was last;
                # nor that there was one which was never seen while it existed.
                key, is_newest = place[:2], one.generation == self.stream.hub.generation
                was_seen = is_newest or key in expected
                is_known = (
                    was_seen
                    and expected.get(key, 0) <= one.number
                    and (is_newest or one.number <= self.seen[key])
                )
                assert not is_known, f"{place} is neither counted nor missing"
        self._check_windows(counted)
        if not self.rebuilt:
            self._check_scorings(counted)

    def _check_windows(self, counted: Counter[Place]) -> None:
        """Hold that windows have what the segments have."""
        size = self._facts().size or 0
        expected: dict[tuple[str, int], list[float]] = defaultdict(list)
        for one in self.stream.sent:
            if (one.partition, one.generation, one.number) in counted:
                expected[one.window[0], one.time // size * size].append(one.value)
        found = self.stream.counts()
        assert {key: count for key, (count, _) in found.items()} == {
            key: len(values) for key, values in expected.items()
        }
        assert all(abs(found[key][1] - sum(values)) < 1e-6 for key, values in expected.items())
        for window, (count, _) in found.items():
            if not self.resized:
                assert self.stream.scored[window][-1].count == count, "not scored with all"

    def _check_scorings(self, counted: Counter[Place]) -> None:
        """Hold that a window whose readings came in time is whole when it is scored first."""
        windows: dict[tuple[str, int], list[Sent]] = defaultdict(list)
        for one in self.stream.sent:
            windows[one.window].append(one)
        rules, gaps = self.stream.windowing, self.stream.store.gaps()
        for window, own in windows.items():
            in_time = all(
                one.enqueued <= window[1] + rules.size + rules.allowed_lateness for one in own
            )
            is_old = any(one.generation < self.stream.hub.generation for one in own)
            if not in_time or is_old or not self.stream.scored[window]:
                continue
            first = self.stream.scored[window][0]
            there = [o for o in own if (o.partition, o.generation, o.number) in counted]
            ever_missing = any(one.is_in(gap) for one in own for gap in gaps)
            if not ever_missing and len(there) == len(own):
                assert first.count == len(own), f"{window} was scored with {first.count} of {own}"

    # Beneath.

    def _disturb(self) -> None:
        """Have the hub answer or not, where that is the fault."""
        self.stream.hub.is_reachable = self.fault != "unreachable" or self.random.random() < 0.5

    def _fetched(self, partition: str) -> list[EventBatch]:
        try:
            return list(self.stream.waiting(partition, self.random.choice([1, 2, 5])))
        except Transient:
            return []

    def _ingest(self, batch: EventBatch, generation: int) -> None:
        try:
            self.stream.ingest(batch)
        except Transient:
            # Delivered again: by this host, or by the next one.
            return
        self._checkpoint(batch.partition.id, generation, int(batch.sequence_numbers[-1]))

    def _checkpoint(self, partition: str, generation: int, last: int) -> None:
        if generation == self.stream.hub.generation:
            before = self.stream.checkpoints.get(partition, 0)
            self.stream.checkpoints[partition] = max(before, last + 1)

    def _send(self, readings: int) -> None:
        """Have devices send; the clock goes on."""
        for _ in range(readings):
            self._pass(self.random.choice([SECOND // 2, 20 * SECOND, 90 * SECOND]))
            partition = self.random.choice(["0", "1"])
            device = self.random.choice(DEVICES[partition])
            self.stream.read(partition, device, self.stream.now + AHEAD.get(device, -SECOND))

    def _pass(self, time: int) -> None:
        self.stream.now += time

    def _rebuild(self, size: int) -> None:
        store = SqlRebuildStore(self.database)
        before = self._facts().size
        handler = RebuildWindows(store, self.stream.blobs)
        try:
            # Noted before: who is killed may have begun.
            self.rebuilt = True
            self.resized = self.resized or size != before
            handler(size, lambda _, __: None)
        except Conflict:
            return

    def _facts(self) -> WindowFacts:
        with self.database.read() as connection:
            return read_window_facts(connection)

    def _end_runs(self) -> None:
        runs = self.stream.runs
        for left in runs.active_runs():
            now = instants.moment(self.stream.now)
            run = self.stream.submitter.advance(left, now, "00000e")
            self.stream.note(run)
            for state in (RunState.SCORED, RunState.COMPLETED):
                runs.transition(run, state, self.stream.now)

    def _is_calm(self) -> bool:
        table = window_partials.c
        with self.database.read() as connection:
            waits = connection.execute(select(table.device).where(table.claimed_by.is_(None)))
            if waits.first() is not None:
                return False
        behind = [state for state, _ in self.stream.progress.standings(self.stream.now)]
        return not any(state.unapplied for state in behind) and not self.stream.store.gaps("open")

    def _counted(self) -> Counter[Place]:
        """Return how often each event was counted, by the segments that the manifest names.

        An event is known by its value: that of a hub which nobody saw while it existed may be of
        its predecessor's epoch.
        """
        with self.database.read() as connection:
            names = connection.execute(select(segments.c.blob)).scalars().all()
        counted: Counter[Place] = Counter()
        for name in names:
            table = pq.read_table(io.BytesIO(self.stream.blobs.content[name]))
            sent = [self.stream.sent[int(value)] for value in table["value"].to_pylist()]
            counted.update((one.partition, one.generation, one.number) for one in sent)
        return counted

    def _expected(self) -> dict[tuple[str, int], int]:
        """Return the first number that was expected of each partition of each hub."""
        with self.database.read() as connection:
            rows = connection.execute(select(epochs)).all()
        return {
            (row.partition.rpartition("/")[2], self._generation(row)): row.first_sequence
            for row in rows
        }

    def _generation(self, row: Any) -> int:
        """Return of which hub an epoch is."""
        born = row.first_enqueued if row.created is None else row.created
        return max(number for at, number in self.created.items() if at <= born)

    def _places(self, gaps: dict[tuple[str, int], list[tuple[int, int, str]]]) -> set[Place]:
        with self.database.read() as connection:
            rows = connection.execute(select(epochs)).all()
        born = {
            (row.partition.rpartition("/")[2], row.epoch): self._generation(row) for row in rows
        }
        return {
            (partition, born[partition, epoch], number)
            for (partition, epoch), ranges in gaps.items()
            for first, last, _ in ranges
            for number in range(first, last + 1)
        }
