"""An event hub in memory, as those see it who ask it and read from it again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from scoring.errors import Transient
from scoring.ledger import HubAnswer
from scoring.ports import EventLog
from scoring.readings import EventBatch, Partition


@dataclass
class _Retained:
    """The retained events of one partition: event `i` has the number ``beginning + i``."""

    beginning: int = 0
    bodies: list[bytes] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    last_enqueued: int = 0

    @property
    def end(self) -> int:
        return self.beginning + len(self.bodies)


class MemoryHub:
    """Implements `ports.EventLog`.

    Attributes
    ----------
    is_reachable
        Whether it answers.
    asked
        How often it was asked about a partition.
    generation
        How often it was created again.
    """

    def __init__(
        self,
        name: str,
        partitions: int,
        created: int | None = 0,
        touched: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = name
        self._touched = touched
        self.is_reachable = True
        self.asked = 0
        self.generation = -1
        self.create(partitions, created)

    def create(self, partitions: int, created: int | None) -> None:
        """Create the hub, again: it counts from 0, and what it held is gone."""
        self.created = created
        self.generation += 1
        self._kept = {str(number): _Retained() for number in range(partitions)}

    def send(self, partition: str, bodies: Sequence[bytes], times: Sequence[int]) -> EventBatch:
        """Take events at their enqueued times; return them as they are delivered."""
        kept = self._kept[partition]
        first = kept.end
        kept.bodies += bodies
        kept.times += times
        kept.last_enqueued = times[-1]
        return self.batch(partition, first, kept.end - 1)

    def batch(self, partition: str, first: int, last: int) -> EventBatch:
        """Return retained events as one event batch."""
        kept = self._kept[partition]
        own = slice(first - kept.beginning, last + 1 - kept.beginning)
        return EventBatch(
            Partition(self.name, partition),
            np.arange(first, last + 1, dtype=np.int64),
            np.array(kept.times[own], dtype=np.int64),
            kept.bodies[own],
        )

    def expire(self, partition: str, first: int) -> None:
        """Drop all events before a number."""
        kept = self._kept[partition]
        drop = min(max(0, first - kept.beginning), len(kept.bodies))
        kept.beginning += drop
        del kept.bodies[:drop], kept.times[:drop]

    def holds(self, partition: Partition) -> bool:
        """Return whether the partition is of this hub."""
        return partition.hub == self.name

    def survey(self) -> dict[Partition, HubAnswer]:
        """Return what the hub says of each partition that it has."""
        self._answer()
        present = [Partition(self.name, number) for number in self._kept]
        return {one: answer for one in present if (answer := self.look(one))}

    def look(self, partition: Partition) -> HubAnswer | None:
        """Return what the hub says of a partition; None if it has none of this id."""
        self._answer()
        self._touched(f"ask about {partition}")
        self.asked += 1
        if (kept := self._kept.get(partition.id)) is None:
            return None
        return HubAnswer(
            self.created, kept.beginning, kept.end - 1, kept.last_enqueued, not kept.bodies
        )

    def created_at(self) -> int | None:
        """Return when it was created."""
        self._answer()
        self._touched("ask when created")
        return self.created

    def read(self, partition: Partition, first: int, last: int) -> Iterator[EventBatch]:
        """Yield the retained events of a range, at most ten at a time."""
        self._answer()
        if (kept := self._kept.get(partition.id)) is None:
            return
        first, last = max(first, kept.beginning), min(last, kept.end - 1)
        for begin in range(first, last + 1, 10):
            self._touched(f"read {partition} from {begin}")
            if self._kept.get(partition.id) is not kept:
                # The hub was created again: the connection is gone.
                return
            yield self.batch(partition.id, begin, min(begin + 9, last))

    def _answer(self) -> None:
        if not self.is_reachable:
            message = f"event hub {self.name} cannot be reached"
            raise Transient(message)


def no_hub() -> MemoryHub:
    """Return a hub that nothing was ever sent to."""
    return MemoryHub("none", 0)


def oldest(log: EventLog, partition: Partition) -> int | None:
    """Return the lowest sequence number that a log retains; None if there is none."""
    answer = log.look(partition)
    return None if answer is None or answer.is_empty else answer.beginning
