"""A workspace in the resource manager: what it keeps, and which request does what."""

import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.azure_ml.answers import Answer, ServiceError, not_found, refuse
from tests.azure_ml.clusters import ClusterState
from tests.azure_ml.identity import API_HOST, AZURE_ML, TENANT, Tokens
from tests.azure_ml.jobs import Job, Jobs
from tests.azure_ml.operations import Operations
from tests.azure_ml.resources import VERSIONED, Collection, Resource
from tests.azure_ml.storage import Storage

SUBSCRIPTION = "3d6f5c1e-8a52-4b0e-9a55-0d3c1f0e7b21"
WORKSPACE = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/fleet/providers/"
    "Microsoft.MachineLearningServices/workspaces/fleet"
)
PRINCIPAL = "00000000-0000-4000-8000-0000000000cc"
"""Of every cluster's own identity."""

_SCOPE = WORKSPACE.partition("Microsoft.MachineLearningServices")[0]
_NAME = r"([^/]+)"
_VERSIONED = f"({'|'.join(VERSIONED)})"
_KINDS = (
    "datastores",
    *VERSIONED,
    "computes",
    "batchEndpoints",
    "deployments",
)
Check = Callable[[str, str, str, object], list[str]]


@dataclass(slots=True)
class Call:
    """A request, as the routes see it."""

    method: str
    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    content: bytes
    target: str


def unknown(call: Call) -> ServiceError:
    """Say that nothing is known of a request."""
    message = f"No route is known for {call.method} https://{call.host}{call.path}."
    return ServiceError(404, "NotFound", message, "UnknownRoute")


