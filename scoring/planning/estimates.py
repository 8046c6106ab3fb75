"""Nodes, run length and cost of every node size, and where warm nodes become the cheaper ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from scoring.errors import BadInput
from scoring.planning.inputs import (
    DAY,
    HOURS_A_MONTH,
    MONTH,
    Demand,
    NodeSize,
    Speed,
    Timing,
    rounded_up,
)


class Mode(StrEnum):
    """How a cluster is run."""

    TO_ZERO = "scale_to_zero"
    WARM = "warm"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one size costs in one mode.

    Attributes
    ----------
    nodes
        The least that end the largest run in time.
    run_seconds
        From the largest run's submission to its end, start-up included if there is one.
    billed_seconds_per_run
        Of each node for each run, on average.
    cost_per_month
        In the price table's currency, for 730 hours.
    always_on
        Nodes are billed without a break: warm, or runs that leave no time to scale down.
    """

    nodes: int
    run_seconds: float
    billed_seconds_per_run: float
    cost_per_month: float
    always_on: bool


@dataclass(frozen=True, slots=True)
class SizePlan:
    """A size of node in both modes; None where it cannot be done, and then `reason` says why.

    Attributes
    ----------
    break_even_runs_per_day
        `break_even`; None unless both modes can be done.
    """

    size: NodeSize
    to_zero: Estimate | None
    warm: Estimate | None
    break_even_runs_per_day: float | None
    reason: str

    def estimate(self, mode: Mode) -> Estimate | None:
        """Give one mode's estimate."""
        return self.to_zero if mode is Mode.TO_ZERO else self.warm


