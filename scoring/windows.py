"""Tumbling windows, watermarks and late readings. All instants are epoch microseconds UTC.

A window is ``[start, start + size)``: fixed size, gap-free, aligned to the epoch.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_NEVER = np.iinfo(np.int64).min // 2
"""Before every time there is, and far enough from the smallest number to subtract from."""


def window_starts(event_times: I64, size: int) -> I64:
    """Return the start of the window that holds each event time, also before 1970."""
    starts: I64 = event_times // size * size
    return starts


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """How far one partition has come.

    Attributes
    ----------
    watermark
        The event time up to which everything is assumed to have arrived; None if nothing has.
    last_enqueued
        The greatest enqueued time of the events that were applied, 0 if none was.
    ended
        Nothing will follow: a file read to its end.
    """

    watermark: int | None
    last_enqueued: int
    ended: bool = False


def last_final_start(last_end: int, size: int) -> int:
    """Return the greatest start of a final window, given the horizon less the allowed lateness."""
    return last_end - size


@dataclass(frozen=True, slots=True)
class Windowing:
    """How readings are put into windows, and when those count as complete.

    Attributes
    ----------
    size
        Of a window, microseconds.
    allowed_lateness
        How long past its end a window stays open, microseconds.
    watermark_lag
        How far the watermark of an event hub's partition may stay behind the newest enqueued time,
        microseconds.
    """

    size: int
    allowed_lateness: int
    watermark_lag: int

    def arrive(
        self,
        watermark: int | None,
        event_times: I64,
        enqueued_times: I64,
        reached: I64,
    ) -> tuple[int | None, Mask]:
        """Move a watermark on, and tell which readings are late.

        A watermark follows event times, each taken to be at most its event's enqueued time, and is
        never more than `watermark_lag` behind the newest enqueued time: neither a fast clock, nor
        slow clocks or a backfill, decide for all devices. It never decreases.

        Parameters
        ----------
        watermark
            The partition's before these readings; None if nothing was applied.
        event_times, enqueued_times
            Of the readings, in the order of their sequence numbers.
        reached
            The greatest enqueued time of all events of the partition up to each reading, those
            without readings included.

        Returns
        -------
        tuple of int or None and mask
            The watermark after the readings, and which readings came when their window was final
            already. Each is judged by the watermark that its forerunners left and by its own
            enqueued time, so that this does not depend on how events were batched.
        """
        start = _NEVER if watermark is None else watermark
        if not len(event_times):
            return watermark, np.zeros(0, dtype=bool)
        plausible = np.minimum(event_times, enqueued_times)
        floor = reached - self.watermark_lag
        marks = np.maximum.accumulate(np.append(start, np.maximum(plausible, floor)))
        before = np.maximum(marks[:-1], floor)
        return int(marks[-1]), self._is_final(event_times, before)

    def floor(self, watermark: int | None, newest_enqueued: int) -> int:
        """Return a partition's watermark after events, given the newest enqueued time."""
        least = newest_enqueued - self.watermark_lag
        return least if watermark is None else max(watermark, least)

    def arrive_from_file(self, watermark: int | None, event_times: I64) -> tuple[int | None, Mask]:
        """Do as `arrive` does for readings of a file, whose enqueued times say little.

        The watermark is the greatest event time.
        """
        if not len(event_times):
            return watermark, np.zeros(0, dtype=bool)
        start = _NEVER if watermark is None else watermark
        marks = np.maximum.accumulate(np.append(start, event_times))
        return int(marks[-1]), self._is_final(event_times, marks[:-1])

    def _is_final(self, event_times: I64, watermarks: I64) -> Mask:
        ends = window_starts(event_times, self.size) + self.size
        late: Mask = ends + self.allowed_lateness <= watermarks
        return late
