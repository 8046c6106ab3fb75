"""Telemetry: what an app's invocations export, and that they export nothing unasked."""

import gzip
import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from scoring import instants
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.telemetry import FactsFormatter, OpenTelemetry, show_facts, span_context
from scoring.api import create_api
from scoring.errors import BadInput, InvalidFleet, Misconfigured, Transient
from scoring.fleet import Model, Training, train_model
from scoring.handlers.watch import WatchRuns
from scoring.hosting import HostedApp
from scoring.readings import EventBatch, Partition
from scoring.settings import HostSettings, Settings
from tests.adapters.engines import eventually
from tests.amqp.hub import Hub
from tests.amqp.server import AmqpServer
from tests.api.conftest import Client, ListeningEngine
from tests.fakes.event_log import MemoryHub
from tests.worker.host import SETTINGS

BEGIN = 1_577_836_800 * instants.SECOND
"""2020-01-01: long final, whatever the clock says."""

HUSH = "c2VjcmV0"
KEY = "00000000-0000-0000-0000-000000000000"


@dataclass
class Seen:
    """What was exported."""

    spans_exporter: InMemorySpanExporter
    reader: InMemoryMetricReader

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans_exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == f"scoring.{name}"
            for point in metric.data.data_points
        ]

    def gauges(self) -> dict[str, list[int]]:
        """Give the values of the gauges since the last time, of which there may be none."""
        data = self.reader.get_metrics_data()
        found: dict[str, list[int]] = {"windows_pending": [], "missing": []}
        for resource in data.resource_metrics if data else ():
            for metric in resource.scope_metrics[0].metrics:
                values = [getattr(point, "value", 0) for point in metric.data.data_points]
                found.setdefault(metric.name.removeprefix("scoring."), []).extend(values)
        return {name: found[name] for name in ("windows_pending", "missing")}

    def total(self, name: str) -> float:
        return float(sum(point.value for point in self.points(name)))


@pytest.fixture
def seen() -> Seen:
    return Seen(InMemorySpanExporter(), InMemoryMetricReader())


@pytest.fixture
def app(tmp_path: Path, seen: Seen) -> Iterator[HostedApp]:
    settings = Settings.load(
        {
            "SCORING_DATA": str(tmp_path / "data"),
            "SCORING_WINDOW": "1min",
            "SCORING_PROCESSES": "1",
            "SCORING_EVENT_HUB": "readings",
            "SCORING_EVENT_HUB_CONNECTION": (
                "Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=k;"
                f"SharedAccessKey={HUSH};UseDevelopmentEmulator=true"
            ),
        }
    )
    traces = TracerProvider()
    traces.add_span_processor(SimpleSpanProcessor(seen.spans_exporter))
    metrics = MeterProvider([seen.reader])
    app = HostedApp(settings, OpenTelemetry(traces, metrics))
    app.__dict__["event_log"] = MemoryHub("readings", 1)
    with app:
        yield app
    traces.shutdown()
    metrics.shutdown()


def batch(first: int, *bodies: bytes) -> EventBatch:
    numbers = np.arange(first, first + len(bodies))
    return EventBatch(
        Partition("readings", "0"), numbers, BEGIN + numbers * instants.SECOND, list(bodies)
    )


def reading(minute: int) -> bytes:
    text = f"2020-01-01T00:{minute:02}:30Z"
    return json.dumps({"device": "d1", "sensor": "s1", "ts": text, "value": minute}).encode()


def completed_run(app: HostedApp, *, by_trigger: bool = True) -> str:
    """Take readings through a run to its indexed part, as the triggers do; gives the run's id."""
    model = train_model(np.random.default_rng(1).normal(3, 2, (40, 1)), Training())
    app.shelf.publish([Model("d1", "s1", model)], ("mean",), instants.moment(BEGIN))
    app.ingest_events(batch(0, *(reading(0) for _ in range(3))))
    run = app.submit_pending()
    assert run is not None
    part = app.folder / "blobs" / run.prediction_prefix / "part-00000.parquet"
    eventually(part.exists)
    if by_trigger:
        app.index_blob(f"scoring/{run.prediction_prefix}part-00000.parquet")
    eventually(lambda: any(one.state.is_terminal for one in app.watch_active()))
    return run.run_id


def trace_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.trace_id)


