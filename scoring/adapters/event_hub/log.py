"""The retained events of an event hub, read again by their sequence numbers."""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from math import inf
from time import monotonic
from typing import Any

from azure.eventhub import EventData, EventHubConsumerClient

from scoring import instants
from scoring.adapters.event_hub.connection import DEFAULT_GROUP, EventHub, translated_errors
from scoring.adapters.event_hub.received import event_batch
from scoring.errors import Misconfigured, NotFound, Transient
from scoring.ledger import CLOCK_TOLERANCE, HubAnswer, Range
from scoring.readings import EventBatch, Partition

BATCH_SIZE = 1000

PATIENCE = 60.0
"""Seconds without any event after which the hub is asked what it still has."""

AT_ONCE = 8
"""Questions that are put to the hub at once. It takes 50 a second of all who ask."""

_Received = list[EventData] | Exception


class EventHubLog:
    """Implements `ports.EventLog`.

    A partition that the hub does not have, as one that was made anew with fewer of them, retains
    nothing.

    Parameters
    ----------
    group
        Consumer group to read with. It should be one that nothing else uses: where a Functions
        host or a consumer reads a partition, no other reader of the same group is let in.
    batch_size
        Events an event batch holds at most.
    patience
        See `PATIENCE`.

    Raises
    ------
    Misconfigured
        By every method: another hub's partition is asked for, or the credentials are refused.
    NotFound
        The hub or the consumer group does not exist.
    Conflict
        Another reader of the consumer group holds the partition.
    Transient
        The hub cannot be reached, or stopped answering.
    """

    def __init__(
        self,
        hub: EventHub,
        group: str = DEFAULT_GROUP,
        batch_size: int = BATCH_SIZE,
        patience: float = PATIENCE,
    ) -> None:
        self._hub = hub
        self._group = group
        self._batch_size = batch_size
        self._patience = patience
        self._asking_when_created = threading.Lock()
        self._asked_when_created = -inf
        self._created_at: int | None = None

    def holds(self, partition: Partition) -> bool:
        """Whether the partition is of this hub."""
        return partition.hub == self._hub.name

    def survey(self) -> dict[Partition, HubAnswer]:
        """Ask the hub about all partitions that it has."""
        present = [Partition(self._hub.name, one) for one in self._partition_ids()]
        answers = self._look_at(present)
        return {one: answer for one, answer in zip(present, answers, strict=True) if answer}

    def look(self, partition: Partition) -> HubAnswer | None:
        """Ask the hub about a partition, and when the hub was created; None if it has none."""
        (answer,) = self._look_at([partition])
        return answer

    def created_at(self) -> int | None:
        """Return when the hub was created; one question a second, for all threads."""
        with self._asking_when_created:
            now = monotonic()
            if now - self._asked_when_created > CLOCK_TOLERANCE / instants.SECOND:
                self._created_at = instants.of(self._hub_properties()["created_at"])
                self._asked_when_created = now
            return self._created_at

    def _look_at(self, partitions: list[Partition]) -> list[HubAnswer | None]:
        # A question takes azure-eventhub a third of a second, most of it asleep.
        with ThreadPoolExecutor(AT_ONCE) as pool:
            hub = pool.submit(self._hub_properties)
            properties = list(pool.map(self._properties, partitions))
            created = instants.of(hub.result()["created_at"])
        return [None if found is None else _answer(found, created) for found in properties]

    def read(self, partition: Partition, first: int, last: int) -> Iterator[EventBatch]:
        """Give the retained events from `first` to `last`, both included, ascending, each once."""
        retained = self._retained(partition)
        if retained is None or retained[0] > last or retained[1] < first:
            return
        position, last = max(first, retained[0]), min(last, retained[1])
        with closing(self._stream(partition, position)) as stream:
            while position <= last:
                events = stream.take(self._patience)
                if not events and self._is_over(partition, position, last):
                    return
                wanted, position = _wanted(events, position, last)
                if wanted:
                    yield event_batch(wanted, partition)

    def _is_over(self, partition: Partition, position: int, last: int) -> bool:
        """Whether nothing more can come, because the hub dropped it meanwhile.

        Raises
        ------
        Transient
            The hub has the events and does not deliver them.
        """
        retained = self._retained(partition)
        if retained is None or retained[0] > last or retained[1] < position:
            return True
        message = f"event hub {partition}: no event in {self._patience:g} s"
        raise Transient(message)

    def _retained(self, partition: Partition) -> Range | None:
        found = self._properties(partition)
        if found is None or found["is_empty"]:
            return None
        return found["beginning_sequence_number"], found["last_enqueued_sequence_number"]

    def _properties(self, partition: Partition) -> dict[str, Any] | None:
        if partition.hub != self._hub.name:
            what = (
                f"partition {partition} is not of event hub {self._hub.name}, which is configured"
            )
            raise Misconfigured([what])
        try:
            with self._asking(partition) as client:
                return client.get_partition_properties(partition.id)
        except (NotFound, Misconfigured):
            if partition.id in self._partition_ids():
                raise
            # It is the partition that is not there, and not the hub.
            return None

    def _hub_properties(self) -> dict[str, Any]:
        with self._asking(self._hub.name) as client:
            return client.get_eventhub_properties()

    def _partition_ids(self) -> list[str]:
        with self._asking(self._hub.name) as client:
            return client.get_partition_ids()

    @contextmanager
    def _asking(self, what: object) -> Iterator[EventHubConsumerClient]:
        with (
            translated_errors(f"event hub {what}"),
            self._hub.consumer(self._group) as client,
        ):
            yield client

    def _stream(self, partition: Partition, first: int) -> "_Stream":
        # The interval is how long a thread of the client outlives it.
        client = self._hub.consumer(self._group, balance_interval=1.0)
        return _Stream(client, partition, first, self._batch_size)


