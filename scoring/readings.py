"""Bytes of events to columns of readings, and a list of what cannot be read.

A body is one JSON object, an array of objects, or newline-delimited objects, in UTF-8. One bad
element never drops its neighbours: it becomes a `Reject` with its reason and its bytes.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import compress
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np
import numpy.typing as npt

from scoring import addresses, instants

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

MAX_NAME = 128
"""Longest device or sensor name, characters."""

MAX_VALUE = 1e140
"""Largest magnitude of a value: its square stays finite, however many there are of it.

Beyond it M2 becomes infinite and then the mean not a number, which no database stores. At the other
end, a database merges two partials as if their means were equal where these differ by less than
1e-290, and adds nothing to M2 where they differ by less than 1e-157: PostgreSQL refuses a product
that is too small for a float."""

_BOM = b"\xef\xbb\xbf"
_DEPTH = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
# A string that never ends reaches to the end of the text: no byte is looked at twice.
_STRING_OR_MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[][{},]', re.DOTALL)


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One partition of one event hub; a file of readings counts as a hub of its own."""

    hub: str
    id: str

    def __str__(self) -> str:
        return f"{self.hub}/{self.id}"

    @property
    def is_file(self) -> bool:
        """Whether this is a partition of a file, whose enqueued times say little."""
        return addresses.is_file_hub(self.hub)


@dataclass(frozen=True, slots=True)
class EventBatch:
    """What one trigger call gets: undecoded events of one partition, in delivery order.

    Attributes
    ----------
    sequence_numbers
        int64, shape (events,).
    enqueued_times
        When the hub took each event, epoch microseconds UTC, int64, shape (events,).
    connection_device_ids
        IoT Hub's name of the sending device, an event each, or None where there is no IoT Hub.
    """

    partition: Partition
    sequence_numbers: I64
    enqueued_times: I64
    bodies: Sequence[bytes]
    connection_device_ids: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.bodies)


@dataclass(frozen=True, slots=True)
class Readings:
    """Decoded readings as columns of equal length, in the order of their events.

    Attributes
    ----------
    event_time
        At the device, epoch microseconds UTC.
    value
        Float64 of magnitude `MAX_VALUE` at most; no negative zero.
    event
        Index of each reading's event in its event batch, ascending.
    """

    device: list[str]
    sensor: list[str]
    event_time: I64
    value: F64
    event: I64

    def __len__(self) -> int:
        return len(self.device)

    def where(self, mask: npt.NDArray[np.bool_]) -> "Readings":
        """Keep the readings where `mask` is true."""
        if mask.all():
            return self
        kept = mask.tobytes()
        return Readings(
            list(compress(self.device, kept)),
            list(compress(self.sensor, kept)),
            self.event_time[mask],
            self.value[mask],
            self.event[mask],
        )

    def take(self, rows: npt.NDArray[np.intp]) -> "Readings":
        """Give the readings at `rows`, in that order."""
        at = rows.tolist()
        return Readings(
            [self.device[row] for row in at],
            [self.sensor[row] for row in at],
            self.event_time[rows],
            self.value[rows],
            self.event[rows],
        )


class Reason(StrEnum):
    """Why an element can never be read. Stored: a code never changes its meaning."""

    EMPTY_BODY = "empty_body"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    TOO_DEEP = "too_deep"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    BAD_DEVICE = "bad_device"
    BAD_SENSOR = "bad_sensor"
    BAD_TIME = "bad_time"
    BAD_VALUE = "bad_value"
    NOT_FINITE = "not_finite"
    FROM_FUTURE = "from_future"
    FROM_PAST = "from_past"


@dataclass(frozen=True, slots=True)
class Reject:
    """An element that can never be read.

    Attributes
    ----------
    event
        Index of its event in the event batch.
    position
        Its place in the body, from 0; 0 too where the whole body is meant.
    body
        The element's bytes, or the whole body where no elements can be told apart.
    """

    event: int
    position: int
    reason: Reason
    detail: str
    body: bytes


@dataclass(frozen=True, slots=True)
class FieldNames:
    """What the fields of a reading are called in the body."""

    device: str = "device"
    sensor: str = "sensor"
    ts: str = "ts"
    value: str = "value"


@dataclass(slots=True)
class _Unreadable(Exception):
    reason: Reason
    detail: str


