"""The fleet's file: all models in one Arrow IPC file, opened by mapping it into memory.

A fleet is a folder of two files. ``models.arrow`` holds one row a model, sorted by `Shape` and then
by device and sensor, so that models which are decided together stand together and their parameters
are one matrix without a copy. ``manifest.json`` says what the other must be: a fleet that was cut
off or changed does not open.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scoring.detectors import Array, Kind, Shape
from scoring.errors import InvalidFleet
from scoring.fleet.arrowfile import is_compressed
from scoring.fleet.columns import choose, composed, indices, numbers, positions, texts, whole
from scoring.fleet.compiling import Compiled
from scoring.fleet.manifest import (
    MANIFEST,
    MODELS,
    WITHOUT_OWN_FEATURES,
    check_features,
    read_manifest,
    version_of,
)

_TEXT = pa.dictionary(pa.int32(), pa.string())

FLEET_SCHEMA = pa.schema(
    [
        pa.field("device", _TEXT, nullable=False),
        pa.field("sensor", _TEXT, nullable=False),
        pa.field("kind", _TEXT, nullable=False),
        pa.field("kernel", _TEXT, nullable=False),
        pa.field("features", _TEXT, nullable=False),
        pa.field("units", pa.int64(), nullable=False),
        pa.field("trees", pa.int64(), nullable=False),
        pa.field("support", pa.int64()),
        pa.field("parameters", pa.large_list(pa.float64()), nullable=False),
        pa.field("payload", pa.large_binary(), nullable=False),
        pa.field("hyper_parameters", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("trained_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""Columns of ``models.arrow``.

``features`` are the model's own with commas between them, in the order in which it takes them;
empty: those of the fleet. ``hyper_parameters`` is a JSON object.
"""


_BROKEN = (
    *(OSError, pa.ArrowException, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, BufferError, MemoryError, RecursionError),
)
"""What reading a file may end in that was changed together with its digest."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a fleet knows of one model.

    Attributes
    ----------
    kind
        one_class_svm, elliptic_envelope, isolation_forest, or skops for any other estimator.
    support
        Support vectors of a one-class SVM, else None.
    source
        Where the model came from, in words.
    trained_at
        UTC, None if not known.
    features
        What it takes, in its own order.
    """

    device: str
    sensor: str
    kind: Kind
    kernel: str
    support: int | None
    hyper_parameters: dict[str, Any]
    source: str
    trained_at: datetime | None
    features: tuple[str, ...]

    @property
    def is_imported(self) -> bool:
        """Whether it came from a file: of those it is not known when they were trained."""
        return self.trained_at is None


@dataclass(frozen=True, slots=True)
class Group:
    """Models ``start`` to ``stop`` of the file, all of one shape.

    Attributes
    ----------
    parameters
        A view into the mapped file, shape (models, stride).
    """

    shape: Shape
    start: int
    stop: int
    parameters: Array


