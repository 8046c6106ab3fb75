"""Routes that say how the system itself is: health, readiness, the fleet."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from threading import Lock, Thread
from time import monotonic
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from scoring.api.answers import FleetFindings, Health, Ready
from scoring.api.parameters import DEFAULT_LIMIT, MAX_LIMIT, NoQuery, Version
from scoring.api.parts import Parts
from scoring.api.problems import documented, response
from scoring.errors import NotFound, ScoringError, Transient, cause_of
from scoring.fleet import FleetReport, check_fleet

DEADLINE = 4.0
"""Seconds that a check may take: those who ask whether we are ready seldom wait for longer than 5.

A database in Azure answers in milliseconds, a hub that is signed in to in one second or two. The
first check of a fleet that is large and not here yet may take longer: the next one finds it here.
"""

ABANDONED = 120.0
"""Seconds after which a check that still runs is begun anew: storage has given up long before, and
azure-eventhub waits for ever for a hub that takes a connection and never answers."""

_SILENT = "no answer"
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


@dataclass(frozen=True, slots=True)
class _Running:
    """A check in a thread of its own, and when it began."""

    said: Future[str]
    began: float

    @property
    def is_over(self) -> bool:
        return self.said.done() or monotonic() - self.began > ABANDONED


@dataclass(slots=True)
class Checks:
    """Tries all that is needed at once, and waits for none of it for long.

    A check that did not answer in time goes on, and is what later ones wait for too: nobody who
    asks every second has threads pile up.

    Attributes
    ----------
    checks
        By the name of what they try; each raises if that cannot be used.
    deadline
        See `DEADLINE`.
    """

    checks: dict[str, Callable[[], object]]
    deadline: float = DEADLINE
    _running: dict[str, _Running] = field(init=False, default_factory=dict)
    _lock: Lock = field(init=False, default_factory=Lock)

    def __call__(self) -> dict[str, str]:
        """Give ``ok``, or in a few words what is wrong, by name."""
        saying = {name: self._started(name) for name in self.checks}
        done, _ = wait(saying.values(), self.deadline)
        return {
            name: said.result() if said in done else self._silent(name)
            for name, said in saying.items()
        }

    def _started(self, name: str) -> Future[str]:
        with self._lock:
            running = self._running.get(name)
            if running is None or running.is_over:
                running = self._running[name] = _Running(Future(), monotonic())
                # One that hangs must not keep the process from ending, as a pool's thread does.
                work = (running.said, name, self.checks[name])
                Thread(target=_try, args=work, name=f"checks {name}", daemon=True).start()
            return running.said

    def _silent(self, name: str) -> str:
        cause = f"no answer in {self.deadline:g} s"
        log.warning("api.not_ready", extra={"dependency": name, "cause": cause})
        return _SILENT


def router(parts: Parts, deadline: float = DEADLINE) -> APIRouter:
    """Build the routes.

    Parameters
    ----------
    deadline
        See `DEADLINE`.
    """
    routes = APIRouter(tags=["system"])
    ready_checks = Checks(_checks(parts), deadline)

    @routes.get("/health", responses=documented())
    async def health(query: Annotated[NoQuery, Query()]) -> Health:
        """Say that the process answers; nothing else is looked at."""
        return Health()

    @routes.get("/ready", response_model=Ready, responses=documented())
    def ready(request: Request, query: Annotated[NoQuery, Query()]) -> Response:
        """Say within 5 s whether all that is needed can be used; 503 names what cannot."""
        checks = ready_checks()
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
    checks: dict[str, Callable[[], object]] = {
        "database": lambda: parts.queries.runs(1),
        "blobs": lambda: next(parts.blobs.list("fleets/"), None),
        "fleet": lambda: parts.shelf.open(None),
        "engine": lambda: parts.engine.poll(_NO_RUN),
    }
    if parts.has_hub:
        checks["event_hub"] = parts.check_hub
    return checks


def _try(said: Future[str], name: str, check: Callable[[], object]) -> None:
    """Have a future say ``ok``, or in a few words what is wrong; the log has all of them."""
    try:
        check()
    except Exception as error:
        facts = {"dependency": name, "error": type(error).__name__, "cause": cause_of(error)}
        # Of what is known its cause is enough: this is asked every few seconds.
        trace = None if isinstance(error, (ScoringError, OSError)) else error
        log.warning("api.not_ready", extra=facts, exc_info=trace)
        said.set_result(_meaning(name, error))
    else:
        said.set_result("ok")


def _meaning(name: str, error: Exception) -> str:
    """Say what is wrong without the error's words, which may name hosts; a fleet's do not."""
    if isinstance(error, NotFound):
        return str(error) if name == "fleet" else "not found"
    return "busy or unreachable" if isinstance(error, Transient) else "unusable"
