"""Scoring runs: what state may follow which, and how runs and parts are named."""

from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.errors import BadInput
from scoring.runs import (
    ACTIVE,
    TERMINAL,
    RunState,
    ScoringRun,
    Tolerance,
    error_name,
    input_prefix,
    may_follow,
    parse_prediction_name,
    part_name,
    part_of,
    prediction_prefix,
    run_id,
)

RUN = "r20261122T230000Z-1a2b3c"
PATH = ["claiming", "claimed", "exported", "submitted", "running", "scored", "completed"]
FORWARD = {*pairwise(PATH), ("submitted", "scored"), ("exported", "scored")}
FORWARD |= {("failing", "failed"), ("canceling", "canceled")}


@pytest.mark.parametrize("new", RunState)
def test_what_a_conditional_update_asks_for_is_what_the_transitions_allow(new: RunState) -> None:
    before = [state for state in RunState if (state, new) in FORWARD]
    gives_back = new in {RunState.FAILING, RunState.CANCELING}
    working = [state for state in ACTIVE if not state.gives_back]

    assert list(may_follow(new)) == (working if gives_back else before)


def test_every_state_is_either_active_or_terminal() -> None:
    assert {state for state in RunState if state.is_terminal} == TERMINAL
    assert set(ACTIVE) | TERMINAL == set(RunState)
    assert not set(ACTIVE) & TERMINAL
    assert {str(state) for state in TERMINAL} == {"completed", "failed", "canceled"}


def test_a_run_is_named_by_its_second_and_its_nonce() -> None:
    assert run_id(datetime(2026, 11, 22, 23, 0, 0, 999999, UTC), "1a2b3c") == RUN


def test_names_of_runs_sort_by_time() -> None:
    moments = [datetime(2026, 2, day, hour, tzinfo=UTC) for day in (1, 10) for hour in (2, 13)]

    assert sorted(run_id(moment, "ffffff") for moment in moments) == [
        run_id(moment, "ffffff") for moment in moments
    ]


@settings(deadline=None, max_examples=100)
@given(st.text(), st.text(), st.integers(1, 10_000))
def test_a_sensor_belongs_to_one_of_the_parts(device: str, sensor: str, parts: int) -> None:
    assert 0 <= part_of(device, sensor, parts) < parts


def test_a_sensor_belongs_to_the_same_part_in_every_version() -> None:
    """Pinned: what is stored was cut by this."""
    known = [("pump-1", "heat"), ("pump-1", "flow"), ("\u00fcber", "\u00b0C"), ("", "")]

    assert [part_of(*names, 1000) for names in known] == [736, 208, 357, 757]


def test_where_the_device_ends_matters_to_the_part() -> None:
    assert part_of("ab", "c", 10**9) != part_of("a", "bc", 10**9)


def test_parts_are_about_equal() -> None:
    sizes = Counter(part_of(f"device-{i}", f"s{j}", 8) for i in range(1000) for j in range(4))

    assert len(sizes) == 8
    assert max(sizes.values()) < 1.25 * min(sizes.values())


def test_attempts_to_export_a_run_never_share_files() -> None:
    assert input_prefix(RUN, "a") == f"runs/{RUN}/input/a/"
    assert not input_prefix(RUN, "ab").startswith(input_prefix(RUN, "a"))
    assert not prediction_prefix(RUN + "0").startswith(prediction_prefix(RUN))


def test_a_run_knows_where_its_files_are() -> None:
    run = ScoringRun(1, RUN, RunState.EXPORTED, "manual", "v1", 0, 0, export="e5")

    assert run.input_prefix == f"runs/{RUN}/input/e5/"
    assert run.prediction_prefix == f"predictions/{RUN}/"


@pytest.mark.parametrize("part", [0, 42, 99_999, 100_000, 12_345_678])
def test_a_prediction_part_is_found_by_its_name_alone(part: int) -> None:
    assert parse_prediction_name(prediction_prefix(RUN) + part_name(part)) == (RUN, part)


@pytest.mark.parametrize(
    "name",
    [
        *["", "predictions", f"predictions/{RUN}", f"predictions/{RUN}/"],
        *["predictions//part-00000.parquet", f"predictions/{RUN}/x/part-00000.parquet"],
        *[f"predictions/{RUN}/part-{'9' * count}.parquet" for count in (10, 20, 5000)],
        *[f"/predictions/{RUN}/part-00000.parquet", f"runs/{RUN}/part-00000.parquet"],
        *[f"predictions/{RUN}/part-0.parquet", f"predictions/{RUN}/part-000000.parquet"],
        *[f"predictions/{RUN}/part-.parquet", f"predictions/{RUN}/part--0001.parquet"],
        *[f"predictions/{RUN}/part-00000.parquet.tmp", f"predictions/{RUN}/Part-00000.parquet"],
        *[
            f"predictions/{RUN}/part-0000\u0661.parquet",
            f"predictions/{RUN}/part-0000\u00b2.parquet",
        ],
        *[f"predictions/{RUN}/00000", f"predictions/{RUN}/_SUCCESS"],
    ],
)
def test_no_other_name_is_taken_for_a_prediction_part(name: str) -> None:
    with pytest.raises(BadInput, match="is not the name of a prediction part"):
        parse_prediction_name(name)


def test_a_run_that_gives_its_windows_back_is_done_with_all_else() -> None:
    assert {str(state) for state in RunState if state.gives_back} == {
        *("failing", "failed", "canceling", "canceled"),
    }


@pytest.mark.parametrize(
    ("parts", "mini_batches", "size", "allowed"),
    [
        (0, 0, 1, 0),
        (2, 2, 1, 2),
        (5, 1, 1, 1),
        (1, 5, 1, 1),
        # Five parts fill two mini-batches of four at least.
        (-1, 1, 4, 4),
        (-1, 2, 4, 8),
        (3, -1, 4, 3),
    ],
)
def test_as_many_parts_may_fail_as_both_thresholds_allow(
    parts: int, mini_batches: int, size: int, allowed: int
) -> None:
    tolerance = Tolerance(parts, mini_batches, size)

    assert tolerance.exceeded(allowed) == []
    assert tolerance.exceeded(allowed + 1) != []


def test_where_both_thresholds_ignore_failures_any_number_is_allowed() -> None:
    assert Tolerance(-1, -1).exceeded(10**6) == []


def test_the_threshold_that_does_not_allow_it_is_named() -> None:
    assert Tolerance(5, 0).exceeded(1) == ["SCORING_MINI_BATCH_ERROR_THRESHOLD is 0"]
    assert Tolerance(0, 5).exceeded(1) == ["SCORING_ERROR_THRESHOLD is 0"]


def test_the_error_of_a_part_lies_beside_its_predictions() -> None:
    assert error_name(part_name(42)) == "part-00042.error"
