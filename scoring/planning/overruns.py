"""Schedules that cannot keep up.

A run is not done when the next one is due, and runs pile up; or a run takes fewer windows than
come in until the next one, and the backlog grows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scoring.planning.estimates import Mode, Planner
from scoring.planning.inputs import HOUR, Demand, NodeSize, rounded_up

_MINUTE = 60


@dataclass(frozen=True, slots=True)
class Overrun:
    """A mode in which no size of node ends the largest run before the next one is due.

    Attributes
    ----------
    size
        The size whose runs are the shortest.
    nodes
        As many as there may be; None if there is no limit, and the times are lower bounds.
    startup, overhead, scoring
        What the largest run consists of, seconds; `startup` is 0 for warm nodes.
    interval
        From one run to the next, seconds.
    enough_nodes
        The least number of nodes of this size that keep up; None if no number does.
    enough_interval
        Whole minutes, in seconds, that these nodes keep up with; None if no interval is long
        enough, because more rows arrive than they score.
    warm_keeps_up
        Warm nodes keep up, and these are not warm.
    """

    mode: Mode
    size: NodeSize
    nodes: int | None
    startup: float
    overhead: float
    scoring: float
    interval: float
    enough_nodes: int | None
    enough_interval: float | None
    warm_keeps_up: bool

    @property
    def run_seconds(self) -> float:
        """From the largest run's submission to its end; a lower bound if `nodes` has no limit."""
        return self.startup + self.overhead + self.scoring


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A limit of the windows of a run that is below what comes in between two runs.

    Attributes
    ----------
    limit
        Windows that one run takes, about: of a backlog the oldest.
    takes
        Windows that a run takes at most under it: those of whole window starts, and of one at
        least.
    rows
        Windows that end between two runs, on average.
    enough_limit
        The least limit under which no backlog grows.
    enough_interval
        Seconds from one run to the next that this limit allows.
    """

    limit: int
    takes: int
    rows: float
    enough_limit: int
    enough_interval: float


def shortfall(demand: Demand, limit: int) -> Shortfall | None:
    """Return by how much runs of so many windows fall short; None if they keep up.

    Windows of all sensors start together, and a run takes whole starts, so that the newest ones
    of a larger backlog wait for the next run.
    """
    models = demand.devices * demand.sensors
    starts = max(1, limit // models)
    enough = rounded_up(demand.windows_per_hour * demand.interval / HOUR)
    if rounded_up(demand.windows_per_hour * demand.interval / HOUR / starts) <= 1:
        return None
    interval = starts * HOUR / demand.windows_per_hour
    return Shortfall(limit, starts * models, demand.rows, enough * models, interval)


def overruns(planner: Planner, sizes: Sequence[NodeSize]) -> tuple[Overrun, ...]:
    """Return the modes in which no size keeps up with the schedule.

    Whether runs end within `Demand.finish_within` does not matter here.
    """
    late = [mode for mode in Mode if not any(planner.keeps_up(size, mode) for size in sizes)]
    return tuple(_overrun(planner, sizes, mode, warm=Mode.WARM not in late) for mode in late)


def _overrun(planner: Planner, sizes: Sequence[NodeSize], mode: Mode, *, warm: bool) -> Overrun:
    demand, nodes = planner.demand, planner.max_nodes
    size = min(sizes, key=lambda one: planner.scoring(one, nodes, demand.most_rows))
    return Overrun(
        mode=mode,
        size=size,
        nodes=nodes,
        startup=planner.startup(mode),
        overhead=planner.timing.overhead,
        scoring=planner.scoring(size, nodes, demand.most_rows),
        interval=demand.interval,
        enough_nodes=planner.nodes_within(size, mode, demand.interval),
        enough_interval=_enough_interval(planner, size, mode),
        warm_keeps_up=warm,
    )


def _enough_interval(planner: Planner, size: NodeSize, mode: Mode) -> float | None:
    """Return an interval that the nodes there may be keep up with.

    A run of an interval ``T`` scores at most the rows that arrive in ``T`` and one more window of
    each sensor. So ``T >= (fixed + work of one window) / (1 - load)`` is enough, where ``load`` is
    the share of their time that the nodes need for the rows of a second.
    """
    fixed, load = planner.startup(mode) + planner.timing.overhead + planner.speed.part, 0.0
    if planner.max_nodes:
        demand, cores = planner.demand, planner.max_nodes * size.cores
        fixed += planner.speed.work(demand.devices * demand.sensors) / cores
        load = planner.speed.work(demand.rows_per_second) / cores
    if load >= 1:
        return None
    return (fixed / (1 - load) // _MINUTE + 1) * _MINUTE
