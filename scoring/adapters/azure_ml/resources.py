"""What the pipeline runs on: datastore, cluster, and the batch endpoint in front of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scoring.adapters.azure_ml.publication import DATASTORE
from scoring.adapters.azure_ml.steps import Step, Task, exists, find
from scoring.adapters.azure_ml.workspace import Workspace
from scoring.errors import Conflict, Misconfigured, ScoringError, Transient

if TYPE_CHECKING:
    from azure.ai.ml.entities import AmlCompute


_SYSTEM = "system_assigned"
_DEPLOYMENT = re.compile(r"v[0-9a-f]{16}(r\d+)?")
"""Names of the deployments that are made here."""


@dataclass(frozen=True, slots=True)
class StorageAccount:
    """Where the container is that jobs read from and write to; without a key, by identity."""

    name: str
    container: str
    key: str = field(default="", repr=False)

    @classmethod
    def of(cls, account: str, container: str) -> "StorageAccount":
        """Find the account in a URL or a connection string, as the settings know it.

        Raises
        ------
        Misconfigured
            It names none that a cluster could reach.
        """
        if account.startswith("https://"):
            return cls(account.removeprefix("https://").partition(".")[0], container)
        pairs = dict(pair.partition("=")[::2] for pair in account.split(";"))
        if not pairs.get("AccountName"):
            problem = "the storage names no account that Azure ML could read from"
            raise Misconfigured([problem])
        return cls(pairs["AccountName"], container, pairs.get("AccountKey", ""))


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that scores.

    Attributes
    ----------
    size
        Of its virtual machines.
    min_nodes
        With 0 it costs nothing while there is nothing to score.
    idle
        Seconds without work before a node is given back.
    """

    name: str = "scoring"
    size: str = "Standard_F4s_v2"
    min_nodes: int = 0
    max_nodes: int = 4
    idle: int = 120


def datastore_step(workspace: Workspace, storage: StorageAccount) -> Step:
    """Let jobs reach the blobs."""
    what = f"datastore {DATASTORE}"

    def is_there() -> bool:
        store = find(workspace, what, lambda ml: ml.datastores.get(DATASTORE))
        if store is None:
            return False
        account = getattr(store, "account_name", None)
        container = getattr(store, "container_name", None)
        if (account, container) != (storage.name, storage.container):
            message = (
                f"the {what} is container {container!r} of account {account!r}, and not"
                f" {storage.container!r} of {storage.name!r}: one workspace serves one container"
            )
            raise Conflict(message)
        has_key: bool = store.credentials.type == "account_key"
        return has_key == bool(storage.key) and (not has_key or is_key())

    def is_key() -> bool:
        try:
            # The public way is to ask for secrets that expire: of an account key, for a signature.
            secrets = workspace.ask(what, lambda ml: ml.datastores._list_secrets(DATASTORE))
        except Transient:
            raise
        except ScoringError:
            # Who may not see the key may put it there: it is not known to be this one.
            return False
        return bool(getattr(secrets, "key", None) == storage.key)

    def make() -> None:
        from azure.ai.ml.entities import (  # noqa: PLC0415 - heavy
            AccountKeyConfiguration,
            AzureBlobDatastore,
        )

        key = AccountKeyConfiguration(account_key=storage.key) if storage.key else None
        store = AzureBlobDatastore(
            name=DATASTORE,
            account_name=storage.name,
            container_name=storage.container,
            credentials=key,
        )
        workspace.ask(what, lambda ml: ml.datastores.create_or_update(store))

    return Task(what, is_there, make)


def cluster_step(workspace: Workspace, cluster: Cluster, *, by_identity: bool = False) -> Step:
    """Have a cluster that grows and shrinks; an existing one gets other limits.

    Parameters
    ----------
    by_identity
        It is to have an identity of its own: jobs reach the blobs as that.
    """
    what = f"cluster {cluster.name}"

    def is_there() -> bool:
        found = find(workspace, what, lambda ml: ml.compute.get(cluster.name))
        if found is None:
            return False
        if not hasattr(found, "max_instances"):
            message = f"the {what} is no cluster: it is of type {found.type}"
            raise Conflict(message)
        if str(found.size).lower() != cluster.size.lower():
            message = (
                f"the {what} has nodes of size {found.size}, which cannot become {cluster.size}:"
                " `--cluster` names another one"
            )
            raise Conflict(message)
        limits = found.min_instances, found.max_instances, found.idle_time_before_scale_down
        wanted = cluster.min_nodes, cluster.max_nodes, cluster.idle
        return limits == wanted and (_has_identity(found) or not by_identity)

    def make() -> None:
        compute = find(workspace, what, lambda ml: ml.compute.get(cluster.name)) or _new(cluster)
        if compute.network_settings and not compute.network_settings.subnet:
            # So the SDK reads one without a network, but so it cannot write it.
            compute.network_settings = None
        # What others have set, such as its network, stays.
        compute.min_instances = cluster.min_nodes
        compute.max_instances = cluster.max_nodes
        compute.idle_time_before_scale_down = cluster.idle
        if by_identity and not _has_identity(compute):
            _add_identity(compute)
        workspace.ask(what, lambda ml: ml.compute.begin_create_or_update(compute).result())

    def note() -> str:
        if not by_identity:
            return ""
        found = find(workspace, what, lambda ml: ml.compute.get(cluster.name))
        principal = getattr(getattr(found, "identity", None), "principal_id", None)
        return f"{what}: principal id {principal}" if principal else ""

    nodes = f"{cluster.min_nodes} to {cluster.max_nodes} nodes of {cluster.size}"
    return Task(f"{what}, {nodes}, given back after {cluster.idle} s", is_there, make, note)


