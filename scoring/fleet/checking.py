"""A fleet held against what is known of the sensors: which models are missing, or no good."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from scoring.detectors import Array
from scoring.fleet.file import Fleet, ModelInfo
from scoring.fleet.naming import normalised
from scoring.fleet.predicting import decide_model

STALE_AFTER = timedelta(days=90)
"""Age from which a model is stale, if nobody says otherwise: a season."""

ENOUGH_ROWS = 10
"""Rows that a model must be seen to call anomalous, all of them, before it is called degenerate."""


_MISSING = "was seen, but the fleet has no model of it"
_ORPHAN = "has a model, but was not seen"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one sensor's model; ``why`` is a sentence."""

    device: str
    sensor: str
    why: str


@dataclass(frozen=True, slots=True)
class FleetReport:
    """All findings, by what they are.

    Attributes
    ----------
    missing
        Sensors seen that have no model: their windows are not scored.
    orphans
        Models of sensors that were not seen.
    stale
        Models trained too long ago.
    degenerate
        Models that cannot tell usual from unusual.
    partial
        Models that do not take all features of the fleet: good to know, and nothing to mend.
    """

    missing: tuple[Finding, ...]
    orphans: tuple[Finding, ...]
    stale: tuple[Finding, ...]
    degenerate: tuple[Finding, ...]
    partial: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        """Whether there is nothing to mend."""
        return not (self.missing or self.orphans or self.stale or self.degenerate)


def check_fleet(
    fleet: Fleet,
    seen: Iterable[tuple[str, str]],
    now: datetime,
    *,
    stale_after: timedelta = STALE_AFTER,
    sample: Iterable[tuple[str, str, Array]] = (),
) -> FleetReport:
    """Compare a fleet with the sensors that were seen, and its models with some of their windows.

    Parameters
    ----------
    seen
        Device and sensor of every sensor that has windows.
    now
        Aware; what stale is measured from.
    sample
        Feature rows, shape (windows, features), of sensors to try their models on; without them
        only models with a single support vector count as degenerate.
    """
    # By names in one form of Unicode, in which scoring finds them too.
    present = {normalised(key): key for key in seen}
    models = {normalised(key): row for row, key in enumerate(fleet.keys())}
    infos = [fleet.describe(row) for row in models.values()]
    degenerate = {(info.device, info.sensor): why for info in infos if (why := _lonely(info))}
    for device, sensor, x in sample:
        row = models.get(normalised((device, sensor)))
        if row is not None and (why := _indiscriminate(fleet, row, x)):
            degenerate[infos[row].device, infos[row].sensor] = why
    oldest = now - stale_after
    return FleetReport(
        missing=_findings((*present[key], _MISSING) for key in present.keys() - models.keys()),
        orphans=_findings(
            (infos[models[key]].device, infos[models[key]].sensor, _ORPHAN)
            for key in models.keys() - present.keys()
        ),
        stale=_findings(
            (info.device, info.sensor, f"trained {(now - info.trained_at).days} days ago")
            for info in infos
            if info.trained_at is not None and info.trained_at < oldest
        ),
        degenerate=_findings((*key, why) for key, why in degenerate.items()),
        partial=_findings(
            (info.device, info.sensor, _partial(info))
            for info in infos
            if len(info.features) < len(fleet.features)
        ),
    )


def _findings(found: Iterable[tuple[str, str, str]]) -> tuple[Finding, ...]:
    return tuple(Finding(*one) for one in sorted(found))


def _partial(info: ModelInfo) -> str:
    return f"takes {', '.join(info.features)} only: {info.source}"


def _lonely(info: ModelInfo) -> str:
    if info.support != 1:
        return ""
    return "has a single support vector: at most one value is not an anomaly to it"


def _indiscriminate(fleet: Fleet, row: int, x: Array) -> str:
    x = x[np.isfinite(x).all(axis=1)]
    if len(x) < ENOUGH_ROWS or not decide_model(fleet, row, x)[1].all():
        return ""
    return f"calls all {len(x)} windows that it was tried on anomalous"
