"""Tumbling windows, watermarks and finality. All instants are epoch microseconds UTC.

A window is ``[start, start + size)``: fixed size, gap-free, aligned to the epoch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


def window_starts(event_times: I64, size: int) -> I64:
    """Start of the window that holds each event time; floors, so it holds before 1970 too."""
    starts: I64 = event_times // size * size
    return starts


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """How far one partition has come.

    Attributes
    ----------
    watermark
        Greatest event time accepted, None if nothing was.
    last_enqueued
        When the hub took the newest event that was applied.
    ended
        Nothing will follow: a file read to its end.
    """

    watermark: int | None
    last_enqueued: int
    ended: bool = False


def horizon(partitions: Iterable[PartitionProgress], now: int, idle_timeout: int) -> int | None:
    """Give the event time up to which everything is assumed to have arrived.

    It is the smallest effective watermark over the partitions. One that has been idle for
    `idle_timeout` counts as being at ``now - idle_timeout``; one that never spoke, or has ended,
    holds nobody back.

    Returns
    -------
    int or None
        None if no partition ever spoke.
    """
    marks: list[int] = []
    spoke = False
    for partition in partitions:
        if partition.watermark is None:
            continue
        spoke = True
        if not partition.ended:
            marks.append(_effective_watermark(partition, partition.watermark, now - idle_timeout))
    if marks:
        return min(marks)
    return now if spoke else None


def _effective_watermark(partition: PartitionProgress, watermark: int, idle_since: int) -> int:
    if partition.last_enqueued <= idle_since:
        return max(watermark, idle_since)
    return watermark


def last_final_start(horizon: int, size: int, allowed_lateness: int) -> int:
    """Give the greatest start that a final window can have: its end + lateness <= horizon."""
    return horizon - allowed_lateness - size


def count_late(event_times: I64, size: int, allowed_lateness: int, watermark: int | None) -> int:
    """Count the readings whose window was final already, going by their own partition.

    Parameters
    ----------
    event_times
        In the order of their sequence numbers.
    watermark
        The partition's, before the first of them. Each reading is judged by the watermark that
        its forerunners left, so that the count does not depend on how events were batched.
    """
    if not len(event_times):
        return 0
    start = np.iinfo(np.int64).min + size + allowed_lateness if watermark is None else watermark
    before = np.maximum.accumulate(np.concatenate([[start], event_times[:-1]]))
    ends = window_starts(event_times, size) + size
    return int(np.count_nonzero(ends + allowed_lateness <= before))
