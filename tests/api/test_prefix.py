"""Addresses in answers, where a proxy takes a part of the path away."""

import asyncio
import json
from typing import Any
from urllib.parse import urljoin

import azure.functions as func
import httpx
import pytest

from scoring.api import create_api
from scoring.bootstrap import App
from tests.api.conftest import fill

PREFIX = "X-Forwarded-Prefix"


def asked(app: App, method: str, path: str, **headers: str) -> func.HttpResponse:
    """Ask as the Functions host does: without a prefix, and with all headers as they came."""
    url = f"https://fleet.azurewebsites.net{path}"
    request = func.HttpRequest(method, url, headers=headers, body=b"")
    middleware = func.AsgiMiddleware(create_api(app))  # type: ignore[no-untyped-call]
    answer: func.HttpResponse = asyncio.run(middleware.handle_async(request))
    return answer


def body(answer: func.HttpResponse) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(answer.get_body())
    return content


def location(app: App, **headers: str) -> str:
    fill(app, ("d1", "s1"))
    answer = asked(app, "POST", "/api/runs", **headers)
    assert answer.status_code == 202
    found = answer.headers["Location"]
    assert body(answer)["location"] == found
    return str(found).replace(body(answer)["run_id"], "RUN")


class TestFunctions:
    @pytest.mark.parametrize(
        ("given", "prefix"),
        [
            ("/fleet", "/fleet"),
            ("/fleet/", "/fleet"),
            ("/api", "/api"),
            ("/a/b-c_d.e~f", "/a/b-c_d.e~f"),
            ("/outer, /inner", "/outer/inner"),
            # What is no prefix, or one of somebody who means harm, is none.
            ("", ""),
            ("/", ""),
            ("fleet", ""),
            ("//evil.example", ""),
            ("/fleet//evil.example", ""),
            ("/\\evil.example", ""),
            ("https://evil.example", ""),
            ("/fleet/../..", ""),
            ("/fleet/./x", ""),
            ("/fleet?x=1", ""),
            ("/fleet\r\nSet-Cookie: a=b", ""),
            ("/fleet, //evil.example", ""),
            ("/flöet", ""),
            ("/" + "a" * 200, ""),
        ],
    )
    def test_the_place_of_a_run_is_below_the_prefix(
        self, app: App, given: str, prefix: str
    ) -> None:
        assert location(app, **{PREFIX: given}) == f"{prefix}/api/runs/RUN"

    def test_without_a_proxy_it_is_the_path_of_the_api(self, app: App) -> None:
        assert location(app) == "/api/runs/RUN"

    def test_a_client_never_gets_another_host_than_it_asked(self, app: App) -> None:
        evil = "evil.example"
        found = location(
            app,
            **{"X-Forwarded-Host": evil, "X-Forwarded-Proto": "gopher", "Host": evil},
            **{"Forwarded": f"host={evil};proto=http", "X-Original-URL": f"https://{evil}/"},
        )

        public = "https://fleet.example/fleet/api/runs"
        assert urljoin(public, found) == "https://fleet.example/api/runs/RUN"

    def test_a_client_of_a_proxy_finds_its_run(self, app: App) -> None:
        found = location(app, **{PREFIX: "/fleet"})

        public = "https://fleet.example/fleet/api/runs"
        assert urljoin(public, found) == "https://fleet.example/fleet/api/runs/RUN"

    def test_the_document_says_below_what_its_paths_are(self, app: App) -> None:
        below = asked(app, "GET", "/api/openapi.json", **{PREFIX: "/fleet"})
        plain = asked(app, "GET", "/api/openapi.json")

        assert body(below)["servers"] == [{"url": "/fleet"}]
        assert body(plain) == {k: v for k, v in body(below).items() if k != "servers"}
        # A cache must not give to others what one client asked for.
        assert {answer.headers["Vary"] for answer in (below, plain)} == {PREFIX}

    @pytest.mark.parametrize("path", ["/api/runs/unknown", "/api/nothing", "/api/runs?limit=x"])
    def test_a_problem_is_of_the_path_that_the_client_asked_for(self, app: App, path: str) -> None:
        answer = asked(app, "GET", path, **{PREFIX: "/fleet"})

        assert answer.status_code in {404, 422}
        assert body(answer)["instance"] == f"/fleet{path.partition('?')[0]}"

    def test_a_body_that_is_refused_before_the_routes_is_too(self, app: App) -> None:
        answer = asked(app, "POST", "/api/runs", **{PREFIX: "/fleet", "Content-Length": "99999999"})

        assert (answer.status_code, body(answer)["instance"]) == (413, "/fleet/api/runs")


class TestServer:
    """An ASGI server that was told the prefix."""

    @pytest.mark.parametrize("path", ["/api/runs", "/fleet/api/runs"])
    @pytest.mark.parametrize("headers", [{}, {PREFIX: "/fleet"}])
    def test_its_root_path_is_the_prefix(
        self, app: App, path: str, headers: dict[str, str]
    ) -> None:
        fill(app, ("d1", "s1"))

        async def ask() -> tuple[httpx.Response, httpx.Response]:
            transport = httpx.ASGITransport(create_api(app), root_path="/fleet")
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                started = await client.post(path, headers=headers)
                return started, await client.get(f"{path}/unknown", headers=headers)

        started, unknown = asyncio.run(ask())

        assert started.headers["Location"] == f"/fleet/api/runs/{started.json()['run_id']}"
        assert unknown.json()["instance"] == "/fleet/api/runs/unknown"
