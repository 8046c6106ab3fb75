"""What an Arrow file says of its buffers, read before any of them is: whether they are compressed.

Reading an Arrow file unpacks compressed buffers to whatever length they name, into memory. Fleets
are written without compression, so that they can be mapped.

Source: ``File.fbs`` and ``Message.fbs`` of the Arrow format, and FlatBuffers' internals: a table
begins with the distance back to its vtable, which has the places of its fields.
"""

import struct
from typing import Any

MAGIC = b"ARROW1"

_DICTIONARY, _RECORDS = 2, 3
"""Kinds of messages that have buffers."""

_MOST_BLOCKS = 100_000


def is_compressed(data: Any) -> bool:
    """Return whether any record batch or dictionary of an Arrow file is compressed.

    Parameters
    ----------
    data
        The whole file, as something that can be sliced into bytes.

    Raises
    ------
    ValueError
        It is no Arrow file, or damaged.
    """
    view = memoryview(data)
    try:
        return any(_has_compression(view, offset) for offset in _blocks(view))
    except (struct.error, IndexError) as error:
        message = f"its footer leads out of bounds: {error}"
        raise ValueError(message) from error


def _blocks(view: memoryview) -> list[int]:
    """Return where the messages of dictionaries and record batches begin."""
    end = len(view) - len(MAGIC) - 4
    if end < 0 or bytes(view[-len(MAGIC) :]) != MAGIC:
        message = "it does not end as an Arrow file does"
        raise ValueError(message)
    (size,) = struct.unpack_from("<i", view, end)
    if not 0 < size <= end:
        message = "its footer has no proper length"
        raise ValueError(message)
    footer = view[end - size : end]
    table = _root(footer)
    found = []
    for field in (2, 3):
        if not (place := _field(footer, table, field)):
            continue
        start = place + _uint(footer, place)
        count = _uint(footer, start)
        if count > _MOST_BLOCKS:
            message = f"{count} blocks"
            raise ValueError(message)
        found += [struct.unpack_from("<q", footer, start + 4 + 24 * i)[0] for i in range(count)]
    return found


def _has_compression(view: memoryview, offset: int) -> bool:
    """Return whether the message at a place has compressed buffers."""
    if not 0 <= offset <= len(view) - 8:
        message = "a block leads out of bounds"
        raise ValueError(message)
    first, second = struct.unpack_from("<Ii", view, offset)
    # Since version 0.15 of Arrow there are four bytes before the length.
    begin, size = (offset + 8, second) if first == 0xFFFFFFFF else (offset + 4, first)  # noqa: PLR2004
    metadata = view[begin : begin + max(0, size)]
    table = _root(metadata)
    kind = _field(metadata, table, 1)
    header = _field(metadata, table, 2)
    if not kind or not header:
        return False
    found = header + _uint(metadata, header)
    if metadata[kind] == _DICTIONARY:
        inner = _field(metadata, found, 1)
        found = inner + _uint(metadata, inner) if inner else found
    elif metadata[kind] != _RECORDS:
        return False
    return bool(_field(metadata, found, 3))


def _root(data: memoryview) -> int:
    return _uint(data, 0)


def _uint(data: memoryview, place: int) -> int:
    return int(struct.unpack_from("<I", data, place)[0])


def _field(data: memoryview, table: int, field: int) -> int:
    """Return where a field of a table stands; 0 if the table does not have it."""
    (back,) = struct.unpack_from("<i", data, table)
    vtable = table - back
    if vtable < 0:
        message = "a table leads out of bounds"
        raise ValueError(message)
    (size,) = struct.unpack_from("<H", data, vtable)
    at = 4 + 2 * field
    if at + 2 > size:
        return 0
    (place,) = struct.unpack_from("<H", data, vtable + at)
    return table + int(place) if place else 0
