"""What Azure ML refuses, and so the control plane: row by row, each row with its source."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from tests.azure_ml.harness import CALM_SDK
from tests.azure_ml.jobs import STATUSES, TERMINAL
from tests.azure_ml.plane import ControlPlane
from tests.azure_ml.test_control_plane import connect, enter, order, register

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r".*", DeprecationWarning, r"azure\.ai\.ml|marshmallow")
    from azure.ai.ml import MLClient
    from azure.ai.ml.constants import ListViewType
    from azure.ai.ml.entities import Data, Environment, Model

pytestmark = [*CALM_SDK]

MODEL = "https://learn.microsoft.com/azure/machine-learning/reference-yaml-model"
MODEL_ISSUE = "https://github.com/Azure/azureml-examples/issues/2725"
ENVIRONMENT = "https://learn.microsoft.com/azure/machine-learning/reference-yaml-environment"
DATES = "https://github.com/microsoft/vscode-tools-for-ai/issues/1516"
DATA = "https://github.com/Azure/azureml-assets/issues/295"
NAMES = "https://github.com/MicrosoftDocs/azure-docs/issues/83465"
COMPONENT = "https://learn.microsoft.com/azure/machine-learning/reference-yaml-component-pipeline"
SPEC = "Azure/azure-rest-api-specs, ModelVersion.tsp"

PATH = "azureml://datastores/scoring/paths/fleets/v1/"


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        enter(plane, monkeypatch)
        yield plane


def put(client: MLClient, kind: str, name: str, version: str, content: str = "") -> None:
    """Create a version of an asset as a user of the SDK does."""
    if kind == "models":
        path = f"{PATH}{content}"
        client.models.create_or_update(
            Model(name=name, version=version, type="custom_model", path=path)
        )
    elif kind == "data":
        path = f"{PATH}{content}"
        client.data.create_or_update(Data(name=name, version=version, type="uri_folder", path=path))
    else:
        image = f"registry.example/score:{content or 1}"
        client.environments.create_or_update(Environment(name=name, version=version, image=image))


FORMS: list[tuple[str, str, str, bool, str]] = [
    # kind, name, version, whether it is taken, source
    ("models", "fleet", "1", True, MODEL),
    ("models", "fleet", "20261127", True, MODEL),
    ("models", "fleet", "0", False, MODEL_ISSUE),
    ("models", "fleet", "f0123456789ab", False, MODEL),
    ("models", "fleet", "1.0.0", False, MODEL_ISSUE),
    ("models", "fleet", "-1", False, MODEL_ISSUE),
    ("environments", "score-fleet", "1", True, ENVIRONMENT),
    ("environments", "score-fleet", "2022-02-03", True, DATES),
    ("environments", "score-fleet", "0123456789abcdefr2", True, ENVIRONMENT),
    ("environments", "torch-1.9", "1", False, NAMES),
    ("environments", "score fleet", "1", False, NAMES),
    ("environments", "-score", "1", False, SPEC),
    ("environments", "e" * 255, "1", True, NAMES),
    ("environments", "e" * 256, "1", False, NAMES),
    ("data", "readings", "0123456789abcdef", True, DATA),
    ("data", "readings", "v" * 30, True, DATA),
    ("data", "readings", "v" * 31, False, DATA),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: ":".join(map(str, form[:3]))[:40])
def test_names_and_versions_have_forms(
    plane: ControlPlane, form: tuple[str, str, str, bool, str]
) -> None:
    kind, name, version, taken, source = form
    kept = plane.service.workspace.kinds[kind].items
    if taken:
        put(connect(plane), kind, name, version)
    else:
        with pytest.raises(HttpResponseError) as refused:
            put(connect(plane), kind, name, version)
        assert refused.value.status_code == 400, source

    assert list(kept) == ([(name, version)] if taken else []), source


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        *[("score_fleet", True), ("s", True), ("score_2", True), ("s" * 255, True)],
        *[("score-fleet", False), ("Score_fleet", False), ("2score", False), ("_s", False)],
        *[("s" * 256, False)],
    ],
)
def test_components_have_names_of_their_own_form(
    plane: ControlPlane, name: str, *, taken: bool
) -> None:
    components = plane.service.workspace.kinds["components"]
    body: dict[str, Any] = {"properties": {"componentSpec": {}}}
    if taken:
        components.put((name, "0123456789abcdef"), body)
    else:
        # The SDK refuses most of them itself.
        with pytest.raises(Exception, match="Resource name is invalid"):
            components.put((name, "0123456789abcdef"), body)

    assert bool(components.items) == taken, COMPONENT


ASSETS = pytest.mark.parametrize(("kind", "name"), [("models", "m"), ("environments", "e")])


@ASSETS
def test_a_version_keeps_its_content(plane: ControlPlane, kind: str, name: str) -> None:
    client = connect(plane)
    for _ in range(2):
        put(client, kind, name, "1")

    with pytest.raises(Exception, match=r"immutable|cannot be changed|already registered"):
        put(client, kind, name, "1", "2")


@ASSETS
@pytest.mark.parametrize("status", [400, 404, 409])
def test_a_deleted_version_is_used_up_for_any_content(
    plane: ControlPlane, kind: str, name: str, status: int
) -> None:
    plane.refuse_deleted(status)
    client = connect(plane)
    put(client, kind, name, "1")
    operations: Any = getattr(client, kind)
    delete_version(operations, plane, name, "1")

    with pytest.raises(ResourceNotFoundError):
        operations.get(name, "1")
    assert [*operations.list(name, list_view_type=ListViewType.ALL)] == []
    for content in ("", "2"):
        with pytest.raises(HttpResponseError, match=r"was deleted at .* it cannot be recreated"):
            put(client, kind, name, "1", content)
    put(client, kind, name, "2")
    assert [asset.version for asset in operations.list(name)] == ["2"]


def delete_version(operations: Any, plane: ControlPlane, name: str, version: str) -> None:
    """Delete as the REST API does, for which the SDK has no public method."""
    versions = (
        getattr(operations, "_version_operations", None) or operations._model_versions_operation
    )
    versions.delete(plane.resource_group, plane.workspace, name, version)


@ASSETS
def test_an_archived_version_is_hidden_and_there(plane: ControlPlane, kind: str, name: str) -> None:
    client = connect(plane)
    put(client, kind, name, "1")
    operations: Any = getattr(client, kind)

    operations.archive(name, "1")

    def shown(view: ListViewType) -> list[str]:
        return [asset.version for asset in operations.list(name, list_view_type=view)]

    assert operations.get(name, "1").version == "1"
    assert shown(ListViewType.ACTIVE_ONLY) == []
    assert shown(ListViewType.ALL) == shown(ListViewType.ARCHIVED_ONLY) == ["1"]
    operations.restore(name, "1")
    assert shown(ListViewType.ACTIVE_ONLY) == ["1"]


def cancel(client: MLClient, _: ControlPlane) -> None:
    client.jobs.begin_cancel("r1").result()


def delete(client: MLClient, _: ControlPlane) -> None:
    client.jobs.begin_delete("r1").result()


def again(client: MLClient, plane: ControlPlane) -> None:
    client.jobs.create_or_update(order(plane))


def other(client: MLClient, plane: ControlPlane) -> None:
    client.jobs.create_or_update(order(plane, run_id="another"))


def archive(client: MLClient, _: ControlPlane) -> None:
    client.jobs.archive("r1")


Deed = Callable[[MLClient, ControlPlane], None]
DEEDS: list[tuple[Deed, frozenset[str], str]] = [
    # deed, the statuses in which it is refused, source
    (
        cancel,
        TERMINAL | {"Finalizing"},
        "https://github.com/Azure/azureml-assets/pull/2496",
    ),
    # Nothing says when; see `Jobs.delete`.
    (delete, frozenset(STATUSES) - TERMINAL, "a guess"),
    # A name stands for one body: measured (facts on the platform, in the design).
    (again, frozenset(), "an equal body is accepted"),
    (other, frozenset(STATUSES), "JobPropertyImmutable"),
    # "Only description, displayName, tags, and isArchived properties can be updated", of which
    # no status is excepted: the same refusal.
    (archive, frozenset(), "JobPropertyImmutable"),
]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(("deed", "refused", "source"), DEEDS)
def test_a_jobs_status_decides_what_may_be_done_with_it(
    plane: ControlPlane, status: str, deed: Deed, refused: frozenset[str], source: str
) -> None:
    register(plane)
    client = connect(plane)
    client.jobs.create_or_update(order(plane))
    plane.jobs["r1"].status = status
    job = plane.jobs["r1"]

    if status in refused:
        with pytest.raises(HttpResponseError) as error:
            deed(client, plane)
        assert error.value.status_code == 400, source
    else:
        deed(client, plane)

    told = "CancelRequested" if deed is cancel and status not in refused else status
    assert job.status == told
    assert ("r1" in plane.jobs) == (deed is not delete or status in refused)
    assert bool(job.stored.get("isArchived")) == (deed is archive)
    assert plane.created_jobs == ["r1"]
