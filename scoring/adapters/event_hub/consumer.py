"""The ingest handler outside Functions: all partitions, balanced over the processes that consume.

Where a partition is read on from is what the ledger says, and not what a checkpoint says: that one
may be ahead of a database that was restored, or of a hub that was made anew. Checkpoints are
written all the same, for those who look at lag, and ownership is kept beside them.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import stamina
from azure.eventhub import CheckpointStore, EventData, EventHubConsumerClient, PartitionContext
from azure.eventhub.extensions.checkpointstoreblob import BlobCheckpointStore

from scoring.adapters.event_hub.connection import (
    DEFAULT_GROUP,
    EventHub,
    translated,
    translated_errors,
)
from scoring.adapters.event_hub.received import event_batch
from scoring.errors import Conflict, ScoringError, Transient
from scoring.ports import IngestStore
from scoring.readings import EventBatch, Partition

_LOGGER = logging.getLogger(__name__)

MAX_BATCH_SIZE = 1000
LONGEST_WAIT = 5.0
"""Seconds between two attempts to ingest an event batch, at most but for a second of jitter."""

_STORAGE: dict[str, Any] = {"connection_timeout": 5.0, "read_timeout": 15.0}
"""Seconds: who owns what must be renewed within a minute, and the SDK's own are 20 and 60."""

_BEGINNING = "-1"


def high_water_mark(store: IngestStore, partition: Partition) -> int | None:
    """Give the highest sequence number that was applied of a partition; None if it never spoke."""
    applied = store.applied(partition.hub).get(partition.id)
    return applied[0] if applied else None


def blob_checkpoints(account: str, container: str) -> BlobCheckpointStore:
    """Open the checkpoint store in a container that exists.

    Parameters
    ----------
    account
        A connection string, or the account's URL: then signed in as `DefaultAzureCredential` does.
    """
    if not account.startswith(("https://", "http://")):
        return BlobCheckpointStore.from_connection_string(account, container, **_STORAGE)
    # See `connection`: only this way in needs it.
    from azure.identity import DefaultAzureCredential  # noqa: PLC0415

    return BlobCheckpointStore(account, container, credential=DefaultAzureCredential(), **_STORAGE)


