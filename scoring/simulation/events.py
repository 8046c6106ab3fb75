"""The simulated fleet's events, chunk by chunk, as an event hub holds them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from zlib import crc32

import numpy as np
import numpy.typing as npt

from scoring import instants
from scoring.simulation.draws import Purpose, uniform
from scoring.simulation.fleet import Fleet
from scoring.simulation.settings import SimulationSettings

I64 = npt.NDArray[np.int64]

_FUTURE = 2 * 3600 * instants.SECOND
_LATE_FROM, _LATE_SPAN = 60 * instants.SECOND, 420 * instants.SECOND
_DELAY_FROM, _DELAY_SPAN = 50_000, 450_000
_EVENT = np.dtype(
    [("number", "i8"), ("event_time", "i8"), ("value", "f8"), ("enqueued", "i8"), ("fault", "i8")]
)
_Events = npt.NDArray[np.void]


class BodyFault(IntEnum):
    """What is wrong with an event's body. Every one of them must be rejected."""

    NONE = 0
    TRUNCATED = 1
    NOT_A_NUMBER = 2
    STRING_VALUE = 3
    BOOLEAN_VALUE = 4
    MISSING_FIELD = 5
    NOT_UTF8 = 6
    EMPTY = 7
    FUTURE_CLOCK = 8


