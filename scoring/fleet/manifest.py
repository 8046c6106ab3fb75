"""What a fleet says of itself: ``manifest.json``, and what may stand in it."""

import json
from pathlib import Path
from typing import Any

from scoring.errors import InvalidFleet
from scoring.predictions import FEATURES

FORMAT = 2
"""Number of the format that is written; a fleet of one that is not known is refused."""

WITHOUT_OWN_FEATURES = 1
"""The format before, in which every model takes all features of the fleet; it is read too."""

MODELS = "models.arrow"
MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check ``manifest.json`` alone: cheap, says the version and what is in the fleet.

    Raises
    ------
    InvalidFleet
        It is missing, not JSON, of another format, or lacks an entry.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        message = f"{path} is missing or cannot be read: {error.strerror}"
        raise InvalidFleet(message) from error
    except (ValueError, RecursionError) as error:
        message = f"{path} is not JSON: {error}"
        raise InvalidFleet(message) from error
    number = manifest.get("format") if isinstance(manifest, dict) else None
    if number not in (WITHOUT_OWN_FEATURES, FORMAT):
        message = f"{path} has format {number!r}, this program reads formats 1 to {FORMAT}"
        raise InvalidFleet(message)
    for name, kind in {"version": str, "sha256": str, "size": int, "features": list}.items():
        if not isinstance(manifest.get(name), kind):
            message = f"{path} has no usable entry {name!r}"
            raise InvalidFleet(message)
    return dict(manifest)


def version_of(sha256: str) -> str:
    """Name a fleet by the SHA-256 of its ``models.arrow``."""
    return "f" + sha256[:12]


def check_features(features: tuple[str, ...]) -> str:
    """Say what is wrong with a tuple of features, empty if nothing."""
    if not features:
        return "a fleet needs at least one feature"
    if unknown := [str(name) for name in features if name not in FEATURES]:
        return f"unknown features: {', '.join(unknown)} (known: {', '.join(FEATURES)})"
    if len(set(features)) < len(features):
        return "a feature is named twice"
    return ""
