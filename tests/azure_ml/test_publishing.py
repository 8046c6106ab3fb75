"""Publishing, over the real SDK, to a control plane and Azurite."""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, redirect_stderr
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from azure.storage.blob import BlobServiceClient, ContainerClient
from typer.testing import CliRunner

import scoring
from scoring import instants
from scoring.adapters.azure_ml import components
from scoring.adapters.azure_ml.components import COMPONENT, ENVIRONMENT, PIPELINE, JobRules
from scoring.adapters.azure_ml.engine import AzureMLEngine
from scoring.adapters.azure_ml.publication import Publication
from scoring.adapters.azure_ml.publishing import Plan, Published, publish
from scoring.adapters.azure_ml.resources import Cluster, StorageAccount
from scoring.adapters.azure_ml.workspace import Workspace
from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.local_engine import LocalEngine, ParallelSettings
from scoring.bootstrap import App, nonce
from scoring.cli.azure_ml import azure_ml_app
from scoring.errors import Conflict, Misconfigured, ScoringError, Transient
from scoring.fleet import Model, Training, train_model
from scoring.ports import BlobInfo, EngineReport, EngineState, ScoringOrder
from scoring.readings import EventBatch, Partition
from scoring.runs import RunState
from scoring.settings import Settings
from tests.adapters.engines import order_of
from tests.azure_ml.harness import CALM_SDK, control_plane, workspace_of
from tests.azure_ml.plane import ControlPlane, Fault
from tests.azure_ml.workspace import PRINCIPAL

pytestmark = [*CALM_SDK]

ACCOUNT = "devstoreaccount1"
PLAN = Plan(
    storage=StorageAccount(ACCOUNT, "scoring", "a2V5"),
    cluster=Cluster(),
    rules=JobRules(),
    endpoint="fleet-scoring",
)
STEPS = [
    "datastore",
    "cluster",
    "environment",
    "component",
    "component",
    "batch",
    "deployment",
    "default",
    "publication",
]


@pytest.fixture(scope="module")
def storage(account: str) -> Iterator[str]:
    yield account
    # The SDK's sockets are closed here, and not in the middle of somebody else's test.
    gc.collect()


def empty(storage: str) -> None:
    with BlobServiceClient.from_connection_string(storage) as account:
        for container in account.list_containers():
            account.delete_container(container.name)


@pytest.fixture
def plane(storage: str) -> Iterator[ControlPlane]:
    empty(storage)
    with control_plane(storage=storage) as plane:
        yield plane


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "blobs")


def made(plane: ControlPlane, blobs: FolderBlobs, plan: Plan = PLAN, **options: Any) -> list[str]:
    """Publish, and name what was made."""
    retries = options.pop("retries", 4)
    workspace = workspace_of(plane, retries=retries)
    return [step.what for step in publish(workspace, blobs, plan, **options) if step.made]


def kinds(steps: list[str]) -> list[str]:
    return [step.partition(" ")[0] for step in steps]


def writes(plane: ControlPlane, since: int = 0) -> list[str]:
    """Name the requests that changed something, or tried to."""
    asked = [request for request in plane.requests[since:] if request.method not in {"GET", "HEAD"}]
    return [one.path for one in asked if not one.path.endswith("/listSecrets")]


def versions(plane: ControlPlane) -> dict[str, list[str]]:
    """Give the versions of all assets by name."""
    found: dict[str, list[str]] = {}
    for assets in (plane.environments, plane.components, plane.models):
        for key in assets:
            assert isinstance(key, tuple)
            found.setdefault(key[0], []).append(key[1])
    return found


