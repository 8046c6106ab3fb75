import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceResponseError,
)
from azure.identity import DefaultAzureCredential
from azure.storage.blob import ContainerClient

from tests.azure_ml.plane import Child, ControlPlane, Job
from tests.azure_ml.server import Request

with warnings.catch_warnings():
    # Of the SDK's own schemas, as it is imported.
    warnings.filterwarnings("ignore", r".*", DeprecationWarning, r"azure\.ai\.ml|marshmallow")
    from azure.ai.ml import Input, MLClient, Output, load_component
    from azure.ai.ml.entities import (
        AccountKeyConfiguration,
        AmlCompute,
        AzureBlobDatastore,
        BatchEndpoint,
        BuildContext,
        Environment,
        Model,
        PipelineComponentBatchDeployment,
        PipelineJob,
        PipelineJobSettings,
    )

pytestmark = [
    # Of the control plane alone: what the project does with it is tested beside.
    pytest.mark.exhaustive,
    # The SDK has no means to close its connections.
    pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning"),
    # Nor has it followed what marshmallow deprecates, with each schema that it makes.
    pytest.mark.filterwarnings("ignore::marshmallow.warnings.Marshmallow4Warning"),
    # It times itself by a clock that Python 3.12 deprecates.
    pytest.mark.filterwarnings(
        r"ignore:datetime.datetime.utcnow:DeprecationWarning:azure\.ai\.ml\._telemetry"
    ),
]

PARALLEL = """
$schema: http://azureml/sdk-2-0/ParallelComponent.json
name: score_parts
version: "1"
type: parallel
is_deterministic: false
inputs:
  parts: {type: uri_folder}
  fleet: {type: custom_model}
  run_id: {type: string}
outputs:
  predictions: {type: uri_folder}
input_data: ${{inputs.parts}}
mini_batch_size: "1"
mini_batch_error_threshold: 0
error_threshold: 0
resources: {instance_count: 2}
retry_settings: {max_retries: 2, timeout: 600}
task:
  type: run_function
  code: ./code
  entry_script: score.py
  environment: azureml:scoring:1
  program_arguments: --fleet ${{inputs.fleet}} --out ${{outputs.predictions}}
"""
PIPELINE = """
$schema: https://azuremlschemas.azureedge.net/latest/pipelineComponent.schema.json
name: score_fleet
version: "1"
type: pipeline
inputs:
  parts: {type: uri_folder}
  fleet: {type: custom_model}
  run_id: {type: string}
outputs:
  predictions: {type: uri_folder}
jobs:
  score:
    type: parallel
    component: azureml:%s
    inputs:
      parts: ${{parent.inputs.parts}}
      fleet: ${{parent.inputs.fleet}}
      run_id: ${{parent.inputs.run_id}}
    outputs:
      predictions: ${{parent.outputs.predictions}}
"""
PORTS = {"parts": "uri_folder", "fleet": "custom_model", "run_id": "string"}
CALM = {"Retry-After": "0.01"}


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        enter(plane, monkeypatch)
        yield plane


@pytest.fixture
def stored(account: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlPlane]:
    with ControlPlane(account) as plane:
        enter(plane, monkeypatch)
        yield plane


