"""Who is suspected of having made a part fail, and who is set aside."""

from dataclasses import replace

import pytest

from scoring.suspects import ALONE, SET_ASIDE, FailedPart, Sensor, Suspect, may_try, suspected

NOW = 10**15
A, B, C, D = (("d", sensor) for sensor in "abcd")


def part(*sensors: Sensor, rows: int = 8, is_certain: bool = True) -> FailedPart:
    return FailedPart(sensors, rows, "out of memory", is_certain)


def after(
    *parts: FailedPart, known: list[Suspect] | None = None, run: int = 1, fleet: str = "v1"
) -> dict[Sensor, Suspect]:
    before = {suspect.key: suspect for suspect in known or []}
    return {one.key: one for one in suspected(parts, before, fleet, run, NOW)}


def failed_alone(times: int) -> Suspect:
    suspect = None
    for run in range(1, times + 1):
        suspect = after(part(A), known=[suspect] if suspect else [], run=run)[A]
    assert suspect is not None
    return suspect


def test_all_sensors_of_a_failed_part_come_in_parts_of_half_the_size() -> None:
    found = after(part(A, B, C, D, rows=9))

    assert set(found) == {A, B, C, D}
    assert {(one.rows, one.sensors, one.failures) for one in found.values()} == {(4, 2, 0)}


def test_a_part_of_one_row_stays_one() -> None:
    assert (after(part(A, rows=1))[A].rows, after(part(A, rows=1))[A].sensors) == (1, 1)


@pytest.mark.parametrize("times", range(1, ALONE + 2))
def test_a_sensor_that_fails_alone_often_enough_is_set_aside(times: int) -> None:
    suspect = failed_alone(times)

    assert suspect.failures == times
    assert suspect.set_aside_at == (NOW if times >= ALONE else None)


def test_failures_beside_others_or_of_the_run_as_a_whole_do_not_count() -> None:
    assert after(part(A, B), known=[failed_alone(2)], run=3)[A].failures == 2
    assert after(part(A, is_certain=False), known=[failed_alone(2)], run=3)[A].failures == 2


def test_a_run_counts_once_however_often_it_is_looked_at() -> None:
    assert after(part(A), known=[failed_alone(2)], run=2) == {}


def test_another_fleet_begins_anew() -> None:
    suspect = after(part(A), known=[failed_alone(ALONE)], run=9, fleet="v2")[A]

    assert (suspect.fleet_version, suspect.failures, suspect.set_aside_at) == ("v2", 1, None)


def test_one_that_is_set_aside_is_due_again_after_a_day() -> None:
    suspect = failed_alone(ALONE)

    assert not suspect.is_due(first_start=5, now=NOW)
    assert not suspect.is_due(first_start=5, now=NOW + SET_ASIDE - 1)
    assert suspect.is_due(first_start=5, now=NOW + SET_ASIDE)
    assert failed_alone(ALONE - 1).is_due(first_start=5, now=NOW)


def test_one_whose_windows_have_changed_since_they_were_set_aside_is_due() -> None:
    suspect = replace(failed_alone(ALONE), newest_aside=100)

    assert not suspect.is_due(first_start=101, now=NOW)
    assert suspect.is_due(first_start=100, now=NOW)


def test_one_that_fails_again_is_set_aside_again_with_all_its_windows() -> None:
    tried = replace(failed_alone(ALONE), newest_aside=100, tried_at=NOW - 1)

    again = after(part(A), known=[tried], run=99)[A]

    assert not again.is_due(first_start=0, now=NOW)
    assert again.tried_at == NOW - 1


def test_a_day_passes_between_runs_that_try_any() -> None:
    tried = [replace(failed_alone(ALONE), tried_at=at) for at in (None, NOW - 7, NOW)]

    assert may_try(tried[:1], NOW)
    assert not may_try(tried, NOW + SET_ASIDE - 1)
    assert may_try(tried, NOW + SET_ASIDE)
