"""The engine: one job a run, by the run's own name."""

import logging
from collections.abc import Callable, Sequence
from time import sleep
from typing import TYPE_CHECKING, TypeVar

from scoring.adapters.azure_ml.clusters import describe_cluster
from scoring.adapters.azure_ml.history import WAITING, RunHistory, StepRun
from scoring.adapters.azure_ml.marks import check_run, mark_canceled, mark_refused, mark_run
from scoring.adapters.azure_ml.publication import Publication, datastore_path
from scoring.adapters.azure_ml.workspace import SETTING, Workspace
from scoring.errors import Conflict, Misconfigured, NotFound, ScoringError, Transient
from scoring.ports import Blobs, EngineReport, EngineState, ScoringOrder
from scoring.runs import fleet_prefix

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Job, PipelineJob

_Answer = TypeVar("_Answer")

log = logging.getLogger("scoring.azure_ml")

EXPERIMENT = "fleet-scoring"

_RUNNING = "Running"
_FINALIZING = "Finalizing"
_ENDED = {
    "Completed": EngineState.COMPLETED,
    "Failed": EngineState.FAILED,
    "Canceled": EngineState.CANCELED,
}
_POLL = 10.0
"""Seconds between two looks at a job: it takes minutes, and the service counts requests."""

_STEPS = 3
"""Runs of steps that a status names: there is one, unless the step was retried."""

_TAGS = ("run", "input", "fleet")


