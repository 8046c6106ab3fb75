"""Models imported from a folder of files, each checked, none run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoring.errors import BadInput, ModelRefused
from scoring.fleet.adding import Model, prepare
from scoring.fleet.attributes import Captured, Unread
from scoring.fleet.compiling import Compiled
from scoring.fleet.matching import Columns
from scoring.fleet.naming import Listed, Names, Pattern, Sensor, normalised
from scoring.fleet.pickles import MAX_FILE, read_pickle
from scoring.fleet.skopsed import read_skops


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
    folder: Path, columns: Columns, names: Names | None = None
) -> Iterator[Imported | Refused]:
    """Read all model files of a folder, in the order of their names.

    Joblib files, pickles of protocol 2 and later (of scikit-learn back to 0.19) and skops files.
    A file that is refused does not stop the others.

    Parameters
    ----------
    columns
        How the models' columns are found among the fleet's features.
    names
        How a file's sensor is told; by default by its name and `PATTERN`.

    Raises
    ------
    BadInput
        The folder is not there.
    """
    names = names or Pattern.of()
    if not folder.is_dir():
        message = f"{folder} is not a folder"
        raise BadInput(message)
    seen: dict[Sensor, str] = {}
    files = list(_files(folder, is_deep=names.is_deep))
    for name in files:
        try:
            model = _import(folder / name, name, names, columns)
            key = normalised((model.device, model.sensor))
            _refuse(key in seen, f"the same device and sensor as {seen.get(key)}")
            seen[key] = name
            yield Imported(name, model)
        except ModelRefused as error:
            yield Refused(name, str(error))
    if isinstance(names, Listed):
        yield from (Refused(name, "is listed, and not there") for name in names.missing(files))


def _files(folder: Path, *, is_deep: bool) -> Iterator[str]:
    """Return the paths in a folder, sorted; folders in it are looked into or given as they are."""
    if not is_deep:
        yield from sorted(path.name for path in folder.iterdir())
        return
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix()


def _refuse(condition: bool, reason: str) -> None:
    if condition:
        raise ModelRefused(reason)


def _import(path: Path, name: str, names: Names, columns: Columns) -> Model:
    _refuse(path.is_symlink(), "a symbolic link")
    _refuse(not path.is_file(), "not a file")
    device, sensor = names.sensor_of(name)
    try:
        _refuse(path.stat().st_size > MAX_FILE, f"larger than {MAX_FILE} bytes")
        data = path.read_bytes()
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise ModelRefused(message) from error
    try:
        compiled, source = read_model(data, columns)
    except ModelRefused:
        raise
    except Exception as error:
        # No file may stop the others, whatever it is that it was made to hit.
        message = f"cannot be used: {type(error).__name__}: {str(error)[:200]}"
        raise ModelRefused(message) from error
    return Model(device, sensor, compiled, f"{source} {name}")


def read_model(data: bytes, columns: Columns) -> tuple[Compiled, str]:
    """Read one model file's content; give it compiled, and what the file was, in words.

    Raises
    ------
    ModelRefused
        It is damaged, asks for something not allowed, is no detector, or does not fit the fleet.
    """
    is_skops = data[:4] == b"PK\x03\x04"
    detector = read_skops(data) if is_skops else read_pickle(data)
    if not isinstance(detector, Captured):
        asked = isinstance(detector, Unread) and f"asks for {detector.asked}"
        message = asked or f"holds a {type(detector).__name__}, not a model"
        raise ModelRefused(message)
    if is_skops:
        return prepare(detector, columns), "skops file"
    found = detector.state.get("_sklearn_version") if isinstance(detector.state, dict) else None
    library = _library(detector) if found is None else found
    age = f" of scikit-learn {library[:20]}" if isinstance(library, str) else ""
    return prepare(detector, columns), f"pickle{age}"


def _library(detector: Captured) -> Any:
    """scikit-learn's version as the first step of a pipeline has it."""
    try:
        return detector.state["steps"][0][1].state["_sklearn_version"]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
