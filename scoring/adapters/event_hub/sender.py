"""Sending events to an event hub: in batches, one device's in one partition, from where it stopped.

An event hub knows no idempotent senders. What was sent is confirmed batch by batch, and how much
that is of each partition, is written down at once: after a crash, or when an answer was lost, at
most one batch of each partition is sent twice, and none is left out.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import crc32

import stamina
from azure.eventhub import EventData, EventDataBatch, EventHubProducerClient

from scoring.adapters.event_hub.connection import EventHub, translated_errors
from scoring.errors import Conflict, StorageUnusable, Transient

Outgoing = tuple[str, bytes]
"""A device's name, which decides the partition, and a body."""

GIVE_UP = 300.0
"""Seconds after which sending one batch is not tried again."""

MAX_EVENTS = 1000
"""Events of a batch: what one throughput unit takes in a second."""

_UNDER_WAY = 16
"""Batches that are sent at a time, each of another partition."""


@dataclass(frozen=True, slots=True)
class Oversized:
    """An event that no batch can hold, by its place among all that were to be sent."""

    place: int
    device: str
    bytes: int


@dataclass(slots=True)
class SendOutcome:
    """What became of the events.

    Attributes
    ----------
    skipped
        Sent and confirmed before.
    oversized
        Larger than the hub takes; not sent.
    """

    sent: int = 0
    batches: int = 0
    skipped: int = 0
    oversized: list[Oversized] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class HubFacts:
    """What tells a hub from another one of its name.

    Attributes
    ----------
    created_at
        A hub that was deleted and made again has another one.
    partitions
        Ids, in the hub's order.
    """

    created_at: str
    partitions: tuple[str, ...]


class SendProgress:
    """How many of each partition's events were confirmed, of one plan, in a file.

    Parameters
    ----------
    plan
        What decides all events, their order and where they go; JSON. Another plan cannot go on
        from the file.

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
        found = _load(path) or {"plan": self._plan, "confirmed": {}}
        if other := _differing(found["plan"], self._plan):
            message = (
                f"{path} tells how far other events were sent, or to another hub"
                f" ({', '.join(other)}): go on with the same, choose another --data,"
                " or forget it with --restart"
            )
            raise Conflict(message)
        self.confirmed: dict[str, int] = found["confirmed"]

    @staticmethod
    def plan_in(path: Path) -> dict[str, Any]:
        """Return the plan that a file is of; empty if there is no file.

        Raises
        ------
        StorageUnusable
            The file cannot be read, or is damaged.
        """
        found = _load(path)
        return found["plan"] if found else {}

    def confirm(self, partition: str, events: int) -> None:
        """Note that so many more events of a partition are done with."""
        self.confirmed[partition] = self.confirmed.get(partition, 0) + events
        self.write()

    def write(self) -> None:
        """Note the plan, and how far it is."""
        document = json.dumps({"plan": self._plan, "confirmed": self.confirmed})
        writing = self._path.with_name(f"{self._path.name}.writing")
        try:
            writing.write_text(document)
            writing.replace(self._path)
        except OSError as error:
            message = f"{self._path}: {error}"
            raise StorageUnusable(message) from error


def _load(path: Path) -> dict[str, Any] | None:
    """Return the plan and what was confirmed; None if there is no file."""
    try:
        found = json.loads(path.read_bytes())
        confirmed = {str(key): int(count) for key, count in found["confirmed"].items()}
        return {"plan": dict(found["plan"]), "confirmed": confirmed}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        message = (
            f"{path} does not tell how far events were sent: {error};"
            " --restart sends them all, from the first"
        )
        raise StorageUnusable(message) from error


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Name what two plans do not agree on."""
    missing = object()
    names = dict.fromkeys([*wanted, *found])
    return [name for name in names if found.get(name, missing) != wanted.get(name, missing)]


@dataclass(slots=True)
class _Lane:
    """One partition: the batch that is being filled, and the one that is under way.

    Attributes
    ----------
    skip
        Events still to be left out: confirmed before.
    settled
        Events that the batch being filled settles: too large ones count to it.
    """

    partition: str
    skip: int
    batch: EventDataBatch | None = None
    settled: int = 0
    under_way: tuple[Future[None], EventDataBatch, int] | None = None


