"""The function app under Microsoft's production worker, with what the host would hand over."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scoring import bootstrap, instants
from scoring.adapters.blobs import FolderBlobs
from scoring.api import create_api
from scoring.bootstrap import App
from scoring.errors import Misconfigured, StorageUnusable
from scoring.fleet import Model, Training, train_model
from scoring.hosting import HostedApp
from scoring.settings import HostSettings, Settings
from tests.adapters.engines import eventually
from tests.amqp.hub import Hub
from tests.amqp.server import AmqpServer
from tests.api.conftest import Client
from tests.worker.host import (
    HUB,
    ROOT,
    SETTINGS,
    Answer,
    Worker,
    blob,
    event_batch,
    http,
    system_properties,
    timer,
)

BEGIN = 1_577_836_800 * instants.SECOND
"""2020-01-01: long final, whatever the clock says."""

HEAVY = ("sqlalchemy", "fastapi", "sklearn", "pandas", "azure.eventhub", "azure.storage.blob")


hurried_worker = partial(Worker, is_hurried=True)


def settings(folder: Path, **others: str) -> dict[str, str]:
    """Make the settings of an app whose data are in a folder of its own."""
    return SETTINGS | {"SCORING_DATA": str(folder), "SCORING_WINDOW": "1min"} | others


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the data folder of the worker, with a fleet."""
    folder = tmp_path_factory.mktemp("app") / "data"
    with App(Settings.load({"SCORING_DATA": str(folder), "SCORING_WINDOW": "1min"})) as app:
        model = train_model(np.random.default_rng(1).normal(3, 2, (40, 1)), Training())
        app.shelf.publish([Model("d1", "s1", model)], ("mean",), instants.moment(BEGIN))
    return folder


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[Worker]:
    with hurried_worker(settings(folder)) as worker:
        yield worker


def reading(minute: int = 0, **others: Any) -> bytes:
    return json.dumps(
        {"device": "d1", "sensor": "s1", "ts": f"2020-01-01T00:{minute:02}:30Z", "value": minute}
        | others
    ).encode()


def numbered(first: int, count: int, **others: Any) -> list[dict[str, Any]]:
    times = [f"2020-01-01T00:{minute:02}:31" for minute in range(count)]
    return [system_properties(first + i, time, **others) for i, time in enumerate(times)]


def ingest(worker: Worker, partition: str, *events: tuple[bytes, dict[str, Any]]) -> Answer:
    """Deliver an event batch that has to be taken."""
    bodies, system = zip(*events, strict=True)
    answer = worker.invoke("ingest_readings", event_batch(bodies, system, partition))
    assert answer.error == ""
    return answer


def partition(worker: Worker, name: str) -> dict[str, Any]:
    status, page = worker.request("GET", "/api/partitions?limit=100")
    assert status == 200
    (found,) = [one for one in page["items"] if one["partition"] == f"{HUB}/{name}"]
    return dict(found)


def rejects(worker: Worker, name: str) -> list[tuple[int, str]]:
    _, page = worker.request("GET", "/api/rejects?limit=100")
    return [
        (one["sequence_number"], one["reason"])
        for one in page["items"]
        if one["partition"] == f"{HUB}/{name}"
    ]


# Indexing


def test_the_worker_indexes_and_loads_every_function(worker: Worker) -> None:
    triggers = {name: told["bindings"][0] for name, told in worker.functions.items()}

    assert {name: trigger["type"] for name, trigger in triggers.items()} == {
        "ingest_readings": "eventHubTrigger",
        "repair_gaps": "timerTrigger",
        "submit_scoring_run": "timerTrigger",
        "watch_runs": "timerTrigger",
        "index_predictions": "blobTrigger",
        "api": "httpTrigger",
    }


def test_event_batches_come_as_bytes_and_are_retried_without_bound(worker: Worker) -> None:
    told = worker.functions["ingest_readings"]
    strategy, retries, delay = told["retry"]

    assert told["bindings"][0]["dataType"] == "BINARY"
    assert told["bindings"][0]["cardinality"] == "MANY"
    assert (strategy, retries, delay.total_seconds()) == ("fixed_delay", -1, 5)


def test_timers_are_monitored(worker: Worker) -> None:
    timers = [worker.functions[name] for name in ("repair_gaps", "submit_scoring_run")]
    timers.append(worker.functions["watch_runs"])

    assert all(told["bindings"][0]["useMonitor"] for told in timers)


