"""How windows are spread over the parts of a run."""

from dataclasses import replace

import numpy as np
import pytest

from scoring.handlers.parts import Parts, Suspects
from scoring.predictions import INPUT_SCHEMA, PREDICTION_SCHEMA, read_table
from scoring.runs import RunState, ScoringRun
from scoring.suspects import FailedPart, Sensor, Suspect, suspected
from tests.adapters.stores import MINUTE, partials

NOW = 10**15
HOUR = 3600 * 10**6
Found = dict[int, list[tuple[str, int]]]


def run(number: int = 1, *, rescore: bool = False) -> ScoringRun:
    return ScoringRun(number, "r1", RunState.CLAIMED, "timer", "v1", NOW, NOW, rescore=rescore)


def suspect(sensor: str, *, since: int = 1, sensors: int = 1, aside: bool = False) -> Suspect:
    set_aside_at = NOW if aside else None
    return Suspect("d", sensor, "v1", since, 4, sensors, 3, "out of memory", set_aside_at)


def spread(
    of: ScoringRun, sensors: str, *suspects: Suspect, count: int = 1, windows: int = 2
) -> tuple[Found, Found]:
    """Spread windows over parts; gives the sensors and starts by part: to score, and set aside."""
    known: dict[Sensor, Suspect] = {one.key: one for one in suspects}
    parts = Parts(of, count, Suspects(of, known, NOW))
    keys = [("d", sensor, start * MINUTE) for sensor in sensors for start in range(windows)]
    parts.add(partials({key: [1.0] for key in keys}))
    found: tuple[Found, Found] = ({}, {})
    for part, data in parts.finished():
        schema = PREDICTION_SCHEMA if part.is_aside else INPUT_SCHEMA
        table = read_table(data, schema, "part")
        assert table.num_rows == part.rows
        starts = table["window_start"].cast("int64").to_pylist()
        found[part.is_aside][part.number] = list(
            zip(table["sensor"].to_pylist(), starts, strict=True)
        )
    return found


def sensors_of(found: Found) -> list[str]:
    """Name the sensors of each part, in the order of the parts."""
    return ["".join(sorted({name for name, _ in found[number]})) for number in sorted(found)]


def test_without_suspects_all_windows_are_in_as_many_parts_as_asked_for() -> None:
    found, aside = spread(run(), "abcdefgh", count=3)

    assert set(found) <= {0, 1, 2}
    assert "".join(sorted("".join(sensors_of(found)))) == "abcdefgh"
    assert aside == {}


def test_another_run_begins_with_another_part() -> None:
    first, _ = spread(run(1), "abcdefgh", count=3)
    second, _ = spread(run(2), "abcdefgh", count=3)

    assert second == {(number + 1) % 3: rows for number, rows in first.items()}


def test_suspects_come_last_and_those_that_failed_last_behind_the_others() -> None:
    found, _ = spread(run(), "abcd", suspect("a", since=7), suspect("c", since=5))

    assert sensors_of(found) == ["bd", "c", "a"]


def test_suspects_of_one_run_take_turns() -> None:
    suspects = [suspect(sensor) for sensor in "abc"]

    orders = {tuple(sensors_of(spread(run(number), "abc", *suspects)[0])) for number in range(3)}

    assert orders == {("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b")}


def test_suspects_share_parts_up_to_their_limits() -> None:
    suspects = [suspect(sensor, sensors=2) for sensor in "abcde"]

    found, _ = spread(run(), "abcde", *suspects)

    assert sorted(sensors_of(found)) == ["ab", "cd", "e"]


def test_a_sensor_stays_whole_however_many_windows_it_has() -> None:
    found, _ = spread(run(), "ab", suspect("a"), windows=9)

    assert [len(rows) for rows in found.values()] == [9, 9]


def test_the_windows_of_a_sensor_that_is_set_aside_are_answered_and_not_exported() -> None:
    found, aside = spread(run(), "ab", suspect("a", aside=True))

    assert sensors_of(found) == ["b"]
    assert list(aside.values()) == [[("a", 0), ("a", MINUTE)]]


def test_a_run_that_scores_again_tries_everybody_once_a_day() -> None:
    found, aside = spread(run(rescore=True), "ab", suspect("a", aside=True))
    tried_today = replace(suspect("a", aside=True), tried_at=NOW - 1)

    assert sensors_of(found) == ["b", "a"]
    assert aside == {}
    assert sensors_of(spread(run(rescore=True), "ab", tried_today)[0]) == ["b"]


def test_a_run_that_scores_a_device_again_always_tries_its_sensors() -> None:
    of = replace(run(rescore=True), devices=("d",))
    tried_today = replace(suspect("a", aside=True), tried_at=NOW - 1)

    assert sensors_of(spread(of, "ab", tried_today)[0]) == ["b", "a"]


@pytest.mark.parametrize("late", [False, True], ids=["in time", "late"])
def test_however_many_are_bad_one_run_a_day_fails_for_trying_them(late: bool) -> None:
    """Hourly runs that tolerate no failed part: what is tried first of the bad ones ends a run."""
    names = [f"s{number:02d}" for number in range(40)]
    known: dict[Sensor, Suspect] = {}
    for hour, name in enumerate(names):
        known["d", name] = replace(
            suspect(name, aside=True), set_aside_at=NOW + hour * HOUR, newest_aside=9 if late else 0
        )
    failed = []
    for number in range(40, 40 + 24 * 7):
        now = NOW + number * HOUR
        suspects = Suspects(run(number), known, now)
        tried = [key for key in known if suspects.reason_aside(key, 5) is None]
        for key in tried:
            suspects.place(key)
        known |= {one.key: one for one in suspects.tried()}
        if tried:
            failed.append(number)
            part = FailedPart((tried[0],), 1, "out of memory", is_certain=True)
            changed = suspected([part], known, "v1", number, now)
            known |= {one.key: one for one in changed}
    assert np.diff(failed).tolist() == [24] * 6


def test_a_suspect_of_another_fleet_is_none() -> None:
    other = ScoringRun(1, "r1", RunState.CLAIMED, "timer", "v2", NOW, NOW)

    found, aside = spread(other, "ab", suspect("a", aside=True))

    assert (sensors_of(found), aside) == (["ab"], {})
