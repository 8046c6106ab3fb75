"""Fleets on their shelf: published under their version, one of them current."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from scoring.aggregates import Partials
from scoring.errors import Conflict, InvalidFleet, NotFound
from scoring.fleet import Fleet, Model, merge_models, write_fleet
from scoring.ports import BlobInfo, Blobs
from scoring.runs import fleet_prefix

CURRENT = "fleets/current"
"""The blob that names the version that new runs take."""

SensorRows = tuple[str, str, np.ndarray]
"""Device, sensor and feature rows, float64, shape (windows, features)."""


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
        self, changed: Sequence[Model], features: tuple[str, ...], created_at: datetime
    ) -> str:
        """Publish the current fleet with models put over it; without it if its features differ.

        Raises
        ------
        ModelRefused, InvalidFleet, StorageUnusable
            As `publish`.
        Conflict
            Another fleet became current meanwhile: its models would be lost.
        """
        current, models = self._current(), iter(changed)
        if current:
            fleet = self.open(_checked(current[0]))
            models = merge_models(fleet, changed) if fleet.features == features else models
        version = self._shelve(models, features, created_at)
        self._make_current(version, current and current[1])
        return version

    def current(self) -> str:
        """Give the version that new runs take; raise `NotFound` where none was published."""
        current = self._current()
        if current is None:
            message = "there is no fleet yet: `fleet train` or `fleet import` makes one"
            raise NotFound(message)
        return _checked(current[0])

    def _current(self) -> tuple[str, BlobInfo] | None:
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
        folder = self.cache / version
        self.blobs.fetch(fleet_prefix(version), folder)
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


def _checked(version: str) -> str:
    """Return a version that a person may have written."""
    if re.fullmatch(r"[\w.-]{1,64}", version):
        return version
    message = (
        f"the blob {CURRENT} names no fleet but {version[:40]!r}: write the name of a folder of"
        " fleets/ into it, or publish a new fleet (`fleet train`, `fleet import --fresh`)"
    )
    raise InvalidFleet(message)
