"""What is published, as the engine needs to know it: kept in Blob, read with every submit."""

import json
from dataclasses import asdict, dataclass

from scoring.errors import Conflict, Misconfigured, NotFound
from scoring.ports import Blobs

_BLOB = "azure-ml/publication.json"

DATASTORE = "scoring_blobs"
FLEET = "scoring-fleet"
"""The model asset: one version a fleet version."""


@dataclass(frozen=True, slots=True)
class Publication:
    """The pipeline that runs are submitted to.

    Attributes
    ----------
    pipeline, cluster
        ARM ids, the pipeline component's with its version.
    by_identity
        Jobs reach the blobs as their cluster's identity: the datastore has no key.
    """

    pipeline: str
    cluster: str
    by_identity: bool = False

    def write(self, blobs: Blobs) -> None:
        """Make it the one that counts."""
        blobs.write(_BLOB, json.dumps(asdict(self), indent=2).encode())

    @classmethod
    def read(cls, blobs: Blobs) -> "Publication":
        """Give what was published last.

        Raises
        ------
        Misconfigured
            Nothing was.
        """
        try:
            data, _ = blobs.read(_BLOB)
        except NotFound as error:
            problem = "no pipeline is published: `azure-ml publish` does it"
            raise Misconfigured([problem]) from error
        return cls(**json.loads(data))


def mark_run(blobs: Blobs, run_id: str, workspace: str) -> None:
    """Give a run to the workspace of this ARM id, for good: no other one may make a job of it.

    Raises
    ------
    Conflict
        It was given to another one.
    """
    try:
        blobs.create(_marker(run_id), json.dumps({"workspace": workspace}).encode())
    except Conflict:
        check_run(blobs, run_id, workspace)


def check_run(blobs: Blobs, run_id: str, workspace: str) -> None:
    """See that a run was given to this workspace, or to none.

    Raises
    ------
    Conflict
        It was given to another one.
    """
    try:
        data, _ = blobs.read(_marker(run_id))
    except NotFound:
        return
    given = str(json.loads(data)["workspace"])
    if given.lower() != workspace.lower():
        message = (
            f"run {run_id} was given to the Azure ML workspace {given}, and"
            f" SCORING_AZURE_ML_WORKSPACE names {workspace}: set it back until the run has ended"
            f" (or, if that workspace is no more, delete the blob {_marker(run_id)})"
        )
        raise Conflict(message)


def _marker(run_id: str) -> str:
    return f"runs/{run_id}/azure-ml.json"


def datastore_path(prefix: str) -> str:
    """Give the URI by which jobs know blobs."""
    return f"azureml://datastores/{DATASTORE}/paths/{prefix}"
