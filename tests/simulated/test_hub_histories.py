"""Histories of an event hub: what is counted, what is on record as missing, and what waits."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.migrations import migrate
from scoring.adapters.sql.rebuild import SqlRebuildStore
from scoring.handlers.repair import RebuildWindows, RepairGaps
from scoring.horizon import Standing
from scoring.ledger import HubAnswer
from scoring.readings import EventBatch, Partition, ReadingDecoder, Readings, Reject
from tests.fakes.event_log import MemoryHub
from tests.simulated.stream import BEGIN, HOUR, MINUTE, SECOND, SENSOR, Sent, Stream, close, hurry


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the file of an empty database once."""
    path = tmp_path_factory.mktemp("empty") / "store.db"
    database = Database.file(path)
    migrate(database)
    database.close()
    return path


@pytest.fixture
def database(empty: Path, tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "store.db"
    shutil.copy(empty, path)
    database = Database.file(path)
    event.listen(database.engine, "connect", hurry)
    yield database
    database.close()


@pytest.fixture
def stream(database: Database) -> Stream:
    """Make a hub of two partitions, created an hour before the histories begin."""
    return Stream(database, MemoryHub("hub", 2, BEGIN - HOUR))


class Poisoned(ReadingDecoder):
    """A decoder with a defect that partition 1 of a hub meets, or the last one of 32."""

    def decode(self, batch: EventBatch) -> tuple[Readings, list[Reject]]:
        if batch.partition.id in {"1", "31"}:
            raise KeyError(batch.partition.id)
        return super().decode(batch)


def poisoned(stream: Stream) -> RepairGaps:
    """Return the repairs of a system with a defect."""
    return replace(stream.repair, ingest=replace(stream.ingest, decoder=Poisoned()))


def fill(stream: Stream, partition: str, events: int, every: int = SECOND) -> None:
    """Send readings, one each second; the clock goes on."""
    for _ in range(events):
        stream.read(partition, f"d{partition}", stream.now)
        stream.now += every


def deliver(stream: Stream, partition: str, first: int, last: int) -> int:
    """Deliver a range of numbers; return how many events were new."""
    outcome = stream.ingest(stream.hub.batch(partition, first, last))
    return outcome.events - outcome.duplicates


def minutes(stream: Stream, count: int, *devices: tuple[str, str]) -> None:
    """Have devices send a reading each 30 seconds, and the host and the timers work."""
    for tick in range(2 * count):
        stream.now += 30 * SECOND
        for partition, device in devices:
            stream.read(partition, device, stream.now)
        stream.deliver()
        if tick % 10 == 9:
            stream.mend()
            stream.submit()


BOTH = (("0", "d0"), ("1", "d1"))


class TestHubsThatAreCreatedAgain:
    @pytest.fixture(autouse=True)
    def old(self, stream: Stream) -> None:
        """Apply numbers 0 to 100 of the old hub, then create it again."""
        fill(stream, "0", 101)
        stream.deliver("0")
        stream.now += MINUTE
        stream.hub.create(2, stream.now)
        stream.now += MINUTE

    def test_a_first_delivery_that_continues_the_old_numbers_is_of_the_new_hub(
        self, stream: Stream
    ) -> None:
        fill(stream, "0", 201)

        assert deliver(stream, "0", 101, 200) == 100

        assert stream.missing == {("0", 1): [(0, 100, "open")]}
        assert stream.mend().readings == 101
        assert close(stream.counts(), stream.expected())
        assert stream.missing == {}

    def test_a_first_delivery_beyond_the_old_numbers_leaves_a_gap_of_the_new_hub(
        self, stream: Stream
    ) -> None:
        fill(stream, "0", 201)

        assert deliver(stream, "0", 150, 200) == 51
        assert stream.missing == {("0", 1): [(0, 149, "open")]}
        assert deliver(stream, "0", 0, 149) == 150
        assert close(stream.counts(), stream.expected())

    @pytest.mark.parametrize("step", [0.4, 0.99])
    def test_a_clock_that_steps_back_within_its_first_batch_loses_nothing(
        self, stream: Stream, step: float
    ) -> None:
        at = stream.now
        for number in range(10):
            stream.read("0", "d0", at, at + number * 1000 - int(step * SECOND) * (number > 3))

        assert deliver(stream, "0", 0, 9) == 10
        assert stream.missing == {}

    def test_batches_of_the_old_hub_that_come_late_are_of_the_old_epoch(
        self, stream: Stream
    ) -> None:
        fill(stream, "0", 50)
        deliver(stream, "0", 0, 49)
        times = BEGIN + np.arange(90, 111) * SECOND
        late = EventBatch(
            Partition("hub", "0"), np.arange(90, 111), times, [b'{"sensor":"s"}'] * 21
        )

        outcome = stream.ingest(late)

        assert (outcome.duplicates, outcome.events) == (11, 21)
        assert stream.missing == {}
        assert stream.store.partitions() == {Partition("hub", "0"): 1}

    @pytest.mark.parametrize("partitions", [2, 1], ids=["of the same size", "without it"])
    def test_what_the_old_hub_was_seen_to_hold_is_lost(
        self, database: Database, partitions: int
    ) -> None:
        stream = Stream(database, MemoryHub("other", 2, BEGIN - HOUR))
        fill(stream, "1", 10)
        deliver(stream, "1", 0, 4)
        stream.progress.ask(stream.now)
        stream.now += MINUTE
        stream.hub.create(partitions, stream.now)
        stream.now += MINUTE

        for _ in range(3):
            stream.mend()
            assert stream.missing == {("1", 0): [(5, 9, "lost")]}

        assert (stream.standings()["1"] is Standing.ABSENT) == (partitions == 1)

    def test_the_same_without_anybody_who_asked_between(self, stream: Stream) -> None:
        fill(stream, "0", 5)
        stream.checkpoints.clear()
        stream.deliver("0")

        assert stream.missing == {}
        assert close(stream.counts(), stream.expected())

    def test_a_hub_with_fewer_partitions_holds_nothing_open(self, stream: Stream) -> None:
        fill(stream, "1", 5)
        stream.deliver()
        stream.now += MINUTE
        stream.hub.create(1, stream.now)
        stream.now += MINUTE

        minutes(stream, 20, ("0", "d0"))

        assert stream.standings() == {"0": Standing.ACTIVE, "1": Standing.ABSENT}
        last = max(start for (_, start), scored in stream.scored.items() if scored)
        assert last >= stream.now - 15 * MINUTE

    def test_a_survey_of_the_old_hub_that_is_written_late_says_nothing_of_the_new_one(
        self, stream: Stream
    ) -> None:
        survey = replace(stream.progress, log=Late(stream, partial(fill, stream, "0", 6)))

        survey.ask(stream.now)
        stream.hub.is_reachable = False
        stream.now += MINUTE
        for _ in range(2):
            stream.mend()
            stream.now += MINUTE

        assert stream.missing == {}
        assert stream.standings()["0"] is Standing.ACTIVE
        # Created once more: what the first one held is not what the second one lacks.
        stream.hub.is_reachable = True
        stream.hub.create(2, stream.now)
        stream.now += MINUTE
        stream.mend()
        assert stream.missing == {}

    def test_a_hub_that_is_created_again_twice_has_three_epochs(self, stream: Stream) -> None:
        fill(stream, "0", 3)
        deliver(stream, "0", 0, 2)
        stream.now += MINUTE
        stream.hub.create(2, stream.now)
        stream.now += MINUTE
        fill(stream, "0", 200)

        assert deliver(stream, "0", 150, 199) == 50

        assert stream.missing == {("0", 2): [(0, 149, "open")]}


class Late:
    """A hub whose survey is answered before it is created again, and heard after that."""

    def __init__(self, stream: Stream, send: Callable[[], None]) -> None:
        self.stream, self.send = stream, send

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream.hub, name)

    def survey(self) -> dict[Partition, HubAnswer]:
        stream = self.stream
        answers = stream.hub.survey()
        stream.now += MINUTE
        stream.hub.create(2, stream.now)
        stream.now += MINUTE
        self.send()
        stream.checkpoints.clear()
        stream.deliver("0")
        return answers


