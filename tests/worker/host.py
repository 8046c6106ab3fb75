"""The Functions host's side of Microsoft's production worker, which runs in a process of its own.

The worker (PyPI: azure-functions-runtime) is the part of the host's Python worker that indexes an
app, decodes what triggers bring and calls the functions. What the host says to it over gRPC is
said here over a pipe: the messages are plain objects with the fields of the protocol's own.
"""

import asyncio
import importlib
import importlib.metadata
import json
import logging
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

ROOT = Path(__file__).parents[2]
HUB = "readings"

SETTINGS = {
    "EVENT_HUB_NAME": HUB,
    "EVENT_HUB_CONSUMER_GROUP": "scoring",
    "EVENT_HUB": (
        "Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=k;SharedAccessKey=k;"
        "UseDevelopmentEmulator=true;"
    ),
    "STORAGE": "UseDevelopmentStorage=true",
    "REPAIR_SCHEDULE": "0 */5 * * * *",
    "SUBMIT_SCHEDULE": "0 */5 * * * *",
    "WATCH_SCHEDULE": "*/30 * * * * *",
    "SCORING_CONTAINER": "scoring",
    "SCORING_PROCESSES": "1",
}
"""Of a function app; the tests that deliver events have an event hub served for it."""


class Message:
    """A message of the host's protocol: it has the fields that were set, and no others."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def WhichOneof(self, group: str) -> str | None:
        """Name the one field of a union that is set."""
        return next((name for name in self.__dict__ if name != "name"), None)


@dataclass(frozen=True)
class Call:
    """What a trigger hands over: its argument and what goes with it, as the host's messages."""

    argument: str
    data: Message
    metadata: dict[str, Message] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came of an invocation, with the log records of it.

    Attributes
    ----------
    error
        Empty where it succeeded: what the host's retry policy sees.
    logs
        Of this project's loggers: event name and facts.
    seconds
        In the worker, from the host's message to its answer.
    """

    error: str
    result: Any
    logs: list[tuple[str, dict[str, Any]]]
    seconds: float

    def facts(self, event: str) -> dict[str, Any]:
        """Give the facts of the one log record of this event."""
        (facts,) = [facts for name, facts in self.logs if name == event]
        return facts


def as_json(value: Any) -> Message:
    """Make typed data of kind json."""
    return Message(json=json.dumps(value))


def event_batch(
    bodies: Sequence[bytes], system: Sequence[Mapping[str, Any]], partition: str = "0"
) -> Call:
    """Make what an Event Hubs trigger of cardinality many and binary data type hands over.

    Parameters
    ----------
    system
        System properties of each event; see `system_properties`.
    """
    context = {
        "FullyQualifiedNamespace": "fleet.servicebus.windows.net",
        "EventHubName": HUB,
        "ConsumerGroup": "scoring",
        "PartitionId": partition,
    }
    # The host leaves nulls out, so that keys and events do not match.
    keys = [one["PartitionKey"] for one in system if one["PartitionKey"] is not None]
    metadata = {
        "PartitionContext": as_json(context),
        "SystemPropertiesArray": as_json(list(system)),
        "PropertiesArray": as_json([{} for _ in system]),
        "PartitionKeyArray": as_json(keys),
        "SequenceNumberArray": as_json([one["SequenceNumber"] for one in system]),
        "OffsetArray": as_json([one["Offset"] for one in system]),
        "EnqueuedTimeUtcArray": as_json([one["EnqueuedTimeUtc"] for one in system]),
        "sys": _sys("ingest_readings"),
    }
    bytes_of_all = Message(bytes=list(bodies))
    return Call("events", Message(collection_bytes=bytes_of_all), metadata)


def system_properties(
    number: int, enqueued: str = "2020-01-01T00:00:00", key: str | None = None, **others: Any
) -> dict[str, Any]:
    """Make one event's system properties as the host serialises them."""
    return {
        "SequenceNumber": number,
        "Offset": number * 40,
        "EnqueuedTimeUtc": enqueued,
        "PartitionKey": key,
    } | others


def timer(*, past_due: bool = False) -> Call:
    """Make what a timer trigger with `use_monitor` hands over."""
    moment = datetime(2026, 11, 22, 23, tzinfo=UTC).isoformat()
    status = {"Last": moment, "Next": moment, "LastUpdated": moment}
    schedule = {"Schedule": {"AdjustForDST": True}, "ScheduleStatus": status}
    return Call("timer", as_json(schedule | {"IsPastDue": past_due}), {"sys": _sys("timer")})


