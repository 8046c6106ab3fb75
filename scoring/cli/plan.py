"""The command that plans: what a fleet costs to score on an autoscaling cluster."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scoring.cli.state import (
    JsonFlag,
    check_duration,
    console,
    plain,
    show_json,
    show_rows,
)

if TYPE_CHECKING:
    from scoring.cli.measuring import Measured
    from scoring.cli.plan_text import Planned
    from scoring.planning import Cheapest, Overrun, Shortfall, SizePlan

NOT_INCLUDED = (
    "disks, network, storage and its transactions, Event Hubs, SQL, the function app, retries,"
    " preempted nodes, whether a node's memory holds the fleet"
)


_NOTHING = re.compile(r"\s*0+(\.0+)?\s*(ms|s|min|h|d)?\s*")
"""No time at all: a duration is longer than that elsewhere."""


def _time(help_: str, *, none: bool = False) -> Any:
    return typer.Option(help=help_, callback=_check_time if none else check_duration)


def _check_time(text: str | None) -> str | None:
    return text if text and _NOTHING.fullmatch(text) else check_duration(text)


def _check_plot(path: Path | None) -> Path | None:
    if path and path.suffix.lower() not in {".png", ".svg"}:
        message = f"{str(path)!r} ends neither in .png nor in .svg"
        raise typer.BadParameter(message)
    if path and not path.parent.is_dir():
        message = f"there is no folder {path.parent}"
        raise typer.BadParameter(message)
    return path


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(plan)


def plan(
    devices: Annotated[int, typer.Option(min=1, max=10**9, help="Devices.")],
    sensors: Annotated[int, typer.Option(min=1, max=10**6, help="Sensors a device.")],
    window: Annotated[str, _time("Window size.")] = "5min",
    windows_per_hour: Annotated[
        float | None, typer.Option(help="Of a sensor; overrides --window.")
    ] = None,
    every: Annotated[str, _time("From one run to the next.")] = "15min",
    finish_within: Annotated[
        str | None, _time("From a run's submission to its end at most; default: --every.")
    ] = None,
    rows_per_second: Annotated[
        float | None, typer.Option(help="Rows a core scores; default: 200000, a careful guess.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time this machine and plan with that.")
    ] = False,
    part_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows an input part; default: SCORING_PART_ROWS.")
    ] = None,
    max_run_windows: Annotated[
        int | None,
        typer.Option(min=1, help="Windows a run takes; default: SCORING_MAX_RUN_WINDOWS."),
    ] = None,
    part_seconds: Annotated[
        float, typer.Option(min=0, help="Network and book-keeping a part, a guess.")
    ] = 1.0,
    startup: Annotated[
        str, _time("To allocate and boot a node and pull the image, a guess.", none=True)
    ] = "5min",
    billed_startup: Annotated[
        str | None, _time("How much of --startup is billed; default: all.", none=True)
    ] = None,
    overhead: Annotated[
        str, _time("Of a job: pipeline, processes that open the fleet; a guess.", none=True)
    ] = "90s",
    idle: Annotated[
        str, _time("How long the cluster keeps a node without work.", none=True)
    ] = "120s",
    max_nodes: Annotated[
        int | None, typer.Option(min=1, help="The cluster's limit; default: none.")
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(help="CSV: size,cores,memory_gb,price_per_hour; default: a sample."),
    ] = None,
    low_priority: Annotated[
        bool, typer.Option("--low-priority", help="By the table's low_priority_per_hour.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw cost against runs a day: .png or .svg.", callback=_check_plot),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what a fleet costs to score on an autoscaling cluster: nodes, run length, money."""
    from scoring.adapters.environment import environment
    from scoring.cli.plan_text import Planned
    from scoring.cli.prices import SAMPLE, read_prices
    from scoring.planning import (
        ROWS_PER_SECOND,
        Demand,
        Mode,
        Planner,
        Speed,
        Timing,
        cheapest,
        overruns,
        shortfall,
    )
    from scoring.settings import Settings

    if measure and rows_per_second is not None:
        message = "give either --rows-per-second or --measure"
        raise typer.BadParameter(message)
    usual = Settings.load(environment())
    part_rows = part_rows or usual.part_rows
    limit = max_run_windows or usual.max_run_windows
    demand = Demand(
        devices=devices,
        sensors=sensors,
        windows_per_hour=3600 / _seconds(window) if windows_per_hour is None else windows_per_hour,
        interval=_seconds(every),
        finish_within=_seconds(finish_within or every),
    )
    timing = Timing(
        startup=_seconds(startup),
        billed_startup=_seconds(billed_startup or startup),
        overhead=_seconds(overhead),
        idle=_seconds(idle),
    )
    rate = ROWS_PER_SECOND if rows_per_second is None else rows_per_second
    speed = Speed(rows_per_second=rate, part_rows=part_rows, part_seconds=part_seconds)
    table = read_prices(prices or SAMPLE, low_priority=low_priority)
    # Last, for it takes some seconds: all that was given is in order.
    measured = _measure(demand.windows_per_run, part_rows) if measure else None
    if measured:
        speed = replace(speed, rows_per_second=measured.rows_per_second)
    planner = Planner(demand=demand, speed=speed, timing=timing, max_nodes=max_nodes)
    sizes = planner(table.sizes)
    origin = "measured" if measured else "assumed" if rows_per_second is None else "given"
    late = overruns(planner, table.sizes)
    # A schedule that no size keeps up with is a warning; but then there is nothing to draw.
    best = cheapest(sizes) if plot or len(late) < len(Mode) else None
    short = shortfall(demand, limit)
    planned = Planned(planner, sizes, late, short, best, table, origin, measured)
    _give(planned, plot, as_json=as_json)


