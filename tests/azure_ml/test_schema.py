import copy
import json
import warnings
from collections.abc import Callable
from typing import Any, Final, cast

import pytest

from tests.azure_ml.schema import API_VERSIONS, violations

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # azure-ai-ml's own, of its use of marshmallow.
    from azure.ai.ml import Input, Output, dsl, entities
    from azure.ai.ml._restclient.arm_ml_service._utils.model_base import SdkJSONEncoder
    from azure.ai.ml.entities._assets import Code
    from azure.ai.ml.parallel import RunFunction, parallel_run_function

pytestmark = pytest.mark.filterwarnings("ignore::marshmallow.warnings.RemovedInMarshmallow4Warning")
VERSION: Final = "2024-01-01-preview"
WORKSPACE: Final = (
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
)
CODE: Final = f"{WORKSPACE}/codes/code/versions/1"
ENVIRONMENT: Final = f"{WORKSPACE}/environments/env/versions/1"
COMPONENT: Final = f"{WORKSPACE}/components/score/versions/1"


def sent(rest: object) -> Any:
    """Turn a REST object into what the SDK's client puts on the wire."""
    return json.loads(json.dumps(rest, cls=SdkJSONEncoder, exclude_readonly=True))


def parallel_component() -> Any:
    step = parallel_run_function(
        name="score",
        version="1",
        inputs={
            "fleet": Input(type="uri_folder", mode="direct"),
            "run_id": Input(type="string"),
            "share": Input(type="number", default=0.5, optional=True),
        },
        outputs={"predictions": Output(type="uri_folder", mode="rw_mount")},
        input_data="${{inputs.fleet}}",
        instance_count=2,
        mini_batch_size="10",
        mini_batch_error_threshold=1,
        max_concurrency_per_instance=2,
        error_threshold=3,
        logging_level="INFO",
        retry_settings=cast("Any", {"max_retries": 3, "timeout": 60}),
        task=RunFunction(
            code=CODE,
            entry_script="score.py",
            environment=ENVIRONMENT,
            program_arguments="--run-id ${{inputs.run_id}}",
            append_row_to="${{outputs.predictions}}",
        ),
    )
    return step.component


def pipeline_job() -> Any:
    component = parallel_component()

    def run(fleet: Input, run_id: str) -> dict[str, Any]:
        step = component(fleet=fleet, run_id=run_id)
        step.environment_variables = {"A": "b"}
        step.resources = {"instance_count": 2}
        step.identity = {"type": "managed"}
        return {"predictions": step.outputs.predictions}

    fleet = Input(type="uri_folder", path="azureml://datastores/d/paths/p")
    job: Any = dsl.pipeline(run, name="run")(fleet=fleet, run_id="r-1")
    job.jobs["step"]._component = COMPONENT
    job.settings.continue_on_step_failure = False
    job.compute = f"{WORKSPACE}/computes/cluster"
    return job


def pipeline_component() -> Any:
    component = pipeline_job().component
    component.version = "1"
    return component


def batch_deployment() -> Any:
    return entities.ModelBatchDeployment(
        name="blue",
        endpoint_name="scoring",
        model="azureml:m:1",
        environment=ENVIRONMENT,
        code_configuration=entities.CodeConfiguration(code=CODE, scoring_script="score.py"),
        compute="cluster",
        settings=entities.ModelBatchDeploymentSettings(
            mini_batch_size=10,
            instance_count=2,
            output_action="append_row",
            retry_settings=entities.BatchRetrySettings(max_retries=3, timeout=30),
        ),
    )


def pipeline_deployment() -> Any:
    return entities.PipelineComponentBatchDeployment(
        name="blue",
        endpoint_name="scoring",
        component=COMPONENT,
        settings={"default_compute": "cluster"},
    )


def cluster() -> Any:
    return entities.AmlCompute(
        name="cluster",
        size="Standard_D2",
        min_instances=0,
        max_instances=4,
        idle_time_before_scale_down=120,
        tier="low_priority",
        location="eastus",
        identity=entities.IdentityConfiguration(type="system_assigned"),
    )


