"""The ASGI app: routes, problem details, and the document that describes them."""

from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

from scoring.api import looking, readiness, runs
from scoring.api.gate import BODY_TIMEOUT, Gate
from scoring.api.parameters import BODY_LIMIT, given_once
from scoring.api.parts import Parts
from scoring.api.prefix import HEADER, prefix_of
from scoring.api.problems import Problem, add_handlers
from scoring.bootstrap import App

DOCUMENT = "/api/openapi.json"
"""Where the OpenAPI document is served."""

_ABOUT = """\
Starts and shows scoring runs, and what they found. Lists are paged: `next_cursor` of one page is
the `cursor` of the next, with the same other parameters. Times are ISO 8601 in UTC; a range is
`[since, until)`. Every error is a problem detail (RFC 9457), `application/problem+json`. Addresses
in answers are paths, on the host that was asked; a proxy that takes a part of the path away tells
it by the header `X-Forwarded-Prefix`."""


def create_api(
    app: App, *, body_limit: int = BODY_LIMIT, body_timeout: float = BODY_TIMEOUT
) -> FastAPI:
    """Put the system behind HTTP; nothing of it is opened before the first request needs it.

    Parameters
    ----------
    body_limit
        Bytes that a request may carry.
    body_timeout
        Seconds that a client may take to send them.
    """
    api = FastAPI(
        title="Fleet scoring",
        version="1",
        description=_ABOUT,
        # FastAPI's own route knows no prefix but that of the server.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # A redirect would be an answer that the document does not know.
        redirect_slashes=False,
        dependencies=[Depends(given_once)],
    )
    parts = Parts(app)
    for module in (runs, looking, readiness):
        api.include_router(module.router(parts), prefix="/api")
    add_handlers(api)
    api.add_middleware(Gate, body_limit=body_limit, body_timeout=body_timeout)
    api.openapi = lambda: _document(api)  # type: ignore[method-assign]
    api.add_route(DOCUMENT, _show_document, include_in_schema=False)
    return api


def _show_document(request: Request) -> Response:
    """Answer with the document, which says below which prefix its paths are."""
    document, prefix = request.app.openapi(), prefix_of(request.scope)
    servers = {"servers": [{"url": prefix}]} if prefix else {}
    return JSONResponse(document | servers, headers={"Vary": HEADER})


def _document(api: FastAPI) -> dict[str, Any]:
    """Describe the API; the form of a problem is given once."""
    if api.openapi_schema is None:
        document = get_openapi(
            title=api.title,
            version=api.version,
            description=api.description,
            routes=api.routes,
        )
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        schemas |= schema.pop("$defs", {}) | {"Problem": schema}
        # FastAPI's own form of an error, which no answer here has.
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        api.openapi_schema = document
    return api.openapi_schema
