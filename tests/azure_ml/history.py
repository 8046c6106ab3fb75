"""Run history: what became of a job and of its steps, with error texts and log files."""

import datetime
import re
import secrets
from typing import Any
from urllib.parse import quote

from tests.azure_ml.answers import Answer, not_found
from tests.azure_ml.identity import BLOB_SUFFIX
from tests.azure_ml.jobs import Child, Job, Jobs

LOG_HOST = "fleetlogs" + BLOB_SUFFIX
"""Log files are blobs of an account of their own, whose content comes from the jobs' state."""


class History:
    """Answers of the run history service."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._signature = secrets.token_urlsafe(24)

    def answer(self, name: str, what: str) -> Answer:
        """Answer ``runs/{name}`` and what is below it."""
        run = self._find(name)
        if what == "":
            return Answer(body=self._run(run))
        if what == "/details":
            return Answer(body=self._details(run))
        if what == "/children":
            children = run[0].children if run[1] is None else []
            runs = [self._run((run[0], child)) for child in children]
            return Answer(body={"value": runs})
        not_found("Route", what)

    def log(self, path: str, query: dict[str, str], wanted: str = "") -> Answer:
        """Give a log file to whoever has its signed address."""
        if query.get("sig") != self._signature:
            headers = {"x-ms-error-code": "AuthenticationFailed"}
            return Answer(403, content=b"", headers=headers)
        _, _, _, identity, file = path.split("/", 4)
        job, child = self._find(identity.removeprefix("dcid."))
        logs = (child or job).logs
        if file not in logs:
            return Answer(404, content=b"", headers={"x-ms-error-code": "BlobNotFound"})
        content, headers = logs[file].encode(), {"Content-Type": "text/plain"}
        # As Blob does: no other form of a range is known there.
        if match := re.fullmatch(r"bytes=(\d+)-", wanted):
            return Answer(206, content=content[int(match[1]) :], headers=headers)
        return Answer(content=content, headers=headers)

    def _find(self, name: str) -> tuple[Job, Child | None]:
        for job in self._jobs.items.values():
            if job.name == name:
                return job, None
            for child in job.children:
                if child.name == name:
                    return job, child
        not_found("Run", name)

    def _run(self, run: tuple[Job, Child | None]) -> dict[str, Any]:
        job, child = run
        what = child or job
        started = self._started(what)
        rest: dict[str, Any] = {
            "runId": what.name,
            "runUuid": what.name,
            "dataContainerId": f"dcid.{what.name}",
            "rootRunId": job.name,
            "parentRunId": None if child is None else job.name,
            "experimentId": "5f0a6f1c-0000-4000-8000-000000000001",
            "status": what.status,
            "displayName": what.name if child is None else child.step,
            "name": what.name if child is None else child.step,
            "runType": "azureml.PipelineRun" if child is None else "azureml.StepRun",
            "createdUtc": _time(what.created),
            "startTimeUtc": _time(started) if started else None,
            "endTimeUtc": _time(what.ended) if what.ended else None,
            "error": self._error(what),
            "hidden": False,
            "tags": {},
            "properties": {},
        }
        if child is not None:
            rest["properties"] = {"azureml.pipelinerunid": job.name, "StepType": "PythonScriptStep"}
        return rest

    def _details(self, run: tuple[Job, Child | None]) -> dict[str, Any]:
        whole = self._run(run)
        what = run[1] or run[0]
        names = ("runId", "status", "startTimeUtc", "endTimeUtc", "error", "properties")
        return {
            **{name: whole[name] for name in names},
            "target": "",
            "warnings": [],
            "inputDatasets": [],
            "outputDatasets": [],
            "submittedBy": "Scoring Tests",
            "logFiles": {file: self._address(what.name, file) for file in what.logs},
        }

    def _address(self, name: str, file: str) -> str:
        where = f"https://{LOG_HOST}/azureml/ExperimentRun/dcid.{name}/{quote(file)}"
        return f"{where}?sv=2021-08-06&sr=b&sp=r&sig={quote(self._signature)}"

    @staticmethod
    def _started(what: Job | Child) -> datetime.datetime | None:
        if isinstance(what, Child):
            return what.started
        # A pipeline has started as soon as the service works on it.
        return None if what.status == "NotStarted" else what.created

    @staticmethod
    def _error(what: Job | Child) -> dict[str, Any] | None:
        if not what.error:
            return None
        error = {"code": what.error_code, "message": what.error, "messageParameters": {}}
        error["details"] = []
        return {
            "error": error,
            "correlation": {"operation": None, "request": None},
            "environment": "westeurope",
            "location": "westeurope",
            "time": _time(what.ended or what.created),
            "componentName": "executor",
        }


def _time(at: Any) -> str:
    return str(at.isoformat()).replace("+00:00", "Z")