def test_submit_watch_and_index_of_a_run_share_a_trace(app: HostedApp, seen: Seen) -> None:
    run = completed_run(app)

    looks = seen.spans("watch.run")
    spans = [seen.span("submit.run"), seen.span("index.part"), *looks]
    assert {trace_of(span) for span in spans} == {span_context(run).trace_id}
    assert {(span.attributes or {})["scoring.run"] for span in spans} == {run}
    assert (looks[-1].attributes or {})["scoring.state"] == "completed"
    # Each look at the run and the invocation that looked lead to each other.
    whole = seen.spans("watch.runs")[-1]
    assert [link.context.trace_id for link in whole.links] == [span_context(run).trace_id]
    assert [link.context for link in looks[-1].links] == [whole.context]


def test_an_event_batch_is_followed_to_its_run_by_its_numbers(app: HostedApp, seen: Seen) -> None:
    completed_run(app)

    told = seen.span("ingest.batch").attributes or {}
    assert told["scoring.partition"] == "0"
    assert (told["scoring.first_sequence"], told["scoring.last_sequence"]) == (0, 2)
    assert (seen.span("submit.run").attributes or {})["scoring.applied.0"] == 2


def test_a_redelivered_event_batch_is_of_the_same_trace(app: HostedApp, seen: Seen) -> None:
    for _ in range(2):
        app.ingest_events(batch(0, reading(0)))
    app.ingest_events(batch(1, reading(1)))

    first, again, other = map(trace_of, seen.spans("ingest.batch"))

    assert first == again != other


def test_a_span_lasts_as_long_as_its_invocation(app: HostedApp, seen: Seen) -> None:
    app.ingest_events(batch(0, reading(0)))

    span = seen.span("ingest.batch")
    assert span.start_time is not None
    assert span.end_time is not None
    milliseconds = float((span.attributes or {})["scoring.milliseconds"])  # type: ignore[arg-type]
    assert (span.end_time - span.start_time) / 1e6 == pytest.approx(milliseconds, abs=0.01)


def test_counters_add_up(app: HostedApp, seen: Seen) -> None:
    app.ingest_events(batch(0, reading(0), b"no", b""))
    app.ingest_events(batch(0, reading(0), b"no", b""))
    app.ingest_events(batch(7, reading(2)))
    app.ingest_events(batch(4, reading(3)))

    totals = {name: seen.total(name) for name in ("events", "duplicates", "readings")}
    assert totals == {"events": 8, "duplicates": 3, "readings": 3}
    reasons = {point.attributes["reason"]: point.value for point in seen.points("rejects")}
    assert reasons == {"not_json": 1, "empty_body": 1}
    (lag,) = seen.points("lag")
    assert (lag.count, lag.attributes["partition"]) == (4, "0")
    # Enqueued in 2020, and the clock is past 2026.
    assert lag.min > 6 * 365 * 86400


def test_a_run_that_ended_is_counted_once(app: HostedApp, seen: Seen) -> None:
    run = completed_run(app)
    app.watch_active()

    summary = app.queries.run(run)
    assert seen.total("predictions") == summary.indexed == 1
    assert seen.total("anomalies") == summary.anomalies
    assert [(p.value, p.attributes["state"]) for p in seen.points("runs")] == [(1, "completed")]
    (duration,) = seen.points("run_duration")
    assert duration.sum > 0


def test_a_look_tells_what_waits_and_what_is_missing_as_the_store_has_it(
    app: HostedApp, seen: Seen
) -> None:
    app.ingest_events(batch(0, reading(0), reading(1)))
    app.ingest_events(batch(7, reading(1), reading(2)))
    app.watch_active()
    before = seen.gauges()
    # Another process finds some of it: this one counts nothing, and asks the store.
    app.ingest()(batch(4, reading(3)))
    app.watch_active()

    assert before == {"windows_pending": [3], "missing": [5]}
    assert seen.gauges() == {"windows_pending": [4], "missing": [4]}


def test_what_a_look_found_is_exported_once_and_not_for_ever(app: HostedApp, seen: Seen) -> None:
    app.ingest_events(batch(0, reading(0)))
    app.watch_active()
    seen.gauges()

    # The timer fires in another process from now on.
    assert seen.gauges() == {"windows_pending": [], "missing": []}


