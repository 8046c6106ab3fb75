"""The ledger: each event applied once, what is missing on record, and hubs that are made anew."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring import ledger
from scoring.ledger import CLOCK_TOLERANCE, Epoch, Range

SECOND = 1_000_000


@dataclass(frozen=True, order=True)
class Event:
    """One event of a hub that may have been made anew; `hub` counts how often."""

    hub: int
    number: int
    enqueued: int


@dataclass
class Applied:
    """The ledger as a store would keep it, and which events it let through, by epoch."""

    epochs: dict[int, Epoch] = field(default_factory=dict)
    events: list[tuple[int, Event]] = field(default_factory=list)

    def deliver(self, batch: Sequence[Event]) -> list[Event]:
        """Apply one event batch and give the events that were new in it."""
        numbers = np.array([event.number for event in batch], dtype=np.int64)
        times = np.array([event.enqueued for event in batch], dtype=np.int64)
        new: list[Event] = []
        for part in ledger.apply(list(self.epochs.values()), numbers, times):
            self.epochs[part.epoch.number] = part.epoch
            events = [batch[i] for i in part.events]
            assert [event.number for event in events] == sorted(e.number for e in events)
            self.events += [(part.epoch.number, event) for event in events]
            new += events
        return new

    @property
    def gaps(self) -> list[tuple[Range, ...]]:
        return [self.epochs[number].gaps for number in sorted(self.epochs)]


def numbered(*numbers: int, hub: int = 0, clock: int = 0) -> list[Event]:
    """Events that the hub took a second apart, the first hub's number 0 at `clock`."""
    return [Event(hub, n, (clock + 1000 * hub + n) * SECOND) for n in numbers]


def between(first: int, last: int, hub: int = 0) -> list[Event]:
    return numbered(*range(first, last + 1), hub=hub)


def holes(numbers: Iterable[int], first: int) -> tuple[Range, ...]:
    """Give the ranges of numbers from `first` to the greatest that are not among them."""
    present = set(numbers)
    missing = [n for n in range(first, max(present) + 1) if n not in present]
    begins = [n for n in missing if n - 1 not in missing]
    ends = [n for n in missing if n + 1 not in missing]
    return tuple(zip(begins, ends, strict=True))


def applied(*batches: list[Event]) -> Applied:
    state = Applied()
    for batch in batches:
        state.deliver(batch)
    return state


def test_a_partition_that_never_spoke_begins_wherever_it_begins_and_nothing_is_missing() -> None:
    state = applied(between(700, 703))

    assert state.epochs == {0: Epoch(0, 700, 703, 700 * SECOND, 703 * SECOND)}


def test_the_next_event_batch_moves_the_high_water_mark() -> None:
    state = applied(between(0, 3), between(4, 9))

    assert state.epochs == {0: Epoch(0, 0, 9, 0, 9 * SECOND)}


def test_a_redelivered_event_batch_changes_nothing() -> None:
    state = applied(between(0, 3))

    assert ledger.apply(state.epochs.values(), np.array([1, 2]), np.array([1, 2]) * SECOND) == []


def test_no_events_change_nothing() -> None:
    nothing = np.empty(0, dtype=np.int64)

    assert ledger.apply([Epoch(0, 0, 3, 0, 3)], nothing, nothing) == []
    assert ledger.apply([], nothing, nothing) == []


def test_of_a_batch_that_overlaps_only_what_is_new_is_applied() -> None:
    state = applied(between(0, 3))

    assert state.deliver(between(2, 6)) == between(4, 6)


def test_an_event_that_stands_twice_in_one_batch_is_applied_once() -> None:
    assert applied(numbered(4, 4, 5, 5, 4)).events == [(0, event) for event in numbered(4, 5)]


def test_a_batch_past_the_high_water_mark_leaves_a_gap() -> None:
    state = applied(between(0, 3), between(10, 12))

    assert state.gaps == [((4, 9),)]
    assert state.epochs[0].high_water == 12


def test_a_batch_within_a_gap_splits_it() -> None:
    state = applied(between(0, 3), between(10, 12))

    assert state.deliver(between(6, 7)) == between(6, 7)
    assert state.gaps == [((4, 5), (8, 9))]


def test_a_batch_over_several_gaps_closes_them_and_applies_only_what_they_missed() -> None:
    state = applied(numbered(0, 3, 6, 9))

    assert state.deliver(between(1, 7)) == numbered(1, 2, 4, 5, 7)
    assert state.gaps == [((8, 8),)]


def test_holes_inside_one_batch_are_gaps_too() -> None:
    assert applied(numbered(5, 6, 9, 12)).gaps == [((7, 8), (10, 11))]