class TestFirstDeliveries:
    def test_what_came_before_the_first_delivery_is_missing(self, stream: Stream) -> None:
        fill(stream, "0", 1010)

        assert deliver(stream, "0", 1000, 1009) == 10

        assert stream.missing == {("0", 0): [(0, 999, "open")]}
        assert stream.mend().readings == 1000
        assert close(stream.counts(), stream.expected())

    def test_what_had_expired_before_anybody_looked_is_not(self, stream: Stream) -> None:
        fill(stream, "0", 1010)
        stream.hub.expire("0", 500)

        deliver(stream, "0", 1000, 1009)

        assert stream.missing == {("0", 0): [(500, 999, "open")]}

    def test_what_expired_since_a_timer_looked_is_lost(self, stream: Stream) -> None:
        fill(stream, "0", 1010)
        stream.submit()
        stream.hub.expire("0", 500)
        deliver(stream, "0", 1000, 1009)

        stream.mend()

        assert stream.missing == {("0", 0): [(0, 499, "lost")]}

    def test_a_first_deployment_with_a_backlog_scores_whole_windows_only(
        self, stream: Stream
    ) -> None:
        for _ in range(120):
            stream.now += MINUTE
            for partition, device in BOTH:
                stream.read(partition, device, stream.now)

        # The first partition is caught up long before the second one begins.
        stream.deliver("0", batch_size=10)
        stream.submit()
        assert dict(stream.scored) == {}
        for batch in stream.waiting("1", 10):
            stream.ingest(batch)
            stream.checkpoints["1"] = int(batch.sequence_numbers[-1]) + 1
            stream.submit()
        minutes(stream, 20)

        assert {len(scored) for scored in stream.scored.values()} == {1}
        full = {window: count for window, (count, _) in stream.expected().items()}
        assert {window: scored[0].count for window, scored in stream.scored.items()} == full


