"""The function app on real parts: AMQP, Microsoft's worker, PostgreSQL and Azurite.

Only the Functions host is played by the test: it reads the event hub with the unpatched SDK, and
delivers an event batch again until the worker has taken it. What comes of it is held against the
same readings run embedded, on SQLite and a folder.
"""

import gc
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psycopg
import pytest
from azure.eventhub import EventData, PartitionContext
from sqlalchemy import func, select

from scoring import instants
from scoring.adapters.azure_blobs import AzureBlobs
from scoring.adapters.event_hub.connection import EventHub
from scoring.adapters.event_hub.sender import EventHubSender, Outgoing
from scoring.adapters.sql import schema
from scoring.adapters.sql.database import Database
from scoring.bootstrap import App, nonce, now
from scoring.fleet import Training
from scoring.handlers.fleets import CURRENT
from scoring.ports import Blobs
from scoring.queries import RunSummary
from scoring.readings import EventBatch, Partition
from scoring.settings import Settings
from scoring.simulation import SimulationSettings, simulate
from tests.adapters.engines import eventually
from tests.amqp.hub import Hub, Swallow
from tests.amqp.server import AmqpServer
from tests.servers import PostgreSql, azurite, postgresql
from tests.services import AZURITE, POSTGRESQL
from tests.worker.host import (
    HUB,
    SETTINGS,
    Answer,
    Worker,
    blob,
    event_batch,
    system_properties,
    timer,
)

SIMULATION = SimulationSettings(
    devices=6,
    sensors=2,
    start=datetime(2026, 1, 5, tzinfo=UTC),
    duration=timedelta(hours=2),
    pattern_period=timedelta(minutes=30),
    late=0.01,
    malformed=0.02,
)
"""Long final, whatever the clock says."""

BATCH = 30
"""Events that the host hands over at once: few, so that there are many event batches."""

EVERY, LATER = 20, 3
"""One event batch of so many (5 %) comes again, after so many more."""

OURS = {"SCORING_WINDOW": "1min", "SCORING_PART_ROWS": "300", "SCORING_PROCESSES": "1"}

pytestmark = [
    pytest.mark.exhaustive,
    # azure-eventhub leaves a socket open for the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    POSTGRESQL.needed(),
    AZURITE.needed(),
]


# The event hub and its host


class Event(NamedTuple):
    """An event as it was received; `enqueued` is epoch microseconds."""

    number: int
    enqueued: int
    body: bytes


@dataclass(frozen=True)
class Delivery:
    """An event batch of one partition."""

    partition: str
    events: Sequence[Event]

    def as_call(self) -> Any:
        """Make what the Functions host hands over."""
        system = [system_properties(one.number, _host_time(one.enqueued)) for one in self.events]
        return event_batch([one.body for one in self.events], system, self.partition)

    def as_batch(self) -> EventBatch:
        """Make what the embedded system ingests."""
        return EventBatch(
            Partition(HUB, self.partition),
            np.array([one.number for one in self.events]),
            np.array([one.enqueued for one in self.events]),
            [one.body for one in self.events],
        )


def _host_time(enqueued: int) -> str:
    """Write an enqueued time as the host does: UTC, without saying so."""
    return instants.moment(enqueued).replace(tzinfo=None).isoformat()


@dataclass
class Clock:
    """The time at the event hub, epoch milliseconds."""

    milliseconds: int = SIMULATION.begin // 1000

    def __call__(self) -> int:
        return self.milliseconds


@pytest.fixture(scope="module")
def hub() -> Iterator[AmqpServer]:
    """Give an event hub to which the simulated fleet has sent all it has."""
    clock = Clock()

    def spans() -> Iterator[list[Outgoing]]:
        for chunk in simulate(SIMULATION):
            # A batch is confirmed before the next one is made: all of this span are of this time.
            clock.milliseconds = chunk.end // 1000
            yield list(zip(chunk.device.tolist(), chunk.bodies, strict=True))

    with AmqpServer(Hub(HUB, SIMULATION.partitions, clock)) as server:
        with EventHubSender(_way(server)) as sender:
            sender.send(spans())
        yield server
        # azure-eventhub takes its time to let go of a receiver.
        gc.collect()


