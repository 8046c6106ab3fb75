"""Blobs in a container of Azure Blob Storage."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.storage.blob import ContainerClient, ExponentialRetry

from scoring.errors import Misconfigured, NotFound, ScoringError, Transient
from scoring.ports import BlobInfo

if TYPE_CHECKING:
    from azure.storage.blob import BlobProperties

DEVELOPMENT = "UseDevelopmentStorage=true"
"""Stands for Azurite on its usual port, as in the settings of Azure Functions."""

_AZURITE = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
    # The key that every Azurite has: public, and no secret.
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
    "BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1"
)
_DOWNLOADS = 8
"""Blobs fetched at a time."""

_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_DENIED = frozenset({401, 403})


class AzureBlobs:
    """Implements `ports.Blobs` on one container, which is made if it is not there.

    The SDK retries what is transient by itself, for some 15 s, before it gives up.
    """

    def __init__(self, container: ContainerClient) -> None:
        self._container = container
        with _translated(container.container_name):
            try:
                container.create_container()
            except ResourceExistsError:
                return

    @classmethod
    def connect(cls, account: str, container: str) -> "AzureBlobs":
        """Connect to a storage account.

        Parameters
        ----------
        account
            A connection string, ``UseDevelopmentStorage=true``, or the account's URL: then signed
            in by the environment's identity, the managed identity in Azure.

        Raises
        ------
        Misconfigured
            The text is neither, or access is denied.
        Transient
            The account is not reachable.
        """
        if account.startswith(("https://", "http://")):
            from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - heavy

            credential = DefaultAzureCredential()
            client = ContainerClient(account, container, credential=credential, **_options())
            return cls(client)
        text = _AZURITE if account == DEVELOPMENT else account
        try:
            client = ContainerClient.from_connection_string(text, container, **_options())
        except ValueError as error:
            problem = "the storage account is neither a URL nor a connection string"
            raise Misconfigured([problem]) from error
        return cls(client)

    def read(self, name: str) -> tuple[bytes, BlobInfo]:
        """Give a blob's whole content; raise `NotFound` where there is none."""
        with _translated(name):
            stream = self._container.download_blob(name)
            return stream.readall(), _info(stream.properties)

    def write(self, name: str, data: bytes) -> BlobInfo:
        """Put a blob in place at once and durably, over what stood there."""
        with _translated(name):
            blob = self._container.get_blob_client(name)
            written = blob.upload_blob(data, overwrite=True)
        return BlobInfo(name, str(written["etag"]).strip('"'), len(data))

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Give the blobs whose names begin with `prefix`, in the order of their names."""
        with _translated(prefix):
            for blob in self._container.list_blobs(name_starts_with=prefix):
                yield _info(blob)

    def delete(self, prefix: str) -> None:
        """Remove the blobs whose names begin with `prefix`; none is no error."""
        for blob in [*self.list(prefix)]:
            with _translated(blob.name):
                try:
                    self._container.delete_blob(blob.name)
                except ResourceNotFoundError:
                    continue

    def fetch(self, prefix: str, folder: Path) -> None:
        """Place the blobs below `prefix` as files into `folder`, several at a time."""
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            list(pool.map(lambda blob: self._download(blob, prefix, folder), self.list(prefix)))

    def _download(self, blob: BlobInfo, prefix: str, folder: Path) -> None:
        target = folder / blob.name.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _translated(blob.name), target.open("wb") as file:
            self._container.download_blob(blob.name).readinto(file)


def _options() -> dict[str, Any]:
    # The SDK's own first pause is 15 s, which is longer than a function should hold a lock.
    return {"retry_policy": ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=3)}


def _info(properties: "BlobProperties") -> BlobInfo:
    return BlobInfo(properties.name, properties.etag.strip('"'), properties.size)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn what the SDK raises into this project's errors, naming the blob."""
    try:
        yield
    except AzureError as error:
        raise _translate(error, name) from error


def _translate(error: AzureError, name: str) -> ScoringError:
    text = str(error.message).strip().partition("\n")[0]
    if isinstance(error, ResourceNotFoundError):
        return NotFound(f"there is no blob {name!r}")
    status = error.status_code if isinstance(error, HttpResponseError) else None
    if isinstance(error, ClientAuthenticationError) or status in _DENIED:
        return Misconfigured([f"the storage account denies access to {name!r}: {text}"])
    if status is None or status in _BUSY:
        return Transient(f"the storage account does not answer for {name!r}: {text}")
    return ScoringError(f"the storage account refused {name!r}: {text}")
