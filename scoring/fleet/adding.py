"""A detector on its way into a fleet: its numbers, held against the detector itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from scoring.detectors import Array, Kind, Shape, decide, is_anomaly
from scoring.errors import ModelRefused
from scoring.fleet.attributes import Captured
from scoring.fleet.compiling import Compiled, compile_detector
from scoring.fleet.kinds import build_detector, chosen
from scoring.fleet.matching import Columns
from scoring.fleet.payloads import decide_estimator, load_payload, save_payload
from scoring.fleet.reference import reference_decisions

TOLERANCE = 1e-10
"""A compiled model may differ from its estimator by this part of its largest decision.

A tenth of what is promised for every row: the model is tried on some.
"""

_PROBES = 12
"""Rows of each of three spreads that a model is tried on."""


@dataclass(frozen=True, slots=True)
class Model:
    """One sensor's model, ready to be written into a fleet.

    Attributes
    ----------
    detector
        A fitted estimator, or what `prepare` made of one.
    source
        Where it came from, in words that do not depend on the machine: it goes into the version.
    trained_at
        Aware, None if not known.
    """

    device: str
    sensor: str
    detector: Any
    source: str = ""
    trained_at: datetime | None = None


class NotNumbers(Exception):
    """A detector that can only be kept as an estimator, where none may be built."""


def prepare(detector: Any, columns: Columns, *, may_build: bool = True) -> Compiled:
    """Compile a detector and make sure that the result decides as the detector does.

    One whose numbers do not agree with it rides along as a payload; so does one of a kind that has
    no numbers here. One that was read from a file is not asked for its decisions, but they are
    worked out from its attributes.

    Parameters
    ----------
    detector
        A fitted estimator, a captured one, or a compiled one (checked when it was compiled).
    columns
        How its columns are found among the fleet's features.
    may_build
        Whether an estimator may be built of what was read from a file.

    Raises
    ------
    ModelRefused
        It takes other features, is not fitted, is no detector, or cannot be saved.
    NotNumbers
        An estimator would have to be built, and may not.
    """
    if isinstance(detector, Compiled):
        _check_width(detector.shape, columns)
        return detector
    detector = chosen(detector)
    compiled = compile_detector(detector)
    if compiled is not None:
        shape = replace(compiled.shape, columns=columns.of(detector))
        _check_width(shape, columns)
        for form in _forms(replace(compiled, shape=shape)):
            if agrees(form, detector, ask=not isinstance(detector, Captured)):
                return form
    if isinstance(detector, Captured):
        if not may_build:
            raise NotNumbers
        detector = build_detector(detector)
    return as_payload(save_payload(detector), columns)


def _forms(compiled: Compiled) -> Iterator[Compiled]:
    """Give the quick form, and for a one-class SVM the one that adds as libsvm does."""
    yield compiled
    if compiled.shape.kind is Kind.ONE_CLASS_SVM:
        kernel = compiled.shape.kernel.partition("_")[0] + "_exact"
        yield replace(compiled, shape=replace(compiled.shape, kernel=kernel))


def as_payload(data: bytes, columns: Columns) -> Compiled:
    """Take a skops file along as it is, after a trial of the estimator in it.

    Raises
    ------
    ModelRefused
        It is no detector, takes other features, or fails on plain numbers.
    """
    estimator = load_payload(data)
    places = columns.of(estimator)
    taken = len(places or columns.features)
    width = int(getattr(estimator, "n_features_in_", taken))
    name = type(estimator).__name__
    shape = Shape(Kind.PAYLOAD, "", width, 0, columns=places)
    _check_width(shape, columns)
    try:
        decide_estimator(estimator, np.ones((2, width)))
    except Exception as error:
        message = f"{name} does not score: {type(error).__name__}: {error}"
        raise ModelRefused(message) from error
    return Compiled(shape, np.empty(0), None, {"estimator": name}, data)


def _check_width(shape: Shape, columns: Columns) -> None:
    wanted = len(shape.columns or columns.features)
    if shape.features != wanted:
        message = f"{shape.features} features where the fleet has {wanted}"
        raise ModelRefused(message)


def agrees(compiled: Compiled, detector: Any, *, ask: bool) -> bool:
    """Whether the numbers decide as the detector does: to `TOLERANCE`, and every label.

    Parameters
    ----------
    ask
        The detector itself; else its attributes are worked out by definition.
    """
    # By definition is slow: fewer rows have to do.
    x = probes(compiled)[:: 1 if ask else 3]
    decisions = decide(compiled.shape, compiled.parameters[None], x.T[None])[0]
    labels = is_anomaly(compiled.shape.kind, decisions)
    if ask:
        expected, wanted = decide_estimator(detector, x)
    else:
        expected = reference_decisions(detector, x)
        wanted = is_anomaly(compiled.shape.kind, expected)
    # The far third apart: a polynomial is huge there, and would excuse anything near by.
    far = len(x) * 2 // 3
    return bool((labels == wanted).all()) and all(
        _close(decisions[some], expected[some]) for some in (slice(far), slice(far, None))
    )


def _close(decisions: Array, expected: Array) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.abs(decisions - expected).max() <= TOLERANCE * np.abs(expected).max())


def probes(compiled: Compiled) -> Array:
    """Rows to try a model on: near what it was trained on, further off, and far away.

    Gives shape (rows, features); the same rows for the same model.
    """
    f = compiled.shape.features
    offset, divisor = compiled.parameters[:f], compiled.parameters[f : 2 * f]
    anchors, width = _anchors(compiled.shape, compiled.parameters[2 * f :])
    random = np.random.default_rng(0)
    spread = np.maximum(anchors.std(axis=0), width)
    near = anchors[random.integers(len(anchors), size=3 * _PROBES)]
    steps = np.repeat([0.0, 0.5, 4.0], _PROBES)[:, None]
    z: Array = near + steps * spread * random.normal(size=near.shape)
    x: Array = z * divisor + offset
    return x


def _anchors(shape: Shape, numbers: Array) -> tuple[Array, Array | float]:
    """Points that a model is about, shape (points, features), and the least to go off them."""
    f = shape.features
    if shape.kind is Kind.ONE_CLASS_SVM:
        vectors = numbers[4 : 4 + f * shape.units].reshape(f, shape.units).T
        # A single support vector has no spread of its own, but rbf has a width.
        width = numbers[0] ** -0.5 if shape.kernel.startswith("rbf") and numbers[0] > 0 else 0.1
        return vectors[numbers[-shape.units :] != 0], float(width)
    if shape.kind is Kind.ELLIPTIC_ENVELOPE:
        precision = np.diag(numbers[1 + f :].reshape(f, f))
        return numbers[None, 1 : 1 + f], 1.0 / np.sqrt(np.where(precision > 0, precision, 1.0))
    feature, threshold, _ = numbers[3 + shape.trees :].reshape(3, shape.units)
    points = [_quantiles(threshold[feature == column]) for column in range(f)]
    return np.stack(points, axis=1), 0.0


def _quantiles(values: Array) -> Array:
    return np.quantile(values, np.linspace(0, 1, 9)) if len(values) else np.zeros(9)
