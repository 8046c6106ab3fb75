"""What the simulated sensors measure, and the anomalies that are hidden in it.

Values are made of ``+ - * /`` alone, which IEEE 754 rounds alike everywhere; ``np.sin`` is not.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import repeat

import numpy as np
import numpy.typing as npt

from scoring import instants
from scoring.simulation.draws import Purpose, uniform
from scoring.simulation.settings import SimulationSettings

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

_HOUR = 3600 * instants.SECOND
_SENSOR_NAMES = ("temperature", "pressure", "vibration", "humidity")


class AnomalyKind(StrEnum):
    """What goes wrong with a sensor or a device."""

    DRIFT = "drift"
    SPIKE = "spike"
    STUCK = "stuck"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class InjectedAnomaly:
    """The truth about one anomaly.

    Attributes
    ----------
    sensor
        Empty for a dead device: all of its sensors. Nobody can score what was never sent.
    start, end
        Readings with event times in ``[start, end)`` are affected, epoch microseconds UTC.
    magnitude
        How far a spike lifts a value, or a drift does at its end, in amplitudes of the sensor's
        pattern, signed; 0 for the other kinds.
    """

    device: str
    sensor: str
    kind: AnomalyKind
    start: int
    end: int
    magnitude: float = 0.0


class Fleet:
    """The sensors of a simulation; a sensor's number is ``device * sensors + sensor``.

    Attributes
    ----------
    device, sensor
        Names by sensor number, object arrays of shape (devices * sensors,).
    phase
        When in each interval a sensor is read, microseconds, whole milliseconds.
    anomalies
        Ground truth by sensor number; a dead device's by the number of its first sensor.
    """

    def __init__(self, settings: SimulationSettings) -> None:
        self.settings = settings
        self.size = settings.devices * settings.sensors
        self.device = np.repeat(np.array(_device_names(settings), dtype=object), settings.sensors)
        self.sensor = np.tile(np.array(_sensor_names(settings), dtype=object), settings.devices)
        draws = uniform(settings.seed, Purpose.PATTERNS, 0, 5 * self.size).reshape(5, self.size)
        self._offset = 20 + 60 * draws[0]
        self._amplitude = 2 + 8 * draws[1]
        self._noise = self._amplitude * (0.04 + 0.04 * draws[2])
        self._shift = draws[3]
        # The last tenth of the interval is left to the jitter of the clocks.
        milliseconds = settings.interval // instants.MICROSECOND // 1000
        self.phase: I64 = (draws[4] * (0.9 * milliseconds)).astype(np.int64) * 1000
        self.anomalies = self._plan()

    def values(self, event_times: I64, noise: F64) -> F64:
        """Give what the sensors measure, to three decimals.

        Parameters
        ----------
        event_times
            Epoch microseconds UTC, shape (steps, size): a column a sensor.
        noise
            Of unit variance, same shape.
        """
        values = self._pattern(event_times, np.arange(self.size)) + self._noise * noise
        first, last = event_times.min(), event_times.max()
        for number, anomaly in self.anomalies:
            if anomaly.start <= last and anomaly.end > first:
                self._affect(number, anomaly, event_times[:, number], values[:, number])
        rounded: F64 = np.rint(values * 1000) / 1000
        return rounded

    def dead(self, event_times: I64) -> npt.NDArray[np.bool_]:
        """Tell which readings were never sent, because their device was dead."""
        missing = np.zeros(event_times.shape, dtype=bool)
        for number, anomaly in self.anomalies:
            if anomaly.kind is AnomalyKind.DEAD:
                own = slice(number, number + self.settings.sensors)
                missing[:, own] = _within(anomaly, event_times[:, own])
        return missing

    def _pattern(self, event_times: I64, numbers: I64) -> F64:
        period = self.settings.pattern_period // instants.MICROSECOND
        turns = (event_times - self.settings.begin) / period + self._shift[numbers]
        pattern: F64 = self._offset[numbers] + self._amplitude[numbers] * _wave(turns)
        return pattern

    def _affect(self, number: int, anomaly: InjectedAnomaly, times: I64, values: F64) -> None:
        """Write an anomaly into one sensor's column of values."""
        inside = _within(anomaly, times)
        lift = anomaly.magnitude * self._amplitude[number]
        match anomaly.kind:
            case AnomalyKind.SPIKE:
                values[inside] += lift
            case AnomalyKind.DRIFT:
                elapsed = times[inside] - anomaly.start
                values[inside] += lift * (elapsed / (anomaly.end - anomaly.start))
            case AnomalyKind.STUCK:
                held = self._pattern(np.array([anomaly.start]), np.array([number]))
                values[inside] = held[0]

    def _plan(self) -> tuple[tuple[int, InjectedAnomaly], ...]:
        """Choose dead devices, and sensors of the others: no sensor gets two anomalies."""
        settings, sensors = self.settings, self.settings.sensors
        draws = uniform(settings.seed, Purpose.VICTIMS, 0, settings.devices + self.size)
        devices = np.argsort(draws[: settings.devices], kind="stable")
        dead = devices[: _share(settings.dead, settings.devices)]
        order = np.argsort(draws[settings.devices :], kind="stable")
        living = iter(order[~np.isin(order // sensors, dead)].tolist())
        kinds = [(AnomalyKind.DEAD, number) for number in (dead * sensors).tolist()]
        for kind, share in (
            (AnomalyKind.DRIFT, settings.drifting),
            (AnomalyKind.SPIKE, settings.spiking),
            (AnomalyKind.STUCK, settings.stuck),
        ):
            count = _share(share, self.size)
            kinds += zip(repeat(kind, count), living, strict=False)
        return tuple((number, self._place(kind, number)) for kind, number in kinds)

    def _place(self, kind: AnomalyKind, number: int) -> InjectedAnomaly:
        """Choose when an anomaly happens, and how much of it."""
        where, how_long, how_much, sign = uniform(
            self.settings.seed, Purpose.PLACES, number, 4
        ).tolist()
        room = self.settings.end - self.settings.training_end
        length = min(self._length(kind, how_long), room // 2)
        start = self.settings.training_end + int(where * (room - length))
        magnitude = math.copysign(_magnitude(kind, how_much), sign - 0.5)
        sensor = "" if kind is AnomalyKind.DEAD else self.sensor[number]
        return InjectedAnomaly(self.device[number], sensor, kind, start, start + length, magnitude)

    def _length(self, kind: AnomalyKind, draw: float) -> int:
        match kind:
            case AnomalyKind.SPIKE:
                return 3 * (self.settings.interval // instants.MICROSECOND)
            case AnomalyKind.STUCK:
                return int((1 + 2 * draw) * _HOUR)
        return int((2 + 2 * draw) * _HOUR)


def ground_truth(settings: SimulationSettings) -> list[InjectedAnomaly]:
    """Give all anomalies of a simulation, in the order of their starts."""
    found = (anomaly for _, anomaly in Fleet(settings).anomalies)
    return sorted(found, key=lambda anomaly: (anomaly.start, anomaly.device, anomaly.sensor))


def _magnitude(kind: AnomalyKind, draw: float) -> float:
    """In amplitudes: a spike of 4-7 stands clear of a pattern that itself swings by 1."""
    return {AnomalyKind.SPIKE: 4 + 3 * draw, AnomalyKind.DRIFT: 3 + 2 * draw}.get(kind, 0.0)


def _share(share: float, total: int) -> int:
    return max(1, round(share * total)) if share else 0


def _within(anomaly: InjectedAnomaly, times: I64) -> npt.NDArray[np.bool_]:
    return (times >= anomaly.start) & (times < anomaly.end)


def _wave(turns: F64) -> F64:
    """Sine of full turns by Bhaskara I's formula, off by 0.0017 at most."""
    angle = turns - np.floor(turns)
    half = 2 * angle - np.floor(2 * angle)
    product = half * (1 - half)
    wave: F64 = np.where(angle < 0.5, 1.0, -1.0) * (16 * product / (5 - 4 * product))  # noqa: PLR2004
    return wave


def _device_names(settings: SimulationSettings) -> list[str]:
    width = max(3, len(str(settings.devices)))
    return [f"device-{number:0{width}}" for number in range(1, settings.devices + 1)]


def _sensor_names(settings: SimulationSettings) -> list[str]:
    extra = (f"sensor-{n}" for n in range(len(_SENSOR_NAMES) + 1, settings.sensors + 1))
    return [*_SENSOR_NAMES, *extra][: settings.sensors]
