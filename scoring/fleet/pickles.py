"""Pickles and joblib files read without running them.

A pickle is a program for a small stack machine, and ``pickle.load`` runs it with whatever
functions it names. The machine here knows the same instructions but calls nothing: a global is a
`Name`, an object is a `Captured` with the attributes that the file gives it, and an array is made
from bytes that are in the file. Names that are not on the list end the reading. So do persistent
ids, extension codes, buffers from outside, sets, and protocols 0 and 1.

Source of the instructions: `pickletools` in the standard library; of joblib's array blocks:
``joblib.numpy_pickle.NumpyArrayWrapper``.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scoring.errors import ModelRefused
from scoring.fleet.attributes import Captured, Unread
from scoring.fleet.compressed import MAX_UNPACKED, unpack
from scoring.fleet.pickled import Shell, as_dtype, look_up, make, make_array, make_dtype, size_of

MAX_FILE = 64 * 2**20
"""Largest model file that is read, in bytes."""

MAX_STEPS = 2_000_000
"""Instructions after which a pickle is given up; a forest of 1,000 trees takes some 200,000."""

_MAX_NESTED = 4
"""How deep joblib's pickles of object arrays may stand in each other."""

_BROKEN = (
    *(ValueError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError),
    *(MemoryError, RecursionError, OSError, AssertionError),
)
"""What reading a damaged pickle may end in."""


def read_pickle(data: bytes) -> Any:
    """Read a pickle or joblib file, plain or compressed, as inert values.

    Parameters
    ----------
    data
        The file's content.

    Returns
    -------
    object
        A `Captured` object, or what else the file holds.

    Raises
    ------
    ModelRefused
        It is cut off, too large, of an unknown form, or asks for something that is not allowed.
    """
    unpacked = unpack(data)
    try:
        return _Machine(io.BytesIO(unpacked), _Budget(MAX_STEPS, MAX_UNPACKED)).run()
    except _BROKEN as error:
        message = f"truncated or damaged: {type(error).__name__}: {str(error)[:200]}"
        raise ModelRefused(message) from error


@dataclass(slots=True)
class _Budget:
    """What one file may take, nested pickles included: instructions, and bytes made by them."""

    steps: int
    made: int

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            message = f"takes more than {MAX_STEPS} instructions"
            raise ModelRefused(message)

    def make(self, value: Any) -> Any:
        if isinstance(value, bytes):
            self.made -= len(value)
        if self.made < 0:
            message = f"makes more than {MAX_UNPACKED} bytes"
            raise ModelRefused(message)
        return value


_MARK = object()