def _answer(found: dict[str, Any], created: int) -> HubAnswer:
    enqueued = found["last_enqueued_time_utc"]
    return HubAnswer(
        created=created,
        beginning=found["beginning_sequence_number"],
        last=found["last_enqueued_sequence_number"],
        # A partition that never had an event has a time of the year 1.
        last_enqueued=max(0, instants.of(enqueued)) if enqueued else 0,
        is_empty=found["is_empty"],
    )


def _wanted(events: list[EventData], position: int, last: int) -> tuple[list[EventData], int]:
    """Give the events from `position` to `last`, each once, and the position after them.

    After a lost connection, azure-eventhub delivers again what it had and had not handed over.
    """
    wanted = []
    for event in events:
        number = event.sequence_number or 0
        if position <= number <= last:
            wanted.append(event)
        position = max(position, number + 1)
    return wanted, position


class _Stream:
    """Events of a partition, pulled: a thread receives them, two event batches ahead at most."""

    def __init__(
        self, client: EventHubConsumerClient, partition: Partition, first: int, batch_size: int
    ) -> None:
        self._client = client
        self._partition = partition
        self._received: queue.Queue[_Received] = queue.Queue(1)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(
            target=self._receive, args=(first, batch_size), name=f"reads {partition}", daemon=True
        )
        self._thread.start()

    def take(self, patience: float) -> list[EventData]:
        """Give what came next; nothing if nothing came for `patience` seconds."""
        try:
            received = self._received.get(timeout=patience)
        except queue.Empty:
            return []
        if isinstance(received, Exception):
            with translated_errors(f"event hub {self._partition}"):
                raise received
        return received

    def close(self) -> None:
        """Stop receiving; the thread closes the connection, which takes azure-eventhub a second."""
        self._is_closed.set()
        self._client.close()
        # The thread may stand before a full queue.
        with suppress(queue.Empty):
            self._received.get_nowait()

    def _hand_over(self, received: _Received) -> None:
        if not self._is_closed.is_set():
            self._received.put(received)

    def _receive(self, first: int, batch_size: int) -> None:
        try:
            self._client.receive_batch(
                lambda _, events: self._hand_over(events),
                max_batch_size=batch_size,
                partition_id=self._partition.id,
                starting_position=first,
                starting_position_inclusive=True,
                prefetch=2 * batch_size,
                on_error=lambda _, error: self._hand_over(error),
            )
        except Exception as error:  # noqa: BLE001 - it is raised where the events are taken
            self._hand_over(error)
