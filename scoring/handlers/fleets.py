"""Fleets on their shelf: published under their version, one of them current."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from scoring.aggregates import Partials
from scoring.errors import BadInput, Conflict, InvalidFleet, NotFound
from scoring.fleet import Fleet, Model, ModelInfo, merge_models, write_fleet
from scoring.ports import BlobInfo, Blobs
from scoring.runs import fleet_prefix

CURRENT = "fleets/current"
"""The blob that names the version that new runs take."""

SensorRows = tuple[str, str, np.ndarray]
"""Device, sensor and feature rows, float64, shape (windows, features)."""


Mark = tuple[str, BlobInfo] | None
"""The current version and the blob that names it; None where no fleet was published."""


@dataclass(frozen=True, slots=True)
class Updated:
    """A fleet that became current.

    Attributes
    ----------
    kept
        The models of the fleet before that are still in it.
    """

    version: str
    kept: list[ModelInfo]


@dataclass(frozen=True, slots=True)
class FleetShelf:
    """The published fleets.

    Attributes
    ----------
    cache
        Local folder for the fleets that are opened here.
    """

    blobs: Blobs
    cache: Path

    def publish(
        self, models: Iterable[Model], features: tuple[str, ...], created_at: datetime
    ) -> str:
        """Write models as a fleet, make it current, and give its version.

        Raises
        ------
        ModelRefused, InvalidFleet, StorageUnusable
            As `write_fleet`; the current fleet stays what it was.
        """
        version = self._shelve(models, features, created_at)
        self.blobs.write(CURRENT, version.encode())
        return version

    def update(
        self,
        changed: Sequence[Model],
        features: tuple[str, ...],
        created_at: datetime,
        *,
        keep_imported: bool = False,
    ) -> Updated:
        """Publish the current fleet with models put over it; see `merge_models`.

        Raises
        ------
        ModelRefused, InvalidFleet, StorageUnusable
            As `publish`.
        BadInput
            The current fleet has other features.
        Conflict
            Another fleet became current meanwhile: its models would be lost.
        """
        current = self._current()
        models, kept = list(changed), list[ModelInfo]()
        if current:
            fleet = self._base(current[0])
            _check_same(fleet, features)
            models, kept = merge_models(fleet, changed, keep_imported=keep_imported)
        version = self._shelve(models, features, created_at)
        self._make_current(version, current and current[1])
        return Updated(version, kept)

    def replace(
        self, models: Iterable[Model], features: tuple[str, ...], created_at: datetime, before: Mark
    ) -> Updated:
        """Publish models instead of the current fleet, if that is still the one of before.

        Parameters
        ----------
        before
            What `mark` said when the work on the models began.

        Raises
        ------
        ModelRefused, InvalidFleet, StorageUnusable
            As `publish`.
        Conflict
            Another fleet became current meanwhile: nobody has asked for it to be replaced.
        """
        version = self._shelve(models, features, created_at)
        self._make_current(version, before and before[1])
        return Updated(version, [])

    def mark(self) -> Mark:
        """Return the current version and its blob, None where there is none; see `replace`."""
        return self._current()

    def features(
        self, wanted: tuple[str, ...] | None, default: tuple[str, ...], *, fresh: bool = False
    ) -> tuple[str, ...]:
        """Return the features of models that are to be put over the current fleet.

        Parameters
        ----------
        wanted
            None for those of the current fleet; where there is none, `default`.
        fresh
            They are to replace it.

        Raises
        ------
        BadInput
            The current fleet has others than those wanted.
        """
        if fresh or (current := self._current()) is None:
            return wanted or default
        fleet = self._base(current[0])
        if wanted:
            _check_same(fleet, wanted)
        return fleet.features

    def current(self) -> str:
        """Give the version that new runs take; raise `NotFound` where none was published."""
        current = self._current()
        if current is None:
            message = "there is no fleet yet: `fleet train` or `fleet import` makes one"
            raise NotFound(message)
        return _checked(current[0])

    def _current(self) -> Mark:
        try:
            data, blob = self.blobs.read(CURRENT)
        except NotFound:
            return None
        return data.decode(errors="replace").strip(), blob

    def _shelve(
        self, models: Iterable[Model], features: tuple[str, ...], created_at: datetime
    ) -> str:
        """Put a fleet on the shelf, whole or not at all; a version always has the same models."""
        with TemporaryDirectory() as folder:
            version = write_fleet(models, features, Path(folder), created_at)
            # The manifest goes last: without it a fleet does not count.
            for name in ("models.arrow", "manifest.json"):
                self.blobs.write(f"{fleet_prefix(version)}{name}", Path(folder) / name)
        return version

    def _make_current(self, version: str, before: BlobInfo | None) -> None:
        """Point to a version, if the pointer is what it was before."""
        try:
            if before is None:
                self.blobs.create(CURRENT, version.encode())
            else:
                self.blobs.replace(CURRENT, version.encode(), before.etag)
        except Conflict as error:
            message = (
                f"fleet {self.current()} became current while fleet {version} was made of the one "
                "before: the same again puts the models over the new one"
            )
            raise Conflict(message) from error

    def _base(self, version: str) -> Fleet:
        """Open the fleet that models are to be put over."""
        try:
            return self.open(_checked(version))
        except (InvalidFleet, NotFound) as error:
            message = f"{error}: nothing can be put over it; --fresh replaces it"
            raise type(error)(message) from error

    def versions(self) -> list[str]:
        """Give all published versions, in the order of their names."""
        names = [blob.name.split("/") for blob in self.blobs.list("fleets/")]
        return [parts[1] for parts in names if parts[2:] == ["manifest.json"]]

    def open(self, version: str | None = None) -> Fleet:
        """Open a fleet, the current one by default.

        Raises
        ------
        NotFound, InvalidFleet
            There is none of this version, or it was damaged.
        """
        version = version or self.current()
        prefix = fleet_prefix(version)
        # A folder beside the others only once the version is known to be the name of one.
        folder = self.cache / version
        self.blobs.fetch(prefix, folder)
        if not folder.exists():
            message = f"there is no fleet {version}"
            raise NotFound(message)
        return Fleet.open(folder)


def sensor_rows(history: Iterable[Partials], features: tuple[str, ...]) -> Iterator[SensorRows]:
    """Give the feature rows of one sensor after the other.

    Parameters
    ----------
    history
        Windows ordered by device, sensor and start, in sets that may part a sensor's windows.
    """
    pieces = (piece for windows in history for piece in _pieces(windows, features))
    for (device, sensor), group in groupby(pieces, key=lambda piece: piece[:2]):
        yield device, sensor, np.concatenate([rows for *_, rows in group])


def _pieces(windows: Partials, features: tuple[str, ...]) -> Iterator[SensorRows]:
    matrix = np.column_stack([_feature(windows, name) for name in features])
    begin = 0
    for (device, sensor), group in groupby(windows.keys, key=lambda key: key[:2]):
        end = begin + sum(1 for _ in group)
        yield device, sensor, matrix[begin:end]
        begin = end


def _feature(windows: Partials, name: str) -> np.ndarray:
    """One feature of each window, as `predictions.INPUT_SCHEMA` defines it."""
    column = windows.std() if name == "std" else getattr(windows, name)
    return np.asarray(column, dtype=np.float64)


def _check_same(fleet: Fleet, features: tuple[str, ...]) -> None:
    """Raise `BadInput` where a fleet has other features: its models would all be lost."""
    if fleet.features != features:
        message = (
            f"fleet {fleet.version} of {len(fleet):,} models has the features"
            f" {','.join(fleet.features)}, and these are to have {','.join(features)}: leave"
            " --features out to take the fleet's, or replace the whole fleet by --fresh"
        )
        raise BadInput(message)


def _checked(version: str) -> str:
    """Return a version that a person may have written."""
    try:
        fleet_prefix(version)
    except BadInput as error:
        message = (
            f"the blob {CURRENT} names no fleet but {version[:40]!r}: write the name of a folder"
            " of fleets/ into it, or publish a new fleet (`fleet train`, `fleet import --fresh`)"
        )
        raise InvalidFleet(message) from error
    return version
