"""What a child process and its parent say to each other, as bytes."""

import json
import struct
from collections.abc import Callable
from typing import Any

OK, REFUSED, NEEDS_ESTIMATORS, EXHAUSTED = range(4)
"""How a request went; after the last one the child ends."""

MOST = 2**30
"""Bytes of a frame."""

Frame = tuple[int, dict[str, Any], bytes]
"""A number, a JSON object and bytes."""

_HEAD = struct.Struct("<BII")


def frame(code: int, header: dict[str, Any], *blobs: bytes) -> bytes:
    """Return a frame as bytes."""
    text = json.dumps(header).encode()
    body = b"".join(blobs)
    return _HEAD.pack(code, len(text), len(body)) + text + body


def length(data: bytes | bytearray) -> int:
    """Return the length of the frame that begins with these bytes; 0 while that is not known.

    Raises
    ------
    ValueError
        It is longer than any.
    """
    if len(data) < _HEAD.size:
        return 0
    _, header, body = _HEAD.unpack_from(data)
    if header + body > MOST:
        message = f"a frame of {header + body} bytes"
        raise ValueError(message)
    return int(_HEAD.size + header + body)


def opened(data: bytes | bytearray) -> Frame:
    """Return the frame that these bytes are.

    Raises
    ------
    ValueError
        They are none.
    """
    code, header, _ = _HEAD.unpack_from(data)
    told = json.loads(data[_HEAD.size : _HEAD.size + header])
    if not isinstance(told, dict):
        message = "a frame without a header"
        raise ValueError(message)  # noqa: TRY004 - one error for what is no frame
    return code, told, bytes(data[_HEAD.size + header :])


def read_frame(read: Callable[[int], bytes]) -> Frame | None:
    """Read a frame from a file by its `read`; None at the end of the file."""
    data = read(_HEAD.size)
    if len(data) < _HEAD.size:
        return None
    return opened(data + read(length(data) - _HEAD.size))
