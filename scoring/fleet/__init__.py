"""The fleet: all models of one version in one memory-mapped file.

Made by importing or training models, opened by mapping, asked by `score_part`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scoring.fleet.file import Fleet, ModelInfo
from scoring.fleet.manifest import read_manifest
from scoring.fleet.predicting import score_part

if TYPE_CHECKING:
    from scoring.fleet.adding import Model
    from scoring.fleet.checking import Finding, FleetReport, check_fleet
    from scoring.fleet.importing import Imported, Refused, import_models
    from scoring.fleet.training import Training, Untrained, train_fleet, train_model
    from scoring.fleet.writing import merge_models, write_fleet

__all__ = [
    "Finding",
    "Fleet",
    "FleetReport",
    "Imported",
    "Model",
    "ModelInfo",
    "Refused",
    "Training",
    "Untrained",
    "check_fleet",
    "import_models",
    "merge_models",
    "read_manifest",
    "score_part",
    "train_fleet",
    "train_model",
    "write_fleet",
]

# A process that only scores is done in the time that these take to import what they need.
_LATER = {
    "adding": ("Model",),
    "checking": ("Finding", "FleetReport", "check_fleet"),
    "importing": ("Imported", "Refused", "import_models"),
    "training": ("Training", "Untrained", "train_fleet", "train_model"),
    "writing": ("merge_models", "write_fleet"),
}
_MODULES = {name: module for module, names in _LATER.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import what is not needed for scoring when it is first asked for."""
    if name not in _MODULES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