def _way(server: AmqpServer) -> EventHub:
    return EventHub(name=HUB, connection_string=server.connection_string)


def receive(server: AmqpServer, group: str) -> dict[str, list[Event]]:
    """Read all that a consumer group gets of the hub, by partition."""
    partitions = server.hubs[HUB].partitions
    open_ends = {name: one.end - 1 for name, one in partitions.items() if one.end}
    received: dict[str, list[Event]] = {name: [] for name in open_ends}
    is_done = threading.Event()

    def take(context: PartitionContext, events: list[EventData]) -> None:
        mine = received[context.partition_id]
        mine += [_event(one) for one in events]
        if mine[-1].number >= open_ends.get(context.partition_id, math.inf):
            del open_ends[context.partition_id]
        if not open_ends:
            is_done.set()

    client = _way(server).consumer(group, balance_interval=1.0)
    reader = threading.Thread(
        target=client.receive_batch, args=(take,), kwargs={"starting_position": "-1"}
    )
    reader.start()
    try:
        assert is_done.wait(30), f"never received: {open_ends}"
    finally:
        client.close()
        reader.join()
    return received


def _event(event: EventData) -> Event:
    assert event.enqueued_time is not None
    assert event.sequence_number is not None
    enqueued = instants.of(event.enqueued_time)
    return Event(event.sequence_number, enqueued, b"".join(event.raw_amqp_message.body))


def cut(received: dict[str, list[Event]]) -> list[Delivery]:
    """Cut into event batches; the partitions take turns."""
    queues = (
        [Delivery(name, events[at : at + BATCH]) for at in range(0, len(events), BATCH)]
        for name, events in received.items()
    )
    return [one for turn in zip_longest(*queues) for one in turn if one is not None]


# The same, embedded


@dataclass(frozen=True)
class Embedded:
    """What the embedded system made of the readings, and the fleet that it was trained."""

    tables: dict[str, list[tuple[Any, ...]]]
    run: RunSummary
    blobs: Blobs