REQUESTS: Final[dict[str, tuple[str, Callable[[], Any]]]] = {
    "parallel component": ("/components/c/versions/1", parallel_component),
    "pipeline component": ("/components/c/versions/1", pipeline_component),
    "pipeline job": ("/jobs/run-1", pipeline_job),
    "cluster": ("/computes/cluster", cluster),
    "model": (
        "/models/m/versions/1",
        lambda: entities.Model(
            name="m", version="1", path="azureml://datastores/d/paths/p", type="custom_model"
        ),
    ),
    "environment": (
        "/environments/e/versions/1",
        lambda: entities.Environment(
            name="e", version="1", image="i:1", conda_file={"dependencies": ["python"]}
        ),
    ),
    "environment to build": (
        "/environments/e/versions/1",
        lambda: entities.Environment(
            name="e", version="1", build=entities.BuildContext(path="https://account/c/context")
        ),
    ),
    "datastore": (
        "/datastores/d",
        lambda: entities.AzureBlobDatastore(
            name="d",
            account_name="a",
            container_name="c",
            credentials=entities.AccountKeyConfiguration(account_key="k"),
        ),
    ),
    "batch deployment": (
        "/batchEndpoints/scoring/deployments/blue",
        lambda: batch_deployment()._to_rest_object("eastus"),
    ),
    "pipeline deployment": (
        "/batchEndpoints/scoring/deployments/blue",
        lambda: pipeline_deployment()._to_rest_object("eastus"),
    ),
    "batch endpoint": (
        "/batchEndpoints/scoring",
        lambda: entities.BatchEndpoint(name="scoring")._to_rest_batch_endpoint("eastus"),
    ),
    "code": (
        "/codes/code/versions/1",
        lambda: Code(name="code", version="1", path="https://account/code/src"),
    ),
}


@pytest.fixture(scope="module")
def bodies() -> dict[str, Any]:
    made = {name: make() for name, (_, make) in REQUESTS.items()}
    return {
        name: sent(one._to_rest_object() if hasattr(one, "_to_rest_object") else one)
        for name, one in made.items()
    }


@pytest.mark.parametrize("name", REQUESTS)
def test_what_the_sdk_sends_is_right(bodies: dict[str, Any], name: str) -> None:
    path, _ = REQUESTS[name]
    assert violations("PUT", WORKSPACE + path, VERSION, bodies[name]) == []


ABSENT: Final = object()
SPEC: Final = "properties.componentSpec"
STEP: Final = "properties.jobs.step"


