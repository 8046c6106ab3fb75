"""Partial aggregates of windows: what one partition has seen of one window of one sensor.

A partial holds count, mean, M2 (the sum of squared deviations from the mean), min, max, and the
last value with its event time. Sums of squares would cancel (mean 1e6, deviation 0.01 gives a
negative variance), so partials merge by Chan's formula: T. F. Chan, G. H. Golub, R. J. LeVeque,
"Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
"""

from dataclasses import dataclass

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
    """

    keys: list[Key]
    count: I64
    mean: F64
    m2: F64
    min: F64
    max: F64
    last: F64
    last_time: I64

    def __len__(self) -> int:
        return len(self.keys)

    def std(self) -> F64:
        """Population standard deviation; 0 for a single reading."""
        deviation: F64 = np.sqrt(self.m2 / self.count)
        return deviation


def aggregate(readings: Readings, window: int) -> Partials:
    """Aggregate readings over tumbling windows of `window` microseconds."""
    starts = window_starts(readings.event_time, window).tolist()
    keys = list(zip(readings.device, readings.sensor, starts, strict=True))
    value = readings.value
    one, zero = np.ones(len(keys), dtype=np.int64), np.zeros(len(keys))
    return combine(Partials(keys, one, value, zero, value, value, value, readings.event_time))


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
        )
    )


def combine(rows: Partials) -> Partials:
    """Merge rows of equal key, in order of each key's first row; `rows` may repeat keys."""
    slot, groups = _slots(rows.keys)
    if len(groups) == len(rows):
        return rows
    size = len(groups)
    count = np.bincount(slot, rows.count, size)
    # Deviations are taken from each group's first mean: exact for equal values, and stable.
    first = np.empty(size)
    first[slot[::-1]] = rows.mean[::-1]
    mean = first + np.bincount(slot, rows.count * (rows.mean - first[slot]), size) / count
    m2 = np.bincount(slot, rows.m2 + rows.count * (rows.mean - mean[slot]) ** 2, size)
    last, last_time = _last(slot, rows, size)
    lowest, highest = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(lowest, slot, rows.min)
    np.maximum.at(highest, slot, rows.max)
    return Partials(groups, count.astype(np.int64), mean, m2, lowest, highest, last, last_time)


def _slots(keys: list[Key]) -> tuple[npt.NDArray[np.intp], list[Key]]:
    """Number the distinct keys in order of appearance."""
    index: dict[Key, int] = {}
    number = index.setdefault
    slot = np.array([number(key, len(index)) for key in keys], dtype=np.intp)
    return slot, list(index)


def _last(slot: npt.NDArray[np.intp], rows: Partials, size: int) -> tuple[F64, I64]:
    time = np.full(size, np.iinfo(np.int64).min)
    np.maximum.at(time, slot, rows.last_time)
    newest = rows.last_time == time[slot]
    value = np.full(size, -np.inf)
    np.maximum.at(value, slot[newest], rows.last[newest])
    return value, time
