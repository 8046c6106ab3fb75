"""What all commands share: the data folder, and how things are shown."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from scoring.bootstrap import App


def check_duration(text: str | None) -> str | None:
    """Refuse what is no duration before anything is done; gives the text."""
    if text is None:
        return None
    from scoring.settings import duration

    try:
        duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return text


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="Rows at most.")]
Window = Annotated[
    str | None, typer.Option(help="Window size, such as 5s, 1min or 1h.", callback=check_duration)
]

_INSTANTS = frozenset(
    {
        *("watermark", "last_enqueued", "enqueued_time", "window_start", "created_at"),
        *("ended_at", "submitted_at", "last_start", "first_start", "horizon", "start", "end"),
    }
)


def choose_data(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(help="Data folder (default: SCORING_DATA, or scoring-data)."),
    ] = None,
) -> None:
    """Keep the data folder for the command."""
    context.obj = data


def data_folder(context: typer.Context, default: str = "scoring-data") -> Path:
    """Give the folder that the option or the environment names, or else the default."""
    chosen: Path | None = context.obj
    return chosen or Path(os.environ.get("SCORING_DATA", default))


@contextmanager
def opened(
    where: typer.Context | Path, *, window: str | None = None, has_hub: bool = True
) -> Iterator["App"]:
    """Open the system on a data folder, or on the one that the command line chose.

    Parameters
    ----------
    window
        Overrides ``SCORING_WINDOW``.
    has_hub
        Whether an event hub that is set up is that of the data folder too.
    """
    from scoring.bootstrap import open_app

    folder = where if isinstance(where, Path) else data_folder(where)
    overrides = {"SCORING_WINDOW": window} if window else {}
    if not has_hub:
        overrides["SCORING_EVENT_HUB"] = ""
    with open_app(folder, **overrides) as app:
        yield app


def instant_option(text: str | None) -> int | None:
    """Read an ISO 8601 time, taken as UTC without an offset, as epoch microseconds."""
    if text is None:
        return None
    from scoring import instants

    try:
        return instants.read(text)
    except ValueError as error:
        message = f"{text!r} is {error}"
        raise typer.BadParameter(message) from error


def show_rows(
    title: str, rows: Sequence[Any], columns: Mapping[str, str], *, as_json: bool
) -> None:
    """Print dataclasses as a table of `columns` (field name to heading), or all of them as JSON."""
    if as_json:
        show_json([plain(row) for row in rows])
        return
    from rich.table import Table

    title = cell(title)
    table = Table(title=title, title_justify="left")
    for heading in columns.values():
        table.add_column(heading, overflow="fold")
    for row in rows:
        values = plain(row)
        table.add_row(*(cell(values[name]) for name in columns))
    console().print(table if rows else f"{title}: none")


def show_json(value: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def plain(row: Any) -> dict[str, Any]:
    """Make a dataclass a dict that JSON can hold; instants become ISO 8601."""
    # Not by `asdict`: it makes a Counter count its own items.
    values = (
        {field.name: getattr(row, field.name) for field in fields(row)}
        if is_dataclass(row)
        else row
    )
    return {name: _plain(name, value) for name, value in values.items()}


def _plain(name: str, value: Any) -> Any:
    if name in _INSTANTS and isinstance(value, int):
        return stamp(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if is_dataclass(value):
        return plain(value)
    if isinstance(value, dict):
        return {key: _plain(key, inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, inner) for inner in value]
    return value.value if isinstance(value, Enum) else value


def stamp(instant: int) -> str:
    """Show an instant for people and programs alike."""
    moment = datetime.fromtimestamp(instant // 1_000_000, UTC)
    fraction = instant % 1_000_000
    return f"{moment:%Y-%m-%dT%H:%M:%S}" + (f".{fraction:06}".rstrip("0") if fraction else "") + "Z"


def cell(value: object) -> str:
    """Show one value in a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    from rich.markup import escape

    return f"{value:.6g}" if isinstance(value, float) else escape(visible(str(value)))


def visible(text: str) -> str:
    """Spell control characters out: what a device sent must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def console() -> "Console":
    """Where tables go: standard output, as wide as it is, and never cut in a file or pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, soft_wrap=False)


@contextmanager
def progress(what: str) -> Iterator[Callable[[float, float], None]]:
    """Show a bar on standard error while a terminal looks; gives ``update(done, total)``."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    errors = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=errors, disable=not errors.is_terminal
    ) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