class TestPublish:
    def test_all_of_it_is_made_and_runs_can_be_submitted(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        assert kinds(made(plane, blobs)) == STEPS

        engine = AzureMLEngine(workspace_of(plane), blobs)
        engine.submit(order_of("r1"))
        (version,) = versions(plane)[PIPELINE]
        pipeline = plane.components[PIPELINE, version].id
        assert plane.jobs["r1"].properties["componentId"] == pipeline
        assert {len(found) for found in versions(plane).values()} == {1}

    def test_published_again_it_changes_nothing(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        before = len(plane.requests)

        assert made(plane, blobs) == []

        assert writes(plane, before) == []

    def test_a_dry_run_names_what_is_missing_and_writes_nothing(
        self, plane: ControlPlane, blobs: FolderBlobs, storage: str
    ) -> None:
        assert kinds(made(plane, blobs, dry_run=True)) == STEPS

        assert writes(plane) == []
        assert list(blobs.list("")) == []
        assert _blob_names(storage) == []

    def test_a_dry_run_of_what_is_published_names_nothing(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)

        assert made(plane, blobs, dry_run=True) == []

    def test_a_step_is_told_when_it_is_done(self, plane: ControlPlane, blobs: FolderBlobs) -> None:
        steps = publish(workspace_of(plane), blobs, PLAN)

        assert next(steps).what.startswith("datastore")
        assert [*plane.datastores][-1] == "scoring_blobs"
        assert plane.computes == {}

    def test_the_job_is_ruled_as_it_is_asked_for(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        rules = JobRules(
            nodes=3, mini_batch_size=7, max_retries=5, timeout=77, error_threshold=11,
            mini_batch_error_threshold=13,
        )  # fmt: skip
        made(plane, blobs, replace(PLAN, rules=rules))

        component, pipeline = (
            plane.components[name, versions(plane)[name][0]].properties["componentSpec"]
            for name in (COMPONENT, PIPELINE)
        )
        assert component["mini_batch_size"] == "7"
        assert component["retry_settings"] == {"max_retries": 5, "timeout": 77}
        assert (component["error_threshold"], component["mini_batch_error_threshold"]) == (11, 13)
        assert component["is_deterministic"] is False
        assert pipeline["jobs"]["score"]["resources"] == {"instance_count": 3}

    def test_a_ready_image_is_taken_instead_of_building_one(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs, replace(PLAN, rules=JobRules(image="registry.example/score:1")))

        (environment,) = plane.environments.values()
        assert environment.properties["image"] == "registry.example/score:1"
        assert environment.properties.get("build") is None

    def test_without_endpoint_there_is_none_and_no_model_ever(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs, replace(PLAN, endpoint=""))

        assert (plane.models, plane.endpoints, plane.deployments) == ({}, {}, {})

    def test_two_who_publish_at_once_both_succeed(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        # To put back what the two take from each other.
        with redirect_stderr(sys.stderr), ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: made(plane, blobs), range(2)))

        assert {len(found) for found in versions(plane).values()} == {1}
        assert made(plane, blobs) == []


def _blob_names(storage: str) -> list[str]:
    with BlobServiceClient.from_connection_string(storage) as account:
        return [
            name
            for container in account.list_containers()
            for name in account.get_container_client(container.name).list_blob_names()
        ]


@dataclass(slots=True)
class NthWrite(Fault):
    """A fault of the `nth` write, of those to `host`.

    Attributes
    ----------
    then
        Whether it is there for everything after that, too.
    seen
        Writes so far.
    """

    nth: int = 0
    then: bool = False
    seen: int = 0

    def matches(self, method: str, host: str, path: str) -> bool:
        if method == "CONNECT" or self.host not in host or not host:
            return False
        if method not in {"PUT", "POST"} or path.endswith("/listSecrets"):
            return self.then and self.seen >= self.nth
        self.seen += 1
        return self.seen >= self.nth if self.then else self.seen == self.nth


class TestResumed:
    @pytest.mark.exhaustive
    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 403, "times": None, "then": True},
            {"host": "management.azure.com", "lose_answer": True},
        ],
        ids=["outage", "lost answer"],
    )
    def test_after_a_failure_at_any_write_the_next_publish_finishes(
        self, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
    ) -> None:
        # A small snapshot, so that not every one of its files is a write of the same kind.
        monkeypatch.setattr(components, "CORE", ("__init__", "errors"))
        monkeypatch.setattr(components, "_PACKAGE", "job")
        failures, nth = 0, 1
        while failures == nth - 1:
            empty(storage)
            blobs = FolderBlobs(tmp_path / f"{nth}")
            with control_plane(storage=storage) as plane:
                plane.faults.append(NthWrite(nth=nth, **fault))
                try:
                    made(plane, blobs, retries=0)
                except ScoringError:
                    failures += 1
                plane.faults.clear()
                made(plane, blobs)
                _assert_whole(plane, blobs)
            nth += 1

        assert failures > len(STEPS)

    @pytest.mark.parametrize("file", ["Dockerfile", "requirements.txt", "score.py", "errors.py"])
    def test_after_an_upload_that_failed_in_its_middle_the_next_publish_finishes(
        self, plane: ControlPlane, blobs: FolderBlobs, file: str
    ) -> None:
        plane.fault(method="PUT", path=rf"/{file}$", status=403)

        with pytest.raises(Misconfigured):
            made(plane, blobs)
        made(plane, blobs)

        _assert_whole(plane, blobs)

    def test_a_publication_that_could_not_be_written_is_written_by_the_next_publish(
        self, plane: ControlPlane, blobs: FolderBlobs, tmp_path: Path
    ) -> None:
        class Full(FolderBlobs):
            def write(self, name: str, data: bytes | Path) -> BlobInfo:
                raise Transient(name)

        with pytest.raises(Transient):
            made(plane, Full(tmp_path / "blobs"))

        assert made(plane, blobs) == ["publication"]


