"""`python -m scoring plan`: its table, its JSON, its plot, and what it says of wrong input."""

import io
import json
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from scoring.cli.prices import SAMPLE
from tests.e2e.commands import Outcome, run_here

FLEET = ("--devices", "100000", "--sensors", "5")
HEADER = "size,cores,memory_gb,price_per_hour"
TWO = (
    f"# date: June 2030\n# region: Mars\n# currency: EUR\n{HEADER}\nsmall,2,4,0.1\nlarge,8,16,0.5\n"
)


Plan = Callable[..., Outcome]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Run the command in this process, for the fleet and what else is given."""

    def run(*arguments: str | Path, fleet: tuple[str, ...] = FLEET) -> Outcome:
        return run_here(monkeypatch, capsys, "plan", *fleet, *arguments)

    return run


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text(TWO)
    return path


def table_rows(out: str) -> dict[str, list[str]]:
    """Cells of the table by size."""
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in out.splitlines()
        if line.startswith("│")
    ]
    return {row[0]: row[1:] for row in rows}


def test_a_hundred_thousand_devices_are_planned_by_the_sample(plan: Plan) -> None:
    outcome = plan()

    assert (outcome.code, outcome.err) == (0, "")
    # Worked out in tests/unit/test_planning.py.
    row = table_rows(outcome.out)["Standard_F2s_v2"]
    assert row == [
        *("2", "4", "0.085", "1", "7.2 min", "38.08", "1", "2.2 min", "62.05", "161.3", "to zero")
    ]
    assert "1,500,000 rows: 82.5 core-seconds" in outcome.out
    assert "cheapest: 1 node of Standard_F2s_v2, scaled to zero: 38.08 USD a month" in outcome.out
    assert "not included: disks, network" in outcome.out


def test_the_sample_says_that_it_is_one_and_of_when(plan: Plan) -> None:
    outcome = plan()

    assert re.search(
        r"prices  of about \w+ 20\d\d \(assumed\), East US .*approximate list prices", outcome.out
    )
    assert "replace with your own" in outcome.out


def test_json_says_what_the_table_says(plan: Plan) -> None:
    options = ("--rows-per-second", "20000", "--every", "1h", "--window", "1min")
    document, rows = plan(*options, "--json").json, table_rows(plan(*options).out)

    assert len(document["sizes"]) == len(rows) == SAMPLE.read_text().count("\nStandard_")
    for one in document["sizes"]:
        zero, warm = one["scale_to_zero"], one["warm"]
        row = rows[one["name"]]
        assert row[:3] == [f"{one[key]:g}" for key in ("cores", "memory_gb", "price_per_hour")]
        assert [row[3], row[6]] == [f"{mode['nodes']:,}" for mode in (zero, warm)]
        assert [row[5], row[8]] == [f"{mode['cost_per_month']:,.2f}" for mode in (zero, warm)]
        assert row[9] == f"{one['break_even_runs_per_day']:,.1f}"
        assert (row[10] != "") == (one["name"] == document["cheapest"]["size"])
    assert document["demand"]["rows_per_run"] == 30_000_000
    assert document["demand"]["interval_seconds"] == 3600
    assert document["prices"]["date"]


def test_own_prices_are_named_with_their_date_and_currency(plan: Plan, prices: Path) -> None:
    outcome = plan("--prices", prices)

    assert f"prices  of June 2030, Mars ({prices}): no source given" in outcome.out
    assert "EUR a month" in outcome.out
    assert "USD" not in outcome.out
    assert plan("--prices", prices, "--json").json["prices"] == {
        "file": str(prices),
        "source": "",
        "region": "Mars",
        "date": "June 2030",
        "currency": "EUR",
    }


def test_a_table_saved_by_a_spreadsheet_is_read(plan: Plan, prices: Path) -> None:
    prices.write_bytes(
        b"\xef\xbb\xbf# date: May 2030,,,\r\n# a remark,,,\r\n"
        b'Price_per_hour,"size",memory_gb,cores\r\n0.1,"a, b",4,2\r\n\r\n'
    )
    document = plan("--prices", prices, "--json").json

    assert document["prices"]["date"] == "May 2030"
    assert [one["name"] for one in document["sizes"]] == ["a, b"]
    assert document["sizes"][0]["price_per_hour"] == 0.1


def test_low_priority_nodes_are_planned_where_they_have_a_price(plan: Plan, prices: Path) -> None:
    prices.write_text(f"{HEADER},low_priority_per_hour\nsmall,2,4,0.1,\nlarge,8,16,0.5,0.2\n")
    (one,) = plan("--prices", prices, "--low-priority", "--json").json["sizes"]

    assert (one["name"], one["price_per_hour"]) == ("large", 0.2)
    assert len(plan("--prices", prices, "--json").json["sizes"]) == 2


def test_when_warm_nodes_are_the_cheaper_ones_it_says_so(plan: Plan, prices: Path) -> None:
    outcome = plan("--prices", prices, "--every", "5min", "--startup", "2min")

    assert "cheapest: 1 node of small, kept warm: 73.00 EUR a month" in outcome.out
    assert "scaled to zero it is billed all the time too" in outcome.out


def test_a_break_even_that_no_run_frequency_reaches_is_named_so(plan: Plan) -> None:
    outcome = plan("--window", "15min")

    assert "windows end only 96 times a day" in outcome.out


def test_a_size_that_cannot_do_it_has_its_reason_below_the_table(plan: Plan, prices: Path) -> None:
    options = ("--prices", prices, "--rows-per-second", "1000", "--max-nodes", "1")
    outcome = plan(*options)

    assert outcome.code == 0
    assert table_rows(outcome.out)["small"][3:6] == ["-", "-", "-"]
    assert re.search(
        r"small, scaled to zero: even with 1 a run takes [\d,]+ s, .*: 2 nodes would do",
        outcome.out,
    )
    assert plan(*options, "--json").json["sizes"][0]["scale_to_zero"] is None


def test_a_schedule_that_cannot_keep_up_is_a_warning(plan: Plan) -> None:
    outcome = plan("--every", "5min")

    assert (outcome.code, outcome.err) == (0, "")
    assert (
        "warning: a run every 5 min cannot keep up if the cluster scales to zero: a run takes at"
        " least 6.5 min on any number of nodes (node start 5 min, job overhead 90 s, scoring 1 s),"
        " and runs pile up; run every 7 min or less often, or keep nodes warm (azure-ml publish"
        " --min-nodes)"
    ) in outcome.out
    assert "kept warm: 62.05 USD a month" in outcome.out


def test_a_schedule_that_no_size_keeps_up_with_has_no_cheapest_and_says_what_would_do(
    plan: Plan, prices: Path
) -> None:
    options = ("--prices", prices, "--rows-per-second", "100", "--max-nodes", "2")
    outcome, document = plan(*options), plan(*options, "--json").json

    assert (outcome.code, outcome.err) == (0, "")
    assert "cheapest:" not in outcome.out
    assert document["cheapest"] is None
    to_zero, warm = document["warnings"]
    assert {"code": "cannot_keep_up", "mode": "warm", "size": "large", "nodes": 2}.items() <= (
        warm.items()
    )
    # 75 parts of 1 + 200 s on 16 cores, and one part more: 942 + 201 s.
    assert warm["run_seconds"] == pytest.approx(90 + 75 * 201 / 16 + 201)
    assert (warm["interval_seconds"], warm["enough_nodes"]) == (900, 4)
    assert to_zero["mode"] == "scale_to_zero"
    for warning in document["warnings"]:
        assert f"warning: {warning['text']}" in outcome.out
    assert "allow 4 nodes (--max-nodes)" in warm["text"]


def test_a_schedule_that_keeps_up_has_no_warnings(plan: Plan) -> None:
    assert plan("--json").json["warnings"] == []
    assert "warning" not in plan().out


MILLION = ("--devices", "1000000", "--sensors", "5")


def test_runs_that_take_fewer_windows_than_come_in_are_a_warning(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = plan("--json", fleet=MILLION).json

    # Three windows of each of 5,000,000 sensors, of which a run takes those of one start.
    (warning,) = document["warnings"]
    del warning["text"]
    assert warning == {
        "code": "backlog_grows",
        "max_run_windows": 2_000_000,
        "windows_per_run": 5_000_000,
        "rows_per_run": 15_000_000,
        "enough_max_run_windows": 15_000_000,
        "enough_interval_seconds": 300,
    }
    said = plan(fleet=MILLION).out
    assert "set SCORING_MAX_RUN_WINDOWS to 15,000,000, or run every 5 min or more often" in said
    assert "warning" not in plan("--max-run-windows", "15000000", fleet=MILLION).out
    monkeypatch.setenv("SCORING_MAX_RUN_WINDOWS", "15000000")
    assert "warning" not in plan(fleet=MILLION).out


def test_parts_are_as_large_as_the_setting_says(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORING_PART_ROWS", "5000")

    assert plan("--json").json["speed"]["part_rows"] == 5000
    assert plan("--json", "--part-rows", "400").json["speed"]["part_rows"] == 400


def test_sizes_that_fail_for_one_reason_share_a_line(plan: Plan) -> None:
    said = plan("--finish-within", "3min").out

    assert said.count("390 s pass before scoring") == 1
    assert "every size, scaled to zero: 390 s pass before scoring" in said


def test_what_no_size_keeps_up_with_cannot_be_drawn(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "cost.png"
    options = ("--rows-per-second", "50", "--max-nodes", "1", "--plot", path)

    assert "no size can do it" in plan(*options).error()
    assert not path.exists()


@pytest.mark.parametrize("ending", ["png", "PNG", "svg"])
def test_the_plot_is_a_picture_of_its_kind(
    plan: Plan, tmp_path: Path, prices: Path, ending: str
) -> None:
    path = tmp_path / f"cost.{ending}"
    outcome = plan("--prices", prices, "--plot", path, "--json")

    assert outcome.json["cheapest"]["size"] == "small"
    data = path.read_bytes()
    if ending == "svg":
        assert ET.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - ours
    else:
        width, height = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert data.endswith(b"IEND\xaeB`\x82")
        assert width > 1000
        assert height > 500
    assert sorted(tmp_path.iterdir()) == sorted([path, prices])


def test_a_plot_is_drawn_where_only_warm_nodes_can_do_it(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "cost.png"
    outcome = plan("--finish-within", "4min", "--plot", path)

    assert outcome.code == 0
    assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has no header line"),
        ("# date: today\n", "it has no header line"),
        ("size,cores\na,1\n", "it has no column memory_gb, price_per_hour"),
        (f"{HEADER}\n", "it has no size"),
        (f"{HEADER}\na,2,4,-0.1\n", "line 2: price_per_hour is -0.1 and must be a number above 0"),
        (f"{HEADER}\na,2,4,nan\n", "line 2: price_per_hour is nan"),
        (f"{HEADER}\na,2,4,free\n", "line 2: price_per_hour is 'free' and must be a number"),
        (f"{HEADER}\na,2,4\n", "line 2: price_per_hour is empty"),
        (f"{HEADER}\na,two,4,1\n", "line 2: cores is 'two' and must be a whole number"),
        (f"{HEADER}\na,1,4,1\na,0,4,1\n", "line 3: cores is 0"),
        (f"{HEADER}\na,1,4,1\n\na,1,4,1\n", "line 4: a stands there before"),
        (f"{HEADER}\na,x,4,1\nb,1,4,\n", "line 2: cores is 'x' and must be a whole number; line 3"),
        (f"{HEADER}\n{'x' * 200_000}\n", "line 2: size is empty"),
    ],
)
def test_a_wrong_price_table_is_one_line_that_says_where(
    plan: Plan, prices: Path, tmp_path: Path, text: str, said: str
) -> None:
    prices.write_text(text)
    plot = tmp_path / "cost.png"

    error = plan("--prices", prices, "--plot", plot).error()

    assert error.startswith(f"error: price table {prices}: ")
    assert said in error
    assert not plot.exists()


def test_a_price_table_that_cannot_be_read_is_one_line(plan: Plan, tmp_path: Path) -> None:
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")

    for path in (tmp_path / "none.csv", tmp_path, binary):
        assert f"price table {path} cannot be read: " in plan("--prices", path).error()


def test_low_priority_without_such_prices_is_one_line(plan: Plan, prices: Path) -> None:
    assert "it has no column low_priority_per_hour" in plan("--low-priority").error()
    prices.write_text(f"{HEADER},low_priority_per_hour\nsmall,2,4,0.1,\n")
    error = plan("--prices", prices, "--low-priority").error()
    assert "no size has a low_priority_per_hour" in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--every", "1min"], "the interval is shorter than a window"),
        (["--finish-within", "16min"], "finish_within is longer than the interval"),
        (["--finish-within", "1min"], "no size can do it; Standard_F32s_v2, scaled to zero: 390 s"),
        (["--rows-per-second", "0"], "rows_per_second is 0.0 and must be a number above 0"),
        (["--rows-per-second", "nan"], "rows_per_second is nan"),
        (
            ["--finish-within", "3min", "--max-nodes", "1", "--rows-per-second", "500"],
            "even with 1 a run takes",
        ),
        (["--windows-per-hour", "-1"], "windows_per_hour is -1.0"),
        (["--part-seconds", "inf"], "part_seconds is inf"),
        (["--billed-startup", "6min"], "billed_startup is more than startup"),
    ],
)
def test_what_cannot_be_planned_is_one_line(plan: Plan, options: list[str], said: str) -> None:
    assert said in plan(*options).error()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--devices", "0"], "greater than or equal to 1"),
        (["--every", "often"], "'often' is not a duration"),
        (["--every", "0s"], "is not a positive number"),
        (["--max-nodes", "0"], "greater than or equal to 1"),
        (["--measure", "--rows-per-second", "5"], "either --rows-per-second or --measure"),
        (["--plot", "cost.pdf"], "ends neither in .png nor in .svg"),
        (["--plot", "no-such-folder/cost.png"], "there is no folder no-such-folder"),
    ],
)
def test_wrong_usage_is_named(plan: Plan, options: list[str], said: str) -> None:
    assert said in plan(*options).usage_error()


@pytest.mark.parametrize("none", ["0", "0s", "0.0 min"])
def test_a_node_may_start_at_once_and_be_given_back_at_once(plan: Plan, none: str) -> None:
    outcome = plan("--startup", none, "--idle", none, "--overhead", none, "--json")

    timing = outcome.json["timing"]
    assert timing["startup_seconds"] == timing["billed_startup_seconds"] == 0
    assert timing["idle_seconds"] == timing["overhead_seconds"] == 0


def test_more_sensors_than_anybody_has_are_one_line(plan: Plan) -> None:
    error = plan(fleet=("--devices", "2000000", "--sensors", "501")).error()

    assert "2,000,000 devices of 501 sensors are more than 1,000,000,000 models" in error


def test_a_plan_without_a_fleet_is_wrong_usage(plan: Plan) -> None:
    assert "--devices" in plan(fleet=()).usage_error()


def test_a_plot_that_cannot_be_written_leaves_nothing(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "cost.png"
    path.mkdir()

    assert str(path) in plan("--plot", path).error()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.exhaustive
@pytest.mark.timeout(120)
def test_measuring_times_this_machine_and_plans_with_it() -> None:
    command = [sys.executable, "-m", "scoring", "plan", *FLEET, "--measure", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    document = json.load(io.StringIO(done.stdout))
    measured, speed = document["speed"]["measured"], document["speed"]
    assert speed["origin"] == "measured"
    assert speed["rows_per_second_per_core"] == measured["rows_per_second"] > 1_000
    assert (measured["windows_per_model"], measured["models"]) == (3, 20_000)
    assert 0 < measured["opening_seconds"] < 60
    rows, parts = document["demand"]["rows_per_run"], 75
    assert document["demand"]["core_seconds_per_run"] == pytest.approx(
        rows / measured["rows_per_second"] + parts
    )


def test_help_needs_neither_numpy_nor_matplotlib() -> None:
    look = "import scoring.cli, sys; print(*{'numpy', 'matplotlib', 'rich.table'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_the_sample_is_in_the_package() -> None:
    # What `pip install .` takes along is named in pyproject.toml.
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()

    assert SAMPLE.name in text
    assert SAMPLE.parent.joinpath("prices.csv").is_file()
