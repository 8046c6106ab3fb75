"""Detectors of kinds that have no numbers here: skops files, loaded from trusted types only."""

import copy
import io
import re
import warnings
from functools import lru_cache
from typing import Any

import numpy as np

from scoring.detectors import Array, Flags
from scoring.errors import ModelRefused
from scoring.fleet.compiling import as_numbers, svm_of
from scoring.fleet.forests import flatten_forest

MAX_UNPACKED = 256 * 2**20
"""A skops file that unpacks to more bytes than this is refused: no detector needs it."""

_TRUSTED = frozenset(
    {
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._dist_metrics.ManhattanDistance64",
        "sklearn.metrics._dist_metrics.ChebyshevDistance64",
        "sklearn.metrics._dist_metrics.MinkowskiDistance64",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._ball_tree.BallTree64",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neighbors._kd_tree.KDTree64",
        "sklearn.tree._tree.Tree",
    }
)
"""What skops does not trust by itself, and outlier detectors of scikit-learn contain."""


_BEFORE = ("sklearn.preprocessing.", "sklearn.decomposition.", "sklearn.kernel_approximation.")
"""Where the steps before a detector come from: they compute with plain arrays."""

_ADDRESS = re.compile(r'(?<="__id__": )\d+|\d+(?=\.npy\b)|\d+(?=\.npz\b)')
"""An object's address in a skops file: its id, or the name of its array."""


def save_payload(estimator: object) -> bytes:
    """Give an estimator as a skops file.

    Raises
    ------
    ModelRefused
        It cannot be saved, or could not be loaded again.
    """
    import skops.io  # noqa: PLC0415 - brings scikit-learn, seconds

    try:
        estimator = copy.deepcopy(estimator)
        # A tree of neighbours counts how often it was asked: equal estimators, unequal files.
        _make_sound(estimator)
        data: bytes = skops.io.dumps(estimator)
    except ModelRefused:
        raise
    except Exception as error:
        message = f"{type(estimator).__name__} cannot be saved by skops: {error}"
        raise ModelRefused(message) from error
    data = _settled(data)
    check_payload(data)
    return data


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


def check_payload(data: bytes) -> None:
    """Raise unless a skops file is of bearable size and asks for trusted types only.

    Raises
    ------
    ModelRefused
        Naming the types that are not trusted, or what is wrong with the file.
    """
    import zipfile  # noqa: PLC0415 - not for scoring

    import skops.io  # noqa: PLC0415 - brings scikit-learn, seconds

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        asked = skops.io.get_untrusted_types(data=data) if size <= MAX_UNPACKED else []
    except Exception as error:
        message = f"not a usable skops file: {type(error).__name__}: {error}"
        raise ModelRefused(message) from error
    if size > MAX_UNPACKED:
        message = f"unpacks to {size} bytes, more than {MAX_UNPACKED}"
        raise ModelRefused(message)
    if refused := sorted(set(asked) - _TRUSTED):
        message = f"asks for {', '.join(refused)}"
        raise ModelRefused(message)


@lru_cache(maxsize=512)
def load_payload(data: bytes) -> Any:
    """Load the estimator of a skops file that holds trusted types only.

    Raises
    ------
    ModelRefused
        As `check_payload`, or the estimator cannot be built.
    """
    import skops.io  # noqa: PLC0415 - brings scikit-learn, seconds

    check_payload(data)
    try:
        estimator = skops.io.loads(data, trusted=sorted(_TRUSTED))
        _make_sound(estimator)
    except Exception as error:
        message = f"cannot be loaded: {type(error).__name__}: {error}"
        raise ModelRefused(message) from error
    return estimator


def _make_sound(estimator: Any) -> None:
    """Check or renew what scikit-learn's compiled code would follow out of bounds.

    Trusted types can still hold indices that lead anywhere.
    """
    *before, last = [step for _, step in getattr(estimator, "steps", [("", estimator)])]
    for step in before:
        if not type(step).__module__.startswith(
            ("sklearn.preprocessing.", "sklearn.decomposition.")
        ):
            message = f"{type(step).__name__} before the detector"
            raise ModelRefused(message)
    match type(last).__name__:
        case "IsolationForest":
            flatten_forest(vars(last), int(last.n_features_in_))
        case "OneClassSVM":
            _check_svm(last)
        case "LocalOutlierFactor":
            _renew_tree(last)
        case "EllipticEnvelope" | "SGDOneClassSVM":
            pass
        case name:
            message = f"{name} is no outlier detector of scikit-learn"
            raise ModelRefused(message)


def _check_svm(svm: Any) -> None:
    count = len(svm_of(vars(svm)).vectors)
    if len(svm.support_) != count or svm.n_support_.tolist() != [count]:
        message = "support vectors that contradict each other"
        raise ModelRefused(message)


def _renew_tree(factor: Any) -> None:
    """Build the neighbours' tree anew from the training rows."""
    from sklearn.neighbors import BallTree, KDTree  # noqa: PLC0415

    if factor._tree is not None:
        kind = KDTree if factor._fit_method == "kd_tree" else BallTree
        factor._tree = kind(
            as_numbers(factor._fit_X),
            factor.leaf_size,
            metric=factor.effective_metric_,
            **factor.effective_metric_params_,
        )


def decide_payload(data: bytes, x: Array) -> tuple[Array, Flags]:
    """Decisions and labels of a skops file's estimator; see `decide_estimator`."""
    return decide_estimator(load_payload(data), x)


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