def test_numbers_below_the_first_ones_are_applied_and_what_lies_between_is_missing() -> None:
    state = applied(between(10, 12), between(3, 4))

    assert state.gaps == [((5, 9),)]
    assert state.epochs[0].first_sequence == 3


def test_numbers_that_were_given_up_as_lost_are_not_applied_when_they_come_after_all() -> None:
    lost = Epoch(0, 0, 9, 0, 9 * SECOND, gaps=())

    assert ledger.apply([lost], np.array([4]), np.array([4 * SECOND])) == []


def test_a_range_over_a_gap_at_either_end_moves_that_end() -> None:
    skipped = Epoch(0, 5, 9, 5 * SECOND, 9 * SECOND, gaps=((5, 6), (8, 9)))

    for first, last in ((3, 7), (8, 12), (3, 12)):
        state = Applied({0: skipped})
        new = [n for n in range(first, last + 1) if n != 7]
        assert [event.number for event in state.deliver(between(first, last))] == new
        assert state.deliver(between(first, last)) == []
        assert state.epochs[0].first_sequence == min(first, 5)
        assert state.epochs[0].high_water == max(last, 9)


def test_a_hub_made_anew_opens_an_epoch_and_what_it_has_skipped_is_missing() -> None:
    state = applied(between(0, 9), between(2, 5, hub=1))

    assert state.gaps == [(), ((0, 1),)]
    assert state.epochs[0] == Epoch(0, 0, 9, 0, 9 * SECOND)
    assert state.epochs[1].first_enqueued == 1002 * SECOND
    assert state.events[10:] == [(1, event) for event in between(2, 5, hub=1)]


def test_a_hub_made_anew_is_found_in_the_middle_of_a_batch() -> None:
    state = applied(between(0, 9), between(8, 12) + between(0, 3, hub=1))

    assert [e.high_water for e in state.epochs.values()] == [12, 3]
    assert state.gaps == [(), ()]


def test_a_hub_made_anew_twice_within_the_first_batch_has_three_epochs() -> None:
    state = applied(between(7, 9) + between(0, 3, hub=1) + between(0, 1, hub=2))

    assert [e.high_water for e in state.epochs.values()] == [9, 3, 1]


def test_a_redelivered_old_event_directly_before_those_of_a_new_hub_is_still_a_duplicate() -> None:
    # Their numbers ascend, and only the enqueued times tell that a hub was made anew between.
    state = applied(between(0, 9))

    assert state.deliver(numbered(3) + between(5, 8, hub=1)) == between(5, 8, hub=1)
    assert state.gaps == [(), ((0, 4),)]
    assert state.deliver(numbered(3) + between(7, 11, hub=1)) == between(9, 11, hub=1)
    assert state.epochs[0].high_water == 9


def test_old_events_that_come_again_after_the_hub_was_made_anew_are_duplicates() -> None:
    state = applied(between(0, 9), between(0, 4, hub=1))

    assert state.deliver(between(0, 9)) == []
    assert state.deliver(between(7, 9) + between(3, 4, hub=1)) == []


def test_old_events_held_back_until_after_the_hub_was_made_anew_count_for_the_old_epoch() -> None:
    # Another instance retried its last event batch of the old hub all the while.
    state = applied(between(0, 9), between(0, 40, hub=1))

    assert state.deliver(between(10, 14)) == between(10, 14)
    assert state.epochs[0].high_water == 14
    assert state.epochs[1].high_water == 40


def test_the_first_events_of_a_new_hub_may_come_after_later_ones() -> None:
    state = applied(between(0, 9), between(4, 6, hub=1))

    assert state.deliver(numbered(1, hub=1)) == numbered(1, hub=1)
    assert state.deliver(between(0, 3, hub=1)) == numbered(0, 2, 3, hub=1)
    assert state.gaps == [(), ()]


def test_a_gap_of_an_old_epoch_can_still_be_closed() -> None:
    state = applied(numbered(0, 1, 5), between(0, 9, hub=1))

    assert state.deliver(between(1, 5)) == between(2, 4)
    assert state.gaps == [(), ()]


def test_a_clock_that_steps_back_a_little_makes_no_new_epoch() -> None:
    first = Event(0, 0, 100 * SECOND)
    stepped = Event(0, 1, 100 * SECOND - CLOCK_TOLERANCE)

    for batches in ([[first], [stepped]], [[first, stepped]], [[stepped], [first]]):
        state = applied(*batches)
        assert sorted(state.events) == [(0, first), (0, stepped)]
        assert state.gaps == [()]


