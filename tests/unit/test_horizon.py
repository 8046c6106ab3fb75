"""Which partitions hold windows open, and the horizon over all of them."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.horizon import HOUR, HorizonRules, PartitionState, Standing
from scoring.ledger import HubAnswer
from scoring.readings import Partition

MINUTE = 60_000_000
P0, P1 = Partition("hub", "0"), Partition("hub", "1")
FILE = Partition("file-0123456789ab", "0")
RULES = HorizonRules(idle_timeout=5 * MINUTE, stall_timeout=HOUR)
NOW = 1000 * MINUTE


def state(  # noqa: PLR0913 - most tests give one or two
    partition: Partition = P0,
    *,
    watermark: int | None = NOW - MINUTE,
    applied: int = 100,
    enqueued: int = NOW - MINUTE,
    last: int | None = None,
    last_enqueued: int | None = None,
    asked_at: int | None = NOW,
) -> PartitionState:
    """Describe a partition of which the hub says that it ends at `last`."""
    answer = None
    if asked_at is not None and not partition.is_file:
        end, at = applied if last is None else last, last_enqueued or enqueued
        answer = HubAnswer(0, 0, end, at, is_empty=end < 0)
    return PartitionState(
        partition,
        watermark,
        enqueued,
        high_water=applied,
        mark_enqueued=enqueued,
        has_spoken=applied >= 0,
        hub_created=0,
        answer=answer,
        asked_at=None if answer is None else asked_at,
        moved_at=NOW,
    )


def asked(one: PartitionState, answer: HubAnswer | None, now: int) -> PartitionState:
    """Return a state after its hub was asked."""
    heard = replace(one, answer=answer or one.answer, is_absent=answer is None, asked_at=now)
    return heard.looked_at(now)


def standing(one: PartitionState, *others: PartitionState, now: int = NOW) -> Standing:
    return RULES.standings([one, *others], now)[0][1]


def horizon(*states: PartitionState, now: int = NOW) -> int | None:
    return RULES.horizon(RULES.standings(states, now), now)


SILENT = state(watermark=10 * MINUTE, enqueued=10 * MINUTE)
BEHIND = state(watermark=10 * MINUTE, enqueued=10 * MINUTE, last=200, last_enqueued=NOW)


def test_the_horizon_is_the_smallest_watermark() -> None:
    assert horizon(state(watermark=70), state(P1, watermark=50)) == 50


def test_there_is_no_horizon_before_anything_was_applied() -> None:
    assert horizon() is None
    assert horizon(state(watermark=None, applied=-1, enqueued=0)) is None


def test_a_silent_partition_is_idle_and_counts_as_at_the_time_of_asking_less_the_timeout() -> None:
    assert standing(SILENT) is Standing.IDLE
    assert horizon(SILENT, state(P1)) == NOW - 5 * MINUTE
    assert horizon(replace(SILENT, asked_at=NOW - MINUTE), state(P1)) == NOW - 6 * MINUTE


def test_an_idle_partition_never_goes_back_behind_its_own_watermark() -> None:
    assert horizon(replace(SILENT, watermark=NOW - 2 * MINUTE)) == NOW - 2 * MINUTE


def test_a_partition_is_not_idle_before_the_timeout() -> None:
    recent = NOW - 5 * MINUTE + 1

    assert standing(state(enqueued=recent, watermark=7)) is Standing.ACTIVE
    assert standing(state(enqueued=recent - 1, watermark=7)) is Standing.IDLE
    assert horizon(state(enqueued=recent, watermark=7)) == 7


def test_a_backlog_is_no_silence() -> None:
    assert standing(BEHIND) is Standing.BEHIND
    assert BEHIND.behind == 100
    assert horizon(BEHIND, state(P1)) == 10 * MINUTE


def test_a_partition_of_which_nothing_was_applied_holds_all_windows_if_the_hub_has_events() -> None:
    waiting = state(watermark=None, applied=-1, enqueued=0, last=9, last_enqueued=NOW)

    assert standing(waiting) is Standing.BEHIND
    assert horizon(waiting, state(P1)) is None


def test_a_partition_that_never_had_an_event_is_idle() -> None:
    never = state(watermark=None, applied=-1, enqueued=0, last=-1)

    assert standing(never) is Standing.IDLE
    assert horizon(never, state(P1)) == NOW - 5 * MINUTE


def test_a_partition_whose_events_have_all_expired_is_idle() -> None:
    answer = HubAnswer(0, 0, 200, NOW - HOUR, is_empty=True)
    expired = replace(SILENT, answer=answer)

    assert standing(expired) is Standing.IDLE
    assert (expired.behind, expired.unapplied) == (0, 100)


def test_what_was_never_asked_is_not_idle() -> None:
    assert standing(replace(SILENT, answer=None, asked_at=None)) is Standing.ACTIVE


def test_while_the_hub_cannot_be_asked_its_last_answer_stands() -> None:
    later = NOW + 3 * HOUR

    assert horizon(replace(SILENT, moved_at=0), now=later) == NOW - 5 * MINUTE


def test_a_partition_that_the_hub_no_longer_has_holds_nothing_open() -> None:
    gone = asked(BEHIND, None, NOW)

    assert standing(gone) is Standing.ABSENT
    assert horizon(gone, state(P1, watermark=70)) == 70


def test_a_hub_that_nobody_asks_for_an_hour_holds_nothing_open() -> None:
    def of_another_hub(now: int) -> Standing:
        other = replace(BEHIND, moved_at=10 * MINUTE)
        return RULES.standings([other], now, lambda _: False)[0][1]

    assert of_another_hub(NOW + HOUR - 1) is Standing.BEHIND
    assert of_another_hub(NOW + HOUR) is Standing.ABANDONED


def test_a_file_holds_windows_open_until_it_has_ended_or_nobody_reads_it() -> None:
    read = state(FILE, watermark=70)

    assert standing(read) is Standing.ACTIVE
    assert standing(replace(read, ended=True)) is Standing.ENDED
    assert standing(replace(read, moved_at=NOW - 5 * MINUTE + 1)) is Standing.ACTIVE
    assert standing(replace(read, moved_at=NOW - 5 * MINUTE)) is Standing.ABANDONED
    assert standing(replace(read, moved_at=0, has_moved=True)) is Standing.ACTIVE


def test_when_all_partitions_have_ended_the_horizon_is_now() -> None:
    assert horizon(replace(state(FILE, watermark=10), ended=True)) == NOW


def test_a_partition_that_is_stuck_while_others_go_on_holds_nothing_open_after_an_hour() -> None:
    stuck = replace(BEHIND, stuck_since=NOW - HOUR)

    assert standing(stuck, state(P1)) is Standing.STALLED
    assert standing(replace(stuck, stuck_since=NOW - HOUR + 1), state(P1)) is Standing.BEHIND
    assert standing(replace(stuck, has_moved=True), state(P1)) is Standing.BEHIND
    assert horizon(stuck, state(P1, watermark=70)) == 70


def test_if_all_partitions_are_stuck_all_hold_windows_open() -> None:
    stuck = [replace(BEHIND, partition=one, stuck_since=0, moved_at=0) for one in (P0, P1)]

    assert standing(*stuck) is Standing.BEHIND
    of_another = replace(state(Partition("other", "0")), moved_at=NOW)
    assert standing(*stuck, of_another) is Standing.BEHIND


def test_a_partition_is_behind_since_it_was_and_stuck_since_its_last_progress() -> None:
    first = asked(SILENT, BEHIND.answer, 500 * MINUTE)
    again = asked(first, BEHIND.answer, 600 * MINUTE)
    moved = replace(again, has_moved=True, high_water=150).looked_at(700 * MINUTE)
    caught_up = replace(moved, has_moved=True, high_water=200, mark_enqueued=NOW).looked_at(NOW)

    states = (first, again, moved, caught_up)
    assert [one.behind_since for one in states] == [*[500 * MINUTE] * 3, None]
    stuck = [one.stuck_since for one in states]
    assert stuck == [500 * MINUTE, 500 * MINUTE, 700 * MINUTE, None]


def test_what_was_skipped_and_may_be_delivered_yet_is_behind() -> None:
    """The ledger's mark is where the hub is, and from 101 on nothing was applied."""
    skipped = replace(BEHIND, high_water=200, mark_enqueued=NOW, skipped_from=101)
    expired = replace(skipped, answer=HubAnswer(0, 150, 200, NOW))
    gone = replace(skipped, answer=HubAnswer(0, 0, 200, NOW, is_empty=True))

    assert [one.behind for one in (skipped, expired, gone)] == [100, 51, 0]
    assert standing(skipped, state(P1)) is Standing.BEHIND
    assert horizon(skipped, state(P1)) == 10 * MINUTE
    assert standing(replace(skipped, stuck_since=NOW - HOUR), state(P1)) is Standing.STALLED


