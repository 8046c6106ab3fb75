"""A plan in words: its assumptions, its table's rows, and what comes of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scoring.cli.state import cell
from scoring.planning import DAY, Cheapest, Mode, Overrun, Planner, Shortfall, SizePlan

if TYPE_CHECKING:
    from scoring.cli.measuring import Measured
    from scoring.cli.prices import PriceTable
    from scoring.planning import Estimate

COLUMNS = {
    "size": "size",
    "cores": "cores",
    "memory_gb": "GB",
    "price": "price/h",
    "zero_nodes": "to zero: nodes",
    "zero_run": "run",
    "zero_cost": "cost a month",
    "warm_nodes": "warm: nodes",
    "warm_run": "run ",
    "warm_cost": "cost a month ",
    "even": "warm from runs/day",
    "best": "cheapest",
}
"""Of the table; headings that are there twice differ by a blank."""

SPARE = ("memory_gb", "price", "even", "warm_run", "zero_run", "cores")
"""Columns that a narrow terminal goes without, the first ones first."""

_ORIGINS = {
    "assumed": "assumed, --measure times this machine",
    "given": "given",
    "measured": "measured here",
}
_MINUTES = 120
"""Seconds from which on a length is told in minutes."""

_SHORT = {Mode.TO_ZERO: "to zero", Mode.WARM: "warm"}
_WHEN = {
    Mode.TO_ZERO: "if the cluster scales to zero",
    Mode.WARM: "even if nodes are kept warm",
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what it was made from.

    Attributes
    ----------
    sizes
        In the price table's order.
    best
        None if no size keeps up with the schedule.
    origin
        Of the speed: ``assumed``, ``given`` or ``measured``.
    """

    planner: Planner
    sizes: tuple[SizePlan, ...]
    overruns: tuple[Overrun, ...]
    shortfall: Shortfall | None
    best: Cheapest | None
    table: "PriceTable"
    origin: str
    measured: "Measured | None"


def lasting(seconds: float) -> str:
    """Tell a length for people."""
    return (
        f"{seconds:,.0f} s"
        if seconds < _MINUTES
        else f"{seconds / 60:,.1f}".removesuffix(".0") + " min"
    )


def money(amount: float, table: "PriceTable") -> str:
    """Tell an amount in the table's currency."""
    return f"{amount:,.2f} {table.currency}".rstrip()


def facts(planned: Planned) -> Iterator[str]:
    """Say what the plan is made from."""
    planner, table = planned.planner, planned.table
    demand, speed, timing = planner.demand, planner.speed, planner.timing
    models = demand.devices * demand.sensors
    yield (
        f"fleet   {demand.devices:,} devices x {demand.sensors:,} sensors = {models:,} models,"
        f" {demand.windows_per_hour:g} windows an hour; a run every {lasting(demand.interval)}"
        f" scores {demand.rows:,.0f} rows: {speed.work(demand.rows):,.1f} core-seconds"
    )
    yield (
        f"speed   {speed.rows_per_second:,.0f} rows/s a core ({_ORIGINS[planned.origin]}),"
        f" and {speed.part_seconds:g} s for each part of {speed.part_rows:,} rows"
    )
    yield (
        f"times   node start {lasting(timing.startup)} (billed {lasting(timing.billed_startup)}),"
        f" job overhead {lasting(timing.overhead)}, idle {lasting(timing.idle)};"
        f" a run must end within {lasting(demand.finish_within)}"
    )
    if planned.measured:
        yield _measurement(planned.measured)
    yield (
        f"prices  of {table.date or 'no date given'}, {table.region or 'no region given'}"
        f" ({table.file}): {table.source or 'no source given'}"
    )


def _measurement(measured: "Measured") -> str:
    return (
        f"timed   {measured.processes} processes, {measured.models:,} one-class SVMs of"
        f" {measured.support_vectors:.0f} support vectors, {measured.windows_per_model} rows each"
        f" in a part; {measured.opening_seconds:.2f} s to open the fleet"
    )


def title(table: "PriceTable") -> str:
    """Head the table."""
    return f"cost a month of 730 hours{', ' if table.currency else ''}{table.currency}"


def row(one: SizePlan, best: Cheapest | None) -> dict[str, Any]:
    """Give a size's row of the table."""
    even = one.break_even_runs_per_day
    return {
        "size": one.size.name,
        "cores": one.size.cores,
        "memory_gb": one.size.memory_gb,
        "price": one.size.price_per_hour,
        **_shown("zero", one.to_zero),
        **_shown("warm", one.warm),
        "even": None if even is None else f"{even:,.1f}",
        "best": _SHORT[best.mode] if best and one is best.size else "",
    }


