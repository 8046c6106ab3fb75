"""The engine on Azure ML, over the real SDK, against a service that misbehaves."""

import gc
import json
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from azure.core.exceptions import AzureError, ServiceRequestError

from scoring import instants
from scoring.adapters.azure_ml.engine import AzureMLEngine
from scoring.adapters.azure_ml.marks import check_run, mark_run
from scoring.adapters.azure_ml.publication import Publication
from scoring.adapters.azure_ml.workspace import Workspace
from scoring.adapters.blobs import FolderBlobs
from scoring.bootstrap import App, nonce
from scoring.errors import Conflict, Misconfigured, ScoringError, StorageUnusable, Transient
from scoring.ports import EngineState, LogTail
from scoring.readings import EventBatch, Partition
from scoring.runs import RunState
from scoring.settings import Settings
from tests.adapters.engines import FLEET, order_of
from tests.azure_ml.harness import (
    AT_ONCE,
    CALM_SDK,
    PIPELINE,
    System,
    control_plane,
    publish_without_upload,
    sample_of,
    workspace_of,
)
from tests.azure_ml.plane import ControlPlane

pytestmark = [*CALM_SDK]

JOB = r"/jobs/[^/]+$"
CANCEL = r"/cancel$"
RETRIES = 4


@pytest.fixture(scope="module", autouse=True)
def leave_nothing_open() -> Iterator[None]:
    """Close the SDK's sockets here, and not in the middle of somebody else's test."""
    yield
    gc.collect()


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with control_plane() as plane:
        yield plane


@pytest.fixture
def system(plane: ControlPlane, tmp_path: Path) -> System:
    return System(plane, tmp_path)


