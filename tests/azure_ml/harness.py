"""What tests of the project's own Azure ML adapter are put up with."""

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from scoring import instants
from scoring.adapters.azure_ml.engine import AzureMLEngine
from scoring.adapters.azure_ml.publication import DATASTORE, Publication
from scoring.adapters.azure_ml.workspace import Workspace
from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.local_engine import LocalEngine, ParallelSettings
from scoring.ports import Blobs, EngineReport, EngineState, ScoringOrder
from tests.adapters.engines import FLEET as FLEET_VERSION
from tests.adapters.engines import (
    SCRIPT,
    EngineHarness,
    errors_of,
    eventually,
    order_of,
    predictions_of,
)
from tests.azure_ml.plane import Child, ControlPlane, Job
from tests.azure_ml.schema import violations
from tests.azure_ml.server import Request

with warnings.catch_warnings():
    # Of the SDK's own schemas, as it is imported.
    warnings.simplefilter("ignore")
    import azure.ai.ml  # noqa: F401

CALM_SDK = (
    # The SDK has no means to close its connections.
    pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning"),
    # Nor has it followed what marshmallow deprecates, with each schema that it makes.
    pytest.mark.filterwarnings("ignore::marshmallow.warnings.Marshmallow4Warning"),
    # It times itself by a clock that Python 3.12 deprecates.
    pytest.mark.filterwarnings(
        r"ignore:datetime.datetime.utcnow:DeprecationWarning:azure\.ai\.ml\._telemetry"
    ),
)
"""Marks of what uses the SDK."""

AT_ONCE = {"Retry-After": "0"}
"""Headers of a refusal after which to come again."""

PIPELINE = "score_fleet_pipeline"
CLUSTER = "scoring"
_PORTS = {
    "parts": "uri_folder",
    "fleet": "uri_folder",
    "fleet_version": "string",
    "run_id": "string",
}
_DATASTORE_PATH = f"azureml://datastores/{DATASTORE}/paths/"


@contextmanager
def control_plane(**options: Any) -> Iterator[ControlPlane]:
    """Open a control plane that refuses what breaks the schema; this process is sent there.

    Fails in the end if anything sent to it broke the schema, or was meant for nobody it knows.
    """
    wrong: list[str] = []

    def check(method: str, path: str, api_version: str, body: object) -> list[str]:
        found = violations(method, path, api_version, body)
        wrong.extend(found)
        return found

    plane = ControlPlane(check=check, **options)
    with plane, patch.dict(os.environ, plane.environment):
        yield plane
    assert wrong == []
    refused = [method for method, *_ in plane.thrown if method == "CONNECT"]
    assert [one.method for one in plane.requests if one.method == "CONNECT"] == refused


def workspace_of(plane: ControlPlane, **options: Any) -> Workspace:
    """Connect as the project does, but wait for nothing."""
    return Workspace(plane.workspace_id, **{"wait": 0, **options})


def publish_without_upload(
    plane: ControlPlane, blobs: Blobs, version: str = "1", *, by_identity: bool = False
) -> Publication:
    """Put there what jobs are submitted to: all but what is in it."""
    inputs = {name: {"type": kind} for name, kind in _PORTS.items()}
    spec = {
        **{"name": PIPELINE, "version": version, "type": "pipeline", "jobs": {}},
        **{"inputs": inputs, "outputs": {"predictions": {"type": "uri_folder"}}},
    }
    plane.put("components", (PIPELINE, version), {"componentSpec": spec})
    plane.put("computes", CLUSTER, {"computeType": "AmlCompute", "properties": {}})
    store = {"datastoreType": "AzureBlob", "accountName": "devices", "containerName": "scoring"}
    plane.put("datastores", DATASTORE, store | {"credentials": {"credentialsType": "None"}})
    workspace = workspace_of(plane)
    publication = Publication(
        workspace.arm_id("components", PIPELINE, version),
        workspace.arm_id("computes", CLUSTER),
        by_identity=by_identity,
    )
    publication.write(blobs)
    return publication


