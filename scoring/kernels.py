"""Decision functions of one-class SVMs, batched over models.

The decision of a row is the sum of ``dual_i kernel(s_i, z)`` over the support vectors, plus the
intercept. It depends on the row and its model only, bit for bit. Matrix products do not have this
property: BLAS computes the last rows of a block with another kernel, which adds in another order.
Therefore:

- Elementwise operations compute everything but sums. NumPy gives a value the same result at every
  position of an array, because it computes the end of an array with the same vector instructions
  (``power`` is the exception, and not used).
- A fixed tree of elementwise additions, `_total`, computes sums over support vectors, and sums
  over features are computed feature by feature.
- `_decide_rbf` does use matrix products, because they are several times as fast. It rounds their
  result to a grid that is much coarser than their error, so that the order of additions does not
  matter; a row that is too near to the middle between two points of the grid is computed again
  without matrix products, and rounded to the same grid.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scoring.libsvm import Svm, libsvm_decision, power

Array = npt.NDArray[np.float64]

NEAR_ZERO = 1e-10
"""Below this part of its summands a decision is worked out again in libsvm's own order.

The order of a sum moves its last digits, and a reading that equals a support vector may be decided
by them: libsvm's exact 0 is an anomaly, 1e-19 is not.
"""

_TILE = 131_072
"""Kernel values computed at a time, 1 MB: about what a core's second-level cache holds."""

_VANISHED = -700.0
"""Exponents are cut off here, at 1e-304: below, numpy's ``exp`` takes up to 100 times as long."""

_TINY = 1e-290
"""A decision nearer to 0 than this may owe its sign to `_VANISHED`."""

_GRID = -35
"""Binary digits of the grid of `_decide_rbf`, in terms of the intercept: 3e-11 of it."""

_ROUNDOFF = 2.0**-53
"""Largest relative error of one operation."""


@dataclass(frozen=True, slots=True)
class Svms:
    """One-class SVMs of equal shape.

    Attributes
    ----------
    gamma, coef0, degree, intercept
        Shape (models,).
    vectors, dual
        Shapes (models, features, units) and (models, units); padded units are zero in both.
    """

    kernel: str
    gamma: Array
    coef0: Array
    degree: Array
    intercept: Array
    vectors: Array
    dual: Array

    def single(self, model: int) -> Svm:
        """Return one of them without padding."""
        real = int(np.count_nonzero(self.dual[model]))
        return Svm(
            self.kernel.partition("_")[0],
            float(self.gamma[model]),
            float(self.coef0[model]),
            int(self.degree[model]),
            float(self.intercept[model]),
            self.vectors[model, :, :real].T,
            self.dual[model, :real],
        )


def decide_svms(svms: Svms, z: Array) -> Array:
    """Return the decisions of several models, each on its own rows.

    Parameters
    ----------
    z
        Scaled features, shape (models, features, rows).

    Returns
    -------
    Array
        Shape (models, rows); positive for inliers.
    """
    if svms.kernel.endswith("_exact"):
        decisions = np.zeros((len(z), z.shape[2]))
        _settle(svms, z, decisions, np.inf)
        return decisions
    size = np.abs(svms.intercept)[:, None]
    match svms.kernel:
        case "rbf":
            decisions = _decide_rbf(svms, z)
        case "linear":
            decisions, summands = _decide_linear(svms, z)
            size = size + summands
        case _:
            decisions, summands = _decide_tiles(svms, z)
            # Kernel values of rbf are positive; the others can cancel and make a sum near 0.
            size = size if svms.kernel == "rbf_wide" else size + summands
    decisions += svms.intercept[:, None]
    _settle(svms, z, decisions, NEAR_ZERO * size + _TINY)
    return decisions


