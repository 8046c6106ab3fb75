"""Steps of publishing: each looks whether what it would make is there, just like that."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from scoring.adapters.azure_ml.workspace import Workspace
from scoring.errors import NotFound

if TYPE_CHECKING:
    from azure.ai.ml import MLClient


class Step(Protocol):
    """One thing to publish."""

    @property
    def what(self) -> str:
        """Name it, with its version where it has one."""

    def is_there(self) -> bool:
        """Return whether it is in place already, just like this."""

    def make(self) -> object:
        """Put it in place."""

    def note(self) -> str:
        """Return what people need to know of it once it is in place; empty if that is nothing."""


@dataclass(frozen=True, slots=True)
class Task:
    """Implements `Step` by functions."""

    what: str
    is_there: Callable[[], bool]
    make: Callable[[], object]
    note: Callable[[], str] = str


def find(workspace: Workspace, what: str, question: "Callable[[MLClient], Any]") -> Any:
    """Give what the service has, or None; what it failed to make is not there."""
    try:
        found = workspace.ask(what, question)
    except NotFound:
        return None
    return None if getattr(found, "provisioning_state", "") == "Failed" else found


def exists(
    workspace: Workspace, what: str, question: "Callable[[MLClient], Any]"
) -> Callable[[], bool]:
    """Ask later whether the service has it."""
    return lambda: find(workspace, what, question) is not None