class TestSubmit:
    def test_a_run_becomes_a_job_of_its_name(self, system: System) -> None:
        order = system.submitted()

        workspace = system.plane.workspace_id
        job = system.plane.jobs["r1"].properties
        datastore = "azureml://datastores/scoring_blobs/paths"
        assert job["componentId"] == f"{workspace}/components/{PIPELINE}/versions/1"
        assert job["inputs"]["parts"]["uri"] == f"{datastore}/{order.input_prefix}"
        folder = f"{datastore}/fleets/{FLEET}/"
        assert job["inputs"]["fleet"] == {"jobInputType": "uri_folder", "uri": folder}
        assert job["inputs"]["run_id"]["value"] == "r1"
        assert job["outputs"]["predictions"] == {
            "jobOutputType": "uri_folder",
            "mode": "ReadWriteMount",
            "uri": f"{datastore}/{order.prediction_prefix}",
        }
        assert job["settings"]["force_rerun"] is True
        assert job["settings"]["default_compute"] == f"{workspace}/computes/scoring"
        assert job["tags"] == {"run": "r1", "input": order.input_prefix, "fleet": FLEET}

    def test_where_the_datastore_has_no_key_the_job_acts_as_its_cluster(
        self, system: System
    ) -> None:
        system.submitted("r1")
        publish_without_upload(system.plane, system.blobs, by_identity=True)
        system.submitted("r2")

        jobs = system.plane.jobs
        assert jobs["r1"].properties.get("identity") is None
        assert jobs["r2"].properties["identity"] == {"identityType": "Managed"}

    def test_a_publication_of_before_there_were_identities_is_read(self, system: System) -> None:
        name = "azure-ml/publication.json"
        said = json.loads(system.blobs.read(name)[0])
        del said["by_identity"]
        system.blobs.write(name, json.dumps(said).encode())

        system.submitted()

        assert system.plane.created_jobs == ["r1"]

    def test_a_run_submitted_twice_is_one_job(self, system: System) -> None:
        order = system.submitted()

        system.engine.submit(order)

        assert system.plane.created_jobs == ["r1"]

    def test_a_warm_submit_is_one_request(self, system: System) -> None:
        system.submitted("r1")

        assert system.requests(lambda: system.submitted("r2")) == ["PUT /jobs/r2"]

    def test_a_submit_whose_answer_was_lost_is_one_job(self, system: System) -> None:
        lost = system.plane.fault(method="PUT", path=JOB, lose_answer=True)

        system.submitted()

        assert lost.hits == 1
        assert (system.plane.created_jobs, system.plane.jobs["r1"].repeated) == (["r1"], 1)

    def test_a_submit_whose_answers_are_all_lost_can_be_made_again(self, system: System) -> None:
        engine = system.new_engine(retries=0)
        system.plane.fault(method="PUT", path=JOB, lose_answer=True)

        with pytest.raises(Transient, match="job r1"):
            engine.submit(order_of("r1"))
        engine.submit(order_of("r1"))

        assert system.plane.created_jobs == ["r1"]

    def test_a_submit_that_never_arrived_can_be_made_again(self, system: System) -> None:
        engine = system.new_engine(retries=0)
        system.plane.fault(method="PUT", path=JOB, drop=True)

        with pytest.raises(Transient):
            engine.submit(order_of("r1"))
        assert system.plane.created_jobs == []
        engine.submit(order_of("r1"))

        assert system.plane.created_jobs == ["r1"]

    def test_a_service_that_answers_when_nobody_waits_any_more_makes_one_job(
        self, system: System
    ) -> None:
        workspace = workspace_of(system.plane)
        workspace.options["read_timeout"] = 0.1
        engine = AzureMLEngine(workspace, system.blobs)
        late = system.plane.fault(method="PUT", path=JOB, delay=0.4)

        engine.submit(order_of("r1"))

        assert late.hits == 1
        assert len([r for r in system.plane.requests if r.path.endswith("/jobs/r1")]) == 2
        assert system.plane.created_jobs == ["r1"]

    def test_a_job_of_the_publication_before_is_the_runs_own(self, system: System) -> None:
        order = system.submitted()
        publish_without_upload(system.plane, system.blobs, version="2")

        system.engine.submit(order)

        assert system.plane.created_jobs == ["r1"]
        assert system.plane.jobs["r1"].properties["componentId"].endswith("/versions/1")
        system.submitted("r2")
        assert system.plane.jobs["r2"].properties["componentId"].endswith("/versions/2")

    @pytest.mark.parametrize(
        "changed", [{"input_prefix": "runs/r1/input/2/"}, {"fleet_version": "f2"}]
    )
    def test_a_job_of_the_name_that_does_something_else_is_a_conflict_and_goes_on(
        self, system: System, changed: dict[str, str]
    ) -> None:
        order = system.submitted()
        system.plane.set_status("r1", "Running")

        with pytest.raises(Conflict, match="r1"):
            system.engine.submit(replace(order, **changed))

        job = system.plane.jobs["r1"]
        assert (job.cancels, job.status, system.plane.created_jobs) == (0, "Running", ["r1"])

    def test_a_job_that_somebody_else_made_under_the_name_is_a_conflict(
        self, system: System
    ) -> None:
        order = system.submitted()
        job = system.plane.jobs["r1"]
        job.stored["tags"] = {}
        job.stored["displayName"] = "mine"
        publish_without_upload(system.plane, system.blobs, version="2")

        with pytest.raises(Conflict, match="r1"):
            system.engine.submit(order)

        assert (job.cancels, job.accepted) == (0, 1)

    @pytest.mark.parametrize("status", [400, 409, 412, 422])
    def test_however_the_service_refuses_a_name_it_knows_the_job_is_the_runs_own(
        self, system: System, status: int
    ) -> None:
        order = system.submitted()
        error = {"error": {"code": "UserError", "message": "it exists"}}
        system.plane.fault(method="PUT", path=JOB, status=status, body=error)

        asked = system.requests(lambda: system.engine.submit(order))

        assert asked == ["PUT /jobs/r1", "GET /jobs/r1"]

    def test_tags_that_people_add_do_not_make_a_job_somebody_elses(self, system: System) -> None:
        order = system.submitted()
        system.plane.jobs["r1"].stored["tags"]["seen by"] = "Ada"
        publish_without_upload(system.plane, system.blobs, version="2")

        system.engine.submit(order)

        assert system.plane.created_jobs == ["r1"]

    @pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
    def test_the_repository_that_a_process_stands_in_makes_no_second_job(
        self, system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The SDK writes into a job what git says of the current folder, if there is one.
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            _git(tmp_path / name)
        monkeypatch.chdir(tmp_path / "one")
        order = system.submitted()
        monkeypatch.chdir(tmp_path / "two")

        system.new_engine().submit(order)

        assert system.plane.created_jobs == ["r1"]

    def test_what_the_service_refuses_is_told_in_its_words(self, system: System) -> None:
        del system.plane.computes["scoring"]

        with pytest.raises(ScoringError, match=r"refused job r1: .*computes/scoring") as refused:
            system.submitted()

        assert type(refused.value) is ScoringError
        assert system.plane.jobs == {}

    def test_a_pipeline_that_was_deleted_is_told_with_the_command_that_makes_it_again(
        self, system: System
    ) -> None:
        system.plane.delete("components", PIPELINE, "1")

        with pytest.raises(Misconfigured, match=f"{PIPELINE}:1 is no longer.*azure-ml publish"):
            system.submitted()

    def test_a_pipeline_that_cannot_be_looked_for_leaves_the_refusal_of_the_job(
        self, system: System
    ) -> None:
        system.plane.delete("components", PIPELINE, "1")
        system.plane.fault(method="GET", path="/components/", status=403, times=None)

        with pytest.raises(ScoringError, match="does not exist"):
            system.submitted()

    def test_without_a_publication_the_command_that_makes_one_is_named(
        self, plane: ControlPlane, tmp_path: Path
    ) -> None:
        engine = AzureMLEngine(workspace_of(plane), FolderBlobs(tmp_path))

        with pytest.raises(Misconfigured, match="`azure-ml publish`"):
            engine.submit(order_of("r1"))

        assert plane.requests == []


def _git(folder: Path) -> None:
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    commit = [*who, "commit", "--quiet", "--allow-empty", "--message", folder.name]
    for words in (["init", "--quiet"], commit):
        subprocess.run(["git", "-C", str(folder), *words], check=True)  # noqa: S607


class TestQuiet:
    def test_what_is_new_is_no_error_in_the_logs(
        self, system: System, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("INFO"):
            assert system.engine.poll("r1") is None
            system.submitted()
            system.report()

        assert [record.name for record in caplog.records if "azure.ai.ml" in record.name] == []


STATUSES = {
    "NotStarted": EngineState.QUEUED,
    "Starting": EngineState.QUEUED,
    "Provisioning": EngineState.QUEUED,
    "Preparing": EngineState.QUEUED,
    "Queued": EngineState.QUEUED,
    "Running": EngineState.RUNNING,
    "Finalizing": EngineState.RUNNING,
    "NotResponding": EngineState.RUNNING,
    "Paused": EngineState.RUNNING,
    "Unknown": EngineState.RUNNING,
    "CancelRequested": EngineState.RUNNING,
    "Completed": EngineState.COMPLETED,
    "Failed": EngineState.FAILED,
    "Canceled": EngineState.CANCELED,
}


class TestPoll:
    @pytest.mark.parametrize("status", STATUSES)
    def test_every_status_has_its_state_and_is_told_as_it_is(
        self, system: System, status: str
    ) -> None:
        system.submitted()

        system.plane.jobs["r1"].status = status
        system.plane.add_child("r1")

        report = system.report()
        assert (report.state, report.status.partition(",")[0]) == (STATUSES[status], status)

    def test_a_job_under_way_tells_what_the_nodes_of_its_cluster_do(self, system: System) -> None:
        system.submitted()
        system.plane.set_status("r1", "Running")
        system.plane.set_cluster("scoring", nodes=("running", "preparing", "running"))

        assert system.report().status == "Running, nodes: 1 preparing, 2 running"

    def test_nodes_that_are_not_told_are_no_reason_not_to_tell_of_the_job(
        self, system: System
    ) -> None:
        system.submitted()
        system.plane.fault(path="/computes/", status=403, times=None)

        assert system.report().status == "NotStarted"

    def test_a_status_of_tomorrow_is_a_job_under_way(self, system: System) -> None:
        system.submitted()

        system.plane.jobs["r1"].status = "Hibernating"

        assert system.report().state == EngineState.RUNNING
        assert system.report().status.startswith("Hibernating")

    def test_a_job_that_does_not_respond_is_under_way_and_may_come_back(
        self, system: System
    ) -> None:
        system.submitted()
        system.plane.add_child("r1")

        seen = []
        for status in ("Running", "NotResponding", "Running", "Completed"):
            system.plane.set_status("r1", status)
            seen.append(system.report().state)

        assert seen == ["running", "running", "running", "completed"]

    def test_a_report_links_to_the_jobs_page(self, system: System) -> None:
        system.submitted()

        link = system.report().link
        assert link.startswith("https://ml.azure.com/runs/r1?wsid=/subscriptions/")
        assert "&tid=" in link

    def test_a_poll_asks_for_the_job_its_steps_and_its_cluster(self, system: System) -> None:
        system.submitted()

        waiting = system.requests(system.report)
        system.plane.set_status("r1", "Running")
        system.report()  # it asks where run history is, once
        running = system.requests(system.report)

        assert waiting == ["GET /jobs/r1", "GET /computes/scoring"]
        assert running == ["GET /jobs/r1", "GET /runs/r1/children", "GET /computes/scoring"]

    def test_a_job_that_was_never_accepted_is_unknown(self, system: System) -> None:
        assert system.engine.poll("r1") is None


class TestStart:
    """A pipeline job is Running while its step waits; the step tells when scoring began."""

    AT = datetime(2026, 1, 5, 6, 7, 8, 910_111, tzinfo=UTC)

    @pytest.fixture
    def system(self, system: System) -> System:
        """Give a system whose job is Running and has no step yet."""
        system.submitted()
        system.plane.set_status("r1", "Running")
        return system

    @pytest.mark.parametrize("status", ["NotStarted", "Queued", "Starting", "Preparing"])
    def test_a_run_is_queued_until_its_step_has_started(
        self, system: System, plane: ControlPlane, status: str
    ) -> None:
        step = plane.add_child("r1", status)

        waiting = system.report()
        plane.move_child(step, "Running", self.AT)
        running = system.report()

        assert (waiting.state, waiting.started) == (EngineState.QUEUED, None)
        assert waiting.status == f"Running, step score: {status}, nodes: none"
        assert (running.state, running.started) == (EngineState.RUNNING, instants.of(self.AT))
        assert running.status == "Running, step score: Running, nodes: none"

    def test_a_run_whose_job_has_no_step_yet_is_queued(self, system: System) -> None:
        report = system.report()

        assert (report.state, report.started) == (EngineState.QUEUED, None)
        assert report.status == "Running, nodes: none"

    def test_a_step_that_is_finalizing_or_does_not_respond_has_started(
        self, system: System, plane: ControlPlane
    ) -> None:
        step = plane.add_child("r1", "Running", at=self.AT)

        for status in ("NotResponding", "Finalizing"):
            plane.move_child(step, status)
            report = system.report()
            assert (report.state, report.started) == (EngineState.RUNNING, instants.of(self.AT))

    def test_a_step_that_is_retried_started_when_its_first_run_did(
        self, system: System, plane: ControlPlane
    ) -> None:
        plane.add_child("r1", "Running", at=self.AT + MINUTE)
        plane.add_child("r1", "Failed", at=self.AT)
        plane.add_child("r1", "Queued")

        report = system.report()

        assert (report.state, report.started) == (EngineState.RUNNING, instants.of(self.AT))

    def test_a_step_that_failed_before_it_started_and_waits_again_is_queued(
        self, system: System, plane: ControlPlane
    ) -> None:
        plane.move_child(plane.add_child("r1", "Queued"), "Failed")
        plane.add_child("r1", "Queued")

        report = system.report()

        assert (report.state, report.started) == (EngineState.QUEUED, None)
        assert report.status == "Running, step score: Failed, step score: Queued, nodes: none"

    @pytest.mark.parametrize(
        ("text", "moment"),
        [
            ("2026-01-05T06:07:08.910111Z", AT),
            ("2026-01-05T06:07:08.9101112+00:00", AT),
            ("2026-01-05T07:07:08.910111+01:00", AT),
            ("2026-01-05T06:07:08", AT.replace(microsecond=0)),
        ],
    )
    def test_a_start_is_read_in_whatever_form_it_is_written(
        self, system: System, plane: ControlPlane, text: str, moment: datetime
    ) -> None:
        step = {"runId": "s", "displayName": "score", "status": "Running", "startTimeUtc": text}
        plane.fault(path="/children", status=200, body={"value": [step]})

        assert system.report().started == instants.of(moment)

    @pytest.mark.parametrize(
        "body",
        [
            ["r1"],
            {"value": ["r1"]},
            {"value": [{"runId": "s"}]},
            {"value": [{"runId": "s", "status": "Running", "startTimeUtc": "today"}]},
            {"value": [{"runId": "s", "status": "Running", "startTimeUtc": 5}]},
            "<html>",
        ],
    )
    def test_a_history_of_another_form_leaves_the_jobs_own_status(
        self, system: System, plane: ControlPlane, body: Any
    ) -> None:
        plane.fault(path="/children", status=200, body=body)

        report = system.report()

        assert (report.state, report.started) == (EngineState.RUNNING, None)
        assert report.status == "Running, nodes: none"

    @pytest.mark.parametrize("fault", [{"status": 503}, {"status": 403}, {"drop": True}])
    def test_a_history_that_cannot_be_read_is_asked_once_and_leaves_the_jobs_own_status(
        self,
        system: System,
        plane: ControlPlane,
        caplog: pytest.LogCaptureFixture,
        fault: dict[str, Any],
    ) -> None:
        plane.add_child("r1", "Queued")
        system.report()
        lost = plane.fault(path="/children", times=None, **fault)

        with caplog.at_level("INFO", "scoring.azure_ml"):
            report = system.report()

        assert (report.state, report.started) == (EngineState.RUNNING, None)
        assert report.status == "Running, nodes: none"
        assert lost.hits == 1
        assert [(r.message, r.levelname) for r in caplog.records] == [("azure_ml.no_steps", "INFO")]

    def test_what_keeps_the_cluster_from_having_nodes_is_named(
        self, system: System, plane: ControlPlane
    ) -> None:
        plane.add_child("r1", "Queued")
        problem = "The specified subscription has a total vCPU quota of 0."
        errors = (("ClusterMinNodesExceedCoreQuota", problem), ("ClusterCoreQuotaReached", ""))
        plane.set_cluster("scoring", target=4, errors=errors)

        assert system.report().status == (
            "Running, step score: Queued, nodes: none, cluster errors:"
            f" ClusterMinNodesExceedCoreQuota: {problem}; ClusterCoreQuotaReached"
        )

    def test_what_kept_the_cluster_from_being_made_is_named(
        self, system: System, plane: ControlPlane
    ) -> None:
        plane.add_child("r1", "Queued")
        error = {"error": {"code": "SubnetFull", "message": "The subnet has no\naddress left."}}
        plane.computes["scoring"].properties["provisioningErrors"] = [error, error]

        assert system.report().status.endswith(
            "nodes: none, cluster errors: SubnetFull: The subnet has no address left."
        )

    def test_a_cluster_that_is_resizing_tells_to_how_many_nodes(
        self, system: System, plane: ControlPlane
    ) -> None:
        plane.add_child("r1", "Queued")
        plane.set_cluster("scoring", nodes=("preparing",), target=4)

        assert system.report().status == (
            "Running, step score: Queued, nodes: 1 preparing, cluster resizing to 4 nodes"
        )

    @pytest.mark.parametrize("body", [["r1"], {"value": []}, {"properties": 5}, "<html>"])
    def test_a_cluster_of_another_form_leaves_the_state_of_the_step(
        self, system: System, plane: ControlPlane, body: Any
    ) -> None:
        plane.add_child("r1", "Queued")
        plane.fault(path="/computes/", status=200, body=body)

        report = system.report()

        assert report.state == EngineState.QUEUED
        assert report.status == "Running, step score: Queued"

    def test_a_cluster_that_does_not_answer_is_asked_once(
        self, system: System, plane: ControlPlane
    ) -> None:
        lost = plane.fault(path="/computes/", status=503, times=None)

        assert system.report().status == "Running"
        assert lost.hits == 1


class TestFailure:
    def test_a_failed_step_tells_cause_and_logs(self, system: System) -> None:
        system.submitted()
        logs = {"logs/x.txt": "x", "user_logs/std_log_0.txt": "part 3\nOh no\n"}
        child = system.plane.fail("r1", "part-00003.parquet\n  is unreadable", logs)

        report = system.report()

        assert report.state == EngineState.FAILED
        assert report.cause == "score: part-00003.parquet is unreadable"
        assert report.logs == (
            LogTail(f"{child.name}/user_logs/std_log_0.txt", "part 3\nOh no\n"),
            LogTail(f"{child.name}/logs/x.txt", "x"),
        )

    def test_of_a_long_log_the_end_is_kept(self, system: System) -> None:
        system.submitted()
        log = "".join(f"line {number}\n" for number in range(50_000))
        system.plane.fail("r1", "Oh no", {"user_logs/std_log_0.txt": log})

        (tail,) = system.report().logs

        assert tail.text == log[-64 * 1024 :]

    def test_of_a_long_log_no_more_than_its_end_is_sent(self, system: System) -> None:
        system.submitted()
        log = "0123456789" * 20_000
        system.plane.fail("r1", "Oh no", {"user_logs/std_log_0.txt": log})

        system.report()

        asked = [one for one in system.plane.requests if one.host.startswith("fleetlogs")]
        assert [one.method for one in asked] == ["HEAD", "GET"]
        assert (asked[1].headers["range"], asked[1].status) == ("bytes=134464-", 206)

    def test_a_log_whose_length_is_not_told_is_read_from_its_start(self, system: System) -> None:
        system.submitted()
        log = "0123456789" * 20_000
        system.plane.fail("r1", "Oh no", {"user_logs/std_log_0.txt": log})
        system.plane.fault(method="HEAD", host="fleetlogs", status=405, times=None)

        (tail,) = system.report().logs

        assert tail.text == log[-64 * 1024 :]

    def test_of_many_logs_those_are_kept_that_say_most(self, system: System) -> None:
        system.submitted()
        logs = {f"system_logs/{number}.log": "" for number in range(20)}
        system.plane.fail("r1", "Oh no", logs | {"logs/azureml/executionlogs/error.txt": "!"})

        names = [tail.name.partition("/")[2] for tail in system.report().logs]

        assert len(names) == 10
        assert names[0] == "logs/azureml/executionlogs/error.txt"

    @pytest.mark.parametrize(
        "fault",
        [
            {"method": "GET", "status": 403},
            {"method": "GET", "status": 500},
            {"method": "GET", "drop": True},
            {"method": "CONNECT"},
        ],
    )
    def test_a_log_that_cannot_be_read_costs_neither_the_cause_nor_the_other_logs(
        self, system: System, fault: dict[str, Any]
    ) -> None:
        system.submitted()
        logs = {"user_logs/std_log_0.txt": "a", "user_logs/std_log_1.txt": "b"}
        system.plane.fail("r1", "Oh no", logs)
        system.plane.fault(host="fleetlogs", path="std_log_0|^$", times=2, **fault)

        report = system.report()

        assert report.cause == "score: Oh no"
        assert report.logs[0].text.startswith("this log could not be read: ")
        assert "sig=" not in report.logs[0].text
        assert [tail.text for tail in report.logs[1:]] == ["b"]

    def test_a_job_that_failed_before_it_had_steps_tells_its_own_error(
        self, system: System
    ) -> None:
        system.submitted()
        job = system.plane.jobs["r1"]
        job.error, job.logs = "no quota", {"logs/main.txt": "0 of 4 nodes"}
        system.plane.set_status("r1", "Failed")

        report = system.report()

        assert report.cause == "r1: no quota"
        assert report.logs == (LogTail("r1/logs/main.txt", "0 of 4 nodes"),)

    def test_steps_that_failed_alike_are_one_cause_and_those_that_did_not_fail_are_none(
        self, system: System
    ) -> None:
        system.submitted()
        system.plane.add_child("r1", "Completed", step="prepare")
        system.plane.fail("r1", "no disk")
        system.plane.fail("r1", "no disk")
        system.plane.fail("r1", "no room", step="collect")

        assert system.report().cause == "score: no disk; collect: no room"

    def test_the_cause_is_that_of_the_lowest_run_that_failed(self, system: System) -> None:
        system.submitted()
        step = system.plane.fail("r1", "a child has failed", {"step.txt": "step"})
        deepest = system.plane.fail("r1", "division by zero", {"deep.txt": "deep"}, step="worker 3")
        children = {"r1": [step], step.name: [deepest]}
        for name, below in children.items():
            runs = [
                {"runId": child.name, "displayName": child.step, "status": "Failed"}
                for child in below
            ]
            # On two pages, as the service may.
            other = [{"runId": "x", "status": "Completed"}]
            system.plane.fault(
                path=f"/runs/{name}/children", status=200,
                body={"value": other, "continuationToken": "more"},
            )  # fmt: skip
            system.plane.fault(path=f"/runs/{name}/children", status=200, body={"value": runs})

        report = system.report()

        assert report.cause == "worker 3: division by zero"
        assert [tail.text for tail in report.logs] == ["deep"]
        pages = [r for r in system.plane.requests if "$continuationToken" in r.query]
        assert [page.query["$continuationToken"] for page in pages] == ["more", "more"]

    def test_a_history_that_does_not_answer_is_asked_again_later(self, system: System) -> None:
        system.submitted()
        system.plane.fail("r1", "Oh no")
        system.plane.fault(path="/history/", status=503, headers=AT_ONCE, times=RETRIES + 1)

        with pytest.raises(Transient, match="history of job r1"):
            system.report()

        assert system.report().cause == "score: Oh no"

    def test_a_history_that_answers_in_the_end_is_waited_for(self, system: System) -> None:
        system.submitted()
        system.plane.fail("r1", "Oh no")
        system.plane.fault(path="/history/", status=503, headers=AT_ONCE, times=RETRIES)

        assert system.report().cause == "score: Oh no"

    def test_a_job_whose_history_is_forbidden_has_failed_and_says_why_no_more_is_known(
        self, system: System
    ) -> None:
        system.submitted()
        system.plane.fail("r1", "Oh no", {"user_logs/std_log_0.txt": "it did not work"})
        system.plane.fault(path="/history/", status=403, times=None)

        report = system.report()

        assert (report.state, report.logs) == (EngineState.FAILED, ())
        assert report.cause.startswith("failed; why could not be read: ")
        assert "denies access to history of job r1" in report.cause

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/history/", ["r1"]),
            ("/history/", {"value": ["r1"]}),
            ("/history/", {"value": [{"status": "Failed"}]}),
            ("/history/", {"error": "Oh no"}),
            ("/history/", "<html>"),
            ("/discovery", {"api": "https://westeurope.api.azureml.ms"}),
            ("/discovery", ["https://westeurope.api.azureml.ms"]),
        ],
    )
    def test_a_history_of_another_form_is_no_reason_not_to_tell_that_a_job_failed(
        self, system: System, path: str, body: Any
    ) -> None:
        system.submitted()
        system.plane.fail("r1", "Oh no")
        system.plane.fault(path=path, status=200, body=body, times=None)

        report = system.report()

        assert (report.state, report.logs) == (EngineState.FAILED, ())
        assert report.cause.startswith("failed; why could not be read: ")

    def test_a_job_whose_history_is_gone_has_failed_all_the_same(self, system: System) -> None:
        system.submitted()
        system.plane.fail("r1", "Oh no")
        system.plane.fault(path="/history/", status=404, times=None)

        report = system.report()

        assert report.state == EngineState.FAILED
        assert "history of job r1" in report.cause

    def test_a_token_that_history_refuses_is_replaced(self, system: System) -> None:
        system.submitted()
        system.plane.fail("r1", "Oh no")
        refused = system.plane.fault(path="/history/", status=401)

        assert system.report().cause == "score: Oh no"
        assert refused.hits == 1


