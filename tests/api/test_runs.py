"""Starting, showing and canceling runs over HTTP."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from scoring import instants
from scoring.adapters.sql.runs import SqlRunStore
from scoring.api import runs
from scoring.bootstrap import App
from scoring.errors import Misconfigured
from scoring.ports import LogTail
from tests.adapters.stores import MINUTE, ended, windows_of
from tests.api.conftest import BEGIN, Client, ListeningEngine, fill, said, submitted


def at(window: int) -> str:
    return instants.text(BEGIN + window * MINUTE)


def taken(app: App, run_id: str) -> list[tuple[str, str, int]]:
    """Name the windows that a run has: device, sensor, number."""
    run = SqlRunStore(app.database).run(run_id)
    return [(d, s, (start - BEGIN) // MINUTE) for d, s, start in windows_of(app.database, run)]


class TestStarting:
    def test_a_run_is_started_and_its_place_is_told(
        self, app: App, client: Client, engine: ListeningEngine
    ) -> None:
        fill(app, ("d1", "s1"))

        answer = client.post("/runs")

        assert answer.status_code == 202
        run_id = answer.json()["run_id"]
        assert answer.headers["location"] == answer.json()["location"] == f"/api/runs/{run_id}"
        assert list(engine.orders) == [run_id]
        shown = client.get(f"/runs/{run_id}").json()
        assert (shown["state"], shown["trigger"], shown["windows"]) == ("submitted", "http", 1)

    def test_a_run_that_the_engine_refuses_is_told_all_the_same_and_shows_why(
        self, app: App, client: Client, engine: ListeningEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_: object) -> None:
            raise Misconfigured(["Azure ML denies access"])

        monkeypatch.setattr(engine, "submit", refuse)
        fill(app, ("d1", "s1"))

        answer = client.post("/runs")

        assert answer.status_code == 202
        shown = client.get(f"/runs/{answer.json()['run_id']}").json()
        assert shown["state"] == "exported"
        assert shown["cause"] == "not submitted yet: settings: Azure ML denies access"

    def test_nothing_pending_is_told_and_makes_no_run(self, client: Client) -> None:
        answer = client.post("/runs")

        assert answer.status_code == 200
        assert answer.json()["detail"].startswith("nothing to score")
        assert client.get("/runs").json()["items"] == []

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ({}, [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)]),
            ({"devices": ["b"]}, [("b", 0), ("b", 1), ("b", 2)]),
            ({"since": at(1)}, [("a", 1), ("a", 2), ("b", 1), ("b", 2)]),
            ({"until": at(1)}, [("a", 0), ("b", 0)]),
            ({"since": at(1), "until": at(2), "devices": ["a", "zz"]}, [("a", 1)]),
        ],
    )
    def test_a_run_takes_the_windows_that_were_asked_for_and_no_other(
        self, app: App, client: Client, body: dict[str, Any], expected: list[tuple[str, int]]
    ) -> None:
        fill(app, ("a", "s"), ("b", "s"), windows=3)

        run_id = client.post("/runs", body).json()["run_id"]

        assert [(d, n) for d, _, n in taken(app, run_id)] == expected

    def test_a_range_that_ends_before_it_begins_is_refused(self, app: App, client: Client) -> None:
        fill(app, ("a", "s"))

        answer = client.post("/runs", {"since": at(2), "until": at(1)})

        assert answer.status_code == 422
        assert "since is later than until" in answer.json()["detail"]
        assert client.get("/runs").json()["items"] == []

    @pytest.mark.parametrize("body", [{"devices": ["zz"]}, {"since": at(9)}, {"until": at(0)}])
    def test_a_scope_without_a_window_makes_no_run(
        self, app: App, client: Client, body: dict[str, Any]
    ) -> None:
        fill(app, ("a", "s"))

        assert client.post("/runs", body).status_code == 200

    def test_windows_are_scored_again_only_when_asked_for(self, app: App, client: Client) -> None:
        fill(app, ("a", "s"), ("b", "s"))
        submitted(app)

        assert client.post("/runs").status_code == 200
        answer = client.post("/runs", {"rescore": True, "devices": ["b"]})

        assert answer.status_code == 202
        assert taken(app, answer.json()["run_id"]) == [("b", "s", 0)]

    def test_an_engine_that_cannot_be_reached_does_not_lose_the_run(
        self, app: App, client: Client, engine: ListeningEngine
    ) -> None:
        fill(app, ("a", "s"))
        engine.unreachable = True

        answer = client.post("/runs")

        assert answer.status_code == 202
        run_id = answer.json()["run_id"]
        assert client.get(f"/runs/{run_id}").json()["state"] == "exported"

    @pytest.mark.parametrize("fleet", ["f0", "nope"])
    def test_a_fleet_that_is_not_there_makes_no_run(
        self, app: App, client: Client, fleet: str
    ) -> None:
        fill(app, ("a", "s"))

        assert client.post("/runs", {"fleet": fleet}).status_code == 404
        assert client.get("/runs").json()["items"] == []

    @pytest.mark.parametrize(
        "body",
        [
            {"since": "yesterday"},
            {"since": 5},
            {"devices": "d1"},
            {"devices": [""]},
            {"devices": ["x" * 129]},
            {"devices": ["a\0"]},
            {"devices": ["\ud800"]},
            {"devices": ["d"] * 1001},
            {"fleet": "../../etc"},
            {"fleet": ".."},
            {"rescore": "yes"},
            {"rescoer": True},
            [],
            "text",
        ],
    )
    def test_a_body_that_is_wrong_is_refused_with_the_place(
        self, client: Client, body: object
    ) -> None:
        answer = client.post("/runs", body)

        assert answer.status_code == 422
        assert answer.json()["errors"][0]["where"].startswith("body")


class TestIdempotency:
    def test_the_same_request_again_gets_the_same_answer_and_makes_no_run(
        self, app: App, client: Client
    ) -> None:
        fill(app, ("a", "s"))
        first = client.post("/runs", {"devices": ["a"]}, Idempotency_Key="k1")
        said(app, first.json()["run_id"], ("a", "s", 0, 1.0))
        fill(app, ("a", "s"), windows=2)

        again = client.post("/runs", {"devices": ["a"]}, Idempotency_Key="k1")

        assert (again.status_code, again.content) == (202, first.content)
        assert again.headers["location"] == first.headers["location"]
        assert len(client.get("/runs").json()["items"]) == 1

    def test_another_request_of_the_same_key_is_refused(self, app: App, client: Client) -> None:
        fill(app, ("a", "s"))
        client.post("/runs", {"devices": ["a"]}, Idempotency_Key="k1")

        answer = client.post("/runs", {"devices": ["b"]}, Idempotency_Key="k1")

        assert answer.status_code == 409
        assert "another request" in answer.json()["detail"]

    def test_another_key_makes_another_run(self, app: App, client: Client) -> None:
        fill(app, ("a", "s"))
        first = client.post("/runs", Idempotency_Key="k1").json()["run_id"]
        fill(app, ("a", "s"))

        assert client.post("/runs", Idempotency_Key="k2").json()["run_id"] != first

    def test_a_key_is_not_spent_while_there_is_nothing_to_score(
        self, app: App, client: Client
    ) -> None:
        assert client.post("/runs", Idempotency_Key="k1").status_code == 200
        fill(app, ("a", "s"))

        assert client.post("/runs", Idempotency_Key="k1").status_code == 202

    def test_a_run_that_was_interrupted_goes_on_with_its_own_scope(
        self, app: App, client: Client
    ) -> None:
        fill(app, ("a", "s"), ("b", "s"))
        first = client.post("/runs", {"devices": ["b"]}, Idempotency_Key="k1").json()["run_id"]
        with app.database.write() as connection:
            connection.exec_driver_sql("UPDATE window_partials SET claimed_by = NULL")
            connection.exec_driver_sql("DELETE FROM run_parts")
            connection.exec_driver_sql("UPDATE runs SET state = 'claiming'")

        again = client.post("/runs", {"devices": ["b"]}, Idempotency_Key="k1").json()["run_id"]

        assert again == first
        assert taken(app, first) == [("b", "s", 0)]

    def test_the_order_of_devices_makes_no_other_request(self, app: App, client: Client) -> None:
        fill(app, ("a", "s"), ("b", "s"))
        first = client.post("/runs", {"devices": ["a", "b"]}, Idempotency_Key="k1")

        again = client.post("/runs", {"devices": ["b", "a", "b"]}, Idempotency_Key="k1")
        other = client.post("/runs", {"devices": ["a"]}, Idempotency_Key="k1")

        assert (first.status_code, again.status_code, other.status_code) == (202, 202, 409)
        assert again.json() == first.json()

    def test_requests_of_one_key_at_once_make_one_run(self, app: App, client: Client) -> None:
        fill(app, ("a", "s"))
        together = Barrier(4)

        def start(_: int) -> tuple[int, str]:
            together.wait()
            answer = client.post("/runs", Idempotency_Key="k1")
            return answer.status_code, answer.text

        with ThreadPoolExecutor(4) as pool:
            answers = set(pool.map(start, range(4)))

        assert len(answers) == 1
        assert next(iter(answers))[0] == 202

    @pytest.mark.parametrize("key", ["", "x" * 256, "a b"])
    def test_a_key_that_is_none_is_refused(self, client: Client, key: str) -> None:
        assert client.post("/runs", Idempotency_Key=key).status_code == 422

    def test_another_claim_that_is_under_way_is_finished_first(
        self, app: App, client: Client
    ) -> None:
        fill(app, ("a", "s"), ("b", "s"))
        now = instants.moment(BEGIN + 10**12)
        other = app.submit.begin("timer", app.shelf.current(), now, "00000b")
        assert other is not None

        answer = client.post("/runs", {"rescore": True, "devices": ["b"]})

        assert answer.json()["run_id"] != other.run_id
        # The newer one has what both want; the older one has the rest.
        assert taken(app, answer.json()["run_id"]) == [("b", "s", 0)]
        assert client.get(f"/runs/{other.run_id}").json()["state"] == "submitted"


class TestShowing:
    def test_a_run_shows_what_came_of_it(self, app: App, client: Client) -> None:
        fill(app, ("a", "s"), ("b", "s"))
        run_id = submitted(app)
        said(app, run_id, ("a", "s", 0, 1.0), ("b", "s", 0, None))

        shown = client.get(f"/runs/{run_id}").json()

        assert (shown["windows"], shown["indexed"], shown["scored"]) == (2, 2, 1)
        assert (shown["anomalies"], shown["not_scored"]) == (1, 1)
        assert shown["by_sensor"] == [{"device": "a", "sensor": "s", "anomalies": 1}]
        assert client.all_pages(f"/runs/{run_id}/sensors", 1) == [
            {"device": "a", "sensor": "s", "scored": 1, "anomalies": 1, "not_scored": 0},
            {"device": "b", "sensor": "s", "scored": 0, "anomalies": 0, "not_scored": 1},
        ]
        assert [part["indexed_rows"] for part in shown["part"]] == [2]
        assert shown["created_at"].endswith("Z")

    def test_a_run_says_whether_it_shows_all_its_parts(
        self, app: App, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(app, ("a", "s"))
        run_id = submitted(app)

        assert client.get(f"/runs/{run_id}").json()["more_parts"] is False
        monkeypatch.setattr(runs, "PARTS", 0)
        shown = client.get(f"/runs/{run_id}").json()
        assert (shown["parts"], shown["part"], shown["more_parts"]) == (1, [], True)

    def test_a_failed_run_shows_its_cause(self, app: App, client: Client) -> None:
        fill(app, ("a", "s"))
        run_id = submitted(app)
        run = SqlRunStore(app.database).run(run_id)
        ended(app.database, run, cause="no memory", now=BEGIN)

        shown = client.get(f"/runs/{run_id}").json()

        assert (shown["state"], shown["cause"]) == ("failed", "no memory")
        assert shown["ended_at"] == "2020-01-01T00:00:00Z"

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_an_unknown_run_is_not_found(self, client: Client, method: str) -> None:
        path = "/api/runs/r20200101T000000Z-000000" + ("/cancel" if method == "POST" else "")

        answer = client.request(method, path)

        assert answer.status_code == 404
        assert "there is no run" in answer.json()["detail"]

    @pytest.mark.parametrize(
        "run_id", ["..%2F..%2Fetc%2Fpasswd", "%2e%2e", "a%00b", "a'--", "x" * 41, "..%5c"]
    )
    def test_what_is_no_run_id_leads_nowhere(self, client: Client, run_id: str) -> None:
        for path in (f"/api/runs/{run_id}", f"/api/runs/{run_id}/cancel"):
            method = "POST" if path.endswith("/cancel") else "GET"
            assert client.request(method, path).status_code in {404, 422}


class TestCanceling:
    def test_a_canceled_run_gives_its_windows_back(
        self, app: App, client: Client, engine: ListeningEngine
    ) -> None:
        fill(app, ("a", "s"))
        run_id = submitted(app)

        answer = client.post(f"/runs/{run_id}/cancel")

        assert (answer.status_code, answer.json()["state"]) == (200, "canceled")
        assert engine.canceled == [run_id]
        assert client.post("/runs").status_code == 202

    def test_a_run_that_has_ended_cannot_be_canceled(self, app: App, client: Client) -> None:
        fill(app, ("a", "s"))
        run_id = submitted(app)
        client.post(f"/runs/{run_id}/cancel")

        answer = client.post(f"/runs/{run_id}/cancel")

        assert answer.status_code == 409
        assert "cannot be canceled" in answer.json()["detail"]


class TestLogs:
    def test_the_logs_of_a_failed_run_are_named_and_shown(self, app: App, client: Client) -> None:
        fill(app, ("d1", "s1"))
        run_id = submitted(app)
        app.logs.keep(run_id, [LogTail("child/std_log.txt", "MemoryError: é\n")])

        assert client.get(f"/runs/{run_id}").json()["logs"] == ["child/std_log.txt"]
        assert client.get(f"/runs/{run_id}/logs/child/std_log.txt").json() == {
            "name": "child/std_log.txt",
            "text": "MemoryError: é\n",
        }

    @pytest.mark.parametrize(
        "name", ["other.txt", "..%2Finput%2F1%2Fpart-00000.parquet", "%2E%2E/part", "a//b"]
    )
    def test_what_is_no_log_of_the_run_is_not_found(
        self, app: App, client: Client, name: str
    ) -> None:
        fill(app, ("d1", "s1"))
        run_id = submitted(app)

        assert client.get(f"/runs/{run_id}/logs/{name}").status_code == 404

    def test_a_run_that_is_not_there_has_no_logs(self, client: Client) -> None:
        assert client.get("/runs/r20200101T000000Z-000000/logs/a.txt").status_code == 404
