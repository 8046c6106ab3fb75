"""Event Hubs over real sockets: the SDK, which only sleeps less, against `tests.amqp`'s server."""

import gc
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np
import pytest
import stamina
from azure.eventhub import CheckpointStore, EventData, EventDataBatch

from scoring import instants
from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.event_hub import log as event_hub_log
from scoring.adapters.event_hub.connection import EventHub
from scoring.adapters.event_hub.consumer import (
    EventHubConsumer,
    high_water_mark,
    stopped_by_signals,
)
from scoring.adapters.event_hub.log import EventHubLog
from scoring.adapters.event_hub.received import event_batch
from scoring.adapters.event_hub.sender import (
    MAX_EVENTS,
    EventHubSender,
    Oversized,
    SendProgress,
)
from scoring.adapters.event_log import FolderEventLog
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.migrations import migrate
from scoring.bootstrap import App
from scoring.cli import main
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
from scoring.readings import EventBatch, Partition, ReadingDecoder
from scoring.settings import Settings
from scoring.windows import Windowing
from tests.amqp.codec import decode_message
from tests.amqp.hub import Hub, Swallow
from tests.amqp.sdk import hurried
from tests.amqp.server import BUSY, AmqpServer
from tests.fakes.event_log import oldest

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
    with stamina.set_testing(True, attempts=5), hurried():
        yield


def hub_at(server: AmqpServer, name: str = HUB, retries: int = 0) -> EventHub:
    """Give the way to a hub, for a client that does not wait before it tries again."""
    way = server.connection_string
    return EventHub(name=name, connection_string=way, retries=retries, backoff=0.001)


def body(number: int) -> bytes:
    return b"" if number % 7 == 0 else b'{"n":%d}\xff' % number


def reading(number: int) -> bytes:
    return b'{"device":"a","sensor":"s","ts":%d,"value":1}' % (NOW + number)


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


def kept(server: AmqpServer) -> list[tuple[str, bytes]]:
    """Give partition and body of all events that a hub holds, in order."""
    return [
        (partition, b"".join(decode_message(event.payload).data))
        for partition, place in server.hubs[HUB].partitions.items()
        for event in place.events
    ]


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

        assert oldest(filled.log, P0) == 1000
        assert events_of(filled.log.read(P0, 900, 5000)) == expected(1000, 1199)
        assert events_of(filled.log.read(P0, 10, 999)) == []

    def test_says_of_an_empty_partition_that_nothing_is_there(self, filled: FilledLog) -> None:
        assert oldest(filled.log, P0) is None
        assert list(filled.log.read(P0, 0, 10)) == []

    def test_gives_nothing_beyond_the_end(self, filled: FilledLog) -> None:
        filled.fill(10)

        assert oldest(filled.log, P0) == 0
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
            EventHubLog(hub_at(server)).look(Partition("other", "0"))