def blob(name: str, data: bytes, container: str = "scoring") -> Call:
    """Make what a blob trigger hands over."""
    _, run, part = name.split("/")
    uri = f"https://fleet.blob.core.windows.net/{container}/{name}"
    metadata = {
        "BlobTrigger": Message(string=f"{container}/{name}"),
        "Uri": as_json(uri),
        "Properties": as_json({"ETag": '"0x8D"', "Length": len(data), "ContentLength": len(data)}),
        "Metadata": as_json({}),
        "run": Message(string=run),
        "part": Message(string=part),
        "sys": _sys("index_predictions"),
    }
    return Call("blob", Message(bytes=data), metadata)


def http(method: str, path: str, body: Any = None, **headers: str) -> Call:
    """Make what an HTTP trigger hands over; `path` begins with a slash and may have a query."""
    url = f"https://fleet.azurewebsites.net{path}"
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    data = b"" if body is None else json.dumps(body).encode()
    if data:
        given |= {"content-type": "application/json", "content-length": str(len(data))}
    request = Message(
        method=method,
        url=url,
        headers={"host": "fleet.azurewebsites.net"} | given,
        query=dict(parse_qsl(urlsplit(url).query)),
        params={"route": urlsplit(url).path.removeprefix("/api/")},
        body=Message(bytes=data) if data else Message(),
    )
    return Call("req", Message(http=request))


def _sys(name: str) -> Message:
    return as_json({"MethodName": name, "UtcNow": "2026-11-22T23:00:00Z", "RandGuid": "0"})


