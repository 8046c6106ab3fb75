"""The API over a small system: a real store and fleet, and an engine that only listens."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from scoring import instants
from scoring.adapters.sql.runs import SqlRunStore
from scoring.api import create_api
from scoring.bootstrap import App
from scoring.errors import Transient
from scoring.fleet import Model, Training, train_model
from scoring.ports import EngineReport, EngineState, ScoringOrder
from scoring.settings import Settings
from tests.adapters.stores import MINUTE, P0, partials, predictions, save

BEGIN = 1_577_836_800 * instants.SECOND
LATER = BEGIN + 86_400 * instants.SECOND
"""2020-01-01: long final, whatever the clock says."""


@dataclass
class ListeningEngine:
    """Accepts what it is given, and has not begun."""

    unreachable: bool = False
    orders: dict[str, ScoringOrder] = field(default_factory=dict)
    canceled: list[str] = field(default_factory=list)

    def submit(self, order: ScoringOrder) -> None:
        self._reach()
        self.orders[order.run_id] = order

    def poll(self, run_id: str) -> EngineReport | None:
        self._reach()
        return EngineReport(EngineState.QUEUED) if run_id in self.orders else None

    def cancel(self, run_id: str) -> None:
        self._reach()
        self.canceled.append(run_id)

    def close(self) -> None:
        """Nothing to close."""

    def _reach(self) -> None:
        if self.unreachable:
            message = "no route to https://secret.example"
            raise Transient(message)


class Client:
    """Sends requests, each in an event loop of its own."""

    def __init__(self, api: FastAPI) -> None:
        self.api = api

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.api)
            async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
                return await client.request(method, path, **more)

        return asyncio.run(send())

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self.request("GET", f"/api{path}", params=params or None)

    def post(self, path: str, json: Any = None, **headers: str) -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if json is None:
            return self.request("POST", f"/api{path}", headers=sent)
        sent |= {"Content-Type": "application/json"}
        return self.request("POST", f"/api{path}", headers=sent, content=dumps(json))

    def all_pages(self, path: str, limit: int, **params: Any) -> list[dict[str, Any]]:
        """Walk a list to its end."""
        items: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            answer = self.get(path, limit=limit, **params, **cursor)
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert len(found["items"]) <= limit
            items += found["items"]
            if found["next_cursor"] is None:
                return items
            assert found["items"]
            cursor = {"cursor": found["next_cursor"]}


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with an empty store and a fleet."""
    folder = tmp_path_factory.mktemp("template") / "data"
    with App(Settings.load({"SCORING_DATA": str(folder), "SCORING_WINDOW": "1min"})) as app:
        assert app.window == MINUTE
        _ = app.queries
        model = train_model(np.random.default_rng(1).normal(3, 2, (40, 1)), Training())
        app.shelf.publish([Model("d1", "s1", model)], ("mean",), instants.moment(BEGIN))
    return folder


@pytest.fixture
def app(template: Path, tmp_path: Path) -> Iterator[App]:
    shutil.copytree(template, tmp_path / "data")
    with opened(tmp_path / "data") as app:
        yield app


@contextmanager
def opened(folder: Path) -> Iterator[App]:
    """Open an app on a folder, with an engine that only listens."""
    given = {
        "SCORING_DATA": str(folder),
        "SCORING_WINDOW": "1min",
        "SCORING_MAX_ACTIVE_RUNS": "1000",
    }
    with App(Settings.load(given)) as app:
        app.__dict__["engine"] = ListeningEngine()
        yield app


@pytest.fixture
def engine(app: App) -> ListeningEngine:
    engine: Any = app.engine
    assert isinstance(engine, ListeningEngine)
    return engine


class AnyApp:
    """Stands for one app after another, so that all of them share an API.

    To make an API takes longer than most tests of it.
    """

    def __init__(self) -> None:
        self.app: App | None = None
        self._api: FastAPI | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)

    def api_of(self, app: App) -> FastAPI:
        """Give the API, which serves this app from now on."""
        self.app = app
        if self._api is None:
            stand_in: Any = self
            self._api = create_api(stand_in)
        return self._api


@pytest.fixture(scope="session")
def any_app() -> AnyApp:
    return AnyApp()


@pytest.fixture
def client(app: App, any_app: AnyApp) -> Client:
    return Client(any_app.api_of(app))


def fill(app: App, *sensors: tuple[str, str], windows: int = 1) -> None:
    """Give sensors windows that are final by now."""
    starts = [BEGIN + number * MINUTE for number in range(windows)]
    rows = {(device, sensor, start): [1.0] for device, sensor in sensors for start in starts}
    save(app.database, P0, partials=partials(rows), watermark=LATER, last_enqueued=BEGIN)


def submitted(app: App) -> str:
    """Have the timer submit a run of all that is pending; gives its id."""
    run = app.submit("timer", app.shelf.current(), instants.moment(BEGIN + 10**12), "00000a")
    assert run is not None
    return run.run_id


def said(app: App, run_id: str, *rows: tuple[str, str, int, float | None]) -> None:
    """Index the one part of a run: device, sensor, number of the window, score."""
    store = SqlRunStore(app.database)
    run = store.run(run_id)
    (part,) = store.parts(run)
    table = predictions(*((d, s, BEGIN + n * MINUTE, score) for d, s, n, score in rows))
    store.index_part(run, part.number, "t1", table)
