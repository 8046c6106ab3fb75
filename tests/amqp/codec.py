"""AMQP 1.0 types, frames and messages, to and from bytes: what an event hub needs of them.

Python's types stand for AMQP's where there is one: None, bool, int (long), float, str, bytes,
UUID, list and dict; the classes here stand for the others.
"""

import struct
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

PROTOCOL_HEADER = b"AMQP\x00\x01\x00\x00"
SASL_HEADER = b"AMQP\x03\x01\x00\x00"
BATCH_FORMAT = 0x80013700
"""Message format of Event Hubs for a message whose data sections are messages themselves."""

OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x10, 0x19)
ERROR, ACCEPTED, REJECTED, SOURCE, TARGET = 0x1D, 0x24, 0x25, 0x28, 0x29
SASL_MECHANISMS, SASL_INIT, SASL_OUTCOME = 0x40, 0x41, 0x44
HEADER, ANNOTATIONS, PROPERTIES, APPLICATION_PROPERTIES = 0x70, 0x72, 0x73, 0x74
DATA, VALUE = 0x75, 0x77

_TRANSFER_OVERHEAD = 64
"""Bytes of a frame that are surely enough for a transfer without its payload."""


class Symbol(str):
    """AMQP's symbol; also in arrays: a list that holds only symbols becomes one."""

    __slots__ = ()


class UByte(int):
    """AMQP's ubyte."""


class UShort(int):
    """AMQP's ushort."""


class UInt(int):
    """AMQP's uint."""


class ULong(int):
    """AMQP's ulong."""


class Timestamp(int):
    """AMQP's timestamp: epoch milliseconds."""


class Described(NamedTuple):
    """A value with its descriptor."""

    descriptor: Any
    value: Any


_FIXED: dict[type, tuple[bytes, struct.Struct]] = {
    UByte: (b"\x50", struct.Struct(">B")),
    UShort: (b"\x60", struct.Struct(">H")),
    UInt: (b"\x70", struct.Struct(">I")),
    ULong: (b"\x80", struct.Struct(">Q")),
    Timestamp: (b"\x83", struct.Struct(">q")),
    int: (b"\x81", struct.Struct(">q")),
    float: (b"\x82", struct.Struct(">d")),
}
_WIDTHS: dict[int, tuple[struct.Struct, type]] = {
    0x50: (struct.Struct(">B"), UByte),
    0x51: (struct.Struct(">b"), int),
    0x52: (struct.Struct(">B"), UInt),
    0x53: (struct.Struct(">B"), ULong),
    0x54: (struct.Struct(">b"), int),
    0x55: (struct.Struct(">b"), int),
    0x56: (struct.Struct(">?"), bool),
    0x60: (struct.Struct(">H"), UShort),
    0x61: (struct.Struct(">h"), int),
    0x70: (struct.Struct(">I"), UInt),
    0x71: (struct.Struct(">i"), int),
    0x72: (struct.Struct(">f"), float),
    0x80: (struct.Struct(">Q"), ULong),
    0x81: (struct.Struct(">q"), int),
    0x82: (struct.Struct(">d"), float),
    0x83: (struct.Struct(">q"), Timestamp),
}
_CONSTANTS: dict[int, Any] = {0x40: None, 0x41: True, 0x42: False, 0x43: UInt(0), 0x44: ULong(0)}
_EMPTY_LIST, _UUID = 0x45, 0x98


def encode(value: Any) -> bytes:
    """Encode one value, in its widest form but for descriptors."""
    if value is None:
        return b"\x40"
    if isinstance(value, bool):
        return b"\x41" if value else b"\x42"
    if fixed := _FIXED.get(type(value)):
        return fixed[0] + fixed[1].pack(value)
    if isinstance(value, uuid.UUID):
        return b"\x98" + value.bytes
    if isinstance(value, Described):
        # The SDK takes it for granted that descriptors are small.
        return bytes((0, 0x53, value.descriptor)) + encode(value.value)
    return _encode_variable(value)


def _encode_variable(value: Any) -> bytes:
    if isinstance(value, bytes):
        return b"\xb0" + struct.pack(">I", len(value)) + value
    if isinstance(value, str):
        raw = value.encode()
        return (
            (b"\xb3" if isinstance(value, Symbol) else b"\xb1") + struct.pack(">I", len(raw)) + raw
        )
    if isinstance(value, dict):
        return _compound(b"\xd1", [part for pair in value.items() for part in pair])
    if value and all(isinstance(one, Symbol) for one in value):
        items = b"".join(encode(one)[1:] for one in value)
        return b"\xf0" + struct.pack(">II", len(items) + 5, len(value)) + b"\xb3" + items
    return _compound(b"\xd0", value)


