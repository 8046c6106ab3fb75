"""The command line: every command works, and bad input is one clear line and an exit code."""

import errno
import io
import json
import os
import pickle
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import exc

from scoring.adapters.local_engine.run_folder import RunFolder
from scoring.adapters.sql import bulk
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.rebuild import SqlRebuildStore
from scoring.adapters.sql.schema import HEAD
from scoring.bootstrap import open_app
from scoring.demo import demo_folder
from scoring.instants import SECOND
from scoring.runs import RunState, ScoringRun
from tests.adapters.engines import eventually
from tests.e2e.commands import Outcome, run_here

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "scoring"]
HEADER = "device,sensor,ts,value"
DEMO = (
    *("demo", "--devices", "4", "--sensors", "2", "--duration", "6h", "--interval", "30s"),
    *("--window", "1min", "--runs", "2"),
)


Scoring = Callable[..., Outcome]


def whole_row(out: str) -> list[str]:
    """Return the headings of the table in what was printed, and what is around them."""
    return next(line for line in out.splitlines() if line.startswith("┃")).split("┃")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SCORING_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SCORING_PROCESSES", "1")


@pytest.fixture
def scoring(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Scoring:
    """Run a command in this process, as `python -m scoring` does."""

    def run(*arguments: str | Path, data: Path = data, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return run_here(monkeypatch, capsys, "--data", data, *arguments)

    return run


def write_readings(path: Path, windows: int = 40, devices: int = 2, begin: int = 0) -> Path:
    """Write a reading a minute of each device's sensor s, ever a little different."""
    at = "2026-01-05T{:02}:{:02}:00Z".format
    rows = [
        f"d{device},s,{at(minute // 60, minute % 60)},{minute * 7 % 11 + device}.5"
        for minute in range(begin, begin + windows)
        for device in range(devices)
    ]
    path.write_text("\n".join([HEADER, *rows, ""]))
    return path


@pytest.fixture
def readings(tmp_path: Path) -> Path:
    return write_readings(tmp_path / "readings.csv")


@pytest.fixture(scope="module")
def scored_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingest, train and score in a data folder: by subprocesses, which show that these work."""
    folder = tmp_path_factory.mktemp("scored")
    readings = write_readings(folder / "readings.csv")
    rejected = folder / "rejected.ndjson"
    rejected.write_bytes(
        b'{"device": "d0", "sensor": "s", "ts": "2026-01-05T00:00:01Z", "temperature": 1.5}\n'
        b'\x1b[2J not JSON \xff\n{"device": "d0", "sensor": "s", "ts": "later", "value": 1}\n'
    )
    commands = [
        ["ingest", str(readings), "--window", "1min"],
        ["ingest", str(rejected)],
        ["fleet", "train", "--features", "mean,max"],
        ["run"],
    ]
    for arguments in commands:
        done = execute("--data", str(folder / "data"), *arguments)
        assert (done.code, done.err) == (0, ""), done
    return folder / "data"


@pytest.fixture
def scored(scored_once: Path, data: Path) -> Path:
    shutil.copytree(scored_once, data)
    return data


def execute(*arguments: str, stdin: bytes = b"", stdout: int = subprocess.PIPE) -> Outcome:
    """Run a command as a process of its own."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=clean_environment(),
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    return Outcome(done.returncode, (done.stdout or b"").decode(), done.stderr.decode())


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("SCORING_")}
    return kept | {"SCORING_PROCESSES": "1"} | more


def sql(folder: Path, statement: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(folder / "store.db")) as connection, connection:
        return connection.execute(statement, values).fetchall()


class TestEveryCommand:
    def test_help_names_every_command(self) -> None:
        done = execute("--help")

        assert done.code == 0
        for command in (
            *("demo", "simulate", "ingest", "run", "runs", "anomalies", "windows", "rejects"),
            *("status", "fleet", "rebuild-windows", "repair-gaps", "migrate"),
        ):
            assert re.search(rf"^\W*{command}\b", done.out, re.MULTILINE), command

    def test_status_shows_partitions_and_what_waits(self, scoring: Scoring, scored: Path) -> None:
        status = scoring("status", "--json").json

        assert status["window"] == 60_000_000
        assert (status["windows"], status["pending"]) == (80, 0)
        assert sum(p["readings"] for p in status["partitions"]) == 80
        assert sum(p["rejects"] for p in status["partitions"]) == 3
        assert all(p["ended"] and p["lag_seconds"] is None for p in status["partitions"])
        assert {p["standing"] for p in status["partitions"]} == {"ended"}
        assert status["rejects"] == {"missing_field": 1, "not_utf8": 1, "bad_time": 1}
        assert "80, 0 of them pending" in scoring("status").out

    def test_runs_are_listed_and_shown(self, scoring: Scoring, scored: Path) -> None:
        (run,) = scoring("runs", "--json").json
        assert (run["state"], run["windows"], run["scored"]) == ("completed", 80, 80)

        shown = scoring("run", "show", run["run_id"], "--json").json
        assert shown["run_id"] == run["run_id"]
        assert [(row["device"], row["sensor"]) for row in shown["by_sensor"]] in (
            *([("d0", "s"), ("d1", "s")], [("d1", "s"), ("d0", "s")]),
        )
        assert sum(part["indexed_rows"] for part in shown["part"]) == 80
        assert run["run_id"] in scoring("runs").out
        assert "completed" in scoring("run", "show", run["run_id"]).out

    @pytest.mark.parametrize("width", [60, 80, 120])
    @pytest.mark.parametrize("command", ["runs", "status", "anomalies", "rejects", "windows d0 s"])
    def test_a_terminal_too_narrow_for_a_table_gets_fewer_columns(
        self,
        scoring: Scoring,
        scored: Path,
        monkeypatch: pytest.MonkeyPatch,
        width: int,
        command: str,
    ) -> None:
        (run,) = scoring("runs", "--json").json
        whole = scoring(*command.split()).out
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "dumb")

        said = scoring(*command.split()).out

        table = [line for line in said.splitlines() if line[:1] in {"┃", "│"}]
        assert table
        assert max(map(len, table)) <= width
        assert ("also show" in said) == (len(table[0].split("┃")) < len(whole_row(whole)))
        if command == "runs" or (command == "anomalies" and "also show" not in said):
            # It can be copied.
            assert f" {run['run_id']} " in said

    def test_why_a_run_failed_stands_below_the_table_in_one_line(
        self, scoring: Scoring, scored: Path
    ) -> None:
        sql(scored, "UPDATE runs SET state = 'failed', cause = printf('%.300c', 'x')")
        (run,) = scoring("runs", "--json").json

        assert f"{run['run_id']} failed: {'x' * 300}" in scoring("runs").out.splitlines()

    def test_anomalies_are_listed_filtered_and_counted(
        self, scoring: Scoring, scored: Path
    ) -> None:
        found = scoring("anomalies", "--json").json
        assert found
        assert {row["device"] for row in found} <= {"d0", "d1"}

        of_one = scoring("anomalies", "--device", "d0", "--sensor", "s", "--json").json
        assert of_one == [row for row in found if row["device"] == "d0"]
        since = found[0]["window_start"]
        assert scoring("anomalies", "--since", since, "--limit", "1", "--json").json == found[:1]
        assert scoring("anomalies", "--until", "2026-01-05", "--json").json == []
        (first, *_) = scoring("anomalies", "--by-device", "--json").json
        assert first["anomalies"] == len([r for r in found if r["device"] == first["device"]])
        assert "anomalies" in scoring("anomalies").out

    def test_windows_are_shown_with_their_scores(self, scoring: Scoring, scored: Path) -> None:
        found = scoring("windows", "d0", "s", "--limit", "3", "--json").json

        assert [window["window_start"] for window in found] == [
            f"2026-01-05T00:{minute}:00Z" for minute in (37, 38, 39)
        ]
        assert all(window["status"] == "scored" for window in found)
        assert "2026-01-05T00:39:00Z" in scoring("windows", "d0", "s").out

    def test_rejects_are_listed_with_their_bytes(self, scoring: Scoring, scored: Path) -> None:
        found = scoring("rejects", "--json").json

        assert sorted(row["reason"] for row in found) == ["bad_time", "missing_field", "not_utf8"]
        (torn,) = scoring("rejects", "--reason", "not_utf8", "--json").json
        assert torn["body"] == "\x1b[2J not JSON \\xff"

    def test_a_table_never_steers_the_terminal(self, scoring: Scoring, scored: Path) -> None:
        shown = scoring("rejects").out

        assert "\x1b" not in shown
        assert "\\x1b[2J" in shown

    def test_the_fleet_is_listed_shown_and_checked(self, scoring: Scoring, scored: Path) -> None:
        listed = scoring("fleet", "list", "--json").json
        assert [(m["device"], m["sensor"]) for m in listed["models"]] == [("d0", "s"), ("d1", "s")]

        model = scoring("fleet", "show", "d0", "s", "--json").json
        assert model["fleet"] == listed["version"]
        checked = scoring("fleet", "check")
        assert checked.code == 0, checked.out
        assert "none" in checked.out

    def test_gaps_can_be_repaired_where_there_are_none(
        self, scoring: Scoring, scored: Path
    ) -> None:
        assert scoring("repair-gaps", "--json").json["events"] == 0

    def test_windows_can_be_rebuilt_in_another_size(self, scoring: Scoring, scored: Path) -> None:
        assert (
            "8 windows of 600 s, 80 readings" in scoring("rebuild-windows", "--window", "10min").out
        )

        status = scoring("status", "--json").json
        assert (status["window"], status["windows"], status["pending"]) == (600_000_000, 8, 8)
        assert scoring("anomalies", "--json").json == []
        assert [w["count"] for w in scoring("windows", "d0", "s", "--json").json] == [10] * 4

    def test_a_rebuild_that_was_stopped_is_seen_in_the_status(
        self, scoring: Scoring, scored: Path, data: Path
    ) -> None:
        assert scoring("status", "--json").json["is_rebuilding"] is False
        with closing(Database.file(data / "store.db")) as database:
            SqlRebuildStore(database).begin(600 * SECOND)

        assert "being rebuilt with 600 s, and no run begins" in " ".join(
            scoring("status").out.split()
        )
        assert scoring("status", "--json").json["is_rebuilding"] is True
        scoring("rebuild-windows")
        assert scoring("status", "--json").json["is_rebuilding"] is False

    def test_a_size_that_the_settings_contradict_is_refused_before_anything_is_deleted(
        self, scoring: Scoring, scored: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = scoring("status", "--json").json["windows"]
        monkeypatch.setenv("SCORING_MAX_AGE", "30min")

        error = scoring("rebuild-windows", "--window", "1h").error()

        assert "SCORING_MAX_AGE" in error
        assert "SCORING_WINDOW" in error
        assert scoring("status", "--json").json["windows"] == before

    def test_a_new_store_is_made_by_migrate(self, scoring: Scoring, data: Path) -> None:
        assert f"schema {HEAD}" in scoring("migrate").out
        assert f"schema {HEAD}" in scoring("migrate").out
        assert (data / "store.db").exists()

    def test_a_simulation_is_written_to_files(self, scoring: Scoring, tmp_path: Path) -> None:
        done = scoring(
            *("simulate", "--out", tmp_path / "sim", "--devices", "2", "--duration", "1h")
        )

        assert done.code == 0, done.err
        lines = (tmp_path / "sim" / "events.ndjson").read_bytes().splitlines()
        assert f"{len(lines)} events of 8 sensors" in done.out
        assert json.loads((tmp_path / "sim" / "anomalies.json").read_text())
        assert sorted(p.name for p in (tmp_path / "sim").iterdir()) == [
            *("anomalies.json", "events.ndjson")
        ]

    def test_a_new_store_answers_every_question(self, scoring: Scoring) -> None:
        for question in ("runs", "anomalies", "rejects"):
            assert scoring(question, "--json").json == []
        assert scoring("status", "--json").json["partitions"] == []
        assert scoring("status").code == 0


class TestIngest:
    def test_a_file_that_has_grown_brings_only_what_is_new_however_late(
        self, scoring: Scoring, tmp_path: Path
    ) -> None:
        path = write_readings(tmp_path / "readings.csv", windows=40)
        os.utime(path, (1_767_575_400, 1_767_575_400))  # 2026-01-05T01:10:00Z
        assert scoring("ingest", path, "--json").json["readings"] == 80
        write_readings(path, windows=60)
        os.utime(path, (1_767_661_800, 1_767_661_800))  # a day later

        grown = scoring("ingest", path, "--json").json
        again = scoring("ingest", path, "--json").json

        assert (grown["duplicates"], grown["readings"], grown["rejects"]) == (80, 40, {})
        assert (again["duplicates"], again["readings"]) == (120, 0)

    def test_a_file_whose_last_line_has_grown_is_refused_and_nothing_of_it_counts(
        self, scoring: Scoring, data: Path, tmp_path: Path
    ) -> None:
        path = write_readings(tmp_path / "readings.csv", windows=40)
        whole = path.read_text()
        path.write_text(whole[:-4])
        scoring("ingest", path)
        before = sql(data, "SELECT * FROM partitions ORDER BY 1")
        path.write_text(whole)

        assert "its last line was not yet whole" in scoring("ingest", path).error()
        assert sql(data, "SELECT * FROM partitions ORDER BY 1") == before

    def test_the_same_file_again_changes_nothing(
        self, scoring: Scoring, data: Path, readings: Path, tmp_path: Path
    ) -> None:
        assert scoring("ingest", readings, "--json").json["readings"] == 80
        before = sql(data, "SELECT * FROM window_partials ORDER BY 1, 2, 3, 4")
        copied = tmp_path / "of-another-name.csv"
        shutil.copyfile(readings, copied)

        again = scoring("ingest", readings, "--batch-size", "7", "--json").json
        elsewhere = scoring("ingest", copied, "--partition-order", "3,1,0,2", "--json").json

        for outcome in (again, elsewhere):
            assert (outcome["duplicates"], outcome["readings"]) == (80, 0)
        assert sql(data, "SELECT * FROM window_partials ORDER BY 1, 2, 3, 4") == before

    def test_standard_input_is_the_same_as_the_file(
        self, scoring: Scoring, data: Path, readings: Path
    ) -> None:
        done = execute("--data", str(data), "ingest", "-", "--json", stdin=readings.read_bytes())

        assert done.json["readings"] == 80
        assert scoring("ingest", readings, "--json").json["duplicates"] == 80
        assert scoring("ingest", "-", "--json", stdin=readings.read_bytes()).json["readings"] == 0

    def test_columns_can_have_other_names(self, scoring: Scoring, tmp_path: Path) -> None:
        file = tmp_path / "odd.csv"
        file.write_text("When;x,Unit,Probe,Reading\n2026-01-05T00:00:00Z,u,p,1.5\n")
        names = ("--ts", "When;x", "--device", "Unit", "--sensor", "Probe", "--value", "Reading")

        assert scoring("ingest", file, *names, "--json").json["readings"] == 1
        assert len(scoring("windows", "u", "p", "--json").json) == 1

    def test_what_cannot_be_read_is_counted_by_reason(
        self, scoring: Scoring, tmp_path: Path
    ) -> None:
        file = tmp_path / "mixed.ndjson"
        times = '"device":"d","sensor":"s","ts":"2026-01-05T00:00:00Z"'
        bodies = ['{%s,"value":1}', '{%s,"value":NaN}', '{%s,"value":true}', '{%s,"value":"1"}',
                  "nonsense", '{%s,"value":1e999}', "[" * 100_000]  # fmt: skip
        file.write_text("\n".join(body.replace("%s", times) for body in bodies))

        outcome = scoring("ingest", file, "--json").json

        assert outcome["events"] == 7
        assert outcome["readings"] == 1
        assert sum(outcome["rejects"].values()) == 6
        assert outcome["rejects"]["bad_value"] == 2
        shown = scoring("rejects").out
        assert "bad_value" in shown
        again = scoring("ingest", file)
        assert "duplicates 7, readings 0" in again.out

    def test_rejects_are_summed_up_for_people(self, scoring: Scoring, tmp_path: Path) -> None:
        file = tmp_path / "bad.ndjson"
        file.write_text("{]\n{]x\n" + '{"device":"d","sensor":"s","ts":"x","value":1}\n')

        said = scoring("ingest", file).out

        assert "rejects 3" in said
        assert "  bad_time: 1" in said
        assert "  not_json: 2" in said

    def test_rejects_are_replayed_once_the_settings_are_right(
        self, scoring: Scoring, scored: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nothing = scoring("rejects", "replay", "--json").json
        assert nothing == {"replayed": 0, "stay_rejected": 3}

        monkeypatch.setenv("SCORING_FIELD_VALUE", "temperature")
        assert scoring("rejects", "replay", "--json").json == {"replayed": 1, "stay_rejected": 2}

        (window, *_) = scoring("windows", "d0", "s", "--limit", "1000", "--json").json
        assert window["count"] == 2
        assert "replayed 0 rejects; 2 stay rejected" in scoring("rejects", "replay").out
        status = scoring("status", "--json").json
        assert (status["pending"], sum(status["rejects"].values())) == (1, 2)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "is empty"),
            (b"\n\n  \n", "is empty"),
            (b"a,b,c,d\n1,2,3,4\n", "no column device, sensor, ts, value"),
            (b"device,sensor,ts\n1,2,3\n", "no column value; it has: device, sensor, ts"),
            (bytes(range(256)) * 100, "binary"),
            (b"\x1f\x8b\x08 damaged", "gzip"),
            (b"[\n{}\n]", "over several lines"),
        ],
    )
    def test_a_file_that_is_no_file_of_readings_is_refused_whole(
        self, scoring: Scoring, data: Path, tmp_path: Path, content: bytes, said: str
    ) -> None:
        file = tmp_path / "file"
        file.write_bytes(content)

        error = scoring("ingest", file).error()

        assert str(file) in error
        assert said in error
        assert not data.exists()

    def test_a_file_that_is_not_there_and_a_folder_are_refused(
        self, scoring: Scoring, tmp_path: Path
    ) -> None:
        assert "there is no such file" in scoring("ingest", tmp_path / "nope.csv").error()
        assert "is a folder" in scoring("ingest", tmp_path).error()
        assert "is empty" in scoring("ingest", "-").error()

    def test_a_window_of_another_size_than_the_stores_is_refused(
        self, scoring: Scoring, scored: Path, readings: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        error = scoring("ingest", readings, "--window", "5s").error()
        assert "5s" in error
        assert "60s" in error

        monkeypatch.setenv("SCORING_WINDOW", "5s")
        assert "rebuild-windows" in scoring("status").error()

    def test_a_partition_that_does_not_exist_is_refused(
        self, scoring: Scoring, readings: Path
    ) -> None:
        assert "no partition 9" in scoring("ingest", readings, "--partition-order", "9").error()


class TestWrongOptions:
    @pytest.mark.parametrize(
        ("arguments", "option"),
        [
            (["ingest", "x", "--window", "5"], "--window"),
            (["ingest", "x", "--window", "0s"], "--window"),
            (["ingest", "x", "--arrived-at", "yesterday"], "yesterday"),
            (["ingest", "x", "--batch-size", "0"], "--batch-size"),
            (["rebuild-windows", "--window", "soon"], "--window"),
            (["demo", "--duration", "long"], "--duration"),
            (["demo", "--interval", "-1s"], "--interval"),
            (["demo", "--devices", "0"], "--devices"),
            (["demo", "--readings", "x.csv"], "go together"),
            (["demo", "--readings", "x.csv", "--models", "/nope"], "--models"),
            (["simulate"], "either --out"),
            (["fleet", "train", "--gamma", "wide"], "--gamma"),
            (["fleet", "train", "--features", "mean,mood"], "mood"),
            (["fleet", "train", "--features", "mean,mean"], "once"),
            (["fleet", "train", "--until", "soon"], "soon"),
            (["anomalies", "--since", "2026-13-01"], "2026-13-01"),
            (["anomalies", "--by-device", "--device", "d0"], "--by-device"),
            (["runs", "--limit", "0"], "--limit"),
            (["windows", "d0"], "sensor"),
            (["dance"], "dance"),
        ],
    )
    def test_a_wrong_option_is_named_before_anything_is_done(
        self, scoring: Scoring, data: Path, arguments: list[str], option: str
    ) -> None:
        assert option.lower() in scoring(*arguments).usage_error().lower()
        assert not data.exists()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["demo", "--duration", "1s"], "duration must be at least one interval"),
            (["fleet", "train", "--nu", "2"], "nu must be in (0, 1]"),
            (["fleet", "train", "--gamma", "nan"], "gamma"),
        ],
    )
    def test_a_value_out_of_range_is_refused(
        self, scoring: Scoring, data: Path, arguments: list[str], said: str
    ) -> None:
        assert said in scoring(*arguments).error()
        assert not data.exists()

    def test_wrong_settings_are_all_named_at_once(
        self, scoring: Scoring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SCORING_WINDOW", "soon")
        monkeypatch.setenv("SCORING_PART_ROWS", "0")
        monkeypatch.setenv("SCORING_WINDWO", "5s")

        error = scoring("status").error()

        for name in ("SCORING_WINDOW:", "SCORING_PART_ROWS:", "SCORING_WINDWO is not a setting"):
            assert name in error


class TestUnknownThings:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["run", "show", "r0"], "no run r0"),
            (["run", "cancel", "r0"], "no run r0"),
            (["anomalies", "--run", "r0"], "no run r0"),
            (["anomalies", "--run", "r0", "--by-device"], "no run r0"),
            (["windows", "d9", "s"], "no window of sensor s of device d9"),
            (["fleet", "show", "d9", "s"], "no model for sensor s of device d9"),
            (["fleet", "list", "--version", "f9"], "no fleet f9"),
            (["fleet", "check", "--version", "../.."], "../.."),
            (["run", "--fleet", "f9"], "no fleet f9"),
        ],
    )
    def test_what_is_asked_for_and_not_there_is_named(
        self, scoring: Scoring, scored: Path, arguments: list[str], said: str
    ) -> None:
        assert said in scoring(*arguments).error()

    def test_a_range_without_windows_is_no_error(self, scoring: Scoring, scored: Path) -> None:
        assert scoring("windows", "d0", "s", "--since", "2030-01-01", "--json").json == []

    @pytest.mark.parametrize("arguments", [["run"], ["fleet", "list"], ["fleet", "check"]])
    def test_without_a_fleet_the_way_to_one_is_named(
        self, scoring: Scoring, readings: Path, arguments: list[str]
    ) -> None:
        scoring("ingest", readings)

        assert "`fleet train` or `fleet import`" in scoring(*arguments).error()

    def test_too_few_windows_to_train_on_publish_nothing(
        self, scoring: Scoring, data: Path, tmp_path: Path
    ) -> None:
        scoring("ingest", write_readings(tmp_path / "few.csv", windows=3), "--window", "1min")

        error = scoring("fleet", "train").error()
        assert "no sensor of 2 can be trained" in error
        assert "sensor s of device d0: 3 windows, fewer than 10" in error
        assert not (data / "blobs" / "fleets").exists()

    def test_an_ended_run_cannot_be_canceled(self, scoring: Scoring, scored: Path) -> None:
        (run,) = scoring("runs", "--json").json

        error = scoring("run", "cancel", run["run_id"]).error()

        assert "is completed and cannot be canceled" in error


