"""What scoring a fleet costs: laws, and examples that were worked out by hand."""

import heapq
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scoring.errors import BadInput
from scoring.planning import (
    DAY,
    HOURS_A_MONTH,
    Demand,
    Mode,
    NodeSize,
    Planner,
    Speed,
    Timing,
    cheapest,
    overruns,
    shortfall,
)

SMALL = NodeSize(name="small", cores=2, memory_gb=4, price_per_hour=0.085)
LARGE = NodeSize(name="large", cores=8, memory_gb=16, price_per_hour=0.34)
TIMING = Timing(startup=300, billed_startup=300, overhead=90, idle=120)
DEMAND = Demand(devices=100_000, sensors=5, windows_per_hour=12, interval=900, finish_within=900)
PLANNER = Planner(demand=DEMAND, speed=Speed(), timing=TIMING)

# Ten times the fleet, at a fortieth of the speed.
HEAVY = replace(
    PLANNER, demand=replace(DEMAND, devices=1_000_000), speed=Speed(rows_per_second=5_000)
)


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-9)


@st.composite
def planners(draw: st.DrawFn) -> Planner:
    interval = draw(st.integers(900, 86_400))
    startup = draw(st.integers(0, 400))
    demand = Demand(
        devices=draw(st.integers(1, 10**6)),
        sensors=draw(st.integers(1, 50)),
        windows_per_hour=draw(st.sampled_from([4, 7.5, 12, 60, 720])),
        interval=interval,
        finish_within=draw(st.integers(890, interval)),
    )
    speed = Speed(
        rows_per_second=draw(st.integers(1_000, 10**7)),
        part_rows=draw(st.integers(1_000, 100_000)),
        part_seconds=draw(st.floats(0, 10)),
    )
    timing = Timing(
        startup=startup,
        billed_startup=draw(st.integers(0, startup)),
        overhead=draw(st.integers(0, 300)),
        idle=draw(st.integers(0, 1_800)),
    )
    return Planner(demand=demand, speed=speed, timing=timing)


sizes = st.builds(
    NodeSize,
    name=st.just("some"),
    cores=st.integers(1, 64),
    memory_gb=st.just(8.0),
    price_per_hour=st.floats(0.01, 10),
)


def test_a_hundred_thousand_devices_cost_what_was_worked_out_by_hand() -> None:
    plan = PLANNER.plan(SMALL)

    # 100,000 x 5 sensors x 3 windows in 15 min = 1,500,000 rows = 75 parts of 20,000;
    # a part takes 1 s + 20,000 / 200,000 s = 1.1 s, all of them 82.5 core-seconds.
    assert PLANNER.demand.rows == near(1_500_000)
    assert PLANNER.speed.work(PLANNER.demand.rows) == near(82.5)
    # Two cores: 82.5 / 2 + 1.1 = 42.35 s. With 300 s of start-up and 90 s of overhead: 432.35 s.
    assert plan.to_zero
    assert (plan.to_zero.nodes, plan.to_zero.run_seconds) == (1, near(432.35))
    # Billed for 300 + 90 + 42.35 + 120 = 552.35 s of every 900 s:
    # 0.085 x 730 x 552.35 / 900 = 62.05 x 0.6137222 = 38.0815.
    assert plan.to_zero.billed_seconds_per_run == near(552.35)
    assert round(plan.to_zero.cost_per_month, 4) == 38.0815
    assert not plan.to_zero.always_on
    # Warm: no start-up, all of 0.085 x 730 h.
    assert plan.warm
    assert (plan.warm.nodes, plan.warm.run_seconds) == (1, near(132.35))
    assert plan.warm.cost_per_month == near(62.05)
    # A month has 2,628,000 s and 2,920 runs, whose work is 41.25 s x 2,920 = 120,450 s of a node.
    # The rest, 2,507,550 s, is spent on 300 + 90 + 1.1 + 120 = 511.1 s a run: 4,906.18 runs a
    # month, and 4,906.18 x 24 / 730 = 161.299 a day.
    assert plan.break_even_runs_per_day
    assert round(plan.break_even_runs_per_day, 3) == 161.299