def test_a_backlog_is_not_scored_in_halves(stream: Stream) -> None:
    minutes(stream, 30, *BOTH)
    for _ in range(4 * 60):
        stream.now += 30 * SECOND
        for partition, device in BOTH:
            stream.read(partition, device, stream.now)
        if stream.now % (5 * MINUTE) == 0:
            stream.submit()
    before = len(stream.scored)
    for batches in zip(stream.waiting("0", 40), stream.waiting("1", 40), strict=True):
        for batch in batches:
            stream.ingest(batch)
            stream.checkpoints[batch.partition.id] = int(batch.sequence_numbers[-1]) + 1
        stream.submit()
    minutes(stream, 20)

    assert before < len(stream.scored)
    assert {len(scored) for scored in stream.scored.values()} == {1}
    full = {window: count for window, (count, _) in stream.expected().items()}
    assert {window: scored[0].count for window, scored in stream.scored.items()} == full


def test_a_silent_partition_with_the_hub_unreachable_waits_and_then_goes_on(
    stream: Stream,
) -> None:
    minutes(stream, 30, *BOTH)
    minutes(stream, 20, ("0", "d0"))
    assert stream.standings() == {"0": Standing.ACTIVE, "1": Standing.IDLE}
    scored = len(stream.scored)

    stream.hub.is_reachable = False
    for _ in range(6):
        stream.now += 5 * MINUTE
        stream.submit()
    reached = stream.progress.horizon(stream.now)
    assert reached is not None
    assert reached < stream.now - 30 * MINUTE
    assert len(stream.scored) <= scored + 2

    stream.hub.is_reachable = True
    minutes(stream, 20, ("0", "d0"))
    assert {len(found) for found in stream.scored.values()} == {1}
    assert len(stream.scored) > scored + 2


def test_a_killed_ingest_of_a_file_beside_a_live_hub_holds_windows_open_for_a_while(
    stream: Stream,
) -> None:
    body = f'{{"device":"old","sensor":"{SENSOR}","ts":{(BEGIN - HOUR) // 1000},"value":1}}'
    part = Partition("file-0123456789ab", "0")
    stream.ingest(EventBatch(part, np.arange(1), np.array([BEGIN]), [body.encode()]))

    minutes(stream, 5, *BOTH)
    assert dict(stream.scored) == {}
    minutes(stream, 20, *BOTH)

    last = max(start for (_, start) in stream.scored)
    assert last >= stream.now - 15 * MINUTE


def test_a_backlog_that_repairs_have_put_on_record_is_no_silence(stream: Stream) -> None:
    """Nobody can read the backlog of one partition: the host is down, and so are repairs."""
    repair = poisoned(stream)
    for _ in range(40):
        stream.now += MINUTE
        for partition, device in BOTH:
            stream.read(partition, device, stream.now)
        stream.deliver("0")
    for _ in range(10):
        stream.now += MINUTE
        with suppress(KeyError):
            repair(stream.now)
        stream.submit()

    assert ("1", 0) in stream.missing
    assert stream.scored == {}
    told = stream.progress.described(stream.now)["hub/1"]
    assert (told["standing"], told["behind"]) == (Standing.BEHIND, 40)
    stream.deliver()
    minutes(stream, 15, *BOTH)
    assert stream.missing == {}
    first = {window: scored[0].count for window, scored in stream.scored.items()}
    expected = {window: count for window, (count, _) in stream.expected().items()}
    assert first == {window: expected[window] for window in first}
    assert len(first) >= 2 * 9


