"""Tumbling windows, the horizon over partitions, and what counts as late."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scoring.windows import Windowing, last_final_start, window_starts

YEAR_1, YEAR_9999 = -62_135_596_800_000_000, 253_402_300_799_999_999
event_times = st.integers(YEAR_1, YEAR_9999)
sizes = st.integers(1, 366 * 86_400_000_000)


@settings(deadline=None, max_examples=200)
@given(event_times, sizes)
@example(0, 10)
@example(-1, 10)
@example(-10, 10)
@example(-11, 10)
def test_each_instant_is_in_exactly_one_window(instant: int, size: int) -> None:
    around = window_starts(np.array([instant]), size)[0] + size * np.arange(-2, 3)

    holding = [start for start in around.tolist() if start <= instant < start + size]

    assert holding == [around[2]]
    assert around[2] % size == 0


def test_the_start_belongs_to_its_window_and_the_end_to_the_next() -> None:
    starts = window_starts(np.array([-11, -10, -1, 0, 9, 10]), 10)

    assert starts.tolist() == [-20, -10, -10, 0, 0, 10]


def test_a_window_is_final_when_its_end_and_the_lateness_are_reached_by_the_horizon() -> None:
    # [20, 30) with lateness 5 is final from 35 on.
    assert last_final_start(34 - 5, size=10) < 20
    assert last_final_start(35 - 5, size=10) >= 20


OF_10 = Windowing(size=10, allowed_lateness=5, watermark_lag=100)


def arrive(
    times: list[int], enqueued: list[int], watermark: int | None = None, of: Windowing = OF_10
) -> tuple[int | None, list[bool]]:
    """Have readings arrive, an event each."""
    at = np.array(enqueued, dtype=np.int64)
    reached = np.maximum.accumulate(at) if len(at) else at
    mark, late = of.arrive(watermark, np.array(times, dtype=np.int64), at, reached)
    return mark, late.tolist()


def from_file(times: list[int], watermark: int | None = None) -> tuple[int | None, list[bool]]:
    mark, late = OF_10.arrive_from_file(watermark, np.array(times, dtype=np.int64))
    return mark, late.tolist()


def test_a_reading_is_late_from_the_instant_at_which_its_window_is_final() -> None:
    assert arrive([29], [60], watermark=34) == (34, [False])
    assert arrive([29], [60], watermark=35) == (35, [True])
    assert from_file([29], watermark=34) == (34, [False])
    assert from_file([29], watermark=35) == (35, [True])


def test_a_reading_does_not_make_itself_or_its_forerunners_late() -> None:
    assert arrive([3, 100], [99, 100])[1] == [False, False]
    assert arrive([100, 3], [99, 100])[1] == [False, True]


def test_without_readings_nothing_is_late_and_the_watermark_stays() -> None:
    assert arrive([], [], watermark=7) == (7, [])
    assert from_file([], watermark=7) == (7, [])


def test_a_fast_clock_moves_the_watermark_no_further_than_the_hubs_clock() -> None:
    assert arrive([400, 90], [100, 101]) == (100, [False, False])


def test_slow_clocks_keep_the_watermark_no_further_back_than_the_lag() -> None:
    assert arrive([10, 20], [300, 310]) == (210, [True, True])


def test_events_without_readings_move_the_watermark_too() -> None:
    assert OF_10.floor(None, 300) == 200
    assert OF_10.floor(250, 300) == 250
    late = OF_10.arrive(50, np.array([140]), np.array([200]), np.array([300]))
    assert (late[0], late[1].tolist()) == (200, [True])


def test_the_watermark_of_a_file_is_its_greatest_event_time() -> None:
    assert from_file([400, 90]) == (400, [False, True])


moments = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=30)


@settings(deadline=None, max_examples=200)
@given(moments, st.integers(1, 15), st.integers(0, 15), st.integers(1, 50))
def test_lateness_is_judged_by_the_watermark_that_the_forerunners_left(
    readings: list[tuple[int, int]], size: int, lateness: int, lag: int
) -> None:
    of, mark, newest, late = Windowing(size, lateness, lag), -(10**9), -(10**9), []
    for time, enqueued in readings:
        newest = max(newest, enqueued)
        mark = max(mark, newest - lag)
        late.append((time // size + 1) * size + lateness <= mark)
        mark = max(mark, min(time, enqueued))

    times, at = [t for t, _ in readings], [e for _, e in readings]
    assert arrive(times, at, None, of) == (mark if readings else None, late)


@settings(deadline=None, max_examples=150)
@given(moments, st.data())
def test_nothing_depends_on_the_batching(
    readings: list[tuple[int, int]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(readings)))
    times, at = [t for t, _ in readings], [e for _, e in readings]
    whole = arrive(times, at)

    watermark, late = arrive(times[:cut], at[:cut])
    reached = np.maximum.accumulate(np.array(at, dtype=np.int64)) if at else np.empty(0, np.int64)
    rest = np.array(times[cut:], dtype=np.int64), np.array(at[cut:], dtype=np.int64), reached[cut:]
    after, late_after = OF_10.arrive(watermark, *rest)

    assert (after, late + late_after.tolist()) == whole


@settings(deadline=None, max_examples=150)
@given(moments, st.integers(1, 50), st.none() | st.integers(0, 300))
def test_the_watermark_never_decreases_and_stays_within_its_bounds(
    readings: list[tuple[int, int]], lag: int, watermark: int | None
) -> None:
    times, at = [t for t, _ in readings], [e for _, e in readings]

    after, _ = arrive(times, at, watermark, Windowing(10, 5, lag))

    assert after is not None or watermark is None
    if readings and after is not None:
        assert after >= max(at) - lag
        assert after <= max([*at, watermark or 0])
        assert watermark is None or after >= watermark