def test_many_nodes_cost_what_was_worked_out_by_hand() -> None:
    plan = HEAVY.plan(SMALL)

    # 15,000,000 rows = 750 parts of 1 + 4 = 5 s: 3,750 core-seconds, 1,875 s of a node.
    # To zero 900 - 390 - 5 = 505 s are left: 1,875 / 505 = 3.7, so 4 nodes, which take
    # 390 + 1,875 / 4 + 5 = 863.75 s. With 120 s idle that is 983.75 s: billed all the time.
    assert plan.to_zero
    assert (plan.to_zero.nodes, plan.to_zero.run_seconds) == (4, near(863.75))
    assert plan.to_zero.always_on
    assert plan.to_zero.cost_per_month == near(4 * 62.05)
    # Warm 900 - 90 - 5 = 805 s are left: 1,875 / 805 = 2.3, so 3 nodes.
    assert plan.warm
    assert (plan.warm.nodes, plan.warm.run_seconds) == (3, near(90 + 625 + 5))
    # 3 x 2,628,000 s - 1,875 s x 2,920 runs = 2,409,000 s are left, and a run takes 4 nodes x
    # 515 s of them: 1,169.417 runs a month.
    assert plan.break_even_runs_per_day == near(1_169.4174757281553 * 24 / 730)
    assert cheapest([plan]).mode is Mode.WARM


@given(planners(), sizes, st.integers(1, 10**6))
def test_cost_grows_with_the_devices(planner: Planner, size: NodeSize, more: int) -> None:
    larger = replace(planner, demand=replace(planner.demand, devices=planner.demand.devices + more))
    one, other = planner.plan(size), larger.plan(size)

    for mode in Mode:
        few, many = one.estimate(mode), other.estimate(mode)
        if few is None or many is None:
            assert few is many  # what can be done does not hang on the number of devices
            continue
        assert few.nodes <= many.nodes
        assert few.cost_per_month <= many.cost_per_month * (1 + 1e-12)


def test_a_schedule_that_leaves_no_time_for_the_start_up_cannot_keep_up_scaled_to_zero() -> None:
    often = replace(PLANNER, demand=replace(DEMAND, interval=300, finish_within=300))

    (overrun,) = overruns(often, [SMALL, LARGE])

    # 300 s of start-up, 90 s of overhead and one part of 1.1 s, on however many nodes.
    assert (overrun.mode, overrun.nodes, overrun.enough_nodes) == (Mode.TO_ZERO, None, None)
    assert (overrun.startup, overrun.overhead, overrun.scoring) == (300, 90, near(1.1))
    assert (overrun.run_seconds, overrun.interval) == (near(391.1), 300)
    assert overrun.enough_interval == 420
    assert overrun.warm_keeps_up


def test_a_schedule_that_the_nodes_cannot_keep_up_with_tells_how_many_do() -> None:
    few = replace(HEAVY, max_nodes=2)

    to_zero, warm = overruns(few, [SMALL])

    # 3,750 core-seconds on 4 cores: 937.5 s, and 5 s of one part.
    assert (to_zero.run_seconds, warm.run_seconds) == (near(1_332.5), near(1_032.5))
    assert (to_zero.enough_nodes, warm.enough_nodes) == (4, 3)
    assert not to_zero.warm_keeps_up
    # More rows arrive than 4 cores score: 3,750 core-seconds every 900 s.
    assert to_zero.enough_interval is warm.enough_interval is None


def test_a_longer_interval_helps_where_nodes_score_more_than_arrives() -> None:
    few = replace(HEAVY, max_nodes=3)

    (overrun,) = overruns(few, [SMALL])

    # 6 cores need 0.694 s for the rows of a second, and 208.3 s for one window of each sensor:
    # (395 + 208.3) / (1 - 0.694) = 1,974.5 s.
    assert (overrun.mode, overrun.enough_interval) == (Mode.TO_ZERO, 33 * 60)
    assert overrun.warm_keeps_up


def test_a_run_that_only_misses_its_own_limit_keeps_up() -> None:
    hurried = replace(PLANNER, demand=replace(DEMAND, finish_within=60))

    assert hurried.plan(SMALL).to_zero is None
    assert overruns(hurried, [SMALL]) == ()


def test_one_size_that_keeps_up_is_enough() -> None:
    few = replace(HEAVY, max_nodes=1)

    assert [one.size for one in overruns(few, [SMALL])] == [SMALL, SMALL]
    assert overruns(few, [SMALL, LARGE]) == ()


