"""The lists: what they show, their pages, and what they refuse."""

import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

from scoring import instants
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.api.answers import OPEN_GAPS
from scoring.bootstrap import App
from scoring.ports import Gap
from tests.adapters.stores import MINUTE, P0, P1, deliver, reject, save
from tests.api.conftest import BEGIN, LATER, Client, fill, opened, said

SENSORS = [(device, sensor) for device in ("d1", "d2", "d3", "d4") for sensor in ("s1", "s2")]
LISTS = ["/runs", "/anomalies", "/devices", "/devices?order=anomalies", "/rejects", "/partitions"]
LISTS += ["/devices/d1/sensors", "/devices/d1/sensors/s1/windows"]


@pytest.fixture(scope="module")
def filled_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder whose every list has some rows."""
    folder = tmp_path_factory.mktemp("filled") / "data"
    shutil.copytree(template, folder)
    with opened(folder) as app:
        fill_lists(app)
    return folder


@pytest.fixture
def filled(filled_template: Path, app: App) -> App:
    """Give every list some rows, before the app is first asked for any."""
    shutil.copytree(filled_template, app.folder, dirs_exist_ok=True)
    return app


def fill_lists(app: App) -> None:
    """Give every list some rows: anomalies in every window, some of them at one instant."""
    for turn in range(3):
        fill(app, *SENSORS, windows=4)
        run = submitted_again(app, turn)
        rows = [(d, s, n, 1.0 if n % 2 or d < "d3" else -1.0) for d, s in SENSORS for n in range(4)]
        said(app, run, *rows)
    for partition in (P0, P1):
        deliver(app.database, [0, 5], partition, enqueued=BEGIN)
        rejects = [reject(n, reason=("not_json", "bad_value")[n % 2]) for n in range(5)]
        save(app.database, partition, rejects=rejects, watermark=LATER, last_enqueued=BEGIN)


def submitted_again(app: App, turn: int) -> str:
    now = instants.moment(BEGIN + 10**12 + turn)
    run = app.submit("timer", app.shelf.current(), now, f"00000{turn}")
    assert run is not None
    return run.run_id


class TestPages:
    @pytest.mark.parametrize("path", LISTS)
    @pytest.mark.parametrize("limit", [1, 2, 3, 7])
    def test_walking_the_pages_shows_each_row_once_in_order(
        self, filled: App, client: Client, path: str, limit: int
    ) -> None:
        base, _, query = path.partition("?")
        params = dict([query.split("=")]) if query else {}
        everything = client.get(base, limit=1000, **params).json()

        assert everything["next_cursor"] is None
        assert len(everything["items"]) > 1
        for item in (walked := client.all_pages(base, limit, **params)) + everything["items"]:
            item.pop("lag_seconds", None)
        assert walked == everything["items"]

    @pytest.mark.parametrize(
        "filters",
        [
            {"device": "d1"},
            {"sensor": "s2"},
            {"device": "d2", "sensor": "s1"},
            {"run": "r20200112T134640Z-000002"},
            {"since": instants.text(BEGIN + MINUTE), "until": instants.text(BEGIN + 3 * MINUTE)},
            {"device": "d1", "since": instants.text(BEGIN + 2 * MINUTE)},
        ],
    )
    def test_pages_of_a_choice_of_anomalies_show_each_once(
        self, filled: App, client: Client, filters: dict[str, str]
    ) -> None:
        everything = client.get("/anomalies", limit=1000, **filters).json()["items"]

        assert len(everything) >= 2
        assert client.all_pages("/anomalies", 1, **filters) == everything
        keys = [(row["window_start"], row["device"], row["sensor"]) for row in everything]
        assert keys == sorted(keys, key=lambda key: (-instant_of(key[0]), *key[1:]))

    def test_rows_that_come_in_between_two_pages_move_nothing(
        self, filled: App, client: Client
    ) -> None:
        before = client.get("/runs", limit=1000).json()["items"]
        first = client.get("/runs", limit=1).json()
        fill(filled, ("d9", "s9"))
        submitted_again(filled, 9)

        rest = client.get("/runs", limit=1000, cursor=first["next_cursor"]).json()["items"]

        assert first["items"] + rest == before

    @pytest.mark.parametrize(
        "cursor",
        ["abc", "!", "e30", "W10", "bnVsbA", "WyJhIl0", "ü", "'; DROP TABLE runs; --", "A" * 2000],
    )
    @pytest.mark.parametrize("path", LISTS)
    def test_a_cursor_that_was_never_given_is_refused(
        self, filled: App, client: Client, path: str, cursor: str
    ) -> None:
        sign = "&" if "?" in path else "?"
        answer = client.get(f"{path}{sign}cursor={quote(cursor)}")

        assert answer.status_code == 400
        assert answer.json()["type"] == "urn:fleet-scoring:problem:bad-cursor"

    def test_a_cursor_of_another_list_or_choice_is_refused(
        self, filled: App, client: Client
    ) -> None:
        cursor = client.get("/anomalies", limit=1, device="d1").json()["next_cursor"]

        assert client.get("/anomalies", device="d1", cursor=cursor).status_code == 200
        assert client.get("/anomalies", device="d2", cursor=cursor).status_code == 400
        assert client.get("/rejects", cursor=cursor).status_code == 400

    @pytest.mark.parametrize("path", LISTS)
    @pytest.mark.parametrize("limit", ["0", "-1", "1001", "1e3", "x", "", "9" * 5000])
    def test_a_limit_that_is_out_of_bounds_is_refused(
        self, client: Client, path: str, limit: str
    ) -> None:
        sign = "&" if "?" in path else "?"
        answer = client.get(f"{path}{sign}limit={limit}")

        assert answer.status_code == 422
        assert answer.json()["errors"][0]["where"] == "query.limit"

    @pytest.mark.parametrize("path", [*LISTS, "/health", "/ready", "/fleet/check", "/runs/r1"])
    def test_a_parameter_that_nobody_knows_is_refused(self, client: Client, path: str) -> None:
        sign = "&" if "?" in path else "?"
        answer = client.get(f"{path}{sign}devcie=d1")

        assert answer.status_code == 422
        assert answer.json()["errors"] == [
            {"where": "query.devcie", "why": "Extra inputs are not permitted"}
        ]

    def test_an_empty_store_has_empty_lists(self, client: Client) -> None:
        for path in LISTS[:6]:
            assert client.get(path).json() == {"items": [], "next_cursor": None}


def instant_of(text: str) -> int:
    return int(instants.parse([text])[0][0])


class TestRows:
    def test_an_anomaly_says_where_when_how_much_and_which_run(
        self, filled: App, client: Client
    ) -> None:
        (row,) = client.get("/anomalies", limit=1).json()["items"]

        assert row == {
            "device": "d1", "sensor": "s1", "window_start": "2020-01-01T00:03:00Z",
            "anomaly_score": 1.0, "run_id": "r20200112T134640Z-000002",
        }  # fmt: skip

    def test_anomalies_of_an_unknown_run_are_not_found(self, client: Client) -> None:
        assert client.get("/anomalies", run="nope").status_code == 404

    def test_a_device_counts_each_window_once_however_often_it_was_scored(
        self, filled: App, client: Client
    ) -> None:
        assert client.get("/devices").json()["items"] == [
            {"device": "d1", "scored": 8, "anomalies": 8, "not_scored": 0},
            {"device": "d2", "scored": 8, "anomalies": 8, "not_scored": 0},
            {"device": "d3", "scored": 8, "anomalies": 4, "not_scored": 0},
            {"device": "d4", "scored": 8, "anomalies": 4, "not_scored": 0},
        ]

    def test_a_device_that_was_never_scored_is_listed_too(self, app: App, client: Client) -> None:
        fill(app, ("new", "s"))

        assert client.get("/devices").json()["items"] == [
            {"device": "new", "scored": 0, "anomalies": 0, "not_scored": 0}
        ]
        assert client.get("/devices", order="anomalies").json()["items"] == []
        assert client.get("/devices/new/sensors").json()["items"][0]["sensor"] == "s"

    def test_a_window_shows_its_numbers_and_its_score(self, filled: App, client: Client) -> None:
        (row,) = client.get("/devices/d3/sensors/s1/windows", limit=1).json()["items"]

        assert row["window_start"] == "2020-01-01T00:03:00Z"
        assert (row["count"], row["mean"], row["anomaly_score"]) == (3, 1.0, 1.0)
        assert (row["status"], row["is_anomaly"]) == ("scored", True)

    @pytest.mark.parametrize(
        ("since", "until", "expected"),
        [(1, 3, [2, 1]), (None, 1, [0]), (3, None, [3]), (3, 3, []), (9, None, [])],
    )
    def test_windows_of_a_range_include_its_begin_and_not_its_end(
        self,
        filled: App,
        client: Client,
        since: int | None,
        until: int | None,
        expected: list[int],
    ) -> None:
        ends = {"since": since, "until": until}
        params = {k: instants.text(BEGIN + n * MINUTE) for k, n in ends.items() if n is not None}

        rows = client.all_pages("/devices/d1/sensors/s1/windows", 1, **params)

        assert [(instant_of(row["window_start"]) - BEGIN) // MINUTE for row in rows] == expected

    @pytest.mark.parametrize(
        "path", ["/devices/zz/sensors", "/devices/zz/sensors/s1/windows",
                 "/devices/d1/sensors/zz/windows"]
    )  # fmt: skip
    def test_an_unknown_sensor_is_not_found(self, filled: App, client: Client, path: str) -> None:
        assert client.get(path).status_code == 404

    def test_names_may_hold_anything_that_a_device_may_send(self, app: App, client: Client) -> None:
        names = ["a/b", "x y", "..", "ü€🦆", "%2F", "a?b#c", "'; DROP TABLE runs; --", "a+b"]
        fill(app, *((name, name) for name in names))

        for name in names:
            path = f"/devices/{quote(name, safe='')}/sensors/{quote(name, safe='')}/windows"
            if name == "..":
                path = path.replace("..", "%2e%2e")
            assert len(client.get(path).json()["items"]) == 1, name
        assert len(client.all_pages("/devices", 3)) == len(names)

    def test_rejects_of_one_reason_can_be_asked_for(self, filled: App, client: Client) -> None:
        rows = client.all_pages("/rejects", 2, reason="bad_value")

        assert [(row["partition"], row["sequence_number"]) for row in rows] == [
            *[("hub/0", 1), ("hub/0", 3), ("hub/1", 1), ("hub/1", 3)]
        ]

    def test_a_partition_says_how_far_it_is_and_what_is_missing(
        self, filled: App, client: Client
    ) -> None:
        SqlIngestStore(filled.database).mark_lost(Gap(P1, 0, 1, 2, "open"))

        first, second = client.get("/partitions").json()["items"]

        assert (first["partition"], first["watermark"], first["missing"]) == (
            *("hub/0", "2020-01-02T00:00:00Z", 4),
        )
        assert first["lag_seconds"] > 0
        assert first["gaps"] == {"open": {"gaps": 1, "events": 4}}
        assert second["gaps"] == {
            "open": {"gaps": 1, "events": 2},
            "lost": {"gaps": 1, "events": 2},
        }

    def test_a_partition_names_the_events_that_never_came(
        self, filled: App, client: Client
    ) -> None:
        SqlIngestStore(filled.database).mark_lost(Gap(P1, 0, 1, 2, "open"))

        first, second = client.get("/partitions").json()["items"]

        assert first["open_gaps"] == [
            {"epoch": 0, "first_sequence": 1, "last_sequence": 4, "events": 4}
        ]
        assert second["open_gaps"] == [
            {"epoch": 0, "first_sequence": 3, "last_sequence": 4, "events": 2}
        ]

    def test_a_partition_without_a_gap_names_none(self, app: App, client: Client) -> None:
        deliver(app.database, [0, 1], enqueued=BEGIN)

        (partition,) = client.get("/partitions").json()["items"]

        assert (partition["gaps"], partition["open_gaps"]) == ({}, [])

    def test_of_very_many_gaps_the_first_are_named_and_all_are_counted(
        self, app: App, client: Client
    ) -> None:
        deliver(app.database, range(0, 2 * OPEN_GAPS + 20, 2), enqueued=BEGIN)

        (partition,) = client.get("/partitions").json()["items"]

        assert [gap["first_sequence"] for gap in partition["open_gaps"]] == [
            2 * n + 1 for n in range(OPEN_GAPS)
        ]
        assert partition["gaps"]["open"]["gaps"] == OPEN_GAPS + 9

    def test_rejects_are_replayed(self, app: App, client: Client) -> None:
        good = b'{"device":"d","sensor":"s","ts":"2020-01-01T00:00:00Z","value":1}'
        bodies = [reject(1, body=good, enqueued_time=BEGIN), reject(2)]
        save(app.database, rejects=bodies, watermark=LATER, last_enqueued=BEGIN)
        deliver(app.database, [1, 2], enqueued=BEGIN)

        assert client.post("/rejects/replay").json() == {"replayed": 1, "stay_rejected": 1}
        assert client.post("/rejects/replay").json() == {"replayed": 0, "stay_rejected": 1}


INJECTIONS = [
    "' OR '1'='1",
    "'; DROP TABLE runs; --",
    '" OR ""="',
    "1; SELECT pg_sleep(10)",
    "%' UNION SELECT body FROM rejects --",
    "\\",
    "*",
]


class TestInjection:
    @pytest.mark.parametrize("text", INJECTIONS)
    def test_a_filter_is_a_value_and_never_a_statement(
        self, filled: App, client: Client, text: str
    ) -> None:
        for params in ({"device": text}, {"sensor": text}):
            answer = client.get("/anomalies", **params)
            assert (answer.status_code, answer.json()["items"]) == (200, [])
        for params in ({"run": text}, {"since": text}):
            assert client.get("/anomalies", **params).status_code == 422
        assert client.get("/rejects", reason=text).status_code == 422
        assert client.post("/runs", {"devices": [text]}).status_code == 200
        assert len(client.get("/runs").json()["items"]) == 3

    @pytest.mark.parametrize("name", ["a%00b", "%00", ""])
    def test_a_nul_or_nothing_is_no_name(self, client: Client, name: str) -> None:
        assert client.get(f"/anomalies?device={name}").status_code == 422
        assert client.get(f"/devices/{name}/sensors/s/windows").status_code == 422
        assert client.get(f"/devices/{'x' * 129}/sensors/s/windows").status_code == 422


class TestRanges:
    @pytest.mark.parametrize("path", ["/anomalies", "/devices/d1/sensors/s1/windows"])
    def test_one_that_ends_before_it_begins_is_refused(
        self, filled: App, client: Client, path: str
    ) -> None:
        early, late = instants.text(BEGIN), instants.text(BEGIN + MINUTE)

        answer = client.get(path, since=late, until=early)

        assert answer.status_code == 422
        assert "since is later than until" in answer.json()["detail"]
        assert client.get(path, since=early, until=early).json()["items"] == []


class TestParameters:
    @pytest.mark.parametrize("path", [*LISTS, "/health", "/runs/r1"])
    def test_one_that_is_given_twice_is_refused(
        self, filled: App, client: Client, path: str
    ) -> None:
        sign = "&" if "?" in path else "?"

        answer = client.get(f"{path}{sign}limit=1&limit=2&cursor=a")

        assert answer.status_code == 422
        assert answer.json()["errors"] == [
            {"where": "query.limit", "why": "is given more than once"}
        ]
