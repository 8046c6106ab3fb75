"""Publish the pipeline, so that runs can be submitted to it.

Publishing what is published changes nothing, and publishing again after a failure goes on where
it stopped: every step looks first whether what it would make is there.
"""

from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from scoring.adapters.azure_ml.components import PIPELINE, JobRules, publish_components
from scoring.adapters.azure_ml.publication import Publication
from scoring.adapters.azure_ml.resources import (
    Cluster,
    StorageAccount,
    clearing_steps,
    cluster_step,
    datastore_step,
    endpoint_steps,
)
from scoring.adapters.azure_ml.steps import Step, Task
from scoring.adapters.azure_ml.workspace import Workspace
from scoring.errors import Misconfigured, ScoringError, Transient
from scoring.ports import Blobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to publish.

    Attributes
    ----------
    endpoint
        Name of a batch endpoint in front of the pipeline; empty for none.
    """

    storage: StorageAccount
    cluster: Cluster
    rules: JobRules
    endpoint: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """What became of one step: made now (by a dry run: would be made), or unchanged.

    Attributes
    ----------
    note
        What people need to know of it, such as who is to be given a role; mostly empty.
    """

    what: str
    made: bool
    note: str = ""


def publish(
    workspace: Workspace, blobs: Blobs, plan: Plan, *, dry_run: bool = False
) -> Iterator[Published]:
    """Make what is not there, one step after the other; gives each when it is done.

    Raises
    ------
    Conflict
        Something of the name is there already, and cannot become what is asked for.
    Misconfigured, Transient, ScoringError
        There is no such workspace; else as `Workspace.ask`.
    """
    workspace.check()
    with TemporaryDirectory() as folder:
        for step in _steps(workspace, blobs, plan, Path(folder)):
            missing = not step.is_there()
            if missing and not dry_run:
                _make(step)
            yield Published(step.what, missing, step.note())


def _make(step: Step) -> None:
    """Make it; no error if somebody else just did."""
    try:
        # Where the SDK, asked to show no progress, writes the color in which it would have.
        with redirect_stderr(StringIO()):
            step.make()
    except Transient:
        raise
    except ScoringError:
        if not step.is_there():
            raise


def _steps(workspace: Workspace, blobs: Blobs, plan: Plan, folder: Path) -> Iterator[Step]:
    by_identity = not plan.storage.key
    yield datastore_step(workspace, plan.storage)
    yield cluster_step(workspace, plan.cluster, by_identity=by_identity)
    version = yield from publish_components(workspace, folder, plan.rules, by_identity=by_identity)
    publication = Publication(
        pipeline=workspace.arm_id("components", PIPELINE, version),
        cluster=workspace.arm_id("computes", plan.cluster.name),
        by_identity=by_identity,
    )
    if plan.endpoint:
        yield from endpoint_steps(
            workspace, plan.endpoint, publication.pipeline, version, plan.cluster.name
        )
    # After all that it names: from here on runs are submitted to what is there as a whole.
    yield _publication_step(blobs, publication)
    if plan.endpoint:
        yield from clearing_steps(workspace, plan.endpoint, version)


def _publication_step(blobs: Blobs, publication: Publication) -> Step:
    def is_there() -> bool:
        try:
            return Publication.read(blobs) == publication
        except Misconfigured:
            return False

    return Task("publication", is_there, lambda: publication.write(blobs))
