"""Routes of runs: start, list, show, cancel."""

import json
import logging
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from scoring.api import cursors
from scoring.api.answers import (
    PARTS,
    NothingToScore,
    Page,
    Run,
    RunAccepted,
    RunDetail,
    RunLog,
    SensorCounts,
    made_of,
)
from scoring.api.parameters import IdempotencyKey, LogName, NoQuery, PageQuery, RunId, RunRequest
from scoring.api.parts import Parts
from scoring.api.prefix import prefix_of
from scoring.api.problems import documented
from scoring.errors import ScoringError
from scoring.queries import RunSummary
from scoring.runs import RequestKey, ScoringRun

BY_SENSOR = 100
"""Sensors that a run shows at once, the most anomalous ones."""

_LOCATION = {"Location": {"description": "The run.", "schema": {"type": "string"}}}
_NOTHING = "nothing to score: no final window that was asked for is pending"

log = logging.getLogger("scoring.api")


def router(parts: Parts) -> APIRouter:
    """Build the routes."""
    routes = APIRouter(tags=["runs"])

    @routes.post(
        "/runs",
        status_code=202,
        response_model=RunAccepted,
        responses=documented(400, 404, 409, 415)
        | {
            200: {"model": NothingToScore, "description": "Nothing to score: no run was started"},
            202: {"description": "The run", "headers": _LOCATION},
        },
    )
    def start_run(
        asked: Request,
        query: Annotated[NoQuery, Query()],
        request: RunRequest | None = None,
        key: IdempotencyKey = None,
    ) -> Response:
        """Start a run. While nothing is pending no run is made, and a key is not spent."""
        with parts.request("api.start_run") as said:
            run = _start(parts, request or RunRequest(), key)
            said |= {"run": run and run.run_id, "state": run and run.state.value}
        if run is None:
            return JSONResponse({"detail": _NOTHING})
        location = f"{prefix_of(asked.scope)}/api/runs/{run.run_id}"
        accepted = RunAccepted.model_validate(made_of(run, location=location))
        return JSONResponse(
            accepted.model_dump(mode="json"), status_code=202, headers={"Location": location}
        )

    @routes.get("/runs", responses=documented(400))
    def list_runs(query: Annotated[PageQuery, Query()]) -> Page[Run]:
        """List runs, the newest first."""
        after = cursors.decode(query.cursor, "runs", query.filters, (int,))
        found = parts.queries.runs(query.limit + 1, *map(int, after or ()))
        rows, cursor = cursors.page(
            found, query.limit, "runs", query.filters, lambda run: (run.number,)
        )
        return Page[Run].model_validate({"items": rows, "next_cursor": cursor})

    @routes.get("/runs/{run_id}", responses=documented(404))
    def show_run(run_id: RunId, query: Annotated[NoQuery, Query()]) -> RunDetail:
        """Show a run: progress, cause of failure, parts, and its most anomalous sensors."""
        return _detail(parts, parts.queries.run(run_id))

    @routes.get("/runs/{run_id}/sensors", responses=documented(400, 404))
    def list_sensors(run_id: RunId, query: Annotated[PageQuery, Query()]) -> Page[SensorCounts]:
        """List what a run said of each sensor, but for windows that a newer run has scored."""
        after = cursors.decode(query.cursor, "run sensors", run_id, (str, str))
        parts.queries.run(run_id)
        key = (str(after[0]), str(after[1])) if after else None
        found = parts.queries.run_sensors(run_id, query.limit + 1, key)
        rows, cursor = cursors.page(
            found, query.limit, "run sensors", run_id, lambda row: (row.device, row.sensor)
        )
        return Page[SensorCounts].model_validate({"items": rows, "next_cursor": cursor})

    @routes.get("/runs/{run_id}/logs/{name:path}", responses=documented(404))
    def show_log(run_id: RunId, name: LogName, query: Annotated[NoQuery, Query()]) -> RunLog:
        """Give the end of a log that is kept of a failed run."""
        parts.queries.run(run_id)
        return RunLog(name=name, text=parts.logs.read(run_id, name))

    @routes.post("/runs/{run_id}/cancel", responses=documented(404, 409, 415))
    def cancel_run(run_id: RunId, query: Annotated[NoQuery, Query()]) -> Run:
        """Stop a run and give its windows back."""
        with parts.request("api.cancel_run", run=run_id) as said:
            said["state"] = parts.watch.cancel(run_id, parts.now()).state.value
        return Run.model_validate(parts.queries.run(run_id))

    return routes


def _start(parts: Parts, request: RunRequest, key: str | None) -> ScoringRun | None:
    version = request.fleet or parts.shelf.current()
    # A version that is not there is told before windows are claimed for it.
    parts.shelf.open(version)
    submit, now, nonce = parts.submit, parts.now(), parts.nonce()
    named = RequestKey(key, _digest(request)) if key else None
    run = submit.begin("http", version, now, nonce, scope=request.scope, request=named)
    if run is not None:
        try:
            return submit.advance(run, now, nonce)
        except ScoringError as error:
            # The run is recorded, with what keeps it: the next watch takes it on from there.
            log.warning("api.run.waits", extra={"run_id": run.run_id, "cause": str(error)})
    return run


def _digest(request: RunRequest) -> str:
    """Tell requests apart by what they ask for: the order of devices is nothing of that."""
    asked = request.model_dump() | {"devices": sorted(set(request.devices))}
    return sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _detail(parts: Parts, summary: RunSummary) -> RunDetail:
    store = parts.submit.store
    found = store.parts(store.run(summary.run_id))
    more: dict[str, Any] = {
        "not_scored": summary.not_scored,
        "part": found[:PARTS],
        "more_parts": len(found) > PARTS,
        "logs": parts.logs.names(summary.run_id),
        "by_sensor": parts.queries.anomalous_sensors(summary.run_id, BY_SENSOR),
    }
    return RunDetail.model_validate(made_of(summary, **more))
