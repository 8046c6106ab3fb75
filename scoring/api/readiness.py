"""Routes that say how the system itself is: health, readiness, the fleet."""

import logging
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from scoring.api.answers import FleetFindings, Health, Ready
from scoring.api.parameters import DEFAULT_LIMIT, MAX_LIMIT, NoQuery, Version
from scoring.api.parts import Parts
from scoring.api.problems import documented, response
from scoring.errors import NotFound, ScoringError, Transient
from scoring.fleet import FleetReport, check_fleet

_NO_RUN = "r00000000T000000Z-000000"
_KINDS = ("missing", "orphans", "stale", "degenerate")

log = logging.getLogger("scoring.api")


class FleetQuery(NoQuery):
    """Which fleet, and how thoroughly."""

    version: Version | None = Field(default=None, description="The current one by default.")
    limit: int = Field(default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Findings a list.")
    try_models: bool = Field(
        default=False,
        description="Try each model on all its windows, to find those that call everything"
        " anomalous: that takes seconds a million windows.",
    )


def router(parts: Parts) -> APIRouter:
    """Build the routes."""
    routes = APIRouter(tags=["system"])

    @routes.get("/health", responses=documented())
    async def health(query: Annotated[NoQuery, Query()]) -> Health:
        """Say that the process answers; nothing else is looked at."""
        return Health()

    @routes.get("/ready", response_model=Ready, responses=documented())
    def ready(request: Request, query: Annotated[NoQuery, Query()]) -> Response:
        """Say whether all that is needed can be used; 503 names what cannot."""
        checks = {name: _tried(name, check) for name, check in _checks(parts).items()}
        down = [name for name, said in checks.items() if said != "ok"]
        if down:
            detail = f"not ready: {', '.join(down)}"
            return response(request, 503, detail, "not-ready", checks=checks)
        return JSONResponse({"status": "ok", "checks": checks})

    @routes.get("/fleet/check", responses=documented(404))
    def check(query: Annotated[FleetQuery, Query()]) -> FleetFindings:
        """Name missing models, orphans, stale and degenerate ones."""
        version = query.version or parts.shelf.current()
        report = _report(parts, version, try_models=query.try_models)
        lists = {kind: list(getattr(report, kind)) for kind in _KINDS}
        return FleetFindings.model_validate(
            {
                "version": version,
                "clean": report.clean,
                "tried": query.try_models,
                "total": {kind: len(found) for kind, found in lists.items()},
                **{kind: found[: query.limit] for kind, found in lists.items()},
            }
        )

    return routes


def _report(parts: Parts, version: str, *, try_models: bool) -> FleetReport:
    if try_models:
        return parts.check_fleet(parts.now(), version)
    return check_fleet(parts.shelf.open(version), parts.queries.sensors(), parts.now())


def _checks(parts: Parts) -> dict[str, Callable[[], object]]:
    return {
        "database": lambda: parts.queries.runs(1),
        "blobs": lambda: next(parts.blobs.list("fleets/"), None),
        "fleet": lambda: parts.shelf.open(None),
        "engine": lambda: parts.engine.poll(_NO_RUN),
    }


def _tried(name: str, check: Callable[[], object]) -> str:
    """Give ``ok``, or in a few words what is wrong; the log has all of them."""
    try:
        check()
    except NotFound as error:
        return str(error)
    except (ScoringError, OSError) as error:
        log.warning("api.not_ready", extra={"dependency": name}, exc_info=error)
        return "busy or unreachable" if isinstance(error, Transient) else "unusable"
    return "ok"