@dataclass(frozen=True, slots=True)
class Cheapest:
    """The choice that costs least; among equals that of fewest nodes, then of the shorter runs."""

    size: SizePlan
    mode: Mode
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """All that costs depend on but the node sizes.

    Attributes
    ----------
    max_nodes
        More than these are not to be had (quota); None is no limit.
    """

    demand: Demand
    speed: Speed
    timing: Timing
    max_nodes: int | None = None

    def __call__(self, sizes: Iterable[NodeSize]) -> tuple[SizePlan, ...]:
        """Plan every size, in the order given."""
        return tuple(self.plan(size) for size in sizes)

    def plan(self, size: NodeSize) -> SizePlan:
        """Plan one size in both modes."""
        found: dict[Mode, Estimate] = {}
        reasons = []
        for mode in Mode:
            try:
                found[mode] = self._estimate(size, mode)
            except BadInput as error:
                reasons.append(str(error))
        to_zero, warm = found.get(Mode.TO_ZERO), found.get(Mode.WARM)
        even = None
        if to_zero and warm:
            even = self.break_even(size, to_zero.nodes, warm.nodes)
        return SizePlan(size, to_zero, warm, even, "; ".join(reasons))

    def nodes(self, size: NodeSize, mode: Mode) -> int:
        """Give the least number of nodes that end the largest run in time.

        Raises
        ------
        BadInput
            No number does, or more than `max_nodes`; the text says what would be needed.
        """
        before = self._before_scoring(mode)
        nodes = self.nodes_within(size, mode, self.demand.finish_within)
        if nodes is None:
            message = (
                f"{_label(mode)}: {before:,.0f} s pass before scoring and {self.speed.part:,.1f} s"
                f" with one part, but a run must end within {self.demand.finish_within:,.0f} s"
            )
            raise BadInput(message)
        if self.max_nodes and nodes > self.max_nodes:
            length = before + self.scoring(size, self.max_nodes, self.demand.most_rows)
            message = (
                f"{_label(mode)}: even with {self.max_nodes:,} a run takes {length:,.0f} s,"
                f" and must end within {self.demand.finish_within:,.0f} s: {nodes:,} nodes would do"
            )
            raise BadInput(message)
        return nodes

    def nodes_within(self, size: NodeSize, mode: Mode, seconds: float) -> int | None:
        """Return the least number of nodes that end the largest run in time, whatever the limit.

        None if no number does.
        """
        left = seconds - self._before_scoring(mode) - self.speed.part
        if left <= 0:
            return None
        return max(1, rounded_up(self.speed.work(self.demand.most_rows) / (size.cores * left)))

    def keeps_up(self, size: NodeSize, mode: Mode) -> bool:
        """Whether at most `max_nodes` end the largest run before the next one is due."""
        nodes = self.nodes_within(size, mode, self.demand.interval)
        return nodes is not None and (self.max_nodes is None or nodes <= self.max_nodes)

    def startup(self, mode: Mode) -> float:
        """Return the seconds that pass before a run has nodes."""
        return self.timing.startup if mode is Mode.TO_ZERO else 0.0

    def scoring(self, size: NodeSize, nodes: int | None, rows: float) -> float:
        """Return the seconds that rows take; None stands for any number of nodes."""
        share = self.speed.work(rows) / (nodes * size.cores) if nodes else 0.0
        return share + self.speed.part

    def cost_to_zero(self, size: NodeSize, nodes: int, interval: float) -> float:
        """Cost a month of scaling to zero, with these nodes and a run every `interval` seconds.

        Linear in the run frequency until the nodes are billed without a break. That is reckoned
        to begin when the billed time fills the interval. A little before, every other run finds
        nodes that are still up and saves its start-up; no more than that is reckoned too much.
        """
        billed = min(interval, self._billed(size, nodes, interval))
        return nodes * size.price_per_hour * HOURS_A_MONTH * billed / interval

    def break_even(self, size: NodeSize, to_zero: int, warm: int) -> float:
        """Give the runs a day from which on warm nodes cost no more than scaling to zero.

        Closed form, from ``to_zero * (fixed * runs + month's work / (to_zero * cores))`` equal to
        ``warm * month``, where ``fixed`` is what a node is billed for a run besides its share of
        the work.

        Parameters
        ----------
        to_zero, warm
            Nodes of either mode; the nodes stay, whatever the frequency.
        """
        work = self.speed.work(self.demand.rows_per_second * MONTH) / size.cores
        runs = (warm * MONTH - work) / (to_zero * self._fixed)
        return runs * DAY / MONTH

    @property
    def _fixed(self) -> float:
        timing = self.timing
        return timing.billed_startup + timing.overhead + self.speed.part + timing.idle

    def _before_scoring(self, mode: Mode) -> float:
        return self.timing.overhead + self.startup(mode)

    def _billed(self, size: NodeSize, nodes: int, interval: float) -> float:
        rows = self.demand.rows_per_second * interval
        return self._fixed + self.speed.work(rows) / (nodes * size.cores)

    def _estimate(self, size: NodeSize, mode: Mode) -> Estimate:
        nodes, interval = self.nodes(size, mode), self.demand.interval
        length = self._before_scoring(mode) + self.scoring(size, nodes, self.demand.most_rows)
        billed, cost = interval, nodes * size.price_per_hour * HOURS_A_MONTH
        if mode is Mode.TO_ZERO:
            billed = min(interval, self._billed(size, nodes, interval))
            cost = self.cost_to_zero(size, nodes, interval)
        return Estimate(nodes, length, billed, cost, billed == interval)


def cheapest(plans: Sequence[SizePlan]) -> Cheapest:
    """Choose what costs least.

    Raises
    ------
    BadInput
        No size can do it in any mode; the text says why, of the size that has most cores.
    """
    choices = [
        Cheapest(plan, mode, estimate)
        for plan in plans
        for mode in Mode
        if (estimate := plan.estimate(mode))
    ]
    if not choices:
        largest = max(plans, key=lambda plan: plan.size.cores)
        message = f"no size can do it; {largest.size.name}, {largest.reason}"
        raise BadInput(message)
    return min(choices, key=_rank)


def _rank(choice: Cheapest) -> tuple[float, int, float]:
    estimate = choice.estimate
    # To the cent: figures that differ by rounding only are equal.
    return round(estimate.cost_per_month, 2), estimate.nodes, estimate.run_seconds


def _label(mode: Mode) -> str:
    return "scaled to zero" if mode is Mode.TO_ZERO else "kept warm"