def test_a_look_that_fails_tells_what_waits_all_the_same(
    app: HostedApp, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.ingest_events(batch(0, reading(0)))
    monkeypatch.setattr(WatchRuns, "__call__", failing)

    with pytest.raises(Transient):
        app.watch_active()

    assert seen.gauges() == {"windows_pending": [1], "missing": [0]}


def test_a_store_that_cannot_be_counted_does_not_fail_the_look(
    app: HostedApp, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqlQueries, "backlog", failing)

    assert app.watch_active() == []
    assert seen.gauges() == {"windows_pending": [], "missing": []}


def test_nothing_is_counted_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SqlQueries, "backlog", failing)

    app = HostedApp(Settings.load({"SCORING_DATA": str(tmp_path)}))
    with app:
        assert app.watch_active() == []


def failing(*_: object) -> None:
    message = "no route"
    raise Transient(message)


class TestRequests:
    """What the HTTP API changes is noted as what the triggers do."""

    @pytest.fixture
    def client(self, app: HostedApp) -> Client:
        model = train_model(np.random.default_rng(1).normal(3, 2, (40, 1)), Training())
        app.shelf.publish([Model("d1", "s1", model)], ("mean",), instants.moment(BEGIN))
        app.__dict__["engine"] = ListeningEngine()
        app.ingest_events(batch(0, reading(0)))
        return Client(create_api(app))

    def test_a_run_that_was_started_and_canceled_is_of_one_trace(
        self, client: Client, seen: Seen
    ) -> None:
        run = client.post("/runs").json()["run_id"]
        client.post(f"/runs/{run}/cancel")

        spans = [seen.span("api.start_run"), seen.span("api.cancel_run")]
        assert {trace_of(span) for span in spans} == {span_context(run).trace_id}
        assert [(span.attributes or {})["scoring.state"] for span in spans] == [
            "submitted", "canceled",
        ]  # fmt: skip

    def test_a_canceled_run_is_counted_once(
        self, app: HostedApp, client: Client, seen: Seen
    ) -> None:
        run = client.post("/runs").json()["run_id"]
        client.post(f"/runs/{run}/cancel")
        client.post(f"/runs/{run}/cancel")
        app.watch_active()

        assert [(p.value, p.attributes["state"]) for p in seen.points("runs")] == [(1, "canceled")]

    def test_what_a_client_does_wrong_is_no_failure(self, client: Client, seen: Seen) -> None:
        assert client.post("/runs/nope/cancel").status_code == 404
        assert client.post("/runs", {"fleet": "nope"}).status_code == 404

        refused = [seen.span("api.cancel_run"), seen.span("api.start_run")]
        assert [(span.attributes or {})["scoring.error"] for span in refused] == ["NotFound"] * 2
        assert {span.status.status_code for span in refused} == {StatusCode.UNSET}
        assert seen.points("failures") == []

    @pytest.mark.parametrize(
        ("error", "status"),
        [(Transient("no route"), 503), (InvalidFleet("truncated"), 500), (KeyError("a"), 500)],
    )
    def test_what_is_our_own_fault_is_one(
        self,
        client: Client,
        seen: Seen,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
        status: int,
    ) -> None:
        def broken(*_: object) -> None:
            raise error

        monkeypatch.setattr(WatchRuns, "cancel", broken)

        assert client.post("/runs/r1/cancel").status_code == status
        (failures,) = seen.points("failures")
        assert failures.attributes == {"event": "api.cancel_run", "error": type(error).__name__}


def test_a_part_that_the_look_itself_indexes_is_of_its_runs_trace(
    app: HostedApp, seen: Seen
) -> None:
    run = completed_run(app, by_trigger=False)

    (index,) = [one for one in seen.spans("index.part") if (one.attributes or {})["scoring.new"]]
    assert trace_of(index) == span_context(run).trace_id
    assert seen.total("predictions") == 1


