"""Event Hubs over real sockets: the unpatched SDK against the server in `tests.amqp`."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import stamina
from azure.eventhub import CheckpointStore, EventData

from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.event_hub.connection import EventHub
from scoring.adapters.event_hub.consumer import (
    EventHubConsumer,
    high_water_mark,
    stopped_by_signals,
)
from scoring.adapters.event_hub.log import EventHubLog
from scoring.adapters.event_hub.received import event_batch
from scoring.adapters.event_hub.sender import EventHubSender, Oversized, SendProgress
from scoring.adapters.event_log import FolderEventLog
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.migrations import migrate
from scoring.errors import (
    Conflict,
    Misconfigured,
    NotFound,
    StorageUnusable,
    Transient,
    UnreadableSource,
)
from scoring.handlers.ingest import Ingest
from scoring.ports import EventLog
from scoring.readings import EventBatch, FieldNames, Partition, ReadingDecoder
from tests.amqp.codec import decode_message
from tests.amqp.hub import Hub, Swallow
from tests.amqp.server import BUSY, AmqpServer

HUB = "readings"
P0 = Partition(HUB, "0")
NOW = 1_790_000_000_000
"""Epoch milliseconds: the hubs' clock stands still."""


# azure-eventhub leaves a socket open whose connection the hub cut.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

_ENDING: list[threading.Thread] = []


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """Wait at the end for what was stopped: azure-eventhub takes a second to close a receiver."""
    yield
    for thread in _ENDING:
        thread.join()
    gc.collect()


@pytest.fixture
def partitions() -> int:
    """How many the hub has."""
    return 1