@dataclass(slots=True)
class _Element:
    """One raw reading that did not come alone in a plain body."""

    event: int
    position: int
    raw: bytes
    row: Any


@dataclass(slots=True)
class _Batch:
    """What decoding gathers: `rows[i]` came from event `events[i]`; `seen` events are done."""

    source: EventBatch
    rows: list[Any] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    seen: int = 0
    elements: dict[int, _Element] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)

    def took(self, events: int) -> None:
        """Note that the next events became one row each."""
        self.events.extend(range(self.seen, self.seen + events))
        self.seen += events

    def add_element(self, element: _Element) -> None:
        self.elements[len(self.rows)] = element
        self.rows.append(element.row)
        self.events.append(element.event)

    def reject(self, row: int, reason: Reason, detail: str) -> None:
        """Set an already decoded row aside."""
        element = self.elements.get(row)
        event = self.events[row]
        raw, position = (
            (element.raw, element.position) if element else (self.source.bodies[event], 0)
        )
        self.rejects.append(Reject(event, position, reason, detail, raw))


@dataclass(frozen=True, slots=True)
class Plausible:
    """Which event times a reading may have; microseconds.

    A clock that is wrong must neither close every window nor reopen old ones. No rule goes by the
    clock of this machine, so that a replay decides the same.

    Attributes
    ----------
    max_future_skew
        How far an event time may be after its event's enqueued time.
    max_age
        How far it may be before it, in events of a hub.
    earliest
        The earliest event time in a file, whose enqueued times say little; since the epoch, UTC.
    """

    max_future_skew: int = 300_000_000
    max_age: int = 30 * 86_400_000_000
    earliest: int = 978_307_200_000_000

    def bounds(self, batch: EventBatch, event: I64) -> tuple[I64, I64]:
        """Return the earliest and the latest event time of readings, by their events' indexes."""
        enqueued = batch.enqueued_times[event]
        if batch.partition.is_file:
            earliest = np.full(len(event), self.earliest, dtype=np.int64)
        else:
            earliest = enqueued - self.max_age
        return earliest, enqueued + self.max_future_skew

    def verdict(
        self, stamp: str | int, time: int, earliest: int, latest: int
    ) -> tuple[Reason, str]:
        """Return why an event time out of bounds is rejected, with what it may have meant."""
        if time > latest:
            reason, detail = (
                Reason.FROM_FUTURE,
                f"{instants.text(time)} is ahead of the hub's clock",
            )
        else:
            limit = instants.text(earliest)
            reason, detail = Reason.FROM_PAST, f"{instants.text(time)} is before {limit}"
        return reason, detail + self.hint(stamp, earliest, latest)

    def hint(self, stamp: str | int, earliest: int, latest: int) -> str:
        """Return in which other unit a number would be plausible; empty if in none."""
        if isinstance(stamp, int):
            for unit, per_second in _UNITS.items():
                meant = stamp * 1_000_000 // per_second
                if earliest <= meant <= latest:
                    return f"; numbers are milliseconds, in {unit} it is {instants.text(meant)}"
        return ""


