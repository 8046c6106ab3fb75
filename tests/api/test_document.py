"""The OpenAPI document is true: whatever it allows is answered as it says."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.config import (
    ChecksConfig,
    PositiveDataAcceptanceConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.specs.openapi.checks import positive_data_acceptance

from scoring.api import create_api
from scoring.bootstrap import App
from scoring.settings import Settings
from tests.adapters.stores import deliver
from tests.api.conftest import BEGIN, Client, ListeningEngine, fill, said, submitted

SEED = 20261122
EXAMPLES = 40


class TestDocument:
    @pytest.fixture
    def document(self, client: Client) -> dict[str, Any]:
        found: dict[str, Any] = client.get("/openapi.json").json()
        return found

    def test_it_is_of_the_version_that_it_says(self, document: dict[str, Any]) -> None:
        assert document["openapi"].startswith("3.1")

    def test_every_error_is_documented_as_a_problem(self, document: dict[str, Any]) -> None:
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                responses = operation["responses"]
                assert {"422", "500", "503", "507"} <= responses.keys(), (path, method)
                for status, response in responses.items():
                    kinds = set(response.get("content", {}))
                    expected = "application/problem+json" if status >= "4" else "application/json"
                    assert kinds == {expected}, (path, method, status)

    def test_every_success_has_a_form(self, document: dict[str, Any]) -> None:
        for path, operations in document["paths"].items():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    if status < "3":
                        assert response["content"]["application/json"]["schema"]["$ref"], path

    def test_every_list_is_bounded(self, document: dict[str, Any]) -> None:
        for path, operations in document["paths"].items():
            parameters = operations.get("get", {}).get("parameters", [])
            for one in parameters:
                if one["name"] == "limit":
                    schema = one["schema"]
                    assert (schema["default"], schema["maximum"]) == (100, 1000), path
            names = {one["name"] for one in parameters}
            assert ("cursor" in names) <= ("limit" in names)


# The document needs no store: what it describes is opened when the first test asks.
APP = App(Settings.load({"SCORING_DATA": "never-made", "SCORING_WINDOW": "1min"}))
# A schema cannot say what a cursor is: one that was never given is a 400 all the same.
CHECKS = ChecksConfig(
    positive_data_acceptance=PositiveDataAcceptanceConfig(
        expected_statuses=["2xx", "400", "404", "409"]
    )
)
SCHEMA = schemathesis.openapi.from_asgi(
    "/api/openapi.json",
    create_api(APP),
    config=SchemathesisConfig(
        seed=SEED, projects=ProjectsConfig(default=ProjectConfig(checks=CHECKS))
    ),
)


@pytest.fixture(scope="module")
def filled(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    APP.folder = tmp_path_factory.mktemp("schemathesis") / "data"
    shutil.copytree(template, APP.folder)
    APP.__dict__["engine"] = ListeningEngine()
    fill(APP, ("d1", "s1"), ("d2", "s1"), windows=2)
    said(APP, submitted(APP), ("d1", "s1", 0, 1.0), ("d2", "s1", 1, None))
    fill(APP, ("d1", "s1"))
    deliver(APP.database, [0, 5, 9], enqueued=BEGIN)
    with APP:
        yield


@SCHEMA.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_sent_is_answered_as_documented(case: Any, filled: None) -> None:
    # Nor can it say that a range may not end before it begins.
    given = {**(case.query or {}), **(case.body if isinstance(case.body, dict) else {})}
    is_free = {"since", "until"} <= given.keys()
    case.call_and_validate(excluded_checks=[positive_data_acceptance] if is_free else [])