class TestRepairing:
    def test_gaps_of_partitions_that_a_smaller_hub_no_longer_has_are_lost_and_others_repaired(
        self, server: AmqpServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.append(HUB, "0", [reading(n) for n in range(6)], {})
        given = {
            "SCORING_DATA": str(tmp_path),
            "SCORING_EVENT_HUB": HUB,
            "SCORING_EVENT_HUB_CONNECTION": server.connection_string,
        }
        with App(Settings.load(given)) as app:
            app.__dict__["hub"] = hub_at(server)
            for partition in ("0", "7"):
                numbers = np.array([0, 5])
                bodies = [reading(0), reading(5)]
                times = np.full(2, NOW * 1000)
                app.ingest()(EventBatch(Partition(HUB, partition), numbers, times, bodies))

            outcome = app.repair_gaps(NOW * 1000)
            found = {(str(g.partition), g.state, g.first, g.last) for g in app.ingest_store.gaps()}

        assert outcome.readings == 4
        assert found == {("readings/0", "repaired", 1, 4), ("readings/7", "lost", 1, 4)}
        (lost,) = [vars(one) for one in caplog.records if one.getMessage() == "repair.lost"]
        assert (lost["partition"], lost["events"], lost["levelname"]) == ("7", 4, "WARNING")


class TestWhenAHubWasCreated:
    def test_many_who_ask_at_once_are_one_question(
        self, server: AmqpServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []
        answer = AmqpServer.answer

        def count(self: AmqpServer, address: str, given: dict[str, Any]) -> tuple[int, str, Any]:
            asked.append(address)
            return answer(self, address, given)

        monkeypatch.setattr(AmqpServer, "answer", count)
        log = EventHubLog(hub_at(server))

        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _: log.created_at(), range(8)))

        assert found == {server.hubs[HUB].created_at * 1000}
        assert asked.count("$management") == 1

    def test_one_that_was_created_again_is_noticed_a_second_later(
        self, server: AmqpServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [0.0]
        monkeypatch.setattr(event_hub_log, "monotonic", lambda: clock[0])
        log = EventHubLog(hub_at(server))
        before = log.created_at()
        server.hubs[HUB].created_at += 5000

        assert log.created_at() == before
        clock[0] = 1.1
        assert log.created_at() == (before or 0) + 5 * instants.SECOND


class TestWhatCannotBeReached:
    def test_a_hub_that_does_not_exist_is_not_found(self, server: AmqpServer) -> None:
        with pytest.raises(NotFound, match=r"nothing: .*404"):
            EventHubLog(hub_at(server, "nothing")).look(Partition("nothing", "0"))

    @pytest.mark.parametrize("status", [404, 400])
    def test_a_partition_that_the_hub_does_not_have_retains_nothing(
        self, server: AmqpServer, monkeypatch: pytest.MonkeyPatch, status: int
    ) -> None:
        answer = AmqpServer.answer

        def refuse(self: AmqpServer, address: str, asked: dict[str, Any]) -> tuple[int, str, Any]:
            said = answer(self, address, asked)
            return (status, *said[1:]) if said[0] == 404 else said

        monkeypatch.setattr(AmqpServer, "answer", refuse)
        log = EventHubLog(hub_at(server))

        assert log.look(Partition(HUB, "7")) is None
        assert list(log.read(Partition(HUB, "7"), 0, 10)) == []

    def test_gaps_of_a_hub_that_does_not_exist_are_not_lost(self, server: AmqpServer) -> None:
        server.hubs["other"] = server.hubs.pop(HUB)

        with pytest.raises(NotFound, match=r"readings: .*404"):
            EventHubLog(hub_at(server)).look(P0)

    def test_a_check_names_what_is_wrong(self, server: AmqpServer) -> None:
        hub_at(server).check()
        with pytest.raises(NotFound, match="event hub nothing"):
            hub_at(server, "nothing").check()
        server.stop()
        with pytest.raises(Transient, match="event hub readings"):
            hub_at(server, retries=3).check()

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

    def test_checkpoints_may_be_on_azurite_by_its_short_name(
        self, server: AmqpServer, tmp_path: Path
    ) -> None:
        given = {"SCORING_DATA": str(tmp_path), "SCORING_STORAGE": "UseDevelopmentStorage=true"}
        with App(Settings.load(given)) as app:
            app.__dict__ |= {"blobs": FolderBlobs(tmp_path), "hub": hub_at(server)}
            server.stop()
            with pytest.raises(Transient, match="event hub readings"):
                app.consume(threading.Event())

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
        EventHubLog(hub).look(P0)
    elif use == "send":
        with EventHubSender(hub) as sender:
            sender.send([[("a", b"1")]])
    else:
        EventHubConsumer(hub=hub, ingest=Recorder(), position=lambda _: None)(threading.Event())


DEVICES = [f"device-{number}" for number in range(5)]


def chunks() -> list[list[tuple[str, bytes]]]:
    """Make three chunks of events of five devices, large enough for several batches each."""
    return [
        [(DEVICES[n % 5], b"%d %d %d" % (n % 5, chunk, n) + b"." * 400) for n in range(400)]
        for chunk in range(3)
    ]


def bodies() -> list[bytes]:
    return [data for chunk in chunks() for _, data in chunk]


class TestSending:
    @pytest.fixture
    def partitions(self) -> int:
        return 4

    def test_a_partitions_events_come_in_their_order_and_a_devices_into_one(
        self, server: AmqpServer
    ) -> None:
        with EventHubSender(hub_at(server)) as sender:
            outcome = sender.send(chunks())

        assert (outcome.sent, outcome.skipped, outcome.oversized) == (1200, 0, [])
        place = {name: server.hubs[HUB].partition_of(name) for name in DEVICES}
        for partition in server.hubs[HUB].partitions:
            own = [d for chunk in chunks() for name, d in chunk if place[name] == partition]
            assert [data for one, data in kept(server) if one == partition] == own

    def test_batches_are_full_with_the_events_of_many_devices(self, server: AmqpServer) -> None:
        server.max_message_size = 1024 * 1024
        fleet = [[(f"device-{n % 200}", b"%d" % n) for n in range(10_000)]]

        with EventHubSender(hub_at(server)) as sender:
            outcome = sender.send(fleet)

        assert outcome.sent == 10_000
        # The last batch of a partition holds what is left.
        assert outcome.batches <= 10_000 / MAX_EVENTS + 4

    def test_a_batch_of_each_partition_is_under_way_and_no_second_one(
        self, server: AmqpServer
    ) -> None:
        names = {server.hubs[HUB].partition_of(f"d{n}"): f"d{n}" for n in range(20)}.values()
        sender = EventHubSender(hub_at(server))
        send, lock, all_at_once = sender.try_to_send, threading.Lock(), threading.Barrier(4)
        under_way: list[str] = []

        def watched(batch: EventDataBatch) -> None:
            partition = str(batch._partition_id)
            with lock:
                assert partition not in under_way
                under_way.append(partition)
            all_at_once.wait(20)
            send(batch)
            with lock:
                under_way.remove(partition)

        sender.try_to_send = watched  # type: ignore[method-assign]
        with sender:
            outcome = sender.send([[(name, b"%d" % n) for n in range(1500) for name in names]])

        assert (len(names), outcome.sent) == (4, 6000)

    def test_a_sender_that_was_stopped_goes_on_where_it_was(
        self, server: AmqpServer, tmp_path: Path
    ) -> None:
        def stop(done: int) -> None:
            if done >= 300:
                raise KeyboardInterrupt

        with EventHubSender(hub_at(server)) as sender, pytest.raises(KeyboardInterrupt):
            sender.send(chunks(), SendProgress(tmp_path / "sent.json", {"seed": 1}), stop)
        progress = SendProgress(tmp_path / "sent.json", {"seed": 1})
        before = len(kept(server))
        with EventHubSender(hub_at(server)) as sender:
            outcome = sender.send(chunks(), progress)

        assert 300 <= before < 1200
        assert (outcome.skipped, outcome.sent) == (before, 1200 - before)
        assert sorted(data for _, data in kept(server)) == sorted(bodies())
        again = SendProgress(tmp_path / "sent.json", {"seed": 1})
        assert sum(again.confirmed.values()) == 1200

    def test_a_kill_repeats_one_batch_of_a_partition_at_most_and_leaves_none_out(
        self, server: AmqpServer, tmp_path: Path
    ) -> None:
        """The batches under way arrive, and the process dies before it notes one of them."""
        path = tmp_path / "sent.json"

        class Killed(SendProgress):
            def confirm(self, partition: str, events: int) -> None:
                if sum(self.confirmed.values()) > 300:
                    raise SystemExit
                super().confirm(partition, events)

        sender = EventHubSender(hub_at(server))
        with sender, pytest.raises(SystemExit):
            sender.send(chunks(), Killed(path, {}))
        noted = SendProgress(path, {}).confirmed
        arrived = Counter(partition for partition, _ in kept(server))
        with EventHubSender(hub_at(server)) as sender:
            outcome = sender.send(chunks(), SendProgress(path, {}))

        twice = Counter(data for _, data in kept(server))
        assert outcome.skipped == sum(noted.values()) < sum(arrived.values())
        assert set(twice) == set(bodies())
        assert set(twice.values()) == {1, 2}
        # About 40 of these events are a batch.
        assert all(0 <= arrived[one] - noted.get(one, 0) < 60 for one in arrived)

    def test_what_arrived_is_noted_though_another_partition_failed(
        self, server: AmqpServer, tmp_path: Path
    ) -> None:
        sender = EventHubSender(hub_at(server))
        send, lost = sender.try_to_send, server.hubs[HUB].partition_of(DEVICES[0])

        def failing(batch: EventDataBatch) -> None:
            if batch._partition_id == lost:
                raise Misconfigured(["refused"])
            send(batch)

        sender.try_to_send = failing  # type: ignore[method-assign]
        with sender, pytest.raises(Misconfigured):
            sender.send(chunks(), SendProgress(tmp_path / "sent.json", {}))

        confirmed = SendProgress(tmp_path / "sent.json", {}).confirmed
        assert confirmed
        assert confirmed == Counter(partition for partition, _ in kept(server))

    def test_events_that_no_batch_holds_are_reported_and_their_neighbours_sent(
        self, server: AmqpServer, tmp_path: Path
    ) -> None:
        large = b"x" * 20_000
        events = [("a", b"1"), ("b", large), ("a", large), ("a", b"2")]
        progress = SendProgress(tmp_path / "sent.json", {})
        with EventHubSender(hub_at(server)) as sender:
            outcome = sender.send([events], progress)

        assert outcome.oversized == [Oversized(1, "b", 20_000), Oversized(2, "a", 20_000)]
        assert (outcome.sent, sum(progress.confirmed.values())) == (2, 4)
        assert [data for _, data in kept(server)] == [b"1", b"2"]

    def test_a_busy_hub_gets_each_event_once_in_the_end(self, server: AmqpServer) -> None:
        server.faults.reject_sends, server.faults.reject_with = 5, BUSY
        with EventHubSender(hub_at(server)) as sender:
            outcome = sender.send([[("a", b"1"), ("b", b"2")]])

        assert outcome.sent == 2
        assert sorted(data for _, data in kept(server)) == [b"1", b"2"]

    def test_an_answer_that_is_lost_repeats_one_batch_and_loses_none(
        self, server: AmqpServer
    ) -> None:
        server.faults.lose_sends = 1
        with EventHubSender(hub_at(server)) as sender:
            sender.send([[(DEVICES[0], b"1"), (DEVICES[1], b"2")]])

        found = Counter(data for _, data in kept(server))
        assert sorted(found.values()) == [1, 2]
        assert set(found) == {b"1", b"2"}

    def test_a_hub_that_was_made_anew_is_another_one(self, server: AmqpServer) -> None:
        with EventHubSender(hub_at(server)) as sender:
            first = sender.facts
        server.hubs[HUB].clock = lambda: NOW + 1000
        server.recreate(HUB)
        with EventHubSender(hub_at(server)) as sender:
            second = sender.facts

        assert first.partitions == second.partitions == ("0", "1", "2", "3")
        assert first.created_at != second.created_at

    def test_progress_of_other_events_or_hubs_is_not_gone_on_with(self, tmp_path: Path) -> None:
        plan = {"seed": 1, "when": (1, 2), "created": "then"}
        SendProgress(tmp_path / "sent.json", plan).confirm("0", 3)

        assert SendProgress(tmp_path / "sent.json", plan).confirmed == {"0": 3}
        for other in ({"seed": 2}, {"created": "now"}):
            (name,) = other
            with pytest.raises(Conflict, match=rf"sent\.json.*\({name}\).*--restart"):
                SendProgress(tmp_path / "sent.json", plan | other)

    @pytest.mark.parametrize(
        "content",
        [b"", b"[]", b"{}", b"\xff", b'{"plan":{},"confirmed":"x"}', b'{"plan":{},"confirmed":3}'],
    )
    def test_progress_that_is_damaged_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "sent.json").write_bytes(content)

        with pytest.raises(StorageUnusable, match=r"sent\.json"):
            SendProgress(tmp_path / "sent.json", {})


