"""What every request passes: bounds on its body, and no error as it is."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from scoring import errors
from scoring.api import create_api
from scoring.bootstrap import App
from scoring.errors import ScoringError
from tests.api.conftest import Client, ListeningEngine

JSON = {"Content-Type": "application/json"}


def is_problem(answer: httpx.Response, status: int) -> bool:
    said = answer.json()
    return (
        answer.status_code == said["status"] == status
        and answer.headers["content-type"] == "application/problem+json"
        and {"type", "title", "detail", "instance"} <= said.keys()
        and "Traceback" not in answer.text
    )


class TestBodies:
    def test_one_that_is_too_large_is_refused_by_what_it_announces(self, client: Client) -> None:
        answer = client.request("POST", "/api/runs", content=b" " * 65_537, headers=JSON)

        assert is_problem(answer, 413)
        assert answer.headers["connection"] == "close"

    def test_one_that_announces_nothing_is_refused_once_it_is_too_large(
        self, client: Client
    ) -> None:
        read = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal read
            while True:
                read += 1
                yield b" " * 1024

        answer = client.request("POST", "/api/runs", content=endless(), headers=JSON)

        assert is_problem(answer, 413)
        assert read < 70

    def test_the_largest_one_is_read(self, client: Client) -> None:
        body = b"{}".ljust(65_536)

        assert client.request("POST", "/api/runs", content=body, headers=JSON).status_code == 200

    @pytest.mark.parametrize(
        "kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "", None]
    )
    @pytest.mark.parametrize("path", ["/api/runs", "/api/rejects/replay", "/api/runs/r1/cancel"])
    def test_one_of_another_type_is_refused(
        self, client: Client, path: str, kind: str | None
    ) -> None:
        headers = {} if kind is None else {"Content-Type": kind}

        assert is_problem(client.request("POST", path, content=b"{}", headers=headers), 415)

    @pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
    def test_json_by_any_spelling_is_read(self, client: Client, kind: str) -> None:
        headers = {"Content-Type": kind}

        answer = client.request("POST", "/api/runs", content=b"{}", headers=headers)

        assert answer.status_code == 200

    @pytest.mark.parametrize(
        "body", [b"{", b"\xff\xfe", b"[" * 60_000, b'{"since": NaN', b"nul", b'{"a":1}{"b":2}']
    )
    def test_what_is_no_json_is_refused(self, client: Client, body: bytes) -> None:
        assert is_problem(client.request("POST", "/api/runs", content=body, headers=JSON), 400)


async def _call(api: FastAPI, receive: Any, path: str = "/api/runs") -> list[Message]:
    """Have the API handle one request whose body comes from `receive`."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "server": ("api", 80),
        "client": ("c", 1), "root_path": "",
    }  # fmt: skip
    await api(scope, receive, send)
    return sent


class TestSlowClients:
    def test_one_that_stops_sending_is_told_so(self, app: App) -> None:
        async def never() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        sent = asyncio.run(_call(create_api(app, body_timeout=0.01), never))

        assert sent[0]["status"] == 408

    def test_many_of_them_keep_nobody_else_waiting(self, app: App) -> None:
        api = create_api(app)

        async def ask_among_slow_ones() -> int:
            waiting = asyncio.Event()

            async def never() -> Message:
                await waiting.wait()
                return {"type": "http.disconnect"}

            slow = [asyncio.create_task(_call(api, never)) for _ in range(200)]
            transport = httpx.ASGITransport(api)
            async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
                answers = [await client.get("/api/runs") for _ in range(5)]
            assert not any(task.done() for task in slow)
            waiting.set()
            assert await asyncio.gather(*slow) == [[]] * 200
            return answers[-1].status_code

        assert asyncio.run(ask_among_slow_ones()) == 200


class TestUnknownPlaces:
    @pytest.mark.parametrize("path", ["/", "/api", "/api/", "/api/runs/", "/api/nope", "/docs"])
    def test_a_path_that_is_none_is_not_found(self, client: Client, path: str) -> None:
        assert is_problem(client.request("GET", path), 404)

    @pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
    def test_a_method_that_is_none_is_not_allowed(self, client: Client, method: str) -> None:
        answer = client.request(method, "/api/anomalies")

        assert is_problem(answer, 405)
        assert answer.headers["allow"] == "GET"

    def test_a_path_of_two_methods_tells_both(self, client: Client) -> None:
        assert client.request("PUT", "/api/runs").headers["allow"] == "GET, POST"

    def test_what_the_functions_host_puts_into_the_query_is_no_parameter(
        self, client: Client
    ) -> None:
        assert client.get("/devices?code=secret&limit=5&clientId=default").status_code == 200

    def test_an_instance_is_a_uri(self, client: Client) -> None:
        answer = client.request("GET", "/api/%3Cb%3E%20%C3%BC%00")

        assert answer.json()["instance"] == "/api/%3Cb%3E%20%C3%BC%00"