def _give(planned: "Planned", plot: Path | None, *, as_json: bool) -> None:
    if plot and planned.best:
        from scoring.cli.plot import draw

        draw(planned, planned.best, plot)
    if as_json:
        show_json(_document(planned))
    else:
        _show(planned)


def _seconds(text: str) -> float:
    from scoring.settings import duration

    return 0.0 if _NOTHING.fullmatch(text) else duration(text) / 1e6


def _measure(windows: int, part_rows: int) -> "Measured":
    import os

    from rich.console import Console

    from scoring.cli.measuring import measure

    with Console(stderr=True).status("measuring"):
        return measure(os.cpu_count() or 1, windows, part_rows)


def _document(planned: "Planned") -> dict[str, Any]:
    from scoring.planning import HOURS_A_MONTH

    planner, best, measured = planned.planner, planned.best, planned.measured
    demand, speed, timing = planner.demand, planner.speed, planner.timing
    prices = plain(planned.table)
    del prices["sizes"]
    return {
        "demand": {
            "devices": demand.devices,
            "sensors_per_device": demand.sensors,
            "models": demand.devices * demand.sensors,
            "windows_per_hour": demand.windows_per_hour,
            "interval_seconds": demand.interval,
            "finish_within_seconds": demand.finish_within,
            "rows_per_run": demand.rows,
            "most_rows_per_run": demand.most_rows,
            "core_seconds_per_run": speed.work(demand.rows),
        },
        "speed": {
            "rows_per_second_per_core": speed.rows_per_second,
            "origin": planned.origin,
            "part_rows": speed.part_rows,
            "part_seconds": speed.part_seconds,
            "measured": measured and plain(measured),
        },
        "timing": {f"{name}_seconds": value for name, value in plain(timing).items()},
        "max_nodes": planner.max_nodes,
        "prices": prices,
        "hours_per_month": HOURS_A_MONTH,
        "sizes": [plain(one.size) | _estimates(one) for one in planned.sizes],
        "cheapest": best and _best(best),
        "warnings": [
            *(_warning(overrun) for overrun in planned.overruns),
            *([_shortfall(planned.shortfall)] if planned.shortfall else []),
        ],
        "not_included": NOT_INCLUDED,
    }


def _best(best: "Cheapest") -> dict[str, Any]:
    return {"size": best.size.size.name, "mode": best.mode.value, **plain(best.estimate)}


def _warning(overrun: "Overrun") -> dict[str, Any]:
    from scoring.cli.plan_text import warning

    return {
        "code": "cannot_keep_up",
        "mode": overrun.mode.value,
        "size": overrun.size.name,
        "nodes": overrun.nodes,
        "run_seconds": overrun.run_seconds,
        "interval_seconds": overrun.interval,
        "enough_nodes": overrun.enough_nodes,
        "enough_interval_seconds": overrun.enough_interval,
        "warm_keeps_up": overrun.warm_keeps_up,
        "text": warning(overrun),
    }


def _shortfall(short: "Shortfall") -> dict[str, Any]:
    from scoring.cli.plan_text import backlog

    return {
        "code": "backlog_grows",
        "max_run_windows": short.limit,
        "windows_per_run": short.takes,
        "rows_per_run": short.rows,
        "enough_max_run_windows": short.enough_limit,
        "enough_interval_seconds": short.enough_interval,
        "text": backlog(short),
    }


def _estimates(one: "SizePlan") -> dict[str, Any]:
    values = plain(one)
    del values["size"]
    return {"scale_to_zero": values.pop("to_zero"), **values}


def _show(planned: "Planned") -> None:
    from scoring.cli import plan_text as text

    for fact in text.facts(planned):
        _line(fact)
    rows = [text.row(one, planned.best) for one in planned.sizes]
    show_rows(text.title(planned.table), rows, text.COLUMNS, as_json=False, spare=text.SPARE)
    for verdict in text.verdicts(planned):
        _line(verdict)
    _line(f"not included: {NOT_INCLUDED}")


def _line(text: str) -> None:
    # Names of sizes and sources are the table's, and no markup.
    console().print(text, highlight=False, markup=False, soft_wrap=True)