class TestCancel:
    def test_a_job_under_way_is_told_to_end(self, system: System) -> None:
        system.submitted()
        system.plane.set_status("r1", "Running")

        asked = system.requests(lambda: system.engine.cancel("r1"))

        assert asked == ["POST /jobs/r1/cancel"]
        assert system.report().status.startswith("CancelRequested")
        system.plane.set_status("r1", "Canceled")
        assert system.report().state == EngineState.CANCELED

    def test_nobody_stays_to_wait_for_the_end(self, system: System) -> None:
        system.submitted()
        system.plane.polls = 50

        system.engine.cancel("r1")

        names = [thread.name for thread in threading.enumerate()]
        assert not any(name.startswith("LROPoller") for name in names)

    def test_a_job_that_is_ending_may_be_told_again(self, system: System) -> None:
        system.submitted()

        system.engine.cancel("r1")
        system.engine.cancel("r1")

        assert system.report().status.startswith("CancelRequested")

    def test_a_job_that_is_unknown_is_left_alone(self, system: System) -> None:
        system.engine.cancel("r1")

        assert system.plane.jobs == {}

    @pytest.mark.parametrize("status", ["Completed", "Failed", "Canceled"])
    def test_a_job_that_has_ended_is_left_alone(self, system: System, status: str) -> None:
        system.submitted()
        system.plane.set_status("r1", status)

        system.engine.cancel("r1")

        assert (system.plane.jobs["r1"].status, system.plane.jobs["r1"].cancels) == (status, 0)

    @pytest.mark.parametrize("status", STATUSES)
    def test_a_cancel_gets_over_every_status(self, system: System, status: str) -> None:
        system.submitted()
        system.plane.jobs["r1"].status = status

        system.engine.cancel("r1")

        job = system.plane.jobs["r1"]
        ends = status in {"Finalizing", "Completed", "Failed", "Canceled"}
        assert (job.status, job.cancels) == ((status, 0) if ends else ("CancelRequested", 1))

    @pytest.mark.parametrize("status", STATUSES)
    def test_a_submit_of_a_job_of_every_status_makes_no_second_one(
        self, system: System, status: str
    ) -> None:
        order = system.submitted()
        system.plane.jobs["r1"].status = status

        system.engine.submit(order)

        assert system.plane.created_jobs == ["r1"]
        assert system.plane.jobs["r1"].status == status

    @pytest.mark.parametrize("status", ["Running", "Completed"])
    def test_an_archived_job_is_told_as_any_other(self, system: System, status: str) -> None:
        system.submitted()
        system.plane.set_status("r1", status)
        system.plane.jobs["r1"].stored["isArchived"] = True

        assert system.report().status.partition(",")[0] == status

    def test_a_deleted_job_is_unknown(self, system: System) -> None:
        system.submitted()
        system.plane.set_status("r1", "Completed")

        system.plane.service.workspace.jobs.delete("r1")

        assert system.engine.poll("r1") is None

    def test_a_refusal_to_end_a_job_under_way_is_told(self, system: System) -> None:
        system.submitted()
        error = {"error": {"code": "UserError", "message": "not now"}}
        system.plane.fault(path=CANCEL, status=400, body=error)

        with pytest.raises(ScoringError, match="not now"):
            system.engine.cancel("r1")

    @pytest.mark.parametrize("fault", ["lose_answer", "drop"])
    def test_a_cancel_whose_answer_was_lost_can_be_made_again(
        self, system: System, fault: str
    ) -> None:
        system.submitted()
        system.plane.fault(path=CANCEL, **{fault: True})

        with pytest.raises(Transient):
            system.engine.cancel("r1")
        system.engine.cancel("r1")

        assert system.plane.jobs["r1"].status == "CancelRequested"