class TestRun:
    def test_nothing_pending_makes_no_run(self, scoring: Scoring, scored: Path) -> None:
        assert "nothing to score" in scoring("run").out
        assert scoring("run", "--json").json == []
        assert len(scoring("runs", "--json").json) == 1

    def test_more_readings_make_another_run_of_what_changed(
        self, scoring: Scoring, scored: Path, tmp_path: Path
    ) -> None:
        scoring("ingest", write_readings(tmp_path / "more.csv", windows=2, begin=39))

        (run,) = scoring("run", "--json").json

        assert (run["state"], run["windows"], run["scored"]) == ("completed", 4, 4)

    def test_a_run_that_was_left_by_a_kill_is_brought_to_its_end(
        self, scoring: Scoring, scored: Path
    ) -> None:
        version = scoring("fleet", "list", "--json").json["version"]
        sql(scored, "UPDATE window_partials SET claimed_by = NULL WHERE device = 'd1'")
        run_id = "r20260101T000000Z-abcdef"
        with open_app(scored) as app:
            proposed = ScoringRun(0, run_id, RunState.CLAIMING, "timer", version, 2 * 10**15, 0)
            begun = app.submit.store.begin_run(proposed)
            assert begun is not None
            app.submit.store.claim(begun, 1)

        (left,) = scoring("run", "--json").json

        assert (left["run_id"], left["state"], left["scored"]) == (run_id, "completed", 40)

    @pytest.fixture
    def elsewhere(self, scored: Path) -> Iterator[str]:
        """Have another process at work on a run of no windows; its id."""
        run_id = "r20260101T000000Z-abcdef"
        folder = RunFolder(scored / "work", run_id)
        assert folder.take()
        statement = "UPDATE window_partials SET claimed_by = NULL WHERE device = 'd1'"
        sql(scored, statement + " AND window_start < 1767571300000000")
        with open_app(scored) as app:
            version = app.shelf.current()
            proposed = ScoringRun(0, run_id, RunState.CLAIMING, "timer", version, 2 * 10**15, 0)
            begun = app.submit.store.begin_run(proposed)
            assert begun is not None
            app.submit.store.claim(begun, 10)
            for state in (RunState.CLAIMED, RunState.EXPORTED, RunState.SUBMITTED):
                app.submit.store.transition(begun, state, 0)
        yield run_id
        folder.release()

    def test_a_run_of_another_process_is_left_alone(
        self, scoring: Scoring, scored: Path, tmp_path: Path, elsewhere: str
    ) -> None:
        scoring("ingest", write_readings(tmp_path / "more.csv", windows=2, begin=39))

        (run,) = scoring("run", "--json").json

        assert (run["state"], run["scored"]) == ("completed", 4)
        states = {run["run_id"]: run["state"] for run in scoring("runs", "--json").json}
        assert states[elsewhere] == "submitted"

    @pytest.mark.parametrize("options", [(), ("--json",)])
    def test_a_run_is_refused_at_the_limit_and_names_the_active_one(
        self,
        scoring: Scoring,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        elsewhere: str,
        options: tuple[str, ...],
    ) -> None:
        scoring("ingest", write_readings(tmp_path / "more.csv", windows=2, begin=39))
        monkeypatch.setenv("SCORING_MAX_ACTIVE_RUNS", "1")

        refused = scoring("run", *options).error()

        assert f"1 run is active ({elsewhere}), and SCORING_MAX_ACTIVE_RUNS is 1" in refused

    def test_what_one_run_does_not_take_is_said_to_wait(
        self, scoring: Scoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: Path
    ) -> None:
        scoring("ingest", write_readings(tmp_path / "more.csv", windows=4, begin=40))
        monkeypatch.setenv("SCORING_MAX_RUN_WINDOWS", "3")

        first, second = scoring("run"), scoring("run", "--until", "2026-01-05T00:42:00Z")

        assert "run again for the rest" in first.out
        assert (second.code, "run again" in second.out) == (0, False)

    def test_a_sensor_without_a_model_is_said_to_have_none(
        self, scoring: Scoring, scored: Path, tmp_path: Path
    ) -> None:
        scoring("ingest", write_readings(tmp_path / "three.csv", windows=1, devices=3))

        (run,) = scoring("run", "--json").json

        assert (run["state"], run["scored"], run["indexed"]) == ("completed", 2, 3)
        (window,) = scoring("windows", "d2", "s", "--json").json
        assert (window["status"], window["anomaly_score"]) == ("no_model", None)
        missing = scoring("fleet", "check", "--json")
        assert missing.code == 1
        assert [(m["device"], m["sensor"]) for m in json.loads(missing.out)["missing"]] == [
            *[("d2", "s")]
        ]