@pytest.fixture
def server(partitions: int) -> Iterator[AmqpServer]:
    """Serve one hub."""
    with AmqpServer(Hub(HUB, partitions, lambda: NOW), max_message_size=20_000) as running:
        yield running


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Try again at once, and a few times only."""
    with stamina.set_testing(True, attempts=5):
        yield


def hub_at(server: AmqpServer, name: str = HUB, retries: int = 0) -> EventHub:
    """Give the way to a hub, for a client that does not wait before it tries again."""
    way = server.connection_string
    return EventHub(name=name, connection_string=way, retries=retries, backoff=0.001)


def body(number: int) -> bytes:
    return b"" if number % 7 == 0 else b'{"n":%d}\xff' % number


def events_of(batches: Iterable[EventBatch]) -> list[tuple[int, int, bytes]]:
    return [
        event
        for one in batches
        for event in zip(
            one.sequence_numbers.tolist(), one.enqueued_times.tolist(), one.bodies, strict=True
        )
    ]


def expected(first: int, last: int) -> list[tuple[int, int, bytes]]:
    return [(number, NOW * 1000, body(number)) for number in range(first, last + 1)]


def kept(server: AmqpServer) -> list[tuple[str, str, bytes]]:
    """Give partition, key and body of all events that a hub holds, in order."""
    found = []
    for partition, place in server.hubs[HUB].partitions.items():
        for event in place.events:
            message = decode_message(event.payload)
            key = message.annotations["x-opt-partition-key"]
            found.append((partition, key, b"".join(message.data)))
    return found


class FilledLog(Protocol):
    """An event log, and how tests fill it."""

    @property
    def log(self) -> EventLog:
        """What is tested."""

    def fill(self, events: int) -> None:
        """Put events into partition 0, numbered on from those that are there."""

    def drop_before(self, number: int) -> None:
        """Forget the events below a multiple of 500."""


class FilledFolder:
    """The embedded system's log: 500 events a file."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.log = FolderEventLog(root)

    def fill(self, events: int) -> None:
        for start in range(0, events, 500):
            numbers = np.arange(start, min(start + 500, events), dtype=np.int64)
            times = np.full(len(numbers), NOW * 1000)
            self.log.append(EventBatch(P0, numbers, times, [body(n) for n in numbers.tolist()]))

    def drop_before(self, number: int) -> None:
        for path in sorted(self._root.rglob("*.arrow"))[: number // 500]:
            path.unlink()


class FilledHub:
    """A hub behind AMQP."""

    def __init__(self, server: AmqpServer) -> None:
        self._server = server
        self.log = EventHubLog(hub_at(server), "repair")

    def fill(self, events: int) -> None:
        self._server.append(HUB, "0", [body(number) for number in range(events)], {})

    def drop_before(self, number: int) -> None:
        self._server.drop_before(HUB, "0", number)


@pytest.fixture(params=["folder", "event hub"])
def filled(request: pytest.FixtureRequest, tmp_path: Path, server: AmqpServer) -> FilledLog:
    """Give an empty event log of each kind."""
    return FilledFolder(tmp_path) if request.param == "folder" else FilledHub(server)


class TestEveryEventLog:
    def test_gives_exactly_a_range_of_numbers_once_and_in_order(self, filled: FilledLog) -> None:
        filled.fill(2500)

        found = list(filled.log.read(P0, 10, 2100))

        assert events_of(found) == expected(10, 2100)
        assert {one.partition for one in found} == {P0}
        assert max(map(len, found)) <= 1000
        assert all(one.connection_device_ids is None for one in found)

    def test_gives_what_retention_left_of_a_range(self, filled: FilledLog) -> None:
        filled.fill(1200)
        filled.drop_before(1000)

        assert filled.log.oldest(P0) == 1000
        assert events_of(filled.log.read(P0, 900, 5000)) == expected(1000, 1199)
        assert events_of(filled.log.read(P0, 10, 999)) == []

    def test_says_of_an_empty_partition_that_nothing_is_there(self, filled: FilledLog) -> None:
        assert filled.log.oldest(P0) is None
        assert list(filled.log.read(P0, 0, 10)) == []

    def test_gives_nothing_beyond_the_end(self, filled: FilledLog) -> None:
        filled.fill(10)

        assert filled.log.oldest(P0) == 0
        assert list(filled.log.read(P0, 10, 20)) == []


class TestReadingAgain:
    def test_a_connection_that_breaks_loses_nothing_and_repeats_nothing(
        self, server: AmqpServer
    ) -> None:
        server.append(HUB, "0", [body(number) for number in range(3000)], {})
        found: list[EventBatch] = []
        for batch in EventHubLog(hub_at(server, retries=3), batch_size=200).read(P0, 0, 2999):
            if not found:
                server.disconnect()
            found.append(batch)

        assert events_of(found) == expected(0, 2999)

    def test_nothing_stays_open_when_a_reader_has_enough(self, server: AmqpServer) -> None:
        server.append(HUB, "0", [body(number) for number in range(3000)], {})
        found = EventHubLog(hub_at(server), batch_size=100).read(P0, 0, 2999)
        next(found)
        found.close()  # type: ignore[attr-defined]  # it is a generator

        server.wait_until(lambda: not server.receivers(HUB, "0"))
        for thread in threading.enumerate():
            if thread.name.startswith("reads "):
                thread.join()

    def test_what_one_consumer_group_never_got_is_there_for_another_with_iot_hubs_names(
        self, server: AmqpServer
    ) -> None:
        server.append(HUB, "0", [body(0)], {})
        server.append(HUB, "0", [body(1)], {"iothub-connection-device-id": "pump-7"})
        server.swallow(HUB, Swallow("$Default", "0", 0, 1))

        (batch,) = EventHubLog(hub_at(server), "repair").read(P0, 0, 1)

        assert events_of([batch]) == expected(0, 1)
        assert batch.connection_device_ids == [None, "pump-7"]

    def test_events_that_the_hub_drops_meanwhile_end_the_reading(self, server: AmqpServer) -> None:
        class Forgetful(Hub):
            def partition_properties(self, partition: str) -> dict[str, Any]:
                answer = super().partition_properties(partition)
                self.partitions[partition].drop_before(10)
                return answer

        server.hubs[HUB] = Forgetful(HUB, 1)
        server.append(HUB, "0", [body(number) for number in range(10)], {})

        assert list(EventHubLog(hub_at(server), patience=0.3).read(P0, 0, 9)) == []

    def test_events_that_are_there_and_do_not_come_are_a_reason_to_try_again(
        self, server: AmqpServer
    ) -> None:
        server.append(HUB, "0", [body(number) for number in range(10)], {})
        server.swallow(HUB, Swallow("$Default", "0", 0, 9))

        with pytest.raises(Transient, match=r"readings/0: no event"):
            list(EventHubLog(hub_at(server), patience=0.3).read(P0, 0, 9))

    def test_a_partition_that_somebody_else_reads_is_a_conflict(self, server: AmqpServer) -> None:
        server.append(HUB, "0", [b"a"], {})
        with consuming(server, Recorder(), checkpoints=Checkpoints()):
            server.wait_until(lambda: bool(server.receivers(HUB, "0")))
            with pytest.raises(Conflict, match="non-epoch receiver is not allowed"):
                list(EventHubLog(hub_at(server)).read(P0, 0, 0))

    def test_another_hubs_partition_is_refused(self, server: AmqpServer) -> None:
        with pytest.raises(Misconfigured, match="other/0 is not of event hub readings"):
            EventHubLog(hub_at(server)).oldest(Partition("other", "0"))


class TestWhatCannotBeReached:
    def test_a_hub_that_does_not_exist_is_not_found(self, server: AmqpServer) -> None:
        with pytest.raises(NotFound, match=r"nothing/0: .*404"):
            EventHubLog(hub_at(server, "nothing")).oldest(Partition("nothing", "0"))

    def test_a_partition_that_does_not_exist_is_not_found(self, server: AmqpServer) -> None:
        with pytest.raises(NotFound, match=r"readings/7: .*404"):
            EventHubLog(hub_at(server)).oldest(Partition(HUB, "7"))

    @pytest.mark.parametrize("use", ["read", "send", "consume"])
    def test_credentials_that_are_refused_are_named(self, server: AmqpServer, use: str) -> None:
        server.faults.deny_tokens = True

        with pytest.raises(Misconfigured, match="401") as refused:
            using(hub_at(server), use)

        assert "c2VjcmV0" not in str(refused.value) + repr(hub_at(server))

    @pytest.mark.parametrize("use", ["read", "send", "consume"])
    def test_a_hub_that_does_not_answer_may_do_so_later(self, server: AmqpServer, use: str) -> None:
        server.stop()

        with pytest.raises(Transient, match="event hub readings"):
            using(hub_at(server), use)

    @pytest.mark.parametrize(
        ("given", "complaint"),
        [
            ({"name": HUB}, "either a connection string or a namespace"),
            ({"name": HUB, "connection_string": "x", "namespace": "y"}, "either a connection"),
            ({"name": "", "namespace": "y"}, "no name"),
        ],
    )
    def test_a_way_that_is_none_is_named(self, given: dict[str, str], complaint: str) -> None:
        with pytest.raises(Misconfigured, match=complaint):
            EventHub(**given)  # type: ignore[arg-type]  # the numbers keep their defaults

    @pytest.mark.parametrize("text", ["nonsense", "Endpoint=sb://h/;SharedAccessKey=hidden"])
    def test_a_connection_string_that_is_none_is_refused_without_showing_it(
        self, text: str
    ) -> None:
        with pytest.raises(Misconfigured, match="connection string of event hub readings") as error:
            EventHub(name=HUB, connection_string=text).producer()

        assert "hidden" not in str(error.value)


def using(hub: EventHub, use: str) -> None:
    """Use a hub in one of the three ways."""
    if use == "read":
        EventHubLog(hub).oldest(P0)
    elif use == "send":
        with EventHubSender(hub) as sender:
            sender.send([[("a", b"1")]])
    else:
        EventHubConsumer(hub=hub, ingest=Recorder(), position=lambda _: None)(threading.Event())


def spans() -> list[list[tuple[str, bytes]]]:
    """Make three spans of events of five devices, large enough for several batches each."""
    return [
        [(f"device-{n % 5}", b"%d %d" % (span, n) + b"." * 400) for n in range(400)]
        for span in range(3)
    ]


class TestSending:
    @pytest.fixture
    def partitions(self) -> int:
        return 4

    def test_each_devices_events_come_in_order_into_one_partition(self, server: AmqpServer) -> None:
        with EventHubSender(hub_at(server)) as sender:
            outcome = sender.send(spans())

        assert (outcome.sent, outcome.skipped, outcome.oversized) == (1200, 0, [])
        assert outcome.batches == 3 * 5 * 2
        found = kept(server)
        for device in {name for span in spans() for name, _ in span}:
            own = [(partition, data) for partition, name, data in found if name == device]
            assert [data for _, data in own] == [d for s in spans() for n, d in s if n == device]
            assert {partition for partition, _ in own} == {server.hubs[HUB].partition_of(device)}

    def test_a_sender_that_was_killed_goes_on_where_it_was(
        self, server: AmqpServer, tmp_path: Path
    ) -> None:
        def kill(done: int) -> None:
            if done >= 500:
                raise KeyboardInterrupt

        with EventHubSender(hub_at(server)) as sender, pytest.raises(KeyboardInterrupt):
            sender.send(spans(), SendProgress(tmp_path / "sent.json", {"seed": 1}), kill)
        progress = SendProgress(tmp_path / "sent.json", {"seed": 1})
        before = len(kept(server))
        with EventHubSender(hub_at(server)) as sender:
            outcome = sender.send(spans(), progress)

        assert (outcome.skipped, outcome.sent) == (before, 1200 - before)
        assert sorted(data for _, _, data in kept(server)) == sorted(
            d for s in spans() for _, d in s
        )
        assert SendProgress(tmp_path / "sent.json", {"seed": 1}).confirmed == 1200

    def test_events_that_no_batch_holds_are_reported_and_their_neighbours_sent(
        self, server: AmqpServer, tmp_path: Path
    ) -> None:
        large = b"x" * 20_000
        events = [("a", b"1"), ("b", large), ("a", large), ("a", b"2")]
        progress = SendProgress(tmp_path / "sent.json", {})
        with EventHubSender(hub_at(server)) as sender:
            outcome = sender.send([events], progress)

        assert outcome.oversized == [Oversized(1, "a", 20_000), Oversized(3, "b", 20_000)]
        assert (outcome.sent, progress.confirmed) == (2, 4)
        assert [(name, data) for _, name, data in kept(server)] == [("a", b"1"), ("a", b"2")]

    def test_a_busy_hub_gets_each_event_once_in_the_end(self, server: AmqpServer) -> None:
        server.faults.reject_sends, server.faults.reject_with = 5, BUSY
        with EventHubSender(hub_at(server)) as sender:
            outcome = sender.send([[("a", b"1"), ("b", b"2")]])

        assert outcome.sent == 2
        assert sorted(data for _, _, data in kept(server)) == [b"1", b"2"]

    def test_an_answer_that_is_lost_repeats_one_batch_and_loses_none(
        self, server: AmqpServer
    ) -> None:
        server.faults.lose_sends = 1
        with EventHubSender(hub_at(server)) as sender:
            sender.send([[("a", b"1"), ("b", b"2")]])

        assert sorted(data for _, _, data in kept(server)) == [b"1", b"1", b"2"]

    def test_progress_of_other_events_is_not_gone_on_with(self, tmp_path: Path) -> None:
        SendProgress(tmp_path / "sent.json", {"seed": 1, "when": (1, 2)}).confirm(3)

        assert SendProgress(tmp_path / "sent.json", {"seed": 1, "when": (1, 2)}).confirmed == 3
        with pytest.raises(Conflict, match=r"sent\.json"):
            SendProgress(tmp_path / "sent.json", {"seed": 2})

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b"{}", b"\xff", b'{"plan":{},"confirmed":"x"}']
    )
    def test_progress_that_is_damaged_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "sent.json").write_bytes(content)

        with pytest.raises(StorageUnusable, match=r"sent\.json"):
            SendProgress(tmp_path / "sent.json", {})


