"""The demo, and the simulation that it is made of."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scoring.cli.state import (
    JsonFlag,
    Window,
    cell,
    check_duration,
    console,
    data_folder,
    opened,
    plain,
    show_json,
    show_rows,
)

if TYPE_CHECKING:
    from scoring.demo import DemoReport
    from scoring.simulation import SimulationSettings

DEMO_DATA = "demo-data"
"""Folder of the demo, where nobody names another."""

Devices = Annotated[int, typer.Option(min=1, help="Devices.")]
Sensors = Annotated[int, typer.Option(min=1, help="Sensors a device.")]
Duration = Annotated[
    str, typer.Option(help="How long to simulate, such as 6h or 1d.", callback=check_duration)
]
Interval = Annotated[
    str, typer.Option(help="Time between two readings of a sensor.", callback=check_duration)
]
Seed = Annotated[int, typer.Option(min=0, help="Another seed, another fleet.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(demo)
    app.command()(simulate)


def demo(
    context: typer.Context,
    devices: Devices = 50,
    sensors: Sensors = 4,
    duration: Duration = "1d",
    interval: Interval = "30s",
    seed: Seed = 1,
    runs: Annotated[int, typer.Option(min=1, help="Runs after the training part.")] = 4,
    window: Window = None,
    readings: Annotated[
        Path | None, typer.Option(help="Your own readings instead, CSV or NDJSON.")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Folder of your own models, with --readings."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run everything once: a simulated fleet, or your own readings and models."""
    from scoring import demo as demonstration
    from scoring.adapters.files import ReadingsFile
    from scoring.bootstrap import now, settings_from_environment

    if (readings is None) != (models is None):
        message = "--readings and --models go together"
        raise typer.BadParameter(message)
    folder = data_folder(context, DEMO_DATA)
    with ExitStack() as stack:
        # All that was given is checked first: the folder is marked with what it is for.
        settings = settings_from_environment()
        if readings and models:
            source = stack.enter_context(ReadingsFile.open(readings, settings.field_names))
            plan = {"readings": source.hub, "models": models.resolve().name, "window": window}
        else:
            simulation = _simulation(devices, sensors, duration, interval, seed)
            plan = demonstration.plan_of(simulation, runs, window)
        stack.enter_context(demonstration.demo_folder(folder, plan, fresh=fresh))
        app = stack.enter_context(opened(folder, window=window, has_hub=False))
        advance = stack.enter_context(_stage_bars())
        if readings and models:
            report = demonstration.demo_of_files(app, source, models, now(), advance)
        else:
            report = demonstration.SimulatedDemo(app, simulation, runs, advance)()
    if as_json:
        show_json(plain(report))
    else:
        _show(report, folder)


def simulate(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="Folder for events.ndjson and anomalies.json.")
    ] = None,
    to_event_hub: Annotated[
        bool, typer.Option("--to-event-hub", help="Send the events to SCORING_EVENT_HUB.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Send all, whatever was sent before.")
    ] = False,
    devices: Devices = 50,
    sensors: Sensors = 4,
    duration: Duration = "1d",
    interval: Interval = "30s",
    seed: Seed = 1,
) -> None:
    """Write a simulated fleet's events, and the truth about its anomalies, to files or a hub.

    In files its time begins on 5 January 2026; in a hub it ends now.
    """
    from scoring.bootstrap import now
    from scoring.demo import send_simulation, write_simulation

    if restart and not to_event_hub:
        message = "--restart goes with --to-event-hub"
        raise typer.BadParameter(message)

    if (out is None) != to_event_hub:
        message = "give either --out FOLDER or --to-event-hub"
        raise typer.BadParameter(message)
    simulation = _simulation(devices, sensors, duration, interval, seed)
    with opened(context) as app, _stage_bars() as advance:
        if out is not None:
            events = write_simulation(simulation, out, advance)
            made = f"{cell(events)} events of {cell(devices * sensors)} sensors"
            console().print(f"{made} in {cell(out)}")
            return
        outcome = send_simulation(app, simulation, now(), advance, restart=restart)
    console().print(
        f"sent {cell(outcome.sent)} events in {cell(outcome.batches)} batches;"
        f" {cell(outcome.skipped)} were sent before, {cell(len(outcome.oversized))} are too large"
    )
    if outcome.oversized:
        raise typer.Exit(1)


