"""How an event hub delivers the events of a simulation to its consumers.

At least once: event batches of the partitions come interleaved, some come again later and cut
elsewhere, and one never comes at all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from scoring.readings import EventBatch, Partition
from scoring.simulation.draws import Purpose, dice
from scoring.simulation.events import EventChunk, simulate
from scoring.simulation.settings import SimulationSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRules:
    """How the hub cuts and repeats.

    Attributes
    ----------
    batch_size
        Events in an event batch, about: from half to one and a half times as many, or what there
        is.
    redelivered
        Share of the event batches that come again later.
    swallow
        Whether one event batch, half-way through the simulation, never comes.
    """

    batch_size: int = 1000
    redelivered: float = 0.01
    swallow: bool = True


@dataclass(frozen=True, slots=True)
class DeliveredSlice:
    """What happened at the hub in one slice of time.

    Attributes
    ----------
    sent
        All events that the hub took, an event batch a partition: what its retention keeps.
    delivered
        What its consumers got, in order; redelivered ones among them.
    swallowed
        What they should have got and never will, unless they ask; None in all slices but one.
    """

    chunk: EventChunk
    sent: tuple[EventBatch, ...]
    delivered: tuple[EventBatch, ...]
    swallowed: EventBatch | None


def deliveries(
    settings: SimulationSettings, hub: str, rules: DeliveryRules = DeliveryRules()
) -> Iterator[DeliveredSlice]:
    """Simulate a fleet, and give what its hub delivers, slice by slice.

    The event batches of one partition come in order, but for those that come again. What is to
    come again after the end of the simulation does not.
    """
    host = _Host(settings, rules)
    for chunk in simulate(settings):
        sent = tuple(_sent(chunk, hub, settings.partitions))
        yield host.deliver(chunk, sent)


@dataclass(slots=True)
class _Redelivery:
    due: int
    batch: EventBatch


class _Host:
    """Cuts, interleaves, repeats and swallows; remembers each partition's newest event batch."""

    def __init__(self, settings: SimulationSettings, rules: DeliveryRules) -> None:
        self._seed = settings.seed
        self._rules = rules
        self._swallows_in = settings.chunks // 2 if rules.swallow else -1
        self._delivered = 0
        self._newest: dict[Partition, EventBatch] = {}
        self._again: list[_Redelivery] = []

    def deliver(self, chunk: EventChunk, sent: tuple[EventBatch, ...]) -> DeliveredSlice:
        draw = dice(self._seed, Purpose.DELIVERIES, chunk.index)
        queues = [list(_cut(batch, self._rules.batch_size, draw)) for batch in sent]
        swallowed = None
        if chunk.index == self._swallows_in and queues:
            swallowed = max(queues, key=lambda queue: sum(map(len, queue))).pop(0)
            # Nothing comes again that reaches from before it to behind it: no hub delivers a hole.
            self._newest.pop(swallowed.partition, None)
        delivered: list[EventBatch] = []
        for batch in _interleaved(queues, draw):
            delivered.append(batch)
            self._plan_redelivery(batch, draw)
            delivered.extend(self._due())
        return DeliveredSlice(chunk, sent, tuple(delivered), swallowed)

    def _plan_redelivery(self, batch: EventBatch, draw: Callable[[], float]) -> None:
        before = self._newest.get(batch.partition)
        self._newest[batch.partition] = batch
        self._delivered += 1
        if draw() < self._rules.redelivered:
            due = self._delivered + 1 + int(20 * draw())
            cut_elsewhere = before is not None and draw() < 0.5  # noqa: PLR2004 - heads or tails
            again = _straddling(before, batch, draw) if before and cut_elsewhere else batch
            self._again.append(_Redelivery(due, again))

    def _due(self) -> list[EventBatch]:
        due = [one.batch for one in self._again if one.due <= self._delivered]
        self._again = [one for one in self._again if one.due > self._delivered]
        return due


def _sent(chunk: EventChunk, hub: str, partitions: int) -> Iterator[EventBatch]:
    """Give a chunk's events as one event batch for each partition that has any."""
    bodies = chunk.bodies
    for number in range(partitions):
        own = np.flatnonzero(chunk.partition == number)
        if len(own):
            yield EventBatch(
                Partition(hub, str(number)),
                chunk.sequence_number[own],
                chunk.enqueued_time[own],
                [bodies[place] for place in own.tolist()],
            )


def _cut(batch: EventBatch, size: int, draw: Callable[[], float]) -> Iterator[EventBatch]:
    start = 0
    while start < len(batch):
        end = start + max(1, int(size * (0.5 + draw())))
        yield _part(batch, start, end)
        start = end


def _part(batch: EventBatch, start: int, end: int) -> EventBatch:
    return EventBatch(
        batch.partition,
        batch.sequence_numbers[start:end],
        batch.enqueued_times[start:end],
        batch.bodies[start:end],
    )


def _interleaved(queues: list[list[EventBatch]], draw: Callable[[], float]) -> Iterator[EventBatch]:
    """Mix the partitions; within each the order stays."""
    waiting = [iter(queue) for queue in queues]
    while waiting:
        one = int(draw() * len(waiting))
        batch = next(waiting[one], None)
        if batch is None:
            del waiting[one]
        else:
            yield batch


def _straddling(first: EventBatch, second: EventBatch, draw: Callable[[], float]) -> EventBatch:
    """Give an event batch from within `first` to within `second`."""
    start = int(draw() * len(first))
    end = len(first) + 1 + int(draw() * len(second))
    joined = EventBatch(
        first.partition,
        np.concatenate([first.sequence_numbers, second.sequence_numbers]),
        np.concatenate([first.enqueued_times, second.enqueued_times]),
        [*first.bodies, *second.bodies],
    )
    return _part(joined, start, end)
