"""Sending events to an event hub: in batches, one device's in one partition, from where it stopped.

An event hub knows no idempotent senders. What was sent is confirmed batch by batch, and how much
that is, is written down at once: after a crash, or when an answer was lost, at most one batch is
sent twice.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stamina
from azure.eventhub import EventData, EventDataBatch, EventHubProducerClient

from scoring.adapters.event_hub.connection import EventHub, translated_errors
from scoring.errors import Conflict, StorageUnusable, Transient

Outgoing = tuple[str, bytes]
"""A device's name, which is the partition key, and a body."""

GIVE_UP = 300.0
"""Seconds after which sending one batch is not tried again."""


@dataclass(frozen=True, slots=True)
class Oversized:
    """An event that no batch can hold, by its place among all that were to be sent."""

    place: int
    device: str
    bytes: int


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """What became of the events.

    Attributes
    ----------
    skipped
        Sent and confirmed before.
    oversized
        Larger than the hub takes; not sent.
    """

    sent: int
    batches: int
    skipped: int
    oversized: list[Oversized] = field(default_factory=list)


class SendProgress:
    """How many of the events of one plan were confirmed, in a file.

    Parameters
    ----------
    plan
        What decides all events and their order; JSON. Another plan cannot go on from the file.

    Raises
    ------
    Conflict
        The file is of another plan.
    StorageUnusable
        It cannot be read or written, or is damaged.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any]) -> None:
        self._path = path
        # As JSON reads it back: a tuple has become a list.
        self._plan = json.loads(json.dumps(plan, default=str))
        found = self._load()
        if found["plan"] != self._plan:
            message = f"{path} tells how far other events were sent: choose another file"
            raise Conflict(message)
        self.confirmed: int = found["confirmed"]

    def confirm(self, events: int) -> None:
        """Note that so many more events are done with."""
        self.confirmed += events
        document = json.dumps({"plan": self._plan, "confirmed": self.confirmed})
        writing = self._path.with_name(f"{self._path.name}.writing")
        try:
            writing.write_text(document)
            writing.replace(self._path)
        except OSError as error:
            message = f"{self._path}: {error}"
            raise StorageUnusable(message) from error

    def _load(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_bytes())
            return {"plan": found["plan"], "confirmed": int(found["confirmed"])}
        except FileNotFoundError:
            return {"plan": self._plan, "confirmed": 0}
        except (OSError, ValueError, TypeError, KeyError) as error:
            message = f"{self._path} does not tell how far events were sent: {error}"
            raise StorageUnusable(message) from error


class EventHubSender:
    """Sends events with the device as partition key. A context manager: it closes the connection.

    Each batch is confirmed before the next one is sent: a hub that throttles slows the sender
    down, and nothing piles up in memory.

    Parameters
    ----------
    give_up
        See `GIVE_UP`.

    Raises
    ------
    Transient
        The hub cannot be reached or is busy, and was for `give_up` seconds.
    Misconfigured, NotFound
        The credentials are refused; there is no such hub.
    """

    def __init__(self, hub: EventHub, give_up: float = GIVE_UP) -> None:
        self._what = f"event hub {hub.name}"
        self._client: EventHubProducerClient = hub.producer()
        self._retry = stamina.RetryingCaller(attempts=None, timeout=give_up, wait_max=10.0)

    def send(
        self,
        spans: Iterable[Sequence[Outgoing]],
        progress: SendProgress | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> SendOutcome:
        """Send events that were not confirmed before.

        Parameters
        ----------
        spans
            Events close in time. Within a span they go device by device, and so a span's length
            is how late an event may come after another one of its partition; a device's own
            events stay in order.
        advance
            Told how many events are done with, of all, after each batch.
        """
        confirmed = progress.confirmed if progress else 0
        sent, batches, done = 0, 0, confirmed
        oversized: list[Oversized] = []
        for place, device, bodies in _unsent(spans, confirmed):
            for batch, size in self._batches(place, device, bodies, oversized):
                if len(batch):
                    self._retry(Transient, self._send, batch)
                    sent, batches = sent + len(batch), batches + 1
                if progress:
                    progress.confirm(size)
                done += size
                advance(done)
        return SendOutcome(sent, batches, confirmed, oversized)

    def _batches(
        self, place: int, device: str, bodies: Sequence[bytes], oversized: list[Oversized]
    ) -> Iterator[tuple[EventDataBatch, int]]:
        """Fill batches, each with how many events it settles: too large ones count to it."""
        batch, settled = self._batch(device), 0
        for at, body in enumerate(bodies, place):
            event = EventData(body)
            if not _fits(batch, event):
                if len(batch):
                    yield batch, settled
                    batch, settled = self._batch(device), 0
                if not _fits(batch, event):
                    oversized.append(Oversized(at, device, len(body)))
            settled += 1
        yield batch, settled

    def _batch(self, device: str) -> EventDataBatch:
        return self._retry(Transient, self._create_batch, device)

    def _create_batch(self, device: str) -> EventDataBatch:
        # The first one asks the hub for its limit.
        with translated_errors(self._what):
            return self._client.create_batch(partition_key=device)

    def _send(self, batch: EventDataBatch) -> None:
        with translated_errors(self._what):
            self._client.send_batch(batch)

    def __enter__(self) -> "EventHubSender":
        """Give the sender itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._client.close()


def _fits(batch: EventDataBatch, event: EventData) -> bool:
    """Add an event to a batch, if there is room."""
    try:
        batch.add(event)
    except ValueError:
        return False
    return True


def _unsent(
    spans: Iterable[Sequence[Outgoing]], confirmed: int
) -> Iterator[tuple[int, str, list[bytes]]]:
    """Give each span's events by device, with the place of the first one; without the confirmed."""
    place = 0
    for span in spans:
        by_device: dict[str, list[bytes]] = {}
        for device, body in span:
            by_device.setdefault(device, []).append(body)
        for device, bodies in by_device.items():
            done = min(max(confirmed - place, 0), len(bodies))
            if done < len(bodies):
                yield place + done, device, bodies[done:]
            place += len(bodies)