def test_a_foreign_error_is_logged_by_its_name_alone(
    app: HostedApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        message = f"INSERT failed: {HUSH}"
        raise RuntimeError(message)

    monkeypatch.setattr(HostedApp, "ingest", broken)
    with pytest.raises(RuntimeError), caplog.at_level(logging.INFO):
        app.ingest_events(batch(0, b""))

    (line,) = [record for record in caplog.records if record.getMessage() == "ingest.batch"]
    assert (vars(line)["error"], vars(line)["cause"]) == ("RuntimeError", "RuntimeError")
    assert HUSH not in caplog.text


def test_our_own_error_is_logged_with_its_words(
    app: HostedApp, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BadInput), caplog.at_level(logging.INFO):
        app.index_blob("scoring/predictions/r1/notes.txt")

    (line,) = [record for record in caplog.records if record.getMessage() == "index.part"]
    assert "is not the name of a prediction part" in vars(line)["cause"]


def test_errors_are_recorded(app: HostedApp, seen: Seen) -> None:
    with pytest.raises(BadInput):
        app.index_blob("scoring/predictions/r1/notes.txt")

    span = seen.span("index.part")
    (event,) = span.events
    assert span.status.status_code == StatusCode.ERROR
    assert (event.name, (event.attributes or {})["exception.type"]) == ("exception", "BadInput")
    (failures,) = seen.points("failures")
    assert (failures.value, failures.attributes) == (
        1, {"event": "index.part", "error": "BadInput"},
    )  # fmt: skip


def test_neither_bodies_nor_secrets_are_exported(
    app: HostedApp, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        message = f"INSERT failed: {HUSH} payload-of-a-device"
        raise RuntimeError(message)

    completed_run(app)
    app.ingest_events(batch(3, b'{"device": "payload-of-a-device"}', b"payload-of-a-device"))
    monkeypatch.setattr(HostedApp, "ingest", broken)
    with pytest.raises(RuntimeError):
        app.ingest_events(batch(5, b"payload-of-a-device"))

    exported = "".join(span.to_json() for span in seen.spans_exporter.get_finished_spans())
    data = seen.reader.get_metrics_data()
    exported += data.to_json() if data else ""
    assert "RuntimeError" in exported
    assert HUSH not in exported
    assert "payload-of-a-device" not in exported


# Of a process


RUN_ONE = """
import json, sys
from scoring.hosting import hosted_app
with hosted_app() as app:
    app.repair()
    try:
        app.index_blob("scoring/predictions/r1/notes.txt")
    except Exception:
        pass
print(json.dumps([name for name in sys.modules if name.startswith("opentelemetry.sdk")]))
"""


def modules_of_a_process(folder: Path, **variables: str) -> list[str]:
    """Give the SDK's modules that a process loads which invokes something."""
    given = {"PATH": os.defpath, "SCORING_DATA": str(folder), "TMPDIR": str(folder)} | variables
    done = subprocess.run(
        [sys.executable, "-c", RUN_ONE],
        env=given,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    # The log lines of our own error, and no complaint of an exporter.
    assert "Traceback" not in done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def insights() -> Iterator[tuple[str, list[str]]]:
    """Give the connection string of an ingestion endpoint, and what it was sent."""
    sent: list[str] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            is_packed = self.headers.get("content-encoding") == "gzip"
            sent.append((gzip.decompress(data) if is_packed else data).decode())
            answer = b'{"itemsReceived": 1, "itemsAccepted": 1, "errors": []}'
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        yield f"InstrumentationKey={KEY};IngestionEndpoint={url};LiveEndpoint={url}", sent
        server.shutdown()
        thread.join()


def test_without_the_setting_nothing_is_loaded_that_could_export(tmp_path: Path) -> None:
    assert modules_of_a_process(tmp_path) == []


def test_with_the_setting_spans_and_metrics_go_to_azure_monitor(
    tmp_path: Path, insights: tuple[str, list[str]]
) -> None:
    connection, sent = insights

    loaded = modules_of_a_process(
        tmp_path,
        APPLICATIONINSIGHTS_CONNECTION_STRING=connection,
        # These go to Microsoft, and not to the endpoint.
        APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL="true",
    )

    text = "".join(sent)
    assert loaded
    assert all(name in text for name in ("repair.gaps", "index.part", "scoring.failures"))
    assert "BadInput" in text


def consumer(folder: Path, hub: AmqpServer, **variables: str) -> subprocess.Popen[str]:
    """Start the command that consumes."""
    given = {
        "PATH": os.defpath,
        "TMPDIR": str(folder),
        "SCORING_WINDOW": "1min",
        "SCORING_EVENT_HUB": "readings",
        "SCORING_EVENT_HUB_CONNECTION": hub.connection_string,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "scoring", "--data", str(folder / "data"), "consume"],
        env=given | variables,
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def consuming(process: subprocess.Popen[str]) -> Iterator[list[str]]:
    """Give the lines of a process on standard error, all of them once it has ended by SIGTERM."""
    lines: list[str] = []

    def read() -> None:
        for line in process.stderr or ():
            lines.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield lines
        process.terminate()
        assert process.wait(60) == 0, lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def said_of(lines: list[str], event: str) -> list[dict[str, Any]]:
    """Give the facts of an event's lines."""
    return [json.loads(line.partition(" ")[2]) for line in lines if line.startswith(f"{event} ")]


# azure-eventhub leaves a socket open whose connection the hub cut.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_the_command_that_consumes_says_a_line_an_event_batch_and_exports_its_span(
    tmp_path: Path, insights: tuple[str, list[str]]
) -> None:
    connection, sent = insights
    events = {"0": [reading(n % 60) for n in range(2500)], "1": [reading(1), b"no", reading(2)]}
    variables = {
        "APPLICATIONINSIGHTS_CONNECTION_STRING": connection,
        "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",
    }

    with AmqpServer(Hub("readings", 2, lambda: BEGIN // 1000 + 3_600_000)) as hub:
        for partition, bodies in events.items():
            hub.append("readings", partition, bodies, {})
        with consuming(consumer(tmp_path, hub, **variables)) as lines:
            eventually(lambda: sum(f["events"] for f in said_of(lines, "ingest.batch")) >= 2503)

    assert all(line.startswith("ingest.batch {") for line in lines), lines
    said = said_of(lines, "ingest.batch")
    assert len(said) >= 4
    totals = {name: sum(one[name] for one in said) for name in ("events", "readings", "missing")}
    assert totals == {"events": 2503, "readings": 2502, "missing": 0}
    assert sum((Counter(one["rejects"]) for one in said), Counter()) == {"not_json": 1}
    for partition, bodies in events.items():
        own = sorted(
            (one["first_sequence"], one["last_sequence"])
            for one in said
            if one["partition"] == partition
        )
        assert (own[0][0], own[-1][1]) == (0, len(bodies) - 1)
    text = "".join(sent)
    assert text.count('"ingest.batch"') >= len(said)
    assert all(name in text for name in ("scoring.events", "scoring.readings", "scoring.lag"))


def test_the_command_that_consumes_refuses_a_connection_string_without_key_and_does_not_repeat_it(
    tmp_path: Path,
) -> None:
    variables = {"APPLICATIONINSIGHTS_CONNECTION_STRING": f"nonsense {HUSH}"}
    with AmqpServer(Hub("readings", 1)) as hub:
        process = consumer(tmp_path, hub, **variables)
        _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    (line,) = said.splitlines()
    assert line.startswith("error: settings: APPLICATIONINSIGHTS_CONNECTION_STRING")
    assert HUSH not in line


@pytest.mark.parametrize("text", ["nonsense", "IngestionEndpoint=https://x.example/"])
def test_a_connection_string_without_key_stops_the_start_and_is_not_repeated(text: str) -> None:
    with pytest.raises(Misconfigured, match="APPLICATIONINSIGHTS_CONNECTION_STRING") as stopped:
        HostSettings.load(SETTINGS | {"APPLICATIONINSIGHTS_CONNECTION_STRING": text})

    assert text not in str(stopped.value)


# Log lines


def record(name: str, **facts: Any) -> logging.LogRecord:
    return logging.getLogger(name).makeRecord(
        name, logging.INFO, "", 0, "ingest.batch", (), None, extra=facts
    )


def test_facts_are_shown_in_the_text_of_our_records_only() -> None:
    formatter = FactsFormatter(logging.Formatter("%(levelname)s %(message)s"))

    ours = formatter.format(record("scoring.hosted", events=3, rejects={"not_json": 1}))
    bare = formatter.format(record("scoring.hosted"))
    other = formatter.format(record("azure.core", token=HUSH))

    assert ours == 'INFO ingest.batch {"events": 3, "rejects": {"not_json": 1}}'
    assert bare == other == "INFO ingest.batch"


def test_showing_facts_twice_shows_them_once() -> None:
    logger = logging.getLogger("a_host")
    logger.addHandler(handler := logging.StreamHandler())

    show_facts(logger)
    show_facts(logger)
    logger.removeHandler(handler)

    assert handler.format(record("scoring.hosted", new=True)) == 'ingest.batch {"new": true}'
