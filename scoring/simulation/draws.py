"""Random numbers that are the same on every platform, and in whatever order they are asked for.

They are raw bits of PCG64, whose stream NumPy guarantees; that of ``Generator.normal`` it does not.
"""

from collections.abc import Callable
from enum import IntEnum

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


class Purpose(IntEnum):
    """What numbers are drawn for: one purpose never shifts the draws of another."""

    PATTERNS = 0
    VICTIMS = 1
    PLACES = 2
    READINGS = 3
    DELIVERIES = 4


def uniform(seed: int, purpose: Purpose, index: int, size: int) -> F64:
    """Draw from [0, 1): the same numbers for the same arguments on every platform."""
    raw: npt.NDArray[np.uint64] = _bits(seed, purpose, index).random_raw(size)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def dice(seed: int, purpose: Purpose, index: int) -> Callable[[], float]:
    """Give a function that draws one number of [0, 1) at a time, as `uniform` would."""
    bits = _bits(seed, purpose, index)
    return lambda: (int(bits.random_raw()) >> 11) * 2.0**-53


def _bits(seed: int, purpose: Purpose, index: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence((seed, purpose, index)))