class Recorder:
    """An ingest handler that remembers, and fails as it is told."""

    def __init__(
        self,
        failures: Iterable[Exception] = (),
        before: Callable[[EventBatch], object] = lambda _: None,
    ) -> None:
        self.batches: list[EventBatch] = []
        self.calls: list[str] = []
        self._before = before
        self._failures = list(failures)
        self._changed = threading.Condition()

    def __call__(self, batch: EventBatch) -> None:
        self._before(batch)
        with self._changed:
            failure = self._failures.pop(0) if self._failures else None
            self.calls.append("failed" if failure else "ingested")
            if failure is None:
                self.batches.append(batch)
            self._changed.notify_all()
        if failure:
            raise failure

    def note(self, call: str) -> None:
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()

    def position(self, partition: Partition) -> int | None:
        numbers = [n for p, n in self.numbers() if p == partition.id]
        return max(numbers, default=None)

    def numbers(self) -> list[tuple[str, int]]:
        """Give partition and number of everything that was ingested."""
        return [
            (batch.partition.id, number)
            for batch in self.batches
            for number in batch.sequence_numbers.tolist()
        ]

    def wait_for(self, partition: str, number: int) -> None:
        self.wait_until(lambda: (partition, number) in self.numbers())

    def wait_until(self, holds: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(holds, 20), f"never came: {self.calls}"


class Checkpoints(CheckpointStore):
    """A checkpoint store in memory, for several consumers; the newest claim counts."""

    def __init__(self, note: Callable[[str], None] = lambda _: None) -> None:
        self.owners: dict[str, dict[str, Any]] = {}
        self.written: list[tuple[str, int]] = []
        self._note = note
        self._lock = threading.Lock()

    def list_ownership(self, *_: str, **__: Any) -> Iterable[dict[str, Any]]:
        with self._lock:
            return [dict(one) for one in self.owners.values()]

    def claim_ownership(
        self, ownership_list: Iterable[dict[str, Any]], **_: Any
    ) -> Iterable[dict[str, Any]]:
        with self._lock:
            claimed = [self._claim(dict(one)) for one in ownership_list if self._may(one)]
        self._note("claim")
        return claimed

    def _may(self, asked: dict[str, Any]) -> bool:
        current = self.owners.get(asked["partition_id"])
        return current is None or current["etag"] == asked.get("etag")

    def _claim(self, asked: dict[str, Any]) -> dict[str, Any]:
        asked |= {"etag": object(), "last_modified_time": time.time()}
        self.owners[asked["partition_id"]] = asked
        return asked

    def update_checkpoint(self, checkpoint: dict[str, Any], **_: Any) -> None:
        self.written.append((checkpoint["partition_id"], checkpoint["sequence_number"]))
        self._note("checkpoint")

    def list_checkpoints(self, *_: str, **__: Any) -> Iterable[dict[str, Any]]:
        pytest.fail("the ledger tells where to go on")


@contextmanager
def consuming(
    server: AmqpServer,
    ingest: Recorder,
    checkpoints: CheckpointStore | None = None,
    position: Callable[[Partition], int | None] | None = None,
    *,
    join: bool = False,
) -> Iterator[list[Exception]]:
    """Consume in a thread for as long as the block; gives what the consumer raised."""
    raised: list[Exception] = []
    stop = threading.Event()
    consumer = EventHubConsumer(
        hub=hub_at(server),
        ingest=ingest,
        position=position or ingest.position,
        checkpoints=checkpoints,
        balance_interval=0.2,
        longest_wait=0.01,
    )

    def run() -> None:
        try:
            consumer(stop)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            raised.append(error)
            ingest.note("ended")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        stop.set()
        _ENDING.append(thread)
        if join:
            thread.join()


class TestConsuming:
    @pytest.mark.parametrize("partitions", [2])
    def test_all_partitions_are_read_from_their_beginning_and_then_on(
        self, server: AmqpServer
    ) -> None:
        ingest = Recorder()
        server.append(HUB, "0", [body(n) for n in range(2500)], {})
        with consuming(server, ingest) as raised:
            server.wait_until(lambda: bool(server.receivers(HUB, "1")))
            server.append(HUB, "1", [body(n) for n in range(5)], {})
            ingest.wait_until(lambda: len(ingest.numbers()) == 2505)

        everything = [("0", n) for n in range(2500)] + [("1", n) for n in range(5)]
        assert sorted(ingest.numbers()) == everything
        assert max(map(len, ingest.batches)) <= 1000
        assert raised == []

    def test_a_consumer_goes_on_where_the_ledger_is_and_counts_every_event_once(
        self, server: AmqpServer, tmp_path: Path
    ) -> None:
        database = Database.file(tmp_path / "store.db")
        migrate(database)
        store, blobs = SqlIngestStore(database), FolderBlobs(tmp_path)
        decoder = ReadingDecoder(FieldNames(), 300_000_000)
        handler = Ingest(store, blobs, decoder, 60_000_000, 0, raw_segments=False)
        reading = b'{"device":"a","sensor":"s","ts":%d,"value":1}' % NOW
        for attempt in (1, 2):
            server.append(HUB, "0", [reading] * 20, {})
            ingest = Recorder(before=handler)
            mark = partial(high_water_mark, store)
            with consuming(server, ingest, position=mark, join=attempt == 1):
                ingest.wait_for("0", 20 * attempt - 1)
            first = 0 if attempt == 1 else 19
            assert ingest.numbers() == [("0", n) for n in range(first, 20 * attempt)]

        assert store.partitions() == {P0: 0}
        assert store.gaps() == []
        assert high_water_mark(store, P0) == 39
        assert high_water_mark(store, Partition(HUB, "1")) is None
        database.close()

    def test_a_checkpoint_is_written_after_the_event_batch_was_ingested(
        self, server: AmqpServer
    ) -> None:
        ingest = Recorder([Transient("locked"), Transient("locked")])
        checkpoints = Checkpoints(ingest.note)
        server.append(HUB, "0", [b"a", b"b"], {})
        with consuming(server, ingest, checkpoints):
            ingest.wait_until(lambda: "checkpoint" in ingest.calls)

        calls = [call for call in ingest.calls if call != "claim"]
        assert calls == ["failed", "failed", "ingested", "checkpoint"]
        assert checkpoints.written == [("0", 1)]

    def test_what_cannot_be_ingested_stops_the_consumer_without_a_checkpoint(
        self, server: AmqpServer
    ) -> None:
        full = StorageUnusable("the disk is full")
        ingest, checkpoints = Recorder([full]), Checkpoints()
        server.append(HUB, "0", [b"a"], {})
        consumer = EventHubConsumer(
            hub=hub_at(server), ingest=ingest, position=lambda _: None, checkpoints=checkpoints
        )

        with pytest.raises(StorageUnusable, match="the disk is full"):
            consumer(threading.Event())
        assert checkpoints.written == []
        assert {one["owner_id"] for one in checkpoints.owners.values()} == {""}

    def test_a_stop_does_not_wait_for_a_database_that_is_away(self, server: AmqpServer) -> None:
        ingest = Recorder([Transient("away")] * 1000)
        server.append(HUB, "0", [b"a"], {})
        with stamina.set_testing(False), consuming(server, ingest, join=True) as raised:
            ingest.wait_until(lambda: len(ingest.calls) > 3)

        assert raised == []
        assert set(ingest.calls) == {"failed"}

    @pytest.mark.parametrize("partitions", [2])
    def test_two_consumers_share_the_partitions_and_one_takes_over_from_the_other(
        self, server: AmqpServer
    ) -> None:
        ingest = Recorder()
        checkpoints = Checkpoints(ingest.note)

        def owners() -> set[str]:
            return {one["owner_id"] for one in checkpoints.owners.values() if one["owner_id"]}

        with consuming(server, ingest, checkpoints):
            ingest.wait_until(lambda: len(checkpoints.owners) == 2)
            with consuming(server, ingest, checkpoints):
                ingest.wait_until(lambda: len(owners()) == 2)
            ingest.wait_until(lambda: len(owners()) == 1)
            server.append(HUB, "0", [b"a"], {})
            server.append(HUB, "1", [b"b"], {})
            ingest.wait_for("0", 0)
            ingest.wait_for("1", 0)

    def test_a_hub_that_was_made_anew_is_read_from_its_beginning(self, server: AmqpServer) -> None:
        ingest = Recorder()
        server.append(HUB, "0", [b"new"] * 3, {})
        with consuming(server, ingest, position=lambda _: 999):
            ingest.wait_until(lambda: len(ingest.numbers()) == 3)

        assert ingest.numbers() == [("0", 0), ("0", 1), ("0", 2)]

    def test_an_outage_of_the_hub_is_waited_out(self, server: AmqpServer) -> None:
        ingest = Recorder()
        server.append(HUB, "0", [b"before"], {})
        with consuming(server, ingest) as raised:
            ingest.wait_for("0", 0)
            server.stop()
            server.append(HUB, "0", [b"after"], {})
            server.start()
            ingest.wait_for("0", 1)

        assert raised == []

    def test_credentials_that_are_withdrawn_stop_the_consumer(self, server: AmqpServer) -> None:
        ingest = Recorder()
        with consuming(server, ingest) as raised:
            server.wait_until(lambda: bool(server.receivers(HUB, "0")))
            server.faults.refuse_links = "amqp:unauthorized-access"
            server.disconnect()
            ingest.wait_until(lambda: "ended" in ingest.calls)

        assert isinstance(raised[0], Misconfigured)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_stops_and_the_next_one_acts_as_ever(self, number: signal.Signals) -> None:
        before = signal.getsignal(number)
        with stopped_by_signals() as stop:
            assert signal.getsignal(number) != before
            os.kill(os.getpid(), number)
            assert stop.wait(20)
            assert signal.getsignal(number) == before


class TestReceivedEvents:
    def test_an_event_that_no_hub_sent_is_refused(self) -> None:
        with pytest.raises(UnreadableSource, match="x-opt-sequence-number"):
            event_batch([EventData(b"a")], P0)
