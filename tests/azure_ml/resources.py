"""What a workspace keeps: resources by name, and assets by name and version."""

import copy
import datetime
import json
from dataclasses import dataclass, field
from typing import Any

from tests.azure_ml.answers import ServiceError, not_found

Properties = dict[str, Any]

MUTABLE = frozenset({"description", "tags", "isArchived", "displayName", "properties"})
"""What may change of something that is immutable."""

_IMMUTABLE = {
    "codes": ("Asset paths are immutable.", "Immutable", "AssetPathImmutable"),
    "models": ("Asset paths are immutable.", "Immutable", "AssetPathImmutable"),
    "environments": (
        "The environment version already exists with another definition: versions are immutable.",
        "Immutable",
        "EnvironmentVersionImmutable",
    ),
    "components": (
        "A component with this name and version already exists, and its specification differs: "
        "versions are immutable.",
        "Immutable",
        "ComponentVersionImmutable",
    ),
}


@dataclass(slots=True)
class Resource:
    """One thing that is stored, as it was put.

    Attributes
    ----------
    puts
        How often it was accepted.
    state
        How far its making is.
    """

    id: str
    kind: str
    name: str
    version: str | None
    body: dict[str, Any]
    created: datetime.datetime
    puts: int = 1
    state: str = "Succeeded"
    secrets: dict[str, Any] = field(default_factory=dict)

    @property
    def properties(self) -> Properties:
        """Its properties."""
        properties: Properties = self.body["properties"]
        return properties

    def rest(self) -> dict[str, Any]:
        """Give it as the service does."""
        shown = {
            **copy.deepcopy(self.body),
            "id": self.id,
            "name": self.version or self.name,
            "type": f"Microsoft.MachineLearningServices/workspaces/{self.kind}",
            "systemData": system_data(self.created),
        }
        if self.kind == "batchEndpoints":
            uri = f"https://{self.name}.westeurope.inference.ml.azure.com/jobs"
            shown["properties"]["scoringUri"] = uri
        if self.kind == "models":
            shown["properties"].setdefault("flavors", {})
        if self.kind not in {"datastores", "codes"}:
            shown["properties"]["provisioningState"] = self.state
        return shown


def system_data(created: datetime.datetime) -> dict[str, str]:
    """Say who made a resource, and when."""
    at = created.isoformat().replace("+00:00", "Z")
    return {
        "createdAt": at,
        "createdBy": "Scoring Tests",
        "createdByType": "Application",
        "lastModifiedAt": at,
    }


def differs(old: Properties, new: Properties) -> bool:
    """Whether two bodies differ in what is immutable."""
    return _fixed(old) != _fixed(new)


def _fixed(properties: Properties) -> str:
    kept = {k: v for k, v in properties.items() if k not in MUTABLE and v is not None}
    return json.dumps(kept, sort_keys=True)


Key = str | tuple[str, str]


class Collection:
    """All resources of one kind; the key is the name, or the name with the version."""

    def __init__(self, kind: str, workspace: str) -> None:
        self.kind = kind
        self._workspace = workspace
        self.items: dict[Key, Resource] = {}

    def get(self, key: Key) -> Resource:
        """Give one; refuse where there is none."""
        if key not in self.items:
            name = key if isinstance(key, str) else ":".join(key)
            not_found(self.kind.capitalize(), name)
        return self.items[key]

    def put(self, key: Key, body: dict[str, Any]) -> tuple[Resource, bool]:
        """Store one, or accept it again; tells whether it is new."""
        body = copy.deepcopy(body)
        body.setdefault("properties", {})
        old = self.items.get(key)
        if old is None:
            name, version = key if isinstance(key, tuple) else (key, None)
            # learn.microsoft.com/azure/machine-learning/reference-yaml-model: version is an int;
            # it is a string on the pages of environments and components.
            if self.kind == "models" and not (version or "").isdigit():
                message = f"Model version {version!r} is not an integer."
                raise ServiceError(400, "UserError", message)
            if self.kind == "deployments":
                name, version = key[1], None
            now = datetime.datetime.now(datetime.UTC)
            path = self._path(key)
            self.items[key] = Resource(path, self.kind, name, version, body, now)
            return self.items[key], True
        if self.kind in _IMMUTABLE and differs(old.properties, body["properties"]):
            message, *inner = _IMMUTABLE[self.kind]
            raise ServiceError(409, "UserError", message, *inner)
        old.puts += 1
        if self.kind in _IMMUTABLE:
            changed = {k: v for k, v in body["properties"].items() if k in MUTABLE}
            old.body["properties"].update(changed)
        else:
            old.body = body
        return old, False

    def _path(self, key: Key) -> str:
        if isinstance(key, str):
            return f"{self._workspace}/{self.kind}/{key}"
        if self.kind == "deployments":
            return f"{self._workspace}/batchEndpoints/{key[0]}/deployments/{key[1]}"
        return f"{self._workspace}/{self.kind}/{key[0]}/versions/{key[1]}"

    def versions(self, name: str) -> list[Resource]:
        """Give all versions of an asset, the newest first."""
        found = [item for item in self.items.values() if item.name == name]
        return sorted(found, key=lambda item: item.created, reverse=True)