@dataclass(kw_only=True)
class EventHubConsumer:
    """Reads partitions and ingests their event batches, until it is told to stop.

    Attributes
    ----------
    ingest
        The ingest handler. What it raises as `Transient` is tried again, without end; what else
        it raises stops the consumer.
    position
        Gives the highest sequence number that was applied of a partition; None if there is none.
        Asked whenever a partition is taken over.
    checkpoints
        Where the processes that consume share the partitions among them; None for one process,
        which then reads all of them.
    max_batch_size
        Events an event batch holds at most.
    balance_interval
        Seconds between two looks at who owns which partition.
    longest_wait
        See `LONGEST_WAIT`.
    """

    hub: EventHub
    ingest: Callable[[EventBatch], object]
    position: Callable[[Partition], int | None]
    group: str = DEFAULT_GROUP
    checkpoints: CheckpointStore | None = None
    max_batch_size: int = MAX_BATCH_SIZE
    balance_interval: float = 10.0
    longest_wait: float = LONGEST_WAIT
    _stop: threading.Event = field(init=False, repr=False)
    _failure: Exception | None = field(init=False, default=None, repr=False)

    def __call__(self, stop: threading.Event) -> None:
        """Consume until `stop` is set, by somebody or because consuming failed.

        The event batch in hand is finished and its checkpoint written, unless the database cannot
        be reached: then it comes again. Ownership is given up.

        Raises
        ------
        Misconfigured, NotFound
            The hub or the checkpoints cannot be had: told at once, and later too.
        Transient
            The hub cannot be reached when it begins. Later this is waited out.
        """
        self._stop, self._failure = stop, None
        shared = _Ownership(self.checkpoints, stop) if self.checkpoints else None
        client = self.hub.consumer(
            self.group, checkpoints=shared, balance_interval=self.balance_interval
        )
        # Receiving would wait without a word for a hub that is not there.
        with translated_errors(self._what):
            client.get_partition_ids()
        receiver = threading.Thread(target=self._receive, args=(client,), name="consumes")
        receiver.start()
        try:
            stop.wait()
        finally:
            while receiver.is_alive():
                # Closing means nothing to a client that has not begun yet; hence again and again.
                client.close()
                receiver.join(timeout=0.1)
        if self._failure:
            raise self._failure

    @property
    def _what(self) -> str:
        return f"event hub {self.hub.name}"

    def _receive(self, client: EventHubConsumerClient) -> None:
        start: Any = _Positions(lambda partition: self._start(client, partition))
        try:
            client.receive_batch(
                self._on_events,
                max_batch_size=self.max_batch_size,
                prefetch=2 * self.max_batch_size,
                starting_position=start,
                starting_position_inclusive=True,
                on_error=self._on_error,
            )
        except Exception as error:  # noqa: BLE001 - it is raised where the consumer was called
            self._fail(error)
        finally:
            self._stop.set()

    def _start(self, client: EventHubConsumerClient, partition_id: str) -> int | str:
        """Give where to read a partition on from: at the last event that was applied.

        That one comes again. If the hub was made anew meanwhile, it is another one, and the
        ledger sees it by its time. If the hub does not have so many, it was made anew for sure.
        """
        mark = self.position(Partition(self.hub.name, partition_id))
        if mark is None or mark < 0:
            return _BEGINNING
        newest = client.get_partition_properties(partition_id)["last_enqueued_sequence_number"]
        return mark if mark <= newest else _BEGINNING

    def _on_events(self, context: PartitionContext, events: list[EventData]) -> None:
        """Ingest, then write the checkpoint; on failure raise, and azure-eventhub lets go."""
        try:
            batch = event_batch(events, Partition(self.hub.name, context.partition_id))
            self._persistently(lambda: self.ingest(batch))
            if self.checkpoints:
                self._persistently(lambda: self._write_checkpoint(context))
        except Exception as error:
            if not (self._stop.is_set() and isinstance(error, Transient)):
                self._fail(error)
            raise

    def _write_checkpoint(self, context: PartitionContext) -> None:
        with translated_errors(f"checkpoint of {self._what}"):
            context.update_checkpoint()

    def _persistently(self, do: Callable[[], object]) -> None:
        """Do something until it succeeds, fails for good, or the consumer is to stop."""
        attempts = stamina.retry_context(
            on=lambda error: isinstance(error, Transient) and not self._stop.is_set(),
            attempts=None,
            timeout=None,
            wait_max=self.longest_wait,
            wait_jitter=min(1.0, self.longest_wait),
        )
        for attempt in attempts:
            with attempt:
                do()

    def _on_error(self, context: PartitionContext | None, error: Exception) -> None:
        """Hear of what went wrong between event batches; azure-eventhub goes on by itself."""
        known = isinstance(error, ScoringError)
        meant = error if known else translated(error, self._what)
        facts = {"partition": context.partition_id if context else None, "cause": str(meant)}
        if isinstance(meant, Conflict):
            _LOGGER.warning("event_hub.partition_taken", extra=facts)
        elif isinstance(meant, Transient):
            _LOGGER.warning("event_hub.interrupted", extra=facts)
        else:
            self._fail(meant)

    def _fail(self, error: Exception) -> None:
        """Stop, and let the caller know why; the first cause counts."""
        self._failure = self._failure or error
        self._stop.set()


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Give an event that SIGTERM and Ctrl-C set, in the main thread; a second one acts as ever."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(*_: object) -> None:
        restore()
        stop.set()

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


class _Positions(Mapping[str, int | str]):
    """Positions that are looked up when a partition is taken over, and not before."""

    def __init__(self, start: Callable[[str], int | str]) -> None:
        self._start = start

    def __getitem__(self, partition_id: str) -> int | str:
        return self._start(partition_id)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Ownership(CheckpointStore):
    """A checkpoint store that says of no partition how far it came: the ledger does.

    Once `stop` is set it only gives partitions up: azure-eventhub's balancing goes on beside its
    closing, and would take again what was just given up.
    """

    def __init__(self, store: CheckpointStore, stop: threading.Event) -> None:
        self._store = store
        self._stop = stop

    def list_ownership(self, *names: str, **options: Any) -> Iterable[dict[str, Any]]:
        """Give who owns which partition."""
        return self._store.list_ownership(*names, **options)

    def claim_ownership(
        self, ownership_list: Iterable[dict[str, Any]], **options: Any
    ) -> Iterable[dict[str, Any]]:
        """Take partitions over, keep them, or give them up: then the owner has no name."""
        asked = [one for one in ownership_list if not (one["owner_id"] and self._stop.is_set())]
        return self._store.claim_ownership(asked, **options)

    def update_checkpoint(self, checkpoint: dict[str, Any], **options: Any) -> None:
        """Write how far a partition came."""
        self._store.update_checkpoint(checkpoint, **options)

    def list_checkpoints(self, *_: str, **__: Any) -> Iterable[dict[str, Any]]:
        """Give nothing."""
        return []