@given(planners(), sizes, st.sampled_from([None, 1, 3, 20]), st.floats(0.05, 1))
def test_what_an_overrun_says_is_enough_is_enough(
    planner: Planner, size: NodeSize, max_nodes: int | None, share: float
) -> None:
    # Without a limit of their own, runs fail their limit where they cannot keep up.
    interval = max(3600 / planner.demand.windows_per_hour, share * planner.demand.interval)
    demand = replace(planner.demand, interval=interval, finish_within=interval)
    planner = replace(planner, demand=demand, max_nodes=max_nodes)
    plan = planner.plan(size)

    late = overruns(planner, [size])

    assert [one.mode for one in late] == [mode for mode in Mode if plan.estimate(mode) is None]
    for one in late:
        assert one.run_seconds >= interval * (1 - 1e-9)
        if one.enough_nodes:
            more = replace(planner, max_nodes=one.enough_nodes)
            assert more.keeps_up(size, one.mode)
            assert (
                not replace(planner, max_nodes=one.enough_nodes - 1 or None).keeps_up(
                    size, one.mode
                )
                or one.enough_nodes == 1
            )
        if one.enough_interval:
            longer = replace(demand, interval=one.enough_interval)
            assert replace(planner, demand=longer).keeps_up(size, one.mode)


@given(planners(), sizes, st.floats(0.3, 1))
def test_a_tighter_limit_never_takes_fewer_nodes(
    planner: Planner, size: NodeSize, share: float
) -> None:
    limit = planner.demand.finish_within * share
    tighter = replace(planner, demand=replace(planner.demand, finish_within=limit))
    one, other = planner.plan(size), tighter.plan(size)

    for mode in Mode:
        loose, tight = one.estimate(mode), other.estimate(mode)
        assert loose or not tight
        if loose and tight:
            assert loose.nodes <= tight.nodes
            assert loose.cost_per_month <= tight.cost_per_month * (1 + 1e-12)


@given(planners(), sizes)
def test_nodes_are_the_fewest_that_end_the_largest_run_in_time(
    planner: Planner, size: NodeSize
) -> None:
    limit = planner.demand.finish_within
    plan = planner.plan(size)

    for mode in Mode:
        estimate = plan.estimate(mode)
        if estimate is None:
            continue
        assert estimate.run_seconds <= limit * (1 + 1e-9)
        if estimate.nodes > 1:
            share = planner.speed.work(planner.demand.most_rows) / size.cores
            shorter = estimate.run_seconds - share / estimate.nodes
            assert shorter + share / (estimate.nodes - 1) > limit * (1 - 1e-9)


@given(planners(), sizes)
def test_the_break_even_is_where_the_two_costs_meet(planner: Planner, size: NodeSize) -> None:
    plan = planner.plan(size)
    assume(plan.to_zero and plan.warm)
    assert plan.to_zero
    assert plan.warm
    assert plan.break_even_runs_per_day
    interval = DAY / plan.break_even_runs_per_day

    def to_zero(every: float) -> float:
        assert plan.to_zero
        return planner.cost_to_zero(size, plan.to_zero.nodes, every)

    assert to_zero(interval) == near(plan.warm.cost_per_month)
    assert to_zero(interval * 1.01) < plan.warm.cost_per_month
    assert to_zero(interval / 1.01) >= plan.warm.cost_per_month * (1 - 1e-9)


@given(planners(), sizes)
def test_scaling_to_zero_never_costs_more_than_its_own_nodes_always_on(
    planner: Planner, size: NodeSize
) -> None:
    estimate = planner.plan(size).to_zero
    assume(estimate)
    assert estimate
    ceiling = estimate.nodes * size.price_per_hour * HOURS_A_MONTH

    assert estimate.cost_per_month <= ceiling * (1 + 1e-12)
    assert estimate.always_on == (estimate.billed_seconds_per_run == planner.demand.interval)
    share = estimate.billed_seconds_per_run / planner.demand.interval
    assert estimate.cost_per_month == near(ceiling * share)


@given(st.integers(1, 2_000_000), st.integers(1, 20), sizes)
def test_a_queue_of_parts_is_never_slower_than_planned(
    devices: int, nodes: int, size: NodeSize
) -> None:
    speed = Speed(rows_per_second=50_000, part_rows=20_000, part_seconds=0.7)
    demand = replace(DEMAND, devices=devices, sensors=1)
    cores = nodes * size.cores
    parts = math.ceil(demand.rows / speed.part_rows)
    seconds = speed.part_seconds + demand.rows / parts / speed.rows_per_second
    free = [0.0] * cores
    for _ in range(parts):
        heapq.heapreplace(free, free[0] + seconds)

    planned = speed.work(demand.rows) / cores + speed.part
    assert max(free) <= planned * (1 + 1e-9)


