"""How a compute cluster stands, as its resource tells."""

from dataclasses import dataclass
from typing import Any

_STATES = ("idle", "running", "preparing", "unusable", "leaving", "preempted")


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What the service alone knows of an AmlCompute.

    Attributes
    ----------
    nodes
        The state of every node.
    target
        Nodes that the cluster is to have; None is as many as it has. It is resizing if it has
        another number, and no error keeps it from that.
    errors
        Code and message of each error of its last attempts to add nodes.
    """

    nodes: tuple[str, ...] = ()
    target: int | None = None
    errors: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Take no state that a node cannot have."""
        assert set(self.nodes) <= set(_STATES), self.nodes

    def rest(self) -> dict[str, Any]:
        """Give the properties that are read-only, as the service writes them."""
        number = len(self.nodes)
        target = number if self.target is None else self.target
        steady = target == number or self.errors
        return {
            "allocationState": "Steady" if steady else "Resizing",
            "allocationStateTransitionTime": "2026-01-05T00:00:00.123+00:00",
            "currentNodeCount": number,
            "targetNodeCount": target,
            "nodeStateCounts": {f"{one}NodeCount": self.nodes.count(one) for one in _STATES},
            "errors": [
                {"error": {"code": code, "message": text, "details": []}}
                for code, text in self.errors
            ],
        }