def _compound(code: bytes, parts: Iterable[Any]) -> bytes:
    encoded = [encode(part) for part in parts]
    items = b"".join(encoded)
    return code + struct.pack(">II", len(items) + 4, len(encoded)) + items


def decode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """Decode one value; gives it and where the next one begins."""
    return _decode_body(data[at], data, at + 1)


def _decode_body(code: int, data: bytes, at: int) -> tuple[Any, int]:
    """Decode what follows a constructor."""
    if code in _CONSTANTS:
        return _CONSTANTS[code], at
    if width := _WIDTHS.get(code):
        form, kind = width
        return kind(form.unpack_from(data, at)[0]), at + form.size
    if code == 0:
        descriptor, at = decode(data, at)
        value, at = decode(data, at)
        return Described(descriptor, value), at
    if code == _EMPTY_LIST:
        return [], at
    if code == _UUID:
        return uuid.UUID(bytes=data[at : at + 16]), at + 16
    return _decode_variable(code, data, at)


def _decode_variable(code: int, data: bytes, at: int) -> tuple[Any, int]:
    is_wide = bool(code & 0x10)
    size, at = _size(data, at, is_wide=is_wide)
    end, kind = at + size, code & 0xEF
    if kind == 0xA0:
        return data[at:end], end
    if kind in {0xA1, 0xA3}:
        text = data[at:end].decode()
        return (Symbol(text) if kind == 0xA3 else text), end
    count, at = _size(data, at, is_wide=is_wide)
    if kind == 0xE0:
        return _decode_array(count, data, at), end
    items = []
    for _ in range(count):
        item, at = decode(data, at)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if kind == 0xC1 else items), end


def _decode_array(count: int, data: bytes, at: int) -> list[Any]:
    code, at, items = data[at], at + 1, []
    for _ in range(count):
        item, at = _decode_body(code, data, at)
        items.append(item)
    return items


def _size(data: bytes, at: int, *, is_wide: bool) -> tuple[int, int]:
    if is_wide:
        return int.from_bytes(data[at : at + 4], "big"), at + 4
    return data[at], at + 1


def frame(channel: int, descriptor: int, fields: list[Any], payload: bytes = b"") -> bytes:
    """Make a frame of a performative; SASL's are told by their descriptors."""
    body = encode(Described(descriptor, fields)) + payload
    kind = 1 if descriptor >= SASL_MECHANISMS else 0
    return struct.pack(">IBBH", len(body) + 8, 2, kind, channel) + body


def transfers(
    channel: int, handle: int, delivery: int, payload: bytes, max_frame: int
) -> list[bytes]:
    """Make the frames of one settled delivery: several, if it does not fit into one."""
    room = max_frame - _TRANSFER_OVERHEAD
    starts = range(0, max(len(payload), 1), room)
    tag = struct.pack(">I", delivery & 0xFFFFFFFF)
    return [
        frame(
            channel, TRANSFER,
            [UInt(handle), UInt(delivery), tag, UInt(0), True, start != starts[-1],
             None, None, False, False, False],
            payload[start : start + room],
        )
        for start in starts
    ]  # fmt: skip


class Message(NamedTuple):
    """What an event hub looks at in a message.

    Attributes
    ----------
    bare
        Properties, application properties and body, as they are in the message's bytes.
    data
        The data sections' contents.
    """

    annotations: dict[str, Any]
    properties: list[Any]
    application_properties: dict[str, Any]
    data: list[bytes]
    value: Any
    bare: bytes


def decode_message(payload: bytes) -> Message:
    """Take a message apart; its header and footer are left out."""
    sections: dict[int, Any] = {}
    data, bare, at = [], [], 0
    while at < len(payload):
        (descriptor, value), end = decode(payload, at)
        sections[descriptor] = value
        if descriptor == DATA:
            data.append(value)
        if PROPERTIES <= descriptor <= VALUE:
            bare.append(payload[at:end])
        at = end
    return Message(
        sections.get(ANNOTATIONS) or {},
        sections.get(PROPERTIES) or [],
        sections.get(APPLICATION_PROPERTIES) or {},
        data,
        sections.get(VALUE),
        b"".join(bare),
    )


def annotated(annotations: dict[str, Any], bare: bytes) -> bytes:
    """Put annotations before a bare message."""
    keyed = {Symbol(key): value for key, value in annotations.items()}
    return encode(Described(ANNOTATIONS, keyed)) + bare