def _simulation(
    devices: int, sensors: int, duration: str, interval: str, seed: int
) -> "SimulationSettings":
    from datetime import timedelta

    from scoring.settings import duration as read
    from scoring.simulation import SimulationSettings

    return SimulationSettings(
        devices=devices,
        sensors=sensors,
        duration=timedelta(microseconds=read(duration)),
        interval=timedelta(microseconds=read(interval)),
        seed=seed,
    )


@contextmanager
def _stage_bars() -> Iterator[Callable[[str, float, float], None]]:
    """One bar a stage, on standard error, while a terminal looks."""
    from rich.console import Console
    from rich.progress import Progress

    errors = Console(stderr=True)
    tasks: dict[str, Any] = {}
    with Progress(console=errors, disable=not errors.is_terminal) as bars:

        def advance(stage: str, done: float, total: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def _show(report: "DemoReport", folder: Path) -> None:
    status, out = report.status, console()
    rejects = ", ".join(f"{reason} {cell(n)}" for reason, n in sorted(status.rejects.items()))
    gaps = ", ".join(
        f"{counts.gaps} {state} ({cell(counts.events)} events)"
        for state, counts in sorted(status.gaps.items())
    )
    facts = {
        "events": cell(sum(p.events for p in status.partitions)),
        "duplicates": f"{cell(report.delivered.duplicates)} dropped",
        "readings": cell(sum(p.readings for p in status.partitions)),
        "rejects": f"{cell(sum(status.rejects.values()))}: {rejects}" if rejects else "none",
        "late": cell(sum(p.late for p in status.partitions)),
        "gaps": gaps or "none",
        "windows": f"{cell(status.windows)} of {status.window / 1e6:g} s, "
        f"{cell(status.pending)} pending",
        "runs": cell(report.runs),
        "predictions": f"{cell(report.predictions)}, {cell(report.anomalies)} of them anomalous",
    }
    for name, value in facts.items():
        out.print(f"{name:>12}  {value}", highlight=False)
    show_rows("anomalies by device", report.devices[:10], _DEVICES, as_json=False)
    if report.found:
        show_rows("injected anomalies", report.found, _FOUND, as_json=False)
        wrong, scored = report.false_alarms
        out.print(
            f"false alarms: {cell(wrong)} of {cell(scored)} windows scored after the training"
        )
    show_rows("fleet check", _complaints(report), _COMPLAINTS, as_json=False)
    stages = [
        plain(stage) | {"rate": f"{stage.count / max(stage.seconds, 1e-9):,.0f} {stage.unit}/s"}
        for stage in report.stages
    ]
    show_rows("stages", stages, _STAGES, as_json=False)
    look = f"python -m scoring --data {cell(folder)}"
    out.print(f"look around: {look} status | anomalies | runs | rejects")


def _complaints(report: "DemoReport") -> list[dict[str, str]]:
    rows = [
        plain(finding) | {"what": name}
        for name in ("missing", "orphans", "stale", "degenerate")
        for finding in getattr(report.fleet, name)
    ]
    rows += [plain(u) | {"what": "not trained", "why": u.reason} for u in report.untrained]
    rows += [
        {"what": "refused", "device": "-", "sensor": r.file, "why": r.reason}
        for r in report.refused
    ]
    return rows


_DEVICES = {
    "device": "device",
    "scored": "scored",
    "anomalies": "anomalies",
    "not_scored": "not scored",
}
_FOUND = {"kind": "kind", "injected": "injected", "found": "found"}
_COMPLAINTS = {"what": "what", "device": "device", "sensor": "sensor", "why": "why"}
_STAGES = {"name": "stage", "seconds": "seconds", "count": "count", "rate": "throughput"}
