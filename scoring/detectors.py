"""Decision functions in float64, batched over models: the arithmetic of all known detectors.

A model of a known kind is one row of numbers, its *parameters*; models of equal `Shape` stand in
one matrix, shape (models, stride), and are decided together. Rows begin with the features' offset
and divisor (a StandardScaler, or 0 and 1), shapes (f,) and (f,). Then, for units ``u``:

==================  ==========================================================================
one-class SVM       gamma, coef0, degree, intercept; support vectors, shape (f, u); dual
                    coefficients, shape (u,). Padded units are zero in both.
elliptic envelope   offset; location, shape (f,); precision, shape (f, f)
isolation forest    offset, path length that normalises, depth of the deepest tree; the trees'
                    roots; for ``u`` nodes each: feature (-1 in a leaf), threshold (in a leaf: path
                    length), left child (the right one follows it)
==================  ==========================================================================

The sign here is scikit-learn's, positive for inliers; `anomaly_scores` is the one place where it
turns. Nothing here imports scikit-learn.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from scoring.libsvm import Svm, libsvm_decision

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

PADDING = 8
"""Support vectors are padded to multiples of this many, so that models can share a shape."""

NEAR_ZERO = 1e-10
"""Below this part of its summands a decision is worked out again in libsvm's own order.

The order of a sum moves its last digits, and a reading that equals a support vector may be decided
by them: libsvm's exact 0 is an anomaly, 1e-19 is not.
"""


_VANISHED = -700.0
"""Exponents are cut off here, at 1e-304: below, numpy's ``exp`` takes up to 100 times as long."""

_TINY = 1e-290
"""A decision nearer to 0 than this may owe its sign to `_VANISHED`."""


class Kind(StrEnum):
    """How a model is stored; all but `PAYLOAD` are numbers."""

    ONE_CLASS_SVM = "one_class_svm"
    ELLIPTIC_ENVELOPE = "elliptic_envelope"
    ISOLATION_FOREST = "isolation_forest"
    PAYLOAD = "skops"


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """What models must have in common to be decided together.

    Attributes
    ----------
    kernel
        Of a one-class SVM: rbf, linear, poly or sigmoid; else empty. ``rbf_wide`` is rbf where
        |z - s|^2 may not be expanded, because the expansion would cancel. ``_exact`` after any of
        them is for a model whose decisions are all but cancelled: libsvm's own sum, slow.
    units
        Support vectors with padding; nodes of a forest; 0 for an elliptic envelope.
    trees
        Of a forest, else 0.
    """

    kind: Kind
    kernel: str
    features: int
    units: int
    trees: int = 0

    @property
    def stride(self) -> int:
        """Length of a row of parameters."""
        scaler = 2 * self.features
        match self.kind:
            case Kind.ONE_CLASS_SVM:
                return scaler + 4 + (self.features + 1) * self.units
            case Kind.ELLIPTIC_ENVELOPE:
                return scaler + 1 + self.features + self.features**2
            case Kind.ISOLATION_FOREST:
                return scaler + 3 + self.trees + 3 * self.units
            case Kind.PAYLOAD:
                return 0


def decide(shape: Shape, parameters: Array, x: Array) -> Array:
    """Decision function of several models, each on its own rows.

    Parameters
    ----------
    parameters
        Shape (models, stride).
    x
        Raw feature values, shape (models, features, rows): NumPy is quick along the last axis, and
        rows are many where features are few. Finite.

    Returns
    -------
    Array
        Shape (models, rows); positive for inliers. Not finite where the numbers overflow.
    """
    f = shape.features
    with np.errstate(all="ignore"):
        z = x - parameters[:, :f, None]
        z /= parameters[:, f : 2 * f, None]
        return _DECIDE[shape.kind](shape, parameters[:, 2 * f :], z)


def anomaly_scores(decisions: Array) -> Array:
    """Turn the sign: higher is more anomalous from here on."""
    # Not a bare minus: a decision of 0 gives the score 0, not -0.
    return 0.0 - decisions


def is_anomaly(kind: Kind, decisions: Array) -> Flags:
    """Label decisions as the estimator's own ``predict`` does.

    An inlier of a one-class SVM has a decision above 0; the others take 0 for an inlier too.
    """
    return decisions <= 0 if kind is Kind.ONE_CLASS_SVM else decisions < 0


# --- one-class SVM: sum of dual_i * kernel(s_i, z) + intercept --------------------------------


def _decide_svm(shape: Shape, numbers: Array, z: Array) -> Array:
    f, units = shape.features, shape.units
    gamma, coef0, degree, intercept = (numbers[:, i, None, None] for i in range(4))
    vectors = numbers[:, 4 : 4 + f * units].reshape(-1, f, units)
    dual = numbers[:, 4 + f * units :, None]
    if shape.kernel.endswith("_exact"):
        decisions = np.zeros((len(z), z.shape[2]))
        _settle(shape, numbers, z, decisions, np.inf)
        return decisions
    match shape.kernel:
        case "rbf":
            kernel = _rbf(vectors, gamma, z)
        case "rbf_wide":
            kernel = _rbf_wide(vectors, gamma, z)
        case "linear":
            kernel = z.swapaxes(1, 2) @ vectors
        case "poly":
            kernel = (gamma * (z.swapaxes(1, 2) @ vectors) + coef0) ** degree
        case _:
            kernel = np.tanh(gamma * (z.swapaxes(1, 2) @ vectors) + coef0)
    decisions = (kernel @ dual)[:, :, 0]
    size = np.abs(intercept[:, :, 0])
    if not shape.kernel.startswith("rbf"):
        # These kernels have both signs and any size; near 0 their sum may have cancelled.
        size = size + (np.abs(kernel, out=kernel) @ np.abs(dual))[:, :, 0]
    decisions += intercept[:, :, 0]
    _settle(shape, numbers, z, decisions, NEAR_ZERO * size + _TINY)
    return decisions


