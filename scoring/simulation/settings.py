"""What to simulate: the size of the fleet, how long, and how much goes wrong."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat

from scoring import instants
from scoring.errors import Misconfigured

_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    """What fleet to simulate, for how long, and how much goes wrong.

    Attributes
    ----------
    start
        Aware; begin of the first slice.
    interval
        Between two readings of a sensor.
    partitions
        Of the simulated hub.
    slice_length
        Events come in chunks of this much enqueued time; memory grows with it.
    pattern_period
        Of each sensor's sinus. Far shorter than the training part by default, so that a model
        trained on that part has seen whole periods.
    training_fraction
        First share of the duration that holds no anomaly.
    drifting, spiking, stuck
        Shares of the sensors that get one such anomaly each, at least one if not 0.
    dead
        Share of the devices that fall silent for hours, at least one if not 0.
    late
        Share of the events that reach the hub minutes late.
    malformed
        Share of the events whose body was damaged on the way.

    Raises
    ------
    Misconfigured
        Naming every setting that is out of its range.
    """

    devices: int = 50
    sensors: int = 4
    start: datetime = datetime(2026, 1, 5, tzinfo=UTC)
    duration: timedelta = timedelta(days=1)
    interval: timedelta = timedelta(seconds=30)
    seed: int = 1
    partitions: int = 4
    slice_length: timedelta = timedelta(minutes=5)
    pattern_period: timedelta = timedelta(hours=6)
    training_fraction: float = 0.5
    drifting: float = 0.05
    spiking: float = 0.05
    stuck: float = 0.05
    dead: float = 0.04
    late: float = 0.005
    malformed: float = 0.001

    def __post_init__(self) -> None:
        """Check every setting."""
        if problems := _problems(self):
            raise Misconfigured(problems)

    @property
    def begin(self) -> int:
        """First instant, epoch microseconds UTC."""
        return instants.of(self.start)

    @property
    def end(self) -> int:
        """Instant after the last, epoch microseconds UTC."""
        return instants.of(self.start + self.duration)

    @property
    def training_end(self) -> int:
        """Before this instant nothing is anomalous, epoch microseconds UTC."""
        return self.begin + int((self.end - self.begin) * self.training_fraction)

    @property
    def chunks(self) -> int:
        """How many chunks of events the simulation has, the last one with all that is late."""
        return -(-self.duration // self.slice_length)


def _problems(settings: SimulationSettings) -> list[str]:
    """Name each setting that is out of range."""
    shares = ("drifting", "spiking", "stuck", "dead", "late", "malformed", "training_fraction")
    ones = zip(("devices", "sensors", "partitions"), repeat(1))
    checks = chain(
        ((f"{name} must be at least {low}", getattr(settings, name) >= low) for name, low in ones),
        ((f"{name} must be in 0..1", 0 <= getattr(settings, name) <= 1) for name in shares),
        [
            ("seed must not be negative", settings.seed >= 0),
            ("start must have a time zone", settings.start.tzinfo is not None),
            ("interval must be at least 100 ms", settings.interval >= 100 * _MILLISECOND),
            ("duration must be at least one interval", settings.duration >= settings.interval),
            ("slice_length must be above 0", settings.slice_length > timedelta()),
            ("pattern_period must be above 0", settings.pattern_period > timedelta()),
        ],
    )
    return [problem for problem, holds in checks if not holds]