class System:
    """An engine, and the service that it asks."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self.blobs = FolderBlobs(folder)
        publish_without_upload(plane, self.blobs)
        self.engine = self.new_engine()

    def new_engine(self, **options: Any) -> AzureMLEngine:
        """Make an engine as a process that has just begun has one."""
        return AzureMLEngine(workspace_of(self.plane, **options), self.blobs)

    def submitted(self, run_id: str = "r1") -> ScoringOrder:
        order = order_of(run_id)
        self.engine.submit(order)
        return order

    def report(self, run_id: str = "r1") -> EngineReport:
        report = self.engine.poll(run_id)
        assert report
        return report

    def requests(self, ask: Callable[[], object]) -> list[str]:
        """Name the requests that something makes of the service itself."""
        before = len(self.plane.requests)
        ask()
        return [_name(request) for request in self.plane.requests[before:]]


def _name(request: Request) -> str:
    return f"{request.method} {request.path.rpartition('/workspaces/fleet')[2] or request.path}"


class LocalRunner:
    """Runs accepted jobs in a local engine, whose blobs are those of the jobs' datastore."""

    def __init__(self, blobs: Blobs, work_folder: Path) -> None:
        self._blobs = blobs
        self._work_folder = work_folder
        self._threads: list[threading.Thread] = []
        self._engine = self._new_engine()

    def start(self, job: Job, plane: ControlPlane) -> None:
        self._engine.submit(_order(job))
        plane.set_status(job.name, "Running")
        step = plane.add_child(job.name, "Queued")
        arguments = (self._engine, job, step, plane)
        thread = threading.Thread(target=self._follow, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def cancel(self, job: Job) -> None:
        self._engine.cancel(job.name)

    def die(self) -> None:
        """Lose what runs, as a service does that is struck by lightning."""
        self.close()
        self._engine = self._new_engine()

    def close(self) -> None:
        self._engine.close()
        for thread in self._threads:
            thread.join()

    def _new_engine(self) -> LocalEngine:
        settings = ParallelSettings(max_retries=0, timeout=300)
        return LocalEngine(self._blobs, self._work_folder, settings, SCRIPT)

    @staticmethod
    def _follow(engine: LocalEngine, job: Job, step: Child, plane: ControlPlane) -> None:
        def has_begun() -> bool:
            report = engine.poll(job.name)
            return report is None or report.state != EngineState.QUEUED

        eventually(has_begun)
        report = engine.poll(job.name)
        if report and report.started is not None:
            plane.move_child(step, "Running", instants.moment(report.started))
        report = engine.wait(job.name)
        if report is None:
            return
        if report.state == EngineState.FAILED:
            plane.fail(job.name, report.cause, {"user_logs/std_log_0.txt": "it did not work"})
        else:
            plane.set_status(job.name, report.state.capitalize())


def _order(job: Job) -> ScoringOrder:
    """Read an order out of a job as the service would: from where its inputs really are."""
    inputs, outputs = job.properties["inputs"], job.properties["outputs"]
    match = re.fullmatch(r"fleets/([^/]+)/", _prefix(inputs["fleet"]["uri"]))
    assert match
    return ScoringOrder(
        run_id=inputs["run_id"]["value"],
        fleet_version=match[1],
        input_prefix=_prefix(inputs["parts"]["uri"]),
        prediction_prefix=_prefix(outputs["predictions"]["uri"]),
    )


def _prefix(uri: str) -> str:
    assert uri.startswith(_DATASTORE_PATH)
    return uri.removeprefix(_DATASTORE_PATH)


class AzureMLHarness:
    """The engine on Azure ML, whose cluster is a local engine."""

    def __init__(self, folder: Path) -> None:
        self.blobs = FolderBlobs(folder / "blobs")
        self.blobs.write(f"fleets/{FLEET_VERSION}/how", b"ok")
        self._mark = folder / "mark"
        self._runs = 0
        self._runner = LocalRunner(self.blobs, folder / "work")
        self._context = control_plane(runner=self._runner)
        self.plane = self._context.__enter__()
        publish_without_upload(self.plane, self.blobs)
        self.engine = AzureMLEngine(workspace_of(self.plane), self.blobs)

    def stage(self, *, good: int = 0, bad: int = 0, stuck: int = 0) -> ScoringOrder:
        self._runs += 1
        order = order_of(f"r{self._runs}")
        commands = ["count"] * good + ["fail"] * bad + [f"hold {self._mark}"] * stuck
        for number, command in enumerate(commands):
            self.blobs.write(f"{order.input_prefix}part-{number:05d}.parquet", command.encode())
        return order

    def release(self) -> None:
        self._mark.write_text("go")

    def settle(self, order: ScoringOrder) -> EngineReport | None:
        eventually(lambda: self.plane.jobs[order.run_id].ended is not None)
        return self.engine.poll(order.run_id)

    def predictions(self, order: ScoringOrder) -> list[str]:
        return predictions_of(self.blobs, order)

    def errors(self, order: ScoringOrder) -> dict[str, str]:
        return errors_of(self.blobs, order)

    def lose(self, order: ScoringOrder) -> None:
        self.engine.submit(order)
        self._runner.die()
        del self.plane.jobs[order.run_id]

    def close(self) -> None:
        self._runner.close()
        self._context.__exit__(None, None, None)


_: Callable[[Path], EngineHarness] = AzureMLHarness


def sample_of(seeds: int) -> list[Any]:
    """Give the first of some seeds to every run of the tests, and the others to the exhaustive."""
    return [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(1, seeds))]