_UNITS = {"seconds": 1, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
"""Units that devices send beside milliseconds, and how many of each a second has."""


class ReadingDecoder:
    """Decodes event batches. Build once: it compiles a JSON decoder for the field names.

    Parameters
    ----------
    fields
        Names of the four fields in the body.
    plausible
        Which event times are taken.
    """

    def __init__(
        self, fields: FieldNames = FieldNames(), plausible: "Plausible | None" = None
    ) -> None:
        self._fields = fields
        self._plausible = plausible or Plausible()
        self._decode = msgspec.json.Decoder(_row_type(fields)).decode

    def decode(self, batch: EventBatch) -> tuple[Readings, list[Reject]]:
        """Decode every element of every event; what cannot be read comes back as rejects."""
        found = _Batch(batch)
        rest = iter(batch.bodies)
        while not self._decode_plain(found, rest):
            self._decode_unusual(found, found.seen - 1, batch.bodies[found.seen - 1])
        return self._columns(found), sorted(found.rejects, key=lambda r: (r.event, r.position))

    def _decode_plain(self, found: _Batch, rest: Iterator[bytes]) -> bool:
        """Decode bodies of one plain object each; False if it stopped behind one that is not.

        The loop that every event goes through. `list.extend` keeps what it had taken when the
        next body raised, and `rest` stands behind that body.
        """
        before = len(found.rows)
        try:
            found.rows.extend(map(self._decode, rest))
        except (ValueError, RecursionError):
            found.took(len(found.rows) - before)
            found.seen += 1
            return False
        found.took(len(found.rows) - before)
        return True

    def _decode_unusual(self, found: _Batch, index: int, body: bytes) -> None:
        try:
            elements = list(_elements(body))
        except _Unreadable as verdict:
            found.rejects.append(Reject(index, 0, verdict.reason, verdict.detail, body))
            return
        for position, raw in elements:
            try:
                found.add_element(_Element(index, position, raw, self._decode_element(raw)))
            except _Unreadable as verdict:
                found.rejects.append(Reject(index, position, verdict.reason, verdict.detail, raw))

    def _decode_element(self, raw: bytes) -> Any:
        text = _text(raw)
        try:
            return self._decode(text)
        except msgspec.ValidationError as error:
            self._explain(str(error))
        except (ValueError, RecursionError) as error:
            raise _unreadable_document(text, error) from error

    def _explain(self, message: str) -> NoReturn:
        """Tell by msgspec's message which field is wrong."""
        if "missing required field" in message:
            raise _Unreadable(Reason.MISSING_FIELD, message)
        if " - at `$." not in message:
            raise _Unreadable(Reason.NOT_AN_OBJECT, message)
        name = message.rpartition("`$.")[2].rstrip("`")
        is_infinite = "out of range" in message
        reasons = {
            self._fields.device: Reason.BAD_DEVICE,
            self._fields.sensor: Reason.BAD_SENSOR,
            self._fields.ts: Reason.BAD_TIME,
            self._fields.value: Reason.NOT_FINITE if is_infinite else Reason.BAD_VALUE,
        }
        raise _Unreadable(reasons.get(name, Reason.NOT_AN_OBJECT), message)

    def _columns(self, found: _Batch) -> Readings:
        rows = found.rows
        event = np.array(found.events, dtype=np.int64)
        bad: dict[int, tuple[Reason, str]] = {}
        devices = _names([row.device for row in rows], Reason.BAD_DEVICE, bad)
        sensors = _names([row.sensor for row in rows], Reason.BAD_SENSOR, bad)
        self._fill_devices(found, devices, bad)
        times, readable = instants.parse([row.ts for row in rows])
        earliest, latest = self._plausible.bounds(found.source, event)
        for row in np.flatnonzero(~readable).tolist():
            hint = self._plausible.hint(rows[row].ts, int(earliest[row]), int(latest[row]))
            bad.setdefault(row, (Reason.BAD_TIME, f"not a time: {rows[row].ts!r:.60}{hint}"))
        for row in np.flatnonzero(readable & ((times > latest) | (times < earliest))).tolist():
            limits = int(earliest[row]), int(latest[row])
            verdict = self._plausible.verdict(rows[row].ts, int(times[row]), *limits)
            bad.setdefault(row, verdict)
        # Adding 0.0 makes -0.0 positive: the two are equal, so the order would decide on a minimum.
        values = np.array([row.value for row in rows], dtype=np.float64) + 0.0
        for row, verdict in bad.items():
            found.reject(row, *verdict)
        mask = np.ones(len(rows), dtype=bool)
        mask[list(bad)] = False
        return Readings(devices, sensors, times, values, event).where(mask)

    def _fill_devices(
        self, found: _Batch, devices: list[str], bad: dict[int, tuple[Reason, str]]
    ) -> None:
        """Where the body names no device, take IoT Hub's name of the sender."""
        if "" not in devices:
            return
        senders = found.source.connection_device_ids
        for row in [row for row, device in enumerate(devices) if not device]:
            sender = senders[found.events[row]] if senders else None
            if not sender:
                detail = f"no field {self._fields.device!r} and no connection device id"
                bad[row] = (Reason.MISSING_FIELD, detail)
            elif len(sender) > MAX_NAME or "\0" in sender:
                bad[row] = (Reason.BAD_DEVICE, "connection device id is too long or holds a NUL")
            else:
                devices[row] = sender


def _row_type(fields: FieldNames) -> type[msgspec.Struct]:
    name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)] | int
    value = Annotated[float, msgspec.Meta(ge=-MAX_VALUE, le=MAX_VALUE)]
    return msgspec.defstruct(
        "Reading",
        [("sensor", name), ("ts", str | int), ("value", value), ("device", name | None, None)],
        rename={key: getattr(fields, key) for key in ("device", "sensor", "ts", "value")},
        gc=False,
    )