def _rbf(vectors: Array, gamma: Array, z: Array) -> Array:
    """``exp(-gamma |z - s|^2)``, expanded so that one matrix product gives the exponent.

    That is ``(2 gamma z, -gamma |z|^2, 1) (s, 1, -gamma |s|^2)``.
    """
    models, f, rows = z.shape
    left, right = np.empty((models, f + 2, rows)), np.empty((models, f + 2, vectors.shape[2]))
    near, far = _norms(z, gamma), _norms(vectors, gamma)
    np.multiply(z, 2 * gamma, out=left[:, :f])
    left[:, f], left[:, f + 1] = near, 1.0
    right[:, :f], right[:, f], right[:, f + 1] = vectors, 1.0, far
    exponent: Array = left.swapaxes(1, 2) @ right
    # -gamma |z - s|^2 is at least twice this sum; seldom is it anywhere near `_VANISHED`.
    if not 2 * (near.min() + far.min()) > _VANISHED:
        np.maximum(exponent, _VANISHED, out=exponent)
    np.exp(exponent, out=exponent)
    return exponent


def _norms(points: Array, gamma: Array) -> Array:
    """``-gamma |p|^2`` of points in columns, shape (models, points)."""
    norms: Array = np.einsum("mfp,mfp->mp", points, points)
    norms *= -gamma[:, :, 0]
    return norms


def _rbf_wide(vectors: Array, gamma: Array, z: Array) -> Array:
    """``exp(-gamma |z - s|^2)`` from the differences: slower, exact for any spread."""
    exponent = np.zeros((len(z), z.shape[2], vectors.shape[2]))
    for feature in range(z.shape[1]):
        difference = z[:, feature, :, None] - vectors[:, feature, None, :]
        difference *= difference
        exponent += difference
    exponent *= -gamma
    np.maximum(exponent, _VANISHED, out=exponent)
    return np.exp(exponent, out=exponent)


def _settle(shape: Shape, numbers: Array, z: Array, decisions: Array, limit: Array | float) -> None:
    """Replace decisions that are all but 0 by libsvm's own, digit by digit."""
    close = np.abs(decisions) <= limit
    if not close.any():
        return
    for model, row in np.argwhere(close):
        svm = _unpack(shape, numbers[model])
        decisions[model, row] = libsvm_decision(svm, z[model, :, row].copy())


def _unpack(shape: Shape, numbers: Array) -> Svm:
    f, units = shape.features, shape.units
    gamma, coef0, degree, intercept = (float(number) for number in numbers[:4])
    vectors = numbers[4 : 4 + f * units].reshape(f, units).T
    dual = numbers[4 + f * units :]
    real = int(np.count_nonzero(dual))
    kernel = shape.kernel.partition("_")[0]
    return Svm(kernel, gamma, coef0, int(degree), intercept, vectors[:real], dual[:real])


# --- elliptic envelope: -(squared Mahalanobis distance) - offset ------------------------------


def _decide_elliptic(shape: Shape, numbers: Array, z: Array) -> Array:
    """Add up in SciPy's order: a training row may stand exactly on the boundary."""
    f = shape.features
    centred = z - numbers[:, 1 : 1 + f, None]
    precision = numbers[:, 1 + f :].reshape(-1, f, f)
    squared = np.zeros_like(z[:, 0])
    for i in range(f):
        inner = np.zeros_like(squared)
        for j in range(f):
            inner += centred[:, j] * precision[:, i, j, None]
        squared += centred[:, i] * inner
    # scikit-learn squares SciPy's root; the digits that this costs are part of the label.
    return -(np.sqrt(squared) ** 2) - numbers[:, 0, None]


# --- isolation forest: -2 ** (-mean path length / normaliser) - offset ------------------------


def _decide_forests(shape: Shape, numbers: Array, z: Array) -> Array:
    decisions: Iterable[Array] = map(
        _decide_forest, (shape,) * len(z), numbers, z.astype(np.float32)
    )
    return np.stack(list(decisions))


def _decide_forest(shape: Shape, numbers: Array, z: npt.NDArray[np.float32]) -> Array:
    """Decide by one forest, comparing float32 to float64 thresholds as scikit-learn does."""
    offset, normaliser, depth = numbers[:3]
    roots = numbers[3 : 3 + shape.trees].astype(np.intp)
    feature, threshold, left = numbers[3 + shape.trees :].reshape(3, shape.units)
    leaf = feature < 0
    feature, left = feature.astype(np.intp), left.astype(np.intp)
    rows = np.arange(z.shape[1])
    node = np.repeat(roots[:, None], len(rows), axis=1)
    for _ in range(int(depth)):
        right = z[feature[node], rows] > threshold[node]
        node = np.where(leaf[node], node, left[node] + right)
    # Tree by tree, as scikit-learn adds them: a training row may stand exactly on the boundary.
    path = np.add.reduce(threshold[node], axis=0)
    mean = path / (shape.trees * normaliser) if normaliser else np.ones(len(rows))
    decisions: Array = -(2.0**-mean) - offset
    return decisions


_DECIDE = {
    Kind.ONE_CLASS_SVM: _decide_svm,
    Kind.ELLIPTIC_ENVELOPE: _decide_elliptic,
    Kind.ISOLATION_FOREST: _decide_forests,
}
