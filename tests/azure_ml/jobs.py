"""Pipeline jobs: accepted once, moved on by a test or by a runner, told of as the service does."""

import copy
import datetime
import re
import uuid
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.azure_ml.answers import ServiceError, not_found, refuse
from tests.azure_ml.resources import Collection, Key, differs, system_data

STATUSES = (
    "NotStarted",
    "Starting",
    "Provisioning",
    "Preparing",
    "Queued",
    "Running",
    "Finalizing",
    "NotResponding",
    "Paused",
    "Unknown",
    "CancelRequested",
    "Completed",
    "Failed",
    "Canceled",
)
"""https://learn.microsoft.com/javascript/api/@azure/arm-machinelearning/knownjobstatus, which says
what each means; so do azure-ai-ml's REST models.
"""

_EXEMPT = frozenset({"NotResponding", "Paused", "Unknown"})
"""From the order: "A run can go from NotResponding to any of the previous states" (the same page).
Of the other two it says nothing.
"""

TERMINAL = frozenset({"Completed", "Failed", "Canceled"})

_SAME_NAME = (
    "A job with this name already exists. If you are trying to create a new job, use a different "
    "name. If you are trying to update an existing job, the existing job's {} cannot be changed. "
    "Only description, displayName, tags, and isArchived properties can be updated."
)
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _order(status: str) -> int:
    """Before it runs, a step may take the waiting statuses in any order."""
    return max(STATUSES.index(status), STATUSES.index("Queued"))


@dataclass(slots=True)
class Child:
    """A step of a job: its own run, with its own status, error and log files.

    Attributes
    ----------
    started
        When it first was ``Running``; None as long as it waits for nodes.
    """

    name: str
    status: str = "NotStarted"
    error: str = ""
    logs: dict[str, str] = field(default_factory=dict)
    step: str = "score"
    error_code: str = "UserError"
    created: datetime.datetime = field(default_factory=_now)
    started: datetime.datetime | None = None
    ended: datetime.datetime | None = None

    def move(self, status: str, at: datetime.datetime | None = None) -> None:
        """Take a status; a run does not go back, except from some."""
        assert status in STATUSES, status
        assert self.ended is None, f"{self.name} has ended"
        if not _EXEMPT & {status, self.status}:
            assert _order(status) >= _order(self.status), (self.status, status)
        self.status = status
        if status == "Running" and self.started is None:
            self.started = at or _now()
        if status in TERMINAL:
            self.ended = at or _now()


@dataclass(slots=True)
class Job:
    """One job.

    Attributes
    ----------
    body
        As it was put.
    error
        Its own error, which says little if a child failed.
    accepted
        How many requests created it; repeated says how many found it there and equal.
    history
        Every status that it had.
    """

    name: str
    body: dict[str, Any]
    id: str
    status: str = "NotStarted"
    children: list[Child] = field(default_factory=list)
    error: str = ""
    error_code: str = "UserError"
    logs: dict[str, str] = field(default_factory=dict)
    accepted: int = 1
    repeated: int = 0
    cancels: int = 0
    history: list[str] = field(default_factory=lambda: ["NotStarted"])
    created: datetime.datetime = field(default_factory=_now)
    ended: datetime.datetime | None = None
    stored: dict[str, Any] = field(default_factory=dict)

    @property
    def properties(self) -> dict[str, Any]:
        """What was asked for."""
        properties: dict[str, Any] = self.body["properties"]
        return properties

    def move(self, status: str) -> None:
        """Take a status."""
        assert status in STATUSES, status
        self.status = status
        self.history.append(status)
        self.ended = _now() if status in TERMINAL else None

    def rest(self) -> dict[str, Any]:
        """Give it as the service does."""
        properties: dict[str, Any] = {"experimentName": "Default", "displayName": self.name}
        properties["isArchived"] = False
        properties |= {k: v for k, v in copy.deepcopy(self.stored).items() if v is not None}
        outputs = properties.setdefault("outputs", {})
        store = "azureml://datastores/workspaceartifactstore/ExperimentRun"
        uri = f"{store}/dcid.{self.name}"
        outputs["default"] = {"jobOutputType": "uri_folder", "mode": "ReadWriteMount", "uri": uri}
        studio = f"https://ml.azure.com/runs/{self.name}?wsid={self.id.rpartition('/jobs/')[0]}"
        properties["status"] = self.status
        properties["services"] = {"Studio": {"jobServiceType": "Studio", "endpoint": studio}}
        return {
            "id": self.id,
            "name": self.name,
            "type": "Microsoft.MachineLearningServices/workspaces/jobs",
            "properties": properties,
            "systemData": system_data(self.created),
        }


class Runner(Protocol):
    """Runs accepted jobs for real; both return at once."""

    def start(self, job: Job, plane: Any) -> None:
        """Begin; what happens is told by `ControlPlane.set_status` and `fail`."""

    def cancel(self, job: Job) -> None:
        """Stop; the status is ``CancelRequested`` until the runner says ``Canceled``."""