def all_errors(base: type[ScoringError] = ScoringError) -> Iterator[type[ScoringError]]:
    yield base
    for kind in base.__subclasses__():
        yield from all_errors(kind)


SECRET = "/srv/secret on db.internal"  # noqa: S105
KINDS = sorted({kind for kind in all_errors() if kind.__module__ == errors.__name__}, key=str)
STATUS = {
    "BadInput": 422, "UnreadableSource": 422, "ModelRefused": 422, "Misconfigured": 500,
    "InvalidFleet": 500, "InvalidPart": 500, "NotFound": 404, "Conflict": 409, "Transient": 503,
    "StorageUnusable": 507, "EngineFailed": 500, "ScoringError": 500,
}  # fmt: skip


class TestErrors:
    @pytest.mark.parametrize("kind", [*KINDS, RuntimeError])
    def test_each_becomes_a_problem_that_gives_nothing_away(
        self, app: App, client: Client, kind: type[Exception], caplog: pytest.LogCaptureFixture
    ) -> None:
        problems: Any = [SECRET] if kind is errors.Misconfigured else SECRET

        def fail() -> None:
            raise kind(problems)

        app.__dict__["replay_rejects"] = fail

        answer = client.post("/rejects/replay")

        assert is_problem(answer, STATUS.get(kind.__name__, 500))
        is_ours = answer.status_code >= 500
        assert (SECRET in answer.text) is not is_ours
        assert (SECRET in caplog.text) is is_ours
        assert ("retry-after" in answer.headers) is (answer.status_code == 503)

    def test_every_error_of_the_project_has_its_status(self) -> None:
        assert {kind.__name__ for kind in KINDS} == STATUS.keys()

    def test_a_request_is_logged_once_without_what_it_said(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger="scoring.api")

        client.get("/anomalies", device="secret")

        (record,) = caplog.records
        assert record.message == "api.request"
        assert record.__dict__["route"] == "/anomalies"
        assert record.__dict__["status"] == 200
        assert "secret" not in str(record.__dict__)


class TestReadiness:
    def test_health_looks_at_nothing(self, client: Client, engine: ListeningEngine) -> None:
        engine.unreachable = True

        assert client.get("/health").json() == {"status": "ok"}

    def test_all_that_is_there_is_ready(self, client: Client) -> None:
        answer = client.get("/ready")

        assert answer.status_code == 200
        assert answer.json()["checks"] == dict.fromkeys(
            ("database", "blobs", "fleet", "engine"), "ok"
        )

    def test_an_engine_that_is_down_is_named(self, client: Client, engine: ListeningEngine) -> None:
        engine.unreachable = True

        answer = client.get("/ready")

        assert is_problem(answer, 503)
        assert answer.json()["detail"] == "not ready: engine"
        assert answer.json()["checks"]["engine"] == "busy or unreachable"
        assert "secret.example" not in answer.text

    def test_a_store_without_a_fleet_is_not_ready(self, app: App, client: Client) -> None:
        app.blobs.delete("fleets/current")

        assert client.get("/ready").json()["detail"] == "not ready: fleet"

    def test_a_database_that_cannot_be_opened_is_named(self, app: App, client: Client) -> None:
        (app.folder / "store.db").write_bytes(b"no database " * 1000)

        answer = client.get("/ready")

        assert answer.json()["checks"]["database"] == "unusable"
        assert is_problem(client.get("/runs"), 507)

    def test_a_fleet_is_checked(self, client: Client) -> None:
        found = client.get("/fleet/check").json()

        assert (found["clean"], found["tried"]) == (False, False)
        assert found["total"]["orphans"] == 1
        assert [(one["device"], one["sensor"]) for one in found["orphans"]] == [("d1", "s1")]
        assert client.get("/fleet/check", try_models=True).json()["tried"] is True
        assert client.get("/fleet/check", version="f9").status_code == 404
        assert client.get("/fleet/check", version="../x").status_code == 422
