"""What a plan is made from: demand, speed, timing and node sizes, all checked."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scoring.errors import BadInput

HOUR, DAY = 3600.0, 86400.0
"""Seconds."""

HOURS_A_MONTH = 730.0
"""As cloud price lists reckon: a twelfth of 8,760."""

MONTH = HOURS_A_MONTH * HOUR
"""Seconds."""

ROWS_PER_SECOND = 200_000.0
"""Rows a second of one core, where nothing was measured.

A careful guess, chosen before anything was measured and not derived from it. ``plan --measure``
then gave 1.0 million on two quiet vCPUs with AVX-512 and 0.39 to 0.53 million on the same ones
while others worked there (models of 30 support vectors, three rows each in a part). No machine
without AVX-512, and no node of a cluster, was tried.
"""

_MOST = 10**12
"""Of any number that is given; what comes of them is then a number, too."""

_MOST_MODELS = 10**9
"""Sensors of all devices together; more are a slip of the hand, and no fleet."""

_ROUNDING = 1e-9
"""Relative; what floating point may add to a whole number before it is rounded up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is to be scored.

    Attributes
    ----------
    devices, sensors
        Devices, and sensors of each of them; every sensor has its model.
    windows_per_hour
        Of one sensor.
    interval
        From one run to the next, seconds; not shorter than a window.
    finish_within
        Seconds from a run's submission to its end, at most; not longer than the interval.

    Raises
    ------
    BadInput
        Naming every value that is out of its range.
    """

    devices: int
    sensors: int
    windows_per_hour: float
    interval: float
    finish_within: float

    def __post_init__(self) -> None:
        """Check every value."""
        names = ("devices", "sensors", "windows_per_hour", "interval", "finish_within")
        problems = _not_positive(self, names)
        if not problems and self.windows_per_hour * self.interval < HOUR * (1 - _ROUNDING):
            problems.append("the interval is shorter than a window: most runs had nothing to score")
        if not problems and self.devices * self.sensors > _MOST_MODELS:
            problems.append(
                f"{self.devices:,} devices of {self.sensors:,} sensors are more than"
                f" {_MOST_MODELS:,} models"
            )
        if self.finish_within > self.interval:
            problems.append("finish_within is longer than the interval: runs would pile up")
        _refuse(problems)

    @property
    def rows_per_second(self) -> float:
        """Windows that all sensors together fill, a second."""
        return self.devices * self.sensors * self.windows_per_hour / HOUR

    @property
    def rows(self) -> float:
        """Rows a run, on average."""
        return self.devices * self.sensors * (self.windows_per_hour * self.interval) / HOUR

    @property
    def windows_per_run(self) -> int:
        """Windows of a sensor that can end in an interval, at most."""
        return rounded_up(self.windows_per_hour * self.interval / HOUR)

    @property
    def most_rows(self) -> int:
        """Rows of the largest run."""
        return self.devices * self.sensors * self.windows_per_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How quickly one core scores.

    Attributes
    ----------
    rows_per_second
        Of one process on one core, reading and writing parts on a local disk included.
    part_rows
        Rows an input part holds.
    part_seconds
        What each part costs besides: over the network and back, and the job's book-keeping.

    Raises
    ------
    BadInput
        Naming every value that is out of its range.
    """

    rows_per_second: float = ROWS_PER_SECOND
    part_rows: int = 20_000
    part_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Check every value."""
        problems = _not_positive(self, ("rows_per_second", "part_rows"))
        _refuse(problems + _negative(self, ("part_seconds",)))

    @property
    def part(self) -> float:
        """Seconds that a full part takes."""
        return self.part_seconds + self.part_rows / self.rows_per_second

    def work(self, rows: float) -> float:
        """Core-seconds that rows take; parts are counted in fractions."""
        return rows / self.part_rows * self.part


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What a run takes besides scoring; all in seconds.

    Attributes
    ----------
    startup
        From asking for a node to its first process: allocation, boot, image pull.
    billed_startup
        The part of it that is billed.
    overhead
        Of the job: the pipeline's start and end, and processes that open the fleet.
    idle
        For how long a node without work is kept.

    Raises
    ------
    BadInput
        Naming every value that is out of its range.
    """

    startup: float
    billed_startup: float
    overhead: float
    idle: float

    def __post_init__(self) -> None:
        """Check every value."""
        problems = _negative(self, ("startup", "billed_startup", "overhead", "idle"))
        if self.billed_startup > self.startup:
            problems.append("billed_startup is more than startup")
        _refuse(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSize:
    """A size of node that can be rented.

    Attributes
    ----------
    cores
        As many processes score on a node; vCPUs in a cloud.
    memory_gb
        Shown, not reckoned with.
    price_per_hour
        Of one node, in the price table's currency.

    Raises
    ------
    BadInput
        Naming every value that is out of its range.
    """

    name: str
    cores: int
    memory_gb: float
    price_per_hour: float

    def __post_init__(self) -> None:
        """Check every value."""
        _refuse(_not_positive(self, ("cores", "memory_gb", "price_per_hour")))


def rounded_up(value: float) -> int:
    """Round up what floating point may have put a hair above a whole number."""
    return math.ceil(value * (1 - _ROUNDING))


def _not_positive(thing: object, names: Iterable[str]) -> list[str]:
    return [
        f"{name} is {value} and must be a number above 0, at most {_MOST:,.0f}"
        for name in names
        if not 0 < (value := getattr(thing, name)) <= _MOST
    ]


def _negative(thing: object, names: Iterable[str]) -> list[str]:
    return [
        f"{name} is {value} and must be a number from 0 to {_MOST:,.0f}"
        for name in names
        if not 0 <= (value := getattr(thing, name)) <= _MOST
    ]


def _refuse(problems: list[str]) -> None:
    if problems:
        raise BadInput("; ".join(problems))
