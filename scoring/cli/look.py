"""Commands that only look: status, anomalies, windows; and rejects, which can be replayed."""

from typing import Annotated, Any

import typer

from scoring.cli.state import (
    JsonFlag,
    Limit,
    cell,
    console,
    instant_option,
    opened,
    plain,
    show_json,
    show_rows,
)

Since = Annotated[str | None, typer.Option(help="From this time on, ISO 8601.")]
Until = Annotated[str | None, typer.Option(help="Before this time, ISO 8601.")]

rejects_app = typer.Typer(invoke_without_command=True)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(status)
    app.command()(anomalies)
    app.command()(windows)
    app.add_typer(rejects_app, name="rejects", help="List what could not be read; replay it.")


def shown_standing(told: dict[str, Any]) -> dict[str, Any]:
    """Return how a partition stands, its instants as text."""
    times = ("behind_since", "asked_at")
    return told | {name: plain_instant(told[name]) if told[name] else None for name in times}


def status(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Show partitions, watermarks, lag, gaps, rejects and pending windows."""
    from scoring import instants
    from scoring.bootstrap import now

    moment = instants.of(now())
    with opened(context) as app:
        _ = app.window
        found = app.queries.status()
        reached = app.hub_progress.horizon(moment)
        standings = app.hub_progress.described(moment)
    lags = {p.partition: p.lag_seconds(moment) for p in found.partitions}
    if as_json:
        values = plain(found) | {"horizon": None if reached is None else plain_instant(reached)}
        values["partitions"] = [
            plain(p) | {"lag_seconds": lags[p.partition]} | shown_standing(standings[p.partition])
            for p in found.partitions
        ]
        show_json(values)
        return
    rows = [
        plain(p) | {"lag": standings[p.partition]["standing"] if lag is None else f"{lag:,.0f} s"}
        for p in found.partitions
        for lag in (lags[p.partition],)
    ]
    spare = ("epoch", "high_water", "watermark")
    show_rows("partitions", rows, _PARTITION_COLUMNS, as_json=False, spare=spare)
    gaps = ", ".join(
        f"{counts.gaps} {state} ({cell(counts.events)} events)"
        for state, counts in sorted(found.gaps.items())
    )
    rejected = ", ".join(f"{reason} {cell(n)}" for reason, n in sorted(found.rejects.items()))
    facts = {
        "window": f"{found.window / 1e6:g} s",
        "horizon": "-" if reached is None else plain_instant(reached),
        "windows": f"{cell(found.windows)}, {cell(found.pending)} of them pending",
        "gaps": gaps or "none",
        "rejects": rejected or "none",
        "runs": ", ".join(found.active_runs) or "none is active",
        "suspects": f"{cell(found.suspects)}, {cell(found.set_aside)} of them set aside",
    }
    for name, value in facts.items():
        console().print(f"{name:>8}  {value}", highlight=False, soft_wrap=True)
    if found.is_rebuilding:
        console().print(
            f"windows are being rebuilt with {found.window / 1e6:g} s, and no run begins meanwhile;"
            " if that was stopped, `rebuild-windows` goes on",
            highlight=False,
            soft_wrap=True,
        )
    for name, told in standings.items():
        if sentence := _WAITS.get(told["standing"]):
            since = plain_instant(told["behind_since"]) if told["behind_since"] else "a moment ago"
            console().print(
                f"partition {cell(name)} is {told['standing']}: {cell(told['behind'])} events,"
                f" at least, since {since}; {sentence}",
                highlight=False,
                soft_wrap=True,
            )
    for job in found.open_jobs:
        shown = plain(job)
        console().print(
            f"run {job.run_id} is {job.state} since {shown['ended_at']}, and its job is not known"
            f" to have ended: {cell(job.engine_status or 'the engine was not asked yet')}",
            highlight=False,
            soft_wrap=True,
        )


def plain_instant(instant: int) -> str:
    """Show an instant as the tables do."""
    return str(plain({"horizon": instant})["horizon"])


def anomalies(
    context: typer.Context,
    device: Annotated[str | None, typer.Option()] = None,
    sensor: Annotated[str | None, typer.Option()] = None,
    run: Annotated[str | None, typer.Option(help="A run's id.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 20,
    by_device: Annotated[bool, typer.Option("--by-device", help="Count by device.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List anomalous windows, newest first, or count them by device."""
    from scoring.queries import AnomalyFilter

    which = AnomalyFilter(device, sensor, run, instant_option(since), instant_option(until))
    if by_device and which != AnomalyFilter(run_id=run):
        message = "--by-device counts all windows, or those of --run: no other choice goes with it"
        raise typer.BadParameter(message)
    with opened(context) as app:
        if run is not None:
            app.queries.run(run)
        if by_device:
            counts = app.queries.counts(run, by_sensor=False, limit=limit)
            show_rows("devices", counts, _DEVICE_COLUMNS, as_json=as_json)
        else:
            found = app.queries.anomalies(which, limit)
            show_rows("anomalies", found, _ANOMALY_COLUMNS, as_json=as_json, spare=("run_id",))


def windows(
    context: typer.Context,
    device: str,
    sensor: str,
    since: Since = None,
    until: Until = None,
    limit: Limit = 20,
    as_json: JsonFlag = False,
) -> None:
    """Show the newest windows of a sensor with their scores."""
    from scoring.errors import NotFound

    first, last = instant_option(since), instant_option(until)
    with opened(context) as app:
        found = app.queries.windows(device, sensor, first, last, limit)
        if not found and not app.queries.windows(device, sensor, None, None, 1):
            message = f"there is no window of sensor {sensor} of device {device}"
            raise NotFound(message)
        spare = ("last", "min", "max", "std", "count")
        show_rows(f"{device} {sensor}", found, _WINDOW_COLUMNS, as_json=as_json, spare=spare)


@rejects_app.callback()
def rejects(
    context: typer.Context,
    reason: Annotated[str | None, typer.Option(help="Only those of this reason.")] = None,
    limit: Limit = 20,
    as_json: JsonFlag = False,
) -> None:
    """List elements of events that could not be read."""
    if context.invoked_subcommand:
        return
    with opened(context) as app:
        found = app.queries.rejects(reason, limit)
        spare = ("replayed", "position")
        show_rows("rejects", found, _REJECT_COLUMNS, as_json=as_json, spare=spare)


@rejects_app.command()
def replay(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Decode rejects again, with the settings of today; what can be read now is counted."""
    with opened(context) as app:
        replayed, stay = app.replay_rejects()
    if as_json:
        show_json({"replayed": replayed, "stay_rejected": stay})
    else:
        console().print(f"replayed {cell(replayed)} rejects; {cell(stay)} stay rejected")


_WAITS = {"behind": "windows wait for it", "stalled": "windows do not wait for it any more"}
_PARTITION_COLUMNS = {
    "partition": "partition",
    "epoch": "epoch",
    "high_water": "high water",
    "watermark": "watermark",
    "lag": "lag",
    "events": "events",
    "readings": "readings",
    "rejects": "rejects",
    "late": "late",
    "missing": "missing",
}
_ANOMALY_COLUMNS = {
    "window_start": "window",
    "device": "device",
    "sensor": "sensor",
    "anomaly_score": "score",
    "run_id": "run",
}
_DEVICE_COLUMNS = {
    "device": "device",
    "scored": "scored",
    "anomalies": "anomalies",
    "not_scored": "not scored",
}
_WINDOW_COLUMNS = {
    "window_start": "window",
    "count": "count",
    "mean": "mean",
    "std": "std",
    "min": "min",
    "max": "max",
    "last": "last",
    "anomaly_score": "score",
    "is_anomaly": "anomaly",
    "status": "status",
}
_REJECT_COLUMNS = {
    "partition": "partition",
    "sequence_number": "sequence",
    "position": "position",
    "reason": "reason",
    "detail": "detail",
    "body": "body",
    "replayed": "replayed",
}
