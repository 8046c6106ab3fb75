"""Fleets written: sorted, padded, hashed, and put in place whole or not at all."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from importlib.metadata import version as library_version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from scoring.errors import InvalidFleet, ModelRefused, StorageUnusable
from scoring.fleet.adding import Model, prepare
from scoring.fleet.compiling import Compiled
from scoring.fleet.file import FLEET_SCHEMA, Fleet, ModelInfo
from scoring.fleet.manifest import FORMAT, MANIFEST, MODELS, check_features, version_of
from scoring.fleet.matching import Columns
from scoring.fleet.naming import normalised

_LIBRARIES = ("numpy", "pyarrow", "scikit-learn", "skops")


def write_fleet(
    models: Iterable[Model], features: tuple[str, ...], folder: Path, created_at: datetime
) -> str:
    """Write models as a fleet and give its version.

    The same models, in any order, give the same bytes and so the same version. Both files are
    written beside and then moved into place, the manifest last.

    Parameters
    ----------
    features
        What the models are scored on; names from `scoring.predictions.FEATURES`.
    folder
        Made if it is not there.
    created_at
        Aware; for the manifest only.

    Raises
    ------
    ModelRefused
        A model that does not fit, naming device and sensor; nothing is written.
    InvalidFleet
        The features are unknown, or none.
    StorageUnusable
        The folder cannot be written to.
    """
    if problem := check_features(features):
        raise InvalidFleet(problem)
    ready = sorted(_prepared(models, Columns(features)), key=_place)
    keys = Counter(normalised((model.device, model.sensor)) for model, _ in ready)
    if twice := [key for key, count in keys.items() if count > 1]:
        message = f"more than one model of device {twice[0][0]} sensor {twice[0][1]}"
        raise ModelRefused(message)
    kinds = Counter(str(compiled.shape.kind) for _, compiled in ready)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".writing-") as beside:
            return _write(_table(ready, features), kinds, folder, Path(beside), created_at)
    except OSError as error:
        message = f"{folder} cannot be written to: {error}"
        raise StorageUnusable(message) from error


def merge_models(
    fleet: Fleet, changed: Iterable[Model], *, keep_imported: bool = False
) -> tuple[list[Model], list[ModelInfo]]:
    """Put models over those of a fleet, for `write_fleet`.

    Parameters
    ----------
    changed
        Each takes the place of the fleet's model of the same sensor; all else stays.
    keep_imported
        A model of the fleet that came from a file stays, too.

    Returns
    -------
    tuple
        All models, and those of the fleet that stay.
    """
    new = {normalised((model.device, model.sensor)): model for model in changed}
    models, kept = [], []
    for row, key in enumerate(list(fleet.keys())):
        own = normalised(key)
        if own in new and not (keep_imported and fleet.describe(row).is_imported):
            continue
        new.pop(own, None)
        models.append(model_of(fleet, row))
        kept.append(fleet.describe(row))
    return [*new.values(), *models], kept


def model_of(fleet: Fleet, row: int) -> Model:
    """Give a fleet's model as it was added."""
    info = fleet.describe(row)
    return Model(info.device, info.sensor, fleet.compiled(row), info.source, info.trained_at)


def _prepared(models: Iterable[Model], columns: Columns) -> Iterator[tuple[Model, Compiled]]:
    for model in models:
        try:
            yield model, prepare(model.detector, columns)
        except ModelRefused as error:
            message = f"device {model.device} sensor {model.sensor}: {error}"
            raise ModelRefused(message) from error


def _place(entry: tuple[Model, Compiled]) -> tuple[object, ...]:
    model, compiled = entry
    shape = compiled.shape
    own = (shape.kind, shape.kernel, shape.units, shape.trees, shape.columns)
    return *own, model.device, model.sensor


def _table(ready: list[tuple[Model, Compiled]], features: tuple[str, ...]) -> pa.Table:
    models, compiled = [model for model, _ in ready], [compiled for _, compiled in ready]
    shapes = [one.shape for one in compiled]
    lengths = [shape.stride for shape in shapes]
    numbers = np.concatenate([np.empty(0), *(one.parameters for one in compiled)])
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    columns = [
        _texts(model.device for model in models),
        _texts(model.sensor for model in models),
        _texts(str(shape.kind) for shape in shapes),
        _texts(shape.kernel for shape in shapes),
        _texts(",".join(features[i] for i in shape.columns) for shape in shapes),
        pa.array([shape.units for shape in shapes], pa.int64()),
        pa.array([shape.trees for shape in shapes], pa.int64()),
        pa.array([one.support for one in compiled], pa.int64()),
        pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(numbers)),
        pa.array([one.payload for one in compiled], pa.large_binary()),
        pa.array([json.dumps(dict(one.hyper_parameters), sort_keys=True) for one in compiled]),
        pa.array([model.source for model in models], pa.string()),
        pa.array([model.trained_at for model in models], pa.timestamp("us", tz="UTC")),
    ]
    columns = [column.cast(field.type) for column, field in zip(columns, FLEET_SCHEMA, strict=True)]
    metadata = {"features": json.dumps(features)}
    return pa.table(columns, schema=FLEET_SCHEMA.with_metadata(metadata))


def _texts(values: Iterable[str]) -> pa.DictionaryArray:
    """Encode with a sorted dictionary: its order must not depend on the models' order."""
    found = list(values)
    names = sorted(set(found))
    place = {name: position for position, name in enumerate(names)}
    codes = pa.array([place[name] for name in found], pa.int32())
    return pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string()))


def _write(
    table: pa.Table, kinds: Counter[str], folder: Path, beside: Path, created_at: datetime
) -> str:
    with pa.OSFile(str(beside / MODELS), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        # One record batch: a group's parameters must lie in one piece.
        file.write_table(table, max_chunksize=max(1, table.num_rows))
    with (beside / MODELS).open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    manifest = {
        "format": FORMAT,
        "version": version_of(digest),
        "models": table.num_rows,
        "kinds": dict(sorted(kinds.items())),
        "features": json.loads(table.schema.metadata[b"features"]),
        "sha256": digest,
        "size": (beside / MODELS).stat().st_size,
        "libraries": {name: library_version(name) for name in _LIBRARIES},
        "created_at": created_at.isoformat(),
    }
    (beside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    (beside / MODELS).replace(folder / MODELS)
    (beside / MANIFEST).replace(folder / MANIFEST)
    return version_of(digest)
