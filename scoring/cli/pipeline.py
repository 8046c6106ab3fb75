"""Commands that move data: ingest, run, cancel, repair, rebuild, migrate."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from scoring.cli.state import (
    JsonFlag,
    Limit,
    Window,
    cell,
    console,
    data_folder,
    instant_option,
    opened,
    plain,
    progress,
    show_json,
    show_rows,
    visible,
)

if TYPE_CHECKING:
    from scoring.bootstrap import App
    from scoring.queries import RunSummary
    from scoring.runs import ScoringRun

run_app = typer.Typer(invoke_without_command=True)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(ingest)
    app.add_typer(run_app, name="run", help="Score what is pending; show or cancel a run.")
    app.command()(runs)
    app.command()(consume)
    app.command("repair-gaps")(repair_gaps)
    app.command("rebuild-windows")(rebuild_windows)
    app.command()(migrate)


def ingest(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="CSV or NDJSON, also .gz; - for standard input.")],
    window: Window = None,
    device: Annotated[
        str | None, typer.Option(help="Column or field of the device; all four: see settings.")
    ] = None,
    sensor: Annotated[str | None, typer.Option(help="Of the sensor.")] = None,
    ts: Annotated[str | None, typer.Option(help="Of the event time.")] = None,
    value: Annotated[str | None, typer.Option(help="Of the value.")] = None,
    arrived_at: Annotated[
        str | None, typer.Option(help="When the readings arrived (default: the file's time).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Events an event batch.")] = 1000,
    partition_order: Annotated[
        str | None, typer.Option(help="Deliver partitions one by one, such as 3,1,0,2.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Read a file of readings; the same file again counts nothing twice.

    Columns or fields are called as SCORING_FIELD_DEVICE, _SENSOR, _TS and _VALUE say, unless an
    option says otherwise. What was rejected of a file is read again with other options.
    """
    from scoring.adapters.files import ReadingsFile
    from scoring.bootstrap import settings_from_environment

    given = {"device": device, "sensor": sensor, "ts": ts, "value": value}
    usual = settings_from_environment().field_names
    names = replace(usual, **{name: text for name, text in given.items() if text is not None})
    order = partition_order.split(",") if partition_order else None
    with (
        ReadingsFile.open(file, names, arrived_at=instant_option(arrived_at)) as source,
        opened(context, window=window) as app,
        progress("ingest") as advance,
    ):
        found = app.ingest_file(source, advance, batch_size, order)
    if as_json:
        again = {"replayed": found.replayed, "still_rejected": found.stay}
        show_json(plain(found.delivered) | {"is_known": found.is_known} | again)
        return
    _show_outcome("ingested", found.delivered, as_json=False)
    if found.is_known:
        read, left = cell(found.replayed), cell(found.stay)
        console().print(
            f"this file was ingested before: {read} of its rejects could be read now, {left} not",
            soft_wrap=True,
        )


def _show_outcome(what: str, outcome: object, *, as_json: bool) -> None:
    values = plain(outcome)
    if as_json:
        show_json(values)
        return
    rejects = values.pop("rejects")
    values["rejects"] = sum(rejects.values())
    shown = ", ".join(f"{name} {cell(number)}" for name, number in values.items())
    console().print(f"{what}: {shown}")
    for reason, number in sorted(rejects.items()):
        console().print(f"  {reason}: {cell(number)}")