def test_since_when_a_partition_lags_is_told_though_it_makes_progress(stream: Stream) -> None:
    fill(stream, "0", 100)
    began = stream.now
    for number in range(10):
        stream.progress.ask(stream.now)
        deliver(stream, "0", number, number)
        stream.now += MINUTE

    told = stream.progress.described(stream.now)["hub/0"]
    assert (told["behind"], told["behind_since"]) == (90, began)


def test_of_slow_partitions_the_hub_is_asked_only_when_it_was_created(stream: Stream) -> None:
    """Between any two events it could have been created again: that is one question for all."""
    for partition, device in BOTH:
        stream.read(partition, device, stream.now)
    stream.deliver()
    stream.hub.asked = 0
    for _ in range(10):
        stream.now += 2 * SECOND
        for partition, device in BOTH:
            stream.read(partition, device, stream.now)
            deliver(stream, partition, len(stream.sent) // 2, len(stream.sent) // 2)

    assert stream.hub.asked == 0


def test_a_hub_whose_clock_stepped_back_before_it_fell_silent_is_idle(stream: Stream) -> None:
    stream.read("0", "d0", stream.now)
    stream.read("0", "d0", stream.now, stream.now - 3 * SECOND // 2)
    stream.deliver()
    stream.now += HOUR
    stream.progress.ask(stream.now)

    assert stream.standings()["0"] is Standing.IDLE
    assert stream.progress.described(stream.now)["hub/0"]["behind"] == 0


@pytest.mark.parametrize("rebuilds", [False, True], ids=["", "rebuilt between"])
def test_a_backfill_in_two_halves_is_scored_once(stream: Stream, rebuilds: bool) -> None:
    minutes(stream, 60, *BOTH)
    begin = stream.now - 45 * MINUTE
    for half in range(2):
        for minute in range(half, 40, 2):
            stream.read("1", "site", begin + minute * MINUTE)
        stream.deliver()
        if half == 0 and rebuilds:
            stream.end_runs()
            RebuildWindows(SqlRebuildStore(stream.database), stream.blobs)(
                stream.windowing.size, lambda *_: None
            )
        stream.now += 20 * SECOND
        stream.submit()
    minutes(stream, 20, ("0", "d0"))

    own = {window: scored for window, scored in stream.scored.items() if window[0] == "site"}
    full = {window: count for window, (count, _) in stream.expected().items()}
    assert own
    assert {window: [one.count for one in scored] for window, scored in own.items()} == {
        window: [full[window]] for window in own
    }


@pytest.mark.parametrize("repairs", [False, True], ids=["", "with repairs"])
def test_one_poisoned_partition_of_32_holds_windows_open_for_an_hour(
    database: Database, repairs: bool
) -> None:
    stream = Stream(database, MemoryHub("hub", 32, BEGIN - HOUR))
    healthy = [(str(number), f"d{number}") for number in range(31)]
    stream.read("31", "d31", stream.now)
    held = []
    for minute in range(90):
        stream.now += MINUTE
        for partition, device in (*healthy, ("31", "d31")):
            stream.read(partition, device, stream.now)
        if minute % 5 == 4:
            stream.deliver(*(partition for partition, _ in healthy))
            if repairs:
                with suppress(KeyError):
                    poisoned(stream)(stream.now)
            stream.submit()
            held.append(stream.standings()["31"])

    assert set(held[:12]) == {Standing.BEHIND}
    assert held[-1] is Standing.STALLED
    last = max(start for (_, start) in stream.scored)
    assert last >= stream.now - 15 * MINUTE
    # Once it goes on, its windows are scored as well: whole, and once.
    stream.deliver()
    minutes(stream, 20)
    own = {window: scored for window, scored in stream.scored.items() if window[0] == "d31"}
    full = {window: count for window, (count, _) in stream.expected().items()}
    assert {window: [one.count for one in scored] for window, scored in own.items()} == {
        window: [count] for window, count in full.items() if window[0] == "d31"
    }


def test_a_device_eight_hours_slow_holds_nothing_open_and_is_scored_once(stream: Stream) -> None:
    for _ in range(60):
        stream.now += MINUTE
        stream.read("0", "d0", stream.now)
        stream.read("1", "slow", stream.now - 8 * HOUR)
        stream.deliver()
        if stream.now % (5 * MINUTE) == 0:
            stream.submit()

    last = max(start for device, start in stream.scored if device == "d0")
    assert last >= stream.now - 25 * MINUTE
    minutes(stream, 30)
    full = {window: count for window, (count, _) in stream.expected().items()}
    assert {window: [one.count for one in scored] for window, scored in stream.scored.items()} == {
        window: [count] for window, count in full.items()
    }


def test_a_device_whose_clock_is_fast_closes_nobodys_windows(stream: Stream) -> None:
    late = 0
    for _ in range(120):
        stream.now += 30 * SECOND
        stream.read("0", "fast", stream.now + 4 * MINUTE)
        stream.read("0", "d0", stream.now)
        late += stream.deliver().late

    assert late == 0


def test_a_store_and_forward_site_is_scored_once_and_whole(stream: Stream) -> None:
    minutes(stream, 10, *BOTH)
    begin = stream.now
    minutes(stream, 120, ("0", "d0"))
    # The site sends all that it has kept within two minutes.
    for number in range(240):
        enqueued = stream.now + number * SECOND // 2
        stream.read("1", "d1", begin + number * 30 * SECOND, enqueued)
    stream.now += 2 * MINUTE
    stream.deliver()
    stream.submit()
    minutes(stream, 20, ("0", "d0"))

    full = {window: count for window, (count, _) in stream.expected().items()}
    own = {w: [one.count for one in s] for w, s in stream.scored.items() if w[0] == "d1"}
    again = [window for window, counts in own.items() if len(counts) > 1]
    # The window in which the site fell silent was scored before.
    assert len(again) <= 1
    assert {w: counts[-1] for w, counts in own.items()} == {
        w: count for w, count in full.items() if w[0] == "d1"
    }


def test_the_last_events_that_the_host_skipped_before_silence_are_read_again(
    stream: Stream,
) -> None:
    minutes(stream, 10, *BOTH)
    stream.now += 10 * SECOND
    fill(stream, "1", 7)
    # The host's checkpoint passes them, and nothing follows.
    stream.checkpoints["1"] += 7
    minutes(stream, 15, ("0", "d0"))

    assert close(stream.counts(), stream.expected())
    assert stream.missing == {}
    assert stream.standings()["1"] is not Standing.BEHIND


def test_the_last_events_that_expired_before_anybody_read_them_are_lost(stream: Stream) -> None:
    minutes(stream, 10, *BOTH)
    fill(stream, "1", 7)
    stream.checkpoints["1"] += 7
    stream.progress.ask(stream.now)
    first = stream.checkpoints["1"] - 7
    stream.hub.expire("1", first + 7)
    minutes(stream, 15, ("0", "d0"))

    assert stream.missing == {("1", 0): [(first, first + 6, "lost")]}
    assert stream.standings()["1"] is Standing.IDLE


def test_a_slow_host_is_not_taken_for_one_that_skips(stream: Stream) -> None:
    minutes(stream, 10, *BOTH)
    for _ in range(20):
        stream.now += 10 * SECOND
        stream.read("0", "d0", stream.now)
        stream.progress.ask(stream.now)
        stream.mend()
        stream.deliver()

    assert [gap for gap in stream.store.gaps() if gap.state != "repaired"] == []
    assert stream.store.gaps() == []


def test_a_demo_whose_clock_is_simulated_asks_by_that_clock(stream: Stream) -> None:
    stream.now = BEGIN - 400 * 24 * HOUR
    stream.hub.create(2, None)
    minutes(stream, 20, *BOTH)
    minutes(stream, 20)

    full = {window: count for window, (count, _) in stream.expected().items()}
    assert {window: [one.count for one in scored] for window, scored in stream.scored.items()} == {
        window: [count] for window, count in full.items()
    }


def test_rejected_and_empty_events_move_the_watermark_too(stream: Stream) -> None:
    minutes(stream, 10, *BOTH)
    for _ in range(40):
        stream.now += 30 * SECOND
        stream.read("0", "d0", stream.now)
        stream.hub.send("1", [b"not json"], [stream.now])
        stream.deliver()
        if stream.now % (5 * MINUTE) == 0:
            stream.submit()

    last = max(start for device, start in stream.scored if device == "d0")
    assert last >= stream.now - 20 * MINUTE


def test_sums_tell_which_readings_were_counted(stream: Stream) -> None:
    fill(stream, "0", 5)
    stream.deliver()
    stream.sent[0] = replace(stream.sent[0], value=9.0)
    stream.sent.append(Sent(("d0", BEGIN), stream.now, 0.0))

    assert not close(stream.counts(), stream.expected())