class Worker:
    """A worker process with the app indexed and its functions loaded.

    Parameters
    ----------
    settings
        The app settings, and nothing else of this environment that has to do with this project.
    is_hurried
        Whether azure-eventhub sleeps less than it does: see `tests.amqp.sdk`.
    """

    def __init__(self, settings: Mapping[str, str], *, is_hurried: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        arguments = (other, dict(settings), is_hurried)
        self.process = context.Process(target=_serve, args=arguments)
        self.process.start()
        other.close()
        started = self._pipe.recv()
        if isinstance(started, str):
            self.process.join()
            raise RuntimeError(started)  # noqa: TRY004 - it is what the worker said
        self.functions: dict[str, Any] = started["functions"]
        self.seconds: float = started["seconds"]
        self.modules: frozenset[str] = started["modules"]

    def invoke(self, function: str, call: Call, *, profile: bool = False) -> Answer:
        """Invoke a function, and wait for what comes of it.

        Parameters
        ----------
        profile
            Give as result where the time went, as text of cProfile.
        """
        self._pipe.send((function, call, profile))
        answer: Answer = self._pipe.recv()
        return answer

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Send an HTTP request; gives status and decoded body."""
        answer = self.invoke("api", http(method, path, body, **headers))
        assert not answer.error, answer.error
        return int(answer.result.status_code), json.loads(answer.result.body.bytes)

    def kill(self) -> None:
        """End the process at once, as a crash does."""
        self.process.kill()
        self.process.join()

    def close(self) -> None:
        """Let the process end."""
        self._pipe.close()
        self.process.join(30)
        if self.process.is_alive():
            self.kill()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _serve(pipe: Connection, settings: dict[str, str], is_hurried: bool) -> None:
    """Be the worker, until the other end of the pipe is closed."""
    for name in [name for name in os.environ if name.startswith("SCORING_")]:
        del os.environ[name]
    os.environ.update(settings)
    warnings.simplefilter("error")
    sys.path.insert(0, str(ROOT))
    try:
        worker = _Served()
        pipe.send(worker.start())
    except Exception:  # noqa: BLE001 - the other process raises it
        pipe.send(traceback.format_exc())
        return
    if is_hurried:
        # Only now: what indexing the app imports is looked at, and azure-eventhub is not of it.
        from tests.amqp.sdk import hurried  # noqa: PLC0415

        with hurried():
            worker.serve(pipe)
    else:
        worker.serve(pipe)
    worker.stop()


class _Served:
    """Microsoft's worker in this process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.logs: list[tuple[str, dict[str, Any]]] = []
        handler = logging.Handler()
        handler.emit = self._note  # type: ignore[method-assign]
        logger = logging.getLogger("scoring")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)

    def start(self) -> dict[str, Any]:
        # In this process only: it is one app's, and is not typed.
        self.runtime = runtime = importlib.import_module("azure_functions_runtime")
        before = frozenset(sys.modules)
        begin = time.perf_counter()
        request = Message(capabilities={}, function_app_directory=str(ROOT))
        started = self._ask("worker_init_request", worker_init_request=request)
        seconds = time.perf_counter() - begin
        if started.result.status != "Success":
            raise RuntimeError(started.result.exception.message)
        runtime.start_threadpool_executor()
        found = self._ask("functions_metadata_request").function_metadata_results
        for function in found:
            load = Message(function_id=function.function_id)
            loaded = self._ask("function_load_request", function_load_request=load)
            assert loaded.result.status == "Success"
        self.ids = {function.name: function.function_id for function in found}
        return {
            "functions": {function.name: _described(function) for function in found},
            "seconds": seconds,
            "modules": frozenset(sys.modules) - before,
        }

    def serve(self, pipe: Connection) -> None:
        while True:
            try:
                function, call, profile = pipe.recv()
            except (EOFError, OSError):
                return
            pipe.send(self.invoke(function, call, profile=profile))

    def invoke(self, function: str, call: Call, *, profile: bool) -> Answer:
        request = Message(
            invocation_id="00000000-0000-0000-0000-000000000000",
            function_id=self.ids[function],
            input_data=[Message(name=call.argument, data=call.data)],
            trigger_metadata=call.metadata,
            trace_context=Message(trace_parent="", trace_state="", attributes={}),
            retry_context=Message(retry_count=0, max_retry_count=-1, exception=None),
        )
        self.logs = []
        begin = time.perf_counter()
        answered, where = self._timed(request) if profile else (self._invoked(request), None)
        seconds = time.perf_counter() - begin
        is_ok = answered.result.status == "Success"
        error = "" if is_ok else answered.result.exception.message
        value: Any = getattr(answered, "return_value", None)
        result = where or (value and value.http)
        return Answer(error, result, self.logs, seconds)

    def stop(self) -> None:
        self.runtime.stop_threadpool_executor()
        self.loop.close()
        from scoring.hosting import hosted_app  # noqa: PLC0415 - only here it is loaded anyway

        with hosted_app():
            pass

    def _invoked(self, request: Message) -> Any:
        return self._ask("invocation_request", invocation_request=request)

    def _timed(self, request: Message) -> tuple[Any, str]:
        """Invoke in this thread, so that the profiler sees all of it."""
        import cProfile  # noqa: PLC0415
        import io  # noqa: PLC0415
        import pstats  # noqa: PLC0415

        profiler = cProfile.Profile()
        self.loop.run_in_executor = _at_once  # type: ignore[method-assign, assignment]
        answered = profiler.runcall(self._invoked, request)
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).sort_stats("cumulative").print_stats(45)
        return answered, text.getvalue()

    def _ask(self, name: str, **request: Message) -> Any:
        message = Message(
            request=Message(**request), properties={"host": "127.0.0.1", "protos": _Protocol()}
        )
        return self.loop.run_until_complete(getattr(self.runtime, name)(message))

    def _note(self, record: logging.LogRecord) -> None:
        known = logging.LogRecord("", 0, "", 0, "", None, None).__dict__
        facts = {name: value for name, value in record.__dict__.items() if name not in known}
        facts.pop("message", None)
        self.logs.append((record.getMessage(), facts | {"level": record.levelname}))


async def _at_once(_: Any, function: Any, *arguments: Any) -> Any:
    return function(*arguments)


class _Protocol:
    """The types of the host's protocol, as far as the worker uses them."""

    class StatusResult(Message):
        Success = "Success"
        Failure = "Failure"

    class BindingInfo(Message):
        inout = 2
        out = 1
        undefined = 0

    def __getattr__(self, name: str) -> type[Message]:
        return Message


def _described(function: Any) -> dict[str, Any]:
    """Give what the host is told of a function."""
    retry = function.retry_options
    return {
        "bindings": [json.loads(binding) for binding in function.raw_bindings],
        "retry": retry and (retry.retry_strategy, retry.max_retry_count, retry.delay_interval),
    }


def version() -> str:
    """Give the version of the worker that is installed."""
    return importlib.metadata.version("azure-functions-runtime")
