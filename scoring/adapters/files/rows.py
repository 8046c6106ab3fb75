"""Lines of a file to bodies of events, and to what decides on each event's partition."""

import csv
import json
import re
from collections.abc import Iterator
from enum import StrEnum
from itertools import chain

from scoring.errors import UnreadableSource
from scoring.readings import FieldNames

Keyed = tuple[bytes, bytes]
"""The device, or the whole line where none can be told; and the event's body."""

_BOM = b"\xef\xbb\xbf"
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NOT_FINITE = {
    sign + word: ("-" if sign == "-" else "") + name
    for sign in ("", "+", "-")
    for word, name in (("nan", "NaN"), ("inf", "Infinity"), ("infinity", "Infinity"))
}
_quoted = json.JSONEncoder(ensure_ascii=False).encode


class FileFormat(StrEnum):
    """How a file of readings is written."""

    CSV = "csv"
    NDJSON = "ndjson"


_SUFFIXES = {
    ".csv": FileFormat.CSV,
    ".ndjson": FileFormat.NDJSON,
    ".jsonl": FileFormat.NDJSON,
    ".json": FileFormat.NDJSON,
}


def guess_format(suffix: str, head: bytes) -> FileFormat:
    """Go by the ending of the file's name, or else by the first character of its content."""
    is_json = head.removeprefix(_BOM).lstrip()[:1] in {b"{", b"["}
    return _SUFFIXES.get(suffix, FileFormat.NDJSON if is_json else FileFormat.CSV)


def csv_events(lines: Iterator[bytes], columns: FieldNames, key: str) -> Iterator[Keyed]:
    """Make an event of each row, named canonically; the header is checked at once.

    `key` is the column whose cell decides on the partition.

    A value that is no JSON number becomes a string, and a row that is no row of this file stays
    as it is: both are rejected when they are decoded, with their own reason.

    Raises
    ------
    UnreadableSource
        The header is not UTF-8, or lacks columns.
    """
    header = _first(lines)
    try:
        names = [cell.strip() for cell in _cells(header.decode())]
    except (UnicodeDecodeError, csv.Error) as error:
        message = f"the header is not CSV in UTF-8 ({error})"
        raise UnreadableSource(message) from error
    rows = _Rows(names, columns, key)
    return map(rows.event, (line.removesuffix(b"\r") for line in lines if line.strip()))


def ndjson_events(lines: Iterator[bytes], _: FieldNames, key: str) -> Iterator[Keyed]:
    """Make an event of each line, verbatim; the first one is checked at once.

    `key` is the field whose value decides on the partition.

    Raises
    ------
    UnreadableSource
        One JSON document takes up several lines.
    """
    first = _first(lines).strip()
    if first in {b"[", b"{"}:
        message = "is one JSON document over several lines; each reading needs a line of its own"
        raise UnreadableSource(message)
    # Not parsed: each device must have one partition, and a body that fools this has one too.
    name = re.escape(json.dumps(key).encode())
    device_in = re.compile(name + rb'\s*:\s*(?:"((?:[^"\\]|\\.)*)"|(-?\d+))').search

    def event(line: bytes) -> Keyed:
        match = device_in(line)
        device = match and (match[1] or match[2])
        return device or line, line

    return map(event, (line.strip() for line in chain([first], lines) if line.strip()))


class _Rows:
    """Reads the rows below one header."""

    def __init__(self, names: list[str], columns: FieldNames, key: str) -> None:
        self._width = len(names)
        self._key = _place(names, key)
        self._device, self._sensor, self._ts, self._value = _places(names, columns)

    def event(self, line: bytes) -> Keyed:
        """Make a body of a row; the line itself where it is none."""
        try:
            cells = _cells(line.decode())
        except (UnicodeDecodeError, csv.Error):
            return line, line
        if len(cells) != self._width:
            return line, line
        device = cells[self._device].strip()
        body = (
            f'{{"device":{_quoted(device)},"sensor":{_quoted(cells[self._sensor].strip())}'
            f',"ts":{_time(cells[self._ts].strip())},"value":{_number(cells[self._value].strip())}}}'
        )
        key = device if self._key is None else cells[self._key].strip()
        return key.encode(), body.encode()


def _first(lines: Iterator[bytes]) -> bytes:
    """Take the first line that is not blank, without a byte order mark."""
    for line in lines:
        if text := line.removeprefix(_BOM).strip():
            return text
    message = "is empty"
    raise UnreadableSource(message)


def _cells(line: str) -> list[str]:
    """Split one row; by the CSV rules only where a quote makes a difference."""
    if '"' not in line:
        return line.split(",")
    return next(csv.reader([line], strict=True, skipinitialspace=True))


def _places(names: list[str], columns: FieldNames) -> list[int]:
    """Find the columns by their names, in any case; the exact name wins over another case."""
    wanted = (columns.device, columns.sensor, columns.ts, columns.value)
    found = {name: _place(names, name) for name in wanted}
    if missing := [name for name, place in found.items() if place is None]:
        present = ", ".join(names)[:500]
        message = f"the header has no column {', '.join(missing)}; it has: {present}"
        raise UnreadableSource(message)
    return [place for name in wanted if (place := found[name]) is not None]


def _place(names: list[str], wanted: str) -> int | None:
    if wanted in names:
        return names.index(wanted)
    folded = [name.casefold() for name in names]
    return folded.index(wanted.casefold()) if wanted.casefold() in folded else None


def _time(cell: str) -> str:
    """Epoch milliseconds as the number they are, all else as text."""
    return cell if _INTEGER.fullmatch(cell) else _quoted(cell)


def _number(cell: str) -> str:
    """Keep a number's text, so that no digit changes; NaN and Infinity in JSON's own spelling."""
    if _NUMBER.fullmatch(cell):
        return cell
    return _NOT_FINITE.get(cell.lower()) or _quoted(cell)
