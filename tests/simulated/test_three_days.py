"""Three days with everything that keeps runs from ending, and what must be true after them."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from scoring.adapters.sql import schema
from scoring.bootstrap import App
from scoring.runs import RunState
from scoring.settings import Settings
from tests.simulated.cluster import MINUTE, Faults, Period, Sensor, version_of
from tests.simulated.world import BEGIN, CANCELED_IN, DAY, HOUR, SENSORS, SETTINGS, WINDOW, World

DAYS = 3
DRAIN = 12 * HOUR
"""How long the system may take, after the last reading, until all is scored."""

POISONED: Sensor = ("d1", "s1")


def hours(since: float, until: float) -> Period:
    return Period(BEGIN + int(since * HOUR), BEGIN + int(until * HOUR))


FAULTS = Faults(
    broken_image=hours(8, 9),
    poison=(POISONED, hours(14, 38)),
    no_quota=hours(44, 47),
    amnesia=hours(52, 52.5),
    errors=0.01,
)


def schedule(world: World) -> None:
    """Plan three days: devices, timers, people and losses."""
    steps = DAYS * DAY // WINDOW
    for number in range(steps):
        start = BEGIN + number * WINDOW
        world.at(start + WINDOW + 10_000_000, partial(world.deliver, start))
    for number in range((DAYS * DAY + DRAIN) // WINDOW):
        world.at(BEGIN + number * WINDOW, world.submit)
    for number in range((DAYS * DAY + DRAIN) // MINUTE):
        world.at(BEGIN + number * MINUTE + 30_000_000, world.watch)
    for number in range(DAYS * 3):
        for offset, state in enumerate(CANCELED_IN):
            time = BEGIN + number * 8 * HOUR + (offset + 1) * HOUR + world.random.randrange(HOUR)
            world.at(time, partial(world.cancel_in, state))
    world.at(BEGIN + 45 * HOUR, partial(world.cancel_in, RunState.SUBMITTED))
    for hour in (5, 22, 30, 50, 60):
        world.at(BEGIN + hour * HOUR, world.lose_a_job)
        world.at(BEGIN + hour * HOUR + HOUR // 2, world.die_while_claiming)
    world.at(BEGIN + 26 * HOUR, partial(world.rescore, "d2", BEGIN + 10 * HOUR, BEGIN + 12 * HOUR))


@dataclass(frozen=True)
class Stored:
    """What the store says in the end."""

    runs: list[Any]
    parts: list[Any]
    partials: list[Any]
    predictions: list[Any]
    sensor_counts: list[Any]
    device_counts: list[Any]
    suspects: list[Any]

    @classmethod
    def of(cls, app: App) -> "Stored":
        tables = (
            *(schema.runs, schema.run_parts, schema.window_partials, schema.predictions),
            *(schema.sensor_counts, schema.device_counts, schema.suspects),
        )
        with app.database.read() as connection:
            return cls(*(list(connection.execute(select(table))) for table in tables))


def figures(world: World, stored: Stored) -> dict[str, Any]:
    """Return the numbers that say how the three days went."""
    return {
        "runs": dict(Counter(run.state for run in stored.runs)),
        "windows": len(world.history),
        "canceled in": {state.value: number for state, number in world.canceled.items()},
        "jobs lost": world.cluster.lost,
        "timer refused": world.refusals["submit"],
        "errors": dict(world.errors),
        "most pending": max(look.pending for look in world.looks),
        "recovery, minutes": {
            name: recovery(world, period.until)
            for name, period in (
                ("broken image", FAULTS.broken_image),
                ("no quota", FAULTS.no_quota),
                ("amnesia", FAULTS.amnesia),
            )
        },
        "drained after, minutes": drained_after(world),
    }


def recovery(world: World, since: int) -> int:
    """Return the minutes until no more than three windows a sensor are pending."""
    looks = (look for look in world.looks if look.at >= since)
    done = next(look.at for look in looks if look.pending <= 3 * len(SENSORS))
    return (done - since) // MINUTE


def drained_after(world: World) -> int | None:
    """Return the minutes after the last reading until nothing was pending or active for good."""
    busy = max(look.at for look in world.looks if look.pending or look.active)
    return (busy - (BEGIN + DAYS * DAY)) // MINUTE


@contextmanager
def explained(world: World, seed: int) -> Iterator[None]:
    """Show how a failure came about."""
    try:
        yield
    except Exception as error:
        error.add_note("\n".join([f"seed {seed}", *world.log[-200:]]))
        raise


def check_ends(world: World, stored: Stored) -> None:
    numbers = {run.number: RunState(run.state) for run in stored.runs}
    assert {state for state in numbers.values() if not state.is_terminal} == set()
    owners = Counter(row.claimed_by for row in stored.partials)
    assert owners[None] == 0
    assert {number: numbers.get(number) for number in owners if number is not None} == {
        number: RunState.COMPLETED for number in owners if number is not None
    }
    assert world.app.submit.store.open_jobs() == []
    assert [run.run_id for run in stored.runs if run.job_is_open] == []
    assert world.cluster.alive() == []
    assert all(run.ended_at is not None for run in stored.runs)
    assert all(run.cause for run in stored.runs if run.state == RunState.FAILED)


def check_exports(world: World) -> None:
    """Every window went to the engine with the data that it had when it was claimed."""
    for run_id, windows in world.cluster.accepted.items():
        steps = {world.claimed_at.get(run_id), world.exported_at[run_id]} - {None}
        for window, version in windows.items():
            for step in steps:
                assert step is not None
                assert world.history.at(step, window) == version, (run_id, window)


def check_predictions(world: World, stored: Stored) -> None:
    """Every window has one prediction, of its final data, by the run that it names."""
    run_ids = {run.number: run.run_id for run in stored.runs}
    keys = [tuple(row[:3]) for row in stored.predictions]
    stored_keys = [
        (row.device, row.sensor, int(row.window_start.timestamp() * 1_000_000))
        if hasattr(row.window_start, "timestamp")
        else (row.device, row.sensor, row.window_start)
        for row in stored.predictions
    ]
    assert len(set(keys)) == len(keys)
    assert set(stored_keys) == set(world.history)
    aside = 0
    for row, window in zip(stored.predictions, stored_keys, strict=True):
        if row.status == "model_failed":
            assert window[:2] == POISONED
            assert "failed runs" in row.reason
            aside += 1
            continue
        assert row.status == "scored"
        version = version_of(row.anomaly_score)
        assert version == world.history.final(window), (window, row.run_number)
        assert world.cluster.accepted[run_ids[row.run_number]][window] == version
    assert aside > 100


def check_scored_once(world: World, stored: Stored) -> None:
    """No data of a window was scored by two runs that completed, unless somebody asked for it."""
    failed = {(part.run_number, part.part) for part in stored.parts if part.cause}
    assert failed == {
        (part.run_number, part.part)
        for part in stored.parts
        if part.cause and states(stored)[part.run_number] != RunState.COMPLETED
    }
    scored: dict[Any, list[str]] = defaultdict(list)
    for run in stored.runs:
        if run.state == RunState.COMPLETED and run.run_id not in world.rescores:
            for window, version in world.cluster.accepted.get(run.run_id, {}).items():
                scored[window, version].append(run.run_id)
    twice = {key: run_ids for key, run_ids in scored.items() if len(run_ids) > 1}
    assert twice == {}


def states(stored: Stored) -> dict[int, str]:
    return {run.number: run.state for run in stored.runs}


def check_counts(stored: Stored) -> None:
    wanted: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in stored.predictions:
        is_scored = row.status == "scored"
        for key in ((row.device, row.sensor), (row.device,)):
            wanted[key][0] += is_scored
            wanted[key][1] += bool(row.is_anomaly)
            wanted[key][2] += not is_scored
    found: dict[Any, list[int]] = {
        (row.device, row.sensor): list(row[2:]) for row in stored.sensor_counts
    }
    found |= {(row.device,): list(row[1:]) for row in stored.device_counts}
    assert found == wanted


def check_suspicion(world: World, stored: Stored) -> None:
    """Nobody but the poisoned sensor was ever set aside, and nobody is suspected in the end."""
    assert [(row.device, row.sensor) for row in stored.suspects] == []
    assert world.suspected == {POISONED}


def check_bounds(world: World) -> None:
    assert max(look.active for look in world.looks) <= world.app.settings.max_active_runs
    assert all(world.canceled[state] >= 1 for state in CANCELED_IN)
    for period in (FAULTS.broken_image, FAULTS.no_quota, FAULTS.amnesia):
        assert recovery(world, period.until) <= 2 * 60


def live(app: App, seed: int, faults: Faults) -> tuple[World, Stored]:
    world = World(app, seed, faults)
    with explained(world, seed):
        schedule(world)
        world.run(BEGIN + DAYS * DAY + DRAIN)
        world.cluster.faults = replace(faults, errors=0.0)
        stored = Stored.of(app)
        for check in (check_ends, check_predictions, check_scored_once, check_suspicion):
            check(world, stored)
        check_exports(world)
        check_counts(stored)
        check_bounds(world)
    return world, stored


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with App(Settings.load(SETTINGS | {"SCORING_DATA": str(tmp_path / "data")})) as app:
        yield app


@pytest.mark.exhaustive
def test_after_three_days_every_window_is_scored_once_and_every_run_has_ended(app: App) -> None:
    world, stored = live(app, 1, FAULTS)
    print(figures(world, stored))  # noqa: T201 - what CI shows of it