class TestDamagedFleets:
    def models(self, scored: Path) -> Path:
        version = (scored / "blobs" / "fleets" / "current").read_text()
        return scored / "blobs" / "fleets" / version / "models.arrow"

    @pytest.mark.parametrize("command", [["fleet", "list"], ["fleet", "check"], ["run"]])
    @pytest.mark.parametrize("damage", ["missing", "truncated", "tampered", "empty", "no manifest"])
    def test_a_damaged_fleet_is_refused(
        self, scoring: Scoring, scored: Path, damage: str, command: list[str]
    ) -> None:
        models = self.models(scored)
        content = models.read_bytes()
        # What was opened before is kept whole, and found by its name.
        shutil.rmtree(scored / "work")
        match damage:
            case "missing":
                models.unlink()
            case "truncated":
                models.write_bytes(content[: len(content) // 2])
            case "tampered":
                models.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
            case "empty":
                models.write_bytes(b"")
            case _:
                (models.parent / "manifest.json").write_bytes(b"{")

        error = scoring(*command).error()

        assert self.models(scored).parent.name in error
        assert len(scoring("runs", "--json").json) == 1

    def test_training_again_repairs_it(self, scoring: Scoring, scored: Path) -> None:
        self.models(scored).write_bytes(b"")

        assert "--fresh replaces it" in scoring("fleet", "train").error()
        assert scoring("fleet", "train", "--features", "mean,max", "--fresh").code == 0
        assert scoring("fleet", "check").code == 0


class Malicious:
    def __init__(self, function: Any, argument: object) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """Write a folder with a model of d0's sensor that names its columns max and mean."""
    import pandas as pd  # noqa: PLC0415 - seconds of import
    from sklearn.svm import OneClassSVM  # noqa: PLC0415

    frame = pd.DataFrame({"max": [5.0, 6, 9, 7], "mean": [1.0, 2, 4, 3]})
    (tmp_path / "models").mkdir()
    model = OneClassSVM(gamma=0.5).fit(frame)
    (tmp_path / "models" / "model_d0_s.pkl").write_bytes(pickle.dumps(model))
    return tmp_path / "models"


def test_a_run_of_more_devices_than_a_statement_can_name_is_refused(
    scoring: Scoring, scored: Path
) -> None:
    devices = [word for number in range(1001) for word in ("--device", f"d{number}")]

    assert "1,001 devices: a run can be limited to 1,000" in scoring("run", *devices).error()
    assert len(scoring("runs", "--json").json) == 1


class TestPuttingModelsOverAFleet:
    def test_an_import_of_other_features_is_refused_and_takes_nothing_away(
        self, scoring: Scoring, scored: Path, named: Path
    ) -> None:
        before = scoring("fleet", "list", "--json").json

        error = scoring("fleet", "import", named, "--features", "max").error()

        assert "has the features mean,max, and these are to have max" in error
        assert "--fresh" in error
        assert scoring("fleet", "list", "--json").json == before
        assert scoring("fleet", "import", named, "--features", "max,mean", "--fresh").code == 0
        (model,) = scoring("fleet", "list", "--json").json["models"]
        assert model["features"] == ["max", "mean"]

    def test_training_other_features_is_refused_before_anything_is_trained(
        self, scoring: Scoring, scored: Path
    ) -> None:
        error = scoring("fleet", "train", "--features", "mean").error()
        assert "has the features mean,max, and these are to have mean" in error

    def test_an_import_takes_the_fleets_features_and_leaves_the_others_models(
        self, scoring: Scoring, scored: Path, named: Path
    ) -> None:
        assert scoring("fleet", "import", named, "--json").json["imported"] == 1

        models = scoring("fleet", "list", "--json").json["models"]
        found = {one["device"]: (one["features"], one["source"].split()[0]) for one in models}
        assert found == {"d0": (["max", "mean"], "pickle"), "d1": (["mean", "max"], "trained")}

    def test_training_keeps_what_was_imported_and_what_has_no_windows_and_says_so(
        self, scoring: Scoring, scored: Path, named: Path
    ) -> None:
        shutil.copy(named / "model_d0_s.pkl", named / "model_gone_s.pkl")
        assert scoring("fleet", "import", named).code == 0

        said = scoring("fleet", "train").out
        trained = scoring("fleet", "train", "--json").json

        assert "older models that stay" in said
        assert trained["models"] == 1
        assert [(one["device"], one["reason"]) for one in trained["kept"]] == [
            ("d0", "was imported; --fresh replaces it"),
            ("gone", "was imported; --fresh replaces it"),
        ]
        assert scoring("fleet", "train", "--fresh", "--json").json["models"] == 2

    @pytest.mark.parametrize(
        ("since", "reason"), [(40, "has no windows to train on"), (35, "5 windows, fewer than 10")]
    )
    def test_training_says_which_sensor_keeps_its_older_model_and_why(
        self, scoring: Scoring, scored: Path, tmp_path: Path, since: int, reason: str
    ) -> None:
        begin = f"2026-01-05T00:{since}:00Z"
        write_readings(tmp_path / "more.csv", begin=40, windows=20, devices=1)
        assert scoring("ingest", tmp_path / "more.csv").code == 0

        trained = scoring("fleet", "train", "--since", begin, "--json").json

        windows = 60 - since + 40 - since
        assert (trained["models"], trained["windows"], trained["used"]) == (1, windows, windows)
        assert trained["kept"] == [{"device": "d1", "sensor": "s", "reason": reason}]
        assert trained["untrained"] == []

    def test_training_says_how_many_windows_it_took(
        self, scoring: Scoring, scored: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "2 models trained on 80 windows" in scoring("fleet", "train").out
        monkeypatch.setenv("SCORING_TRAINING_WINDOWS", "15")
        assert "2 models trained on 30 of 80 windows" in scoring("fleet", "train").out

    def test_an_import_says_how_many_models_are_of_sensors_never_seen(
        self, scoring: Scoring, scored: Path, named: Path
    ) -> None:
        shutil.copy(named / "model_d0_s.pkl", named / "model_d0x_s.pkl")

        assert scoring("fleet", "import", named, "--json").json["unknown"] == 1
        assert "1 of them are of sensors that were never seen" in " ".join(
            scoring("fleet", "import", named).out.split()
        )

    @pytest.mark.parametrize(
        ("option", "reason"),
        [
            (("--columns", "temp"), "is not of the form name=feature"),
            (("--columns", "temp=warmth"), "is not of the form name=feature"),
        ],
    )
    def test_options_that_say_nothing_are_refused(
        self, scoring: Scoring, named: Path, option: tuple[str, ...], reason: str
    ) -> None:
        assert reason in scoring("fleet", "import", named, *option).usage_error()


class TestImports:
    def test_a_file_that_would_run_something_is_refused_by_name_and_the_others_go_on(
        self, scoring: Scoring, tmp_path: Path
    ) -> None:
        from sklearn.svm import OneClassSVM  # noqa: PLC0415 - seconds of import

        folder, witness = tmp_path / "models", tmp_path / "witness"
        folder.mkdir()
        good = OneClassSVM(gamma=0.5).fit([[1.0], [2.0], [4.0]])
        (folder / "model_a_1.pkl").write_bytes(pickle.dumps(good))
        (folder / "model_a_2.pkl").write_bytes(pickle.dumps(Malicious(Path.touch, witness)))
        (folder / "model_a_3").write_bytes(
            pickle.dumps(Malicious(os.system, f"touch {witness}"), protocol=2)
        )
        (folder / "model_a_4.joblib").write_bytes(b"\x00\x01 nothing that can be read")
        (folder / "model_a_5.pkl").write_bytes(pickle.dumps(good)[:-200])
        (folder / "readme.txt").write_text("not a model")

        imported = scoring("fleet", "import", folder, "--json").json

        assert imported["imported"] == 1
        refused = {one["file"]: one["reason"] for one in imported["refused"]}
        assert set(refused) == {
            *("model_a_2.pkl", "model_a_3", "model_a_4.joblib", "model_a_5.pkl", "readme.txt")
        }
        assert "posix.system" in refused["model_a_3"]
        assert not witness.exists()
        assert scoring("fleet", "show", "a", "1", "--json").json["fleet"] == imported["version"]

    def test_a_folder_of_nothing_but_refused_files_publishes_nothing(
        self, scoring: Scoring, data: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "model_a_1").write_bytes(b"nothing")

        done = scoring("fleet", "import", tmp_path / "models")

        assert done.code == 1
        assert "model_a_1" in done.out
        assert not (data / "blobs" / "fleets" / "current").exists()

    def test_a_folder_that_is_not_there_is_refused(self, scoring: Scoring, tmp_path: Path) -> None:
        assert "is not a folder" in scoring("fleet", "import", tmp_path / "nope").error()


class TestUnusableStorage:
    def commands(self, readings: Path) -> list[list[str]]:
        return [["ingest", str(readings)], ["status"], ["migrate"], ["runs"], [*DEMO]]

    def test_a_data_folder_that_cannot_be_there_is_named(
        self, scoring: Scoring, tmp_path: Path, readings: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        for command in self.commands(readings):
            error = scoring(*command, data=tmp_path / "file" / "data").error()
            assert f"cannot write {tmp_path}/file/data" in error
            assert "not a directory" in error

    @pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
    def test_a_folder_that_takes_no_writes_is_named(
        self,
        scoring: Scoring,
        data: Path,
        readings: Path,
        monkeypatch: pytest.MonkeyPatch,
        code: int,
    ) -> None:
        def refuse(self: Path, *_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code), str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
        for command in self.commands(readings):
            error = scoring(*command).error()
            assert f"cannot write {data}: {os.strerror(code).lower()}" in error

    def test_a_disk_that_is_full_for_segments_loses_nothing(
        self, scoring: Scoring, data: Path, readings: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert "no space left on device" in scoring("ingest", readings).error()
        assert not [path for path in (data / "blobs").rglob("*") if path.is_file()]
        assert sql(data, "SELECT count(*) FROM window_partials") == [(0,)]

        assert scoring("ingest", readings, "--json").json["readings"] == 80

    def test_a_disk_that_is_full_for_the_database_loses_nothing(
        self, scoring: Scoring, data: Path, readings: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        merge = bulk.merge_partials

        def full(*arguments: Any) -> None:
            merge(*arguments)
            cause = sqlite3.OperationalError("database or disk is full")
            cause.sqlite_errorcode = sqlite3.SQLITE_FULL
            statement = "INSERT"
            raise exc.OperationalError(statement, None, cause)

        with monkeypatch.context() as patch:
            patch.setattr(bulk, "merge_partials", full)
            assert "database or disk is full" in scoring("ingest", readings).error()
        assert sql(data, "SELECT count(*) FROM window_partials") == [(0,)]

        assert scoring("ingest", readings, "--json").json["readings"] == 80
        # The segments that the failed transaction had written are the ones that count now.
        kept = [path for path in (data / "blobs" / "raw").rglob("*") if path.is_file()]
        assert len(kept) == sql(data, "SELECT count(*) FROM segments")[0][0]

    @pytest.mark.parametrize("damage", [b"", b"no database at all" * 500])
    def test_a_database_that_is_none_is_named_or_made_anew(
        self, scoring: Scoring, data: Path, damage: bytes
    ) -> None:
        data.mkdir()
        (data / "store.db").write_bytes(damage)

        done = scoring("status")

        if damage:
            assert "not a database" in done.error()
            assert (data / "store.db").read_bytes() == damage
        else:
            assert done.code == 0

    def test_a_database_with_damaged_pages_is_named(
        self, scoring: Scoring, scored: Path, readings: Path
    ) -> None:
        sql(scored, "PRAGMA wal_checkpoint(TRUNCATE)")
        database = scored / "store.db"
        content = bytearray(database.read_bytes())
        content[4096:] = b"\xa5" * (len(content) - 4096)
        database.write_bytes(content)

        for command in (["status"], ["runs"], ["ingest", str(readings)]):
            assert "the database cannot be used" in scoring(*command).error()

    def test_a_database_of_a_newer_program_is_refused(self, scoring: Scoring, scored: Path) -> None:
        sql(scored, "UPDATE alembic_version SET version_num = '0999'")

        for command in ("status", "migrate", "run"):
            assert "schema 0999" in scoring(command).error()
        assert sql(scored, "SELECT version_num FROM alembic_version") == [("0999",)]

    def test_output_that_cannot_be_written_is_an_error(self, scored: Path) -> None:
        with Path("/dev/full").open("wb") as full:
            done = execute("--data", str(scored), "runs", "--json", stdout=full.fileno())

        assert "No space left on device" in done.error()

    def test_a_reader_who_has_seen_enough_is_no_error(self, scored: Path) -> None:
        reading, writing = os.pipe()
        os.close(reading)

        done = execute("--data", str(scored), "runs", "--json", stdout=writing)

        os.close(writing)
        assert (done.code, done.err) == (0, "")


class TestDemo:
    def test_two_demos_on_one_folder_are_refused(self, scoring: Scoring, data: Path) -> None:
        with demo_folder(data, {}, fresh=False):
            assert "another demo is at work" in scoring(*DEMO).error()

    def test_a_folder_of_other_data_is_left_alone(self, scoring: Scoring, scored: Path) -> None:
        before = sql(scored, "SELECT count(*) FROM window_partials")

        for more in ([], ["--fresh"]):
            assert "data that is not a demo's" in scoring(*DEMO, *more).error()

        assert sql(scored, "SELECT count(*) FROM window_partials") == before
        assert not (scored / "demo.json").exists()

    def test_a_folder_of_another_demo_is_left_alone(self, scoring: Scoring, data: Path) -> None:
        with demo_folder(data, {"other": 1}, fresh=False):
            pass

        assert "a demo with other options: --fresh" in scoring(*DEMO).error()

    def test_a_folder_is_not_marked_for_readings_that_are_not_there(
        self, scoring: Scoring, data: Path, tmp_path: Path
    ) -> None:
        error = scoring("demo", "--readings", tmp_path / "nope.csv", "--models", tmp_path).error()

        assert "there is no such file" in error
        assert not data.exists()

    def test_a_marker_that_a_full_disk_cut_off_is_not_left(
        self, scoring: Scoring, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(self: Path, target: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", full)
            assert "no space left" in scoring(*DEMO).error()

        assert [path.name for path in data.iterdir()] == ["demo.lock"]

    def test_models_of_which_none_can_be_used_end_it(
        self, scoring: Scoring, readings: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "model_d0_s").write_bytes(b"nothing")

        error = scoring("demo", "--readings", readings, "--models", tmp_path / "models").error()

        assert "no model" in error
        # It is the content that counts: what has grown since would be counted twice.
        write_readings(readings, windows=50)
        again = scoring("demo", "--readings", readings, "--models", tmp_path / "models").error()
        assert "a demo with other options" in again

    @pytest.mark.exhaustive
    def test_interrupted_it_says_so_in_one_line_and_the_same_command_finishes(
        self, data: Path
    ) -> None:
        command = [*COMMAND, "--data", str(data), *DEMO, "--json"]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        # The first run is under way, and most of the demo is not.
        eventually(lambda: (data / "blobs" / "runs").exists() or process.poll() is not None)
        # As Ctrl-C does: to the command and all its workers.
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)

        assert (process.returncode, out) == (130, "")
        assert err.strip() == "interrupted: the same command goes on from here"

        report = execute("--data", str(data), *DEMO, "--json").json
        assert report["status"]["pending"] == 0
        assert report["predictions"] == report["status"]["windows"] > 0
        assert sql(data, "SELECT DISTINCT state FROM runs") == [("completed",)]
        assert report["status"]["gaps"].keys() == {"repaired"}
        delivered = report["delivered"]
        assert delivered["duplicates"] > 0
        assert all(isinstance(reason, str) for reason in delivered["rejects"])
