"""The columns that a model was fitted on, found among the features of a fleet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scoring.errors import ModelRefused
from scoring.fleet.attributes import Captured
from scoring.predictions import FEATURES

_LONGEST = 40
"""Characters of a column's name that are shown; a hostile file's can be of any length."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which feature of the fleet each column of a model is.

    Attributes
    ----------
    features
        Of the fleet, in its order.
    renamed
        Features by the names that models have for them.
    by_position
        Take the features in the fleet's order whatever a model calls its columns.
    """

    features: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    by_position: bool = False

    def of(self, detector: object) -> tuple[int, ...]:
        """Return the positions of a detector's columns among the features, in its own order.

        Empty where it takes all features in the fleet's order, as one without names does.

        Raises
        ------
        ModelRefused
            A column is no feature, or none of this fleet's; the message names the way out.
        """
        names = () if self.by_position else column_names(detector)
        wanted = [self.renamed.get(name, name) for name in names]
        if foreign := [name for name in wanted if name not in FEATURES]:
            message = (
                f"takes columns {_listed(names)}, and {_listed(foreign)} is no feature: "
                f"--columns {foreign[0][:_LONGEST]}=mean says which one it is, --by-position"
                f" takes {','.join(self.features)} in this order"
            )
            raise ModelRefused(message)
        if len(set(wanted)) < len(wanted):
            message = f"takes one feature twice: {_listed(wanted)}"
            raise ModelRefused(message)
        if lacking := [name for name in wanted if name not in self.features]:
            message = (
                f"takes {_listed(lacking)}, and the fleet has {','.join(self.features)}:"
                f" --features {_together(self.features, lacking)} --fresh makes one that has all"
            )
            raise ModelRefused(message)
        positions = tuple(self.features.index(name) for name in wanted)
        return () if positions == tuple(range(len(self.features))) else positions


def column_names(detector: object) -> tuple[str, ...]:
    """Return the names of the columns that a detector was fitted on; none: it was on an array.

    Raises
    ------
    ModelRefused
        They are no texts.
    """
    names = _names_of(detector)
    if names is None:
        return ()
    found = list(names)
    if not all(isinstance(name, str) for name in found):
        message = "names its columns by something else than text"
        raise ModelRefused(message)
    return tuple(map(str, found))


def _names_of(detector: Any) -> Any:
    """Return ``feature_names_in_``, which a pipeline has from its first step."""
    if not isinstance(detector, Captured):
        return getattr(detector, "feature_names_in_", None)
    state = detector.state if isinstance(detector.state, dict) else {}
    match state.get("steps"):
        case [[_, Captured() as first], *_] | [(_, Captured() as first), *_]:
            return _names_of(first)
    names = state.get("feature_names_in_")
    return names if isinstance(names, list) else None


def _listed(names: Any) -> str:
    return ", ".join(name[:_LONGEST] for name in names)


def _together(features: tuple[str, ...], lacking: list[str]) -> str:
    return ",".join(name for name in FEATURES if name in features or name in lacking)
