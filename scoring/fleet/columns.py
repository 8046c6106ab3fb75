"""Arrow columns to NumPy and back without ``pa.array`` and ``to_numpy``.

Those import pandas wherever it is installed, half a second in a process that scores for a tenth.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scoring.detectors import Flags


def whole(column: pa.ChunkedArray) -> pa.Array:
    """Give a column as one array; ``combine_chunks`` copies even where there is but one chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def numbers(column: pa.Array) -> npt.NDArray[Any]:
    """View an array of numbers without nulls."""
    return np.from_dlpack(column)


def indices(column: pa.DictionaryArray) -> npt.NDArray[np.int32]:
    """Positions in a column's dictionary, -1 for null."""
    return _without_nulls(column.indices)


def positions(names: pa.Array, among: pa.Array) -> npt.NDArray[np.int32]:
    """Where each name stands in `among`, which are composed; -1 if it does not."""
    return _without_nulls(pc.index_in(composed(names), value_set=among))


def composed(names: pa.Array) -> pa.Array:
    """Return names in the form in which equal ones are equal: a Mac decomposes file names."""
    return pc.utf8_normalize(names.cast(pa.string()), form="NFC")


def _without_nulls(column: pa.Array) -> npt.NDArray[np.int32]:
    if column.null_count:
        column = pc.fill_null(column, pack(np.array([-1], dtype=np.int32))[0])
    return numbers(column).astype(np.int32, copy=False)


def pack(values: npt.NDArray[Any], missing: Flags | None = None) -> pa.Array:
    """Make an Arrow array of numbers or booleans.

    Parameters
    ----------
    missing
        Where there is null, shape (values,); None for nowhere.
    """
    valid = None if missing is None or not missing.any() else _bits(~missing)
    if values.dtype == np.bool_:
        return pa.Array.from_buffers(pa.bool_(), len(values), [valid, _bits(values)])
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(values)])


def _bits(flags: Flags) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def texts(values: Iterable[str]) -> pa.Array:
    """Make an Arrow array of strings."""
    encoded = [value.encode() for value in values]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    return pa.StringArray.from_buffers(
        len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))
    )


def choose(
    names: Sequence[str], picked: npt.NDArray[np.int32], missing: Flags | None = None
) -> Any:
    """Make a dictionary column of positions in a list of names."""
    return pa.DictionaryArray.from_arrays(pack(picked, missing), texts(names))
