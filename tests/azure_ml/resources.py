"""What a workspace keeps: resources by name, and assets by name and version."""

import copy
import datetime
import json
import re
from dataclasses import dataclass, field
from typing import Any

from tests.azure_ml.answers import ServiceError, not_found, refuse

Properties = dict[str, Any]

MUTABLE = frozenset({"description", "tags", "isArchived", "displayName", "properties"})
"""What may change of something that is immutable."""

_IMMUTABLE = {
    # azure/ai/ml/constants/_common.py, ASSET_PATH_ERROR, which the SDK compares whole.
    "codes": ("Asset paths are immutable.", "Immutable", "AssetPathImmutable"),
    "models": ("Asset paths are immutable.", "Immutable", "AssetPathImmutable"),
    "data": ("Asset paths are immutable.", "Immutable", "AssetPathImmutable"),
    # The text: https://github.com/Azure/azure-cli-extensions/issues/5440. The status: azure-ai-ml's
    # `EnvironmentOperations._try_update_latest_version` takes the next version after a
    # `ResourceExistsError`, which is a 409.
    "environments": (
        "Environment {} with version {} is already registered and cannot be changed.",
        "Immutable",
        "EnvironmentVersionImmutable",
    ),
    # The words are ours; that versions of components are immutable:
    # https://learn.microsoft.com/azure/machine-learning/concept-component.
    "components": (
        "A component with this name and version already exists, and its specification differs: "
        "versions are immutable.",
        "Immutable",
        "ComponentVersionImmutable",
    ),
}

VERSIONED = ("environments", "components", "models", "codes", "data")
"""Kinds of assets."""

_DELETED = (
    "Asset azureml://locations/westeurope/workspaces/fleet/{}/{}/versions/{} was deleted at {} "
    "+00:00, it cannot be recreated. Please try again with a different version."
)
"""https://github.com/Azure/azureml-assets/pull/2919 and /3439, of assets of registries."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9\-_]{0,254}")
"""What the REST specification asks of a container's name (Azure/azure-rest-api-specs,
``ModelVersion.tsp``); the service's words: https://github.com/MicrosoftDocs/azure-docs/issues/83465.
"""

_COMPONENT = re.compile(r"[a-z][a-z0-9_]{0,254}")
"""https://learn.microsoft.com/azure/machine-learning/reference-yaml-component-pipeline: "Must start
with lowercase letter. Allowed characters are lowercase letters, numbers, and underscore(_). Maximum
length is 255 characters."
"""

_DATA_VERSION = 30
"""Characters; https://github.com/Azure/azureml-assets/issues/295."""


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


_READ_ONLY = frozenset({"status", "provisioningState"})
"""What the service says of a resource, and takes from nobody."""


def differs(old: Properties, shown: Properties, new: Properties) -> bool:
    """Whether a body differs in what is immutable, from what was put and from what is shown.

    Who reads a resource, changes what may change and puts it back sends what the service added:
    so the SDK archives and restores.
    """
    return _fixed(new) not in {_fixed(old), _fixed(shown)}


def _fixed(properties: Properties) -> str:
    ignored = MUTABLE | _READ_ONLY
    kept = {k: v for k, v in properties.items() if k not in ignored and v is not None}
    return json.dumps(kept, sort_keys=True)


Key = str | tuple[str, str]


class Collection:
    """All resources of one kind; the key is the name, or the name with the version.

    Attributes
    ----------
    deleted
        When a version was deleted: it is never accepted again.
    deleted_status
        The status by which such a version is refused, which no source tells.
    """

    def __init__(self, kind: str, workspace: str) -> None:
        self.kind = kind
        self._workspace = workspace
        self.items: dict[Key, Resource] = {}
        self.deleted: dict[Key, datetime.datetime] = {}
        self.deleted_status = 400

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
            if version is not None and self.kind in VERSIONED:
                self._check(name, version)
            if self.kind == "deployments":
                name, version = key[1], None
            now = datetime.datetime.now(datetime.UTC)
            path = self._path(key)
            self.items[key] = Resource(path, self.kind, name, version, body, now)
            return self.items[key], True
        if self.kind in _IMMUTABLE and differs(
            old.properties, old.rest()["properties"], body["properties"]
        ):
            message, *inner = _IMMUTABLE[self.kind]
            raise ServiceError(409, "UserError", message.format(*key), *inner)
        old.puts += 1
        if self.kind in _IMMUTABLE:
            changed = {k: v for k, v in body["properties"].items() if k in MUTABLE}
            old.body["properties"].update(changed)
        else:
            old.body = body
        return old, False

    def delete(self, key: Key) -> None:
        """Delete one; a version that is deleted is used up."""
        if key in self.items:
            del self.items[key]
            self.deleted[key] = datetime.datetime.now(datetime.UTC)

    def _check(self, name: str, version: str) -> None:
        """Refuse a name or a version that the service does not take."""
        form = _COMPONENT if self.kind == "components" else _NAME
        if not form.fullmatch(name):
            refuse(
                "Resource name is invalid. Resource name can only contain alphanumeric characters, "
                "dashes, and underscores, with a limit of 255 characters.",
                "RequestInvalid",
            )
        # A positive integer: https://github.com/Azure/azureml-examples/issues/2725 and
        # https://learn.microsoft.com/azure/machine-learning/reference-yaml-model. Those of all
        # others are strings, of which the REST specification says only that case counts.
        if self.kind == "models" and not re.fullmatch("[1-9][0-9]*", version):
            refuse(f"Model version {version!r} is not a positive integer.")
        if self.kind == "data" and len(version) > _DATA_VERSION:
            refuse(f"Argument 'version' exceeded maximum length of {_DATA_VERSION} for DatasetId")
        at = self.deleted.get((name, version))
        if at is not None:
            message = _DELETED.format(self.kind, name, version, f"{at:%m/%d/%Y %H:%M:%S}")
            raise ServiceError(self.deleted_status, "UserError", message)

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
