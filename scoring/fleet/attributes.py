"""Attributes of estimators, live ones and those of which nothing else was read."""

from collections.abc import Mapping
from typing import Any

Attributes = Mapping[str, Any]


class Captured:
    """An object of which only the class name, arguments and attributes were read from a file."""

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = {}


def attributes_of(thing: object) -> tuple[str, Attributes]:
    """Class name and attributes of a captured object, or of one of scikit-learn's own."""
    if isinstance(thing, Captured):
        return thing.name, thing.state if isinstance(thing.state, dict) else {}
    if type(thing).__module__.startswith("sklearn."):
        return type(thing).__name__, vars(thing) if hasattr(thing, "__dict__") else {}
    return "", {}
