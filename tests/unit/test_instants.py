"""Event times as devices write them, and instants as people read them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring import instants

ELEVEN = 1_795_388_400_000_000
"""2026-11-22T23:00:00Z."""

YEARS = st.datetimes(datetime(2, 1, 2), datetime(9998, 12, 30))  # noqa: DTZ001 zoned below


def one(stamp: str | int) -> int | None:
    """Read one stamp by itself; None if unreadable."""
    (instant,), (readable,) = instants.parse([stamp])
    assert readable or instant == 0
    return int(instant) if readable else None


def each(stamps: Sequence[str | int]) -> list[int | None]:
    parsed, readable = instants.parse(stamps)
    assert parsed.dtype == np.int64
    return [int(i) if ok else None for i, ok in zip(parsed, readable, strict=True)]


@pytest.mark.parametrize(
    ("stamp", "instant"),
    [
        ("2026-11-22T23:00:00Z", ELEVEN),
        ("2026-11-22T23:00:00", ELEVEN),
        ("2026-11-22 23:00:00", ELEVEN),
        ("2026-11-22t23:00:00z", ELEVEN),
        ("2026-11-22T23:00", ELEVEN),
        ("2026-11-22T23:00:00-00:00", ELEVEN),
        ("2026-11-23T00:00:00+01:00", ELEVEN),
        ("2026-11-23T00:00:00+0100", ELEVEN),
        ("2026-11-23T00:00:00+01", ELEVEN),
        ("2026-11-22T17:30:00-05:30", ELEVEN),
        ("2026-11-22T23:00:00.25Z", ELEVEN + 250_000),
        ("2026-11-22T23:00:00.25", ELEVEN + 250_000),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("0002-01-01T00:00:00Z", -62_104_060_800_000_000),
        ("9998-12-31T23:59:59.999999Z", 253_370_764_799_999_999),
        (1_795_388_400_000, ELEVEN),
        (-1, -1000),
        (0, 0),
    ],
)
def test_a_time_with_an_offset_or_without_or_in_epoch_milliseconds_is_read(
    stamp: str | int, instant: int
) -> None:
    assert one(stamp) == instant


@pytest.mark.parametrize("digits", ["123456", "1234567", "123456789", "123456999999999"])
@pytest.mark.parametrize("zone", ["", "Z", "+00:00", "-0000"])
def test_digits_past_the_microsecond_are_cut_off(digits: str, zone: str) -> None:
    assert one(f"2026-11-22T23:00:00.{digits}{zone}") == ELEVEN + 123_456


@pytest.mark.parametrize(
    "stamp",
    [
        *["", " ", "Z", "now", "2026", "2026-11-22", "23:00:00", "1795388400000", "\0", "NaN"],
        *["2026-02-29T00:00:00Z", "2026-11-22T24:00:00Z", "2026-11-22T23:59:60Z"],
        *["2026-11-22T23:00:00ZZ", "2026-11-22T23:00:00 Z", " 2026-11-22T23:00:00Z"],
        *["2026-11-22T23:00:00Z\n", "2026-11-22T23:00:00Z\0", "2026-11-22T23:00:00+24:00"],
        *["2026-11-22T23:00:00.Z", "2026-11-22T23:00:00,5Z", "22.11.2026 23:00", "\u0661"],
        *["12026-11-22T23:00:00Z", "-0001-11-22T23:00:00Z"],
    ],
)
def test_what_is_no_time_is_unreadable(stamp: str) -> None:
    assert one(stamp) is None


@pytest.mark.parametrize(
    "stamp",
    [
        *["0000-01-01T00:00:00Z", "0001-12-31T23:59:59Z", "9999-01-01T00:00:00Z"],
        *["9999-12-31T23:59:59-14:00", "0002-01-01T00:00:00+00:01"],
        *[-62_104_060_800_001, 253_370_764_800_000, 2**63, -(2**64), 10**400],
    ],
)
def test_a_time_outside_the_years_2_to_9998_is_unreadable(stamp: str | int) -> None:
    assert one(stamp) is None


def test_no_times_are_no_instants() -> None:
    assert each([]) == []


good = st.builds(
    "{}{}{}".format,
    st.sampled_from(["2026-11-22T23:00:00", "1969-12-31 00:00", "2026-01-01t00:00:00.123456789"]),
    st.sampled_from(["", ".5"]),
    st.sampled_from(["", "Z", "+01:30", "-02"]),
)
stamps = st.one_of(
    *(good, st.text(max_size=6), st.text("0123456789-:TZ+. ", max_size=26)),
    *(st.integers(), st.integers(-(10**12), 10**13), st.just("9999-12-31T23:59:59-14:00")),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(stamps, max_size=12))
def test_what_becomes_of_a_time_never_depends_on_its_neighbours(column: list[str | int]) -> None:
    assert each(column) == [one(stamp) for stamp in column]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(YEARS, min_size=1, max_size=8),
    st.sampled_from([None, *range(-14 * 60, 14 * 60 + 1, 45)]),
    st.sampled_from(["T", " "]),
    st.sampled_from(["auto", "minutes", "milliseconds", "microseconds"]),
)
def test_reading_agrees_with_datetime(
    moments: list[datetime], offset: int | None, separator: str, precision: str
) -> None:
    zone = None if offset is None else timezone(timedelta(minutes=offset))
    texts = [
        moment.replace(tzinfo=zone).isoformat(separator, timespec=precision) for moment in moments
    ]
    read = [datetime.fromisoformat(text) for text in texts]
    expected = [r if r.tzinfo else r.replace(tzinfo=UTC) for r in read]

    assert each(texts) == [instants.of(moment) for moment in expected]


@settings(deadline=None, max_examples=100)
@given(YEARS)
def test_an_instant_survives_its_text_and_its_datetime(naive: datetime) -> None:
    moment = naive.replace(tzinfo=UTC)
    instant = instants.of(moment)

    assert instants.moment(instant) == moment
    assert one(instants.text(instant)) == instant
    assert one(moment.isoformat()) == instant


def test_a_text_has_a_fraction_only_where_the_instant_has_one() -> None:
    assert instants.text(ELEVEN) == "2026-11-22T23:00:00Z"
    assert instants.text(ELEVEN + 250_000) == "2026-11-22T23:00:00.250000Z"
    assert instants.text(-1) == "1969-12-31T23:59:59.999999Z"
