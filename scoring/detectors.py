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

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from scoring.kernels import Svms, decide_svms

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

PADDING = 8
"""Support vectors are padded to multiples of this many, so that models can share a shape."""

DEEPEST = 256
"""Levels of a tree; scikit-learn grows them to the logarithm of the samples."""

_FOREST_ROWS = 1024
"""Rows sent through a forest at a time: their places in the trees stay in a core's cache."""


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
    columns
        Where the model's features stand among the fleet's, in the model's own order: it decides on
        rows as it was fitted on, to the last bit. Empty: all of the fleet's, in their order.
    """

    kind: Kind
    kernel: str
    features: int
    units: int
    trees: int = 0
    columns: tuple[int, ...] = ()

    def pick(self, x: Array) -> Array:
        """Return the rows that the model takes of `x`, shape (fleet's features, ...)."""
        return x[list(self.columns)] if self.columns else x

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


def _decide_svms(shape: Shape, numbers: Array, z: Array) -> Array:
    f, units = shape.features, shape.units
    gamma, coef0, degree, intercept = (numbers[:, i] for i in range(4))
    vectors = numbers[:, 4 : 4 + f * units].reshape(-1, f, units)
    dual = numbers[:, 4 + f * units :]
    return decide_svms(Svms(shape.kernel, gamma, coef0, degree, intercept, vectors, dual), z)


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
    root = np.sqrt(squared)
    return -(root * root) - numbers[:, 0, None]


# --- isolation forest: -2 ** (-mean path length / normaliser) - offset ------------------------


def _decide_forests(shape: Shape, numbers: Array, z: Array) -> Array:
    points = z.astype(np.float32)
    mean = np.empty((len(z), z.shape[2]))
    for model, row in enumerate(numbers):
        for start in range(0, z.shape[2], _FOREST_ROWS):
            stop = start + _FOREST_ROWS
            mean[model, start:stop] = _mean_path(shape, row, points[model, :, start:stop])
    # One value more: for an array of one, NumPy looks for simple exponents instead.
    decisions: Array = -(2.0 ** -np.append(mean, 1.0))[:-1].reshape(mean.shape)
    decisions -= numbers[:, 0, None]
    return decisions


def _mean_path(shape: Shape, numbers: Array, z: npt.NDArray[np.float32]) -> Array:
    """Return normalised path lengths, comparing float32 to float64 thresholds as scikit-learn."""
    normaliser, depth = numbers[1:3]
    if not 0 <= depth <= DEEPEST:
        message = f"a tree of {depth:g} levels"
        raise ValueError(message)
    roots = numbers[3 : 3 + shape.trees].astype(np.intp)
    feature, threshold, left = numbers[3 + shape.trees :].reshape(3, shape.units)
    leaf = feature < 0
    feature, left = feature.astype(np.intp), left.astype(np.intp)
    rows = np.arange(z.shape[1])
    node = np.repeat(roots[:, None], len(rows), axis=1)
    for _ in range(int(depth)):
        right = z[feature[node], rows] > threshold[node]
        node = np.where(leaf[node], node, left[node] + right)
    if not normaliser:
        return np.ones(len(rows))
    # Tree by tree, as scikit-learn adds them: a training row may stand exactly on the boundary.
    # A cumulative sum has this order by definition, whereas `sum` has it for several rows only.
    path: Array = np.cumsum(threshold[node], axis=0)[-1]
    path /= shape.trees * normaliser
    return path


_DECIDE = {
    Kind.ONE_CLASS_SVM: _decide_svms,
    Kind.ELLIPTIC_ENVELOPE: _decide_elliptic,
    Kind.ISOLATION_FOREST: _decide_forests,
}
