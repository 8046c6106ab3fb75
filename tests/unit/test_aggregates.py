"""Partials: what one partition has seen of one window of one sensor, and how they merge."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.aggregates import Key, Partials, WindowTable, aggregate, combine, merge
from scoring.readings import MAX_VALUE, Readings

WINDOW = 10
Row = tuple[str, str, int, float]
"""A reading: device, sensor, event time, value."""


def readings(rows: Sequence[Row]) -> Readings:
    return Readings(
        [row[0] for row in rows],
        [row[1] for row in rows],
        np.array([row[2] for row in rows], dtype=np.int64),
        np.array([row[3] for row in rows], dtype=np.float64),
        np.arange(len(rows)),
    )


def of(rows: Sequence[Row]) -> Partials:
    return aggregate(readings(rows), WINDOW)


def one_window(values: Sequence[float]) -> Partials:
    return of([("d", "s", 0, value) for value in values])


@dataclass(frozen=True)
class Exact:
    """What holds of a partial to the last bit, however it was merged."""

    count: int
    min: str
    max: str
    last: str
    last_time: int


def exact(partials: Partials) -> dict[Key, Exact]:
    columns = (partials.count, partials.min, partials.max, partials.last, partials.last_time)
    rows = zip(partials.keys, *(column.tolist() for column in columns), strict=True)
    return {
        key: Exact(count, low.hex(), high.hex(), last.hex(), time)
        for key, count, low, high, last, time in rows
    }


def moments(partials: Partials) -> dict[Key, tuple[float, float]]:
    return {
        key: (mean, m2)
        for key, mean, m2 in zip(
            partials.keys, partials.mean.tolist(), partials.m2.tolist(), strict=True
        )
    }


def assert_same(one: Partials, other: Partials) -> None:
    """Equal but for rounding: mean and M2 as if each value moved by 1e-12 of their scale."""
    assert exact(one) == exact(other)
    # Next to zero floats stand a fixed distance apart, whatever the scale.
    moves = dict(zip(one.keys, 1e-12 * scale(one) + 1e-320, strict=True))
    others = moments(other)
    counts = dict(zip(one.keys, one.count.tolist(), strict=True))
    for key, (mean, m2) in moments(one).items():
        expected_mean, expected_m2 = others[key]
        moved = 2 * (counts[key] * m2) ** 0.5 * moves[key] + counts[key] * moves[key] ** 2
        assert mean == pytest.approx(expected_mean, rel=0, abs=moves[key])
        assert m2 == pytest.approx(expected_m2, rel=1e-12, abs=moved)


def scale(partials: Partials) -> npt.NDArray[np.float64]:
    largest: npt.NDArray[np.float64] = np.maximum(abs(partials.min), abs(partials.max))
    return largest


values = st.one_of(
    st.floats(-1e6, 1e6),
    st.sampled_from([0.0, 1.0, -1.0, 1e-300, MAX_VALUE, -MAX_VALUE, 5e-324]),
    st.floats(-0.05, 0.05).map(lambda noise: 1e6 + noise),
).map(lambda value: value + 0.0)
rows = st.lists(
    st.tuples(
        st.sampled_from(["d1", "d2"]), st.sampled_from(["a", "b"]), st.integers(-25, 25), values
    ),
    max_size=25,
)


def test_a_window_holds_count_mean_m2_extremes_and_the_last_value() -> None:
    partials = of([("d", "s", 12, 3.0), ("d", "s", 19, 5.0), ("d", "s", 10, 10.0)])

    assert partials.keys == [("d", "s", 10)]
    assert partials.count.tolist() == [3]
    assert partials.mean.tolist() == [6.0]
    assert partials.m2.tolist() == [9 + 1 + 16]
    assert partials.min.tolist() == [3.0]
    assert partials.max.tolist() == [10.0]
    assert partials.last.tolist() == [5.0]
    assert partials.last_time.tolist() == [19]


def test_devices_sensors_and_windows_are_kept_apart() -> None:
    keys = [("d", "s", 0), ("d", "t", 0), ("e", "s", 0), ("d", "s", 10), ("d", "s", -10)]

    assert of([(device, sensor, start, 1.0) for device, sensor, start in keys]).keys == keys


def test_names_that_only_look_alike_when_joined_are_kept_apart() -> None:
    assert len(of([("a", "bc", 0, 1.0), ("ab", "c", 0, 1.0), ("a b", "c", 0, 1.0)])) == 3


def test_of_several_values_at_the_last_instant_the_greatest_is_the_last() -> None:
    for order in ([7.0, 9.0, 8.0], [9.0, 8.0, 7.0]):
        assert one_window(order).last.tolist() == [9.0]


def test_no_readings_have_no_windows_and_merging_them_changes_nothing() -> None:
    some = one_window([1.0, 2.0])

    assert len(of([])) == 0
    assert_same(merge(some, of([])), some)
    assert_same(merge(of([]), some), some)


def test_a_single_reading_has_no_deviation() -> None:
    assert one_window([7.0]).std().tolist() == [0.0]


def test_the_standard_deviation_is_that_of_the_population() -> None:
    assert one_window([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).std().tolist() == [2.0]


def test_equal_values_have_exactly_that_mean_and_no_deviation() -> None:
    merged = merge(one_window([0.1] * 7), one_window([0.1] * 5))

    assert moments(merged) == {("d", "s", 0): (0.1, 0.0)}


def test_merging_leaves_its_arguments_as_they_were() -> None:
    left, right = one_window([1.0, 2.0]), one_window([5.0])
    merge(left, right)

    assert exact(left) == exact(one_window([1.0, 2.0]))
    assert moments(right) == {("d", "s", 0): (5.0, 0.0)}


@settings(deadline=None, max_examples=120)
@given(rows)
def test_a_partial_says_what_its_readings_say(some: list[Row]) -> None:
    groups: dict[Key, list[Row]] = {}
    for row in some:
        groups.setdefault((row[0], row[1], row[2] // WINDOW * WINDOW), []).append(row)
    expected = {}
    for key, group in groups.items():
        numbers = [row[3] for row in group]
        time, last = max((row[2], row[3]) for row in group)
        expected[key] = Exact(len(group), min(numbers).hex(), max(numbers).hex(), last.hex(), time)

    assert exact(of(some)) == expected


@settings(deadline=None, max_examples=120)
@given(rows, rows)
def test_merging_is_commutative(left: list[Row], right: list[Row]) -> None:
    assert_same(merge(of(left), of(right)), merge(of(right), of(left)))


@settings(deadline=None, max_examples=120)
@given(rows, rows, rows)
def test_merging_is_associative(a: list[Row], b: list[Row], c: list[Row]) -> None:
    assert_same(merge(merge(of(a), of(b)), of(c)), merge(of(a), merge(of(b), of(c))))


@settings(deadline=None, max_examples=120)
@given(rows, st.data())
def test_split_and_order_of_the_readings_decide_nothing(
    some: list[Row], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(some))
    cut = data.draw(st.integers(0, len(some)))

    assert_same(merge(of(shuffled[:cut]), of(shuffled[cut:])), of(some))


@settings(deadline=None, max_examples=120)
@given(st.lists(values, min_size=1, max_size=30))
def test_m2_is_finite_and_never_negative(numbers: list[float]) -> None:
    merged = one_window(numbers)
    for number in numbers:
        merged = merge(merged, one_window([number]))

    assert np.isfinite(merged.mean).all()
    assert np.isfinite(merged.m2).all()
    assert (merged.m2 >= 0).all()


@pytest.mark.parametrize("pieces", [1, 10, 500])
def test_a_small_deviation_from_a_large_mean_does_not_cancel(pieces: int) -> None:
    """Sums of squares give a negative variance here; the reference adds exactly."""
    numbers = np.random.default_rng(7).normal(1e6, 0.01, 1000)
    merged = of([])
    for piece in np.split(numbers, pieces):
        merged = merge(merged, one_window(piece.tolist()))

    fractions = [Fraction(number) for number in numbers.tolist()]
    mean = sum(fractions) / len(fractions)
    m2 = float(sum((fraction - mean) ** 2 for fraction in fractions))

    assert merged.mean[0] == pytest.approx(float(mean), rel=1e-12, abs=0)
    # A float64 mean is itself off by up to 1e-10 here, a hundred millionth of a deviation.
    assert merged.m2[0] == pytest.approx(m2, rel=1e-8, abs=0)
    assert merged.std()[0] == pytest.approx(0.01, rel=0.1)


def test_the_largest_values_that_are_accepted_overflow_nothing() -> None:
    merged = of([])
    for _ in range(50):
        merged = merge(merged, one_window([MAX_VALUE, -MAX_VALUE] * 20))

    assert merged.count.tolist() == [2000]
    assert abs(merged.mean[0]) <= 1e-12 * MAX_VALUE
    assert merged.m2[0] == pytest.approx(2000 * MAX_VALUE**2)


def test_a_count_beyond_what_one_window_will_ever_hold_stays_exact() -> None:
    one = one_window([1.0])
    many = Partials(
        *(one.keys, np.array([2**52]), one.mean, one.m2, one.min, one.max, one.last),
        *(one.last_time, one.late_enqueued),
    )

    assert merge(many, one).count.tolist() == [2**52 + 1]


def test_rows_of_equal_key_become_one_in_the_order_of_their_first() -> None:
    same = np.array([1.0, 5.0, 1.0])
    repeated = Partials(
        [("b", "s", 0), ("a", "s", 0), ("b", "s", 0)],
        np.array([1, 2, 3]),
        mean=same,
        m2=same,
        min=same,
        max=same,
        last=same,
        last_time=np.array([1, 2, 3]),
        late_enqueued=np.array([7, 0, 9]),
    )

    assert combine(repeated).keys == [("b", "s", 0), ("a", "s", 0)]
    assert combine(repeated).count.tolist() == [4, 2]
    assert combine(repeated).late_enqueued.tolist() == [9, 0]


# --- many small sets into one table -----------------------------------------------------------


def table_of(pieces: Sequence[Sequence[Row]]) -> WindowTable:
    table = WindowTable()
    for piece in pieces:
        table.add(of(piece))
    return table


@settings(deadline=None, max_examples=120)
@given(st.lists(rows, max_size=6))
def test_a_table_holds_what_merging_one_set_after_another_gives(pieces: list[list[Row]]) -> None:
    table = table_of(pieces)
    merged = of([])
    for piece in pieces:
        merged = merge(merged, of(piece))

    assert len(table) == len(merged)
    assert_same(table.take(), merged)
    assert len(table) == 0


@settings(deadline=None, max_examples=120)
@given(st.lists(rows, max_size=4), st.lists(rows, max_size=4), st.integers(-40, 40))
def test_taking_some_windows_leaves_the_others_in_the_table(
    before: list[list[Row]], after: list[list[Row]], last_start: int
) -> None:
    table = table_of(before)
    taken = table.take(last_start)
    assert all(start <= last_start for *_, start in taken.keys)
    for piece in after:
        table.add(of(piece))

    whole = of([row for piece in [*before, *after] for row in piece])
    assert_same(merge(taken, table.take()), whole)


def test_what_was_taken_does_not_change_when_the_table_goes_on() -> None:
    table = table_of([[("d", "s", 0, 1.0)], [("d", "s", 10, 2.0)]])
    first = table.take(0)
    before = exact(first)
    table.add(one_window([9.0, 10.0]))

    assert exact(first) == before
    assert table.take().keys == [("d", "s", 10), ("d", "s", 0)]


@pytest.mark.parametrize("pieces", [10, 1000])
def test_a_table_does_not_cancel_either(pieces: int) -> None:
    numbers = np.random.default_rng(7).normal(1e6, 0.01, 1000)
    table = table_of([[("d", "s", 0, x) for x in part] for part in np.split(numbers, pieces)])
    fractions = [Fraction(number) for number in numbers.tolist()]
    mean = sum(fractions) / len(fractions)
    m2 = float(sum((fraction - mean) ** 2 for fraction in fractions))
    merged = table.take()

    assert merged.mean[0] == pytest.approx(float(mean), rel=1e-12, abs=0)
    assert merged.m2[0] == pytest.approx(m2, rel=1e-7, abs=0)


def test_windows_can_be_chosen_by_a_mask() -> None:
    some = of([("d", "s", 0, 1.0), ("d", "s", 10, 2.0)])

    assert some.where(np.array([True, True])) is some
    assert exact(some.where(np.array([False, True]))) == exact(of([("d", "s", 10, 2.0)]))