def _settle(svms: Svms, z: Array, decisions: Array, limit: Array | float) -> None:
    """Replace decisions that are all but 0 by libsvm's own, digit by digit."""
    close = np.abs(decisions) <= limit
    if not close.any():
        return
    for model, row in np.argwhere(close).tolist():
        decisions[model, row] = libsvm_decision(svms.single(model), z[model, :, row].copy())


# --- kernels without matrix products ----------------------------------------------------------


def _decide_linear(svms: Svms, z: Array) -> tuple[Array, Array]:
    """Return sums without intercept and a bound of their summands' sizes: (sum dual_i s_i) z."""
    terms = svms.vectors * svms.dual[:, None, :]
    sizes = _total(np.abs(terms))
    weights = _total(terms)
    sums, summands = np.zeros((2, len(z), z.shape[2]))
    for feature in range(z.shape[1]):
        sums += weights[:, feature, None] * z[:, feature]
        summands += sizes[:, feature, None] * np.abs(z[:, feature])
    return sums, summands


def _decide_tiles(svms: Svms, z: Array) -> tuple[Array, Array]:
    """Return sums without intercept, and the sums of their summands' sizes."""
    sums, summands = np.empty((2, len(z), z.shape[2]))
    for models, parts in _tiles(len(z), z.shape[2], svms.dual.shape[1]):
        for rows in parts:
            terms = _kernel_values(svms, models, z[models, :, rows])
            terms *= svms.dual[models, None, :]
            if svms.kernel != "rbf_wide":
                summands[models, rows] = _total(np.abs(terms))
            sums[models, rows] = _total(terms)
    return sums, summands


def _kernel_values(svms: Svms, models: slice, z: Array) -> Array:
    """Return the values of a kernel, shape (models, rows, units)."""
    vectors, gamma = svms.vectors[models], svms.gamma[models]
    if svms.kernel == "rbf_wide":
        return _rbf(vectors, gamma, z)
    values = _table(len(z), z.shape[2], vectors.shape[2])
    product = np.empty_like(values)
    for feature in range(z.shape[1]):
        np.multiply(z[:, feature, :, None], vectors[:, feature, None, :], out=product)
        values += product
    values *= gamma[:, None, None]
    values += svms.coef0[models, None, None]
    if svms.kernel == "sigmoid":
        return np.tanh(values, out=values)
    for degree in np.unique(svms.degree[models]).tolist():
        same = svms.degree[models] == degree
        values[same] = power(values[same], int(degree))
    return values


def _rbf(vectors: Array, gamma: Array, z: Array) -> Array:
    """Return ``exp(-gamma |z - s|^2)`` from the differences, shape (models, rows, units).

    Slower than the expanded form, but its error is small for any spread of the vectors.
    """
    exponent = _table(len(z), z.shape[2], vectors.shape[2])
    difference = np.empty_like(exponent)
    for feature in range(z.shape[1]):
        np.subtract(z[:, feature, :, None], vectors[:, feature, None, :], out=difference)
        difference *= difference
        exponent += difference
    exponent *= -gamma[:, None, None]
    np.maximum(exponent, _VANISHED, out=exponent)
    return np.exp(exponent, out=exponent)


def _table(models: int, rows: int, units: int) -> Array:
    """Return zeros of shape (models, rows, units), the longer of rows and units last in memory."""
    if rows < units:
        return np.zeros((models, rows, units))
    return np.zeros((models, units, rows)).swapaxes(1, 2)


def _total(terms: Array) -> Array:
    """Return the sums over the last axis, in an order that its length alone determines.

    NumPy's own ``sum`` picks an order by the shape and the layout of the whole array. Here, the
    second half of the terms is added to the first half, elementwise, until one is left.

    Parameters
    ----------
    terms
        Shape (..., terms); overwritten.
    """
    count = terms.shape[-1]
    while count > 1:
        half = (count + 1) // 2
        terms[..., : count - half] += terms[..., half:count]
        count = half
    return terms[..., 0].copy()


