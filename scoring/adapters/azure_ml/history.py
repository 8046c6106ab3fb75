"""How a job's steps stand and why they failed: run history knows, the job itself does not.

https://learn.microsoft.com/rest/api/azureml/ describes jobs; run history is the service behind
the studio's pages and azure-ai-ml's own `jobs.stream`.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError
from azure.core.rest import HttpRequest

from scoring import instants
from scoring.adapters.azure_ml.rest import BRIEF, Client, connect, read_json
from scoring.adapters.azure_ml.workspace import Workspace
from scoring.errors import NotFound, ScoringError, Transient
from scoring.ports import LogTail

if TYPE_CHECKING:
    from azure.ai.ml.entities import Workspace as WorkspaceEntity

log = logging.getLogger("scoring.azure_ml")

WAITING = frozenset({"NotStarted", "Queued", "Starting", "Provisioning", "Preparing"})
"""Statuses of jobs and of their steps before they run."""

ENDED = frozenset({"Completed", "Failed", "Canceled"})
"""Statuses after which no other one follows."""

_Run = dict[str, Any]
"""As run history tells of it: ``runId``, ``displayName``, ``status``."""

_SCOPE = "https://ml.azure.com/.default"
_DEEPEST = 4
"""Levels of children: a pipeline, its steps, and what a step is made of."""

_CHILDREN = 5
"""Failed children that are told about: with the same cause, most often."""

_LOGS = 10
"""Log files that are kept, of all children together."""

_TAIL = 64 * 1024
"""Bytes of a log's end that are kept."""

_CAUSE = 1000
"""Characters of a cause that are kept."""

_OK = 200
_FAILED = "Failed"
_TELLING = ("error", "std_log", "stderr", "stdout", "user")
"""Parts of names of logs that say most, the best first."""


@dataclass(frozen=True, slots=True)
class StepRun:
    """One run of a step of a job.

    Attributes
    ----------
    started
        When it began to run on its nodes, epoch microseconds UTC; None if it has not, or if run
        history does not tell.
    """

    name: str
    status: str
    started: int | None = None

    @property
    def has_started(self) -> bool:
        """Whether it runs, or ran."""
        return self.started is not None or self.status not in WAITING | ENDED