def enter(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in plane.environment.items():
        monkeypatch.setenv(name, value)


def connect(plane: ControlPlane, **options: Any) -> MLClient:
    credential = DefaultAzureCredential()
    names = (plane.subscription_id, plane.resource_group, plane.workspace)
    return MLClient(credential, *names, show_progress=False, **options)


def register(plane: ControlPlane) -> None:
    """Put what a job needs there, without the SDK."""
    inputs = {name: {"type": kind} for name, kind in PORTS.items()}
    spec = {"inputs": inputs, "outputs": {"predictions": {"type": "uri_folder"}}}
    plane.put("components", ("score_fleet", "1"), {"componentSpec": spec})
    plane.put("models", ("fleet", "1"), {"modelType": "custom_model"})
    plane.put("computes", "cpu", {"computeType": "AmlCompute", "properties": {}})


def order(plane: ControlPlane, name: str = "r1", **inputs: str) -> PipelineJob:
    where = f"azureml://datastores/scoring/paths/runs/{name}/"
    model = Input(type="custom_model", path=f"{plane.workspace_id}/models/fleet/versions/1")
    given: dict[str, Any] = {
        "parts": Input(type="uri_folder", path=f"{where}input/"),
        "fleet": model,
        "run_id": name,
        **inputs,
    }
    return PipelineJob(
        component=f"{plane.workspace_id}/components/score_fleet/versions/1",
        name=name,
        inputs=given,
        outputs={"predictions": Output(type="uri_folder", path=f"{where}out/", mode="rw_mount")},
        settings=PipelineJobSettings(
            default_compute=f"{plane.workspace_id}/computes/cpu", force_rerun=True
        ),
    )


def puts(plane: ControlPlane) -> list[Request]:
    return [request for request in plane.requests if request.method == "PUT"]


def test_the_workspace_names_its_run_history(plane: ControlPlane) -> None:
    workspace = connect(plane).workspaces.get("fleet")
    assert workspace.id == plane.workspace_id
    document = requests.get(workspace.discovery_url, timeout=10).json()
    assert document["history"] == "https://westeurope.api.azureml.ms"
    assert [r.status for r in plane.requests] == [200, 200, 200]


def test_datastores_keep_their_secrets(plane: ControlPlane) -> None:
    client = connect(plane)
    where: Any = {"account_name": "fleetstorage", "container_name": "scoring"}
    plain = client.datastores.create_or_update(AzureBlobDatastore(name="scoring", **where))
    key = AccountKeyConfiguration(account_key="c2VjcmV0")
    client.datastores.create_or_update(AzureBlobDatastore(name="k", credentials=key, **where))
    assert plain.credentials.type == "None"
    assert "secrets" not in plane.datastores["k"].properties["credentials"]
    assert client.datastores._list_secrets("k")["key"] == "c2VjcmV0"
    assert "sig=" in client.datastores._list_secrets("k", expirable_secret=True)["sasToken"]
    assert client.datastores.get("k").container_name == "scoring"
    assert client.datastores.get_default().name == "workspaceblobstore"
    with pytest.raises(ResourceNotFoundError):
        client.datastores.get("unknown")


def test_a_version_of_an_environment_never_changes(plane: ControlPlane) -> None:
    client = connect(plane)
    for _ in range(2):
        client.environments.create_or_update(Environment(name="scoring", version="1", image="a"))
    with pytest.raises(ResourceExistsError, match="cannot be changed"):
        client.environments.create_or_update(Environment(name="scoring", version="1", image="b"))
    assert client.environments.get("scoring", "1").image == "a"
    assert client.environments.get("scoring", label="latest").version == "1"
    assert plane.environments["scoring", "1"].puts == 2


def test_a_build_context_is_uploaded(stored: ControlPlane, account: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch")
    build = BuildContext(path=str(tmp_path))
    environment = Environment(name="built", version="1", build=build)
    connect(stored).environments.create_or_update(environment)
    uri = stored.environments["built", "1"].properties["build"]["contextUri"]
    prefix = uri.partition("azureml-blobstore/")[2]
    with ContainerClient.from_connection_string(account, "azureml-blobstore") as container:
        assert container.download_blob(f"{prefix}Dockerfile").readall() == b"FROM scratch"


def test_blobs_are_reached_by_identity_too(stored: ControlPlane) -> None:
    service = f"https://{stored.storage.host}"
    credential = DefaultAzureCredential()
    with ContainerClient(service, "scoring", credential=credential) as container:
        container.create_container()
        container.upload_blob("runs/r 1/part-0", b"rows")
        assert [blob.name for blob in container.list_blobs()] == ["runs/r 1/part-0"]
        assert container.download_blob("runs/r 1/part-0").readall() == b"rows"
        container.delete_blob("runs/r 1/part-0")
        stored.tokens.revoke()
        with pytest.raises(ClientAuthenticationError):
            container.upload_blob("runs/r1/part-1", b"rows")
    assert {request.host for request in stored.requests} == {"", stored.storage.host}


def test_components_are_registered_with_their_code(
    stored: ControlPlane, account: str, tmp_path: Path
) -> None:
    client = connect(stored)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "score.py").write_text("def run(batch): ...")
    (tmp_path / "parallel.yml").write_text(PARALLEL)
    for _ in range(2):
        parallel = client.components.create_or_update(load_component(tmp_path / "parallel.yml"))
    (tmp_path / "pipeline.yml").write_text(PIPELINE % parallel.id)
    pipeline = client.components.create_or_update(load_component(tmp_path / "pipeline.yml"))
    assert pipeline.id == f"{stored.workspace_id}/components/score_fleet/versions/1"
    (code,) = stored.codes.values()
    container = code.properties["codeUri"].split("/")[3]
    with ContainerClient.from_connection_string(account, container) as uploaded:
        assert uploaded.download_blob("code/score.py").readall() == b"def run(batch): ..."
    spec = stored.components["score_parts", "1"].properties["componentSpec"]
    assert spec["task"]["code"] == f"azureml:{code.id}"
    step = stored.components["score_fleet", "1"].properties["componentSpec"]["jobs"]["score"]
    assert step["componentId"] == parallel.id
    assert client.components.get("score_fleet", "1").jobs["score"].component == "score_parts:1"
    (tmp_path / "code" / "score.py").write_text("def run(batch): return batch")
    with pytest.raises(ResourceExistsError, match="immutable"):
        client.components.create_or_update(load_component(tmp_path / "parallel.yml"))


def test_a_model_names_where_it_is(plane: ControlPlane) -> None:
    client = connect(plane)
    path = "azureml://datastores/scoring/paths/fleets/v1/"
    model = Model(name="fleet", version="1", type="custom_model", path=path)
    assert client.models.create_or_update(model).id.endswith("/models/fleet/versions/1")
    found = client.models.get("fleet", "1")
    assert (found.type, str(found.path).endswith("/fleets/v1/")) == ("custom_model", True)
    # The SDK turns any refusal to change a path into its own error, which names the first model.
    other = Model(name="fleet", version="1", type="custom_model", path=f"{path}2/")
    with pytest.raises(Exception, match=r"immutable|already|differ"):
        client.models.create_or_update(other)
    assert plane.models["fleet", "1"].puts == 1


def test_a_cluster_takes_its_time_to_come(plane: ControlPlane) -> None:
    plane.polls = 3
    client = connect(plane)
    cluster = AmlCompute(name="cpu", size="Standard_F8s_v2", min_instances=0, max_instances=4)
    began = time.monotonic()
    made = client.compute.begin_create_or_update(cluster).result()
    assert time.monotonic() - began < 10
    assert made.provisioning_state == client.compute.get("cpu").provisioning_state == "Succeeded"
    properties = plane.computes["cpu"].properties["properties"]
    assert properties["scaleSettings"]["minNodeCount"] == 0
    polls = [r for r in plane.requests if "/mfeOperationsStatus/" in r.path]
    assert len(polls) == 3


def test_a_cluster_that_cannot_be_made_says_why(plane: ControlPlane) -> None:
    plane.fail_provisioning("cpu", "QuotaExceeded", "no cores are left")
    client = connect(plane)
    cluster = AmlCompute(name="cpu", size="Standard_F8s_v2", min_instances=0, max_instances=4)
    with pytest.raises(HttpResponseError, match="no cores are left"):
        client.compute.begin_create_or_update(cluster).result()
    assert client.compute.get("cpu").provisioning_state == "Failed"


def test_a_pipeline_is_deployed_behind_an_endpoint(plane: ControlPlane) -> None:
    register(plane)
    client = connect(plane)
    client.batch_endpoints.begin_create_or_update(BatchEndpoint(name="score")).result()
    component = f"{plane.workspace_id}/components/score_fleet/versions/1"
    deployment = PipelineComponentBatchDeployment(
        name="v1", endpoint_name="score", component=component, settings={"default_compute": "cpu"}
    )
    client.batch_deployments.begin_create_or_update(deployment).result()
    configuration = plane.deployments["score", "v1"].properties["deploymentConfiguration"]
    assert configuration["componentId"]["assetId"] == component
    endpoint = BatchEndpoint(name="score", defaults={"deployment_name": "v1"})
    client.batch_endpoints.begin_create_or_update(endpoint).result()
    assert client.batch_endpoints.get("score").defaults.deployment_name == "v1"
    assert [found.name for found in client.batch_endpoints.list()] == ["score"]


def test_a_job_is_accepted_once(plane: ControlPlane) -> None:
    register(plane)
    client = connect(plane)
    for _ in range(2):
        assert client.jobs.create_or_update(order(plane)).status == "NotStarted"
    with pytest.raises(HttpResponseError, match="A job with this name already exists") as refused:
        client.jobs.create_or_update(order(plane, run_id="another"))
    error: Any = refused.value
    assert (error.status_code, error.error.code) == (400, "UserError")
    inner = json.loads(error.response.text())["error"]["innerError"]
    assert inner["innerError"]["code"] == "JobPropertyImmutable"
    job = plane.jobs["r1"]
    assert (job.accepted, job.repeated, plane.created_jobs) == (1, 1, ["r1"])
    assert job.properties["inputs"]["run_id"]["value"] == "r1"
    assert job.properties["settings"]["force_rerun"] is True


def test_a_time_as_input_makes_a_job_differ_from_itself(plane: ControlPlane) -> None:
    register(plane)
    client = connect(plane)
    client.jobs.create_or_update(order(plane, run_id="2026-11-22T23:00:00Z"))
    with pytest.raises(HttpResponseError, match="already exists"):
        client.jobs.create_or_update(order(plane, run_id="2026-11-22T23:00:00Z"))


@pytest.mark.parametrize("port", ["run_id", "unknown"])
def test_inputs_are_those_of_the_component(plane: ControlPlane, port: str) -> None:
    register(plane)
    job = order(plane)
    inputs = dict(job.inputs)
    if port == "unknown":
        job = order(plane, unknown="1")
    else:
        del job.inputs[port]
    assert inputs
    with pytest.raises(HttpResponseError, match=port):
        connect(plane).jobs.create_or_update(job)
    assert plane.jobs == {}


def test_a_job_tells_its_status(plane: ControlPlane) -> None:
    register(plane)
    client = connect(plane)
    client.jobs.create_or_update(order(plane))
    for status in ("Provisioning", "Queued", "Running", "NotResponding", "Completed"):
        plane.set_status("r1", status)
        assert client.jobs.get("r1").status == status
    assert [job.name for job in client.jobs.list()] == ["r1"]
    with pytest.raises(ResourceNotFoundError):
        client.jobs.get("unknown")


def test_a_failed_step_says_why_and_its_pipeline_does_not(plane: ControlPlane) -> None:
    register(plane)
    client = connect(plane)
    client.jobs.create_or_update(order(plane))
    plane.fail("r1", message="part 3 is unreadable", logs={"user_logs/std_log_0.txt": "Oh no"})
    (child,) = client.jobs.list(parent_job_name="r1")
    history: Any = client.jobs._runs_operations
    whole, step = history.get_run_details("r1"), history.get_run_details(child.name)
    assert client.jobs.get("r1").status == whole.status == child.status == "Failed"
    assert whole.error.error.message.startswith("Pipeline has failed child jobs")
    assert step.error.error.message == "part 3 is unreadable"
    assert history.get_run(child.name).parent_run_id == "r1"
    address = step.log_files["user_logs/std_log_0.txt"]
    assert requests.get(address, timeout=10).text == "Oh no"
    assert requests.get(address.partition("?")[0], timeout=10).status_code == 403


def test_a_job_is_canceled_in_two_steps(plane: ControlPlane) -> None:
    register(plane)
    client = connect(plane)
    client.jobs.create_or_update(order(plane))
    client.jobs.begin_cancel("r1").result()
    assert client.jobs.get("r1").status == "CancelRequested"
    plane.set_status("r1", "Canceled")
    with pytest.raises(HttpResponseError, match="terminal state"):
        client.jobs.begin_cancel("r1")
    with pytest.raises(ResourceNotFoundError):
        client.jobs.begin_cancel("unknown")


class Runner:
    """Runs a job in a thread, which ends when it is told to."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []

    def start(self, job: Job, plane: ControlPlane) -> None:
        def run() -> None:
            plane.set_status(job.name, "Running")
            child: Child = plane.add_child(job.name)
            self.stop.wait(30)
            child.status = "Canceled"
            plane.set_status(job.name, "Canceled")

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()

    def cancel(self, job: Job) -> None:
        assert job.status == "CancelRequested"
        self.stop.set()


def test_a_runner_runs_what_was_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner()
    with ControlPlane(runner=runner) as plane:
        enter(plane, monkeypatch)
        register(plane)
        client = connect(plane)
        client.jobs.create_or_update(order(plane))
        client.jobs.create_or_update(order(plane))
        client.jobs.begin_cancel("r1").result()
        (thread,) = runner.threads
        thread.join(30)
        assert client.jobs.get("r1").status == "Canceled"
        assert plane.jobs["r1"].children[0].status == "Canceled"


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "headers": CALM, "times": 3},
        {"status": 503, "headers": CALM},
        {"drop": True},
        {"lose_answer": True},
        {"delay": 0.05},
    ],
)
def test_the_sdk_gets_over_a_fault_and_makes_one_job(
    plane: ControlPlane, fault: dict[str, Any]
) -> None:
    register(plane)
    scripted = plane.fault(method="PUT", path=r"/jobs/", **fault)
    assert connect(plane).jobs.create_or_update(order(plane)).name == "r1"
    assert scripted.hits == fault.get("times", 1)
    lost = bool(fault.get("lose_answer"))
    assert (plane.created_jobs, plane.jobs["r1"].repeated) == (["r1"], int(lost))
    if fault.get("drop") or lost:
        assert [request.status for request in puts(plane)] == [0, 201 if not lost else 200]


def test_an_answer_that_is_lost_for_good_is_an_error(plane: ControlPlane) -> None:
    register(plane)
    plane.fault(method="PUT", path="/jobs/", lose_answer=True, times=None)
    with pytest.raises(ServiceResponseError):
        connect(plane, retry_total=0).jobs.create_or_update(order(plane))
    assert plane.created_jobs == ["r1"]


def test_chaos_is_the_same_for_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for _ in range(2):
        with ControlPlane() as plane:
            enter(plane, monkeypatch)
            register(plane)
            plane.chaos(seed=5, rate=0.4, kinds=("429", "drop", "lose_answer"), path="/jobs/")
            client = connect(plane, retry_backoff_factor=0.001)
            for number in range(8):
                client.jobs.create_or_update(order(plane, f"r{number}"))
            assert plane.created_jobs == [f"r{number}" for number in range(8)]
            seen.append([(path, fault.status, fault.drop) for _, path, fault in plane.thrown])
    assert seen[0] == seen[1] != []


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (lambda tokens: setattr(tokens, "lifetime", -1), "ExpiredAuthenticationToken"),
        (lambda tokens: setattr(tokens, "begins_in", 60), "InvalidAuthenticationToken"),
        (lambda tokens: setattr(tokens, "audience", "https://x"), "TokenAudience"),
        (lambda tokens: setattr(tokens, "denied", True), "DefaultAzureCredential"),
    ],
)
def test_a_token_that_does_not_hold_is_refused(
    plane: ControlPlane, break_it: Callable[[Any], None], code: str
) -> None:
    break_it(plane.tokens)
    with pytest.raises(ClientAuthenticationError, match=code):
        connect(plane).workspaces.get("fleet")


def test_a_revoked_token_is_refused(plane: ControlPlane) -> None:
    client = connect(plane)
    client.workspaces.get("fleet")
    plane.tokens.revoke()
    with pytest.raises(ClientAuthenticationError, match="revoked"):
        client.workspaces.get("fleet")


def test_what_is_unknown_is_refused_and_recorded(plane: ControlPlane) -> None:
    client = connect(plane)
    with pytest.raises(ResourceNotFoundError, match="No route is known"):
        list(client.schedules.list())
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get("https://westus2-0.in.applicationinsights.azure.com/", timeout=10)
    last = plane.requests[-1]
    assert (last.method, last.host, last.status) == (
        "CONNECT",
        "westus2-0.in.applicationinsights.azure.com",
        502,
    )


def test_a_check_can_refuse_what_the_service_would(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(method: str, path: str, version: str, body: object) -> list[str]:
        return [f"{method} {version} is wrong"] if path.endswith("/jobs/r1") else []

    with ControlPlane(check=check) as plane:
        enter(plane, monkeypatch)
        register(plane)
        with pytest.raises(HttpResponseError, match="PUT 2024-01-01-preview is wrong"):
            connect(plane).jobs.create_or_update(order(plane))


def test_another_process_needs_the_environment_only(plane: ControlPlane) -> None:
    register(plane)
    connect(plane).jobs.create_or_update(order(plane))
    plane.set_status("r1", "Running")
    script = (
        "from azure.ai.ml import MLClient\n"
        "from azure.identity import DefaultAzureCredential\n"
        f"names = {(plane.subscription_id, plane.resource_group, plane.workspace)!r}\n"
        "print(MLClient(DefaultAzureCredential(), *names).jobs.get('r1').status)"
    )
    environment = {**os.environ, **plane.environment}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split()[-1] in {"Running", "JobStatus.RUNNING"}


def test_many_submits_at_once_make_one_job(plane: ControlPlane) -> None:
    register(plane)
    clients = [connect(plane) for _ in range(4)]
    orders = [order(plane) for _ in clients]
    with ThreadPoolExecutor(4) as pool:
        futures = [
            pool.submit(c.jobs.create_or_update, o) for c, o in zip(clients, orders, strict=True)
        ]
        assert {future.result().name for future in futures} == {"r1"}
    assert (plane.created_jobs, plane.jobs["r1"].repeated) == (["r1"], 3)


def test_connections_are_kept(plane: ControlPlane) -> None:
    register(plane)
    client = connect(plane)
    client.jobs.create_or_update(order(plane))
    client.jobs.get("r1")
    began = time.monotonic()
    for _ in range(50):
        client.jobs.get("r1")
    assert time.monotonic() - began < 5
