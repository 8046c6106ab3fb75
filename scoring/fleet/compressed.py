"""Compressed model files unpacked, as far as is bearable."""

import bz2
import lzma
import zlib
from typing import Any

from scoring.errors import ModelRefused

MAX_UNPACKED = 256 * 2**20
"""Largest content of a compressed model file, in bytes."""

_LZMA_MEMORY = 128 * 2**20
"""What decompressing may take beside its result; the strongest preset takes half, in bytes."""

_OTHERS = {b"\x04\x22\x4d\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstandard"}
"""Ways of compression that are not undone here, by their first bytes."""


def unpack(data: bytes) -> bytes:
    """Undo joblib's compression, as far as `MAX_UNPACKED`; a plain pickle stays as it is.

    Raises
    ------
    ModelRefused
        It is cut off, too large, or neither a pickle nor compressed in a known way.
    """
    if data[:1] == b"\x80":
        return data
    unpacker = _unpacker(data)
    try:
        content: bytes = unpacker.decompress(data, MAX_UNPACKED + 1)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError) as error:
        message = f"cannot be decompressed: {error}"
        raise ModelRefused(message) from error
    if len(content) > MAX_UNPACKED:
        message = f"decompresses to more than {MAX_UNPACKED} bytes"
        raise ModelRefused(message)
    if not unpacker.eof:
        message = "truncated: its compressed content does not end"
        raise ModelRefused(message)
    return content


def _unpacker(data: bytes) -> Any:
    if data[:1] == b"\x78" or data[:2] == b"\x1f\x8b":
        # 32 and the largest window: zlib's own header or gzip's.
        return zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
    if data[:3] == b"BZh":
        return bz2.BZ2Decompressor()
    if data[:6] == b"\xfd7zXZ\0" or data[:1] == b"\x5d":
        return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)
    for magic, name in _OTHERS.items():
        if data.startswith(magic):
            message = f"compressed with {name}: save it with joblib's compress='zlib' instead"
            raise ModelRefused(message)
    message = "neither a pickle of protocol 2 or later nor a joblib or skops file"
    raise ModelRefused(message)