def test_of_equal_costs_fewer_nodes_are_cheapest() -> None:
    double = NodeSize(name="double", cores=4, memory_gb=8, price_per_hour=2 * SMALL.price_per_hour)
    demand = replace(HEAVY.demand, devices=1_700_000)
    small, large = replace(HEAVY, demand=demand)([SMALL, double])

    # 3,187.5 s of a small node in 805 s: 4 small ones, or 2 of twice the cores.
    assert small.warm
    assert large.warm
    assert (small.warm.nodes, large.warm.nodes) == (4, 2)
    assert small.warm.cost_per_month == large.warm.cost_per_month
    assert cheapest([small, large]).size is large


def test_when_it_is_billed_all_the_time_anyway_it_is_kept_warm() -> None:
    often = replace(DEMAND, interval=450, finish_within=450)
    best = cheapest(replace(PLANNER, demand=often)([SMALL]))

    assert best.size.to_zero
    assert best.size.to_zero.always_on
    assert best.size.to_zero.cost_per_month == near(best.estimate.cost_per_month)
    assert best.mode is Mode.WARM


def test_a_start_up_longer_than_the_limit_leaves_warm_nodes_only() -> None:
    plan = replace(PLANNER, demand=replace(DEMAND, finish_within=300)).plan(SMALL)

    assert plan.to_zero is None
    assert plan.break_even_runs_per_day is None
    assert plan.reason == (
        "scaled to zero: 390 s pass before scoring and 1.1 s with one part,"
        " but a run must end within 300 s"
    )
    assert plan.warm
    assert cheapest([plan]).mode is Mode.WARM


def test_too_few_nodes_are_named_with_what_they_would_need() -> None:
    plan = replace(HEAVY, max_nodes=2).plan(SMALL)

    assert plan.to_zero is None
    assert plan.warm is None
    assert plan.reason == (
        "scaled to zero: even with 2 a run takes 1,332 s, and must end within 900 s:"
        " 4 nodes would do; kept warm: even with 2 a run takes 1,032 s, and must end within"
        " 900 s: 3 nodes would do"
    )
    with pytest.raises(
        BadInput, match="no size can do it; small, scaled to zero: even with 2 a run"
    ):
        cheapest([plan])


def test_runs_that_get_one_window_more_at_times_are_planned_for_the_most() -> None:
    demand = replace(DEMAND, windows_per_hour=6)  # windows of 10 min, runs every 15

    assert demand.rows == near(750_000)
    assert demand.most_rows == 1_000_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"devices": 0}, "devices is 0 and must be a number above 0"),
        ({"sensors": -1}, "sensors is -1"),
        ({"windows_per_hour": math.nan}, "windows_per_hour is nan"),
        ({"windows_per_hour": math.inf}, "windows_per_hour is inf"),
        ({"windows_per_hour": 1}, "the interval is shorter than a window"),
        ({"finish_within": 901}, "finish_within is longer than the interval"),
        ({"devices": 0, "sensors": 0}, "devices is 0 .*; sensors is 0 "),
    ],
)
def test_a_demand_out_of_range_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        replace(DEMAND, **change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"startup": -1}, "startup is -1.*; billed_startup is more than startup"),
        ({"billed_startup": 301}, "billed_startup is more than startup"),
        ({"idle": math.inf}, "idle is inf"),
    ],
)
def test_timing_out_of_range_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        replace(TIMING, **change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cores": 0}, "cores is 0"),
        ({"price_per_hour": -0.1}, "price_per_hour is -0.1"),
        ({"cores": 10**400}, "cores is 1000"),
    ],
)
def test_a_node_size_out_of_range_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        replace(SMALL, **change)


def test_a_speed_out_of_range_is_named() -> None:
    with pytest.raises(BadInput, match="rows_per_second is 0"):
        Speed(rows_per_second=0)


@given(
    models=st.integers(1, 1000),
    windows=st.sampled_from([0.5, 1, 7, 12, 60, 61]),
    starts=st.integers(1, 40),
    limit=st.integers(1, 50_000),
)
def test_a_backlog_grows_where_a_run_takes_fewer_windows_than_come_in(
    models: int, windows: float, starts: int, limit: int
) -> None:
    interval = starts * 3600 / windows
    demand = Demand(
        devices=models, sensors=1, windows_per_hour=windows, interval=interval, finish_within=1
    )
    waiting = 0
    for _ in range(20):
        waiting += starts
        waiting -= min(waiting, max(1, limit // models))

    short = shortfall(demand, limit)

    assert (short is not None) == (waiting > 0)
    if short:
        assert shortfall(demand, short.enough_limit) is None
        assert shortfall(demand, short.enough_limit - models) is not None
        assert shortfall(replace(demand, interval=short.enough_interval), limit) is None