def _shown(prefix: str, estimate: "Estimate | None") -> dict[str, Any]:
    if estimate is None:
        return dict.fromkeys((f"{prefix}_nodes", f"{prefix}_run", f"{prefix}_cost"))
    return {
        f"{prefix}_nodes": estimate.nodes,
        f"{prefix}_run": lasting(estimate.run_seconds),
        f"{prefix}_cost": f"{estimate.cost_per_month:,.2f}",
    }


def verdicts(planned: Planned) -> Iterator[str]:
    """Say what comes of it: the cheapest, from when on warm is, and what cannot be done."""
    yield from (f"warning: {warning(overrun)}" for overrun in planned.overruns)
    if planned.shortfall:
        yield f"warning: {backlog(planned.shortfall)}"
    if planned.best:
        yield from _choice(planned.planner, planned.best, planned.table)
    by_reason: dict[str, list[str]] = {}
    for plan in planned.sizes:
        if plan.reason:
            by_reason.setdefault(plan.reason, []).append(plan.size.name)
    for reason, names in by_reason.items():
        is_all = len(names) == len(planned.sizes) > 1
        yield f"{'every size' if is_all else ', '.join(names)}, {reason}"


def backlog(short: Shortfall) -> str:
    """Say that runs take fewer windows than come in, and what to change."""
    return (
        f"a run takes {short.takes:,} windows at most (SCORING_MAX_RUN_WINDOWS is"
        f" {short.limit:,}, and those of one start belong together), but {short.rows:,.0f} come in"
        f" until the next one, and the backlog grows; set SCORING_MAX_RUN_WINDOWS to"
        f" {short.enough_limit:,}, or run every {lasting(short.enough_interval)} or more often"
    )


def warning(overrun: Overrun) -> str:
    """Say of a schedule that it cannot keep up, what takes how long, and what to change."""
    parts = [
        *([f"node start {lasting(overrun.startup)}"] if overrun.startup else []),
        f"job overhead {lasting(overrun.overhead)}",
        f"scoring {lasting(overrun.scoring)}",
    ]
    if overrun.nodes:
        takes, where = "takes", f"on {_count(overrun.nodes)} of {overrun.size.name}"
    else:
        takes, where = "takes at least", "on any number of nodes"
    return (
        f"a run every {lasting(overrun.interval)} cannot keep up {_WHEN[overrun.mode]}: a run"
        f" {takes} {lasting(overrun.run_seconds)} {where} ({', '.join(parts)}), and runs pile up;"
        f" {_remedies(overrun)}"
    )


def _remedies(overrun: Overrun) -> str:
    remedies = []
    if overrun.enough_nodes:
        remedies.append(f"allow {_count(overrun.enough_nodes)} (--max-nodes)")
    if overrun.enough_interval:
        remedies.append(f"run every {lasting(overrun.enough_interval)} or less often")
    if overrun.warm_keeps_up:
        remedies.append("keep nodes warm (azure-ml publish --min-nodes)")
    return ", or ".join(remedies) or "allow more nodes (--max-nodes) and run less often"


def _count(nodes: int) -> str:
    return f"{nodes:,} {'node' if nodes == 1 else 'nodes'}"


def _choice(planner: Planner, best: Cheapest, table: "PriceTable") -> Iterator[str]:
    one = best.estimate
    how = "kept warm" if best.mode is Mode.WARM else "scaled to zero"
    yield (
        f"cheapest: {_count(one.nodes)} of {best.size.size.name}, {how}:"
        f" {money(one.cost_per_month, table)} a month, runs of {lasting(one.run_seconds)}"
    )
    if best.size.to_zero and best.size.to_zero.always_on:
        yield "scaled to zero it is billed all the time too: the next run comes too soon"
    yield from _when_warm(planner, best.size)


def _when_warm(planner: Planner, size: SizePlan) -> Iterator[str]:
    even = size.break_even_runs_per_day
    if even is None:
        return
    most = planner.demand.windows_per_hour * 24
    never = f"; windows end only {cell(float(most))} times a day" if even > most else ""
    yield (
        f"with these nodes, warm costs no more from {even:,.1f} runs a day on"
        f" (one every {lasting(DAY / even)}){never}"
    )
