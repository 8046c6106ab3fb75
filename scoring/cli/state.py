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
    title: str,
    rows: Sequence[Any],
    columns: Mapping[str, str],
    *,
    as_json: bool,
    spare: Sequence[str] = (),
) -> None:
    """Print dataclasses as a table of `columns` (field name to heading), or all of them as JSON.

    Parameters
    ----------
    spare
        Columns that a terminal too narrow for all goes without, the first ones first: an id that
        is broken over several lines cannot be copied.
    """
    if as_json:
        show_json([plain(row) for row in rows])
        return
    title = cell(title)
    if not rows:
        console().print(f"{title}: none")
        return
    from rich.table import Table

    cells: dict[str, list[str]] = {name: [] for name in columns}
    for row in rows:
        values = plain(row)
        for name in columns:
            cells[name].append(cell(values[name]))
    shown, widths = _fitting(cells, columns, spare)
    table = Table(title=title, title_justify="left")
    for name in shown:
        table.add_column(columns[name], overflow="fold", width=widths.get(name))
    for texts in zip(*(cells[name] for name in shown), strict=True):
        table.add_row(*texts)
    console(_full_width(cells, columns)).print(table)
    if len(shown) < len(columns):
        left_out = ", ".join(columns[name].strip() for name in columns if name not in shown)
        console().print(f"a wider terminal, and --json, also show: {left_out}", soft_wrap=True)


_FRAME = 3
"""Characters that a column of a table takes besides its text; the table takes one more."""

_LEAST = 12
"""Characters that a column keeps while there are wider ones."""


def _full_width(cells: Mapping[str, list[str]], columns: Mapping[str, str]) -> int:
    """Return the characters of a line of the whole table."""
    return sum(max(len(columns[n]), _widest(cells[n])) + _FRAME for n in columns) + 1


def _widest(texts: list[str]) -> int:
    from rich.cells import cell_len
    from rich.text import Text

    return max(cell_len(Text.from_markup(text).plain) for text in texts)


def _fitting(
    cells: Mapping[str, list[str]], columns: Mapping[str, str], spare: Sequence[str]
) -> tuple[list[str], dict[str, int]]:
    """Return the columns that the terminal has room for, and the widths that they must have."""
    shown, room = list(columns), console().width
    if not sys.stdout.isatty() or _full_width(cells, columns) <= room:
        return shown, {}
    # A heading can be broken between words; what is below it is not, as long as that can be.
    widths = {name: max(_widest(cells[name]), *map(len, columns[name].split())) for name in columns}

    def excess() -> int:
        return sum(widths[name] + _FRAME for name in shown) + 1 - room

    for name in spare:
        if excess() > 0:
            shown.remove(name)
    while excess() > 0:
        widest = max(shown, key=lambda name: widths[name])
        if widths[widest] <= _LEAST:
            return shown, {}
        widths[widest] = max(_LEAST, widths[widest] - excess())
    return shown, {name: widths[name] for name in shown}


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


def console(width: int = 0) -> "Console":
    """Where tables go: standard output, as wide as it is; in a file or pipe, as wide as needed.

    Parameters
    ----------
    width
        What is needed, in characters.
    """
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else max(160, width), soft_wrap=False)


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
