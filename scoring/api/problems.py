"""Problem details (RFC 9457): what is said of every request that is not carried out."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from scoring.api.prefix import asked_path
from scoring.errors import (
    BadInput,
    Conflict,
    InvalidFleet,
    InvalidPart,
    Misconfigured,
    NotFound,
    RebuildUnderWay,
    ScoringError,
    StorageUnusable,
    TooManyRuns,
    Transient,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 5
"""Seconds after which a request that met something busy may be sent again."""

_KINDS = "urn:fleet-scoring:problem:"
_SCHEMA = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}

log = logging.getLogger("scoring.api")


class BadCursor(BadInput):
    """A cursor that this API did not give, or gave for another list."""


class FieldError(BaseModel):
    """What is wrong with one parameter, header or field of the body."""

    where: str = Field(examples=["query.limit"])
    why: str


class Problem(BaseModel):
    """A problem detail (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field("about:blank", description="A URI that names the kind of problem.")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    instance: str = Field(description="The path that was asked for.")
    errors: list[FieldError] | None = None


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the problems that a route may answer with."""
    common = {408, 413, 422, 500, 503, 507}
    return {status: _described(status) for status in sorted(common | set(statuses))}


def _described(status: int) -> dict[str, Any]:
    described: dict[str, Any] = {"description": title_of(status), "content": _SCHEMA}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        header = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
        described["headers"] = {"Retry-After": header}
    return described


def title_of(status: int) -> str:
    """Give what HTTP calls a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def problem(
    path: str, status: int, detail: str, kind: str = "", **more: Any
) -> tuple[Problem, dict[str, str]]:
    """Make a problem and the headers that go with it."""
    made = Problem(
        type=_KINDS + kind if kind else "about:blank",
        title=title_of(status),
        status=status,
        detail=detail,
        # A path was decoded; an instance is a URI.
        instance=quote(path),
        **more,
    )
    is_busy = status == HTTPStatus.SERVICE_UNAVAILABLE
    return made, {"Retry-After": str(RETRY_AFTER)} if is_busy else {}


def response(request: Request, status: int, detail: str, kind: str = "", **more: Any) -> Response:
    """Answer with a problem."""
    made, headers = problem(asked_path(request.scope), status, detail, kind, **more)
    return answer(made, headers)


def answer(made: Problem, headers: Mapping[str, str]) -> Response:
    """Make an answer of a problem."""
    return Response(
        made.model_dump_json(exclude_none=True),
        status_code=made.status,
        media_type=MEDIA_TYPE,
        headers=dict(headers),
    )


def add_handlers(api: FastAPI) -> None:
    """Turn every error that a route raises on purpose into a problem."""
    api.add_exception_handler(HTTPException, _of_http)
    api.add_exception_handler(RequestValidationError, _of_validation)
    api.add_exception_handler(ScoringError, _of_scoring)


def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - FastAPI's types know no better
    detail, kind = str(error.detail), ""
    if error.status_code == HTTPStatus.BAD_REQUEST and error.__cause__ is not None:
        # FastAPI says so of a body that it cannot parse, and only the cause tells why.
        detail, kind = _of_a_body(error.__cause__), "not-json"
    made, headers = problem(asked_path(request.scope), error.status_code, detail, kind)
    headers |= dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed(request))
    return answer(made, headers)


def _of_a_body(cause: BaseException) -> str:
    if isinstance(cause, RecursionError):
        return "the body is not JSON that can be read: it is nested too deeply"
    if isinstance(cause, UnicodeDecodeError):
        return "the body is not JSON: it is not UTF-8"
    return "the body is not JSON"


def _allowed(request: Request) -> list[str]:
    """Give the methods of a path; the route that was found first knows its own only."""
    return [
        method
        for method in ("GET", "POST")
        for route in request.app.router.routes
        if route.matches({**request.scope, "method": method})[0] is Match.FULL
    ]


def _of_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    found = error.errors()
    # What was sent is not sent back: it may be large, and need not be text.
    errors = [FieldError(where=_where(one["loc"]), why=one["msg"]) for one in found]
    if any(one["type"] == "json_invalid" for one in found):
        return response(request, 400, "the body is not JSON", "not-json")
    detail = "; ".join(f"{one.where}: {one.why}" for one in errors)
    return response(request, 422, detail, "invalid-request", errors=errors)


def _where(location: tuple[Any, ...]) -> str:
    return ".".join(str(part)[:100] for part in location)


def _of_scoring(request: Request, error: Exception) -> Response:
    status, kind, detail = _meaning(error)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("api.problem", extra={"status": status, "kind": kind}, exc_info=error)
    return response(request, status, detail, kind)


def _meaning(error: Exception) -> tuple[int, str, str]:
    """Give status, kind and detail."""
    for kinds, status, name, detail in _MEANINGS:
        if isinstance(error, kinds):
            return status, name, detail or str(error)
    return 500, "failed", "the request failed; the log says why"


_MEANINGS: tuple[tuple[tuple[type[ScoringError], ...], int, str, str], ...] = (
    ((BadCursor,), 400, "bad-cursor", ""),
    # Of what is our own fault the log has the words: they may name folders, hosts and settings.
    (
        (Misconfigured, InvalidFleet, InvalidPart),
        *(500, "damaged", "something stored is damaged or set up wrongly; the log says what"),
    ),
    ((BadInput,), 422, "bad-input", ""),
    ((NotFound,), 404, "not-found", ""),
    ((TooManyRuns,), 409, "too-many-runs", ""),
    ((RebuildUnderWay,), 409, "rebuild-under-way", ""),
    ((Conflict,), 409, "conflict", ""),
    (
        (Transient,),
        *(503, "busy", "something is busy or unreachable: try again; /api/ready says what"),
    ),
    (
        (StorageUnusable,),
        *(507, "storage", "the storage is full, read-only or damaged; the log says what"),
    ),
)
"""The first that fits counts; an empty detail stands for the error's own words."""