class AzureMLEngine:
    """Implements `ports.Engine`: submits to the published pipeline, never two jobs for one run."""

    def __init__(self, workspace: Workspace, blobs: Blobs) -> None:
        self._workspace = workspace
        self._blobs = blobs
        self._history = RunHistory(workspace)

    def submit(self, order: ScoringOrder) -> None:
        """Start the run's job, or do nothing if there is one already.

        A run that was canceled before gets no job, and has ended as canceled.

        Raises
        ------
        Conflict
            The job of this name is not this run's, or the run was given to another workspace.
        Transient
            It is not known whether the job was accepted: submitting again is safe.
        Misconfigured, ScoringError
            Nothing is published, access is denied, or the service refuses the job.
        """
        publication = self._publication()
        job = self._job(order, publication)
        # Before anybody can have accepted it: then no setting makes a second job of the run.
        mark = mark_run(self._blobs, order.run_id, self._workspace.id)
        if mark.canceled:
            # There may be a job all the same: of a submit whose answer was lost.
            if not self._stop(order.run_id):
                mark_refused(self._blobs, order.run_id, self._workspace.id)
            return
        try:
            self._ask(order.run_id, lambda client: client.jobs.create_or_update(job))
        except Transient:
            raise
        except ScoringError:
            # The service refuses a name that it knows, unless the bodies are equal; and another
            # version may have been published since the answer to the first submit was lost.
            if not self._is_accepted(order):
                self._check_published(publication)
                raise
        # Whoever canceled the run before there was a job has marked it, and looks for a job again
        # after that: one of the two sees what the other did.
        newest = check_run(self._blobs, order.run_id, self._workspace.id)
        if newest and newest.canceled:
            self._stop(order.run_id)

    def poll(self, run_id: str) -> EngineReport | None:
        """Return how far the job is.

        A pipeline job is ``Running`` as soon as the service works on it, also while its step waits
        for nodes. The report is `QUEUED` until the step itself has started; its status then names
        the step's own status and how the cluster stands. If run history or the cluster cannot be
        read, the job's own status decides: `RUNNING`, with `started` unknown.
        """
        job = self._find(run_id)
        if job is None:
            mark = check_run(self._blobs, run_id, self._workspace.id)
            return EngineReport(EngineState.CANCELED) if mark and mark.refused else None
        status, link = _status(job), job.studio_url or ""
        if (state := _ENDED.get(status)) is None:
            return self._open(run_id, job, status, link)
        if state != EngineState.FAILED:
            return EngineReport(state, status=status, link=link)
        cause, logs = self._history.failure(run_id)
        return EngineReport(state, cause, status=status, link=link, logs=logs)

    def cancel(self, run_id: str) -> None:
        """Stop the job; nothing happens if it has ended.

        For a run without a job the request is kept: another process may be about to submit it.

        Raises
        ------
        Conflict, Misconfigured
            Another workspace has the job, or there is no workspace.
        """
        if self._stop(run_id):
            return
        self._check_unknown(run_id)
        mark_canceled(self._blobs, run_id, self._workspace.id)
        # A job that was made before the mark could be seen.
        self._stop(run_id)

    def wait(self, run_id: str, timeout: float) -> EngineReport | None:
        """Wait for as long as is proper between two looks at a job, and look at it."""
        sleep(max(timeout, _POLL))
        return self.poll(run_id)

    def _stop(self, run_id: str) -> bool:
        """Have the job canceled unless it has ended; False if there is none."""
        try:
            # Who polls sees it end: no thread has to wait for that.
            self._ask(run_id, lambda client: client.jobs.begin_cancel(run_id, polling=False))
        except NotFound:
            return False
        except Transient:
            raise
        except ScoringError:
            # One that collects its outputs refuses, too (https://github.com/Azure/azureml-assets/
            # pull/2496), and ends without being told to.
            job = self._find(run_id)
            if job is not None and _status(job) not in {*_ENDED, _FINALIZING}:
                raise
            return job is not None
        return True

    def _publication(self) -> Publication:
        publication = Publication.read(self._blobs)
        if not self._workspace.holds(publication.pipeline):
            problem = (
                f"{SETTING} names {self._workspace.id}, and what is published is"
                f" {publication.pipeline}: `azure-ml publish` does it there"
            )
            raise Misconfigured([problem])
        return publication

    def _check_published(self, publication: Publication) -> None:
        """Raise `Misconfigured` if the published pipeline was deleted from the workspace."""
        name, _, version = publication.pipeline.rpartition("/components/")[2].split("/")
        what = f"component {name}:{version}"
        try:
            self._workspace.ask(what, lambda client: client.components.get(name, version))
        except NotFound as error:
            problem = f"the published {what} is no longer there: `azure-ml publish` makes it again"
            raise Misconfigured([problem]) from error
        except ScoringError as error:
            # The refusal of the job counts.
            log.info("azure_ml.no_pipeline", extra={"cause": str(error)})

    def _open(self, run_id: str, job: "Job", status: str, link: str) -> EngineReport:
        # A job that waits has no steps yet.
        steps = [] if status in WAITING else self._steps(run_id)
        waits = status in WAITING or (
            status == _RUNNING and steps is not None and not any(s.has_started for s in steps)
        )
        started = [step.started for step in steps or () if step.started is not None]
        return EngineReport(
            EngineState.QUEUED if waits else EngineState.RUNNING,
            status=", ".join([status, *_described(steps or ()), *self._nodes(job)]),
            link=link,
            started=min(started, default=None),
        )

    def _steps(self, run_id: str) -> list[StepRun] | None:
        """Return the runs of the job's steps; None if they cannot be read."""
        try:
            return self._history.steps(run_id)
        except ScoringError as error:
            # The job counts, and it was found.
            log.info("azure_ml.no_steps", extra={"run": run_id, "cause": str(error)})
            return None

    def _nodes(self, job: "Job") -> list[str]:
        """Return how the job's cluster stands, or nothing if it cannot be read."""
        settings = getattr(job, "settings", None)
        cluster = str(getattr(settings, "default_compute", None) or "").rpartition("/")[2]
        if not cluster:
            return []
        try:
            return [describe_cluster(self._workspace, cluster)]
        except ScoringError as error:
            # The job counts, and it was found.
            log.info("azure_ml.no_nodes", extra={"cluster": cluster, "cause": str(error)})
            return []

    def _job(self, order: ScoringOrder, publication: Publication) -> "PipelineJob":
        # The package is heavy, and it is here once somebody was connected.
        from azure.ai.ml import Input, ManagedIdentityConfiguration, Output  # noqa: PLC0415
        from azure.ai.ml.entities import PipelineJob, PipelineJobSettings  # noqa: PLC0415

        # A model asset would have to have an integer for a version, and this one is a digest; the
        # entry script holds what it opens against it.
        fleet = datastore_path(fleet_prefix(order.fleet_version))
        return PipelineJob(
            name=order.run_id,
            component=publication.pipeline,
            experiment_name=EXPERIMENT,
            display_name=order.run_id,
            inputs={
                "parts": Input(type="uri_folder", path=datastore_path(order.input_prefix)),
                "fleet": Input(type="uri_folder", path=fleet),
                "fleet_version": order.fleet_version,
                "run_id": order.run_id,
            },
            outputs={
                "predictions": Output(
                    type="uri_folder",
                    path=datastore_path(order.prediction_prefix),
                    mode="rw_mount",
                )
            },
            # Without `force_rerun` a step whose inputs look the same takes an old one's outputs.
            settings=PipelineJobSettings(default_compute=publication.cluster, force_rerun=True),
            # The pipeline's step says it for itself: what is said here does not reach into a
            # pipeline component, and the service's pages show it.
            identity=ManagedIdentityConfiguration() if publication.by_identity else None,
            tags=_tags(order),
        )

    def _is_accepted(self, order: ScoringOrder) -> bool:
        """Whether a job of the run's name is there; raises `Conflict` if it does something else."""
        job = self._find(order.run_id)
        if job is None:
            return False
        found = {tag: (job.tags or {}).get(tag) for tag in _TAGS}
        if found != _tags(order):
            message = f"the job {order.run_id} in Azure ML is of another run: {found}"
            raise Conflict(message)
        return True

    def _find(self, run_id: str) -> "Job | None":
        try:
            job: Job = self._ask(run_id, lambda client: client.jobs.get(run_id))
        except NotFound:
            self._check_unknown(run_id)
            return None
        return job

    def _check_unknown(self, run_id: str) -> None:
        """See that a job that was not found is unknown, and not looked for at the wrong place."""
        check_run(self._blobs, run_id, self._workspace.id)
        self._workspace.check()

    def _ask(self, run_id: str, question: "Callable[[MLClient], _Answer]") -> "_Answer":
        return self._workspace.ask(f"job {run_id}", question)


def _tags(order: ScoringOrder) -> dict[str, str]:
    return {"run": order.run_id, "input": order.input_prefix, "fleet": order.fleet_version}


def _status(job: "Job") -> str:
    # One that the package knows is an enumeration's, whose text is another; others are as sent.
    return str(getattr(job.status, "value", job.status))


def _described(steps: Sequence[StepRun]) -> list[str]:
    return [f"step {step.name}: {step.status}" for step in steps[:_STEPS]]