@pytest.fixture(scope="module")
def embedded(hub: AmqpServer, tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    """Run the readings on SQLite and a folder, undisturbed."""
    folder = tmp_path_factory.mktemp("embedded")
    of_hub = {"SCORING_EVENT_HUB": HUB, "SCORING_EVENT_HUB_CONNECTION": hub.connection_string}
    with App(Settings.load(OURS | of_hub | {"SCORING_DATA": str(folder)})) as app:
        ingest = app.ingest()
        for one in cut(receive(hub, "embedded")):
            ingest(one.as_batch())
        until, features = SIMULATION.training_end, ("mean", "std")
        trained = app.train(features, Training(), until, now(), lambda done, total: None)
        run = app.submit("test", trained.version, now(), nonce())
        assert run is not None
        app.see_through(run, now, lambda done, total: None)
        summary, blobs = app.queries.run(run.run_id), app.blobs
        url = app.database.url
    return Embedded(tables(url), summary, blobs)


def tables(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Give all that must depend on nothing but the events."""
    window, said = schema.window_partials.c, schema.predictions.c
    progress, kept = schema.partitions.c, schema.segments.c
    statements = {
        "windows": select(
            *(window.device, window.sensor, window.window_start, window.partition, window.count),
            *(window.min, window.max, window.last, window.last_time, window.claimed_by.is_(None)),
            *(window.mean, window.m2),
        ),
        "partitions": select(*(one for one in progress if one is not progress.late)),
        # A reading is late by what came before it.
        "late": select(progress.partition, progress.late),
        "epochs": select(schema.epochs),
        "gaps": select(schema.gaps),
        "rejects": select(schema.rejects),
        "predictions": select(
            *(said.device, said.sensor, said.window_start, said.status, said.is_anomaly),
            *(said.reason, said.anomaly_score),
        ),
        "segments": select(kept.partition, func.sum(kept.readings)).group_by(kept.partition),
        "runs": select(schema.runs.c.state),
    }
    with closing(Database(url)) as database, database.read() as connection:
        return {
            name: sorted(map(tuple, connection.execute(statement)), key=lambda row: row[:4])
            for name, statement in statements.items()
        }


def assert_same(found: dict[str, Any], wanted: dict[str, Any], *but: str) -> None:
    """Compare tables: all that is computed to 1e-12, all else exactly."""
    for name in wanted.keys() - set(but):
        assert len(found[name]) == len(wanted[name]), name
        for row, other in zip(found[name], wanted[name], strict=True):
            # Of windows the mean and M2 are computed, of predictions the score.
            exact = {"windows": 10, "predictions": 6}.get(name, len(row))
            assert row[:exact] == other[:exact], name
            assert all(map(_is_close, row[exact:], other[exact:])), (name, row, other)


def _is_close(value: float | None, other: float | None) -> bool:
    if value is None or other is None:
        return value is other
    return math.isclose(value, other, rel_tol=1e-12, abs_tol=1e-12)


# The function app


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSql]:
    """Run PostgreSQL."""
    with postgresql() as running:
        yield running


@pytest.fixture(scope="module")
def settings(hub: AmqpServer) -> Iterator[dict[str, str]]:
    """Give the settings of a function app with its event hub, and with Azurite, which runs."""
    with azurite() as account:
        yield SETTINGS | OURS | {
            "EVENT_HUB": hub.connection_string,
            "STORAGE": account,
            "BLOB_TRIGGER_SOURCE": "LogsAndContainerScan",
            "SCORING_STORAGE": account,
        }  # fmt: skip


class System:
    """A function app with a database and a container of its own, and its host.

    Its worker can be killed: `worker` is then the next one.
    """

    def __init__(
        self, name: str, server: PostgreSql, settings: dict[str, str], fleets: Blobs
    ) -> None:
        server.execute(f"CREATE DATABASE {name}")
        self.name, self.server = name, server
        self.url = server.url(name)
        self.blobs = AzureBlobs.connect(settings["STORAGE"], name)
        self._publish(fleets)
        own = ("EVENT_HUB_CONSUMER_GROUP", "SCORING_CONTAINER")
        self._settings = settings | dict.fromkeys(own, name) | {"SCORING_DATABASE": self.url}
        self.worker = Worker(self._settings)
        self.kills = self.restarts = 0

    def invoke(self, function: str, call: Any) -> Answer:
        """Invoke a function that has to succeed."""
        answer = self.worker.invoke(function, call)
        assert answer.error == ""
        return answer

    def deliver(self, delivery: Delivery) -> int:
        """Deliver an event batch that has to be taken; gives how many were taken before."""
        answer = self.invoke("ingest_readings", delivery.as_call())
        return int(answer.facts("ingest.batch")["duplicates"])

    def kill(self) -> None:
        """End the worker at once, and start another one."""
        self.worker.kill()
        self.worker = Worker(self._settings)
        self.kills += 1

    def kill_while(self, delivery: Delivery, table: str) -> None:
        """Kill the worker while it waits for a table in the midst of its transaction."""
        with self._stuck(delivery, table) as invocation:
            self.worker.kill()
            invocation.join()
        self.kill()

    def restart_database(self) -> None:
        """Stop PostgreSQL, as an operator does, and start it again."""
        self.server.stop("fast")
        self.server.start()
        self.restarts += 1

    def restart_database_while(self, delivery: Delivery, table: str) -> Answer:
        """Restart PostgreSQL while the worker waits for a table in its transaction."""
        with self._stuck(delivery, table) as invocation:
            self.restart_database()
            invocation.join()
        (answer,) = invocation.answers
        return answer

    def get(self, path: str) -> dict[str, Any]:
        """Ask the HTTP API for what it has to have."""
        status, document = self.worker.request("GET", path)
        assert status == 200
        return dict(document)

    def score(self, *, is_killed: bool = False) -> dict[str, Any]:
        """Let the triggers score all that is pending; gives the run as the API shows it.

        Parameters
        ----------
        is_killed
            Kill the worker once it has submitted the run: the engine is in it, and dies too.
        """
        facts = self.invoke("submit_scoring_run", timer()).facts("submit.run")
        run, state = facts["run"], facts["state"]
        assert state == "submitted"
        if is_killed:
            self.kill()
            # It finds that the engine knows no such run.
            self.invoke("watch_runs", timer())
        parts = self.get(f"/api/runs/{run}")["parts"]
        prefix = f"predictions/{run}/"
        eventually(lambda: len(list(self.blobs.list(prefix))) == parts)
        for one in self.blobs.list(prefix):
            call = blob(one.name, self.blobs.read(one.name)[0], self.name)
            assert self.invoke("index_predictions", call).facts("index.part")["new"]

        def is_completed() -> bool:
            seen = self.invoke("watch_runs", timer()).facts("watch.runs")["runs"]
            return bool(seen[run] == "completed")

        eventually(is_completed)
        return self.get(f"/api/runs/{run}")

    def close(self) -> None:
        """End the worker."""
        self.worker.close()

    def _publish(self, fleets: Blobs) -> None:
        """Put fleets in place that were published elsewhere."""
        names = [one.name for one in fleets.list("fleets/") if one.name != CURRENT]
        for name in (*names, CURRENT):
            self.blobs.write(name, fleets.read(name)[0])

    @contextmanager
    def _stuck(self, delivery: Delivery, table: str) -> Iterator["Invocation"]:
        """Have the worker wait for a table within its transaction."""
        with closing(psycopg.connect(self.url)) as rival:
            rival.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
            invocation = Invocation(self.worker, delivery)
            invocation.start()
            eventually(lambda: self._waiting() == 1)
            yield invocation

    def _waiting(self) -> int:
        with psycopg.connect(self.url) as connection:
            found = connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND datname = current_database()"
            ).fetchone()
        assert found is not None
        return int(found[0])


class Invocation(threading.Thread):
    """The delivery of an event batch to a worker that may not live to answer."""

    def __init__(self, worker: Worker, delivery: Delivery) -> None:
        super().__init__()
        self._worker, self._delivery = worker, delivery
        self.answers: list[Answer] = []

    def run(self) -> None:
        with suppress(EOFError, ConnectionResetError):
            answer = self._worker.invoke("ingest_readings", self._delivery.as_call())
            self.answers.append(answer)


@pytest.fixture
def system(
    request: pytest.FixtureRequest,
    server: PostgreSql,
    settings: dict[str, str],
    embedded: Embedded,
    tmp_path: Path,
) -> Iterator[System]:
    """Start the function app, with the fleet that was trained embedded."""
    data = {"SCORING_DATA": str(tmp_path / "work")}
    with closing(System(request.param, server, settings | data, embedded.blobs)) as system:
        yield system


def assert_shown(system: System, run: dict[str, Any], embedded: Embedded) -> None:
    """Compare what the HTTP API shows with what the embedded system counted."""
    of_run = ("windows", "parts", "indexed_parts", "indexed", "scored", "anomalies")
    assert [run[name] for name in of_run] == [getattr(embedded.run, name) for name in of_run]
    assert run["state"] == "completed"
    shown = system.get("/api/partitions?limit=100")["items"]
    counts = ("partition", "events", "readings", "rejects", "missing")
    assert [tuple(one[name] for name in counts) for one in shown] == [
        (row[0], *row[4:7], 0) for row in embedded.tables["partitions"]
    ]
    anomalies = system.get(f"/api/anomalies?run={run['run_id']}&limit=1000")["items"]
    assert len(anomalies) == embedded.run.anomalies
    rejects = system.get("/api/rejects?limit=1000")["items"]
    assert len(rejects) == len(embedded.tables["rejects"])


@pytest.mark.parametrize("system", ["calm"], indirect=True)
def test_the_function_app_on_real_parts_counts_and_scores_as_the_embedded_system(
    system: System, hub: AmqpServer, embedded: Embedded
) -> None:
    for one in cut(receive(hub, system.name)):
        system.deliver(one)

    run = system.score()

    assert_shown(system, run, embedded)
    assert_same(tables(system.url), embedded.tables)
    # It would be nothing to be equal if nothing were there.
    assert {row[3] for row in embedded.tables["predictions"]} == {"scored"}
    assert len(embedded.tables["rejects"]) > 20
    assert 0 < embedded.run.anomalies < embedded.run.windows / 2
    assert embedded.run.parts > 2


@pytest.mark.parametrize("system", ["rough"], indirect=True)
def test_redeliveries_kills_restarts_and_a_swallowed_event_batch_change_no_table(
    system: System, hub: AmqpServer, embedded: Embedded
) -> None:
    first, last = 5 * BATCH, 6 * BATCH - 1
    swallowed = Partition(HUB, embedded.tables["epochs"][0][0].rpartition("/")[2])
    hub.swallow(HUB, Swallow(system.name, swallowed.id, first, last))
    batches = cut(receive(hub, system.name))
    again = _deliver_roughly(system, batches)

    assert (system.kills, system.restarts) == (3, 2)
    assert again == len(batches) // EVERY > 3
    assert _missing(system) == {str(swallowed): BATCH}
    repaired = system.invoke("repair_gaps", timer()).facts("repair.gaps")
    assert (repaired["events"], repaired["missing"]) == (BATCH, -BATCH)
    assert _missing(system) == {}

    run = system.score(is_killed=True)

    assert_shown(system, run, embedded)
    found = tables(system.url)
    assert_same(found, embedded.tables, "gaps", "late")
    assert found["gaps"] == [(str(swallowed), 0, first, last, "repaired")]


def _missing(system: System) -> dict[str, int]:
    shown = system.get("/api/partitions?limit=100")["items"]
    return {one["partition"]: one["missing"] for one in shown if one["missing"]}


def _deliver_roughly(system: System, batches: list[Delivery]) -> int:
    """Deliver all, with everything that goes wrong; gives how many came again for no reason.

    Whatever was in flight when something went wrong is delivered again.
    """
    tenth, again = len(batches) // 10, 0
    for place, batch in enumerate(batches):
        taken = 0
        if place == tenth:
            system.kill_while(batch, "epochs")
        elif place == 3 * tenth:
            # It is applied, but the host does not hear of it.
            system.deliver(batch)
            system.kill()
            taken = len(batch.events)
        elif place == 5 * tenth:
            system.kill_while(batch, "window_partials")
        elif place == 7 * tenth:
            assert _taken(_refused(system, batch), batch) == 0
        elif place == 8 * tenth:
            taken = _taken(system.restart_database_while(batch, "window_partials"), batch)
        assert system.deliver(batch) == taken
        if place % EVERY == EVERY - 1:
            once_more = _cut_elsewhere(batches[: place - LATER + 1])
            assert system.deliver(once_more) == len(once_more.events)
            again += 1
    return again


def _refused(system: System, delivery: Delivery) -> Answer:
    """Deliver while PostgreSQL is stopped."""
    system.server.stop("fast")
    answer = system.worker.invoke("ingest_readings", delivery.as_call())
    system.server.start()
    system.restarts += 1
    return answer


def _taken(answer: Answer, delivery: Delivery) -> int:
    """Tell how much was taken: all, by trying again, or nothing, and the host delivers again."""
    if not answer.error:
        return len(delivery.events)
    assert answer.error.startswith("Transient"), answer.error
    return 0


def _cut_elsewhere(delivered: Sequence[Delivery]) -> Delivery:
    """Give the newest event batch again, from within the one before it of the same partition."""
    newest = delivered[-1]
    before = next(one for one in delivered[-2::-1] if one.partition == newest.partition)
    events = [*before.events[BATCH // 2 :], *newest.events]
    # No hub delivers a hole.
    is_whole = events[-1].number - events[0].number == len(events) - 1
    return Delivery(newest.partition, events if is_whole else newest.events)
