"""One model file of any kind that is accepted, read as inert values and made ready for a fleet."""

from typing import Any

from scoring.errors import ModelRefused
from scoring.fleet.adding import prepare
from scoring.fleet.attributes import Captured, Unread
from scoring.fleet.compiling import Compiled
from scoring.fleet.matching import Columns
from scoring.fleet.pickles import read_pickle
from scoring.fleet.skopsed import read_skops


def read_model(data: bytes, columns: Columns, *, may_build: bool = True) -> tuple[Compiled, str]:
    """Read one model file's content; give it compiled, and what the file was, in words.

    Not for files of others outside of a child process: see `scoring.fleet.asking`.

    Raises
    ------
    ModelRefused
        It is damaged, asks for something not allowed, is no detector, or does not fit the fleet.
    NotNumbers
        It is no detector of a known kind, and an estimator may not be built.
    """
    is_skops = data[:4] == b"PK\x03\x04"
    detector = read_skops(data) if is_skops else read_pickle(data)
    if not isinstance(detector, Captured):
        asked = isinstance(detector, Unread) and f"asks for {detector.asked}"
        message = asked or f"holds a {type(detector).__name__}, not a model"
        raise ModelRefused(message)
    if is_skops:
        return prepare(detector, columns, may_build=may_build), "skops file"
    found = detector.state.get("_sklearn_version") if isinstance(detector.state, dict) else None
    library = _library(detector) if found is None else found
    age = f" of scikit-learn {library[:20]}" if isinstance(library, str) else ""
    return prepare(detector, columns, may_build=may_build), f"pickle{age}"


def _library(detector: Captured) -> Any:
    """scikit-learn's version as the first step of a pipeline has it."""
    try:
        return detector.state["steps"][0][1].state["_sklearn_version"]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