@pytest.mark.parametrize(
    ("name", "where", "value", "problem"),
    [
        ("cluster", "properties.size", "D2", "unknown property"),
        (
            "pipeline job",
            f"{STEP}.identity",
            {"type": "managed"},
            "None is not one of AMLToken, Man",
        ),
        ("pipeline job", f"{STEP}.identity", "managed", "'managed' is not an object"),
        ("cluster", "properties.properties.vmSize", 2, "2 is not a string"),
        ("cluster", "properties.properties.scaleSettings.maxNodeCount", ABSENT, "missing required"),
        ("cluster", "properties.properties.scaleSettings.maxNodeCount", None, "missing required"),
        ("cluster", "properties.properties.scaleSettings.minNodeCount", "0", "is not an integer"),
        ("cluster", "properties.properties.scaleSettings.minNodeCount", True, "is not an integer"),
        (
            "cluster",
            "properties.properties.scaleSettings.nodeIdleTimeBeforeScaleDown",
            "120s",
            "is not an ISO 8601 timedelta",
        ),
        ("cluster", "properties.properties.vmPriority", "Cheap", "is not one of Dedicated, LowP"),
        ("cluster", "properties.properties.scaleSettings", [], "[] is not an object"),
        ("cluster", "properties.computeType", "Cluster", "'Cluster' is not one of AKS, AmlC"),
        ("cluster", "properties.computeType", ABSENT, "None is not one of AKS, AmlC"),
        ("cluster", "properties.provisioningState", "Succeeded", "read-only property"),
        ("cluster", "identity.type", ABSENT, "missing required property"),
        ("cluster", "tags", {"a": 1}, "is not a string"),
        ("model", "properties", ABSENT, "missing required property"),
        ("model", "name", "m", "read-only property"),
        ("environment", "properties.osType", "BeOS", "is not one of Linux, Windows"),
        ("datastore", "properties.credentials.secrets.secretsType", "Key", "is not one of Acc"),
        ("batch endpoint", "location", ABSENT, "missing required property"),
        ("batch deployment", "properties.codeConfiguration.scoringScript", "", "does not match"),
        ("batch deployment", "properties.retrySettings.timeout", "30", "is not an ISO 8601"),
        ("batch deployment", "properties.model.referenceType", "Name", "is not one of DataPath"),
        ("pipeline deployment", "properties.deploymentConfiguration.settings.a", False, "a string"),
        ("code", "properties.codeUri", 1, "1 is not a string"),
        ("pipeline job", "properties.jobType", "pipeline", "is not one of AutoML, Command"),
        ("pipeline job", "properties.inputs.fleet.uri", ABSENT, "missing required property"),
        ("pipeline job", "properties.inputs.fleet.mode", "direct_", "is not one of ReadOnlyMount"),
        ("pipeline job", "properties.inputs.run_id.value", "-", "does not match [a-zA-Z0-9_]"),
        ("pipeline job", "properties.inputs.run_id.value", 1, "1 is not a string"),
        ("pipeline job", "properties.experiment", "x", "unknown property"),
        ("pipeline job", "properties.jobs", [], "[] is not an object"),
        ("pipeline job", STEP, None, "None is not an object"),
        ("pipeline job", f"{STEP}.componentId", "score:1", "is not an asset's id"),
        ("pipeline job", f"{STEP}.inputs.fleet.value", ABSENT, "None is not a string"),
        ("pipeline job", f"{STEP}.inputs.fleet.path", "p", "unknown property"),
        ("pipeline job", f"{STEP}.outputs.predictions.value", 1, "1 is not a string"),
        ("pipeline job", f"{STEP}.inputs.run_id", {"job_input_type": "text"}, "is not one of cus"),
        ("pipeline job", f"{STEP}.retry_settings.max_retry", 3, "unknown property"),
        ("pipeline job", f"{STEP}.retry_settings.timeout", "60", "'60'"),
        ("pipeline job", f"{STEP}.max_concurrency", 2, "unknown property"),
        ("pipeline job", f"{STEP}.resources.instance_count", 2.5, "is not an integer"),
        ("pipeline job", f"{STEP}.environment_variables.A", 1, "is not a string"),
        ("pipeline job", f"{STEP}.task.type", "script", "script"),
        ("parallel component", SPEC, "score.yml", "is not an object"),
        (
            "parallel component",
            f"{SPEC}.type",
            "paralel",
            "'paralel' is not one of automl, command",
        ),
        ("pipeline job", f"{STEP}.type", ABSENT, "None is not one of automl, command"),
        ("parallel component", f"{SPEC}.minibatch_size", "10", "unknown property"),
        ("parallel component", f"{SPEC}.mini_batch_size", 10, "10 is not a string"),
        ("parallel component", f"{SPEC}.error_threshold", "3", "is not an integer"),
        ("parallel component", f"{SPEC}.logging_level", "LOUD", "LOUD"),
        ("parallel component", f"{SPEC}.is_deterministic", "yes", "is not a boolean"),
        ("parallel component", f"{SPEC}.partition_keys", ["device"], "is not the JSON of a list"),
        ("parallel component", f"{SPEC}.partition_keys", '"device"', "is not an array"),
        ("parallel component", f"{SPEC}.task.code", "./src", "is not an asset's id"),
        ("parallel component", f"{SPEC}.task.entry", "score.py", "unknown property"),
        ("parallel component", f"{SPEC}.task.environment", ABSENT, "missing required property"),
        ("parallel component", f"{SPEC}.inputs.fleet.type", "folder", "folder"),
        ("parallel component", f"{SPEC}.inputs.fleet.mode", "mount_it", "mount_it"),
        ("parallel component", f"{SPEC}.outputs.predictions.path", "p", "unknown property"),
        ("parallel component", f"{SPEC}.resources.nodes", 2, "unknown property"),
        ("pipeline component", f"{SPEC}.settings", {}, "unknown property"),
        ("pipeline component", f"{SPEC}.jobs.step.task.entry_script", 1, "1 is not a string"),
        ("pipeline component", f"{SPEC}.inputs.fleet.type", ABSENT, "missing required property"),
    ],
)
def test_what_the_service_would_refuse_is_named_and_nothing_else_is(
    bodies: dict[str, Any], name: str, where: str, value: object, problem: str
) -> None:
    body = copy.deepcopy(bodies[name])
    *parents, last = where.split(".")
    holder = body
    for parent in parents:
        holder = holder[parent]
    if value is ABSENT:
        del holder[last]
    else:
        holder[last] = value
    (found,) = violations("PUT", REQUESTS[name][0], VERSION, body)
    assert found.startswith(f"$.{where}")
    assert problem in found


