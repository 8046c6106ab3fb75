"""The ledger: which sequence numbers of a partition have been applied.

Event Hubs delivers at least once, and the Functions host moves its checkpoint even past event
batches whose handling failed. So what counts is kept here, in the same transaction as the effect
of the events: duplicates are dropped, and what never came stays on record as a gap.

A hub that was deleted and created again numbers its events from 0 again. What was applied of each
of these hubs is an *epoch* of the partition. An event belongs to the newest epoch whose hub existed
when the event was enqueued. When a hub was created is known from the hub itself, which is asked
where an event could be of a newer hub: after a pause that is long enough for a hub to be created
again. Of an event log that cannot tell, a new hub is recognised by its numbers: an event that was
enqueued later than all others and has a lower number than one of them is of a newer hub.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
Range = tuple[int, int]
"""First and last sequence number, both included."""

CLOCK_TOLERANCE = 1_000_000
"""Microseconds by which a hub's clock may step back when another broker takes a partition over.

Deleting a hub and creating it again takes longer."""
_AFTER = CLOCK_TOLERANCE + 1


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """The answer of a hub about one of its partitions.

    Attributes
    ----------
    created
        When the hub was created, epoch microseconds UTC; None of an event log that cannot tell.
    beginning
        The lowest sequence number that is retained.
    last, last_enqueued
        The highest sequence number that was ever given, -1 if none was, and when that event was
        enqueued, epoch microseconds UTC.
    is_empty
        No event is retained: `beginning` says nothing.
    """

    created: int | None
    beginning: int
    last: int
    last_enqueued: int
    is_empty: bool = False

    @property
    def first(self) -> int:
        """The first sequence number that can still be delivered."""
        return self.last + 1 if self.is_empty else self.beginning

    def precedes(self, other: "HubAnswer") -> bool:
        """Return whether the hub gave this answer before another one, though it came later.

        Either is of a hub that was created before, or of the same one when it held less.
        """
        if self.created is None or other.created is None:
            return False
        return (self.created, self.last) < (other.created, other.last)


@dataclass(frozen=True, slots=True)
class Epoch:
    """The events of one partition that were applied since its hub was created.

    Everything in ``[first_sequence, high_water]`` was applied but for the `gaps`. Numbers below
    `first_sequence` were not retained when the partition was first seen; if they come, they are
    applied too.

    Attributes
    ----------
    first_enqueued, last_enqueued
        Smallest and greatest enqueued time of what is known of, epoch microseconds UTC; when the
        hub was created while nothing is.
    gaps
        Ranges that were skipped by the delivery and not repaired yet, ascending.
    created
        When the hub was created, epoch microseconds UTC; None while that is not known.
    """

    number: int
    first_sequence: int
    high_water: int
    first_enqueued: int
    last_enqueued: int
    gaps: tuple[Range, ...] = ()
    created: int | None = None

    @property
    def is_unspoken(self) -> bool:
        """Whether nothing of the epoch was applied."""
        return self.high_water < self.first_sequence

    @property
    def began(self) -> int:
        """The enqueued time from which on events are of this epoch, epoch microseconds UTC."""
        return self.first_enqueued if self.created is None else self.created


@dataclass(frozen=True, slots=True)
class Slice:
    """The new events of one epoch in an event batch.

    Attributes
    ----------
    epoch
        The epoch's state after them.
    events
        Their indexes in the event batch, by ascending sequence number, int64.
    """

    epoch: Epoch
    events: I64


def admit(
    epochs: Iterable[Epoch], answer: HubAnswer, before: HubAnswer | None = None
) -> list[Epoch]:
    """Return the epochs that an answer of the hub opens or changes.

    The first answer about a partition opens its first epoch, so that everything that is retained
    then is expected. One of a hub that was created after all that was applied opens a new epoch,
    of which everything from number 0 on is expected.

    Parameters
    ----------
    before
        The last answer that was heard. What it showed the old hub to hold beyond its high-water
        mark is a gap of the old epoch.
    """
    known = in_order(epochs)
    if not known:
        return [_unspoken(0, answer.first, answer.created)]
    newest, created = known[-1], answer.created
    if created is None or newest.created == created:
        return []
    if newest.created is None and created <= newest.last_enqueued + CLOCK_TOLERANCE:
        return [replace(newest, created=created)]
    if newest.created is not None and created < newest.created:
        return []
    opened = _unspoken(_next_number(known), 0, created)
    return [skip(newest, before), opened] if before else [opened]


def skip(epoch: Epoch, answer: HubAnswer) -> Epoch:
    """Return the epoch with a gap after its high-water mark, up to the last number of its hub.

    An answer of another hub says nothing of it.
    """
    gap = (epoch.high_water + 1, answer.last)
    if gap[0] > gap[1] or answer.created != epoch.created:
        return epoch
    last_enqueued = max(epoch.last_enqueued, answer.last_enqueued)
    gaps = (*epoch.gaps, gap)
    return replace(epoch, high_water=answer.last, last_enqueued=last_enqueued, gaps=gaps)


def in_order(epochs: Iterable[Epoch]) -> list[Epoch]:
    """Return epochs in the order in which their hubs were created.

    A hub that was deleted before anybody saw it may turn up after its successor: its number is
    higher then.
    """
    return sorted(epochs, key=lambda epoch: (epoch.began, epoch.number))


def has_pause(epochs: Iterable[Epoch], enqueued_times: I64) -> bool:
    """Return whether a hub may have been created again before one of these events was enqueued.

    That is where nothing is known of the partition, or after a pause that is long enough.
    """
    known = in_order(epochs)
    if not known:
        return True
    start = known[-1].last_enqueued
    if int(enqueued_times.max()) <= start + CLOCK_TOLERANCE:
        return False
    times = np.sort(enqueued_times[enqueued_times > start])
    return bool((np.diff(times, prepend=start) > CLOCK_TOLERANCE).any())


def is_answered(epochs: Iterable[Epoch], enqueued_times: I64, answer: HubAnswer | None) -> bool:
    """Return whether the last answer tells that these events are of no newer hub.

    It does if it was given after them, or is of an event log that cannot tell.
    """
    known = in_order(epochs)
    if not known or answer is None:
        return False
    if answer.created is None:
        return True
    is_later = int(enqueued_times.max()) <= answer.last_enqueued
    return is_later and answer.created == known[-1].created


def apply(
    epochs: Iterable[Epoch],
    sequence_numbers: I64,
    enqueued_times: I64,
    *,
    is_file: bool = False,
) -> list[Slice]:
    """Find the events of a batch that were not applied yet, and the ledger that follows.

    Parameters
    ----------
    epochs
        All epochs of the partition, in any order; without any, the first event begins one.
    sequence_numbers, enqueued_times
        Of the batch's events, shape (events,), in any order, repeats allowed.
    is_file
        The partition is of a file, which is known by its content: it has one epoch, whenever two
        processes say that its events arrived.

    Returns
    -------
    list of Slice
        One for each epoch that gained events, oldest first; empty if all were duplicates.
    """
    if not len(sequence_numbers):
        return []
    known = {epoch.number: epoch for epoch in epochs}
    if not known:
        first = int(sequence_numbers[np.lexsort((sequence_numbers, enqueued_times))[0]])
        known[0] = Epoch(0, first, first - 1, 0, 0)
    if is_file:
        numbers = np.full(len(sequence_numbers), in_order(known.values())[-1].number)
    else:
        numbers = _epoch_of_each(known, sequence_numbers, enqueued_times)
    slices = []
    for number in np.unique(numbers).tolist():
        events = np.flatnonzero(numbers == number)
        if part := _apply(known[number], events, sequence_numbers, enqueued_times):
            slices.append(part)
    return slices


def _epoch_of_each(known: dict[int, Epoch], sequence: I64, enqueued: I64) -> I64:
    """Return the number of the epoch that each event is of; adds epochs that begin to `known`."""
    order = in_order(known.values())
    oldest = order[0]
    if oldest.created is not None and (enqueued < oldest.created - CLOCK_TOLERANCE).any():
        # A hub that was deleted before the partition was first seen.
        older = enqueued < oldest.created - CLOCK_TOLERANCE
        first, number = int(sequence[older].min()), _next_number(order)
        known[number] = Epoch(number, first, first - 1, 0, 0)
        order.insert(0, known[number])
    borders = np.array([epoch.began for epoch in order[1:]], dtype=np.int64) - CLOCK_TOLERANCE
    places = np.searchsorted(borders, enqueued, side="right")
    _add_held_back(order, places, sequence, enqueued)
    numbers = np.array([epoch.number for epoch in order], dtype=np.int64)[places]
    for epoch in order:
        # What a hub that can be asked has, and was enqueued last of all, is known to be its own.
        if epoch.created is None or epoch is not order[-1]:
            _split_where_numbers_fall(known, epoch, numbers, sequence, enqueued)
    return numbers


def _add_held_back(order: list[Epoch], places: I64, sequence: I64, enqueued: I64) -> None:
    """Correct `places` of an epoch's first events where these come after later ones.

    Only where it is not known when the hub was created. Anything else that was enqueued between
    two epochs is of the older one.
    """
    for place, epoch in enumerate(order[1:], start=1):
        if epoch.created is not None or not epoch.gaps:
            continue
        first, last = epoch.gaps[0]
        if first == epoch.first_sequence:
            after = order[place - 1].last_enqueued + CLOCK_TOLERANCE
            is_between = (places == place - 1) & (enqueued > after)
            places[is_between & (sequence <= last)] = place


def _split_where_numbers_fall(
    known: dict[int, Epoch], epoch: Epoch, numbers: I64, sequence: I64, enqueued: I64
) -> None:
    """Move events of an epoch to new ones where their hub was created again.

    That is judged by their numbers alone: in one hub, they grow with time.
    """
    mine = np.flatnonzero(numbers == epoch.number)
    mine = mine[np.lexsort((sequence[mine], enqueued[mine]))]
    # Numbers below those of an epoch without events may still be of its hub.
    high_water = -1 if epoch.is_unspoken else epoch.high_water
    last_enqueued = epoch.last_enqueued
    while len(mine):
        before = np.maximum.accumulate(np.append(high_water, sequence[mine][:-1]))
        times = np.maximum.accumulate(np.append(last_enqueued, enqueued[mine][:-1]))
        falls = (sequence[mine] <= before) & (enqueued[mine] >= times + _AFTER)
        if not falls.any():
            return
        mine = mine[int(np.argmax(falls)) :]
        # What comes before the first delivery is missing: a new hub counts from 0.
        number, time = _next_number(known.values()), int(enqueued[mine[0]])
        known[number] = Epoch(number, 0, -1, time, time)
        numbers[mine] = number
        high_water, last_enqueued = -1, time - _AFTER


def _next_number(epochs: Iterable[Epoch]) -> int:
    return max(epoch.number for epoch in epochs) + 1


def _apply(epoch: Epoch, events: I64, sequence: I64, enqueued: I64) -> Slice | None:
    """Apply events to their epoch; None if all were applied before."""
    numbers, firsts = np.unique(sequence[events], return_index=True)
    new = ~_applied(epoch, numbers)
    if not new.any():
        return None
    events, numbers = events[firsts[new]], numbers[new]
    times = enqueued[events]
    first, last = int(times.min()), int(times.max())
    if not epoch.is_unspoken:
        first, last = min(epoch.first_enqueued, first), max(epoch.last_enqueued, last)
    for begin, end in _contiguous(numbers):
        epoch = _extend(epoch, begin, end)
    return Slice(replace(epoch, first_enqueued=first, last_enqueued=last), events)


def _unspoken(number: int, first: int, created: int | None) -> Epoch:
    return Epoch(number, first, first - 1, created or 0, created or 0, created=created)


def _applied(epoch: Epoch, numbers: I64) -> npt.NDArray[np.bool_]:
    applied = (numbers >= epoch.first_sequence) & (numbers <= epoch.high_water)
    for first, last in epoch.gaps:
        applied &= (numbers < first) | (numbers > last)
    return applied


def _contiguous(numbers: I64) -> list[Range]:
    """Ranges without holes of ascending numbers."""
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    return [(int(part[0]), int(part[-1])) for part in np.split(numbers, cuts)]


def _extend(epoch: Epoch, first: int, last: int) -> Epoch:
    """Add one range of numbers, none of them applied before, to an epoch."""
    gaps = [rest for gap in epoch.gaps for rest in without(gap, first, last)]
    first_sequence, high_water = epoch.first_sequence, epoch.high_water
    # A gap may lie at either end of an epoch, so that a range can reach beyond it.
    if last > high_water:
        if first > high_water + 1:
            gaps.append((high_water + 1, first - 1))
        high_water = last
    if first < first_sequence:
        if last < first_sequence - 1:
            gaps.insert(0, (last + 1, first_sequence - 1))
        first_sequence = first
    return replace(epoch, first_sequence=first_sequence, high_water=high_water, gaps=tuple(gaps))


def without(gap: Range, first: int, last: int) -> list[Range]:
    """Return what is left of a gap when the numbers from `first` to `last` are taken out."""
    begin, end = gap
    if last < begin or first > end:
        return [gap]
    rest = [(begin, first - 1), (last + 1, end)]
    return [(a, b) for a, b in rest if a <= b]
