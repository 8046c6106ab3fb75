"""The control plane: what a test starts, looks at, and breaks.

How the unpatched SDK gets here: by `environment` alone. ``HTTPS_PROXY`` sends what it asks of
``management.azure.com``, ``*.api.azureml.ms`` and ``*.blob.core.windows.net`` to the loopback,
where the other end of the tunnel holds a certificate for those names, signed by an authority
that ``REQUESTS_CA_BUNDLE`` names. Tokens come from App Service's identity endpoint. So the SDK runs
with its defaults and its real host names. (``ARM_CLOUD_METADATA_URL`` with hosts on 127.0.0.1 works
for ARM, but not for uploads to a datastore: the SDK writes ``https://{account}.blob.{suffix}``,
which no resolver finds; and each look at the cloud's settings is one more request.) Any host that
is not known is refused, and recorded as a ``CONNECT`` with status 502.
"""

import datetime
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from tests.azure_ml.clusters import ClusterState
from tests.azure_ml.faults import KINDS, Fault, Faults
from tests.azure_ml.identity import Tokens, authority
from tests.azure_ml.jobs import TERMINAL, Child, Job, Runner, new_child
from tests.azure_ml.resources import Key, Resource
from tests.azure_ml.server import Request, Server
from tests.azure_ml.service import Service
from tests.azure_ml.storage import Storage
from tests.azure_ml.workspace import SUBSCRIPTION, WORKSPACE, Check

__all__ = ["Child", "ControlPlane", "Fault", "Job", "Request", "Runner"]

GENERIC = (
    "Pipeline has failed child jobs. Failed nodes: /{}. For more details and logs, please go to "
    "the job detail page and check the child jobs."
)
"""All that a pipeline's own history says of a failed step."""


