"""What stands for the things that a pickle makes: names, captured objects, arrays of its bytes.

Nothing is copied that a file could ask to be copied many times over, and nothing from a file is
put into a message but short texts: nested lists can print to any length.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scoring.errors import ModelRefused
from scoring.fleet.attributes import Captured, Unread
from scoring.fleet.kinds import CLASSES

_RANDOM = {
    "RandomState": ("numpy.random", "numpy.random.mtrand"),
    "__RandomState_ctor": ("numpy.random",),
    "__randomstate_ctor": ("numpy.random._pickle",),
    "__bit_generator_ctor": ("numpy.random._pickle",),
    "MT19937": ("numpy.random._mt19937",),
}
"""What random numbers come from: it stands in models, and is not needed."""

_FUNCTIONS = {
    "NumpyArrayWrapper": ("joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle"),
    "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
    "scalar": ("numpy.core.multiarray", "numpy._core.multiarray"),
    "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
    "ndarray": ("numpy",),
    "dtype": ("numpy",),
    "encode": ("_codecs",),
    "bytes": ("__builtin__", "builtins"),
}
"""What arrays are made by in a pickle."""

_ALLOWED = {
    (module, name)
    for names in (CLASSES, _RANDOM, _FUNCTIONS)
    for name, modules in names.items()
    for module in modules
}

_UNREAD = re.compile(
    r"(sklearn|numpy|scipy|joblib|collections)(\.\w+)*:_?[A-Z]\w*"
    r"|sklearn\.metrics(\.\w+)*:\w+|sklearn\.neighbors\.\w+:newObj"
    r"|numpy\.ma(\.\w+)*:_mareconstruct|builtins:slice|numpy:(u?int|float|bool|str|object)\d*_?"
)
"""Other classes, and functions that stand in models: they are refused where they are needed."""

_PLAIN_DTYPE = re.compile(r"[biuf?][1248]?|V\d{1,4}|O8?")

_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class Name:
    """A global that a pickle asks for, and gets no more of than its name."""

    module: str
    name: str


@dataclass(slots=True)
class Shell:
    """An array, data type or joblib array block between its making and its state.

    Attributes
    ----------
    memo
        Where the pickle remembers it: what it becomes is to be remembered instead.
    """

    of: str
    arguments: tuple[Any, ...]
    memo: list[int] = field(default_factory=list)


def look_up(module: object, name: object) -> Name:
    """Give a global's name if it is on the list.

    Raises
    ------
    ModelRefused
        Naming what was asked for.
    """
    if not (isinstance(module, str) and isinstance(name, str)):
        message = "asks for something that has no name"
        raise ModelRefused(message)
    if (module, name) not in _ALLOWED and not _UNREAD.fullmatch(f"{module}:{name}"):
        message = f"asks for {module[:100]}.{name[:100]}"
        raise ModelRefused(message)
    return Name(module, name)


def make(function: Any, arguments: Any) -> Any:
    """Give what a function or class of the list makes of its arguments, without calling it."""
    if not isinstance(function, Name) or type(arguments) is not tuple:
        message = "calls something that is not a name"
        raise ModelRefused(message)
    name = function.name
    if (function.module, name) not in _ALLOWED or name in _RANDOM:
        return Unread(function.module, name)
    if name in CLASSES:
        return Captured(name, arguments)
    return _make_numbers(function, arguments)


def _make_numbers(function: Name, arguments: tuple[Any, ...]) -> Any:
    """Give what a function that makes numbers or bytes makes of its arguments."""
    match function.name, arguments:
        case ("_reconstruct" | "NumpyArrayWrapper" | "dtype") as of, _:
            return Shell(of, arguments)
        case "scalar", (dtype, bytes() | str() as content):
            return np.frombuffer(_octets(content), as_dtype(dtype), count=1)[0].item()
        case "_frombuffer", (content, dtype, shape, order):
            return make_array(content, dtype, shape, order)
        case "encode", (str(text), "latin1" | "latin-1"):
            return text.encode("latin-1")
        case "bytes", ():
            # How protocol 2 writes no bytes at all.
            return b""
    message = f"calls {function.module}.{function.name} in a way that is not known"
    raise ModelRefused(message)


def as_dtype(dtype: Any) -> np.dtype[Any]:
    """Give a data type, also one that got no state."""
    if isinstance(dtype, Shell) and dtype.of == "dtype":
        return make_dtype(dtype.arguments[0], None)
    if not isinstance(dtype, np.dtype):
        message = "an array whose type is none"
        raise ModelRefused(message)
    return dtype


def make_dtype(code: Any, state: Any) -> np.dtype[Any]:
    """Make a data type of numbers, or of named fields of numbers; object stands for itself."""
    if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
        message = f"an array of type {code[:40] if isinstance(code, str) else '?'}"
        raise ModelRefused(message)
    if state is None or not state[3]:
        plain = np.dtype(code)
        return plain.newbyteorder(">") if state is not None and state[1] == ">" else plain
    _, _, _, names, fields, itemsize = state[:6]
    formats = [as_dtype(fields[name][0]) for name in names]
    if any(inner.hasobject or inner.names for inner in formats):
        message = "an array of nested records"
        raise ModelRefused(message)
    offsets = [fields[name][1] for name in names]
    return np.dtype(
        {"names": list(names), "formats": formats, "offsets": offsets, "itemsize": itemsize}
    )


def _octets(content: Any) -> Any:
    """Return bytes that Python 2 has written as a text."""
    return content.encode("latin-1") if isinstance(content, str) else content


def size_of(shape: Any) -> int:
    """Count the elements of an array of a shape."""
    if type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS:
        message = "an array without a proper shape"
        raise ModelRefused(message)
    if any(type(length) is not int or not 0 <= length < 2**40 for length in shape):
        message = "an array without a proper shape"
        raise ModelRefused(message)
    return math.prod(shape)


def make_array(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """View bytes as an array; one of objects stays the list that it came as."""
    kind, size = as_dtype(dtype), size_of(shape)
    if kind.hasobject:
        return content if type(content) is list else None
    content = _octets(content)
    if not isinstance(content, bytes) or len(content) != size * kind.itemsize:
        message = "truncated: an array has fewer or more bytes than its shape says"
        raise ModelRefused(message)
    flat = np.frombuffer(content, kind) if size else np.empty(0, kind)
    return flat.reshape(shape, order="F" if order == "F" else "C")