class EventHubSender:
    """Sends events, each device's in order into one partition. A context manager: it closes.

    A batch is of a partition, which the device's name decides as in the simulation, and holds
    many devices' events: one of a partition key would hold a single device's. While a batch of
    a partition is under way the next one is filled, and no more: a hub that throttles slows the
    sender down, and nothing piles up in memory.

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

    @cached_property
    def facts(self) -> HubFacts:
        """Ask the hub what it is."""
        return self._retry(Transient, self._ask)

    def send(
        self,
        chunks: Iterable[Iterable[Outgoing]],
        progress: SendProgress | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> SendOutcome:
        """Send events that were not confirmed before, in their order within each partition.

        Parameters
        ----------
        advance
            Told how many events are done with, of all, after each batch.
        """
        before = progress.confirmed if progress else {}
        lanes = [_Lane(one, before.get(one, 0)) for one in self.facts.partitions]
        outcome = SendOutcome(skipped=sum(lane.skip for lane in lanes))
        with ThreadPoolExecutor(min(len(lanes), _UNDER_WAY)) as pool:
            sending = _Sending(self, pool, outcome, progress, advance)
            try:
                for place, (device, body) in enumerate(chain.from_iterable(chunks)):
                    lane = lanes[crc32(device.encode()) % len(lanes)]
                    sending.add(lane, Oversized(place, device, len(body)), body)
                for lane in lanes * 2:
                    # What is being filled goes out, and then all that is under way is waited for.
                    sending.dispatch(lane)
            finally:
                sending.note_the_rest(lanes)
        outcome.oversized.sort(key=lambda one: one.place)
        return outcome

    def batch(self, partition: str) -> EventDataBatch:
        """Begin a batch; the first one asks the hub for its limit."""
        return self._retry(Transient, self._create_batch, partition)

    def try_to_send(self, batch: EventDataBatch) -> None:
        """Send a batch, once; may be called from several threads, each with another partition."""
        # Each partition has a connection of its own, made under the client's lock.
        with translated_errors(self._what):
            self._client.send_batch(batch)

    def send_again(self, batch: EventDataBatch) -> None:
        """Send a batch, again and again until the hub takes it."""
        self._retry(Transient, self.try_to_send, batch)

    def _ask(self) -> HubFacts:
        with translated_errors(self._what):
            found = self._client.get_eventhub_properties()
        return HubFacts(str(found["created_at"]), tuple(found["partition_ids"]))

    def _create_batch(self, partition: str) -> EventDataBatch:
        with translated_errors(self._what):
            return self._client.create_batch(partition_id=partition)

    def __enter__(self) -> "EventHubSender":
        """Give the sender itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._client.close()


@dataclass(slots=True)
class _Sending:
    """One call of `EventHubSender.send`; only the sending itself is in the pool's threads."""

    sender: EventHubSender
    pool: ThreadPoolExecutor
    outcome: SendOutcome
    progress: SendProgress | None
    advance: Callable[[int], None]
    done: int = 0

    def __post_init__(self) -> None:
        self.done = self.outcome.skipped

    def add(self, lane: _Lane, event: Oversized, body: bytes) -> None:
        """Put an event into its partition's batch, and send that before, if it is full."""
        if lane.skip:
            lane.skip -= 1
            return
        data = EventData(body)
        if not self._fits(lane, data):
            self.dispatch(lane)
            if not self._fits(lane, data):
                self.outcome.oversized.append(event)
        lane.settled += 1

    def dispatch(self, lane: _Lane) -> None:
        """See the batch that is under way through, and send the one that was filled."""
        self._settle(lane)
        if lane.batch is not None and lane.settled:
            future = self.pool.submit(self.sender.try_to_send, lane.batch)
            lane.under_way = future, lane.batch, lane.settled
        lane.batch, lane.settled = None, 0

    def note_the_rest(self, lanes: Iterable[_Lane]) -> None:
        """Wait for what is under way when something else ended all, and note what arrived."""
        for lane in lanes:
            if lane.under_way and lane.under_way[0].exception() is None:
                self._confirm(lane)

    def _fits(self, lane: _Lane, event: EventData) -> bool:
        if lane.batch is None:
            lane.batch = self.sender.batch(lane.partition)
        if len(lane.batch) >= MAX_EVENTS:
            return False
        try:
            lane.batch.add(event)
        except ValueError:
            return False
        return True

    def _settle(self, lane: _Lane) -> None:
        if lane.under_way is None:
            return
        future, batch, _ = lane.under_way
        try:
            future.result()
        except Transient:
            # Here and not in the pool: while the hub is busy nothing else is sent either.
            self.sender.send_again(batch)
        self._confirm(lane)
        self.advance(self.done)

    def _confirm(self, lane: _Lane) -> None:
        if lane.under_way is None:
            return
        _, batch, settled = lane.under_way
        lane.under_way = None
        self.done += settled
        self.outcome.sent += len(batch)
        self.outcome.batches += bool(len(batch))
        if self.progress:
            self.progress.confirm(lane.partition, settled)
