"""A week of a hub on a virtual clock: outages, wrong clocks, and a hub that is created again."""

from collections import defaultdict
from collections.abc import Iterator
from random import Random

import pytest
from sqlalchemy import event

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.migrations import migrate
from tests.fakes.event_log import MemoryHub
from tests.simulated.stream import BEGIN, HOUR, MINUTE, SECOND, WINDOWING, Stream, close, hurry

DAY = 24 * HOUR
EVERY = 150 * SECOND
"""Between two readings of a device: two a window."""

CLOCKS = {
    **dict.fromkeys(("d0", "d1", "d2", "d3"), 0),
    "fast": 4 * MINUTE,
    "slow": -8 * MINUTE,
    "very slow": -8 * HOUR,
}
"""How far each device's clock is ahead of the hub's."""

OUTAGES = ((BEGIN + DAY, BEGIN + DAY + 2 * HOUR), (BEGIN + 4 * DAY, BEGIN + 4 * DAY + 2 * HOUR))
"""When nothing was ingested."""

CREATED_AGAIN = BEGIN + 3 * DAY + 40 * SECOND

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Week"]:
    database = Database.file(tmp_path_factory.mktemp("week") / "store.db")
    event.listen(database.engine, "connect", hurry)
    migrate(database)
    week = Week(database)
    week.run()
    yield week
    database.close()


class Week:
    """Plays the week."""

    def __init__(self, database: Database) -> None:
        self.random = Random(7)
        self.stream = Stream(database, MemoryHub("hub", 4, BEGIN - DAY), random=self.random)
        self.late = 0

    def run(self) -> None:
        stream = self.stream
        while stream.now < BEGIN + 7 * DAY + 12 * HOUR:
            stream.now += EVERY // 5
            if stream.now == CREATED_AGAIN // (EVERY // 5) * (EVERY // 5):
                self._create_again()
            if stream.now < BEGIN + 7 * DAY and (stream.now - BEGIN) % EVERY == 0:
                self._send()
            if not any(begin <= stream.now < end for begin, end in OUTAGES):
                self._deliver()
            if (stream.now - BEGIN) % (15 * MINUTE) == 0:
                stream.mend()
            if (stream.now - BEGIN) % (5 * MINUTE) == 0:
                stream.submit()

    def _send(self) -> None:
        """Have each device send; the transport takes up to two seconds."""
        for number, (device, ahead) in enumerate(CLOCKS.items()):
            at = self.stream.now + self.random.randrange(1, 2000) * 1000
            self.stream.read(str(number % 4), device, at + ahead - 1000, at)

    def _deliver(self) -> None:
        """Deliver what waits; now and then the host drops an event batch and goes on."""
        for number in range(4):
            for batch in self.stream.waiting(str(number), 40):
                self.stream.checkpoints[str(number)] = int(batch.sequence_numbers[-1]) + 1
                if self.random.random() < 0.01:
                    continue
                self.late += self.stream.ingest(batch).late
                if self.random.random() < 0.02:
                    assert self.stream.ingest(batch).events == len(batch)

    def _create_again(self) -> None:
        """Delete the hub with what waits in it, and create it again; the host goes on as before."""
        for number in range(4):
            for batch in self.stream.waiting(str(number)):
                self.stream.ingest(batch)
        self.stream.hub.create(4, self.stream.now + 10 * SECOND)
        self.stream.now += 30 * SECOND
        # The host's checkpoints are of the old hub: it takes some partitions up in their middle.
        self.stream.checkpoints = {"0": 0, "1": 3, "2": 2, "3": 0}


def test_every_window_ends_with_the_right_aggregate(week: Week) -> None:
    assert len(week.stream.sent) == (7 * DAY // EVERY - 1) * len(CLOCKS)
    assert close(week.stream.counts(), week.stream.expected())
    assert week.stream.missing == {}


def test_the_last_scoring_of_every_window_had_all_of_its_readings(week: Week) -> None:
    full = {window: count for window, (count, _) in week.stream.expected().items()}

    assert {window: found[-1].count for window, found in week.stream.scored.items()} == full


def test_windows_whose_readings_were_enqueued_in_time_are_scored_once_with_whole_data(
    week: Week,
) -> None:
    stream, readings = week.stream, defaultdict(list)
    for one in stream.sent:
        readings[one.window].append(one)
    span = WINDOWING.size + WINDOWING.allowed_lateness
    in_time = {
        window: own
        for window, own in readings.items()
        if all(one.enqueued <= window[1] + span for one in own)
    }
    in_halves = {
        window: stream.scored[window][0].run
        for window, own in in_time.items()
        if stream.scored[window][0].count != len(own)
    }

    assert len(in_time) > 0.6 * len(readings)
    # The host dropped event batches: what lay in a gap when the run was submitted.
    assert in_halves
    for window, run in in_halves.items():
        assert any(one.is_in(gap) for one in in_time[window] for gap in stream.gaps[run]), window
    again = [window for window in in_time if len(stream.scored[window]) > 1]
    assert set(again) == set(in_halves)
    assert week.late > 0


def test_slow_clocks_are_scored_once_too(week: Week) -> None:
    slow = [found for window, found in week.stream.scored.items() if window[0] == "slow"]

    assert sum(len(found) > 1 for found in slow) < 0.05 * len(slow)


def test_nothing_is_scored_long_after_it_could_be(week: Week) -> None:
    """But during an outage, and in its wake."""
    waits = [
        found[0].at - window[1]
        for window, found in week.stream.scored.items()
        if window[0] == "d0"
        and not any(begin - HOUR <= window[1] < end + HOUR for begin, end in OUTAGES)
    ]

    assert max(waits) <= 30 * MINUTE
