"""Detectors of kinds that have no numbers here: skops files, read by `read_skops` and built anew.

The file that a fleet keeps is written from the estimator that was built: it holds nothing that was
not checked. It is checked again whenever it is opened.
"""

import io
import re
import warnings
from typing import Any

import numpy as np

from scoring.detectors import Array, Flags
from scoring.errors import ModelRefused
from scoring.fleet.kinds import build_detector
from scoring.fleet.skopsed import read_skops

_ADDRESS = re.compile(r'(?<="__id__": )\d+|\d+(?=\.npy\b)|\d+(?=\.npz\b)')
"""An object's address in a skops file: its id, or the name of its array."""


def save_payload(estimator: object) -> bytes:
    """Return an estimator as a skops file.

    Raises
    ------
    ModelRefused
        It cannot be saved, or could not be loaded again.
    """
    return _dumped(build_detector(read_skops(_dumped(estimator))))


def _dumped(estimator: object) -> bytes:
    import skops.io  # noqa: PLC0415 - brings scikit-learn, seconds

    try:
        data: bytes = skops.io.dumps(_without_trees(estimator))
    except Exception as error:
        message = f"{type(estimator).__name__} cannot be saved by skops: {str(error)[:100]}"
        raise ModelRefused(message) from error
    return _settled(data)


def _without_trees(estimator: Any) -> Any:
    """Return an estimator without its tree of neighbours, which is built anew from its rows.

    It counts how often it was asked, too: equal estimators would make unequal files.
    """
    import copy  # noqa: PLC0415 - not for scoring

    if type(estimator).__name__ == "Pipeline":
        estimator = copy.copy(estimator)
        estimator.steps = [(name, _without_trees(step)) for name, step in estimator.steps]
    elif type(estimator).__name__ == "LocalOutlierFactor" and hasattr(estimator, "_tree"):
        estimator = copy.copy(estimator)
        estimator._tree = None
    return estimator


def _settled(data: bytes) -> bytes:
    """Make equal files of equal estimators: skops writes memory addresses and times into them."""
    import zipfile  # noqa: PLC0415 - not for scoring

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = files.pop("schema.json").decode()
    addresses = dict.fromkeys(_ADDRESS.findall(schema))
    places = {address: str(place) for place, address in enumerate(addresses, 1)}
    schema = _ADDRESS.sub(lambda match: places[match[0]], schema)
    files = {
        _ADDRESS.sub(lambda match: places[match[0]], name): file for name, file in files.items()
    }
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name])
        archive.writestr(zipfile.ZipInfo("schema.json"), schema)
    return sink.getvalue()


def load_payload(data: bytes) -> Any:
    """Build the estimator that a skops file describes.

    Raises
    ------
    ModelRefused
        As `read_skops` and `build_detector`.
    """
    return build_detector(read_skops(data))


def decide_estimator(estimator: Any, x: Array) -> tuple[Array, Flags]:
    """Ask an estimator itself.

    Parameters
    ----------
    x
        Shape (rows, features).

    Returns
    -------
    tuple
        Decision function (or ``score_samples``, where it has no other), positive for inliers, and
        whether ``predict`` calls the row an outlier; both of shape (rows,).
    """
    decide = getattr(estimator, "decision_function", None) or estimator.score_samples
    with warnings.catch_warnings():
        # "X does not have valid feature names": ours are the fleet's.
        warnings.simplefilter("ignore")
        decisions = np.asarray(decide(x), dtype=np.float64).reshape(len(x))
        return decisions, np.asarray(estimator.predict(x)).reshape(len(x)) == -1
