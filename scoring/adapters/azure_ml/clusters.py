"""How a compute cluster stands: its nodes, whether it is resizing, and what keeps it from it."""

from collections.abc import Iterator
from typing import Any

from scoring.adapters.azure_ml.rest import BRIEF, connect, read_json
from scoring.adapters.azure_ml.workspace import Workspace

_RESOURCE_MANAGER = "https://management.azure.com"
_SCOPE = f"{_RESOURCE_MANAGER}/.default"
_API_VERSION = "2023-10-01"
_COUNT = "NodeCount"
_ERRORS = 300
"""Characters of a cluster's errors that are kept."""


def describe_cluster(workspace: Workspace, name: str) -> str:
    """Return how a cluster stands, such as ``nodes: 1 preparing, 2 running``.

    A cluster that is resizing, or that has errors, is described by those too: ``nodes: none,
    cluster resizing to 4 nodes, cluster errors: ClusterCoreQuotaReached: ...``. azure-ai-ml's
    `AmlCompute` has none of this, and so the resource itself is read; the request is not retried.

    Raises
    ------
    ScoringError
        The cluster cannot be read, or has an unknown form.
    """
    return workspace.ask(
        f"cluster {name}", lambda _: ", ".join(_facts(_read(workspace, name)["properties"]))
    )


def _read(workspace: Workspace, name: str) -> dict[str, Any]:
    url = f"{_RESOURCE_MANAGER}{workspace.arm_id('computes', name)}"
    with connect(workspace, _SCOPE, **BRIEF) as client:
        return read_json(client, url, **{"api-version": _API_VERSION})


def _facts(compute: dict[str, Any]) -> Iterator[str]:
    """Describe a compute resource; https://learn.microsoft.com/rest/api/azureml/compute/get."""
    cluster = compute.get("properties") or {}
    counts = sorted((cluster.get("nodeStateCounts") or {}).items())
    nodes = [f"{count} {state.removesuffix(_COUNT)}" for state, count in counts if count]
    yield f"nodes: {', '.join(nodes) or 'none'}"
    if cluster.get("allocationState") == "Resizing":
        target = cluster.get("targetNodeCount")
        yield f"cluster resizing to {target} {'node' if target == 1 else 'nodes'}"
    # Those of its creation, and those of its last attempts to add nodes.
    errors = [*(compute.get("provisioningErrors") or ()), *(cluster.get("errors") or ())]
    if errors:
        texts = dict.fromkeys(_text(error.get("error") or error) for error in errors)
        yield f"cluster errors: {'; '.join(texts)[:_ERRORS]}"


def _text(error: dict[str, Any]) -> str:
    parts = [error.get("code"), error.get("message")]
    return ": ".join(" ".join(str(part).split()) for part in parts if part)
