"""Partial aggregates of windows: what one partition has seen of one window of one sensor.

A partial holds count, mean, M2 (the sum of squared deviations from the mean), min, max, and the
last value with its event time. Sums of squares would cancel (mean 1e6, deviation 0.01 gives a
negative variance), so partials merge by Chan's formula: T. F. Chan, G. H. Golub, R. J. LeVeque,
"Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
"""

from dataclasses import dataclass
from itertools import compress, count, repeat

import numpy as np
import numpy.typing as npt

from scoring.readings import F64, I64, Readings
from scoring.windows import window_starts

Key = tuple[str, str, int]
"""Which window of which sensor: device, sensor, window start in epoch microseconds UTC."""


@dataclass(frozen=True, slots=True)
class Partials:
    """Partials as columns of equal length, one row a window, in no particular order.

    Attributes
    ----------
    keys
        Each once.
    count
        Readings, int64, at least 1.
    m2
        Sum of squared deviations from the mean, never negative.
    last, last_time
        Value with the greatest event time (epoch microseconds); of several, the greatest value,
        so that the order of merging decides nothing.
    late_enqueued
        Enqueued time of the newest reading that came when the window was final already (epoch
        microseconds), 0 where none did; int64.
    """

    keys: list[Key]
    count: I64
    mean: F64
    m2: F64
    min: F64
    max: F64
    last: F64
    last_time: I64
    late_enqueued: I64

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, mask: npt.NDArray[np.bool_]) -> "Partials":
        """Keep the windows where `mask` is true."""
        if mask.all():
            return self
        return Partials(
            list(compress(self.keys, mask.tobytes())),
            self.count[mask],
            self.mean[mask],
            self.m2[mask],
            self.min[mask],
            self.max[mask],
            self.last[mask],
            self.last_time[mask],
            self.late_enqueued[mask],
        )

    def std(self) -> F64:
        """Give the population standard deviation; 0 for a single reading."""
        deviation: F64 = np.sqrt(self.m2 / self.count)
        return deviation


def aggregate(readings: Readings, window: int, late_enqueued: I64 | None = None) -> Partials:
    """Aggregate readings over tumbling windows of `window` microseconds.

    Parameters
    ----------
    late_enqueued
        Enqueued times of late readings, 0 of all others; None if none is late.
    """
    starts = window_starts(readings.event_time, window).tolist()
    keys = list(zip(readings.device, readings.sensor, starts, strict=True))
    value = readings.value
    one, zero = np.ones(len(keys), dtype=np.int64), np.zeros(len(keys))
    late = np.zeros(len(keys), dtype=np.int64) if late_enqueued is None else late_enqueued
    return combine(Partials(keys, one, value, zero, value, value, value, readings.event_time, late))


def merge(left: Partials, right: Partials) -> Partials:
    """Merge two sets of partials; windows that both have become one row."""
    return combine(
        Partials(
            left.keys + right.keys,
            np.concatenate([left.count, right.count]),
            np.concatenate([left.mean, right.mean]),
            np.concatenate([left.m2, right.m2]),
            np.concatenate([left.min, right.min]),
            np.concatenate([left.max, right.max]),
            np.concatenate([left.last, right.last]),
            np.concatenate([left.last_time, right.last_time]),
            np.concatenate([left.late_enqueued, right.late_enqueued]),
        )
    )


def combine(rows: Partials) -> Partials:
    """Merge rows of equal key, in order of each key's first row; `rows` may repeat keys."""
    slot, groups = _slots(rows.keys)
    if len(groups) == len(rows):
        return rows
    size = len(groups)
    total = _sums(slot, rows.count, size)
    # Deviations are taken from each group's first mean: exact for equal values, and stable.
    first = np.empty(size)
    first[slot[::-1]] = rows.mean[::-1]
    mean = first + _sums(slot, rows.count * (rows.mean - first[slot]), size) / total
    m2 = _sums(slot, rows.m2 + rows.count * (rows.mean - mean[slot]) ** 2, size)
    last, last_time = _last(slot, rows, size)
    lowest, highest = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(lowest, slot, rows.min)
    np.maximum.at(highest, slot, rows.max)
    late = np.zeros(size, dtype=np.int64)
    if rows.late_enqueued.any():
        np.maximum.at(late, slot, rows.late_enqueued)
    count = total.astype(np.int64)
    return Partials(groups, count, mean, m2, lowest, highest, last, last_time, late)