class ControlPlane(AbstractContextManager["ControlPlane"]):
    """A workspace on loopback, with the datastores that every workspace has and nothing else.

    Parameters
    ----------
    storage
        Connection string of Azurite: where uploads go. Without it, there can be none.
    runner
        Runs what is accepted; without one, a job does what the test says.
    check
        Gives what is wrong with a request, from its method, path, api-version and body; then it
        is refused. `tests.azure_ml.schema.violations` is one.
    """

    subscription_id = SUBSCRIPTION
    resource_group = "fleet"
    workspace = "fleet"
    workspace_id = WORKSPACE

    def __init__(
        self,
        storage: str | None = None,
        runner: Runner | None = None,
        check: Check | None = None,
    ) -> None:
        self.storage = Storage(storage)
        self.tokens = Tokens()
        self._faults = Faults()
        self.service = Service(self.storage, self.tokens)
        self._workspace = self.service.workspace
        self._runner = runner
        self._server = Server(self.service.answer, self._faults)
        self._workspace.check = check
        self._workspace.accepted = self._accepted
        self._workspace.canceled = self._canceled
        self._add_datastore("workspaceblobstore", self.storage.container)
        self._add_datastore("workspaceartifactstore", "azureml")

    def __enter__(self) -> Self:
        authority()
        self.storage.make_default()
        self._server.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        if error is None and self._server.failures:
            problem = "the control plane itself failed"
            raise ExceptionGroup(problem, self._server.failures)

    @property
    def environment(self) -> dict[str, str]:
        """What to set so that the SDK, in this process or another, comes here."""
        return {
            "HTTPS_PROXY": self._server.url,
            "https_proxy": self._server.url,
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "REQUESTS_CA_BUNDLE": str(authority().bundle),
            "IDENTITY_ENDPOINT": f"{self._server.url}/msi/token",
            "IDENTITY_HEADER": self.tokens.secret,
            # The SDK sets it itself, for good; a test that sets it puts it back.
            "AZUREML_CURRENT_CLOUD": "AzureCloud",
        }

    # What is there

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in the order in which they came."""
        return self._server.requests

    @property
    def jobs(self) -> dict[str, Job]:
        """Accepted jobs."""
        return self._workspace.jobs.items

    @property
    def created_jobs(self) -> list[str]:
        """Names of the accepted jobs, in order."""
        return self._workspace.jobs.created

    def _kind(self, name: str) -> dict[Key, Resource]:
        return self._workspace.kinds[name].items

    @property
    def datastores(self) -> dict[Key, Resource]:
        """By name."""
        return self._kind("datastores")

    @property
    def computes(self) -> dict[Key, Resource]:
        """By name."""
        return self._kind("computes")

    @property
    def endpoints(self) -> dict[Key, Resource]:
        """Batch endpoints, by name."""
        return self._kind("batchEndpoints")

    @property
    def deployments(self) -> dict[Key, Resource]:
        """By endpoint and name."""
        return self._kind("deployments")

    @property
    def environments(self) -> dict[Key, Resource]:
        """By name and version."""
        return self._kind("environments")

    @property
    def components(self) -> dict[Key, Resource]:
        """By name and version."""
        return self._kind("components")

    @property
    def models(self) -> dict[Key, Resource]:
        """By name and version."""
        return self._kind("models")

    @property
    def codes(self) -> dict[Key, Resource]:
        """By name and version."""
        return self._kind("codes")

    @property
    def polls(self) -> int:
        """How many polls an operation takes that takes its time."""
        return self._workspace.operations.polls

    @polls.setter
    def polls(self, polls: int) -> None:
        self._workspace.operations.polls = polls

    def put(self, kind: str, key: Key, properties: dict[str, Any]) -> Resource:
        """Place a resource there, without the SDK."""
        with self._workspace.lock:
            return self._workspace.kinds[kind].put(key, {"properties": properties})[0]

    def delete(self, kind: str, name: str, version: str) -> None:
        """Delete a version of an asset, as the studio does."""
        with self._workspace.lock:
            self._workspace.kinds[kind].delete((name, version))

    def archive(self, kind: str, name: str, version: str) -> None:
        """Archive a version of an asset, as the studio does."""
        with self._workspace.lock:
            self._workspace.kinds[kind].items[name, version].properties["isArchived"] = True

    def refuse_deleted(self, status: int) -> None:
        """Refuse versions that were deleted by this status."""
        for kind in self._workspace.kinds.values():
            kind.deleted_status = status

    def fail_provisioning(self, name: str, code: str, message: str) -> None:
        """Let the making of a cluster, an endpoint or a deployment fail from now on."""
        self._workspace.operations.failures[name] = (code, message)

    def set_cluster(self, name: str, **facts: Any) -> None:
        """Say how a cluster stands; takes what `ClusterState` takes."""
        with self._workspace.lock:
            self._workspace.clusters[name] = ClusterState(**facts)

    # What happens to jobs

    def set_status(self, job_name: str, status: str) -> None:
        """Move a job on; the steps of one that ends end with it."""
        with self._workspace.lock:
            job = self.jobs[job_name]
            job.move(status)
            for child in job.children:
                if job.ended and not child.ended:
                    child.move(status)

    def add_child(
        self, job_name: str, status: str = "Running", *, step: str = "score",
        logs: dict[str, str] | None = None, at: datetime.datetime | None = None,
    ) -> Child:  # fmt: skip
        """Give a job the run of a step, which came to its status at a moment, by default now."""
        child = new_child(step)
        child.logs = dict(logs or {})
        if status in TERMINAL:
            child.move("Running", at)
        child.move(status, at)
        with self._workspace.lock:
            self.jobs[job_name].children.append(child)
        return child

    def move_child(self, child: Child, status: str, at: datetime.datetime | None = None) -> None:
        """Move a step on."""
        with self._workspace.lock:
            child.move(status, at)

    def fail(
        self, job_name: str, message: str, logs: dict[str, str] | None = None, *,
        step: str = "score", code: str = "UserError",
    ) -> Child:  # fmt: skip
        """Fail a job by one of its steps: what went wrong is said there, and only there.

        By the run of the step that is under way, or else by a new one.
        """
        with self._workspace.lock:
            job = self.jobs[job_name]
            under_way = [one for one in job.children if one.step == step and not one.ended]
            child = under_way[0] if under_way else self.add_child(job_name, step=step)
            child.logs |= logs or {}
            child.move("Failed")
            child.error, child.error_code = message, code
            job.error = GENERIC.format(step)
            job.move("Failed")
        return child

    # What goes wrong

    @property
    def faults(self) -> list[Fault]:
        """The scripted faults."""
        return self._faults.scripted

    @property
    def thrown(self) -> list[tuple[str, str, Fault]]:
        """Faults that happened: method, path and fault."""
        return self._faults.thrown

    def fault(self, **what: Any) -> Fault:
        """Script a fault; takes what `Fault` takes."""
        fault = Fault(**what)
        self.faults.append(fault)
        return fault

    def chaos(
        self, seed: int, rate: float, kinds: tuple[str, ...] = KINDS, path: str = "",
        method: str | None = None,
    ) -> None:  # fmt: skip
        """Let a share of the requests to `path` go wrong, always the same for one seed."""
        self._faults.chaos(seed, rate, kinds, path, method)

    def _accepted(self, job: Job) -> None:
        if self._runner:
            self._runner.start(job, self)

    def _canceled(self, job: Job) -> None:
        if self._runner:
            self._runner.cancel(job)

    def _add_datastore(self, name: str, container: str) -> None:
        properties = {
            "datastoreType": "AzureBlob",
            "accountName": self.storage.account,
            "containerName": container,
            "endpoint": "core.windows.net",
            "protocol": "https",
            "isDefault": name == "workspaceblobstore",
            "credentials": {"credentialsType": "AccountKey"},
        }
        kept, _ = self._workspace.kinds["datastores"].put(name, {"properties": properties})
        kept.secrets = {"secretsType": "AccountKey", "key": self.storage.key}
