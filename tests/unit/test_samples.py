"""Samples that nothing here can run: what they say agrees with the code and with each other."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from azure.eventhub import parse_connection_string

from scoring.settings import HostSettings

ROOT = Path(__file__).parents[2]


def services() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return content


def sample() -> dict[str, str]:
    values: dict[str, str] = json.loads((ROOT / "local.settings.sample.json").read_text())["Values"]
    return values


def azure_sample() -> dict[str, str]:
    values: dict[str, str] = json.loads((ROOT / "infra" / "settings.sample.json").read_text())
    return values


def emulator() -> dict[str, Any]:
    config = json.loads(services()["configs"]["event-hubs"]["content"])
    (namespace,) = config["UserConfig"]["NamespaceConfig"]
    (hub,) = namespace["Entities"]
    assert isinstance(hub, dict)
    return hub


def test_the_emulator_has_the_hub_and_the_groups_that_the_sample_settings_name() -> None:
    hub, settings = emulator(), sample()

    assert hub["Name"] == settings["EVENT_HUB_NAME"]
    assert {group["Name"] for group in hub["ConsumerGroups"]} == {
        settings["EVENT_HUB_CONSUMER_GROUP"],
        settings["SCORING_EVENT_HUB_REPAIR_GROUP"],
    }


def test_the_sample_settings_reach_the_emulator_where_compose_puts_it() -> None:
    found = parse_connection_string(sample()["EVENT_HUB"])

    assert found.fully_qualified_namespace == "localhost"
    assert services()["services"]["event-hubs"]["ports"] == ["127.0.0.1:5672:5672"]


def test_nothing_is_open_to_other_machines() -> None:
    for name, service in services()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


def test_each_service_finds_what_it_depends_on_and_what_it_is_given() -> None:
    content = services()
    for service in content["services"].values():
        assert set(service.get("depends_on", {})) <= set(content["services"])
        assert {one["source"] for one in service.get("configs", [])} <= set(content["configs"])


@pytest.mark.parametrize("settings", [sample(), azure_sample()], ids=["laptop", "azure"])
def test_the_sample_settings_are_complete(settings: dict[str, str]) -> None:
    assert HostSettings.load(settings).hub == "readings"


def test_what_the_host_has_of_its_own_in_azure_is_not_overwritten() -> None:
    assert not {"FUNCTIONS_WORKER_RUNTIME", "AzureWebJobsStorage"} & azure_sample().keys()


def test_the_readme_shows_the_databases_that_compose_starts() -> None:
    readme, servers = (ROOT / "README.md").read_text(), services()["services"]
    postgresql = servers["postgresql"]["environment"]
    _, _, password = servers["sqlserver"]["environment"]["MSSQL_SA_PASSWORD"].partition(":-")

    assert "postgresql://{POSTGRES_USER}:{POSTGRES_PASSWORD}@localhost/{POSTGRES_DB}".format(
        **postgresql
    ) in readme  # fmt: skip
    assert f"PWD={password.rstrip('}')};" in readme