class Jobs:
    """All jobs of a workspace."""

    def __init__(
        self, workspace: str, components: Collection, computes: Collection, models: Collection
    ) -> None:
        self.items: dict[str, Job] = {}
        self.created: list[str] = []
        self._workspace = workspace
        self._components = components
        self._computes = computes
        self._models = models

    def get(self, name: str) -> Job:
        """Give a job; refuse where there is none."""
        if name not in self.items:
            not_found("Run", name)
        return self.items[name]

    def put(self, name: str, body: dict[str, Any]) -> tuple[Job, bool]:
        """Accept a job once: again if it is equal, never if it is another; tells if it is new."""
        properties = body.get("properties") or {}
        old = self.items.get(name)
        if old is None:
            self._check(name, properties)
            job = Job(name, copy.deepcopy(body), f"{self._workspace}/jobs/{name}")
            job.stored = _normalised(properties)
            self.items[name] = job
            self.created.append(name)
            return job, True
        kept = old.stored.get("properties") or {}
        told = properties.get("properties") or {}
        changed = [key for key in kept if key in told and told[key] != kept[key]]
        if differs(old.stored, old.rest()["properties"], properties) or changed:
            what = "properties" if changed else "JobSpecification"
            inner = ("Immutable", "JobPropertyImmutable")
            raise ServiceError(400, "UserError", _SAME_NAME.format(what), *inner)
        old.repeated += 1
        for key in ("description", "tags", "displayName", "isArchived"):
            if properties.get(key) is not None:
                old.stored[key] = properties[key]
        return old, False

    def cancel(self, name: str) -> Job:
        """Take a request to cancel; a job that has ended refuses it, and one that is about to.

        That a job which is finalizing refuses: https://github.com/Azure/azureml-assets/pull/2496,
        whose tests leave out ended ones for the same reason. The words are ours.
        """
        job = self.get(name)
        if job.status == "Finalizing":
            message = f"Run {name} is finalizing and cannot be canceled."
            raise ServiceError(400, "UserError", message, "BadArgument", "RunIsFinalizing")
        if job.status in TERMINAL:
            message = f"Run {name} is in the terminal state {job.status} and cannot be canceled."
            raise ServiceError(400, "UserError", message, "BadArgument", "RunInTerminalState")
        job.cancels += 1
        if job.status != "CancelRequested":
            job.move("CancelRequested")
        return job

    def delete(self, name: str) -> None:
        """Delete a job that has ended; its name is free again.

        https://learn.microsoft.com/rest/api/azureml/jobs/delete has a job deleted by a long-running
        operation, and says nothing of one that has not ended, nor of its name: that the former is
        refused is our guess, the stricter one.
        """
        job = self.get(name)
        if job.status not in TERMINAL:
            refuse(f"Run {name} is {job.status} and cannot be deleted.")
        del self.items[name]

    def _check(self, name: str, properties: dict[str, Any]) -> None:
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}", name):
            refuse(f"The name {name!r} is no valid name of a job.")
        if properties.get("jobType") != "Pipeline":
            refuse(f"This workspace runs no {properties.get('jobType')} jobs.")
        inputs = properties.get("inputs") or {}
        settings = properties.get("settings") or {}
        for compute in (properties.get("computeId"), settings.get("default_compute")):
            if compute:
                self._find(self._computes, "computes", str(compute))
        for value in inputs.values():
            uri = str((value or {}).get("uri", ""))
            if "/models/" in uri:
                self._find(self._models, "models", uri)
        component = properties.get("componentId")
        if component:
            found = self._find(self._components, "components", str(component))
            spec = found.properties["componentSpec"]
            _check_names("input", inputs, spec.get("inputs") or {})
            _check_names("output", properties.get("outputs") or {}, spec.get("outputs") or {})
        elif not properties.get("jobs"):
            refuse("A pipeline needs a component, or jobs of its own.")

    def _find(self, collection: Collection, kind: str, uri: str) -> Any:
        pattern = rf"(?:azureml:)?{self._workspace}/{kind}/([^/]+)(?:/versions/([^/]+))?"
        match = re.fullmatch(pattern, uri)
        if not match:
            refuse(f"{uri} is no ARM id of this workspace's {kind}.")
        key: Key = (match[1], match[2]) if match[2] else match[1]
        if key not in collection.items:
            refuse(f"{uri} does not exist.", "NotFound")
        return collection.items[key]


def _check_names(what: str, given: dict[str, Any], declared: dict[str, Any]) -> None:
    for name in given:
        if name not in declared:
            refuse(f"The {what} {name} is not declared by the component.")
    for name, port in declared.items():
        required = what == "input" and not port.get("optional") and "default" not in port
        if required and name not in given:
            refuse(f"The required input {name} was not given.")


def _normalised(properties: dict[str, Any]) -> dict[str, Any]:
    """Write times its own way, as the service does: the same body then differs from its own."""
    stored = copy.deepcopy(properties)
    for value in (stored.get("inputs") or {}).values():
        if _DATE.fullmatch(str((value or {}).get("value", ""))):
            at = datetime.datetime.fromisoformat(value["value"])
            value["value"] = at.strftime("%m/%d/%Y %H:%M:%S")
    return stored


def new_child(step: str = "score") -> Child:
    """Make a step's run, not started; its name is the service's to choose."""
    return Child(str(uuid.uuid4()), step=step)