class TestCancelBeforeSubmit:
    def test_a_run_that_was_canceled_gets_no_job(self, system: System) -> None:
        system.engine.cancel("r1")

        system.submitted()

        assert system.plane.jobs == {}
        assert system.report().state == EngineState.CANCELED

    def test_a_cancel_that_arrives_while_the_job_is_made_stops_it(self, system: System) -> None:
        workspace = system.plane.service.workspace
        strict, asked = workspace.check, list[str]()
        assert strict

        def cancel_meanwhile(method: str, path: str, version: str, body: object) -> list[str]:
            if method == "PUT" and path.endswith("/jobs/r1") and not asked:
                asked.extend(system.requests(partial(system.new_engine().cancel, "r1")))
            return strict(method, path, version, body)

        workspace.check = cancel_meanwhile
        system.submitted()

        assert asked.count("POST /jobs/r1/cancel") == 2
        assert system.plane.jobs["r1"].status == "CancelRequested"

    def test_a_cancel_that_does_not_see_the_job_yet_looks_again_after_its_mark(
        self, system: System
    ) -> None:
        system.submitted()
        unseen = system.plane.fault(path=CANCEL, status=404)

        system.engine.cancel("r1")

        assert unseen.hits == 1
        assert system.plane.jobs["r1"].status == "CancelRequested"

    def test_a_job_of_a_canceled_run_whose_submit_lost_its_answer_is_stopped(
        self, system: System
    ) -> None:
        system.engine.cancel("r1")
        mark = system.blobs.read("runs/r1/azure-ml.json")[0]
        system.blobs.delete("runs/r1/azure-ml.json")
        order = system.submitted()
        system.blobs.write("runs/r1/azure-ml.json", mark)

        system.engine.submit(order)

        assert system.plane.jobs["r1"].status == "CancelRequested"
        assert system.report().status.startswith("CancelRequested")


