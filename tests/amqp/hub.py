"""The event hub behind the server: partitions that keep events, and count them from 0."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

from tests.amqp.codec import DATA, Described, Message, Timestamp, annotated, encode

DEFAULT_GROUP = "$Default"
_SIZE = 100
"""How far apart the offsets of two events are: an offset is no sequence number."""


def real_clock() -> int:
    """Epoch milliseconds: what a hub writes as enqueued time."""
    return time.time_ns() // 1_000_000


class Event(NamedTuple):
    """One retained event; `payload` is the whole message as receivers get it."""

    number: int
    enqueued: int
    payload: bytes


class Swallow(NamedTuple):
    """Events that the receivers of one consumer group never get, both ends included."""

    group: str
    partition: str
    first: int
    last: int


@dataclass(slots=True)
class HubPartition:
    """The events of a partition; the first of them has the number `beginning`."""

    beginning: int = 0
    events: list[Event] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Number of the event that comes next."""
        return self.beginning + len(self.events)

    def since(self, number: int) -> list[Event]:
        """Give the events from a number on, or from the oldest that is retained."""
        return self.events[max(0, number - self.beginning) :]

    def append(self, message: Message, extra: dict[str, Any], enqueued: int) -> None:
        number = self.end
        annotations = message.annotations | extra
        annotations["x-opt-sequence-number"] = number
        annotations["x-opt-offset"] = str(number * _SIZE)
        annotations["x-opt-enqueued-time"] = Timestamp(enqueued)
        self.events.append(Event(number, enqueued, annotated(annotations, message.bare)))

    def drop_before(self, number: int) -> None:
        kept = self.since(number)
        self.beginning, self.events = self.end - len(kept), kept


class Hub:
    """An event hub.

    Parameters
    ----------
    clock
        Gives epoch milliseconds.
    """

    def __init__(
        self, name: str, partitions: int = 4, clock: Callable[[], int] = real_clock
    ) -> None:
        self.name = name
        self.clock = clock
        self.created_at = clock()
        self.partitions = {str(number): HubPartition() for number in range(partitions)}
        self.swallowed: list[Swallow] = []

    def partition_of(self, key: str | None) -> str:
        """Choose the partition of a key as the simulation does; without one, the shortest."""
        if key is None:
            return min(self.partitions, key=lambda one: self.partitions[one].end)
        return str(crc32(key.encode()) % len(self.partitions))

    def receive(self, message: Message, partition: str | None) -> str:
        """Keep an event; gives the partition that took it."""
        key = message.annotations.get("x-opt-partition-key")
        place = partition if partition is not None else self.partition_of(key)
        self.partitions[place].append(message, {}, self.clock())
        return place

    def append(self, partition: str, body: bytes, annotations: dict[str, Any]) -> None:
        """Keep an event that nobody sent; IoT Hub's annotations can be given this way."""
        bare = encode(Described(DATA, body))
        message = Message({}, [], {}, [body], None, bare)
        self.partitions[partition].append(message, annotations, self.clock())

    def is_swallowed(self, group: str, partition: str, number: int) -> bool:
        """Whether receivers of a group never get an event."""
        return any(
            (one.group, one.partition) == (group, partition) and one.first <= number <= one.last
            for one in self.swallowed
        )

    def position(self, partition: str, selector: str | None) -> int:
        """Give the number of the first event that a selector lets through.

        Raises
        ------
        ValueError
            There is no such selector, or it lies beyond the end.
        """
        place = self.partitions[partition]
        if not selector:
            return place.end
        name, operator, quoted = selector.rsplit(" ", 2)
        text, step = quoted.strip("'"), int(operator == ">")
        if text == "@latest":
            return place.end
        match name.rpartition("x-opt-")[2]:
            case "sequence-number":
                return self._within(place, int(text) + step)
            case "offset":
                return self._within(place, int(text) // _SIZE + step if int(text) >= 0 else 0)
            case "enqueued-time":
                late = (
                    event.number for event in place.events if event.enqueued >= int(text) + step
                )
                return next(late, place.end)
        message = f"invalid filter: {selector}"
        raise ValueError(message)

    @staticmethod
    def _within(place: HubPartition, number: int) -> int:
        if number <= place.end:
            return number
        message = f"The supplied position is invalid. The last in the system is '{place.end - 1}'."
        raise ValueError(message)

    def properties(self) -> dict[str, Any]:
        """Answer a read of the hub's properties."""
        ids = list(self.partitions)
        created = Timestamp(self.created_at)
        return {
            "name": self.name, "type": "com.microsoft:eventhub", "created_at": created,
            "partition_count": len(ids), "partition_ids": ids,
        }  # fmt: skip

    def partition_properties(self, partition: str) -> dict[str, Any]:
        """Answer a read of a partition's properties."""
        place = self.partitions[partition]
        last = place.end - 1
        enqueued = place.events[-1].enqueued if place.events else -62_135_596_800_000
        return {
            "name": self.name, "type": "com.microsoft:partition", "partition": partition,
            "begin_sequence_number": place.beginning, "last_enqueued_sequence_number": last,
            "last_enqueued_offset": str(last * _SIZE) if last >= 0 else "-1",
            "last_enqueued_time_utc": Timestamp(enqueued), "is_partition_empty": not place.events,
        }  # fmt: skip
