"""Models imported from a folder of files, each checked, none run."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scoring.errors import BadInput, ModelRefused
from scoring.fleet.adding import Model
from scoring.fleet.asking import read_models
from scoring.fleet.compiling import Compiled
from scoring.fleet.matching import Columns
from scoring.fleet.naming import Listed, Names, Pattern, Sensor, normalised
from scoring.fleet.pickles import MAX_FILE


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
    files = list(_files(folder, is_deep=names.is_deep))
    yield from _imported(folder, files, names, columns)
    if isinstance(names, Listed):
        yield from (Refused(name, "is listed, and not there") for name in names.missing(files))


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file that is being read as a model."""

    file: str
    sensor: Sensor


def _imported(
    folder: Path, files: list[str], names: Names, columns: Columns
) -> Iterator[Imported | Refused]:
    """Open the files, and have them read while the next ones are opened; in their order."""
    begun: deque[_Opened | Refused] = deque()
    seen: dict[Sensor, str] = {}

    def contents() -> Iterator[bytes]:
        for name in files:
            try:
                sensor = names.sensor_of(name)
                data = _content(folder / name)
            except ModelRefused as error:
                begun.append(Refused(name, str(error)))
            else:
                begun.append(_Opened(name, sensor))
                yield data

    for found in read_models(contents(), columns):
        while isinstance(one := begun.popleft(), Refused):
            yield one
        yield _result(one, found, seen)
    yield from (one for one in begun if isinstance(one, Refused))


def _result(
    opened: _Opened, found: tuple[Compiled, str] | ModelRefused, seen: dict[Sensor, str]
) -> Imported | Refused:
    name = opened.file
    if isinstance(found, ModelRefused):
        return Refused(name, str(found))
    key = normalised(opened.sensor)
    if key in seen:
        return Refused(name, f"the same device and sensor as {seen[key]}")
    seen[key] = name
    compiled, source = found
    return Imported(name, Model(*opened.sensor, compiled, f"{source} {name}"))


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


def _content(path: Path) -> bytes:
    _refuse(path.is_symlink(), "a symbolic link")
    _refuse(not path.is_file(), "not a file")
    try:
        _refuse(path.stat().st_size > MAX_FILE, f"larger than {MAX_FILE} bytes")
        return path.read_bytes()
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise ModelRefused(message) from error