def test_by_default_blobs_come_by_event_grid_and_the_api_asks_for_a_key(worker: Worker) -> None:
    assert worker.functions["index_predictions"]["bindings"][0]["source"] == "EventGrid"
    assert worker.functions["api"]["bindings"][0]["authLevel"] == "FUNCTION"


def test_indexing_loads_nothing_heavy(worker: Worker) -> None:
    loaded = [name for name in HEAVY if name in worker.modules]

    assert loaded == []


def test_the_sample_settings_start_the_app_and_choose_the_container_scan(tmp_path: Path) -> None:
    sample = json.loads((ROOT / "local.settings.sample.json").read_text())["Values"]

    with hurried_worker(sample | {"SCORING_DATA": str(tmp_path)}) as worker:
        source = worker.functions["index_predictions"]["bindings"][0]["source"]
        level = worker.functions["api"]["bindings"][0]["authLevel"]

    assert (source, level) == ("LogsAndContainerScan", "ANONYMOUS")


def test_settings_that_are_missing_or_wrong_stop_the_start_all_of_them_named() -> None:
    wrong = SETTINGS | {
        "EVENT_HUB": "",
        "SUBMIT_SCHEDULE": "",
        "BLOB_TRIGGER_SOURCE": "Queue",
        "API_AUTH_LEVEL": "none",
        "SCORING_WINDOW": "five",
        "SCORING_EVENT_HUB_REPAIR_GROUP": "scoring",
    }

    with pytest.raises(RuntimeError) as stopped:
        hurried_worker(wrong)

    for name in ("EVENT_HUB is", "SUBMIT_SCHEDULE", "BLOB_TRIGGER_SOURCE", "API_AUTH_LEVEL"):
        assert name in str(stopped.value)
    assert "SCORING_WINDOW" in str(stopped.value)


def test_gaps_cannot_be_read_by_the_consumer_group_of_the_trigger() -> None:
    with pytest.raises(Misconfigured, match="SCORING_EVENT_HUB_REPAIR_GROUP"):
        HostSettings.load(SETTINGS | {"SCORING_EVENT_HUB_REPAIR_GROUP": "scoring"})


def test_a_connection_may_be_a_namespace_with_an_identity() -> None:
    rest = {name: text for name, text in SETTINGS.items() if name != "EVENT_HUB"}

    host = HostSettings.load(rest | {"EVENT_HUB__fullyQualifiedNamespace": "f.example"})

    assert host.hub == HUB


# Event batches


def test_an_event_batch_is_ingested_and_logged_in_one_line(worker: Worker) -> None:
    events = zip([reading(minute) for minute in range(3)], numbered(0, 3), strict=True)

    logged = ingest(worker, "1", *events).logs

    assert [name for name, _ in logged] == ["ingest.batch"]
    facts = logged[0][1]
    assert facts.pop("milliseconds") > 0
    assert facts == {
        "hub": HUB,
        "partition": "1",
        "first_sequence": 0,
        "last_sequence": 2,
        "events": 3,
        "duplicates": 0,
        "readings": 3,
        "late": 0,
        "missing": 0,
        "empty": 0,
        "rejects": {},
        "level": "INFO",
    }


def test_a_redelivered_event_batch_changes_nothing(worker: Worker) -> None:
    events = list(zip([reading(minute) for minute in range(3)], numbered(0, 3), strict=True))
    ingest(worker, "2", *events)
    before = partition(worker, "2")

    facts = ingest(worker, "2", *events).facts("ingest.batch")

    assert (facts["events"], facts["duplicates"], facts["readings"]) == (3, 3, 0)
    after = partition(worker, "2")
    del before["lag_seconds"], after["lag_seconds"]
    assert after == before


def test_events_without_partition_key_keep_their_own_numbers(worker: Worker) -> None:
    keyed = [system_properties(0, key="d1"), system_properties(1), system_properties(2, key="d2")]

    ingest(worker, "3", *zip([reading(0), b"no", reading(2)], keyed, strict=True))

    assert rejects(worker, "3") == [(1, "not_json")]
    assert partition(worker, "3")["high_water"] == 2


