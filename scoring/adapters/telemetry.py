"""Traces and metrics of the invocations by OpenTelemetry, and log lines that show their facts.

Nothing here loads an SDK before somebody asks for telemetry: without it, it costs a call.
"""
# ruff: noqa: PLC0415 - see above

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from time import time_ns
from typing import TYPE_CHECKING, Any

from scoring.errors import BadInput, ScoringError, cause_of
from scoring.queries import Backlog, RunSummary
from scoring.runs import RunState, parse_prediction_name

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import SpanContext, TracerProvider

Facts = Mapping[str, Any]
"""What the canonical log line of an invocation says."""

_NAME = "scoring"
_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 6 * 3600.0, 86400.0)
_COUNTED = ("events", "duplicates", "readings", "late")

log = logging.getLogger("scoring.telemetry")


class Telemetry:
    """Takes what an invocation has to say, and does nothing with it."""

    def invocation(self, event: str, facts: Facts, error: Exception | None = None) -> None:
        """Note an invocation that has just ended."""

    def lag(self, seconds: float, facts: Facts) -> None:
        """Note how long ago the hub took the newest event of a batch that was handled."""

    def ended(self, run_id: str, summary: Callable[[str], RunSummary]) -> None:
        """Note that a run has just ended; `summary` is asked about it if that goes anywhere."""

    def backlog(self, read: Callable[[], Backlog]) -> None:
        """Note what waits and what is missing; `read` is asked only if that goes anywhere."""


class OpenTelemetry(Telemetry):
    """Spans and metrics, for whoever the providers export to.

    All spans of one run are of one trace: its id is a digest of the run's, so nobody has to keep
    or hand on a trace context. So are those of one event batch, however often it is delivered.
    """

    def __init__(self, traces: "TracerProvider", metrics: "MeterProvider") -> None:
        self._tracer = traces.get_tracer(_NAME)
        meter = metrics.get_meter(_NAME)
        counters = (*_COUNTED, "rejects", "runs", "predictions", "anomalies", "failures")
        self._counters = {name: meter.create_counter(f"{_NAME}.{name}") for name in counters}
        self._pending = _Reading()
        meter.create_observable_gauge(f"{_NAME}.windows_pending", [self._pending])
        self._missing = _Reading()
        meter.create_observable_gauge(f"{_NAME}.missing", [self._missing])
        self._lag, self._run_duration = (
            meter.create_histogram(
                f"{_NAME}.{name}", "s", explicit_bucket_boundaries_advisory=_SECONDS
            )
            for name in ("lag", "run_duration")
        )

    def invocation(self, event: str, facts: Facts, error: Exception | None = None) -> None:
        """Make the invocation's span, and count what it did."""
        self._count(event, facts, error)
        runs: Mapping[str, str] = facts.get("runs", {})
        own = self._span(event, _subject(facts), _attributes(facts, error), runs, facts, error)
        for run, state in runs.items():
            # One look is at many runs: each gets its own span, in its own trace.
            told = {"scoring.run": run, "scoring.state": state}
            self._span("watch.run", run, told, (), facts, None, caused_by=own)

    def lag(self, seconds: float, facts: Facts) -> None:
        """Record the lag of the batch's partition."""
        self._lag.record(max(seconds, 0.0), _where("ingest.batch", facts))

    def ended(self, run_id: str, summary: Callable[[str], RunSummary]) -> None:
        """Count a run that ended, and what it predicted."""
        try:
            self._ended(summary(run_id))
        except ScoringError as error:
            # The run is what matters, and it has ended well.
            log.warning("telemetry.incomplete", extra={"run": run_id, "cause": str(error)})

    def backlog(self, read: Callable[[], Backlog]) -> None:
        """Read what waits and what is missing, for the next export."""
        try:
            found = read()
        except ScoringError as error:
            log.warning("telemetry.incomplete", extra={"cause": str(error)})
            return
        self._pending.value, self._missing.value = found.pending, found.missing

    def _ended(self, run: RunSummary) -> None:
        state = {"state": run.state.value}
        self._counters["runs"].add(1, state)
        if run.ended_at is not None:
            self._run_duration.record((run.ended_at - run.created_at) / 1e6, state)
        if run.state == RunState.COMPLETED:
            self._counters["predictions"].add(run.indexed)
            self._counters["anomalies"].add(run.anomalies)
        if run.state == RunState.FAILED:
            self._counters["failures"].add(1, {"event": "run", "error": "EngineFailed"})

    def _count(self, event: str, facts: Facts, error: Exception | None) -> None:
        where = _where(event, facts)
        for name in _COUNTED:
            if name in facts:
                self._counters[name].add(facts[name], where)
        for reason, number in facts.get("rejects", {}).items():
            self._counters["rejects"].add(number, where | {"reason": reason})
        if error:
            self._counters["failures"].add(1, {"event": event, "error": type(error).__name__})

    def _span(  # noqa: PLR0913, PLR0917 - all of it is one span
        self,
        name: str,
        subject: str | None,
        attributes: dict[str, Any],
        runs: Iterable[str],
        facts: Facts,
        error: Exception | None,
        caused_by: "SpanContext | None" = None,
    ) -> "SpanContext":
        """Make a span that ends now, in the trace of its subject if it has one."""
        from opentelemetry import trace

        end = time_ns()
        parent = trace.NonRecordingSpan(span_context(subject)) if subject else trace.INVALID_SPAN
        linked = [span_context(run) for run in runs] + ([caused_by] if caused_by else [])
        span = self._tracer.start_span(
            name,
            trace.set_span_in_context(parent),
            attributes=attributes,
            links=[trace.Link(one) for one in linked],
            start_time=end - int(facts["milliseconds"] * 1e6),
        )
        if error:
            # No stack trace: the errors below ours quote statements with their values.
            told = {"exception.type": type(error).__name__, "exception.message": cause_of(error)}
            span.add_event("exception", told)
            span.set_status(trace.StatusCode.ERROR, cause_of(error))
        span.end(end)
        return span.get_span_context()