class _Machine:
    """The stack machine; one for each pickle. Its methods are the instructions."""

    def __init__(self, file: io.BytesIO, budget: _Budget, nested: int = 0) -> None:
        self._file = file
        self._budget = budget
        self._nested = nested
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Follow the instructions to the end and give what is left on the stack."""
        while True:
            self._budget.step()
            code = self._file.read(1)
            if not code:
                message = "truncated: it ends before its last instruction"
                raise ModelRefused(message)
            name, read = _ARGUMENTS.get(code, ("", None))
            if name not in _STEPS:
                message = f"has the instruction {name or code!r}, which is not accepted"
                raise ModelRefused(message)
            argument = read(self._file) if read else None
            if name == "STOP":
                return self._stack.pop()
            _STEPS[name](self, argument)

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(bytes(value) if isinstance(value, bytearray) else value)

    def mark(self, _: object) -> None:
        """Begin a list of values."""
        self._stack.append(_MARK)

    def _since_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                message = "a mark is missing"
                raise ValueError(message)
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values

    def tuple_of(self, count: int | None) -> None:
        """Make a tuple of the last values, of all since the mark for None."""
        if count is None:
            self.push(tuple(self._since_mark()))
            return
        values = tuple(self._stack[-count:])
        if len(values) < count or any(value is _MARK for value in values):
            message = "a value is missing"
            raise ValueError(message)
        del self._stack[-count:]
        self.push(values)

    def extend(self, values: list[Any]) -> None:
        """Append to the list on top."""
        target = self._stack[-1]
        if isinstance(target, Unread):
            return
        if type(target) is not list:
            message = "appends to something that is no list"
            raise ModelRefused(message)
        target.extend(values)

    def append(self, _: object) -> None:
        """Append one value."""
        self.extend([self._stack.pop()])

    def appends(self, _: object) -> None:
        """Append all values since the mark."""
        self.extend(self._since_mark())

    def set_items(self, pairs: list[Any]) -> None:
        """Set keys and values, in turn, of the dict on top."""
        target = self._stack[-1]
        if isinstance(target, Unread):
            return
        if type(target) is not dict:
            message = "sets items of something that is no dict"
            raise ModelRefused(message)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # The hash of nested tuples can take for ever.
            if type(key) not in (str, int, bool, type(None)):
                message = f"a dict with a key of type {type(key).__name__}"
                raise ModelRefused(message)
            target[key] = value

    def set_item(self, _: object) -> None:
        """Set one item."""
        value, key = self._stack.pop(), self._stack.pop()
        self.set_items([key, value])

    def set_items_since_mark(self, _: object) -> None:
        """Set all items since the mark."""
        self.set_items(self._since_mark())

    def pop(self, _: object) -> None:
        """Drop the top."""
        self._stack.pop()

    def put(self, index: int | None) -> None:
        """Remember the top."""
        place = len(self._memo) if index is None else index
        top = self._stack[-1]
        if isinstance(top, Shell):
            top.memo.append(place)
        self._memo[place] = top

    def get(self, index: int) -> None:
        """Give what was remembered."""
        self.push(self._memo[index])

    def global_(self, argument: str) -> None:
        """Look up a global whose module and name stand in the instruction."""
        module, _, name = argument.partition(" ")
        self.push(look_up(module, name))

    def stack_global(self, _: object) -> None:
        """Look up a global whose module and name are on the stack."""
        name, module = self._stack.pop(), self._stack.pop()
        self.push(look_up(module, name))

    def make(self, _: object) -> None:
        """Make what a function or class of the list would have made."""
        arguments, function = self._stack.pop(), self._stack.pop()
        self.push(self._budget.make(make(function, arguments)))

    def build(self, _: object) -> None:
        """Give the object on top its state."""
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Captured):
            target.state = state
        elif isinstance(target, Shell):
            self._stack[-1] = value = self._finish(target, state)
            for place in target.memo:
                self._memo[place] = value
        elif not isinstance(target, Unread):
            message = "sets the state of something that has none"
            raise ModelRefused(message)

    def _finish(self, shell: Shell, state: Any) -> Any:
        if shell.of == "dtype":
            return make_dtype(shell.arguments[0], state)
        if shell.of == "_reconstruct":
            _, shape, dtype, fortran, content = state
            return make_array(content, dtype, shape, "F" if fortran else "C")
        return self._joblib_array(state)

    def _joblib_array(self, state: dict[str, Any]) -> Any:
        """Read the block of bytes that stands in a joblib file after its description."""
        dtype, shape = as_dtype(state["dtype"]), state["shape"]
        if dtype.hasobject:
            if self._nested >= _MAX_NESTED:
                message = "nests pickles too deeply"
                raise ModelRefused(message)
            return _Machine(self._file, self._budget, self._nested + 1).run()
        if state.get("numpy_array_alignment_bytes") is not None:
            self._file.read(self._file.read(1)[0])
        content = self._file.read(size_of(shape) * dtype.itemsize)
        return make_array(content, dtype, shape, state["order"])


_ARGUMENTS = {
    op.code.encode("latin-1"): (op.name, op.arg.reader if op.arg else None)
    for op in pickletools.opcodes
}

_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)

_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_LITERALS, _Machine.push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _machine, _argument: None),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.make),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.tuple_of(None),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items_since_mark,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "BUILD": _Machine.build,
}
"""The instructions that are accepted; the others of `pickletools.opcodes` are refused."""
