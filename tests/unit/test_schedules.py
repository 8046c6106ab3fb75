"""Schedules of timers: what the Functions host takes, and what it would never run."""

import pytest

from scoring.schedules import check_schedule, doubt_of

GOOD = (
    "0 */5 * * * *",
    "30 9-17 1,15 * MON-FRI *".replace("MON-FRI *", "* MON-FRI"),
    "0 0 9 * January,jul 1-5",
    "*/30 * * * * *",
    "0 10/20 8-18/2 1,15 * *",
    "  0  0 0 1 1 Sunday ",
    "0 0 0 29 2 *",
    "0 0 0 31 * *",
)


@pytest.mark.parametrize("text", GOOD)
def test_what_the_host_takes_is_taken(text: str) -> None:
    assert check_schedule(text) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("00:05:00", "time span"),
        ("1.00:05:00", "time span"),
        ("*/5 * * * *", r"five fields.* 0 \*/5 \* \* \* \*"),
        ("every hour", "six fields"),
        ("", "six fields"),
        ("0 0 0 0 0 0 0", "six fields"),
        ("0 0 0 L * *", "'L' is no day: 1 to 31"),
        ("0 0 0 ? * *", r"'\?' is no day"),
        ("0 0 0 15W * *", "'15W' is no day"),
        ("0 0 0 * * 5#2", "'5#2' is no day of the week: 0 to 6, or Sun to Sat"),
        ("99 99 99 * * *", "'99' is no second: 0 to 59"),
        ("0 60 * * * *", "minute"),
        ("0 0 24 * * *", "hour"),
        ("0 0 0 0 * *", "'0' is no day"),
        ("0 0 0 1 13 *", "month"),
        ("0 0 0 * * 7", "'7' is no day of the week"),
        ("0 0 0 * * FRI-MON", "ends before it begins"),
        ("0 */0 * * * *", "step"),
        ("0 */x * * * *", "step"),
        ("0 1-5/ * * * *", "step"),
        ("0 ,5 * * * *", "'' is no minute"),
        ("0 -5 * * * *", "'' is no minute"),
        ("0 5- * * * *", "'' is no minute"),
        ("0 ¹ * * * *", "no minute"),
        ("0 */5 * * Foo *", "'Foo' is no month: 1 to 12, or Jan to Dec"),
        ("0 0 0 30 2 *", "never comes"),
        ("0 0 0 31 4,6,9,11 *", "never comes"),
    ],
)
def test_what_the_host_refuses_or_never_runs_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_schedule(text)


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        ("0 0 0 31 * *", "day 31: not every year has it in February, April, June, September, Nov"),
        ("0 0 0 30,31 1-3 *", "day 30, 31: not every year has it in February"),
        ("0 0 0 29 2 *", "day 29: not every year has it in February"),
        ("0 0 0 1,31 * *", ""),
        ("0 0 0 31 1,3 *", ""),
        ("0 */5 * * * *", ""),
        ("0 0 0 1-31 * *", ""),
    ],
)
def test_days_that_not_every_month_has_are_doubted(text: str, doubt: str) -> None:
    assert doubt_of(text).startswith(doubt)
    assert bool(doubt_of(text)) == bool(doubt)