class _Reading:
    """What a gauge shows: a value is exported once.

    The timer that reads it may fire in another process the next time, and this one must not go on
    exporting what was true then.
    """

    def __init__(self) -> None:
        self.value: int | None = None

    def __call__(self, _: "CallbackOptions") -> "Iterator[Observation]":
        """Give the value that was read since the last export."""
        from opentelemetry.metrics import Observation

        value, self.value = self.value, None
        if value is not None:
            yield Observation(value)


def span_context(subject: str) -> "SpanContext":
    """Derive where the trace of a run or an event batch begins, from its name."""
    from opentelemetry.trace import SpanContext, TraceFlags

    digest = blake2b(subject.encode(), digest_size=24).digest()
    trace, span = int.from_bytes(digest[:16]), int.from_bytes(digest[16:])
    return SpanContext(trace, span, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def telemetry(connection_string: str) -> Telemetry:
    """Export to Azure Monitor, or nowhere if the connection string is empty."""
    if not connection_string:
        return Telemetry()
    from azure.monitor.opentelemetry import exporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "fleet-scoring"})
    # Not the process's global providers: those are the host's to set. Both flush at exit.
    traces = TracerProvider(resource=resource)
    spans = exporter.AzureMonitorTraceExporter(
        connection_string=connection_string, tracer_provider=traces
    )
    traces.add_span_processor(BatchSpanProcessor(spans))
    numbers = exporter.AzureMonitorMetricExporter(connection_string=connection_string)
    return OpenTelemetry(traces, MeterProvider([PeriodicExportingMetricReader(numbers)], resource))


def _where(event: str, facts: Facts) -> dict[str, str]:
    return {"event": event} | {key: facts[key] for key in ("hub", "partition") if key in facts}


def _run_of(facts: Facts) -> str | None:
    """Give the run that an invocation was about; None if it was none, or several."""
    try:
        return facts.get("run") or parse_prediction_name(facts.get("blob", ""))[0]
    except BadInput:
        return None


def _subject(facts: Facts) -> str | None:
    if "first_sequence" in facts:
        numbers = f"{facts['first_sequence']}-{facts['last_sequence']}"
        return f"{facts['hub']}/{facts['partition']}/{numbers}"
    return _run_of(facts)


def _attributes(facts: Facts, error: Exception | None) -> dict[str, Any]:
    """Give the facts as a span takes them; a text in place of what is neither text nor number."""
    flat = {key: value for key, value in facts.items() if not isinstance(value, Mapping)}
    for key, values in facts.items():
        if key == "runs":
            flat[key] = list(values)
        elif isinstance(values, Mapping):
            flat |= {f"{key}.{name}": value for name, value in values.items()}
    flat["run"] = _run_of(facts)
    if error:
        flat["cause"] = cause_of(error)
    plain = (str, int, float, list)
    return {
        f"{_NAME}.{key}": value if isinstance(value, plain) else str(value)
        for key, value in flat.items()
        if value is not None
    }


_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class FactsFormatter(logging.Formatter):
    """Formats as another formatter does, and appends what `extra` says as JSON.

    For hosts that hand on the text of a record and nothing else. Only for this project's records.
    """

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """Give event name and facts in one line."""
        text = self._inner.format(record)
        if not record.name.startswith("scoring."):
            return text
        facts = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        return f"{text} {json.dumps(facts, default=str)}" if facts else text


def show_facts(logger: logging.Logger) -> None:
    """Let the handlers of a logger show the facts; twice is as once."""
    for handler in logger.handlers:
        if not isinstance(handler.formatter, FactsFormatter):
            handler.setFormatter(FactsFormatter(handler.formatter))


@contextmanager
def facts_on_stderr() -> Iterator[None]:
    """Write our log lines with their facts to standard error, as long as the block lasts.

    For commands, which have no host that does. Of others' loggers only warnings are written.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(FactsFormatter())
    root, ours = logging.getLogger(), logging.getLogger(_NAME)
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.setLevel(level)
        root.removeHandler(handler)