@dataclass(frozen=True)
class EventChunk:
    """The events that the hub took in one slice of time, ordered by enqueued time.

    The columns hold the truth, also where the body does not. All have shape (events,).

    Attributes
    ----------
    index
        Which of the simulation's chunks.
    end
        End of the slice; all enqueued times are before it. Epoch microseconds UTC.
    device, sensor
        Names, object arrays.
    event_time, enqueued_time
        Epoch microseconds UTC, int64; event times are whole milliseconds.
    value
        float64, of three decimals.
    partition
        Number of the partition, int64.
    sequence_number
        int64, counts from 0 in each partition.
    fault
        A `BodyFault` each, int64; 0 where the body is as it should be.
    """

    index: int
    end: int
    device: npt.NDArray[np.object_]
    sensor: npt.NDArray[np.object_]
    event_time: I64
    value: npt.NDArray[np.float64]
    enqueued_time: I64
    partition: I64
    sequence_number: I64
    fault: I64

    def __len__(self) -> int:
        """Give the number of events."""
        return len(self.event_time)

    @cached_property
    def bodies(self) -> list[bytes]:
        """Give a JSON body an event; made when first asked for, for that is most of the work."""
        shown = self.event_time + np.where(self.fault == BodyFault.FUTURE_CLOCK, _FUTURE, 0)
        stamps = np.datetime_as_string((shown // 1000).astype("M8[ms]"))
        columns = (self.device, self.sensor, stamps, self.value)
        bodies = [
            f'{{"device":"{device}","sensor":"{sensor}","ts":"{stamp}Z","value":{value}}}'.encode()
            for device, sensor, stamp, value in zip(*(c.tolist() for c in columns), strict=True)
        ]
        for place in np.flatnonzero(self.fault).tolist():
            bodies[place] = _damaged(bodies[place], BodyFault(self.fault[place]))
        return bodies


def partition_of(device: str, partitions: int) -> int:
    """Which partition a device's events go to: the same one in every process."""
    return crc32(device.encode()) % partitions


def simulate(settings: SimulationSettings) -> Iterator[EventChunk]:
    """Give all events of the simulation, a chunk a slice, by enqueued time.

    The last chunk also holds what reaches the hub after the end of the last slice. Chunks may be
    empty. Memory holds one chunk, and the readings that are still on their way.
    """
    hub = _Hub(Fleet(settings))
    on_the_way = np.empty(0, _EVENT)
    for index in range(settings.chunks):
        sent = np.concatenate([on_the_way, _sent(hub.fleet, index)])
        sent = sent[np.argsort(sent["enqueued"], kind="stable")]
        end = settings.begin + (index + 1) * (settings.slice_length // instants.MICROSECOND)
        if index == settings.chunks - 1 and len(sent):
            end = max(end, int(sent["enqueued"][-1]) + 1)
        arrived = int(np.searchsorted(sent["enqueued"], end))
        yield hub.take(index, end, sent[:arrived])
        on_the_way = sent[arrived:]


class _Hub:
    """Gives events their partitions and sequence numbers."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        partitions = fleet.settings.partitions
        self._partition = np.array([partition_of(name, partitions) for name in fleet.device])
        self._next = np.zeros(partitions, dtype=np.int64)

    def take(self, index: int, end: int, events: _Events) -> EventChunk:
        number = events["number"]
        partition = self._partition[number]
        return EventChunk(
            index=index,
            end=end,
            device=self.fleet.device[number],
            sensor=self.fleet.sensor[number],
            event_time=events["event_time"].copy(),
            value=events["value"].copy(),
            enqueued_time=events["enqueued"].copy(),
            partition=partition,
            sequence_number=self._count(partition),
            fault=events["fault"].copy(),
        )

    def _count(self, partition: I64) -> I64:
        """Count the events on from where their partitions stand."""
        numbers = np.empty(len(partition), dtype=np.int64)
        for one in range(len(self._next)):
            own = np.flatnonzero(partition == one)
            numbers[own] = self._next[one] + np.arange(len(own))
            self._next[one] += len(own)
        return numbers


def _sent(fleet: Fleet, index: int) -> _Events:
    """Give what the devices send in one slice of event time, sensor by sensor in each step."""
    settings = fleet.settings
    steps = _steps(settings, index)
    if not len(steps):
        return np.empty(0, _EVENT)
    # Drawn step by step, so that how time is sliced changes no event.
    draws = np.stack([_draws(fleet, step) for step in steps.tolist()], axis=1)
    interval = settings.interval // instants.MICROSECOND
    # Clocks jitter within the tenth of the interval that no sensor's phase reaches into.
    jitter = (draws[4] * (interval // 10_000)).astype(np.int64) * 1000
    times = settings.begin + steps[:, None] * interval + fleet.phase + jitter
    events = np.empty(times.shape, _EVENT)
    events["number"] = np.arange(fleet.size)
    events["event_time"] = times
    # Four uniform draws add up to variance 1/3 and very nearly a normal distribution.
    noise = (draws[0] + draws[1] + draws[2] + draws[3] - 2) * math.sqrt(3)
    events["value"] = fleet.values(times, noise)
    events["enqueued"] = times + _delay(settings.late, draws[5], draws[6])
    events["fault"] = _faults(settings.malformed, draws[7])
    return events[~fleet.dead(times)]


def _draws(fleet: Fleet, step: int) -> npt.NDArray[np.float64]:
    """Draw the eight numbers behind each sensor's reading of a step, shape (8, sensors)."""
    draws = uniform(fleet.settings.seed, Purpose.READINGS, step, 8 * fleet.size)
    return draws.reshape(8, fleet.size)


def _steps(settings: SimulationSettings, index: int) -> I64:
    """Which readings of each sensor begin their interval in this slice."""
    total = -(-settings.duration // settings.interval)
    first, last = (
        min(total, -(-(index + i) * settings.slice_length // settings.interval)) for i in (0, 1)
    )
    return np.arange(first, last, dtype=np.int64)


def _delay(late: float, network: npt.NDArray[np.float64], draw: npt.NDArray[np.float64]) -> I64:
    """How long events take to the hub, microseconds; `late` of them minutes longer."""
    # A draw below the share is again uniform when divided by it: it also tells how late.
    behind = _LATE_FROM + _LATE_SPAN * (draw / (late or 1))
    delay = _DELAY_FROM + _DELAY_SPAN * network + np.where(draw < late, behind, 0)
    return delay.astype(np.int64)


def _faults(malformed: float, draw: npt.NDArray[np.float64]) -> I64:
    kinds = len(BodyFault) - 1
    kind = 1 + np.minimum(draw / (malformed or 1) * kinds, kinds - 1).astype(np.int64)
    return np.where(draw < malformed, kind, BodyFault.NONE)


def _damaged(body: bytes, fault: BodyFault) -> bytes:
    """Give a good body the fault; that of a wrong clock is in its time already."""
    start, _, value = body.removesuffix(b"}").partition(b',"value":')
    faulty = {
        BodyFault.TRUNCATED: body[: len(body) * 2 // 3],
        BodyFault.NOT_A_NUMBER: start + b',"value":NaN}',
        BodyFault.STRING_VALUE: start + b',"value":"' + value + b'"}',
        BodyFault.BOOLEAN_VALUE: start + b',"value":true}',
        BodyFault.MISSING_FIELD: start + b"}",
        BodyFault.NOT_UTF8: body.replace(b"device-", b"d\xe9vice-"),
        BodyFault.EMPTY: b"",
    }
    return faulty.get(fault, body)