def command(*arguments: object) -> str:
    """Run the command line; gives what it fails with, empty if it does not."""
    with mock.patch.object(sys, "argv", ["scoring", *map(str, arguments)]):
        try:
            main()
        except SystemExit as end:
            return str(end.code or "")
    return ""


def _is_json(body: bytes) -> bool:
    with suppress(ValueError):
        return isinstance(json.loads(body), dict)
    return False


class TestSimulating:
    @pytest.fixture
    def send(
        self, server: AmqpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., str]:
        """Give the command, which has a small fleet."""
        for name in [name for name in os.environ if name.startswith("SCORING_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("SCORING_EVENT_HUB", HUB)
        monkeypatch.setenv("SCORING_EVENT_HUB_CONNECTION", server.connection_string)
        fleet = ("--devices", 2, "--sensors", 1, "--duration", "10min")
        return partial(command, "--data", tmp_path, "simulate", "--to-event-hub", *fleet)

    def test_what_was_sent_is_not_sent_again_unless_it_is_asked_for(
        self, server: AmqpServer, send: Callable[..., str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert send() == ""
        events = len(kept(server))
        assert send() == ""
        assert f"{events} were sent before" in capsys.readouterr().out
        assert len(kept(server)) == events > 20
        assert send("--restart") == ""
        assert len(kept(server)) == 2 * events

    def test_its_times_end_at_the_present_and_stay_when_it_goes_on(
        self, server: AmqpServer, send: Callable[..., str], tmp_path: Path
    ) -> None:
        before = instants.of(datetime.now(UTC)) - 2 * instants.SECOND
        assert send() == ""
        after = instants.of(datetime.now(UTC))

        (note,) = tmp_path.glob("sent.json")
        start = instants.of(datetime.fromisoformat(json.loads(note.read_text())["plan"]["start"]))
        assert before <= start + 600 * instants.SECOND <= after
        taken = [
            instants.of(datetime.fromisoformat(json.loads(body)["ts"]))
            for _, body in kept(server)
            if b'"ts":"' in body and _is_json(body)
        ]
        assert len(taken) > 20
        assert all(start <= time <= start + 600 * instants.SECOND for time in taken)

        assert send() == ""
        assert json.loads(note.read_text())["plan"]["start"] == str(instants.moment(start))

    def test_a_hub_that_was_made_anew_is_not_taken_for_the_one_that_has_the_events(
        self, server: AmqpServer, send: Callable[..., str]
    ) -> None:
        assert send() == ""
        events = len(kept(server))
        server.hubs[HUB].clock = lambda: NOW + 1000
        server.recreate(HUB)

        said = send()

        assert "another hub (created)" in said
        assert "--restart" in said
        assert kept(server) == []
        assert send("--restart") == ""
        assert len(kept(server)) == events

    def test_another_seed_is_told_what_to_do(self, send: Callable[..., str]) -> None:
        assert send() == ""

        said = send("--seed", 2)

        assert "(seed)" in said
        assert "--restart" in said

    def test_only_what_is_sent_can_be_begun_anew(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert command("simulate", "--out", tmp_path / "out", "--restart") == "2"
        assert "--to-event-hub" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


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
        decoder = ReadingDecoder()
        handler = Ingest(
            store, blobs, decoder, Windowing(60_000_000, 0, 60_000_000), raw_segments=False
        )
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