def _slots(keys: list[Key]) -> tuple[npt.NDArray[np.intp], list[Key]]:
    """Give each distinct key a number, in order of appearance."""
    distinct = dict.fromkeys(keys, 0)
    if len(distinct) == len(keys):
        return np.arange(len(keys)), keys
    groups = list(distinct)
    index = dict(zip(groups, range(len(groups)), strict=True))
    return np.fromiter(map(index.__getitem__, keys), np.intp, len(keys)), groups


def _sums(slot: npt.NDArray[np.intp], numbers: F64 | I64, size: int) -> F64:
    """Add up the numbers of each slot."""
    return np.bincount(slot, numbers, size).astype(np.float64, copy=False)


def _last(slot: npt.NDArray[np.intp], rows: Partials, size: int) -> tuple[F64, I64]:
    time = np.full(size, np.iinfo(np.int64).min)
    np.maximum.at(time, slot, rows.last_time)
    newest = rows.last_time == time[slot]
    value = np.full(size, -np.inf)
    np.maximum.at(value, slot[newest], rows.last[newest])
    return value, time


class WindowTable:
    """Windows merged from one small set of partials after another, quicker than by `merge`.

    What it costs to add a set does not grow with the windows that are there.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._index: dict[Key, int] = {}
        self._numbers = np.empty((3, 0), dtype=np.int64)
        self._values = np.empty((5, 0))

    def __len__(self) -> int:
        return len(self._index)

    def add(self, partials: Partials) -> None:
        """Merge a set; its keys are each there once, as `aggregate` and `merge` leave them."""
        known = len(self._index)
        find = self._index.get
        places = np.fromiter(map(find, partials.keys, repeat(-1)), np.intp, len(partials))
        new = places < 0
        if not new.any():
            self._merge(places, partials)
            return
        fresh = partials.where(new)
        self._index.update(zip(fresh.keys, count(known), strict=False))
        self._grow(len(self._index))
        numbers = fresh.count, fresh.last_time, fresh.late_enqueued
        self._numbers[:, known : len(self._index)] = numbers
        self._values[:, known : len(self._index)] = (
            *(fresh.mean, fresh.m2, fresh.min, fresh.max),
            fresh.last,
        )
        if len(fresh) < len(partials):
            self._merge(places[~new], partials.where(~new))

    def take(self, last_start: int | None = None) -> Partials:
        """Give the windows that start at or before `last_start`, or all, and forget them."""
        windows = self._windows()
        if last_start is None:
            last_start = np.iinfo(np.int64).max
        starts = np.fromiter((key[2] for key in windows.keys), np.int64, len(windows))
        self._clear()
        if (kept := windows.where(starts > last_start)).keys:
            self.add(kept)
        return windows.where(starts <= last_start)

    def _windows(self) -> Partials:
        readings, last_time, late = self._numbers[:, : len(self)]
        mean, m2, low, high, last = self._values[:, : len(self)]
        return Partials(list(self._index), readings, mean, m2, low, high, last, last_time, late)

    def _grow(self, size: int) -> None:
        """Make room, twice what is needed: growing then costs a constant share."""
        more = 2 * size - self._numbers.shape[1]
        if size > self._numbers.shape[1]:
            self._numbers = np.pad(self._numbers, ((0, 0), (0, more)))
            self._values = np.pad(self._values, ((0, 0), (0, more)))

    def _merge(self, places: npt.NDArray[np.intp], p: Partials) -> None:
        """Merge partials into the windows that stand at `places`, by Chan's formula."""
        n, last_time, late = self._numbers[:, places]
        mean, m2, low, high, last = self._values[:, places]
        total = n + p.count
        delta, share = p.mean - mean, p.count / total
        later = (p.last_time > last_time) | ((p.last_time == last_time) & (p.last > last))
        newest = np.maximum(last_time, p.last_time)
        self._numbers[:, places] = total, newest, np.maximum(late, p.late_enqueued)
        self._values[:, places] = (
            mean + delta * share,
            m2 + p.m2 + delta * delta * n * share,
            np.minimum(low, p.min),
            np.maximum(high, p.max),
            np.where(later, p.last, last),
        )