def test_bodies_that_are_empty_or_no_utf_8_drop_no_neighbour(worker: Worker) -> None:
    bodies = [reading(0), b"", b"\xff\xfe\x00", reading(1)]

    facts = ingest(worker, "4", *zip(bodies, numbered(0, 4), strict=True)).facts("ingest.batch")

    assert (facts["readings"], facts["rejects"]) == (2, {"empty_body": 1, "not_utf8": 1})
    assert rejects(worker, "4") == [(1, "empty_body"), (2, "not_utf8")]


@pytest.mark.parametrize(
    ("name", "told", "stored"),
    [
        ("5", "2020-01-01T00:00:31", "2020-01-01T00:00:31Z"),
        ("6", "2020-01-01T00:00:31.25", "2020-01-01T00:00:31.250000Z"),
        ("7", "2020-01-01T00:00:31.1234567Z", "2020-01-01T00:00:31.123456Z"),
    ],
)
def test_enqueued_times_are_utc_with_or_without_fraction_and_zone(
    worker: Worker, name: str, told: str, stored: str
) -> None:
    ingest(worker, name, (reading(), system_properties(0, told)))

    assert partition(worker, name)["last_enqueued"] == stored


def test_iot_hub_names_the_device_of_a_reading_that_does_not(worker: Worker) -> None:
    iot = {
        "iothub-connection-device-id": "pump-7",
        "iothub-connection-auth-method": '{"scope":"device"}',
        "iothub-enqueuedtime": "2020-01-01T00:00:31",
        "iothub-message-source": "Telemetry",
    }
    body = reading(0).replace(b'"device": "d1", ', b"")

    ingest(worker, "8", (body, system_properties(0, **iot)))

    status, page = worker.request("GET", "/api/devices/pump-7/sensors/s1/windows")
    assert (status, [one["count"] for one in page["items"]]) == (200, [1])


def test_a_swallowed_event_batch_is_on_record_as_a_gap(worker: Worker) -> None:
    ingest(worker, "9", (reading(0), system_properties(0)))

    facts = ingest(worker, "9", (reading(5), system_properties(5))).facts("ingest.batch")

    assert facts["missing"] == 4
    assert partition(worker, "9")["missing"] == 4


# A store that does not work


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Worker]:
    """Give a worker whose data folder cannot be made, for a file is in its place."""
    (tmp_path / "disk").write_text("in the way")
    with hurried_worker(settings(tmp_path / "disk" / "data")) as worker:
        yield worker


def test_a_trigger_whose_store_is_broken_raises_until_it_works(
    broken: Worker, tmp_path: Path
) -> None:
    call = event_batch([reading()], numbered(0, 1))

    first = broken.invoke("ingest_readings", call)
    again = broken.invoke("ingest_readings", call)
    (tmp_path / "disk").unlink()
    healed = broken.invoke("ingest_readings", call)

    assert first.error.startswith("StorageUnusable")
    assert again.error == first.error
    assert first.facts("ingest.batch")["error"] == "StorageUnusable"
    assert healed.error == ""
    assert healed.facts("ingest.batch")["readings"] == 1


@pytest.mark.parametrize("function", ["repair_gaps", "watch_runs"])
def test_a_timer_whose_store_is_broken_raises(broken: Worker, function: str) -> None:
    assert broken.invoke(function, timer()).error.startswith("StorageUnusable")


def test_health_is_answered_and_readiness_names_the_store_while_it_is_broken(
    broken: Worker,
) -> None:
    health, _ = broken.request("GET", "/api/health")
    ready, problem = broken.request("GET", "/api/ready")

    assert (health, ready) == (200, 503)
    assert problem["checks"]["database"] == "unusable"


