"""A plan drawn: cost a month against runs a day, scaled to zero and kept warm."""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from scoring.errors import StorageUnusable
from scoring.planning import DAY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scoring.cli.plan_text import Planned
    from scoring.planning import Cheapest, Planner, SizePlan

_ZERO, _WARM, _OTHERS = "#1f5fbf", "#c8501e", "#b8b8b8"
_POINTS = 400
_LEAST_RUNS, _MOST_RUNS = 1.0, 288.0
"""Runs a day: from one to one every five minutes, and on to what is planned and the break-even."""


def draw(planned: "Planned", best: "Cheapest", path: Path) -> None:
    """Draw the plan into a PNG or SVG file, by its ending; the file is there whole or not at all.

    One line for each mode of the cheapest size, with the nodes planned for it; the other sizes
    faintly behind.

    Raises
    ------
    StorageUnusable
        The file cannot be written; what stood there before still does.
    """
    # Not pyplot: a figure of its own is drawn by Agg, and needs no display.
    from matplotlib.figure import Figure

    planner = planned.planner
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    runs = _frequencies(planner, best.size)
    for one in planned.sizes:
        if one is not best.size and one.to_zero:
            axes.plot(runs, _to_zero(planner, one, runs), color=_OTHERS, linewidth=0.7)
    _draw_best(axes, planner, best.size, runs)
    axes.set_xlim(runs[0], runs[-1])
    _label(axes, planned, best)
    kind = path.suffix.lower().removeprefix(".")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    try:
        figure.savefig(draft, format=kind, dpi=150)
        draft.replace(path)
    except OSError as error:
        message = f"the plot cannot be written to {path}: {error.strerror}"
        raise StorageUnusable(message) from error
    finally:
        with suppress(OSError):
            draft.unlink()


def _frequencies(planner: "Planner", one: "SizePlan") -> list[float]:
    """Give runs a day, evenly on a logarithmic axis."""
    marks = [DAY / planner.demand.interval, one.break_even_runs_per_day or 1.0]
    low, high = min([_LEAST_RUNS, *marks]), max([_MOST_RUNS, *(1.3 * mark for mark in marks)])
    return [low * (high / low) ** (i / (_POINTS - 1)) for i in range(_POINTS)]


def _to_zero(planner: "Planner", one: "SizePlan", runs: Sequence[float]) -> list[float]:
    nodes = one.to_zero.nodes if one.to_zero else 0
    return [planner.cost_to_zero(one.size, nodes, DAY / number) for number in runs]


def _draw_best(axes: "Axes", planner: "Planner", one: "SizePlan", runs: Sequence[float]) -> None:
    if one.to_zero:
        label = f"scaled to zero, {one.to_zero.nodes:,} x {one.size.name}"
        axes.plot(runs, _to_zero(planner, one, runs), color=_ZERO, linewidth=2.2, label=label)
    if one.warm:
        label = f"kept warm, {one.warm.nodes:,} x {one.size.name}"
        axes.axhline(
            one.warm.cost_per_month, color=_WARM, linewidth=2.2, linestyle="--", label=label
        )
    even = one.break_even_runs_per_day
    if one.warm and even:
        cost = one.warm.cost_per_month
        label = f"break-even, {even:,.0f} runs a day"
        axes.plot([even], [cost], "o", color="black", markersize=8, zorder=5, label=label)


def _label(axes: "Axes", planned: "Planned", best: "Cheapest") -> None:
    from matplotlib.ticker import StrMethodFormatter

    demand, table = planned.planner.demand, planned.table
    now = DAY / demand.interval
    axes.axvline(now, color="black", linewidth=0.8, linestyle=":", label=f"planned, {now:,.0f}")
    if len(planned.sizes) > 1:
        axes.plot([], [], color=_OTHERS, linewidth=0.7, label="other sizes, scaled to zero")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    top = max(e.cost_per_month for e in (best.size.to_zero, best.size.warm) if e)
    axes.set_ylim(0, 1.6 * top)
    axes.set_xlabel("runs a day (logarithmic)")
    axes.set_ylabel(f"cost a month ({table.currency or 'currency of the price table'})")
    axes.set_title(
        f"{demand.devices:,} devices x {demand.sensors:,} sensors,"
        f" {demand.windows_per_hour:g} windows an hour\n"
        f"prices of {table.date or 'no date given'}, {table.region or 'no region given'}",
        fontsize=11,
    )
    axes.grid(visible=True, which="major", alpha=0.25)
    axes.legend(loc="best", fontsize=9)