def _tiles(
    models: int, rows: int, units: int, width: int = 1
) -> Iterator[tuple[slice, list[slice]]]:
    """Cut models, and their rows, into tiles that stay in a core's cache.

    Parameters
    ----------
    units
        Kernel values of a row.
    width
        Numbers copied of each unit of a model.
    """
    step = max(1, min(rows, _TILE // units))
    parts = [slice(j, min(j + step, rows)) for j in range(0, rows, step)]
    at_once = max(1, _TILE // (max(step, width) * units))
    for i in range(0, models, at_once):
        yield slice(i, min(i + at_once, models)), parts


# --- rbf with matrix products -----------------------------------------------------------------


def _decide_rbf(svms: Svms, z: Array) -> Array:
    """Return sums without intercept, as `_rbf` and `_total` give them, rounded to a grid.

    The exponent ``-gamma |z - s|^2`` is expanded, so that matrix products give all of them and
    their sum. Both ways of computing a sum differ by less than `_disagreement` of it. Unless a sum
    is nearer than that to the middle between two points of the grid, both round to the same
    point, whatever the order of additions in the product. If it is nearer, it is computed again
    as `_rbf` and `_total` do. So this is always their sum, rounded.

    The grid depends on the model only. It is fine enough for `NEAR_ZERO`, and so coarse that
    usually one row in several hundred is computed again. Where gamma |s|^2 is small, sums hardly
    differ between rows, and the grid is finer.
    """
    near = _norms(z, svms.gamma)
    sums, farthest, most = _expanded_sums(svms, z, near)
    scale = np.abs(svms.intercept)[:, None] * np.fmin(farthest, 1.0)
    grid = np.ldexp(1.0, np.frexp(np.maximum(scale, _TINY))[1] + (_GRID - 1))
    sums /= grid
    steps = np.rint(sums)
    distance = np.abs(np.subtract(sums, steps, out=sums), out=sums)
    distance += _disagreement(svms, near, farthest, steps, most / grid)
    # Not `greater_equal`: what is not a number is in doubt too.
    doubt = ~np.less(distance, 0.5)
    if doubt.any():
        _compute_again(svms, z, doubt, steps, grid)
    steps *= grid
    return steps


def _disagreement(svms: Svms, near: Array, farthest: Array, steps: Array, most: Array) -> Array:
    """Bound the difference between sums computed with matrix products and without.

    Let r be the roundoff, f the number of features, u that of units, and N = gamma |z|^2 and
    F = gamma |s|^2 of one support vector. A sum of n products is off by at most n r times the sum
    of their sizes, in any order and with or without fused operations (Higham, *Accuracy and
    Stability of Numerical Algorithms*, 2002, section 3.1).

    - The sizes of the f + 2 products of an expanded exponent add up to at most
      P = (sqrt N + sqrt F)^2, and their factors are off by at most (f + 1) r. So the exponent is
      off by at most (2 f + 3) r P. The exponent from the differences is at most P, and f + 3
      operations lead to it. Together: (3 f + 6) r P.
    - The absolute error of an exponent is the relative error of its ``exp``, which itself adds up
      to 4 units in the last place: 16 r for both.
    - Matrix products of u terms add u r, and multiplying and `_total` add (1 + log2 u) r.

    That is a bound relative to a term, and as all terms are positive, one relative to their sum.
    Vectors with sqrt F > sqrt N + 2 would make it far too large. Their terms are less than
    dual e^-4, and their error is largest where sqrt F is sqrt N + 2, so what they add is at most
    this bound at sqrt F = sqrt N + 2, relative to e^-4 times the sum of all dual coefficients.

    The coefficients are rounded up, which covers products of errors as long as the relative bound
    is below 1e-3. Above that, 512 steps more turn every row into one in doubt; otherwise they
    cover what was rounded off the steps.

    Parameters
    ----------
    near, farthest, most
        N; the largest F of a model; the sum of its dual coefficients in steps of the grid.
    steps
        Sums in steps of the grid, rounded.

    Returns
    -------
    Array
        In steps of the grid, shape (models, rows).
    """
    features, units = svms.vectors.shape[1:]
    root, reach = np.sqrt(-near), np.sqrt(farthest)
    beyond = reach > root + 2.0
    size = root + np.where(beyond, root + 2.0, reach)
    relative = (3 * features + 8) * _ROUNDOFF * np.square(size) + (units + 64) * _ROUNDOFF
    # Times 0 rather than left out: what is not a number makes the bound not a number.
    bound: Array = relative * (steps + 512.0 + most * np.where(beyond, np.exp(-4.0), 0.0))
    return bound


def _expanded_sums(svms: Svms, z: Array, near: Array) -> tuple[Array, Array, Array]:
    """Compute sums by matrix products, so that their last digits depend on what is around them.

    The exponent is ``(2 gamma z, -gamma |z|^2, 1) (s, 1, -gamma |s|^2)``.

    Returns
    -------
    tuple
        Sums, shape (models, rows); the largest ``gamma |s|^2`` of each model, and the sum of its
        dual coefficients (not a number where one of them is negative), shape (models, 1).
    """
    models, f, rows = z.shape
    units = svms.dual.shape[1]
    left = np.empty((f + 2, models, rows)).swapaxes(0, 1)
    np.multiply(z, 2 * svms.gamma[:, None, None], out=left[:, :f])
    left[:, f], left[:, f + 1] = near, 1.0
    sums, farthest, most = np.empty((models, rows)), np.empty((models, 1)), np.empty((models, 1))
    ones = np.ones(units)
    memory = np.empty(max(_TILE, units))
    for some, parts in _tiles(models, rows, units, f + 2):
        vectors, dual = svms.vectors[some], svms.dual[some]
        # Terms of both signs could cancel, and then no bound relative to their sum would hold.
        most[some, 0] = np.matmul(dual, ones) if dual.min() >= 0 else np.nan
        far = _norms(vectors, svms.gamma[some])
        farthest[some, 0] = -far.min(axis=1)
        right = np.empty((len(far), f + 2, units))
        right[:, :f], right[:, f], right[:, f + 1] = vectors, 1.0, far
        for part in parts:
            points = left[some, :, part].swapaxes(1, 2)
            shape = (*points.shape[:2], units)
            exponent = memory[: math.prod(shape)].reshape(shape)
            np.matmul(points, right, out=exponent)
            # -gamma |z - s|^2 is at least twice this; seldom is it anywhere near `_VANISHED`.
            if not 2 * (near[some, part].min() + far.min()) > _VANISHED:
                np.maximum(exponent, _VANISHED, out=exponent)
            np.exp(exponent, out=exponent)
            sums[some, part] = np.matmul(exponent, dual[:, :, None])[:, :, 0]
    return sums, farthest, most


def _norms(points: Array, gamma: Array) -> Array:
    """Return ``-gamma |p|^2`` of points in columns, shape (models, points)."""
    norms = np.square(points[:, 0])
    squares = np.empty_like(norms)
    for feature in range(1, points.shape[1]):
        norms += np.square(points[:, feature], out=squares)
    norms *= -gamma[:, None]
    return norms


def _compute_again(
    svms: Svms, z: Array, doubt: npt.NDArray[np.bool_], steps: Array, grid: Array
) -> None:
    """Replace steps of the grid by those of sums that are computed without matrix products."""
    models, rows = np.nonzero(doubt)
    at_once = max(1, _TILE // svms.dual.shape[1])
    for i in range(0, len(models), at_once):
        model, row = models[i : i + at_once], rows[i : i + at_once]
        terms = _rbf(svms.vectors[model], svms.gamma[model], z[model, :, row][:, :, None])
        terms *= svms.dual[model, None, :]
        steps[model, row] = np.rint(_total(terms)[:, 0] / grid[model, 0])