class TestAnotherWorkspace:
    """The setting that names the workspace is changed while a run is under way."""

    @pytest.fixture
    def moved(self, system: System) -> AzureMLEngine:
        """Give an engine whose setting names a workspace that is not there."""
        elsewhere = Workspace(f"{system.plane.workspace_id}2", wait=0)
        return AzureMLEngine(elsewhere, system.blobs)

    def test_a_run_is_no_second_job_there(self, system: System, moved: AzureMLEngine) -> None:
        order = system.submitted()
        here = Publication.read(system.blobs)
        pipeline = here.pipeline.replace("workspaces/fleet/", "workspaces/fleet2/")
        replace(here, pipeline=pipeline).write(system.blobs)

        with pytest.raises(Conflict, match=r"workspaces/fleet, .*workspaces/fleet2"):
            moved.submit(order)

        assert not any("fleet2/jobs" in one.path for one in system.plane.requests)

    @pytest.mark.parametrize("ask", ["poll", "cancel"])
    def test_a_run_that_another_workspace_has_is_not_unknown_there(
        self, system: System, moved: AzureMLEngine, ask: str
    ) -> None:
        system.submitted()

        with pytest.raises(Conflict, match=r"r1 .*workspaces/fleet, .*workspaces/fleet2"):
            getattr(moved, ask)("r1")

        assert system.plane.jobs["r1"].status == "NotStarted"

    @pytest.mark.parametrize("ask", ["poll", "cancel"])
    def test_in_a_workspace_that_does_not_exist_no_run_is_unknown(
        self, moved: AzureMLEngine, ask: str
    ) -> None:
        with pytest.raises(
            Misconfigured, match=r"SCORING_AZURE_ML_WORKSPACE: there is no .*fleet2"
        ):
            getattr(moved, ask)("r1")

    def test_what_is_published_elsewhere_is_to_be_published_there_first(
        self, moved: AzureMLEngine
    ) -> None:
        with pytest.raises(Misconfigured, match="`azure-ml publish` does it there"):
            moved.submit(order_of("r1"))

    @pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"workspace": 1}', b'{"a": "\xff"}'])
    def test_a_mark_that_is_damaged_is_named(self, system: System, content: bytes) -> None:
        system.blobs.write("runs/r1/azure-ml.json", content)

        for ask in (system.engine.poll, system.engine.cancel):
            with pytest.raises(StorageUnusable, match=r"runs/r1/azure-ml\.json is damaged"):
                ask("r1")

    def test_a_mark_of_a_later_version_is_read(self, system: System) -> None:
        system.submitted()
        mark = json.loads(system.blobs.read("runs/r1/azure-ml.json")[0])
        system.blobs.write("runs/r1/azure-ml.json", json.dumps(mark | {"new": 1}).encode())

        assert check_run(system.blobs, "r1", mark["workspace"]) is not None

    def test_a_publication_that_is_damaged_is_named(self, system: System) -> None:
        system.blobs.write("azure-ml/publication.json", b"{")

        with pytest.raises(Misconfigured, match="`azure-ml publish` writes it again"):
            Publication.read(system.blobs)

    def test_a_workspaces_id_is_the_same_in_any_case(self, system: System) -> None:
        system.submitted()
        shouted = Workspace(system.plane.workspace_id.replace("resourceGroups", "RESOURCEGROUPS"))

        check_run(system.blobs, "r1", shouted.id)
        mark_run(system.blobs, "r1", shouted.id)

    def test_a_run_that_this_workspace_lost_is_unknown_and_becomes_a_job_again(
        self, system: System
    ) -> None:
        order = system.submitted()
        del system.plane.jobs["r1"]

        assert system.engine.poll("r1") is None
        system.engine.submit(order)

        assert list(system.plane.jobs) == ["r1"]