class Workspace:
    """A workspace and all that is in it.

    Attributes
    ----------
    check
        Gives what is wrong with a request.
    accepted, canceled
        Called with a job that is new, or is to end.
    """

    def __init__(self, storage: Storage, tokens: Tokens) -> None:
        self.storage = storage
        self.tokens = tokens
        self.check: Check | None = None
        self.lock = threading.RLock()
        self.operations = Operations(SUBSCRIPTION)
        self.kinds = {kind: Collection(kind, WORKSPACE) for kind in _KINDS}
        pieces = (self.kinds[kind] for kind in ("components", "computes", "models"))
        self.jobs = Jobs(WORKSPACE, *pieces)
        self.accepted: Callable[[Job], None] = lambda _: None
        self.canceled: Callable[[Job], None] = lambda _: None
        self._account = f"{_SCOPE}Microsoft.Storage/storageAccounts/{storage.account}"
        plain, below = (
            "(datastores|computes|batchEndpoints)",
            f"/batchEndpoints/{_NAME}/deployments",
        )
        self.clusters: dict[str, ClusterState] = {}
        """How clusters stand, by name: a test says; by default, scaled to zero."""
        self._routes: list[tuple[str, str, Callable[..., Answer]]] = [
            ("GET", "", self._workspace),
            ("GET", f"/{plain}", self._list),
            ("GET", f"/{plain}/{_NAME}", self._get),
            ("PUT", f"/(datastores)/{_NAME}", self._put_datastore),
            ("POST", f"/datastores/{_NAME}/listSecrets", self._list_secrets),
            ("PUT", f"/(computes|batchEndpoints)/{_NAME}", self._put_slowly),
            ("POST", f"/computes/{_NAME}/listNodes", self._list_nodes),
            ("GET", below, self._list_deployments),
            ("GET", f"{below}/{_NAME}", self._get_deployment),
            ("PUT", f"{below}/{_NAME}", self._put_deployment),
            ("DELETE", f"{below}/{_NAME}", self._delete_deployment),
            ("GET", f"/{_VERSIONED}/{_NAME}", self._get_container),
            ("GET", f"/{_VERSIONED}/{_NAME}/versions", self._list_versions),
            ("GET", f"/{_VERSIONED}/{_NAME}/versions/{_NAME}", self._get_version),
            ("PUT", f"/{_VERSIONED}/{_NAME}/versions/{_NAME}", self._put_version),
            ("DELETE", f"/{_VERSIONED}/{_NAME}/versions/{_NAME}", self._delete_version),
            ("POST", f"/(codes)/{_NAME}/versions/{_NAME}/startPendingUpload", self._upload),
            ("GET", "/jobs", self._list_jobs),
            ("GET", f"/jobs/{_NAME}", self._get_job),
            ("PUT", f"/jobs/{_NAME}", self._put_job),
            ("POST", f"/jobs/{_NAME}/cancel", self._cancel_job),
            ("DELETE", f"/jobs/{_NAME}", self._delete_job),
        ]

    def answer(self, call: Call) -> Answer:
        """Answer a request to the resource manager."""
        if call.path.startswith(self.operations.path) and call.method == "GET":
            with self.lock:
                return self.operations.answer(call.path)
        api_version = call.query.get("api-version")
        if api_version is None:
            message = "The api-version query parameter (?api-version=) is required."
            raise ServiceError(400, "MissingApiVersionParameter", message)
        wrong = self.check(call.method, call.path, api_version, call.body) if self.check else []
        if wrong:
            refuse("; ".join(wrong), "BadArgument", "SchemaViolation")
        if call.method == "PUT" and not isinstance(call.body, dict):
            refuse("The request has no body that is a JSON object.")
        for method, pattern, handler in self._routes:
            match = re.fullmatch(re.escape(WORKSPACE) + pattern, call.path)
            if match and method == call.method:
                return handler(call, *match.groups())
        if call.path.startswith(WORKSPACE + "/") or "/workspaces/" not in call.path:
            raise unknown(call)
        message = f"The Resource '{call.path.partition('/providers/')[2]}' was not found."
        raise ServiceError(404, "ResourceNotFound", message)

    # The workspace and its plain resources

    def _workspace(self, _: Call) -> Answer:
        properties = {
            "friendlyName": "fleet",
            "discoveryUrl": f"https://{API_HOST}/discovery",
            "mlFlowTrackingUri": f"azureml://{API_HOST}/mlflow/v1.0{WORKSPACE}",
            "workspaceId": "5f0a6f1c-0000-4000-8000-0000000000ff",
            "storageAccount": self._account,
            "keyVault": f"{_SCOPE}Microsoft.Keyvault/vaults/fleet",
            "applicationInsights": f"{_SCOPE}Microsoft.insights/components/fleet",
            "provisioningState": "Succeeded",
            "publicNetworkAccess": "Enabled",
            "hbiWorkspace": False,
            "tenantId": TENANT,
        }
        body = {
            "id": WORKSPACE,
            "name": "fleet",
            "type": "Microsoft.MachineLearningServices/workspaces",
            "location": "westeurope",
            "kind": "Default",
            "tags": {},
            "identity": {"type": "SystemAssigned", "tenantId": TENANT},
            "sku": {"name": "Basic", "tier": "Basic"},
            "properties": properties,
        }
        return Answer(body=body)

    def _list(self, call: Call, kind: str) -> Answer:
        with self.lock:
            items = [self._shown(item) for item in self.kinds[kind].items.values()]
        if call.query.get("isDefault", "").lower() == "true":
            items = [item for item in items if item["properties"].get("isDefault")]
        return Answer(body={"value": items})

    def _get(self, _: Call, kind: str, name: str) -> Answer:
        with self.lock:
            return Answer(body=self._shown(self.kinds[kind].get(name)))

    def _shown(self, resource: Resource) -> dict[str, Any]:
        shown = resource.rest()
        if resource.properties.get("computeType") == "AmlCompute":
            state = self.clusters.get(resource.name, ClusterState())
            inner = shown["properties"].get("properties") or {}
            shown["properties"]["properties"] = inner | state.rest()
        return shown

    def _put_datastore(self, call: Call, kind: str, name: str) -> Answer:
        with self.lock:
            stored, new = self.kinds[kind].put(name, call.body)
            credentials = stored.properties.get("credentials") or {}
            # A service keeps secrets to itself, and gives them when it is asked for them.
            secrets = credentials.pop("secrets", None)
            stored.secrets = secrets or stored.secrets
            stored.properties["isDefault"] = name == "workspaceblobstore"
            return Answer(201 if new else 200, stored.rest())

    def _list_secrets(self, call: Call, name: str) -> Answer:
        with self.lock:
            stored = self.kinds["datastores"].get(name)
        if not stored.secrets:
            message = f"The datastore {name} has no secrets: its credentials are None."
            raise ServiceError(400, "UserError", message, "BadArgument")
        if (call.body or {}).get("expirableSecret"):
            sas = self.storage.sas(stored.properties["containerName"])
            return Answer(body={"secretsType": "Sas", "sasToken": sas})
        return Answer(body=stored.secrets)

    def _list_nodes(self, _: Call, name: str) -> Answer:
        with self.lock:
            stored = self.kinds["computes"].get(name)
            states = self.clusters.get(stored.name, ClusterState()).nodes
            nodes = [{"nodeId": f"n{n}", "nodeState": state} for n, state in enumerate(states)]
        return Answer(body={"nodes": nodes})

    def _put_slowly(self, call: Call, kind: str, name: str) -> Answer:
        with self.lock:
            stored, new = self.kinds[kind].put(name, call.body)
            identity = stored.body.get("identity") or {}
            if "SystemAssigned" in identity.get("type", ""):
                # The service makes it, and says which one it is.
                identity |= {"principalId": PRINCIPAL, "tenantId": TENANT}
            return self.operations.begin(stored, new=new)

    # Endpoints' deployments

    def _list_deployments(self, _: Call, endpoint: str) -> Answer:
        with self.lock:
            self.kinds["batchEndpoints"].get(endpoint)
            items = self.kinds["deployments"].items
            return Answer(body={"value": [v.rest() for k, v in items.items() if k[0] == endpoint]})

    def _get_deployment(self, _: Call, endpoint: str, name: str) -> Answer:
        with self.lock:
            return Answer(body=self.kinds["deployments"].get((endpoint, name)).rest())

    def _put_deployment(self, call: Call, endpoint: str, name: str) -> Answer:
        with self.lock:
            self.kinds["batchEndpoints"].get(endpoint)
            stored, new = self.kinds["deployments"].put((endpoint, name), call.body)
            return self.operations.begin(stored, new=new)

    def _delete_deployment(self, _: Call, endpoint: str, name: str) -> Answer:
        with self.lock:
            defaults = self.kinds["batchEndpoints"].get(endpoint).properties.get("defaults") or {}
            if defaults.get("deploymentName") == name:
                refuse(f"The deployment {name} is the default of {endpoint}.")
            self.kinds["deployments"].get((endpoint, name))
            del self.kinds["deployments"].items[endpoint, name]
            return self.operations.begin_by_location()

    # Versioned assets

    def _get_container(self, _: Call, kind: str, name: str) -> Answer:
        with self.lock:
            versions = self.kinds[kind].versions(name)
        if not versions:
            not_found(f"{kind.capitalize()} container", name)
        numbers = [int(v.version) for v in versions if v.version and v.version.isdigit()]
        properties = {
            "latestVersion": versions[0].version,
            "nextVersion": str(max(numbers, default=0) + 1),
            "isArchived": False,
        }
        body = {"id": f"{WORKSPACE}/{kind}/{name}", "name": name, "properties": properties}
        return Answer(body=body)

    def _list_versions(self, call: Call, kind: str, name: str) -> Answer:
        with self.lock:
            if "hash" in call.query:
                # Content is looked for under any name: the one that is asked for is made up.
                every = self.kinds[kind].items.values()
                found = [item for item in every if _hash(item) == call.query["hash"]]
            else:
                found = [
                    item
                    for item in self.kinds[kind].versions(name)
                    if _is_shown(item, call.query.get("listViewType", "ActiveOnly"))
                ]
            if "$top" in call.query:
                found = found[: int(call.query["$top"])]
            return Answer(body={"value": [item.rest() for item in found]})

    def _get_version(self, _: Call, kind: str, name: str, version: str) -> Answer:
        with self.lock:
            return Answer(body=self.kinds[kind].get((name, version)).rest())

    def _put_version(self, call: Call, kind: str, name: str, version: str) -> Answer:
        with self.lock:
            stored, new = self.kinds[kind].put((name, version), call.body)
            return Answer(201 if new else 200, stored.rest())

    def _delete_version(self, _: Call, kind: str, name: str, version: str) -> Answer:
        with self.lock:
            there = (name, version) in self.kinds[kind].items
            self.kinds[kind].delete((name, version))
            return Answer(200 if there else 204)

    def _upload(self, _: Call, kind: str, name: str, version: str) -> Answer:
        uri = self.storage.new_container()
        sas = f"{uri}?{self.storage.sas(uri.rpartition('/')[2])}"
        reference = {
            "blobUri": uri,
            "storageAccountArmId": self._account,
            "credential": {"credentialType": "SAS", "sasUri": sas},
        }
        kind_of_upload = {
            "pendingUploadId": str(uuid.uuid4()),
            "pendingUploadType": "TemporaryBlobReference",
        }
        return Answer(body={"blobReferenceForConsumption": reference, **kind_of_upload})

    # Jobs

    def _list_jobs(self, _: Call) -> Answer:
        with self.lock:
            items = [self.jobs.get(name).rest() for name in reversed(self.jobs.created)]
            return Answer(body={"value": items})

    def _get_job(self, _: Call, name: str) -> Answer:
        with self.lock:
            return Answer(body=self.jobs.get(name).rest())

    def _put_job(self, call: Call, name: str) -> Answer:
        if "x-azureml-token" in call.headers:
            self.tokens.verify(call.headers["x-azureml-token"], AZURE_ML)
        with self.lock:
            job, new = self.jobs.put(name, call.body or {})
            answer = Answer(201 if new else 200, job.rest())
        if new:
            self.accepted(job)
        return answer

    def _cancel_job(self, _: Call, name: str) -> Answer:
        with self.lock:
            job = self.jobs.cancel(name)
            answer = self.operations.begin_by_location()
        if job.cancels == 1:
            self.canceled(job)
        return answer

    def _delete_job(self, _: Call, name: str) -> Answer:
        with self.lock:
            self.jobs.delete(name)
            return self.operations.begin_by_location()


def _is_shown(resource: Resource, view: str) -> bool:
    """Whether a list shows a version: archived ones are hidden unless they are asked for."""
    is_archived = bool(resource.properties.get("isArchived"))
    return view == "All" or is_archived == (view == "ArchivedOnly")


def _hash(resource: Resource) -> str | None:
    properties = resource.properties.get("properties") or {}
    value = properties.get("hash_sha256")
    return None if value is None else str(value)