def test_a_clock_that_steps_back_at_the_start_of_a_new_hub_loses_nothing() -> None:
    first = Event(1, 0, 1000 * SECOND)
    stepped = Event(1, 1, 1000 * SECOND - CLOCK_TOLERANCE // 2)
    state = applied(between(0, 9), [first])

    assert state.deliver([stepped]) == [stepped]
    assert state.gaps == [(), ()]


def test_taking_a_range_out_of_a_gap_leaves_what_lies_outside() -> None:
    assert ledger.without((3, 9), 5, 6) == [(3, 4), (7, 9)]
    assert ledger.without((3, 9), 0, 4) == [(5, 9)]
    assert ledger.without((3, 9), 8, 20) == [(3, 7)]
    assert ledger.without((3, 9), 0, 20) == []
    assert ledger.without((3, 9), 10, 12) == [(3, 9)]


@st.composite
def streams(draw: st.DrawFn, hubs: int = 3) -> list[Event]:
    """All events of one partition over a hub's lives, in the order in which they were taken."""
    clock, events = 0, []
    for hub in range(draw(st.integers(1, hubs))):
        clock += 5 * SECOND
        begin = draw(st.integers(0, 20)) if hub == 0 else 0
        for number in range(begin, begin + draw(st.integers(1, 12))):
            clock += draw(st.sampled_from([0, 0, 1, 700_000, 3 * SECOND]))
            events.append(Event(hub, number, clock))
    return events


@st.composite
def slices(draw: st.DrawFn, events: Sequence[Event]) -> list[Event]:
    """Draw some of a stream's events: a stretch of it, or any, in any order, with repeats."""
    first = draw(st.integers(0, len(events) - 1))
    stretch = list(events[first : draw(st.integers(first, len(events) - 1)) + 1])
    if draw(st.booleans()):
        return stretch
    return draw(st.lists(st.sampled_from(events), min_size=1, max_size=15))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_whatever_the_delivery_each_event_is_applied_once_and_the_gaps_are_what_is_missing(
    data: st.DataObject,
) -> None:
    events = data.draw(streams(hubs=1))
    state, delivered = Applied(), set[Event]()

    for batch in data.draw(st.lists(slices(events), min_size=1, max_size=8)):
        new = state.deliver(batch)
        assert sorted(new) == sorted(set(batch) - delivered)
        delivered.update(batch)
        numbers = [event.number for event in delivered]
        assert state.gaps == [holes(numbers, min(numbers))]
        assert state.epochs[0].first_sequence == min(numbers)
        assert state.epochs[0].high_water == max(numbers)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_the_ledger_does_not_depend_on_split_or_order_of_delivery(data: st.DataObject) -> None:
    events = data.draw(streams(hubs=1))
    kept = data.draw(st.lists(st.sampled_from(events), min_size=1, unique=True))
    shuffled = data.draw(st.permutations(kept))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(kept)))) | {0, len(kept)})

    pieces = applied(*(shuffled[a:b] for a, b in pairwise(cuts)))

    assert pieces.epochs == applied(sorted(kept)).epochs


@settings(deadline=None, max_examples=250)
@given(st.data())
def test_whatever_the_delivery_no_event_is_confused_with_one_of_another_epoch(
    data: st.DataObject,
) -> None:
    """A hub made anew can be told only once a number is delivered that the old one had reached.

    From then on anything may come: redeliveries of any epoch, gaps of any epoch, mixtures.
    """
    events = data.draw(streams())
    state, delivered = Applied(), set[Event]()
    for hub in range(events[-1].hub + 1):
        so_far = [event for event in events if event.hub < hub and event in delivered]
        mine = [event for event in events if event.hub == hub]
        reached = max((e.number for e in so_far if e.hub == hub - 1), default=10**9)
        first = data.draw(st.sampled_from([e for e in mine if e.number <= reached]))
        again = data.draw(slices(so_far)) if so_far else []
        before = again if data.draw(st.booleans()) else []
        follow = [e for e in mine if e.number >= first.number]
        opening = before + follow[: data.draw(st.integers(1, len(follow)))]
        batches = data.draw(st.lists(slices(so_far + mine), max_size=5))
        for batch in [opening, *batches]:
            new = state.deliver(batch)
            assert sorted(new) == sorted(set(batch) - delivered)
            delivered.update(batch)

    assert {(epoch, event) for epoch, event in state.events} == {(e.hub, e) for e in delivered}
    for hub, epoch in state.epochs.items():
        numbers = [event.number for event in delivered if event.hub == hub]
        assert epoch.gaps == holes(numbers, min(numbers) if hub == 0 else 0)
        assert epoch.high_water == max(numbers)
