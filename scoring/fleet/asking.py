"""Model files read, and estimators asked, in child processes with limits.

Whatever a model file was made to do happens there: a child that crashes, hangs or takes too much
is replaced, and only the model that it was asked about has failed. What a child says is not trusted
either: it is numbers and short texts, held against what they have to be.
"""

import atexit
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock

import numpy as np

from scoring.children import Answer, Child, Request
from scoring.detectors import Array, Flags, Kind, Shape
from scoring.errors import ModelRefused
from scoring.fleet.compiling import Compiled
from scoring.fleet.matching import Columns
from scoring.frames import NEEDS_ESTIMATORS, OK

_SLOTS = 512
"""Estimators that a child keeps."""

_CHILD = "scoring.fleet.child"


def _request(data: bytes, columns: Columns) -> Request:
    header = {
        "ask": "import",
        "features": columns.features,
        "renamed": dict(columns.renamed),
        "by_position": columns.by_position,
    }
    return Request(header, data)


def read_models(
    files: Iterable[bytes], columns: Columns
) -> Iterator[tuple[Compiled, str] | ModelRefused]:
    """Read model files in a child: each compiled and what it was, or why it was refused.

    Parameters
    ----------
    files
        Contents of the files.
    """
    waiting: deque[bytes] = deque()

    def requests() -> Iterator[Request]:
        for data in files:
            waiting.append(data)
            yield _request(data, columns)

    with _reader() as reader:
        for first in reader.ask_all(requests()):
            data, answer = waiting.popleft(), first
            if answer.code == NEEDS_ESTIMATORS:
                with _estimators.lock:
                    answer = _estimators.child.ask(_request(data, columns))
            yield _compiled(answer)


@contextmanager
def _reader() -> Iterator[Child]:
    """Give the child that reads files: the one that is there, or another while that is in use."""
    is_free = _files_lock.acquire(blocking=False)
    reader = _files if is_free else Child(_CHILD, "files")
    is_done = False
    try:
        yield reader
        is_done = True
    finally:
        if not (is_free and is_done):
            # Nobody would take the answers that are still to come.
            reader.close()
        if is_free:
            _files_lock.release()


def _compiled(answer: Answer) -> tuple[Compiled, str] | ModelRefused:
    """Take what a child says of a model, if it holds together."""
    if answer.code != OK:
        return ModelRefused(answer.reason())
    try:
        told = answer.header
        shape = Shape(**told["shape"] | {"kind": Kind(told["shape"]["kind"])})
        shape = replace(shape, columns=tuple(map(int, shape.columns)))
        numbers, payload = answer.data[: told["numbers"]], answer.data[told["numbers"] :]
        parameters = np.frombuffer(numbers, np.float64)
        support = told["support"]
        good = (
            parameters.shape == (shape.stride,)
            and (shape.kind is Kind.PAYLOAD) == bool(payload)
            and (support is None or type(support) is int)
        )
        if not good:
            return ModelRefused("the process that opened it gave a model that does not fit itself")
        return Compiled(shape, parameters, support, told["hyper"], payload), str(told["source"])
    except (LookupError, TypeError, ValueError) as error:
        return ModelRefused(f"the process that opened it gave no model: {type(error).__name__}")


class _Estimators:
    """The child that asks estimators, and what of them it keeps."""

    def __init__(self) -> None:
        self.child = Child(_CHILD, "estimators")
        self.lock = Lock()
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._generation = 0

    def decide(self, payload: bytes, x: Array) -> tuple[Array, Flags]:
        """Ask the estimator of a skops file; see `decide_payload`."""
        with self.lock:
            slot, is_new = self._slot_of(payload)
            sent = payload if is_new else b""
            header = {"ask": "decide", "slot": slot, "payload": len(sent), "shape": x.shape}
            answer = self.child.ask(Request(header, sent + np.ascontiguousarray(x).tobytes()))
            if answer.code != OK:
                self._slots.pop(payload, None)
        rows = len(x)
        if answer.code != OK or len(answer.data) != rows * 9:
            raise ModelRefused(answer.reason() or "gives no decisions")
        labels = np.frombuffer(answer.data, np.uint8, offset=rows * 8) != 0
        return np.frombuffer(answer.data, np.float64, count=rows), labels

    def _slot_of(self, payload: bytes) -> tuple[int, bool]:
        if self._generation != self.child.generation:
            # Another process than the one that was given them.
            self._slots.clear()
            self._generation = self.child.generation
        if payload in self._slots:
            self._slots.move_to_end(payload)
            return self._slots[payload], False
        is_full = len(self._slots) >= _SLOTS
        slot = self._slots.popitem(last=False)[1] if is_full else len(self._slots)
        self._slots[payload] = slot
        return slot, True


_estimators = _Estimators()
_files, _files_lock = Child(_CHILD, "files"), Lock()
atexit.register(_estimators.child.close)
atexit.register(_files.close)


def decide_payload(payload: bytes, x: Array) -> tuple[Array, Flags]:
    """Ask the estimator of a skops file, in a child process.

    Parameters
    ----------
    x
        Shape (rows, features).

    Returns
    -------
    tuple
        Decisions, positive for inliers, and whether each row is an outlier; of shape (rows,).

    Raises
    ------
    ModelRefused
        The file is not accepted, or the estimator fails, takes too long, or ends the process.
    """
    return _estimators.decide(payload, x)