def _assert_whole(plane: ControlPlane, blobs: FolderBlobs) -> None:
    """Check that all is there, once, and is found there."""
    assert {name: len(found) for name, found in versions(plane).items()} == {
        ENVIRONMENT: 1, COMPONENT: 1, PIPELINE: 1,
    }  # fmt: skip
    assert len(plane.codes) == len(plane.endpoints) == len(plane.deployments) == 1
    assert list(plane.computes) == ["scoring"]
    before = len(plane.requests)
    assert made(plane, blobs) == []
    assert writes(plane, before) == []


KINDS = {ENVIRONMENT: "environments", COMPONENT: "components", PIPELINE: "components"}


def delete(plane: ControlPlane, *names: str) -> None:
    """Delete all versions of some assets."""
    for name in names:
        for version in versions(plane)[name]:
            plane.delete(KINDS[name], name, version)


class TestDeleted:
    """What was deleted from a workspace, or archived there, and is published again."""

    @pytest.mark.parametrize("status", [400, 404, 409])
    @pytest.mark.parametrize("name", KINDS)
    def test_a_deleted_version_is_published_as_the_next_revision(
        self, plane: ControlPlane, blobs: FolderBlobs, name: str, status: int
    ) -> None:
        made(plane, blobs)
        (first,) = versions(plane)[name]
        delete(plane, name)
        plane.refuse_deleted(status)

        again = made(plane, blobs)

        assert f"{first}r2" in versions(plane)[name]
        assert "publication" in again
        AzureMLEngine(workspace_of(plane), blobs).submit(order_of("r1"))
        used = plane.jobs["r1"].properties["componentId"]
        assert used == plane.components[PIPELINE, versions(plane)[PIPELINE][-1]].id
        before = len(plane.requests)
        assert made(plane, blobs) == []
        assert writes(plane, before) == []

    def test_each_revision_that_was_deleted_is_passed_over(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        (first,) = versions(plane)[PIPELINE]
        for _ in range(2):
            delete(plane, PIPELINE)
            made(plane, blobs)

        assert versions(plane)[PIPELINE] == [f"{first}r3"]
        # The first one did not go away, and so the others have no reason to change.
        assert [len(found) for found in versions(plane).values()] == [1, 1, 1]

    def test_what_names_a_new_revision_is_new_itself(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        before = versions(plane)
        delete(plane, ENVIRONMENT)

        made(plane, blobs)

        after = versions(plane)
        assert after[ENVIRONMENT] == [f"{before[ENVIRONMENT][0]}r2"]
        component = plane.components[COMPONENT, after[COMPONENT][-1]].properties["componentSpec"]
        assert component["task"]["environment"].endswith(f"/versions/{after[ENVIRONMENT][0]}")
        assert [len(after[name]) for name in (COMPONENT, PIPELINE)] == [2, 2]

    @pytest.mark.parametrize("name", KINDS)
    def test_an_archived_version_is_used_as_it_is(
        self, plane: ControlPlane, blobs: FolderBlobs, name: str
    ) -> None:
        made(plane, blobs)
        plane.archive(KINDS[name], name, versions(plane)[name][0])

        assert made(plane, blobs) == []

    @pytest.mark.parametrize("name", KINDS)
    def test_an_archived_revision_is_found_too(
        self, plane: ControlPlane, blobs: FolderBlobs, name: str
    ) -> None:
        made(plane, blobs)
        delete(plane, name)
        made(plane, blobs)
        plane.archive(KINDS[name], name, versions(plane)[name][0])
        before = len(plane.requests)

        assert made(plane, blobs) == []

        assert writes(plane, before) == []

    def test_two_who_publish_deleted_content_at_once_make_one_revision(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        delete(plane, *KINDS)

        # To put back what the two take from each other.
        with redirect_stderr(sys.stderr), ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: made(plane, blobs), range(2)))

        assert {len(found) for found in versions(plane).values()} == {1}
        assert made(plane, blobs) == []

    def test_a_revision_that_somebody_else_made_meanwhile_is_no_error(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        (first,) = versions(plane)[ENVIRONMENT]
        kept = plane.environments[ENVIRONMENT, first].properties
        delete(plane, ENVIRONMENT)
        workspace = plane.service.workspace
        strict = workspace.check
        assert strict

        def overtake(method: str, path: str, version: str, body: object) -> list[str]:
            if method == "PUT" and path.endswith(f"{first}r2"):
                # The build context of each upload has a path of its own, so that the service
                # takes it for another environment.
                plane.put("environments", (ENVIRONMENT, f"{first}r2"), kept)
            return strict(method, path, version, body)

        workspace.check = overtake
        made(plane, blobs)

        assert plane.environments[ENVIRONMENT, f"{first}r2"].properties["build"] == kept["build"]
        assert made(plane, blobs) == []

    def test_the_endpoint_gets_a_deployment_of_the_revision_and_loses_the_other(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        for _ in range(3):
            made(plane, blobs)
            delete(plane, PIPELINE)
        made(plane, blobs)

        (version,) = versions(plane)[PIPELINE]
        assert version.endswith("r4")
        assert list(plane.deployments) == [("fleet-scoring", f"v{version}")]

    def test_a_component_that_the_service_does_not_find_because_it_was_deleted_is_made_anew(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        (first,) = versions(plane)[COMPONENT]
        delete(plane, COMPONENT)
        message = f"Not found component {COMPONENT}."
        body = {"error": {"code": "UserError", "message": message}}
        plane.fault(method="PUT", path=f"/{COMPONENT}/versions/{first}$", status=404, body=body)

        made(plane, blobs)

        assert versions(plane)[COMPONENT] == [f"{first}r2"]

    def test_who_deletes_too_often_is_told_how_to_publish_all_the_same(
        self, plane: ControlPlane, blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(components, "_REVISIONS", 1)
        made(plane, blobs)
        delete(plane, PIPELINE)

        with pytest.raises(Conflict, match=f"component {PIPELINE} were deleted.*another option"):
            made(plane, blobs)
        made(plane, blobs, replace(PLAN, rules=JobRules(timeout=601)))

    def test_a_dry_run_looks_for_revisions_and_writes_nothing(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        delete(plane, PIPELINE)
        made(plane, blobs)
        before = len(plane.requests)

        assert made(plane, blobs, dry_run=True) == []
        assert writes(plane, before) == []


class TestVersions:
    @pytest.fixture
    def copied(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Have the project published from a copy of it, elsewhere."""
        root = Path(scoring.__file__).parent
        copy = tmp_path / "elsewhere" / "scoring"
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(components, "_ROOT", copy)
        monkeypatch.setattr(components, "_JOB", copy / "job")
        monkeypatch.setattr(components, "_IMAGE", copy / "job" / "environment")
        return copy

    def test_the_same_content_elsewhere_and_at_another_time_has_the_same_versions(
        self, plane: ControlPlane, blobs: FolderBlobs, copied: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as original:
            original.setattr(components, "_ROOT", Path(scoring.__file__).parent)
            made(plane, blobs)
        for path in copied.rglob("*"):
            os.utime(path, (1_000_000_000, 1_000_000_000))
        for folder in (copied, copied / "fleet", copied / "job", copied / "job" / "environment"):
            (folder / "__pycache__").mkdir()
            (folder / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"x")

        assert made(plane, blobs) == []

    @pytest.mark.parametrize(
        ("changed", "steps"),
        [
            ("job/score.py", ["component", "component"]),
            ("fleet/predicting.py", ["component", "component"]),
            ("job/environment/requirements.txt", ["environment", "component", "component"]),
        ],
    )
    def test_another_content_has_another_version_and_the_old_one_stays(
        self, plane: ControlPlane, blobs: FolderBlobs, copied: Path, changed: str, steps: list[str]
    ) -> None:
        made(plane, blobs)
        first = Publication.read(blobs)
        with (copied / changed).open("a") as file:
            file.write("# changed\n")

        again = made(plane, blobs)

        assert kinds(again) == [*steps, "deployment", "default", "publication", "removal"]
        second = Publication.read(blobs)
        assert second.pipeline != first.pipeline
        ids = [resource.id for resource in plane.components.values()]
        assert {first.pipeline, second.pipeline} < set(ids)

    def test_a_file_that_does_not_run_on_the_cluster_changes_no_version(
        self, plane: ControlPlane, blobs: FolderBlobs, copied: Path
    ) -> None:
        made(plane, blobs)
        with (copied / "bootstrap.py").open("a") as file:
            file.write("# changed\n")

        assert made(plane, blobs) == []

    def test_other_rules_are_another_version(self, plane: ControlPlane, blobs: FolderBlobs) -> None:
        made(plane, blobs)

        again = made(plane, blobs, replace(PLAN, rules=JobRules(timeout=60)))

        assert kinds(again)[:2] == ["component", "component"]
        assert len(plane.codes) == 1

    def test_the_version_before_is_published_again_as_the_version_it_was(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        first = Publication.read(blobs)
        made(plane, blobs, replace(PLAN, rules=JobRules(timeout=60)))

        again = made(plane, blobs)

        assert kinds(again) == ["deployment", "default", "publication", "removal"]
        assert Publication.read(blobs) == first


class TestResources:
    def test_a_cluster_gets_other_limits(self, plane: ControlPlane, blobs: FolderBlobs) -> None:
        made(plane, blobs)

        again = made(plane, blobs, replace(PLAN, cluster=Cluster(max_nodes=9, idle=300)))

        assert again == ["cluster scoring, 0 to 9 nodes of Standard_F4s_v2, given back after 300 s"]
        assert plane.computes["scoring"].properties["properties"]["scaleSettings"] == {
            "minNodeCount": 0,
            "maxNodeCount": 9,
            "nodeIdleTimeBeforeScaleDown": "PT5M",
        }

    def test_a_cluster_keeps_what_others_have_set(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        group = plane.workspace_id.partition("/providers/")[0]
        network = {"id": f"{group}/providers/Microsoft.Network/virtualNetworks/v/subnets/s"}
        plane.computes["scoring"].properties["properties"]["subnet"] = network
        plane.computes["scoring"].body["tags"] = {"owner": "Ada"}

        made(plane, blobs, replace(PLAN, cluster=Cluster(max_nodes=9)))

        assert plane.computes["scoring"].properties["properties"]["subnet"] == network
        assert plane.computes["scoring"].body["tags"] == {"owner": "Ada"}

    def test_a_cluster_of_another_size_is_a_conflict_that_names_both(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)

        way_out = r"(?i)Standard_F4s_v2.*Standard_F8s_v2: `--cluster` names another one"
        with pytest.raises(Conflict, match=way_out):
            made(plane, blobs, replace(PLAN, cluster=Cluster(size="Standard_F8s_v2")))

    @pytest.mark.parametrize(
        ("name", "steps"),
        [("scoring", ["cluster"]), ("fleet-scoring", ["batch", "default"])],
    )
    def test_what_the_service_failed_to_make_is_made_again(
        self, plane: ControlPlane, blobs: FolderBlobs, name: str, steps: list[str]
    ) -> None:
        plane.fail_provisioning(name, "QuotaExceeded", "there are no cores left")

        with pytest.raises(ScoringError, match="there are no cores left"):
            made(plane, blobs)
        plane.service.workspace.operations.failures.clear()

        assert set(steps) <= set(kinds(made(plane, blobs)))
        assert made(plane, blobs) == []

    def test_a_size_is_the_same_in_any_case(self, plane: ControlPlane, blobs: FolderBlobs) -> None:
        made(plane, blobs)

        assert made(plane, blobs, replace(PLAN, cluster=Cluster(size="STANDARD_F4S_V2"))) == []

    def test_a_compute_that_is_no_cluster_is_a_conflict(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        machine = {"computeType": "VirtualMachine", "resourceId": "/subscriptions/s/vm"}
        plane.put("computes", "scoring", machine | {"properties": {"address": "192.0.2.1"}})

        with pytest.raises(Conflict, match="scoring is no cluster: it is of type virtualmachine"):
            made(plane, blobs)

    @pytest.mark.parametrize(
        "other", [StorageAccount("other", "scoring"), StorageAccount(ACCOUNT, "other")]
    )
    def test_a_datastore_of_another_container_is_a_conflict_that_names_both(
        self, plane: ControlPlane, blobs: FolderBlobs, other: StorageAccount
    ) -> None:
        made(plane, blobs)
        before = len(plane.requests)

        with pytest.raises(Conflict, match=f"{ACCOUNT}.*{other.name}"):
            made(plane, blobs, replace(PLAN, storage=other))

        assert writes(plane, before) == []

    def test_a_datastore_has_the_key_or_the_jobs_identity(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs, replace(PLAN, storage=StorageAccount(ACCOUNT, "scoring")))

        kept = plane.datastores["scoring_blobs"]
        assert kept.properties["credentials"] == {"credentialsType": "None"}
        assert kept.secrets == {}

    def test_without_a_key_jobs_and_callers_of_the_endpoint_act_as_their_cluster(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        by_key = _step(plane, blobs)
        made(plane, blobs, replace(PLAN, storage=StorageAccount(ACCOUNT, "scoring"), endpoint=""))

        assert by_key.get("identity") is None
        # Of the job alone it would not be heard: it is a pipeline component's step that runs.
        assert _step(plane, blobs)["identity"] == {"identity_type": "Managed"}
        assert Publication.read(blobs).by_identity
        AzureMLEngine(workspace_of(plane), blobs).submit(order_of("r1"))
        assert plane.jobs["r1"].properties["identity"] == {"identityType": "Managed"}

    def test_a_key_that_was_rotated_is_put_into_the_datastore(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)

        again = made(
            plane, blobs, replace(PLAN, storage=StorageAccount(ACCOUNT, "scoring", "bmV3"))
        )

        assert kinds(again) == ["datastore"]
        assert plane.datastores["scoring_blobs"].secrets["key"] == "bmV3"

    def test_a_key_that_may_not_be_seen_is_put_into_the_datastore(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        plane.fault(path="/listSecrets$", status=403)

        assert kinds(made(plane, blobs)) == ["datastore"]

    def test_a_cluster_without_an_identity_gets_one_where_there_is_no_key_and_keeps_others(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        cluster = plane.computes["scoring"]
        group = plane.workspace_id.partition("/providers/")[0]
        other = f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/puller"
        cluster.body["identity"] = {"type": "UserAssigned", "userAssignedIdentities": {other: {}}}
        assert made(plane, blobs) == []
        keyless = replace(PLAN, storage=StorageAccount(ACCOUNT, "scoring"), endpoint="")

        assert "cluster" in kinds(made(plane, blobs, keyless))

        identity = plane.computes["scoring"].body["identity"]
        assert identity["type"] == "SystemAssigned,UserAssigned"
        assert list(identity["userAssignedIdentities"]) == [other]
        assert made(plane, blobs, keyless) == []

    def test_without_a_key_the_clusters_principal_is_told(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        keyless = replace(PLAN, storage=StorageAccount(ACCOUNT, "scoring"), endpoint="")

        notes = [step.note for step in publish(workspace_of(plane), blobs, keyless) if step.note]

        assert notes == [f"cluster scoring: principal id {PRINCIPAL}"]
        assert [step.note for step in publish(workspace_of(plane), blobs, PLAN) if step.note] == []

    def test_deployments_of_others_and_the_default_of_somebody_stay(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        current = plane.deployments["fleet-scoring", _default(plane)].properties
        for name in ("v0123456789abcdef", "mine", "v1"):
            plane.put("deployments", ("fleet-scoring", name), dict(current))

        assert made(plane, blobs, dry_run=True) == [
            "removal of deployment v0123456789abcdef of batch endpoint fleet-scoring"
        ]
        assert kinds(made(plane, blobs)) == ["removal"]

        left = {one.name for one in plane.deployments.values()}
        assert left == {"mine", "v1", _default(plane)}
        assert made(plane, blobs) == []

    @pytest.mark.parametrize("dry_run", [True, False])
    def test_a_workspace_that_does_not_exist_is_said_before_anything_is_made(
        self, plane: ControlPlane, blobs: FolderBlobs, dry_run: bool
    ) -> None:
        workspace = Workspace(f"{plane.workspace_id}2", wait=0)

        with pytest.raises(
            Misconfigured, match=r"SCORING_AZURE_ML_WORKSPACE: there is no .*fleet2"
        ):
            next(publish(workspace, blobs, PLAN, dry_run=dry_run))

        assert len(plane.requests) == len([one for one in plane.requests if one.method == "GET"])

    def test_a_datastore_gets_a_key_where_it_had_none(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs, replace(PLAN, storage=StorageAccount(ACCOUNT, "scoring")))

        assert kinds(made(plane, blobs))[0] == "datastore"
        assert plane.datastores["scoring_blobs"].secrets["key"] == "a2V5"

    def test_an_endpoint_moves_to_the_next_version(
        self, plane: ControlPlane, blobs: FolderBlobs
    ) -> None:
        made(plane, blobs)
        first = _default(plane)

        made(plane, blobs, replace(PLAN, rules=JobRules(nodes=2)))

        second = _default(plane)
        assert second != first
        assert set(plane.deployments) == {("fleet-scoring", second)}
        deployed = plane.deployments["fleet-scoring", second].properties
        component = deployed["deploymentConfiguration"]["componentId"]["assetId"]
        assert component == Publication.read(blobs).pipeline


def _step(plane: ControlPlane, blobs: FolderBlobs) -> dict[str, Any]:
    """Give the one step of the pipeline that is published."""
    version = Publication.read(blobs).pipeline.rpartition("/")[2]
    jobs = plane.components[PIPELINE, version].properties["componentSpec"]["jobs"]
    step: dict[str, Any] = jobs["score"]
    return step


def _default(plane: ControlPlane) -> str:
    return str(plane.endpoints["fleet-scoring"].properties["defaults"]["deploymentName"])


Command = Callable[..., "subprocess.CompletedProcess[str]"]


class TestCommandLine:
    @pytest.fixture
    def command(self, plane: ControlPlane, storage: str, tmp_path: Path) -> Command:
        """Give the command line, in a process of its own."""
        settings = {
            "SCORING_STORAGE": storage,
            "SCORING_AZURE_ML_WORKSPACE": plane.workspace_id,
            "SCORING_DATA": str(tmp_path / "data"),
        }
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SCORING_")}

        def run(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                [sys.executable, "-m", "scoring", *arguments],
                env=environment | settings | plane.environment | more,
                cwd=Path(scoring.__file__).parents[1],
                capture_output=True, text=True, check=False, timeout=120,
            )  # fmt: skip

        return run

    def test_publish_tells_every_step_and_the_next_time_that_there_is_nothing_to_do(
        self, plane: ControlPlane, command: Command
    ) -> None:
        first = command("azure-ml", "publish", "--endpoint", "door", "--max-nodes", "2")
        second = command("azure-ml", "publish", "--endpoint", "door", "--max-nodes", "2")

        assert (first.returncode, first.stderr) == (0, "")
        assert (second.returncode, second.stderr) == (0, "")
        steps = [line.split() for line in first.stdout.splitlines()]
        assert [step[:2] for step in steps] == [["made", kind] for kind in STEPS]
        assert "0 to 2 nodes of Standard_F4s_v2" in first.stdout
        assert "nothing to do: all of it is published" in second.stdout
        assert second.stdout.count("unchanged") == len(steps)
        assert list(plane.endpoints) == ["door"]

    def test_a_dry_run_and_json_say_what_would_be_made(
        self, plane: ControlPlane, command: Command, storage: str
    ) -> None:
        done = command("azure-ml", "publish", "--dry-run", "--json")

        told = json.loads(done.stdout)
        assert (done.returncode, done.stderr) == (0, "")
        assert told["dry_run"] is True
        assert [step["made"] for step in told["steps"]] == [True] * 6
        assert writes(plane) == []
        assert _blob_names(storage) == []

    def test_what_stands_in_the_way_is_one_line(
        self, plane: ControlPlane, command: Command
    ) -> None:
        properties = {"accountName": "other", "containerName": "scoring"}
        plane.put("datastores", "scoring_blobs", {
            "datastoreType": "AzureBlob", "credentials": {"credentialsType": "None"}, **properties,
        })  # fmt: skip

        done = command("azure-ml", "publish")

        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert "datastore scoring_blobs" in line
        assert "'other'" in line

    def test_without_a_key_the_last_line_is_the_clusters_principal(
        self, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        steps = [Published("cluster scoring", made=True, note="cluster scoring: principal id p")]
        monkeypatch.setattr(App, "publish", lambda *_, **__: iter(steps))
        monkeypatch.setenv("SCORING_DATA", str(tmp_path))

        text = CliRunner().invoke(azure_ml_app, ["publish"])
        told = CliRunner().invoke(azure_ml_app, ["publish", "--json"])

        assert text.output.splitlines()[-1] == "cluster scoring: principal id p"
        assert json.loads(told.output)["steps"][0]["note"] == "cluster scoring: principal id p"

    @pytest.mark.parametrize(
        "options",
        [
            ("--cluster", "ab"),
            ("--cluster", "a b"),
            ("--cluster", ""),
            ("--cluster", "scoring-2"),
            ("--cluster", "a" * 25),
            ("--endpoint", "a_b"),
            ("--endpoint", "1ab"),
            ("--endpoint", "a" * 33),
        ],
    )
    def test_a_name_that_the_service_does_not_take_is_wrong_usage(
        self, options: tuple[str, str]
    ) -> None:
        done = CliRunner().invoke(azure_ml_app, ["publish", *options])

        assert done.exit_code == 2
        assert options[0] in done.output

    def test_a_missing_identity_is_one_line(self, plane: ControlPlane, command: Command) -> None:
        plane.tokens.denied = True

        done = command("azure-ml", "publish")

        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert "no identity" in line


def fleet_of(app: App) -> str:
    """Publish a fleet in which one sensor of the readings has no model."""
    models = []
    for number in range(3):
        x = np.random.default_rng(number).normal(3, 2, (60, 2))
        models.append(Model(f"d{number}", "s", train_model(x, Training())))
    return app.shelf.publish(models, ("mean", "max"), START)


START = datetime(2026, 1, 5, tzinfo=UTC)

PLATFORM = """
import json
import subprocess
import sys

PYTHON, DRIVER, CODE, ENTRY, PROGRAM_ARGUMENTS = {values!r}
_child = None


def init():
    global _child
    # As the local engine names them: what the component's own arguments are made of.
    given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    arguments = PROGRAM_ARGUMENTS
    for binding, option in (
        ("inputs.fleet", "--fleet"),
        ("outputs.predictions", "--predictions"),
        ("inputs.fleet_version", "--fleet-version"),
        ("inputs.run_id", "--run-id"),
    ):
        arguments = arguments.replace("${{{{" + binding + "}}}}", given[option])
    # Isolated: neither the current folder nor PYTHONPATH is on its path.
    _child = subprocess.Popen(
        [PYTHON, "-I", DRIVER, CODE, ENTRY, *arguments.split()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={{}},
    )


def run(mini_batch):
    _child.stdin.write(json.dumps(mini_batch) + "\\n")
    _child.stdin.flush()
    return json.loads(_child.stdout.readline())
"""
"""Stands between the local engine and the published code, which has a Python of its own."""

DRIVER = """
import json
import sys
from pathlib import Path

code, entry, *sys.argv[1:] = sys.argv[1:]
sys.path.insert(0, code)
score = __import__(entry.removesuffix(".py"))
score.init()
for line in sys.stdin:
    rows = score.run(json.loads(line))
    loaded = {name: m.__file__ for name, m in sys.modules.items() if name.startswith("scoring")}
    Path(code, "loaded.json").write_text(json.dumps(loaded))
    print(json.dumps(rows), flush=True)
"""


class TestPublishedComponent:
    """What was published does, as it was published, what it does here."""

    def test_it_scores_as_the_local_engine_does(
        self, plane: ControlPlane, blobs: FolderBlobs, storage: str, tmp_path: Path
    ) -> None:
        made(plane, blobs)
        (version,) = versions(plane)[COMPONENT]
        spec = plane.components[COMPONENT, version].properties["componentSpec"]
        code = tmp_path / "node"
        _download(storage, _code_uri(plane, spec), code)
        assert spec["input_data"] == "${{inputs.parts}}"
        assert spec["task"]["type"] == "run_function"
        rules = ParallelSettings(
            processes=1,
            mini_batch_size=int(spec["mini_batch_size"]),
            max_retries=spec["retry_settings"]["max_retries"],
            timeout=spec["retry_settings"]["timeout"],
            error_threshold=spec["error_threshold"],
            mini_batch_error_threshold=spec["mini_batch_error_threshold"],
        )

        with App(Settings.load(DEMO | {"SCORING_DATA": str(tmp_path / "data")})) as app:
            order = _scored(app)
            entry = _platform(tmp_path, code, spec["task"])
            with closing(LocalEngine(app.blobs, tmp_path / "work", rules, entry)) as engine:
                again = replace(order, prediction_prefix="predictions/again/")
                engine.submit(again)
                report = engine.wait(order.run_id, 120)
            here, there = (
                {blob.name.removeprefix(prefix): app.blobs.read(blob.name)[0] for blob in found}
                for prefix in (order.prediction_prefix, again.prediction_prefix)
                for found in [list(app.blobs.list(prefix))]
            )

        assert report == EngineReport(EngineState.COMPLETED, parts_done=len(here))
        assert len(here) > 1
        assert there == here
        loaded = json.loads((code / "loaded.json").read_text())
        assert "scoring.fleet.predicting" in loaded
        assert {Path(file).is_relative_to(code) for file in loaded.values()} == {True}


DEMO = {
    "SCORING_WINDOW": "1min",
    "SCORING_ALLOWED_LATENESS": "1s",
    "SCORING_PART_ROWS": "10",
    "SCORING_PROCESSES": "1",
}


def _scored(app: App) -> ScoringOrder:
    """Ingest readings, and score them here."""
    numbers = np.arange(400)
    times = instants.of(START) + numbers * instants.SECOND
    bodies = [
        b'{"device":"d%d","sensor":"s","ts":%d,"value":%d}' % (n % 4, t // 1000, n % 9)
        for n, t in zip(numbers.tolist(), times.tolist(), strict=True)
    ]
    app.ingest()(EventBatch(Partition("hub", "0"), numbers, times, bodies))
    now = START + timedelta(hours=2)
    run = app.submit("test", fleet_of(app), now, nonce())
    assert run
    run = app.see_through(run, lambda: now, lambda done, total: None)
    assert run.state == RunState.COMPLETED
    return ScoringOrder(run.run_id, run.fleet_version, run.input_prefix, run.prediction_prefix)


def _code_uri(plane: ControlPlane, spec: dict[str, Any]) -> str:
    """Follow a component to its code."""
    (code,) = [one for one in plane.codes.values() if spec["task"]["code"] == f"azureml:{one.id}"]
    return str(code.properties["codeUri"])


def _download(storage: str, uri: str, folder: Path) -> None:
    _, _, _, container, *path = uri.split("/")
    prefix = "/".join([*path, ""]) if path else ""
    with ContainerClient.from_connection_string(storage, container) as blobs:
        for name in blobs.list_blob_names(name_starts_with=prefix):
            target = folder / name.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(blobs.download_blob(name).readall())


def _platform(folder: Path, code: Path, task: dict[str, Any]) -> Path:
    driver, platform = folder / "driver.py", folder / "platform_entry.py"
    driver.write_text(DRIVER)
    values = (
        sys.executable, str(driver), str(code), task["entry_script"], task["program_arguments"]
    )  # fmt: skip
    platform.write_text(PLATFORM.format(values=values))
    return platform