class TestWeather:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_a_storm_is_waited_out(self, system: System, status: int) -> None:
        storm = {"status": status, "headers": AT_ONCE, "times": RETRIES}
        on_put = system.plane.fault(method="PUT", path=JOB, **storm)
        on_get = system.plane.fault(method="GET", path=JOB, **storm)

        system.submitted()
        report = system.report()

        assert (on_put.hits, on_get.hits, report.status) == (
            RETRIES,
            RETRIES,
            "NotStarted, nodes: none",
        )

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_a_storm_that_does_not_end_is_transient(self, system: System, status: int) -> None:
        storm = {"path": JOB, "status": status, "headers": AT_ONCE, "times": None}
        system.plane.fault(**storm)

        for ask in (system.submitted, system.report):
            with pytest.raises(Transient, match="job r1"):
                ask()
        system.plane.faults.clear()
        system.submitted()

        assert system.plane.created_jobs == ["r1"]

    def test_a_service_that_cannot_be_reached_is_transient(self, system: System) -> None:
        system.plane.fault(method="CONNECT", host="management", times=None)

        with pytest.raises(Transient):
            system.submitted()

    def test_a_request_says_how_it_may_be_throttled(self, system: System) -> None:
        system.plane.fault(method="PUT", path=JOB, status=429, headers={"Retry-After": "0.3"})

        system.submitted()

        first, second = [r.at for r in system.plane.requests if r.path.endswith("/jobs/r1")]
        assert second - first >= 0.3


