"""Make fleets and check them: train on the store's windows, import files, hold one to the light."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from scoring import instants
from scoring.errors import NotFound
from scoring.fleet import (
    FleetReport,
    Imported,
    Model,
    Refused,
    Training,
    Untrained,
    check_fleet,
    import_models,
    train_fleet,
)
from scoring.handlers.fleets import FleetShelf, sensor_rows
from scoring.queries import Queries

Progress = Callable[[float, float], None]
"""Told how much of how much is done."""


@dataclass(frozen=True, slots=True)
class TrainFleet:
    """Trains a model for each sensor on its windows in the store."""

    queries: Queries
    shelf: FleetShelf
    processes: int

    def __call__(
        self,
        features: tuple[str, ...],
        training: Training,
        until: int,
        now: datetime,
        progress: Progress,
    ) -> tuple[str, int, list[Untrained]]:
        """Train, publish, and give the fleet's version, its size, and who got no model.

        Parameters
        ----------
        until
            Only windows that end at or before this instant are trained on.

        Raises
        ------
        NotFound
            No sensor can be trained on its windows, with the reason: nothing is published.
        """
        total = len(self.queries.sensors())
        models: list[Model] = []
        untrained: list[Untrained] = []
        for one in train_fleet(
            sensor_rows(self.queries.history(until), features),
            features,
            training,
            now,
            processes=self.processes,
            progress=lambda done: progress(done, total),
        ):
            models.append(one) if isinstance(one, Model) else untrained.append(one)
        if not models:
            message = (
                f"no sensor of {total} can be trained on windows before {instants.text(until)}"
            )
            if untrained:
                first = untrained[0]
                message += f"; sensor {first.sensor} of device {first.device}: {first.reason}"
            raise NotFound(message)
        return self.shelf.publish(models, features, now), len(models), untrained


@dataclass(frozen=True, slots=True)
class ImportModels:
    """Imports model files, on top of the current fleet."""

    shelf: FleetShelf

    def __call__(
        self,
        folder: Path,
        pattern: str,
        features: tuple[str, ...],
        now: datetime,
        *,
        fresh: bool = False,
    ) -> tuple[str, int, list[Refused]]:
        """Import, publish, and give the new version, how many models came in, and what was refused.

        The version is empty if every file was refused: nothing is published then.

        Parameters
        ----------
        fresh
            Leave the current fleet's models out. They are too where it has other features.

        Raises
        ------
        Conflict
            Another fleet became current meanwhile, and `fresh` was not asked for.
        """
        found = list(import_models(folder, len(features), pattern))
        models = [one.model for one in found if isinstance(one, Imported)]
        refused = [one for one in found if isinstance(one, Refused)]
        if not models:
            return "", 0, refused
        publish = self.shelf.publish if fresh else self.shelf.update
        return publish(models, features, now), len(models), refused


@dataclass(frozen=True, slots=True)
class CheckFleet:
    """Compares a fleet with the sensors and windows of the store."""

    queries: Queries
    shelf: FleetShelf

    def __call__(self, now: datetime, version: str | None = None) -> FleetReport:
        """Report missing, orphaned, stale and degenerate models."""
        fleet = self.shelf.open(version)
        windows = self.queries.history(instants.of(now))
        return check_fleet(
            fleet, self.queries.sensors(), now, sample=sensor_rows(windows, fleet.features)
        )