class RunHistory:
    """What run history says of a job and its children."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._url = ""

    def steps(self, name: str) -> list[StepRun]:
        """Return the runs of the steps of a job: one for each step, and one more for each retry.

        Only the first page of them is read. The request is not retried.

        Raises
        ------
        ScoringError
            Run history does not answer, or answers in an unknown form.
        """
        return self._workspace.ask(f"steps of job {name}", lambda _: self._steps(name))

    def failure(self, name: str) -> tuple[str, tuple[LogTail, ...]]:
        """Give the cause in one line, and the ends of the logs of what failed.

        Raises
        ------
        Transient
            Run history does not answer: it may later.
        """
        what = f"history of job {name}"
        try:
            return self._workspace.ask(what, lambda _: self._explained(name))
        except Transient:
            raise
        except ScoringError as error:
            # It has failed all the same. No specification says what run history answers.
            log.warning("azure_ml.no_history", extra={"run": name}, exc_info=error)
            return f"failed; why could not be read: {error}", ()

    def _steps(self, name: str) -> list[StepRun]:
        with connect(self._workspace, _SCOPE, **BRIEF) as client:
            page = self._get(client, f"runs/{name}/children")
        return [_step(run) for run in page.get("value") or ()]

    def _explained(self, name: str) -> tuple[str, tuple[LogTail, ...]]:
        with connect(self._workspace, _SCOPE) as client:
            failed = self._failed(client, {"runId": name})[:_CHILDREN]
            details = [(run, self._get(client, f"runs/{run['runId']}/details")) for run in failed]
        causes = [f"{_title(run)}: {text}" for run, one in details if (text := _message(one))]
        return "; ".join(dict.fromkeys(causes))[:_CAUSE], tuple(self._logs(details))

    def _logs(self, details: list[tuple[_Run, dict[str, Any]]]) -> Iterator[LogTail]:
        # Their addresses are signed: a token besides would be refused.
        with connect(self._workspace, retry_total=1) as client:
            for run, one in details:
                for file, url in _most_telling(one.get("logFiles") or {})[: _LOGS // len(details)]:
                    yield LogTail(f"{run['runId']}/{file}", _tail(client, url))

    def _failed(self, client: Client, run: _Run, depth: int = 0) -> list[_Run]:
        """Give the lowest runs that failed: the run itself where none below it did."""
        children = self._children(client, run["runId"]) if depth < _DEEPEST else ()
        below = [child for child in children if child.get("status") == _FAILED]
        leaves = [self._failed(client, child, depth + 1) for child in below[:_CHILDREN]]
        return [leaf for found in leaves for leaf in found] or [run]

    def _children(self, client: Client, name: str) -> Iterator[_Run]:
        parameters: dict[str, str] = {}
        while True:
            page = self._get(client, f"runs/{name}/children", **parameters)
            yield from page.get("value") or ()
            token = page.get("continuationToken")
            if not token:
                return
            parameters = {"$continuationToken": token}

    def _get(self, client: Client, path: str, **parameters: str) -> dict[str, Any]:
        url = f"{self._history()}/history/v1.0{self._workspace.id}/{path}"
        return read_json(client, url, **parameters)

    def _history(self) -> str:
        """Where run history is: the workspace's discovery document tells."""
        if not self._url:
            name = self._workspace.name
            found: WorkspaceEntity | None = self._workspace.ask(
                f"workspace {name}", lambda ml: ml.workspaces.get(name)
            )
            if found is None or not found.discovery_url:
                message = f"the workspace {name} has no discovery URL"
                raise NotFound(message)
            with connect(self._workspace) as client:
                self._url = str(read_json(client, found.discovery_url)["history"]).rstrip("/")
        return self._url


def _step(run: _Run) -> StepRun:
    status, started = str(run["status"]), run.get("startTimeUtc")
    if not started or status in WAITING:
        return StepRun(_title(run), status)
    moment = datetime.fromisoformat(started)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return StepRun(_title(run), status, instants.of(moment))


def _tail(client: Client, url: str) -> str:
    """Read a log's end: Blob knows no range that counts from there, but it tells the length."""
    end = b""
    try:
        begin = _length(client, url) - _TAIL
        headers = {"Range": f"bytes={begin}-"} if begin > 0 else {}
        # Who knows no ranges sends all of it.
        response = client.send_request(HttpRequest("GET", url, headers=headers), stream=True)
        response.raise_for_status()
        for piece in response.iter_bytes():
            end = (end + piece)[-_TAIL:]
    except AzureError as error:
        # One log less is no reason to lose the cause and the others. The error's own text may
        # hold the address, and with it the signature.
        return f"this log could not be read: {getattr(error, 'reason', '') or type(error).__name__}"
    return end.decode(errors="replace")


def _length(client: Client, url: str) -> int:
    """Give the length of a log in bytes; 0 where the server does not tell."""
    response = client.send_request(HttpRequest("HEAD", url))
    length = str(response.headers.get("Content-Length", ""))
    return int(length) if response.status_code == _OK and length.isdigit() else 0


def _most_telling(files: dict[str, str]) -> list[tuple[str, str]]:
    return sorted(files.items(), key=lambda file: _rank(file[0]))


def _rank(file: str) -> tuple[int, str]:
    known = (place for place, word in enumerate(_TELLING) if word in file)
    return next(known, len(_TELLING)), file


def _title(run: _Run) -> str:
    return str(run.get("displayName") or run["runId"])


def _message(details: dict[str, Any]) -> str:
    """Give the innermost error text there is, in one line."""
    error = (details.get("error") or {}).get("error") or {}
    text = error.get("message") or error.get("code") or ""
    return " ".join(str(text).split())