@run_app.callback()
def run(
    context: typer.Context,
    fleet: Annotated[str | None, typer.Option(help="Fleet version (default: current).")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only windows that start at this time or later, ISO 8601.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Only windows that start before this time, ISO 8601.")
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Only windows of this device; can be repeated.")
    ] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score windows again that were scored before.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Score all pending final windows; first brings runs that were interrupted to their end.

    A run that another process or the cluster is at work on is left alone: it counts for
    SCORING_MAX_ACTIVE_RUNS.
    """
    if context.invoked_subcommand:
        return
    from scoring.bootstrap import nonce, now
    from scoring.errors import CannotBegin
    from scoring.runs import Scope

    scope = Scope(instant_option(since), instant_option(until), tuple(device or ()), rescore)
    new, refusal = None, None
    with opened(context) as app:
        app.watch.follow_jobs(now())
        ended = [_follow(app, left) for left in app.interrupted_runs()]
        version = fleet or app.shelf.current()
        app.shelf.open(version)
        try:
            if new := app.submit("manual", version, now(), nonce(), scope=scope):
                ended.append(_follow(app, new))
        except CannotBegin as error:
            # Those that were brought to their end are shown all the same.
            refusal = error
        summaries = [app.queries.run(one.run_id) for one in ended]
        is_capped = bool(new and new.is_capped(app.window, scope))
    if summaries or not refusal:
        _show_scored(summaries, is_capped=is_capped, as_json=as_json)
    if refusal:
        raise refusal
    if any(summary.state != "completed" for summary in summaries):
        raise typer.Exit(1)


def _show_scored(summaries: "list[RunSummary]", *, is_capped: bool, as_json: bool) -> None:
    if as_json:
        show_json([plain(summary) for summary in summaries])
        return
    if summaries:
        _show_runs(summaries)
    else:
        console().print("nothing to score: no final window is pending")
    if is_capped:
        console().print(
            "more final windows are pending than one run takes (SCORING_MAX_RUN_WINDOWS): run"
            " again for the rest",
            soft_wrap=True,
        )


def _follow(app: "App", run: "ScoringRun") -> "ScoringRun":
    from scoring.bootstrap import now

    with progress(f"run {run.run_id}") as advance:
        return app.see_through(run, now, advance)


@run_app.command("show")
def show_run(
    context: typer.Context, run_id: str, limit: Limit = 20, as_json: JsonFlag = False
) -> None:
    """Show one run: progress, cause of failure, counts by device and sensor."""
    with opened(context) as app:
        summary = app.queries.run(run_id)
        counts = app.queries.counts(run_id, by_sensor=True, limit=limit)
        parts = app.submit.store.parts(app.submit.store.run(run_id))
        logs = app.logs.names(run_id)
    if as_json:
        show_json(
            plain(summary)
            | {
                "by_sensor": [plain(c) for c in counts],
                "part": [plain(p) for p in parts],
                "logs": logs,
            }
        )
        return
    for name, value in plain(summary).items():
        console().print(f"{name:>14}  {cell(value)}", highlight=False, soft_wrap=True)
    if failed := [part for part in parts if part.cause]:
        show_rows("failed parts, their windows given back", failed, _PART_COLUMNS, as_json=False)
    show_rows("sensors, most anomalous first", counts, _COUNT_COLUMNS, as_json=False)
    if logs:
        console().print(f"{len(logs)} logs are kept: run logs {run_id}", highlight=False)


@run_app.command()
def logs(context: typer.Context, run_id: str, as_json: JsonFlag = False) -> None:
    """Print the ends of the logs that are kept of a failed run."""
    with opened(context) as app:
        app.queries.run(run_id)
        found = {name: app.logs.read(run_id, name) for name in app.logs.names(run_id)}
    if as_json:
        show_json(found)
        return
    for name, text in found.items():
        console().print(f"== {name}", highlight=False, markup=False)
        for line in text.splitlines():
            console().print(visible(line), highlight=False, markup=False, soft_wrap=True)
    if not found:
        console().print("no logs are kept of this run: only a failed one has some")


@run_app.command()
def cancel(context: typer.Context, run_id: str) -> None:
    """Stop a run and give its windows back."""
    from scoring.bootstrap import now

    with opened(context) as app:
        app.watch.cancel(run_id, now())
    console().print(f"run {run_id} is canceled; its windows were given back")


def runs(context: typer.Context, limit: Limit = 20, as_json: JsonFlag = False) -> None:
    """List the newest runs."""
    with opened(context) as app:
        found = app.queries.runs(limit)
    if as_json:
        show_json([plain(summary) for summary in found])
    else:
        _show_runs(found)


def _show_runs(summaries: "list[RunSummary]") -> None:
    rows = [plain(one) | {"done": f"{one.indexed_parts:,}/{one.parts:,}"} for one in summaries]
    spare = ("created_at", "fleet_version", "trigger", "scored", "windows")
    show_rows("runs", rows, _RUN_COLUMNS, as_json=False, spare=spare)
    for one in summaries:
        if one.cause:
            said = f"{one.run_id} {one.state}: {cell(one.cause)}"
            console().print(said, highlight=False, soft_wrap=True)


def consume(context: typer.Context) -> None:
    """Ingest what the event hub delivers, until Ctrl-C or SIGTERM; outside Functions.

    Each event batch is one line on standard error: what became of it, in JSON. Telemetry goes where
    APPLICATIONINSIGHTS_CONNECTION_STRING says.
    """
    from scoring.adapters.event_hub.consumer import stopped_by_signals
    from scoring.adapters.telemetry import facts_on_stderr
    from scoring.hosting import open_hosted

    folder = data_folder(context)
    with facts_on_stderr(), open_hosted(folder) as app, stopped_by_signals() as stop:
        app.consume(stop)


def repair_gaps(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Read again what was never delivered; what the hub no longer holds becomes lost."""
    from scoring import instants
    from scoring.adapters.telemetry import facts_on_stderr
    from scoring.bootstrap import now

    with facts_on_stderr(), opened(context) as app:
        outcome = app.repair_gaps(instants.of(now()))
    _show_outcome("repaired", outcome, as_json=as_json)


def rebuild_windows(context: typer.Context, window: Window = None) -> None:
    """Compute all windows anew from the raw segments, in another size if given."""
    from scoring.errors import Misconfigured
    from scoring.settings import duration, too_young

    with opened(context) as app, progress("rebuild") as advance:
        size = duration(window) if window else app.window
        # Before anything is deleted: no command would start with these windows and settings.
        if problems := too_young(app.settings, size):
            raise Misconfigured(problems)
        readings = app.rebuild_windows(size, advance)
        windows = app.queries.status().windows
    console().print(
        f"rebuilt: {cell(windows)} windows of {size / 1e6:g} s, {cell(readings)} readings"
    )


def migrate(context: typer.Context) -> None:
    """Bring the database to the newest schema."""
    from scoring.adapters.sql import isolation
    from scoring.adapters.sql.schema import HEAD

    with opened(context) as app:
        for warning in isolation.turn_on(app.database):
            console().print(f"warning: {warning}", markup=False)
    console().print(f"the database is at schema {HEAD}")


_RUN_COLUMNS = {
    "run_id": "run",
    "state": "state",
    "trigger": "trigger",
    "fleet_version": "fleet",
    "created_at": "created",
    "windows": "windows",
    "done": "parts",
    "scored": "scored",
    "anomalies": "anomalies",
}
_PART_COLUMNS = {"number": "part", "rows": "windows", "cause": "cause"}
_COUNT_COLUMNS = {
    "device": "device",
    "sensor": "sensor",
    "scored": "scored",
    "anomalies": "anomalies",
    "not_scored": "not scored",
}
