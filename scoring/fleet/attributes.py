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


class Unread:
    """What a file holds and nobody has read: all that is known of it is what it asks for.

    Attributes
    ----------
    asked
        Module and name, cut to a bearable length.
    """

    def __init__(self, module: str, name: str) -> None:
        self.asked = f"{module[:100]}.{name[:100]}"


def attributes_of(thing: object) -> tuple[str, Attributes]:
    """Class name and attributes of a captured object, or of one of scikit-learn's own."""
    if isinstance(thing, Captured):
        return thing.name, thing.state if isinstance(thing.state, dict) else {}
    if type(thing).__module__.startswith("sklearn."):
        return type(thing).__name__, vars(thing) if hasattr(thing, "__dict__") else {}
    return "", {}
