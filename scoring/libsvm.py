"""The decision of a one-class SVM worked out as libsvm does it: one row, digit by digit.

Slow, and used where the last digits matter: for decisions that are all but 0, and to hold the
batched forms of `scoring.detectors` against where there is no live estimator to ask.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Number = TypeVar("Number", float, npt.NDArray[np.float64])


@dataclass(frozen=True, slots=True)
class Svm:
    """A one-class SVM as libsvm has it: vectors, shape (support vectors, features), in order."""

    kernel: str
    gamma: float
    coef0: float
    degree: int
    intercept: float
    vectors: Array
    dual: Array


def libsvm_decision(svm: Svm, z: Array) -> float:
    """Decision of one row in libsvm's order of operations, and with the C library's functions.

    Equal to scikit-learn's to the last digit in all but exotic cases. Slow. Every product of a row
    and a vector is a call of its own, so no other row has an influence.

    Parameters
    ----------
    z
        Scaled features, shape (features,).
    """
    kernel = _KERNELS[svm.kernel]
    vectors = np.ascontiguousarray(svm.vectors)
    total = 0.0
    for vector, dual in zip(vectors, svm.dual.tolist(), strict=True):
        total += dual * kernel(svm, vector, z)
    return total + svm.intercept


def power(base: Number, times: int) -> Number | float:
    """Multiply as libsvm's ``powi`` does, whose rounding is not that of ``pow``.

    Parameters
    ----------
    base
        A number, or an array of numbers, which is not changed.
    """
    result: Number | float = 1.0
    while times > 0:
        if times % 2:
            result = result * base
        base = base * base
        times //= 2
    return result


def _libsvm_rbf(svm: Svm, vector: Array, z: Array) -> float:
    difference = vector - z
    return math.exp(-svm.gamma * float(np.dot(difference, difference)))


def _libsvm_linear(_: Svm, vector: Array, z: Array) -> float:
    return float(np.dot(vector, z))


def _libsvm_poly(svm: Svm, vector: Array, z: Array) -> float:
    return power(svm.gamma * float(np.dot(vector, z)) + svm.coef0, svm.degree)


def _libsvm_sigmoid(svm: Svm, vector: Array, z: Array) -> float:
    return math.tanh(svm.gamma * float(np.dot(vector, z)) + svm.coef0)


_KERNELS = {
    "rbf": _libsvm_rbf,
    "linear": _libsvm_linear,
    "poly": _libsvm_poly,
    "sigmoid": _libsvm_sigmoid,
}
