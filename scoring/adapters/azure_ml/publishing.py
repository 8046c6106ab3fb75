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

from scoring.adapters.azure_ml.components import PIPELINE, JobRules, component_steps, stage
from scoring.adapters.azure_ml.fleets import fleet_step
from scoring.adapters.azure_ml.publication import Publication
from scoring.adapters.azure_ml.resources import (
    Cluster,
    StorageAccount,
    cluster_step,
    datastore_step,
    endpoint_steps,
)
from scoring.adapters.azure_ml.steps import Step
from scoring.adapters.azure_ml.workspace import Workspace
from scoring.errors import Misconfigured, ScoringError, Transient
from scoring.ports import Blobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to publish.

    Attributes
    ----------
    fleet_version
        The fleet to register; empty for none.
    endpoint
        Name of a batch endpoint in front of the pipeline; empty for none.
    """

    storage: StorageAccount
    cluster: Cluster
    rules: JobRules
    fleet_version: str = ""
    endpoint: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """What became of one step: made now (by a dry run: would be made), or unchanged."""

    what: str
    made: bool


def publish(
    workspace: Workspace, blobs: Blobs, plan: Plan, *, dry_run: bool = False
) -> Iterator[Published]:
    """Make what is not there, one step after the other; gives each when it is done.

    Raises
    ------
    Conflict
        Something of the name is there already, and cannot become what is asked for.
    Misconfigured, Transient, ScoringError
        As `Workspace.ask`.
    """
    with TemporaryDirectory() as folder:
        for step in _steps(workspace, blobs, plan, Path(folder)):
            missing = not step.is_there()
            if missing and not dry_run:
                _make(step)
            yield Published(step.what, missing)


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
    versions = stage(folder, workspace, plan.rules)
    publication = Publication(
        pipeline=workspace.arm_id("components", PIPELINE, versions.pipeline),
        cluster=workspace.arm_id("computes", plan.cluster.name),
    )
    yield datastore_step(workspace, plan.storage)
    yield cluster_step(workspace, plan.cluster)
    yield from component_steps(workspace, folder, versions, plan.rules.image)
    if plan.fleet_version:
        yield fleet_step(workspace, plan.fleet_version)
    if plan.endpoint:
        yield from endpoint_steps(
            workspace, plan.endpoint, publication.pipeline, versions.pipeline, plan.cluster.name
        )
    # Last: from here on runs are submitted to what is there as a whole.
    yield _publication_step(blobs, publication)


def _publication_step(blobs: Blobs, publication: Publication) -> Step:
    def is_there() -> bool:
        try:
            return Publication.read(blobs) == publication
        except Misconfigured:
            return False

    return Step("publication", is_there, lambda: publication.write(blobs))
