"""Tumbling windows, the horizon over partitions, and what counts as late."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scoring.windows import (
    PartitionProgress,
    count_late,
    horizon,
    last_final_start,
    window_starts,
)

YEAR_1, YEAR_9999 = -62_135_596_800_000_000, 253_402_300_799_999_999
event_times = st.integers(YEAR_1, YEAR_9999)
sizes = st.integers(1, 366 * 86_400_000_000)
small_times = st.lists(st.integers(-60, 60), max_size=30)


def spoken(watermark: int, last_enqueued: int, *, ended: bool = False) -> PartitionProgress:
    return PartitionProgress(watermark, last_enqueued, ended)


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


def test_the_horizon_is_the_smallest_watermark() -> None:
    assert horizon([spoken(70, 100), spoken(50, 100)], now=100, idle_timeout=30) == 50


def test_there_is_no_horizon_before_any_partition_spoke() -> None:
    assert horizon([], now=100, idle_timeout=30) is None
    assert horizon([PartitionProgress(None, 90)], now=100, idle_timeout=30) is None


def test_a_partition_that_never_spoke_holds_nobody_back() -> None:
    progress = [spoken(70, 100), PartitionProgress(None, 0)]

    assert horizon(progress, now=100, idle_timeout=30) == 70


def test_a_partition_is_idle_once_the_timeout_has_passed_since_its_newest_event() -> None:
    busy, slow = spoken(95, 100), spoken(10, 70)

    assert horizon([busy, slow], now=99, idle_timeout=30) == 10
    assert horizon([busy, slow], now=100, idle_timeout=30) == 70
    assert horizon([busy, slow], now=110, idle_timeout=30) == 80


def test_an_idle_partition_never_goes_back_behind_its_own_watermark() -> None:
    assert horizon([spoken(90, 70)], now=100, idle_timeout=30) == 90


def test_a_partition_that_ended_holds_nobody_back() -> None:
    progress = [spoken(70, 100), spoken(10, 100, ended=True)]

    assert horizon(progress, now=100, idle_timeout=30) == 70


def test_when_all_partitions_have_ended_the_horizon_is_now() -> None:
    assert horizon([spoken(10, 20, ended=True)], now=100, idle_timeout=30) == 100


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.builds(
            PartitionProgress, st.none() | st.integers(0, 99), st.integers(0, 99), st.booleans()
        ),
        max_size=5,
    ),
    st.integers(0, 200),
    st.integers(0, 50),
    st.integers(0, 30),
)
def test_the_horizon_never_goes_back_while_the_clock_goes_on(
    progress: list[PartitionProgress], now: int, later: int, idle_timeout: int
) -> None:
    before, after = (horizon(progress, t, idle_timeout) for t in (now, now + later))

    assert (before is None) == (after is None)
    assert before is None or after is None or after >= before


def test_a_window_is_final_when_its_end_and_the_lateness_are_reached_by_the_horizon() -> None:
    # [20, 30) with lateness 5 is final from 35 on.
    assert last_final_start(34, size=10, allowed_lateness=5) < 20
    assert last_final_start(35, size=10, allowed_lateness=5) >= 20


def test_a_reading_is_late_from_the_instant_at_which_its_window_is_final() -> None:
    times = np.array([29])

    assert count_late(times, 10, 5, watermark=34) == 0
    assert count_late(times, 10, 5, watermark=35) == 1


def test_a_reading_does_not_make_itself_or_its_forerunners_late() -> None:
    assert count_late(np.array([3, 100]), 10, 5, watermark=None) == 0
    assert count_late(np.array([100, 3]), 10, 5, watermark=None) == 1


def test_without_readings_nothing_is_late() -> None:
    assert count_late(np.empty(0, dtype=np.int64), 10, 5, watermark=1000) == 0


@settings(deadline=None, max_examples=200)
@given(small_times, st.integers(1, 15), st.integers(0, 15), st.none() | st.integers(-60, 60))
def test_lateness_is_judged_by_the_watermark_that_the_forerunners_left(
    times: list[int], size: int, lateness: int, watermark: int | None
) -> None:
    late, mark = 0, -(10**9) if watermark is None else watermark
    for time in times:
        late += (time // size + 1) * size + lateness <= mark
        mark = max(mark, time)

    assert count_late(np.array(times, dtype=np.int64), size, lateness, watermark) == late


@settings(deadline=None, max_examples=150)
@given(small_times, st.data(), st.integers(1, 15), st.integers(0, 15))
def test_the_count_of_late_readings_does_not_depend_on_the_batching(
    times: list[int], data: st.DataObject, size: int, lateness: int
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(times)), max_size=5)))
    watermark, late = None, 0
    for batch in np.split(np.array(times, dtype=np.int64), cuts):
        late += count_late(batch, size, lateness, watermark)
        marks = batch.tolist() + ([] if watermark is None else [watermark])
        watermark = max(marks, default=None)

    assert late == count_late(np.array(times, dtype=np.int64), size, lateness, None)