def _names(
    column: list[str | int | None], reason: Reason, bad: dict[int, tuple[Reason, str]]
) -> list[str]:
    """Make names of integers and an empty one of None.

    NUL is refused: no SQL server stores it. Joining finds one in a few microseconds a batch.
    """
    try:
        joined = "\0".join(column)  # type: ignore[arg-type]  # the TypeError tells them apart
        names: list[str] = column  # type: ignore[assignment]
    except TypeError:
        names = ["" if name is None else str(name) for name in column]
        bad.update((i, (reason, "too long")) for i, n in enumerate(names) if len(n) > MAX_NAME)
        joined = "\0".join(names)
    if joined.count("\0") > len(names) - 1:
        bad.update((i, (reason, "holds a NUL")) for i, n in enumerate(names) if "\0" in n)
    return names


def _text(body: bytes) -> bytes:
    return body.removeprefix(_BOM).strip()


def _elements(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Split a body into its elements' bytes with their positions; a lone one is the whole body.

    Raises
    ------
    _Unreadable
        Nothing to read, or an array whose elements cannot be told apart; at once, before the
        first is given.
    """
    text = _text(body)
    if not text:
        raise _Unreadable(Reason.EMPTY_BODY, "nothing but white space")
    is_array = text.startswith(b"[")
    try:
        parsed = _parse(text, list[msgspec.Raw] if is_array else msgspec.Raw)
    except _Unreadable:
        if _is_one_document(text):
            raise
        if elements := _broken_array(text) or _lines(text):
            return iter(elements)
        if is_array:
            raise
    else:
        if is_array:
            return enumerate(map(bytes, parsed))
    return iter([(0, body)])


def _is_one_document(text: bytes) -> bool:
    """Return whether a text is one document over several lines, by its first and last line alone.

    Lines within a broken document are no readings of their own.
    """
    lines = text.split(b"\n", 1)
    first, last = lines[0].strip(), text.rpartition(b"\n")[2].strip()
    return len(lines) > 1 and first in {b"{", b"["} and last in {b"}", b"]"}


def _broken_array(text: bytes) -> list[tuple[int, bytes]]:
    """Cut an array at its commas, so that an element that is no JSON drops no neighbour.

    None are given of what is no array, or whose brackets do not close at the text's end.
    """
    if not (text.startswith(b"[") and text.endswith(b"]")):
        return []
    elements, depth, start = [], 0, 1
    for token in _STRING_OR_MARK.finditer(text):
        mark = token[0]
        depth += _DEPTH.get(mark, 0)
        if depth == 0 or (depth == 1 and mark == b","):
            elements.append(text[start : token.start()].strip())
            start = token.end()
        if depth == 0:
            break
    return list(enumerate(elements)) if start == len(text) else []


def _lines(text: bytes) -> list[tuple[int, bytes]]:
    """Give the lines of newline-delimited objects; none if no line has an object's braces.

    A pretty-printed object that is broken has lines too, and must stay one reject.
    """
    lines = [(i, line.strip()) for i, line in enumerate(text.split(b"\n")) if line.strip()]
    objects = (line.startswith(b"{") and line.endswith(b"}") for _, line in lines)
    return lines if len(lines) > 1 and any(objects) else []


def _parse(text: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except (ValueError, RecursionError) as error:
        raise _unreadable_document(text, error) from error


def _unreadable_document(text: bytes, error: Exception) -> _Unreadable:
    """Tell why `text` is no JSON document at all."""
    if isinstance(error, RecursionError):
        return _Unreadable(Reason.TOO_DEEP, "nested too deeply")
    try:
        decoded = text.decode()
    except UnicodeDecodeError as wrong:
        return _Unreadable(Reason.NOT_UTF8, f"byte {wrong.start} is not UTF-8")
    if _says_not_finite(decoded):
        return _Unreadable(Reason.NOT_FINITE, "NaN and Infinity are not JSON numbers")
    return _Unreadable(Reason.NOT_JSON, str(error))


def _says_not_finite(text: str) -> bool:
    """Whether the document would be JSON if NaN and Infinity were."""
    seen: list[str] = []
    try:
        json.loads(text, parse_constant=seen.append)
    except (ValueError, RecursionError):
        return False
    return bool(seen)
