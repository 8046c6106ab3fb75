"""Fitted estimators turned into rows of parameters; see `scoring.detectors` for the layout.

Works on live scikit-learn estimators and on captured ones, of which only the attributes were read.
Neither is called here, and scikit-learn is not imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scoring.detectors import PADDING, Array, Kind, Shape
from scoring.errors import ModelRefused
from scoring.fleet.attributes import Attributes, attributes_of
from scoring.fleet.forests import flatten_forest, normaliser_of
from scoring.libsvm import Svm

WIDE = 1e3
"""From gamma |s|^2 of this much on, |z - s|^2 is not expanded: it would lose over 3 digits."""


_MOST_VECTORS = 100_000
"""Support vectors; a model of more takes longer to check than to train anew."""

_MOST_FEATURES = 10_000

_MOST_DEGREE = 1_000
"""Of a polynomial: it is computed by as many multiplications as the degree has digits."""

_PLANE = 2

_LONGEST, _LARGEST = 100, 2**53
"""Hyper-parameters that are kept for people: texts and numbers of bearable size."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A detector as the fleet stores it.

    Attributes
    ----------
    parameters
        Shape (stride,), as in `scoring.detectors`; empty for a payload.
    support
        Support vectors without padding, None for other kinds.
    hyper_parameters
        What the estimator was made with, for people.
    payload
        The skops file of a detector that has no parameters here, else empty.
    """

    shape: Shape
    parameters: Array
    support: int | None = None
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    payload: bytes = b""


def compile_detector(detector: object) -> Compiled | None:
    """Give the numbers of a detector of a known kind, or None if it is of another.

    Parameters
    ----------
    detector
        A OneClassSVM, EllipticEnvelope or IsolationForest, or a Pipeline that ends in one and has
        nothing before it but a StandardScaler.

    Raises
    ------
    ModelRefused
        It is of a known kind but not fitted, or its attributes contradict each other.
    """
    try:
        scaler, last = unwrap(detector)
        compiled = _COMPILERS[last[0]](last[1], scaler) if last else None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # Cut off: a hostile file's texts and numbers can be of any length.
        message = f"without usable attributes: {type(error).__name__}: {str(error)[:200]}"
        raise ModelRefused(message) from error
    if compiled is not None and not np.isfinite(compiled.parameters).all():
        message = "with an attribute that is not finite"
        raise ModelRefused(message)
    return compiled


def unwrap(detector: object) -> tuple[Attributes, tuple[str, Attributes] | None]:
    """Split into the scaler's attributes (none: empty) and the last step's name and attributes."""
    name, attributes = attributes_of(detector)
    steps = [detector]
    if name == "Pipeline":
        steps = [step[1] for step in attributes["steps"]]
        steps = [step for step in steps if step is not None and not isinstance(step, str)]
    match [attributes_of(step) for step in steps]:
        case [(last, found)] if last in _COMPILERS:
            return {}, (last, found)
        case [("StandardScaler", scaler), (last, found)] if last in _COMPILERS:
            if "scale_" not in scaler:
                message = "StandardScaler is not fitted"
                raise ValueError(message)
            return scaler, (last, found)
    return {}, None


def _scaling(scaler: Attributes, features: int) -> list[Array]:
    """Offset and divisor of each feature: 0 and 1 without a scaler."""
    mean = scaler.get("mean_") if scaler.get("with_mean", True) else None
    scale = scaler.get("scale_") if scaler.get("with_std", True) else None
    offset = np.zeros(features) if mean is None else _vector(mean, features)
    divisor = np.ones(features) if scale is None else _vector(scale, features)
    if not divisor.all():
        message = "StandardScaler divides by 0"
        raise ValueError(message)
    return [offset, divisor]


def as_numbers(value: Any) -> Array:
    """Take an array, and only an array: nested lists from a file can be of any size."""
    if not isinstance(value, np.ndarray):
        message = f"expected an array, found {type(value).__name__}"
        raise TypeError(message)
    return value.astype(np.float64)


def _vector(value: Any, length: int) -> Array:
    vector = as_numbers(value)
    if vector.shape != (length,):
        message = f"expected {length} numbers, found shape {vector.shape}"
        raise ValueError(message)
    return vector


def _matrix(value: Any) -> Array:
    matrix = as_numbers(value)
    if matrix.ndim != _PLANE or not matrix.size:
        message = f"expected rows of features, found shape {matrix.shape}"
        raise ValueError(message)
    return matrix


def _hyper(attributes: Attributes, *names: str) -> dict[str, Any]:
    """Keep plain values only: they are for people and go into a file."""
    found = {name: attributes.get(name) for name in names}
    plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in found.items()}
    return {name: value for name, value in plain.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _compile_svm(svm: Attributes, scaler: Attributes) -> Compiled | None:
    kernel = svm["kernel"]
    known = isinstance(kernel, str) and kernel in ("rbf", "linear", "poly", "sigmoid")
    if not known or svm.get("_sparse"):
        return None
    raw = svm_of(svm)
    if raw.gamma < 0 or not 0 <= raw.degree <= _MOST_DEGREE:
        message = "gamma below 0" if raw.gamma < 0 else f"degree {str(raw.degree)[:20]}"
        raise ValueError(message)
    vectors, dual = raw.vectors[raw.dual != 0], raw.dual[raw.dual != 0]
    count, f = vectors.shape
    if not 0 < count <= _MOST_VECTORS or f > _MOST_FEATURES:
        message = f"{count} support vectors of {f} features"
        raise ValueError(message)
    units = -(-count // PADDING) * PADDING
    block = np.zeros((f + 1, units))
    block[:f, :count], block[f, :count] = vectors.T, dual
    if kernel == "rbf" and raw.gamma * np.square(vectors).sum(axis=1).max() > WIDE:
        kernel = "rbf_wide"
    head = np.array([raw.gamma, raw.coef0, raw.degree, raw.intercept], dtype=np.float64)
    parameters = np.concatenate([*_scaling(scaler, f), head, block.ravel()])
    hyper = _hyper(svm, "kernel", "nu", "degree", "coef0") | {"gamma": raw.gamma}
    return Compiled(Shape(Kind.ONE_CLASS_SVM, kernel, f, units), parameters, count, hyper)


def svm_of(svm: Attributes) -> Svm:
    """Read the attributes of a OneClassSVM, which have had these names since scikit-learn 0.19."""
    vectors = _matrix(svm["support_vectors_"])
    dual = _vector(as_numbers(svm["_dual_coef_"]).ravel(), len(vectors))
    (intercept,) = as_numbers(svm["_intercept_"])
    numbers = float(svm["_gamma"]), float(svm["coef0"]), int(svm["degree"]), float(intercept)
    return Svm(svm["kernel"], *numbers, vectors, dual)


def _compile_elliptic(envelope: Attributes, scaler: Attributes) -> Compiled | None:
    if envelope.get("precision_") is None:
        # store_precision=False: scikit-learn inverts on every call.
        return None
    location = as_numbers(envelope["location_"]).ravel()
    f = len(location)
    precision = as_numbers(envelope["precision_"]).reshape(f, f)
    offset = np.array([float(envelope["offset_"])])
    parameters = np.concatenate([*_scaling(scaler, f), offset, location, precision.ravel()])
    hyper = _hyper(envelope, "contamination", "support_fraction")
    return Compiled(Shape(Kind.ELLIPTIC_ENVELOPE, "", f, 0), parameters, None, hyper)


def _compile_forest(forest: Attributes, scaler: Attributes) -> Compiled | None:
    f = int(forest["n_features_in_"])
    if not 0 < f <= _MOST_FEATURES:
        message = f"{f} features"
        raise ValueError(message)
    flat = flatten_forest(forest, f)
    head = np.array([float(forest["offset_"]), normaliser_of(forest), flat.depth])
    parts = [*_scaling(scaler, f), head, flat.roots, flat.nodes.ravel()]
    hyper = _hyper(forest, "n_estimators", "contamination", "max_features")
    shape = Shape(Kind.ISOLATION_FOREST, "", f, flat.nodes.shape[1], len(flat.roots))
    return Compiled(shape, np.concatenate(parts), None, hyper)


_COMPILERS = {
    "OneClassSVM": _compile_svm,
    "EllipticEnvelope": _compile_elliptic,
    "IsolationForest": _compile_forest,
}
