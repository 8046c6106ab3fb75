"""The ledger: which sequence numbers of a partition have been applied.

Event Hubs delivers at least once, and the Functions host moves its checkpoint even past event
batches whose handling failed. So what counts is kept here, in the same transaction as the effect
of the events: duplicates are dropped, and what never came stays on record as a gap.

A hub that was deleted and made again counts from 0 again. A low sequence number that the hub took
later than everything applied so far therefore opens a new epoch of the partition.
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

Deleting a hub and making it again takes longer."""
_AFTER = CLOCK_TOLERANCE + 1


@dataclass(frozen=True, slots=True)
class Epoch:
    """What was applied of one partition since its hub was made.

    Everything in ``[first_sequence, high_water]`` was applied but for the `gaps`. Numbers below
    `first_sequence` were not expected (a new consumer need not begin at 0); if they come, they
    are applied too.

    Attributes
    ----------
    first_enqueued, last_enqueued
        Enqueued times of the lowest and the highest number applied, epoch microseconds UTC.
    gaps
        Ranges that were skipped by the delivery and not repaired yet, ascending.
    """

    number: int
    first_sequence: int
    high_water: int
    first_enqueued: int
    last_enqueued: int
    gaps: tuple[Range, ...] = ()


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


def apply(epochs: Iterable[Epoch], sequence_numbers: I64, enqueued_times: I64) -> list[Slice]:
    """Find the events of a batch that were not applied yet, and the ledger that follows.

    Parameters
    ----------
    epochs
        All epochs of the partition, in any order; none for a partition that never spoke.
    sequence_numbers, enqueued_times
        Of the batch's events, shape (events,), in any order, repeats allowed.

    Returns
    -------
    list of Slice
        One for each epoch that gained events, oldest first; empty if all were duplicates.
    """
    known = sorted(epochs, key=lambda epoch: epoch.number)
    slices: dict[int, Slice] = {}
    for run in _runs(known, sequence_numbers, enqueued_times):
        _apply_run(known, slices, run, sequence_numbers, enqueued_times)
    return [slices[number] for number in sorted(slices)]


def _runs(known: list[Epoch], sequence: I64, enqueued: I64) -> list[I64]:
    """Cut the events, ordered by enqueued time, into runs that are each of one epoch.

    A cut is where sequence numbers fall, for there a hub was made anew, or an event stands twice;
    and at the times that `_place` goes by.
    """
    order = np.lexsort((sequence, enqueued))
    falls = np.flatnonzero(np.diff(sequence[order]) <= 0) + 1
    borders = [
        time
        for epoch in known
        for time in (epoch.first_enqueued - CLOCK_TOLERANCE, epoch.last_enqueued + _AFTER)
    ]
    cuts = {*falls.tolist(), *np.searchsorted(enqueued[order], borders).tolist()}
    return [run for run in np.split(order, sorted(cuts)) if len(run)]


def _apply_run(
    known: list[Epoch], slices: dict[int, Slice], run: I64, sequence: I64, enqueued: I64
) -> None:
    """Apply events of ascending number and enqueued time; updates `known` and `slices`."""
    numbers = sequence[run]
    place = _place(known, int(numbers[0]), int(numbers[-1]), int(enqueued[run[0]]))
    epoch = known[place]
    new = ~_applied(epoch, numbers)
    if not new.any():
        return
    for begin, end in _contiguous(numbers[new]):
        epoch = _extend(epoch, begin, end)
    times = enqueued[run[new]]
    known[place] = replace(
        epoch,
        first_enqueued=min(epoch.first_enqueued, int(times[0])),
        last_enqueued=max(epoch.last_enqueued, int(times[-1])),
    )
    before = slices[epoch.number].events if epoch.number in slices else np.empty(0, np.int64)
    events = np.concatenate([before, run[new]])
    slices[epoch.number] = Slice(known[place], events[np.argsort(sequence[events])])


def _place(known: list[Epoch], first: int, last: int, time: int) -> int:
    """Index in `known` of the epoch that a run belongs to; opens one where it must.

    Parameters
    ----------
    first, last, time
        The run's first and last sequence number, and its first enqueued time.
    """
    if not known:
        known.append(Epoch(0, first, first - 1, time, time))
    newest = known[-1]
    if first <= newest.high_water and time >= newest.last_enqueued + _AFTER:
        # A hub made anew counts from 0: what comes before the first delivery is missing.
        known.append(Epoch(newest.number + 1, 0, -1, time, time))
    return next(i for i in reversed(range(len(known))) if _belongs(known, i, last, time))


def _belongs(known: list[Epoch], place: int, last: int, time: int) -> bool:
    """Whether a run is of this epoch, given that it is of no newer one."""
    epoch = known[place]
    if place == 0 or time >= epoch.first_enqueued - CLOCK_TOLERANCE:
        return True
    # The epoch's first events may come after later ones. Anything else that the hub took
    # between the two epochs is of the older one, and was held back until now.
    first_gap = epoch.gaps[0] if epoch.gaps else (0, -1)
    is_missing = first_gap[0] == epoch.first_sequence and last <= first_gap[1]
    return is_missing and time >= known[place - 1].last_enqueued + _AFTER


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
    if first > epoch.high_water:
        gap = [(epoch.high_water + 1, first - 1)] if first > epoch.high_water + 1 else []
        return replace(epoch, high_water=last, gaps=(*epoch.gaps, *gap))
    if last < epoch.first_sequence:
        gap = [(last + 1, epoch.first_sequence - 1)] if last < epoch.first_sequence - 1 else []
        return replace(epoch, first_sequence=first, gaps=(*gap, *epoch.gaps))
    gaps = [rest for gap in epoch.gaps for rest in without(gap, first, last)]
    return replace(epoch, gaps=tuple(gaps))


def without(gap: Range, first: int, last: int) -> list[Range]:
    """Give what is left of a gap when the numbers from `first` to `last` are taken out."""
    begin, end = gap
    if last < begin or first > end:
        return [gap]
    rest = [(begin, first - 1), (last + 1, end)]
    return [(a, b) for a, b in rest if a <= b]
