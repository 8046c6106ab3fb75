"""Schedules of timers as the Functions host reads them, by NCrontab.

Its rules are those of ``CrontabFieldImpl.InternalParse`` in github.com/atifaziz/NCrontab: lists,
ranges and steps of numbers, of names in months and days of the week, and ``*``. What it takes and
means something else than is written is refused here, too: it turns ``FRI-MON`` into MON-FRI.
"""

import calendar
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Field:
    """One of the six; `names` stand for the values from `least` on."""

    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31),
    _Field("month", 1, 12, tuple(calendar.month_name)[1:]),
    _Field("day of the week", 0, 6, ("Sunday", *tuple(calendar.day_name)[:6])),
)
_DAY, _MONTH, _WEEKDAY = 3, 4, 5
_WITHOUT_SECONDS = 5
# 29 in February: the rule has to match in some year.
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def check_schedule(text: str) -> str:
    """Return a schedule that the host takes.

    Raises
    ------
    ValueError
        Naming what is wrong, and with which field.
    """
    _parsed(text)
    return text


def doubt_of(text: str) -> str:
    """Say which months a schedule passes over for want of the day; empty if none."""
    _, _, _, days, months, _ = _parsed(text)
    short = [month for month in months if _shortest(month) < max(days)]
    rare = [day for day in days if any(day > _shortest(month) for month in months)]
    # Where other days are named as well, the timer goes on in every month.
    if not short or len(days) == _FIELDS[_DAY].most or min(days) <= _shortest(2):
        return ""
    names = ", ".join(calendar.month_name[month] for month in short)
    return f"day {', '.join(map(str, rare))}: not every year has it in {names}"


def _parsed(text: str) -> list[list[int]]:
    parts = text.split()
    if len(parts) == _WITHOUT_SECONDS:
        message = f"has five fields: the first of six are the seconds, as in 0 {' '.join(parts)}"
        raise ValueError(message)
    if len(parts) != len(_FIELDS):
        message = "is not a schedule of six fields such as 0 */5 * * * *"
        if ":" in text:
            message += "; a time span runs on App Service plans only"
        raise ValueError(message)
    values = [
        sorted({value for token in part.split(",") for value in _values(token, field)})
        for part, field in zip(parts, _FIELDS, strict=True)
    ]
    if all(day > _DAYS[month - 1] for day in values[_DAY] for month in values[_MONTH]):
        message = "never comes: none of its months has the day"
        raise ValueError(message)
    return values


def _values(token: str, field: _Field) -> Iterator[int]:
    """Give the values of a number, a range or ``*``, each with or without a step."""
    base, slash, step = token.partition("/")
    every = _number(step) if slash else 1
    if not every:
        message = f"{token!r}: the step of the {field.name} is no number above 0"
        raise ValueError(message)
    first, dash, last = base.partition("-")
    if base == "*":
        low, high = field.least, field.most
    elif dash:
        low, high = _value(first, field), _value(last, field)
    else:
        low = _value(first, field)
        high = field.most if slash and every > 1 else low
    if low > high:
        message = f"{token!r}: the range of the {field.name} ends before it begins"
        raise ValueError(message)
    yield from range(low, high + 1, every)


def _value(text: str, field: _Field) -> int:
    found = _number(text)
    if found is None:
        # NCrontab takes any beginning of a name, and the first name of several.
        starts = [name.lower().startswith(text.lower()) for name in field.names]
        found = starts.index(True) + field.least if text and any(starts) else None
    if found is None or not field.least <= found <= field.most:
        names = f", or {field.names[0][:3]} to {field.names[-1][:3]}" if field.names else ""
        message = f"{text!r} is no {field.name}: {field.least} to {field.most}{names}"
        raise ValueError(message)
    return found


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _shortest(month: int) -> int:
    """Return the days that a month has in every year."""
    return 28 if month == 2 else _DAYS[month - 1]  # noqa: PLR2004 - February
