"""Each kind's decision function worked out plainly, from attributes alone, one row at a time.

It shares no code with the batched forms of `scoring.detectors`, whose answers it is held against
where no live estimator can be asked: old pickles, of which only the attributes were read.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from scoring.detectors import Array
from scoring.fleet.compiling import svm_of, unwrap
from scoring.fleet.forests import average_path_length, nodes_of, normaliser_of
from scoring.libsvm import libsvm_decision


def reference_decisions(detector: object, x: Array) -> Array:
    """Decide rows one after the other.

    Parameters
    ----------
    detector
        Of a known kind, live or captured.
    x
        Raw features, shape (rows, features).
    """
    scaler, last = unwrap(detector)
    assert last is not None  # noqa: S101 - only called for known kinds
    name, attributes = last
    z = x
    if scaler.get("mean_") is not None and scaler.get("with_mean", True):
        z = z - scaler["mean_"]
    if scaler.get("scale_") is not None and scaler.get("with_std", True):
        z = z / scaler["scale_"]
    decide = _REFERENCES[name](attributes)
    return np.array([decide(row) for row in z])


def _svm(svm: Mapping[str, Any]) -> Callable[[Array], float]:
    return partial(libsvm_decision, svm_of(svm))


def _elliptic(envelope: Mapping[str, Any], z: Array) -> float:
    d = z - envelope["location_"]
    return -float(d @ envelope["precision_"] @ d) - float(envelope["offset_"])


def _forest(forest: Mapping[str, Any], z: Array) -> float:
    """Path lengths tree by tree, scikit-learn's ``IsolationForest`` by its definition."""
    total = 0.0
    row = z.astype(np.float32)
    for tree, columns in zip(forest["estimators_"], forest["estimators_features_"], strict=True):
        nodes, node, depth = nodes_of(tree), 0, 0
        while nodes["left_child"][node] >= 0:
            right = row[columns[nodes["feature"][node]]] > nodes["threshold"][node]
            node = nodes["right_child" if right else "left_child"][node]
            depth += 1
        total += depth + float(average_path_length(nodes["n_node_samples"][[node]])[0])
    normaliser = normaliser_of(forest)
    mean = total / (len(forest["estimators_"]) * normaliser) if normaliser else 1.0
    return float(-(2.0**-mean) - forest["offset_"])


_REFERENCES: dict[str, Callable[[Mapping[str, Any]], Callable[[Array], float]]] = {
    "OneClassSVM": _svm,
    "EllipticEnvelope": lambda attributes: partial(_elliptic, attributes),
    "IsolationForest": lambda attributes: partial(_forest, attributes),
}