def test_windows_rebuilt_in_another_size_are_taken_up_by_the_next_delivery(tmp_path: Path) -> None:
    data = {"SCORING_DATA": str(tmp_path)}
    first, second = numbered(0, 2)
    with hurried_worker(SETTINGS | data) as worker:
        ingest(worker, "0", (reading(0), first))
        with App(Settings.load(data)) as app:
            app.rebuild_windows(instants.SECOND, lambda done, total: None)
        ingest(worker, "0", (reading(1), second))
        with App(Settings.load(data)) as app:
            windows = app.queries.windows("d1", "s1", None, None, 10)

    starts = {window.window_start // instants.SECOND % 60 for window in windows}
    assert (len(windows), starts) == (2, {30})


def test_without_a_fleet_the_timer_warns_and_leaves_windows_pending(tmp_path: Path) -> None:
    with hurried_worker(settings(tmp_path)) as worker:
        ingest(worker, "0", (reading(0), system_properties(0)))

        answer = worker.invoke("submit_scoring_run", timer())

        assert answer.error == ""
        assert answer.facts("submit.no_fleet")["level"] == "WARNING"
        assert answer.facts("submit.run")["run"] is None
        assert worker.request("GET", "/api/runs")[1]["items"] == []


# Timers, blobs, HTTP: one after the other, for they are the steps of one run


def test_a_repair_that_is_late_and_fires_twice_repairs_nothing_where_nothing_is_missing(
    tmp_path: Path,
) -> None:
    with hurried_worker(settings(tmp_path)) as worker:
        ingest(worker, "0", (reading(0), system_properties(0)))

        facts = [
            worker.invoke("repair_gaps", timer(past_due=True)).facts("repair.gaps")
            for _ in range(2)
        ]

    assert [(one["past_due"], one["events"]) for one in facts] == [(True, 0)] * 2


# azure-eventhub leaves a socket open for the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_what_the_host_swallowed_is_read_again_and_what_the_hub_dropped_is_lost(
    tmp_path: Path,
) -> None:
    enqueued = instants.of(datetime(2020, 1, 1, 0, 10, tzinfo=UTC)) // 1000
    hub = Hub(HUB, 1, lambda: enqueued)
    with (
        AmqpServer(hub) as server,
        hurried_worker(settings(tmp_path, EVENT_HUB=server.connection_string)) as worker,
    ):
        server.append(HUB, "0", [reading(minute) for minute in range(6)], {})
        server.drop_before(HUB, "0", 2)
        for number in (0, 5):
            ingest(worker, "0", (reading(number), system_properties(number, "2020-01-01T00:10:00")))

        answer = worker.invoke("repair_gaps", timer())
        shown = partition(worker, "0")

    assert answer.error == ""
    assert answer.facts("repair.gaps")["readings"] == 3
    assert (shown["readings"], shown["missing"]) == (5, 0)
    assert {state: one["events"] for state, one in shown["gaps"].items()} == {
        "lost": 1, "repaired": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def started(worker: Worker) -> tuple[str, bool]:
    """Return the run that the timer made of some windows, and whether it was indexed since.

    The timer fired twice; the second time it ends the run if the engine was that quick.
    """
    events = zip([reading(minute) for minute in range(5)], numbered(0, 5), strict=True)
    ingest(worker, "20", *events)
    late = worker.invoke("submit_scoring_run", timer(past_due=True))
    twice = worker.invoke("submit_scoring_run", timer())
    facts = late.facts("submit.run")
    assert (late.error, twice.error, facts["past_due"]) == ("", "", True)
    assert facts["state"] == "submitted"
    assert twice.facts("submit.run")["run"] is None
    return str(facts["run"]), any(event == "index.part" for event, _ in twice.logs)


@pytest.fixture(scope="module")
def run(started: tuple[str, bool]) -> str:
    """Return the run that the timer made."""
    return started[0]


@pytest.fixture(scope="module")
def part(run: str, folder: Path) -> tuple[str, bytes]:
    """Give name and content of the prediction part that the engine wrote."""
    name = f"predictions/{run}/part-00000.parquet"
    path = folder / "blobs" / name
    eventually(path.exists)
    return name, path.read_bytes()


def test_a_prediction_part_is_indexed_once_however_often_its_blob_comes(
    worker: Worker, started: tuple[str, bool], part: tuple[str, bytes]
) -> None:
    run, was_indexed = started
    first, again = (worker.invoke("index_predictions", blob(*part)) for _ in range(2))

    assert (first.error, first.facts("index.part")["new"]) == ("", not was_indexed)
    assert (again.error, again.facts("index.part")["new"]) == ("", False)
    shown = worker.request("GET", f"/api/runs/{run}")[1]
    assert (shown["indexed_parts"], shown["parts"]) == (1, 1)


def test_a_watch_that_is_late_and_fires_twice_completes_the_run_once(
    worker: Worker, started: tuple[str, bool], part: tuple[str, bytes]
) -> None:
    run, was_indexed = started
    seen: list[str] = []

    def completed() -> bool:
        answer = worker.invoke("watch_runs", timer(past_due=True))
        assert answer.error == ""
        runs = answer.facts("watch.runs")["runs"]
        seen.extend(state for name, state in runs.items() if name == run)
        return bool(worker.request("GET", f"/api/runs/{run}")[1]["state"] == "completed")

    eventually(completed)

    assert seen.count("completed") == 1 or was_indexed
    assert worker.invoke("watch_runs", timer()).facts("watch.runs")["runs"] == {}


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("predictions/r20200101T000000Z-000000/part-00000.parquet", "NotFound"),
        ("predictions/r20200101T000000Z-000000/notes.txt", "BadInput"),
    ],
)
def test_a_blob_that_belongs_to_no_run_goes_to_the_poison_queue(
    worker: Worker, name: str, error: str
) -> None:
    assert worker.invoke("index_predictions", blob(name, b"x")).error.startswith(error)