class TestIdentity:
    def test_a_token_that_is_refused_is_replaced_by_a_new_one(self, system: System) -> None:
        system.submitted("r1")
        issued = system.plane.tokens.issued
        system.plane.tokens.revoke()

        system.submitted("r2")

        assert system.plane.created_jobs == ["r1", "r2"]
        assert system.plane.tokens.issued > issued

    @pytest.mark.parametrize("wrong", [{"lifetime": -60}, {"begins_in": 60}])
    def test_a_token_of_another_time_is_refused_until_the_clocks_agree(
        self, system: System, wrong: dict[str, float]
    ) -> None:
        tokens = system.plane.tokens
        usual = {name: getattr(tokens, name) for name in wrong}
        for name, value in wrong.items():
            setattr(tokens, name, value)

        with pytest.raises(Transient, match="refused the token"):
            system.submitted()
        for name, value in usual.items():
            setattr(tokens, name, value)
        system.submitted()

        assert system.plane.created_jobs == ["r1"]

    def test_without_an_identity_that_is_said(self, system: System) -> None:
        system.plane.tokens.denied = True

        with pytest.raises(Misconfigured, match=r"no identity.*DefaultAzureCredential") as error:
            system.submitted()

        assert "\n" not in str(error.value)
        system.plane.tokens.denied = False
        system.submitted()

    def test_an_identity_without_rights_is_said(self, system: System) -> None:
        error = {"error": {"code": "AuthorizationFailed", "message": "may not jobs/write"}}
        system.plane.fault(path=JOB, status=403, body=error, times=None)

        with pytest.raises(Misconfigured, match=r"denies access to job r1: .*may not jobs/write"):
            system.submitted()
        with pytest.raises(Misconfigured):
            system.report()


BODIES = {
    **{"cut off": b'{"id": "/subscriptions/3d', "empty": b"", "of a proxy": b"<html></html>"},
    **{"null": b"null", "list": b"[]", "object": b"{}", "text": b'"x"', "deep": b"[" * 100_000},
    **{"no properties": b'{"properties": null}', "odd properties": b'{"properties": []}'},
    "odd values": b'{"properties": {"jobType": "Pipeline", "status": 5, "inputs": [1]}}',
}
ASKED = {
    **{"job": "/jobs/r1$", "cancel": "/cancel", "workspace": "/workspaces/fleet$"},
    **{"cluster": "/computes/", "steps": "/children", "details": "/details"},
    **{"discovery": "/discovery", "token": "/msi/token"},
}