def test_a_step_takes_an_input_of_its_pipeline_where_a_number_goes(bodies: dict[str, Any]) -> None:
    body = copy.deepcopy(bodies["pipeline job"])
    body["properties"]["jobs"]["step"]["error_threshold"] = "${{parent.inputs.run_id}}"
    assert violations("PUT", "/jobs/run-1", VERSION, body) == []


def test_a_read_only_property_may_be_null(bodies: dict[str, Any]) -> None:
    body = {**bodies["model"], "name": None, "systemData": None}
    assert violations("PUT", "/models/m/versions/1", VERSION, body) == []


def test_a_body_that_is_no_object_is_refused() -> None:
    assert violations("PUT", "/jobs/run-1", VERSION, None) == ["$: None is not an object"]


def test_a_request_without_a_body_may_have_none() -> None:
    assert violations("POST", "/jobs/run-1/cancel", VERSION, None) == []
    assert violations("GET", WORKSPACE, VERSION, None) == []
    assert violations("POST", "/jobs/run-1/cancel", VERSION, {}) == [
        "$: a body where the request has none"
    ]


def test_an_upload_says_what_it_is_for() -> None:
    path = "/codes/code/versions/1/startPendingUpload"
    body = {"pendingUploadType": "TemporaryBlobReference"}
    assert violations("POST", path, VERSION, body) == []
    (found,) = violations("POST", path, VERSION, {"pendingUploadType": "Blob"})
    assert found.startswith("$.pendingUploadType: 'Blob' is not one of None, Temp")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/pipelines/p"),
        ("PUT", "/jobs/a.b"),
        ("PUT", "/computes/cpu-1"),
        ("PUT", "/computes/c"),
        ("POST", "/jobs/run-1"),
        ("GET", "/notebooks"),
    ],
)
def test_a_request_that_it_does_not_know_is_refused(method: str, path: str) -> None:
    assert violations(method, path, VERSION, None) == [
        f"path: {f'{method} {path}'!r} is no known request"
    ]


def test_secrets_are_asked_for_by_their_lifetime() -> None:
    body = {"expirableSecret": True, "expireAfterHours": 1}
    assert violations("POST", "/datastores/d/listSecrets", VERSION, body) == []


def test_an_api_version_that_the_sdk_does_not_send_is_refused() -> None:
    assert VERSION in API_VERSIONS
    assert violations("GET", "/jobs", "2019-01-01", None) == [
        "api-version: the SDK sends no '2019-01-01'"
    ]