def test_the_api_answers_and_does_not_see_the_hosts_key(worker: Worker) -> None:
    assert worker.request("GET", "/api/health?code=key&clientId=default") == (
        200, {"status": "ok"},
    )  # fmt: skip


def test_runs_are_started_and_shown_by_http(worker: Worker) -> None:
    ingest(worker, "21", (reading(1, device="d9"), system_properties(0)))

    status, started = worker.request("POST", "/api/runs", {"devices": ["d9"]})
    shown, page = worker.request("GET", "/api/runs")

    assert (status, shown) == (202, 200)
    assert page["items"][0]["run_id"] == started["run_id"]


@pytest.mark.parametrize("path", ["/api/nothing", "/api/runs/r20200101T000000Z-000000"])
def test_what_is_not_there_is_a_problem_detail(worker: Worker, path: str) -> None:
    answer = worker.invoke("api", http("GET", path))

    assert answer.error == ""
    assert answer.result.status_code == "404"
    assert answer.result.headers["content-type"] == "application/problem+json"


# Many threads


PARTS = (
    *("database", "window", "blobs", "hub", "event_log", "engine", "shelf", "queries"),
    *("ingest_store", "train", "import_models", "check_fleet", "submit", "watch"),
    *("repair_gaps", "replay_rejects", "rebuild_windows"),
)
EVERY_APP = pytest.mark.parametrize("kind", [App, HostedApp])


def opened(kind: type[App], folder: Path) -> App:
    return kind(
        Settings.load(
            {
                "SCORING_DATA": str(folder),
                "SCORING_EVENT_HUB": HUB,
                "SCORING_EVENT_HUB_CONNECTION": SETTINGS["EVENT_HUB"],
            }
        )
    )


@EVERY_APP
def test_parts_that_many_threads_ask_for_are_built_once_each(
    tmp_path: Path, kind: type[App]
) -> None:
    together = threading.Barrier(2 * len(PARTS))
    found: dict[str, list[object]] = {name: [] for name in PARTS}

    def ask(app: App, name: str) -> None:
        together.wait()
        found[name].append(getattr(app, name))

    with opened(kind, tmp_path) as app:
        threads = [threading.Thread(target=ask, args=(app, name)) for name in 2 * PARTS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert {len(both) for both in found.values()} == {2}
    assert all(one is other for one, other in found.values())


@EVERY_APP
def test_a_part_that_hangs_in_being_built_holds_up_only_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[App]
) -> None:
    hangs, free = threading.Event(), threading.Event()

    def hanging(root: Path) -> FolderBlobs:
        hangs.set()
        assert free.wait(60)
        return FolderBlobs(root)

    monkeypatch.setattr(bootstrap, "FolderBlobs", hanging)
    with opened(kind, tmp_path) as app, ThreadPoolExecutor() as pool:
        try:
            blobs = pool.submit(lambda: app.blobs)
            assert hangs.wait(60)
            shelf = pool.submit(lambda: app.shelf)
            answer = pool.submit(Client(create_api(app)).get, "/runs").result(30)
            assert answer.status_code == 200
            assert not blobs.done()
            assert not shelf.done()
        finally:
            free.set()
        assert shelf.result(30)
        assert blobs.result(30) is app.blobs


@EVERY_APP
def test_a_part_that_could_not_be_built_is_tried_again(tmp_path: Path, kind: type[App]) -> None:
    (tmp_path / "disk").write_text("in the way")
    with opened(kind, tmp_path / "disk" / "data") as app:
        for _ in range(2):
            with pytest.raises(StorageUnusable):
                _ = app.queries
        (tmp_path / "disk").unlink()
        assert app.queries.runs(1) == []