class TestOddAnswers:
    """Whatever a service, or what stands before it, answers to any request of any use."""

    @pytest.mark.parametrize("asked", ASKED)
    @pytest.mark.parametrize("body", BODIES)
    @pytest.mark.parametrize(
        "status",
        ["Running", *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("", "Failed"))],
    )
    def test_an_answer_of_another_form_is_an_error_of_this_project_and_makes_no_second_job(
        self, system: System, status: str, body: str, asked: str
    ) -> None:
        if status:
            system.submitted()
            system.plane.set_status("r1", "Running")
            system.plane.add_child("r1")
        if status == "Failed":
            system.plane.fail("r1", "Oh no", {"user_logs/a": "x"})
        fault = {"path": ASKED[asked], "status": 200, "content": BODIES[body], "times": None}
        system.plane.fault(**fault)
        uses: list[Callable[[AzureMLEngine], object]] = [
            lambda engine: engine.submit(order_of("r1")),
            lambda engine: engine.poll("r1"),
            lambda engine: engine.cancel("r1"),
        ]

        for use in uses:
            # Any other error fails the test.
            with suppress(ScoringError):
                use(system.new_engine(retries=0))

        system.plane.faults.clear()
        system.submitted()
        assert system.plane.created_jobs == ["r1"] or system.report().state == EngineState.CANCELED

    @pytest.mark.parametrize("use", ["submit", "poll", "cancel"])
    def test_an_answer_that_was_cut_off_is_transient(self, system: System, use: str) -> None:
        system.submitted()
        system.plane.fault(path="/jobs/r1", status=200, content=BODIES["cut off"], times=None)
        engine = system.new_engine(retries=0)
        uses: dict[str, Callable[[], object]] = {
            "submit": lambda: engine.submit(order_of("r1")),
            "poll": lambda: engine.poll("r1"),
            "cancel": lambda: engine.cancel("r1"),
        }

        if use == "cancel":
            # Its answer says nothing.
            uses[use]()
            return
        with pytest.raises(Transient):
            uses[use]()


def test_an_error_has_no_colors(plane: ControlPlane) -> None:
    def refuse(_: object) -> None:
        message = "\x1b[1m\x1b[31mError: \x1b[0mno such file"
        raise AzureError(message)

    with pytest.raises(ScoringError, match="refused component: Error: no such file"):
        workspace_of(plane).ask("component", refuse)


def test_a_signature_is_in_no_error(plane: ControlPlane) -> None:
    def upload(_: object) -> None:
        message = "Max retries exceeded with url: /c/code/score.py?se=1&sig=c2VjcmV0%3D&sp=rw"
        raise ServiceRequestError(message)

    with pytest.raises(Transient, match=r"se=1&sig=\.\.\.&sp=rw") as error:
        workspace_of(plane).ask("component", upload)

    assert "c2VjcmV0" not in str(error.value)


def _at_once(threads: int, work: Callable[[int], object]) -> None:
    """Have threads begin together; the first error of any is raised."""
    ready = threading.Barrier(threads)

    def begin(number: int) -> None:
        ready.wait(30)
        work(number)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(begin, range(threads)))


def _patiently(ask: Callable[[], object]) -> object:
    while True:
        with suppress(Transient):
            return ask()


@pytest.mark.parametrize("seed", sample_of(3))
def test_in_chaos_every_run_is_at_most_one_job_and_no_cancel_is_lost(
    system: System, seed: int
) -> None:
    engines = [system.new_engine(retries=retries) for retries in (0, 1, 4)]
    canceled: set[str] = set()
    kinds = ("429", "503", "drop", "lose_answer", "delay")
    system.plane.chaos(seed, 0.3, kinds, path="/jobs/")
    chance = [random.Random(f"{seed} {thread}") for thread in range(10)]

    def work(thread: int) -> None:
        mine = chance[thread]
        for _ in range(8):
            engine, run_id = mine.choice(engines), f"r{mine.randrange(6)}"
            match mine.choice(("submit", "submit", "poll", "cancel")):
                case "submit":
                    _patiently(partial(engine.submit, order_of(run_id)))
                    assert _patiently(partial(engine.poll, run_id))
                case "poll":
                    _patiently(partial(engine.poll, run_id))
                case _:
                    _patiently(partial(engine.cancel, run_id))
                    canceled.add(run_id)

    _at_once(10, work)

    jobs = system.plane.jobs
    assert len(system.plane.thrown) > 10
    assert sorted(system.plane.created_jobs) == sorted(jobs)
    assert {job.accepted for job in jobs.values()} <= {1}
    assert [name for name in canceled & jobs.keys() if not jobs[name].cancels] == []


START = datetime(2026, 1, 5, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class TestTimers:
    """The submit handler on a real store, its timer fired ten times at once."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Give a folder whose store has windows that are to be scored."""
        with self._app(tmp_path) as app:
            numbers = np.arange(200)
            times = instants.of(START) + numbers * instants.SECOND
            bodies = [
                b'{"device":"d%d","sensor":"s","ts":%d,"value":%d}' % (n % 20, t // 1000, n)
                for n, t in zip(numbers.tolist(), times.tolist(), strict=True)
            ]
            app.ingest()(EventBatch(Partition("hub", "0"), numbers, times, bodies))
        return tmp_path

    @staticmethod
    def _app(folder: Path, system: System | None = None, retries: int = 0) -> App:
        settings = {"SCORING_DATA": str(folder), "SCORING_WINDOW": "1min"}
        app = App(Settings.load(settings | {"SCORING_PART_ROWS": "10"}))
        if system:
            # As its own process would have it, which asks the service on its own.
            app.__dict__["engine"] = system.new_engine(retries=retries)
        return app

    @pytest.mark.parametrize("seed", sample_of(6))
    def test_a_timer_fired_ten_times_at_once_makes_one_run_and_one_job(
        self, system: System, folder: Path, seed: int
    ) -> None:
        apps = [self._app(folder, system, retries=number % 2) for number in range(10)]
        now = START + 30 * MINUTE
        kinds = ("lose_answer", "drop", "503", "delay")
        lost = system.plane.fault(method="PUT", path=JOB, lose_answer=True, times=seed % 3)
        system.plane.chaos(seed, 0.5, kinds, path="/jobs/")

        def fire(number: int) -> None:
            with closing(apps[number].database), suppress(Transient):
                apps[number].submit("timer", FLEET, now, nonce())

        _at_once(10, fire)
        system.plane.chaos(seed, 0)
        system.plane.faults.clear()
        with self._app(folder, system) as app:
            assert app.submit("timer", FLEET, now, nonce()) is None
            (run,) = app.watch(now, nonce())

        assert system.plane.created_jobs == [run.run_id]
        assert run.state == RunState.SUBMITTED
        assert lost.hits >= min(1, seed % 3)
        inputs = system.plane.jobs[run.run_id].properties["inputs"]
        assert inputs["parts"]["uri"].endswith(f"/paths/{run.input_prefix}")
