"""Rows of a part put together by model, and cut into blocks that are decided at once."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scoring.detectors import Array, Flags, Shape
from scoring.fleet.columns import indices, numbers, whole
from scoring.fleet.file import Fleet

Indices = npt.NDArray[np.intp]

_ROWS = 65_536
"""Rows decided at a time, of one model or several: 3 MB of five features and their results."""

_NUMBERS = 500_000
"""Parameters of models decided at a time, 4 MB: they are copied where models are not adjacent."""

_FEW = 8
"""So many different row counts are taken as they are, each in blocks of its own."""


@dataclass(frozen=True, slots=True)
class Work:
    """The rows of a part that have a model, put together by model.

    Attributes
    ----------
    rows
        Positions in the part: a model's rows together, models in the order of the fleet's file. A
        slice where they are consecutive: a view then, and no copy.
    x
        Their features, shape (features, rows); 0 in rows that are not valid.
    valid
        Whether all features of a row are finite, shape (rows,).
    models, start, count
        The models that have rows, and where in `rows` theirs begin, and how many they are.
    """

    rows: Indices | slice
    x: Array
    valid: Flags
    models: Indices
    start: Indices
    count: Indices


def gather(fleet: Fleet, part: pa.Table) -> Work:
    """Find the model of every row of a part, and put the rows that have one together by model."""
    models, first, length = _runs(fleet, part)
    order = np.argsort(models, kind="stable")
    order = order[np.searchsorted(models[order], 0) :]
    models, first, length = models[order], first[order], length[order]
    ends = np.cumsum(length)
    total = int(length.sum())
    rows = _rows(first - (ends - length), length, total)
    x = np.empty((len(fleet.features), total))
    for column, feature in zip(x, fleet.features, strict=True):
        column[:] = numbers(whole(part[feature]))[rows]
    valid: Flags = np.logical_and.reduce(np.isfinite(x), axis=0)
    # Rows that cannot be scored are decided too, and not looked at: cheaper than to cut them out.
    if not valid.all():
        x[:, ~valid] = 0.0
    heads = np.flatnonzero(np.diff(models, prepend=-1))
    start = (ends - length)[heads]
    return Work(rows, x, valid, models[heads], start, np.diff(start, append=total))


def _rows(shift: Indices, length: Indices, total: int) -> Indices | slice:
    """Positions of rows in runs that are each moved by so much."""
    if total and (shift == shift[0]).all():
        return slice(int(shift[0]), int(shift[0]) + total)
    return np.repeat(shift, length) + np.arange(total)


def _runs(fleet: Fleet, part: pa.Table) -> tuple[Indices, Indices, Indices]:
    """Model (-1: none), first row and length of every run of rows of one sensor."""
    columns = [whole(part[name]) for name in ("device", "sensor")]
    codes = [indices(column) for column in columns]
    changes = (codes[0][1:] != codes[0][:-1]) | (codes[1][1:] != codes[1][:-1])
    first = np.flatnonzero(np.concatenate([[part.num_rows > 0], changes]))
    names = [column.dictionary for column in columns]
    models = fleet.locate(*names, *(code[first] for code in codes))
    return models, first, np.diff(first, append=part.num_rows)


def stretch(work: Work, models: Indices, rows: Indices) -> Indices | slice:
    """Say where rows of models stand in `Work`, one model's after the other's.

    Parameters
    ----------
    models
        Places in ``work.models``, ascending.
    rows
        Which of their rows, counted from 0; the last one again where a model has no more.

    Returns
    -------
    slice or Indices
        A slice where the rows of all models follow each other.
    """
    start, last = work.start[models], work.count[models] - 1
    if (last >= rows[-1]).all() and (np.diff(start) == len(rows)).all():
        first = int(start[0] + rows[0])
        return slice(first, first + len(models) * len(rows))
    where: Indices = start[:, None] + np.minimum(rows, last[:, None])
    return where.ravel()


def blocks(count: Indices, shape: Shape) -> Iterator[tuple[Indices, Indices]]:
    """Cut a group's work into blocks that are decided at once.

    Parameters
    ----------
    count
        Rows of each model.

    Yields
    ------
    tuple
        Positions of models in `count`, and which of their rows, counted from 0: beyond the last
        one for models with fewer rows than others of the block.
    """
    padded = _round_up(count)
    for most in np.unique(padded).tolist():
        chosen = np.flatnonzero(padded == most)
        step = min(most, _ROWS)
        at_once = max(1, min(_ROWS // step, _NUMBERS // shape.stride))
        for i in range(0, len(chosen), at_once):
            for j in range(0, most, step):
                yield chosen[i : i + at_once], np.arange(j, min(j + step, most))


def _round_up(count: Indices) -> Indices:
    """Bring row counts to few different values, each at most an eighth larger."""
    if len(np.unique(count)) <= _FEW:
        return count
    step = 2 ** np.maximum(np.log2(np.maximum(count, 1)).astype(np.intp) - 3, 0)
    padded: Indices = -(-count // step) * step
    return padded
