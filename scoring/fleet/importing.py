"""Models imported from a folder of files, each checked, none run."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoring.errors import BadInput, ModelRefused
from scoring.fleet.adding import Model, as_payload, prepare
from scoring.fleet.attributes import Captured
from scoring.fleet.compiling import Compiled, compile_detector
from scoring.fleet.payloads import load_payload
from scoring.fleet.pickles import MAX_FILE, read_pickle

PATTERN = "model_{device}_{sensor}"
"""How model files are named, before the extension."""

EXTENSIONS = (".joblib", ".pkl", ".pickle", ".skops")
"""Extensions that are taken off a file's name; the content decides how it is read."""

MAX_NAME = 128
"""Longest device or sensor, in characters: as in a reading."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A file that became a model."""

    file: str
    model: Model


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that did not, and why, in one sentence."""

    file: str
    reason: str


def import_models(
    folder: Path, features: int, pattern: str = PATTERN
) -> Iterator[Imported | Refused]:
    """Read all model files of a folder, in the order of their names.

    Joblib files, pickles of protocol 2 and later (of scikit-learn back to 0.19) and skops files.
    A file that is refused does not stop the others.

    Parameters
    ----------
    features
        How many the models are to be scored on.
    pattern
        Of the names, without extension: ``{device}`` and ``{sensor}`` once each. Where a name can
        be read in several ways, the device is as short as possible.

    Raises
    ------
    BadInput
        The folder is not there, or the pattern lacks one of the two.
    """
    names = compile_pattern(pattern)
    if not folder.is_dir():
        message = f"{folder} is not a folder"
        raise BadInput(message)
    seen: dict[tuple[str, str], str] = {}
    for path in sorted(folder.iterdir()):
        try:
            model = _import(path, names, pattern, features)
            key = model.device, model.sensor
            _refuse(key in seen, f"the same device and sensor as {seen.get(key)}")
            seen[key] = path.name
            yield Imported(path.name, model)
        except ModelRefused as error:
            yield Refused(path.name, str(error))


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Make a regular expression of a pattern of names.

    Raises
    ------
    BadInput
        ``{device}`` or ``{sensor}`` is missing, there twice, or both stand side by side.
    """
    if pattern.count("{device}") != 1 or pattern.count("{sensor}") != 1:
        message = f"pattern {pattern!r} needs {{device}} and {{sensor}}, once each"
        raise BadInput(message)
    if "{device}{sensor}" in pattern or "{sensor}{device}" in pattern:
        message = f"pattern {pattern!r} has nothing between device and sensor"
        raise BadInput(message)
    device, sensor = (f"(?P<{name}>.{{1,{MAX_NAME}}}?)" for name in ("device", "sensor"))
    literal = re.escape(pattern)
    literal = literal.replace(re.escape("{device}"), device)
    return re.compile(literal.replace(re.escape("{sensor}"), sensor))


def _refuse(condition: bool, reason: str) -> None:
    if condition:
        raise ModelRefused(reason)


def _import(path: Path, names: re.Pattern[str], pattern: str, features: int) -> Model:
    _refuse(path.is_symlink(), "a symbolic link")
    _refuse(not path.is_file(), "not a file")
    stem = path.stem if path.suffix in EXTENSIONS else path.name
    match = names.fullmatch(stem)
    if match is None or not stem.isprintable():
        message = f"its name does not match {pattern}"
        raise ModelRefused(message)
    try:
        _refuse(path.stat().st_size > MAX_FILE, f"larger than {MAX_FILE} bytes")
        data = path.read_bytes()
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise ModelRefused(message) from error
    try:
        compiled, source = read_model(data, features)
    except ModelRefused:
        raise
    except Exception as error:
        # No file may stop the others, whatever it is that it was made to hit.
        message = f"cannot be used: {type(error).__name__}: {str(error)[:200]}"
        raise ModelRefused(message) from error
    return Model(match["device"], match["sensor"], compiled, f"{source} {path.name}")


def read_model(data: bytes, features: int) -> tuple[Compiled, str]:
    """Read one model file's content; give it compiled, and what the file was, in words.

    Raises
    ------
    ModelRefused
        It is damaged, asks for something not allowed, is no detector, or does not fit the fleet.
    """
    if data[:4] == b"PK\x03\x04":
        return _read_skops(data, features), "skops file"
    detector = read_pickle(data)
    if not isinstance(detector, Captured):
        message = f"holds a {type(detector).__name__}, not a model"
        raise ModelRefused(message)
    found = detector.state.get("_sklearn_version") if isinstance(detector.state, dict) else None
    library = _library(detector) if found is None else found
    age = f" of scikit-learn {library[:20]}" if isinstance(library, str) else ""
    return prepare(detector, features), f"pickle{age}"


def _library(detector: Captured) -> Any:
    """scikit-learn's version as the first step of a pipeline has it."""
    try:
        return detector.state["steps"][0][1].state["_sklearn_version"]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None


def _read_skops(data: bytes, features: int) -> Compiled:
    """Known kinds become numbers; anything else rides along as the file that it came in."""
    estimator = load_payload(data)
    if compile_detector(estimator) is None:
        return as_payload(data, features)
    return prepare(estimator, features, ask=False)
