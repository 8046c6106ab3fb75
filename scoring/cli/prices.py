"""The price table: a small CSV of node sizes, with its source and date in comments at its top."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoring.errors import BadInput
from scoring.planning import NodeSize

SAMPLE = Path(__file__).with_name("prices.csv")
"""The table that ships."""

_COLUMNS = {"size": str, "cores": int, "memory_gb": float, "price_per_hour": float}
_LOW_PRIORITY = "low_priority_per_hour"


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Node sizes, and where their prices come from; empty texts where the table does not say.

    Attributes
    ----------
    file
        Where the table was read from.
    date
        As the table has it; of the prices.
    """

    file: str
    source: str
    region: str
    date: str
    currency: str
    sizes: tuple[NodeSize, ...]


def read_prices(path: Path, *, low_priority: bool = False) -> PriceTable:
    """Read a price table.

    Lines ``# source: ...``, and ``region``, ``date`` and ``currency`` likewise, say what the prices
    are; any other line that begins with ``#`` is a remark. Then comes CSV with the columns
    ``size,cores,memory_gb,price_per_hour`` and, if wanted, ``low_priority_per_hour``.

    Parameters
    ----------
    low_priority
        Take the prices of low-priority nodes; sizes that have none are left out.

    Raises
    ------
    BadInput
        The file cannot be read, lacks a column, or has rows that are wrong, each of them named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"price table {path} cannot be read: {error}"
        raise BadInput(message) from error
    rows = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]
    sizes, problems = _sizes(rows, "price_per_hour", required=True)
    if low_priority and not problems:
        sizes, problems = _sizes(rows, _LOW_PRIORITY, required=False)
    if problems:
        message = f"price table {path}: {'; '.join(problems)}"
        raise BadInput(message)
    facts = dict(_facts(lines))
    known = {name: facts.get(name, "") for name in ("source", "region", "date", "currency")}
    return PriceTable(file=str(path), sizes=tuple(sizes), **known)


def _facts(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if line.startswith("#") and ":" in line:
            name, _, text = line[1:].partition(":")
            # Spreadsheets fill up every line to the number of columns.
            yield name.strip().lower(), text.strip().rstrip(",").strip()


def _sizes(
    rows: list[tuple[int, str]], price: str, *, required: bool
) -> tuple[list[NodeSize], list[str]]:
    if not rows:
        return [], ["it has no header line"]
    header = [name.lower() for name in _cells(rows[0][1])]
    wanted = dict.fromkeys([*_COLUMNS, price])
    if missing := [name for name in wanted if name not in header]:
        return [], [f"it has no column {', '.join(missing)}"]
    sizes: dict[str, NodeSize] = {}
    problems = []
    for number, line in rows[1:]:
        try:
            row = dict(zip(header, _cells(line), strict=False))
            size = _size(row, price, required=required)
            if size and size.name in sizes:
                problems.append(f"line {number}: {size.name} stands there before")
            elif size:
                sizes[size.name] = size
        except BadInput as error:
            problems.append(f"line {number}: {error}")
    if not sizes and not problems:
        problems.append("it has no size" if required else f"no size has a {price}")
    return list(sizes.values()), problems


def _cells(line: str) -> list[str]:
    # A line longer than csv takes is no line of a price table; it lacks every column then.
    try:
        return [text.strip() for text in next(csv.reader([line]))]
    except csv.Error:
        return []


def _size(row: dict[str, str], price: str, *, required: bool) -> NodeSize | None:
    if not required and not row.get(price):
        return None
    row["price_per_hour"] = row.get(price, "")
    values: dict[str, Any] = {name: _read(name, row.get(name, "")) for name in _COLUMNS}
    return NodeSize(name=values.pop("size"), **values)


def _read(name: str, text: str) -> Any:
    if not text:
        message = f"{name} is empty"
        raise BadInput(message)
    try:
        return _COLUMNS[name](text)
    except ValueError as error:
        kind = "a whole number" if _COLUMNS[name] is int else "a number"
        message = f"{name} is {text!r} and must be {kind}"
        raise BadInput(message) from error
