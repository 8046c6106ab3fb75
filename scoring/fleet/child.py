"""The process that opens model files and asks estimators, shut in; see `scoring.fleet.asking`.

``python -m scoring.fleet.child KIND``, where KIND is ``files`` or ``estimators``. Requests come on
standard input and are answered on standard output, one after the other; both are frames of
`scoring.frames`. At the end of the input it ends.
"""

import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np

from scoring.confine import confine
from scoring.errors import ModelRefused
from scoring.fleet.adding import NotNumbers, prepare
from scoring.fleet.attributes import Captured
from scoring.fleet.kinds import KINDS
from scoring.fleet.matching import Columns
from scoring.fleet.modelfile import read_model
from scoring.fleet.payloads import decide_estimator, load_payload
from scoring.fleet.skopsed import read_array
from scoring.frames import EXHAUSTED, NEEDS_ESTIMATORS, OK, REFUSED, frame, read_frame

MEMORY = {"files": 2 * 2**30, "estimators": 2 * 2**30}
"""Bytes that a child may take besides what it has loaded, by its kind."""

SECONDS = 30
"""Of processor time that a model may take."""

_REASON = 250
"""Characters of why a model was refused."""


def _import(header: dict[str, Any], data: bytes, *, may_build: bool) -> bytes:
    columns = Columns(tuple(header["features"]), header["renamed"], header["by_position"])
    try:
        compiled, source = read_model(data, columns, may_build=may_build)
    except NotNumbers:
        return frame(NEEDS_ESTIMATORS, {})
    told = {
        "shape": asdict(compiled.shape),
        "support": compiled.support,
        "hyper": dict(compiled.hyper_parameters),
        "source": source,
        "numbers": compiled.parameters.nbytes,
    }
    return frame(OK, told, compiled.parameters.tobytes(), compiled.payload)


class _Estimators:
    """Estimators that were built, by the slot that the parent has given them."""

    def __init__(self) -> None:
        self._built: dict[int, Any] = {}

    def decide(self, header: dict[str, Any], data: bytes) -> bytes:
        """Ask one of them, or a new one whose file comes before the rows."""
        slot, size = header["slot"], header["payload"]
        if size:
            self._built.pop(slot, None)
            self._built[slot] = load_payload(data[:size])
        x = np.frombuffer(data, np.float64, offset=size).reshape(header["shape"])
        decisions, labels = decide_estimator(self._built[slot], x)
        return frame(OK, {}, decisions.tobytes(), labels.tobytes())


def load(kind: str) -> None:
    """Load all that will be needed: afterwards no file can be opened."""
    for name in ("numpy.random", "encodings.cp437", "encodings.latin_1", "encodings.idna"):
        import_module(name)
    read_array(_saved(np.zeros(1)))
    for detector in _examples():
        prepare(detector, Columns(("mean",)))
    if kind == "estimators":
        for known in KINDS.values():
            import_module(known.module)
        for name in ("skops.io", "sklearn.pipeline", "sklearn.tree", "sklearn.neighbors"):
            import_module(name)
        _warm_up()


def _saved(array: np.ndarray[Any, Any]) -> bytes:
    sink = BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def _examples() -> Iterator[Captured]:
    """Yield a detector of each known kind, as it is read from a file."""
    one = np.ones((1, 1))
    svm = {"kernel": "rbf", "_gamma": 1.0, "coef0": 0.0, "degree": 3, "support_vectors_": one}
    yield _captured("OneClassSVM", svm | {"_dual_coef_": one, "_intercept_": -one[0] / 2})
    location = {"location_": one[0], "precision_": one, "offset_": -1.0}
    yield _captured("EllipticEnvelope", location)
    fields = [(n, "i8") for n in ("left_child", "right_child", "feature", "n_node_samples")]
    nodes = np.array(
        [(1, 2, 0, 2, 0.0), (-1, -1, -2, 1, 0.0), (-1, -1, -2, 1, 0.0)],
        np.dtype([*fields, ("threshold", "f8")]),
    )
    tree = _captured("ExtraTreeRegressor", {"tree_": _captured("Tree", {"nodes": nodes})})
    forest = {"n_features_in_": 1, "offset_": -0.5, "_max_samples": 2, "estimators_": [tree]}
    yield _captured("IsolationForest", forest | {"estimators_features_": [np.zeros(1, int)]})


def _captured(name: str, state: dict[str, Any]) -> Captured:
    found = Captured(name)
    found.state = state
    return found


def _warm_up() -> None:
    """Ask each detector once: scikit-learn and SciPy load parts of theirs when they are used."""
    from sklearn.covariance import EllipticEnvelope  # noqa: PLC0415 - the job has no need of them
    from sklearn.ensemble import IsolationForest  # noqa: PLC0415
    from sklearn.kernel_approximation import Nystroem  # noqa: PLC0415
    from sklearn.linear_model import SGDOneClassSVM  # noqa: PLC0415
    from sklearn.neighbors import LocalOutlierFactor  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import PowerTransformer, QuantileTransformer  # noqa: PLC0415
    from sklearn.svm import OneClassSVM  # noqa: PLC0415

    from scoring.fleet.payloads import save_payload  # noqa: PLC0415

    x = np.random.default_rng(0).normal(size=(20, 2))
    normal = QuantileTransformer(n_quantiles=5, output_distribution="normal")
    before = (normal, PowerTransformer(), Nystroem(n_components=2))
    factors = [LocalOutlierFactor(3, novelty=True, algorithm=a) for a in ("brute", "kd_tree")]
    last = (OneClassSVM(), SGDOneClassSVM(), EllipticEnvelope(), IsolationForest(n_estimators=2))
    for detector in (*last, *factors):
        model = make_pipeline(*before, detector).fit(x)
        decide_estimator(load_payload(save_payload(model)), x)


def _answer(header: dict[str, Any], data: bytes, estimators: _Estimators, kind: str) -> bytes:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        if header["ask"] == "import":
            return _import(header, data, may_build=kind == "estimators")
        return estimators.decide(header, data)
    except ModelRefused as error:
        return frame(REFUSED, {"reason": str(error)[:_REASON]})
    except MemoryError:
        return frame(EXHAUSTED, {"reason": f"takes more than {MEMORY[kind] >> 20} MB"})
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the model's own
        return frame(REFUSED, {"reason": f"{type(error).__name__}: {str(error)[:_REASON]}"})
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main(kind: str) -> None:
    """Load, shut in, and answer until the input ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    load(kind)
    estimators = _Estimators()
    how = confine(MEMORY[kind])
    answers.write(frame(OK, {"confined": how}))
    answers.flush()
    while request := read_frame(requests.read):
        _, header, data = request
        answer = _answer(header, data, estimators, kind)
        answers.write(answer)
        answers.flush()
        if answer[0] == EXHAUSTED:
            return


if __name__ == "__main__":
    main(sys.argv[1])
