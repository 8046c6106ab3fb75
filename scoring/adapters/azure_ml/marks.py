"""A small blob for each run: which workspace has it, and whether it was canceled without a job."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from scoring.adapters.azure_ml.publication import from_json
from scoring.errors import Conflict, NotFound, StorageUnusable, Transient
from scoring.ports import Blobs

_ATTEMPTS = 5
"""Times that a mark is changed again because another process changed it meanwhile."""


@dataclass(frozen=True, slots=True)
class RunMark:
    """What is kept of a run.

    Attributes
    ----------
    workspace
        ARM id of the only workspace that may have a job for the run.
    canceled
        The run was canceled while it had no job.
    refused
        The run was submitted after that, and got no job.
    """

    workspace: str
    canceled: bool = False
    refused: bool = False

    def content(self) -> bytes:
        """Return the content of the blob; what is false is left out."""
        return json.dumps({name: value for name, value in asdict(self).items() if value}).encode()


def mark_run(blobs: Blobs, run_id: str, workspace: str) -> RunMark:
    """Give a run to the workspace of this ARM id, for good: no other one may have a job for it.

    Raises
    ------
    Conflict
        It was given to another one.
    """
    mark = RunMark(workspace)
    try:
        blobs.create(_name(run_id), mark.content())
    except Conflict:
        return check_run(blobs, run_id, workspace) or mark
    return mark


def check_run(blobs: Blobs, run_id: str, workspace: str) -> RunMark | None:
    """Return the mark of a run that was given to this workspace; None if it was given to none.

    Raises
    ------
    Conflict
        It was given to another one.
    """
    try:
        data, _ = blobs.read(_name(run_id))
    except NotFound:
        return None
    mark = _mark(data, run_id)
    if mark.workspace.lower() != workspace.lower():
        message = (
            f"run {run_id} was given to the Azure ML workspace {mark.workspace}, and"
            f" SCORING_AZURE_ML_WORKSPACE names {workspace}: set it back until the run has ended"
            f" (or, if that workspace is no more, delete the blob {_name(run_id)})"
        )
        raise Conflict(message)
    return mark


def mark_canceled(blobs: Blobs, run_id: str, workspace: str) -> None:
    """Note that a run without a job was canceled, so that it gets none."""
    _change(blobs, run_id, workspace, canceled=True)


def mark_refused(blobs: Blobs, run_id: str, workspace: str) -> None:
    """Note that a run was submitted after it had been canceled: it has ended."""
    _change(blobs, run_id, workspace, refused=True)


def _change(blobs: Blobs, run_id: str, workspace: str, **changes: Any) -> None:
    name = _name(run_id)
    for _ in range(_ATTEMPTS):
        try:
            data, info = blobs.read(name)
            old = _mark(data, run_id)
            new = replace(old, **changes)
            if new != old:
                blobs.replace(name, new.content(), info.etag)
        except NotFound:
            new = replace(RunMark(workspace), **changes)
            try:
                blobs.create(name, new.content())
            except Conflict:
                continue
        except Conflict:
            continue
        return
    message = f"the blob {name} is changed by others all the time"
    raise Transient(message)


def _mark(data: bytes, run_id: str) -> RunMark:
    problem: object = "its workspace is no text"
    try:
        mark = from_json(RunMark, data)
        if isinstance(mark.workspace, str):
            return mark
    except ValueError as error:
        problem = error
    message = (
        f"the blob {_name(run_id)} is damaged ({problem}): delete it once you know, from the"
        f" studio, that no job {run_id} is at work"
    )
    raise StorageUnusable(message)


def _name(run_id: str) -> str:
    return f"runs/{run_id}/azure-ml.json"
