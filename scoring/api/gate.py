"""What every request passes before the routes, and every answer after them."""

import asyncio
import logging
from time import perf_counter

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scoring.api.prefix import asked_path
from scoring.api.problems import answer, problem
from scoring.api.settling import settle

BODY_TIMEOUT = 10.0
"""Seconds that a client may take to send its body."""

_HOST_KEYS = (b"code=", b"clientId=")

log = logging.getLogger("scoring.api")


class _Refused(Exception):
    def __init__(self, status: int, detail: str, kind: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.kind = status, detail, kind


class _Gone(Exception):
    """The client is: nobody is left to be told."""


class Gate:
    """ASGI middleware: bounds the body in size and time, and lets no error through as it is.

    The body is read before a route gets a thread, so that a slow client holds none.
    """

    def __init__(self, app: ASGIApp, *, body_limit: int, body_timeout: float) -> None:
        self._app = app
        self._limit = body_limit
        self._timeout = body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "query_string": _without_host_keys(scope["query_string"])}
        status, begin = 0, perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            body = await self._body(Request(scope), receive)
            await self._app(scope, _again(body, receive), noted)
        except _Gone:
            pass
        except _Refused as refused:
            await _refusal(scope, refused)(scope, receive, noted)
        except Exception:
            log.exception("api.failed")
            if status:
                raise  # Half an answer is out: only breaking the connection says so.
            failed = _Refused(500, "the request failed; the log says why", "failed")
            await _refusal(scope, failed)(scope, receive, noted)
        log.info(
            "api.request",
            extra={
                "method": scope["method"],
                "route": getattr(scope.get("route"), "path", ""),
                "status": status,
                "milliseconds": round((perf_counter() - begin) * 1000, 3),
            },
        )
        settle()

    async def _body(self, request: Request, receive: Receive) -> bytes:
        if request.headers.get("content-length", "").isdigit():
            self._check(int(request.headers["content-length"]))
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    body += message.get("body", b"")
                    self._check(len(body))
                    if not message.get("more_body", False):
                        break
        except TimeoutError as error:
            detail = f"the body did not come within {self._timeout:g} s"
            raise _Refused(408, detail, "slow-body") from error
        if body and request.method == "POST":
            _check_type(request)
            _check_coding(request)
        return bytes(body)

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise _Refused(413, f"a body may have {self._limit} bytes", "large-body")


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise _Refused(415, "a body must be application/json", "not-json")


def _check_coding(request: Request) -> None:
    given = request.headers.get("content-encoding", "identity").strip().lower()
    if given not in {"", "identity"}:
        raise _Refused(415, "a body must not be compressed: send it as it is", "compressed")


def _without_host_keys(query: bytes) -> bytes:
    """Take out what the Functions host reads and passes on: it is no parameter of ours."""
    return b"&".join(part for part in query.split(b"&") if not part.startswith(_HOST_KEYS))


def _again(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read already, and then whatever comes."""
    waiting = [body]

    async def given() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return given


def _refusal(scope: Scope, refused: _Refused) -> ASGIApp:
    made, headers = problem(asked_path(scope), refused.status, refused.detail, refused.kind)
    # What is left of the body is not read: the connection cannot be used again.
    closing = {"Connection": "close"} if refused.status in {408, 413} else {}
    return answer(made, headers | closing)
