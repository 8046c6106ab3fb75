"""What is published, as the engine needs to know it: kept in Blob, read with every submit."""

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, TypeVar

from scoring.errors import Misconfigured, NotFound
from scoring.ports import Blobs

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_BLOB = "azure-ml/publication.json"

DATASTORE = "scoring_blobs"


@dataclass(frozen=True, slots=True)
class Publication:
    """The pipeline that runs are submitted to.

    Attributes
    ----------
    pipeline, cluster
        ARM ids, the pipeline component's with its version.
    by_identity
        Jobs reach the blobs as their cluster's identity: the datastore has no key.
    """

    pipeline: str
    cluster: str
    by_identity: bool = False

    def write(self, blobs: Blobs) -> None:
        """Make it the one that counts."""
        blobs.write(_BLOB, json.dumps(asdict(self), indent=2).encode())

    @classmethod
    def read(cls, blobs: Blobs) -> "Publication":
        """Give what was published last.

        Raises
        ------
        Misconfigured
            Nothing was.
        """
        try:
            data, _ = blobs.read(_BLOB)
        except NotFound as error:
            problem = "no pipeline is published: `azure-ml publish` does it"
            raise Misconfigured([problem]) from error
        try:
            return from_json(cls, data)
        except ValueError as error:
            problem = f"the blob {_BLOB} is damaged ({error}): `azure-ml publish` writes it again"
            raise Misconfigured([problem]) from error


def from_json(cls: type[T], data: bytes) -> T:
    """Return a dataclass that was kept as a JSON object; what a later version added is left out.

    Raises
    ------
    ValueError
        It is not JSON, not an object, or lacks a field.
    """
    try:
        facts = json.loads(data)
        known = (field.name for field in fields(cls))
        return cls(**{name: facts[name] for name in known if name in facts})
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def datastore_path(prefix: str) -> str:
    """Give the URI by which jobs know blobs."""
    return f"azureml://datastores/{DATASTORE}/paths/{prefix}"
