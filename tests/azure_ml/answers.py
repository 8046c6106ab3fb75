"""What the service answers, and how it says no."""

import json
import uuid
from dataclasses import dataclass, field
from typing import Any, NoReturn


@dataclass(slots=True)
class Answer:
    """One HTTP answer; `body` is sent as JSON, unless `content` holds the bytes themselves."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None

    def payload(self) -> bytes:
        """Give the bytes to send."""
        if self.content is not None:
            return self.content
        return b"" if self.body is None else json.dumps(self.body).encode()


class ServiceError(Exception):
    """The service refuses a request, in the shape that Azure Resource Manager knows."""

    def __init__(self, status: int, code: str, message: str, *inner: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.inner = inner

    def answer(self) -> Answer:
        """Give the error as the service writes it."""
        nested: dict[str, Any] | None = None
        for code in reversed(self.inner):
            nested = {"code": code, "innerError": nested}
        error: dict[str, Any] = {"code": self.code, "message": self.message, "details": []}
        error["additionalInfo"] = [
            {"type": "ComponentName", "info": {"value": "managementfrontend"}},
            {"type": "Correlation", "info": {"value": {"operation": uuid.uuid4().hex}}},
        ]
        if nested:
            error["innerError"] = nested
            error["additionalInfo"].append({"type": "InnerError", "info": {"value": nested}})
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer authorization_uri="https://login.windows.net/"'
        return Answer(self.status, {"error": error}, headers)


def not_found(what: str, name: str) -> NoReturn:
    """Refuse what asks for a resource that is not there."""
    raise ServiceError(404, "UserError", f"{what} {name} was not found.", "NotFound")


def refuse(message: str, *inner: str) -> NoReturn:
    """Refuse a request that makes no sense to the service."""
    raise ServiceError(400, "UserError", message, *(inner or ("BadArgument", "ArgumentInvalid")))