def test_a_clock_of_the_hub_that_stepped_back_leaves_nothing_behind() -> None:
    answer = HubAnswer(0, 0, 100, 9 * MINUTE)

    assert replace(SILENT, answer=answer).behind == 0


def test_an_equal_number_at_another_time_is_of_a_hub_that_was_created_again() -> None:
    answer = HubAnswer(None, 0, 100, 20 * MINUTE)

    assert standing(replace(SILENT, answer=answer, hub_created=None)) is Standing.BEHIND


def test_an_answer_of_the_hub_before_says_nothing() -> None:
    outdated = replace(BEHIND, hub_created=1)

    assert outdated.behind == 0
    assert standing(outdated) is Standing.ACTIVE
    assert standing(replace(SILENT, hub_created=1)) is Standing.ACTIVE


standings = st.lists(
    st.builds(
        state,
        watermark=st.none() | st.integers(0, 99).map(MINUTE.__mul__),
        applied=st.integers(-1, 3),
        enqueued=st.integers(0, 99).map(MINUTE.__mul__),
        last=st.none() | st.integers(-1, 3),
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=150)
@given(standings, st.integers(0, 100), st.integers(0, 50))
def test_the_horizon_never_goes_back_while_the_clock_goes_on(
    states: list[PartitionState], start: int, later: int
) -> None:
    now = NOW + start * MINUTE
    heard = [asked(one, one.answer, now) for one in states]
    again = [asked(one, one.answer, now + later * MINUTE) for one in heard]

    before = horizon(*heard, now=now)
    after = horizon(*again, now=now + later * MINUTE)

    assert before is None or after is None or after >= before
