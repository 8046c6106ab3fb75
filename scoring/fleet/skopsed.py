"""Skops files read without building what they describe.

A skops file is a zip archive: ``schema.json`` is a tree of nodes, each with the class of an object
and how skops would build it, and arrays are files of NumPy's format beside it. Here a node of a
class that is known becomes a `Captured` with its attributes, one of another class is `Unread`, and
nothing is imported, called or built.

Source of the nodes: skops' documentation of its secure persistence format, and ``skops.io`` itself.
"""

import io
import json
import math
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from scoring.errors import ModelRefused
from scoring.fleet.attributes import Captured, Unread
from scoring.fleet.compressed import MAX_UNPACKED
from scoring.fleet.kinds import is_known

MAX_SCHEMA = 32 * 2**20
"""Largest ``schema.json``, in bytes; that of a forest of 1,000 trees has some 12 million."""

MAX_NODES = 2_000_000
"""Nodes of a file; a forest of 1,000 trees has some 70,000."""

_DEEPEST = 100
"""Levels of nodes; a pipeline of a forest has some 20."""

_HEADER = 10_000
"""Characters of an array's header: the fields of a tree's nodes take some 400."""

_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)

_BROKEN = (
    *(ValueError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError, SyntaxError),
    *(MemoryError, RecursionError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError),
)
"""What reading a damaged archive may end in; `zipfile` raises RuntimeError for encryption."""


def read_skops(data: bytes) -> Any:
    """Read a skops file as inert values.

    Returns
    -------
    object
        A `Captured` object, or what else the file holds.

    Raises
    ------
    ModelRefused
        It is damaged, too large, or of an unknown form.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _Reader(archive).run()
    except ModelRefused:
        raise
    except _BROKEN as error:
        message = f"not a usable skops file: {type(error).__name__}: {str(error)[:100]}"
        raise ModelRefused(message) from error


class _Reader:
    """Reads one archive; each node and each array once, however often it is referred to."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        self._known: dict[Any, Any] = {}
        self._arrays: dict[str, Any] = {}
        self._nodes = 0

    def run(self) -> Any:
        """Read the whole tree."""
        size = sum(entry.file_size for entry in self._entries.values())
        if size > MAX_UNPACKED:
            message = f"unpacks to {size} bytes, more than {MAX_UNPACKED}"
            raise ModelRefused(message)
        schema = self._entries["schema.json"]
        if schema.file_size > MAX_SCHEMA:
            message = f"has a schema of {schema.file_size} bytes, more than {MAX_SCHEMA}"
            raise ModelRefused(message)
        return self._value(json.loads(self._content("schema.json")), 0)

    def _content(self, name: str) -> bytes:
        entry = self._entries[name]
        if entry.compress_type not in _PACKED:
            message = "its archive is compressed with LZMA: save it with ZIP_DEFLATED instead"
            raise ModelRefused(message)
        with self._archive.open(entry) as file:
            # No more than the archive's own list says, whatever is packed there.
            return file.read(entry.file_size)

    def _value(self, node: dict[str, Any], depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > _DEEPEST:
            message = f"holds more than {MAX_NODES} nodes, or nests over {_DEEPEST} of them"
            raise ModelRefused(message)
        identity = node.get("__id__")
        if type(identity) is not int:
            return self._new_value(node, depth)
        if identity not in self._known:
            self._known[identity] = None
            value = self._new_value(node, depth)
            self._known[identity] = value
        return self._known[identity]

    def _new_value(self, node: dict[str, Any], depth: int) -> Any:
        read = _READERS.get(node["__loader__"])
        if read is None:
            return _unread(node)
        return read(self, node, depth + 1)

    def literal(self, node: dict[str, Any], _: int) -> Any:
        """Read a number, a text, a truth value or None."""
        value = json.loads(node["content"])
        return _unread(node) if isinstance(value, (dict, list)) else value

    def dict_of(self, node: dict[str, Any], depth: int) -> dict[str, Any]:
        """Read a dict; its keys stay texts."""
        return {key: self._value(value, depth) for key, value in node["content"].items()}

    def list_of(self, node: dict[str, Any], depth: int) -> list[Any]:
        """Read a list."""
        return [self._value(value, depth) for value in node["content"]]

    def tuple_of(self, node: dict[str, Any], depth: int) -> tuple[Any, ...]:
        """Read a tuple."""
        return tuple(self.list_of(node, depth))

    def array(self, node: dict[str, Any], depth: int) -> Any:
        """Read an array of numbers, a number, or a one-dimensional array of objects as a list."""
        name = node["__class__"]
        if node["type"] == "numpy":
            file = node["file"]
            if file not in self._arrays:
                self._arrays[file] = read_array(self._content(file))
            found = self._arrays[file]
            return found if name == "ndarray" else found.reshape(())[()].item()
        shape = self._value(node["shape"], depth)
        if name != "ndarray" or type(shape) is not tuple or shape != (len(node["content"]),):
            return _unread(node)
        return self.list_of(node, depth)

    def object_of(self, node: dict[str, Any], depth: int) -> Any:
        """Read the attributes of an object of a known class."""
        name, content = node["__class__"], node.get("content")
        if not is_known(node["__module__"], name):
            return _unread(node)
        found = Captured(name)
        if isinstance(reduced := node.get("__reduce__"), dict):
            arguments = self._value(reduced["args"], depth)
            found.arguments = arguments if type(arguments) is tuple else ()
        found.state = self._value(content, depth) if content else {}
        return found


def _unread(node: dict[str, Any]) -> Unread:
    return Unread(str(node.get("__module__", "")), str(node.get("__class__", "")))


_READERS: dict[str, Callable[[_Reader, dict[str, Any], int], Any]] = {
    "JsonNode": _Reader.literal,
    "DictNode": _Reader.dict_of,
    "ListNode": _Reader.list_of,
    "TupleNode": _Reader.tuple_of,
    "NdArrayNode": _Reader.array,
    "ObjectNode": _Reader.object_of,
    "TreeNode": _Reader.object_of,
}


def read_array(data: bytes) -> np.ndarray[Any, Any]:
    """View the bytes of a file of NumPy's format as an array of numbers or of records of them.

    Raises
    ------
    ModelRefused
        It holds something else, or fewer or more bytes than its header says.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
        version, np.lib.format.read_array_header_2_0
    )
    shape, is_fortran, dtype = read(file, max_header_size=_HEADER)
    plain = [dtype] if dtype.names is None else [dtype[name] for name in dtype.names]
    if any(one.kind not in "biuf" or one.names or one.subdtype for one in plain):
        message = f"an array of type {str(dtype)[:40]}"
        raise ModelRefused(message)
    if any(type(length) is not int or length < 0 for length in shape):
        message = "an array without a proper shape"
        raise ModelRefused(message)
    content = memoryview(data)[file.tell() :]
    if math.prod(shape) * dtype.itemsize != len(content):
        message = "truncated: an array has fewer or more bytes than its shape says"
        raise ModelRefused(message)
    flat = np.frombuffer(content, dtype) if len(content) else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if is_fortran else "C")
