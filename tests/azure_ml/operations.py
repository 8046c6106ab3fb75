"""Operations that take their time, and how they are polled."""

import uuid
from dataclasses import dataclass

from tests.azure_ml.answers import Answer, not_found
from tests.azure_ml.identity import ARM
from tests.azure_ml.resources import Resource

# The SDK's pollers wait 30 s if the service names no time, or names 0; and the operations' first
# answers may name whole seconds only, but need none, for the first poll comes at once.
_POLL = {"Retry-After": "0.02"}


@dataclass(slots=True)
class _Operation:
    resource: Resource | None
    polls: int


class Operations:
    """The operations under way.

    Attributes
    ----------
    polls
        How many polls an operation takes from now on.
    failures
        Names of resources that cannot be made, with the code and the message of the reason.
    """

    def __init__(self, subscription: str) -> None:
        self.polls = 1
        self.failures: dict[str, tuple[str, str]] = {}
        self.path = (
            f"/subscriptions/{subscription}/providers/Microsoft.MachineLearningServices"
            "/locations/westeurope/mfeOperationsStatus/"
        )
        self._items: dict[str, _Operation] = {}

    def begin(self, stored: Resource, *, new: bool) -> Answer:
        """Begin to make a resource; its state is told by the operation's."""
        stored.state = "Creating" if new else "Updating"
        where = {"Azure-AsyncOperation": self._begin(_Operation(stored, self.polls))}
        return Answer(201 if new else 200, stored.rest(), where)

    def begin_by_location(self) -> Answer:
        """Begin something without a resource: 202 while it runs, then 200."""
        return Answer(202, headers={"Location": self._begin(_Operation(None, self.polls - 1))})

    def _begin(self, operation: _Operation) -> str:
        name = str(uuid.uuid4())
        self._items[name] = operation
        return f"{ARM}{self.path}{name}?api-version=2023-10-01"

    def answer(self, path: str) -> Answer:
        """Answer a poll."""
        name = path.removeprefix(self.path)
        operation = self._items.get(name)
        if operation is None:
            not_found("Operation", name)
        operation.polls -= 1
        if operation.resource is None:
            where = {"Location": f"{ARM}{path}?api-version=2023-10-01"}
            return Answer(202, headers=where | _POLL) if operation.polls >= 0 else Answer()
        body: dict[str, object] = {"id": path, "name": name, "status": "InProgress"}
        if operation.polls <= 0:
            body |= self._end(operation.resource)
        return Answer(body=body, headers=_POLL)

    def _end(self, resource: Resource) -> dict[str, object]:
        if resource.name not in self.failures:
            resource.state = "Succeeded"
            return {"status": "Succeeded"}
        resource.state = "Failed"
        code, message = self.failures[resource.name]
        return {"status": "Failed", "error": {"code": code, "message": message}}