class Fleet:
    """All models of one version; immutable, and shared by whoever maps the same file.

    Get one from `Fleet.open`.

    Attributes
    ----------
    version
        ``f`` and twelve hexadecimal digits of the file's SHA-256: equal models, equal version.
    features
        What models are scored on, most of them on all and in this order; names from
        `scoring.predictions.FEATURES`.
    groups
        The models by shape, in the order of the file.
    """

    def __init__(self, version: str, features: tuple[str, ...], table: pa.Table) -> None:
        self.version = version
        self.features = features
        self.groups = _groups(table, features)
        self._table = table
        columns = [whole(table[name]) for name in ("device", "sensor")]
        self._names = [composed(column.dictionary) for column in columns]
        codes = self._codes(*(indices(column) for column in columns))
        self._order = np.argsort(codes)
        self._sorted = codes[self._order]
        if (self._sorted[1:] == self._sorted[:-1]).any():
            message = f"{MODELS} has two models of one sensor"
            raise InvalidFleet(message)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map a fleet and check it against its manifest.

        Raises
        ------
        InvalidFleet
            Naming the file and the cause: missing, truncated, changed, another format.
        """
        manifest = read_manifest(folder)
        path = folder / MODELS
        try:
            table = _read_models(path, manifest)
            features = _check_models(table, manifest)
            return cls(manifest["version"], features, table)
        except InvalidFleet as error:
            message = f"{folder}: {error}"
            raise InvalidFleet(message) from error
        except _BROKEN as error:
            message = f"{path} cannot be read: {type(error).__name__}: {str(error)[:200]}"
            raise InvalidFleet(message) from error

    def __len__(self) -> int:
        """Count the models."""
        return int(self._table.num_rows)

    def keys(self) -> Iterator[tuple[str, str]]:
        """Give device and sensor of every model, in the order of the file."""
        devices, sensors = (self._table[name].to_pylist() for name in ("device", "sensor"))
        return zip(devices, sensors, strict=True)

    def find(self, device: str, sensor: str) -> ModelInfo | None:
        """Describe a sensor's model, None if there is none."""
        row = int(self.locate(texts([device]), texts([sensor]), [0], [0])[0])
        return None if row < 0 else self.describe(row)

    def describe(self, row: int) -> ModelInfo:
        """Describe the model in a row of the file.

        Raises
        ------
        InvalidFleet
            What stands there is no description.
        """
        try:
            return self._described(row)
        except _BROKEN as error:
            message = f"{MODELS} has no description in row {row}: {type(error).__name__}"
            raise InvalidFleet(message) from error

    def _described(self, row: int) -> ModelInfo:
        names = ("device", "sensor", "kind", "kernel", "support", "source", "trained_at")
        found = {name: self._table[name][row].as_py() for name in names}
        found["kind"] = Kind(found["kind"])
        hyper = json.loads(self._table["hyper_parameters"][row].as_py())
        own = self._table["features"][row].as_py()
        features = tuple(own.split(",")) if own else self.features
        return ModelInfo(**found, hyper_parameters=hyper, features=features)

    def compiled(self, row: int) -> Compiled:
        """Give the model in a row of the file as it was added."""
        info = self.describe(row)
        group = next(group for group in self.groups if group.start <= row < group.stop)
        parameters = group.parameters[row - group.start]
        payload = self.payload(row)
        return Compiled(group.shape, parameters, info.support, info.hyper_parameters, payload)

    def payload(self, row: int) -> bytes:
        """Give the skops file of the model in a row; empty for a known kind."""
        payload: bytes = self._table["payload"][row].as_py()
        return payload

    def locate(
        self,
        devices: pa.Array,
        sensors: pa.Array,
        device_codes: npt.ArrayLike,
        sensor_codes: npt.ArrayLike,
    ) -> npt.NDArray[np.intp]:
        """Find the rows of many models at once; -1 where a sensor has none.

        Parameters
        ----------
        devices, sensors
            Dictionaries of names, each name once or more.
        device_codes, sensor_codes
            Positions in these, equally many; -1 for a name that is missing.
        """
        found = []
        for names, own, codes in zip(
            (devices, sensors), self._names, (device_codes, sensor_codes), strict=True
        ):
            # A last element for code -1 to point to.
            found.append(np.append(positions(names, own), -1)[np.asarray(codes)])
        if not len(self):
            return np.full(len(found[0]), -1, dtype=np.intp)
        wanted = self._codes(*found)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self) - 1)
        hit = (self._sorted[at] == wanted) & (found[0] >= 0) & (found[1] >= 0)
        return np.where(hit, self._order[at], -1)

    def _codes(self, device: npt.NDArray[Any], sensor: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """One number for each pair of positions in the fleet's own dictionaries."""
        codes: npt.NDArray[np.int64] = device.astype(np.int64) * len(self._names[1]) + sensor
        return codes


def _read_models(path: Path, manifest: dict[str, Any]) -> pa.Table:
    try:
        source = pa.memory_map(str(path))
    except OSError as error:
        message = f"{MODELS} is missing or cannot be mapped: {error}"
        raise InvalidFleet(message) from error
    if source.size() != manifest["size"]:
        message = f"{MODELS} has {source.size()} bytes where {MANIFEST} says {manifest['size']}"
        raise InvalidFleet(message)
    content = source.read_buffer()
    digest = hashlib.sha256(content).hexdigest()
    if digest != manifest["sha256"]:
        message = f"{MODELS} was changed: its SHA-256 is not the one in {MANIFEST}"
        raise InvalidFleet(message)
    if is_compressed(content):
        message = f"{MODELS} is compressed, and no fleet is"
        raise InvalidFleet(message)
    source.seek(0)
    table = pa.ipc.open_file(source).read_all()
    if manifest["format"] == WITHOUT_OWN_FEATURES:
        none = choose([""], np.zeros(table.num_rows, dtype=np.int32))
        table = table.add_column(FLEET_SCHEMA.get_field_index("features"), "features", none)
        table = table.cast(FLEET_SCHEMA.with_metadata(table.schema.metadata))
    return table


def _check_models(table: pa.Table, manifest: dict[str, Any]) -> tuple[str, ...]:
    """Hold the file against its schema and manifest; give the features."""
    if not table.schema.equals(FLEET_SCHEMA):
        message = f"{MODELS} does not have this format's columns"
        raise InvalidFleet(message)
    table.validate(full=True)
    features = tuple(manifest["features"])
    stored = json.loads((table.schema.metadata or {}).get(b"features", b"null"))
    if stored != list(features) or check_features(features):
        message = f"features in {MANIFEST} ({features}) and {MODELS} ({stored}) are not usable"
        raise InvalidFleet(message)
    if manifest["version"] != version_of(manifest["sha256"]):
        message = f"version {manifest['version']} in {MANIFEST} does not belong to its SHA-256"
        raise InvalidFleet(message)
    return features


def _groups(table: pa.Table, features: tuple[str, ...]) -> list[Group]:
    """Cut the file where the shape changes, and view each stretch as a matrix."""
    if not table.num_rows:
        return []
    kinds = [whole(table[name]) for name in ("kind", "kernel", "features")]
    lists = whole(table["parameters"])
    offsets = numbers(lists.offsets)
    columns = [indices(column) for column in kinds]
    columns += [numbers(whole(table[name])) for name in ("units", "trees")]
    changes = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    starts = np.flatnonzero(np.concatenate([[True], changes])).tolist()
    values = numbers(lists.values)
    groups = []
    for start, stop in zip(starts, [*starts[1:], table.num_rows], strict=True):
        kind, kernel, own = (column[start].as_py() for column in kinds)
        units, trees = (int(column[start]) for column in columns[3:])
        places = tuple(features.index(name) for name in own.split(",")) if own else ()
        shape = Shape(Kind(kind), kernel, len(places or features), units, trees, places)
        if (np.diff(offsets[start : stop + 1]) != shape.stride).any():
            message = f"{MODELS} has parameters that do not fit a {kind}"
            raise InvalidFleet(message)
        view = values[offsets[start] : offsets[stop]].reshape(stop - start, shape.stride)
        groups.append(Group(shape, start, stop, view))
    return groups