def _has_identity(compute: "AmlCompute") -> bool:
    identity = compute.identity
    return identity is not None and _SYSTEM in str(identity.type)


def _add_identity(compute: "AmlCompute") -> None:
    """Give a cluster an identity of its own; those that others gave it stay."""
    from azure.ai.ml.entities import IdentityConfiguration  # noqa: PLC0415 - heavy

    others = compute.identity.user_assigned_identities if compute.identity else None
    compute.identity = IdentityConfiguration(
        type=f"{_SYSTEM},user_assigned" if others else _SYSTEM, user_assigned_identities=others
    )


def _new(cluster: Cluster) -> "AmlCompute":
    from azure.ai.ml.entities import AmlCompute, IdentityConfiguration  # noqa: PLC0415 - heavy

    # What it reads and writes the container as, where there is no key.
    identity = IdentityConfiguration(type=_SYSTEM)
    return AmlCompute(name=cluster.name, size=cluster.size, identity=identity)


def endpoint_steps(
    workspace: Workspace, name: str, pipeline: str, version: str, cluster: str
) -> Iterator[Step]:
    """Put a batch endpoint in front of the pipeline, for callers other than this system."""
    deployment = f"v{version}"
    default_what = f"default deployment {deployment} of batch endpoint {name}"
    endpoint_what = f"batch endpoint {name}"
    deployment_what = f"deployment {deployment} of {endpoint_what}"

    def put_endpoint(default: str | None = None) -> None:
        from azure.ai.ml.entities import BatchEndpoint  # noqa: PLC0415 - heavy

        endpoint = BatchEndpoint(
            name=name, description="Scores a fleet.", default_deployment_name=default
        )
        workspace.ask(
            endpoint_what, lambda ml: ml.batch_endpoints.begin_create_or_update(endpoint).result()
        )

    def make_deployment() -> None:
        from azure.ai.ml.entities import PipelineComponentBatchDeployment  # noqa: PLC0415 - heavy

        made = PipelineComponentBatchDeployment(
            name=deployment,
            endpoint_name=name,
            component=pipeline,
            settings={"default_compute": cluster},
        )
        workspace.ask(
            deployment_what, lambda ml: ml.batch_deployments.begin_create_or_update(made).result()
        )

    def is_default() -> bool:
        found = find(workspace, endpoint_what, lambda ml: ml.batch_endpoints.get(name))
        return bool(found and found.defaults and found.defaults.deployment_name == deployment)

    def make_default() -> None:
        put_endpoint(default=deployment)

    yield Task(
        endpoint_what,
        exists(workspace, endpoint_what, lambda ml: ml.batch_endpoints.get(name)),
        put_endpoint,
    )
    yield Task(
        deployment_what,
        exists(workspace, deployment_what, lambda ml: ml.batch_deployments.get(deployment, name)),
        make_deployment,
    )
    # What callers get who name no deployment.
    yield Task(default_what, is_default, make_default)


def clearing_steps(workspace: Workspace, name: str, version: str) -> Iterator[Step]:
    """Remove the deployments of other versions: an endpoint can have some twenty.

    The default stays, whichever it is, and what was not made here.
    """
    of = f"of batch endpoint {name}"
    endpoint = find(workspace, f"batch endpoint {name}", lambda ml: ml.batch_endpoints.get(name))
    if endpoint is None:
        return
    kept = {f"v{version}", endpoint.defaults and endpoint.defaults.deployment_name}
    found = workspace.ask(f"deployments {of}", lambda ml: list(ml.batch_deployments.list(name)))
    for old in sorted(str(one.name) for one in found):
        if _DEPLOYMENT.fullmatch(old) and old not in kept:
            yield _removal(workspace, name, old)


def _removal(workspace: Workspace, endpoint: str, deployment: str) -> Step:
    what = f"deployment {deployment} of batch endpoint {endpoint}"

    def remove() -> None:
        workspace.ask(
            what, lambda ml: ml.batch_deployments.begin_delete(deployment, endpoint).result()
        )

    there = exists(workspace, what, lambda ml: ml.batch_deployments.get(deployment, endpoint))
    return Task(f"removal of {what}", lambda: not there(), remove)
