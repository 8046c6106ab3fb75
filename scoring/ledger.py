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
    order = np.argsort(enqueued_times, kind="stable")
    slices: dict[int, Slice] = {}
    for run in _ascending_runs(order, sequence_numbers):
        _apply_run(known, slices, run, sequence_numbers, enqueued_times)
    return [slices[number] for number in sorted(slices)]


def _ascending_runs(order: I64, sequence_numbers: I64) -> list[I64]:
    """Cut the events, ordered by enqueued time, where their sequence numbers fall.

    They fall where a hub was made anew in the middle of a batch, or an event stands twice.
    """
    falls = np.flatnonzero(np.diff(sequence_numbers[order]) <= 0) + 1
    return [run for run in np.split(order, falls) if len(run)]


def _apply_run(
    known: list[Epoch], slices: dict[int, Slice], run: I64, sequence: I64, enqueued: I64
) -> None:
    """Apply events of ascending number and enqueued time; updates `known` and `slices`."""
    numbers, times = sequence[run], enqueued[run]
    place = _place(known, numbers, times)
    epoch = known[place]
    new = ~_applied(epoch, numbers)
    if not new.any():
        return
    for begin, end in _contiguous(numbers[new]):
        epoch = _extend(epoch, begin, end)
    known[place] = replace(
        epoch,
        first_enqueued=min(epoch.first_enqueued, int(times[0])),
        last_enqueued=max(epoch.last_enqueued, int(times[-1])),
    )
    before = slices[epoch.number].events if epoch.number in slices else np.empty(0, np.int64)
    slices[epoch.number] = Slice(known[place], np.concatenate([before, run[new]]))


def _place(known: list[Epoch], numbers: I64, times: I64) -> int:
    """Index in `known` of the epoch that the events belong to; opens one where it must."""
    if not known:
        start = int(numbers[0])
        known.append(Epoch(0, start, start - 1, int(times[0]), int(times[0])))
    elif _is_remade(known[-1], numbers, times):
        # A hub made anew counts from 0: what comes before the first delivery is missing.
        known.append(Epoch(known[-1].number + 1, 0, -1, int(times[0]), int(times[0])))
    return next(i for i in reversed(range(len(known))) if _belongs(known, i, numbers, times))


def _is_remade(newest: Epoch, numbers: I64, times: I64) -> bool:
    """Whether numbers at or below the high-water mark come with a later enqueued time."""
    low = numbers <= newest.high_water
    return bool((low & (times > newest.last_enqueued + CLOCK_TOLERANCE)).any())


def _belongs(known: list[Epoch], place: int, numbers: I64, times: I64) -> bool:
    """Whether events are of this epoch, given that they are of no newer one."""
    if place == 0 or times[0] >= known[place].first_enqueued:
        return True
    # Its first events, delivered after later ones: newer than all of the epoch before.
    fills_gap = numbers[0] <= known[place].high_water
    return bool(fills_gap and times[0] > known[place - 1].last_enqueued)


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
