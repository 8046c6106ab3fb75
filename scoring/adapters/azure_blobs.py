"""Blobs in a container of Azure Blob Storage."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import ContainerClient, ExponentialRetry

from scoring.errors import (
    Conflict,
    Misconfigured,
    NotFound,
    ScoringError,
    StorageUnusable,
    Transient,
)
from scoring.ports import BlobInfo
from scoring.storage import (
    DRAFT,
    check_blob_name,
    check_blob_prefix,
    draft_of,
    is_blob_name,
    remove_abandoned,
    storage_errors,
)

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

_CHUNK = 4 * 1024 * 1024
"""Bytes of one answer: with all the downloads, what is in memory of files at most by a few."""

_CHUNKS = 4
"""Chunks of one blob on their way at a time."""

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a connection: in Azure's network it is there in milliseconds, or not at all.

The SDK's own is 20 s.
"""

READ_TIMEOUT = 15.0
"""Seconds of an attempt without any byte of an answer, which takes milliseconds, seldom seconds.

The SDK's own is 60 s. But a segment is written while its partition's row is locked: an operation
that never gets an answer must end, and let others try.
"""

RETRIES = 3
"""Attempts after the first one: with their pauses, 2, 4 and 8 s, a second more or less each, an
operation without answer gives up after some 75 s."""

_CREATIONS = 2
"""Times that one write creates the container, which somebody may delete again meanwhile."""

_CONDITION_FAILED = 412
_ERROR = 400
"""Statuses below say of an error that an answer came and was damaged on its way."""

_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_DENIED = frozenset({401, 403})

# Codes: https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes.
_NO_CONTAINER = "ContainerNotFound"
_CONTAINER_STANDS = "ContainerAlreadyExists"
_IMMUTABLE = frozenset(
    {
        "BlobImmutableDueToLegalHold",
        "BlobImmutableDueToPolicy",
        "ContainerHasLegalHold",
        "ContainerImmutabilityPolicyLocked",
    }
)
_HELD = (
    "blob {name!r} must be neither overwritten nor deleted, because of an immutability policy or a"
    " legal hold: remove it from the container {container!r}, or name another container"
)
_CAUSES: dict[str, tuple[type[ScoringError], str]] = {
    "ContainerBeingDeleted": (
        Transient,
        "the container {container!r} is being deleted, which may take minutes: once that has ended,"
        " the next write creates it again",
    ),
    "ContainerDisabled": (
        StorageUnusable,
        "the container {container!r} was disabled by an administrator of the storage account: have"
        " it enabled, or name another container",
    ),
    "AccountBeingCreated": (Transient, "the storage account is still being created"),
    "AccountIsDisabled": (
        StorageUnusable,
        "the storage account is disabled: see to its subscription, which may have ended",
    ),
    # https://learn.microsoft.com/azure/storage/blobs/archive-rehydrate-overview: such a blob is
    # offline, and comes back within 15 hours.
    "BlobArchived": (
        StorageUnusable,
        "blob {name!r} is in the archive tier, where it can be neither read nor overwritten: move"
        " it to an online tier (`az storage blob set-tier --tier Hot`, which takes hours), and"
        " exempt the container {container!r} from the rule that archives",
    ),
    "BlobBeingRehydrated": (
        Transient,
        "blob {name!r} is on its way out of the archive tier, which takes up to 15 hours: try again"
        " then",
    ),
    "LeaseIdMissing": (
        StorageUnusable,
        "somebody holds a lease of blob {name!r}, so that nobody else can change it: break it"
        " (`az storage blob lease break`)",
    ),
    **dict.fromkeys(_IMMUTABLE, (StorageUnusable, _HELD)),
}
"""What error codes mean that a status does not tell apart, and the way out."""

_DIRECTORY_STAYS = frozenset({"DirectoryIsNotEmpty", "OperationNotSupportedOnDirectory"})
"""Answers to deleting a directory: the Blob API deletes empty ones only, if any.

https://github.com/Azure/azure-cli/issues/20884,
https://github.com/Azure/azure-sdk-for-net/issues/39065.
"""


class AzureBlobs:
    """Implements `ports.Blobs` on one container, which a write creates if it is not there.

    Reads create nothing: in a container that is not there, there is no blob.

    On accounts with a hierarchical namespace the service lists directories as empty blobs
    (https://learn.microsoft.com/azure/storage/blobs/data-lake-storage-known-issues); tools make
    the like on other accounts. They are not taken for blobs.

    The SDK retries what is transient by itself, before it gives up as `Transient`: after some 15 s
    where the account refuses, 35 s where it cannot be reached, and 75 s where it takes a request
    and never answers. It asks for the second and further chunks of a blob by the first one's ETag:
    what is read is of one moment, or else `Transient`, if the blob was written meanwhile.
    """

    def __init__(self, container: ContainerClient) -> None:
        self._container = container

    @classmethod
    def connect(cls, account: str, container: str) -> "AzureBlobs":
        """Return the blobs of a container; nothing is asked of the account yet.

        Parameters
        ----------
        account
            A connection string, ``UseDevelopmentStorage=true``, or the account's URL: then signed
            in by the environment's identity, the managed identity in Azure.

        Raises
        ------
        Misconfigured
            The text is neither.
        """
        if account.startswith(("https://", "http://")):
            from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - heavy

            credential = DefaultAzureCredential()
            client = ContainerClient(account, container, credential=credential, **_options())
            return cls(client)
        try:
            text = spelled_out(account)
            client = ContainerClient.from_connection_string(text, container, **_options())
        except ValueError as error:
            problem = "the storage account is neither a URL nor a connection string"
            raise Misconfigured([problem]) from error
        return cls(client)

    def make_container(self) -> None:
        """Create the container unless it is there, for others than this class.

        It is looked for by a list, which a signature of a container allows: no signature of one
        allows to create it, or to read its properties.
        """
        with self._translated(self._container.container_name):
            try:
                next(self._container.list_blobs(results_per_page=1), None)
            except ResourceNotFoundError as error:
                if _code(error) != _NO_CONTAINER:
                    raise
                self._create_container()

    def read(self, name: str) -> tuple[bytes, BlobInfo]:
        """Give a blob's whole content; raise `NotFound` where there is none."""
        check_blob_name(name)
        with self._translated(name):
            stream = self._container.download_blob(name, max_concurrency=_CHUNKS)
            if _is_directory(stream.properties):
                message = f"there is no blob {name!r}: it is a directory"
                raise NotFound(message)
            data, info = stream.readall(), _info(stream.properties)
            if not data:
                self._confirm_empty(info)
            return data, info

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Turn what the SDK raises into this project's errors, naming the blob."""
        try:
            yield
        except AzureError as error:
            raise _translate(error, name, self._container.container_name) from error

    def _confirm_empty(self, info: BlobInfo) -> None:
        """Raise `Transient` if a blob that was read as empty is not.

        The SDK asks for an empty blob twice, and takes the tag of the second answer for what the
        first one said.
        """
        found = _info(self._container.get_blob_client(info.name).get_blob_properties())
        if found != info:
            message = f"blob {info.name!r} was written while it was read"
            raise Transient(message)

    def write(self, name: str, data: bytes | Path) -> BlobInfo:
        """Put a blob in place at once and durably, over what stood there."""
        check_blob_name(name)
        with self._translated(name):
            return self._put(name, data, overwrite=True)

    def create(self, name: str, data: bytes | Path) -> BlobInfo:
        """Put a blob where none stands; raise `Conflict` where another one does."""
        check_blob_name(name)
        with self._translated(name):
            try:
                return self._put(name, data, overwrite=False)
            except HttpResponseError as error:
                stands = isinstance(error, ResourceExistsError) and _code(error) not in _CAUSES
                # One that must not be overwritten stands there, too: perhaps it is this one.
                if not stands and _code(error) not in _IMMUTABLE:
                    raise
                return self._written_before(name, data, error)

    def replace(self, name: str, data: bytes | Path, etag: str) -> BlobInfo:
        """Put a blob over the one with this tag; raise `Conflict` where another one stands."""
        check_blob_name(name)
        condition = {"etag": f'"{etag}"', "match_condition": MatchConditions.IfNotModified}
        with self._translated(name):
            try:
                return self._upload(name, data, overwrite=True, **condition)
            except (ResourceModifiedError, ResourceNotFoundError) as error:
                return self._written_before(name, data, error)

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Give the blobs whose names begin with `prefix`, in the order of their names."""
        return (_info(blob) for blob in self._listed(prefix) if not _is_directory(blob))

    def delete(self, prefix: str) -> None:
        """Remove the blobs whose names begin with `prefix`; none is no error.

        Their snapshots go with them: a blob that has any is not deleted otherwise.
        """
        listed = [*self._listed(prefix)]
        for blob in listed:
            if not _is_directory(blob):
                self._delete(blob.name, delete_snapshots="include")
        # Each after what is in it.
        for blob in reversed(listed):
            if _is_directory(blob):
                self._delete_directory(blob.name)

    def fetch(self, prefix: str, folder: Path) -> None:
        """Place the blobs below `prefix` as files into `folder`, several at a time."""
        for draft in folder.glob(f"{DRAFT}*"):
            remove_abandoned(draft)
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            list(pool.map(lambda blob: self._download(blob, prefix, folder), self.list(prefix)))

    def _listed(self, prefix: str) -> "Iterator[BlobProperties]":
        """Give blobs and directories; those of names that are none of ours are left alone."""
        check_blob_prefix(prefix)
        with self._translated(prefix):
            try:
                found = self._container.list_blobs(prefix, include=["metadata"])
                yield from (blob for blob in found if is_blob_name(blob.name))
            except ResourceNotFoundError as error:
                if _code(error) != _NO_CONTAINER:
                    raise

    def _delete(self, name: str, **options: Any) -> None:
        with self._translated(name):
            try:
                self._container.delete_blob(name, **options)
            except ResourceNotFoundError:
                return

    def _delete_directory(self, name: str) -> None:
        """Delete a directory if it is empty; one that stays is not listed either."""
        with self._translated(name):
            try:
                self._container.delete_blob(name)
            except ResourceNotFoundError:
                return
            except HttpResponseError as error:
                if _code(error) not in _DIRECTORY_STAYS:
                    raise

    def _download(self, blob: BlobInfo, prefix: str, folder: Path) -> None:
        target = folder / blob.name.removeprefix(prefix)
        with self._translated(blob.name), storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with draft_of(target) as draft:
                with draft.open("wb") as file:
                    stream = self._container.download_blob(blob.name, max_concurrency=_CHUNKS)
                    stream.readinto(file)
                draft.replace(target)

    def _put(self, name: str, data: bytes | Path, *, overwrite: bool) -> BlobInfo:
        """Upload a blob, and create the container where there is none."""
        for _ in range(_CREATIONS):
            try:
                return self._upload(name, data, overwrite=overwrite)
            except ResourceNotFoundError as error:
                if _code(error) != _NO_CONTAINER:
                    raise
            self._create_container()
        return self._upload(name, data, overwrite=overwrite)

    def _create_container(self) -> None:
        """Create the container; no error if somebody else just did."""
        container = self._container.container_name
        try:
            self._container.create_container()
        except HttpResponseError as error:
            if _code(error) == _CONTAINER_STANDS:
                return
            if error.status_code in _DENIED and _code(error) not in _CAUSES:
                problem = (
                    f"the storage account has no container {container!r}, and the identity or"
                    f" signature must not create it: create it, or allow that ({_text(error)})"
                )
                raise Misconfigured([problem]) from error
            raise

    def _upload(self, name: str, data: bytes | Path, **condition: Any) -> BlobInfo:
        blob = self._container.get_blob_client(name)
        with _content(data) as (file, size):
            written = blob.upload_blob(file, length=size, max_concurrency=_CHUNKS, **condition)
        return BlobInfo(name, str(written["etag"]).strip('"'), size)

    def _written_before(self, name: str, data: bytes | Path, error: AzureError) -> BlobInfo:
        """Give the blob that stood in the way, if it is this one: the answer to it was lost."""
        try:
            stream = self._container.download_blob(name)
            with _content(data) as (file, size):
                if stream.size == size and all(c == file.read(len(c)) for c in stream.chunks()):
                    return _info(stream.properties)
        except ResourceNotFoundError:
            pass
        message = f"blob {name!r} was changed by another writer"
        raise Conflict(message) from error


def spelled_out(account: str) -> str:
    """Give an account as each of the SDKs takes it: they do not know Azurite's short name."""
    return _AZURITE if account == DEVELOPMENT else account


def _options() -> dict[str, Any]:
    # The SDK's own first pause is 15 s, which is longer than a function should hold a lock.
    retries = ExponentialRetry(0, 2, retry_total=RETRIES, random_jitter_range=1)
    sizes = {"max_single_get_size": _CHUNK, "max_chunk_get_size": _CHUNK}
    timeouts = {"connection_timeout": CONNECT_TIMEOUT, "read_timeout": READ_TIMEOUT}
    return {"retry_policy": retries, **sizes, **timeouts}


@contextmanager
def _content(data: bytes | Path) -> Iterator[tuple[BinaryIO, int]]:
    """Give what is to be written as a file, with its size."""
    if isinstance(data, bytes):
        yield io.BytesIO(data), len(data)
        return
    with storage_errors(data, "read"):
        file = data.open("rb")
    with file:
        yield file, data.stat().st_size


def _info(properties: "BlobProperties") -> BlobInfo:
    return BlobInfo(properties.name, properties.etag.strip('"'), properties.size)


def _is_directory(blob: "BlobProperties") -> bool:
    """Whether what the service lists as an empty blob is a directory, or stands for one."""
    metadata = blob.metadata or {}
    return any(
        name.lower() == "hdi_isfolder" and value.lower() == "true"
        for name, value in metadata.items()
    )


def _code(error: AzureError) -> str:
    """Return the service's code of an error; empty if it gave none."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def _text(error: AzureError) -> str:
    return str(error.message).strip().partition("\n")[0]


def _translate(error: AzureError, name: str, container: str) -> ScoringError:
    if (code := _code(error)) in _CAUSES:
        kind, text = _CAUSES[code]
        return kind(text.format(name=name, container=container))
    if isinstance(error, ResourceNotFoundError):
        where = f": there is no container {container!r}" if code == _NO_CONTAINER else ""
        return NotFound(f"there is no blob {name!r}{where}")
    text = _text(error)
    status = error.status_code if isinstance(error, HttpResponseError) else None
    if isinstance(error, ClientAuthenticationError) or status in _DENIED:
        return Misconfigured([f"the storage account denies access to {name!r}: {text}"])
    if status == _CONDITION_FAILED:
        return Transient(f"blob {name!r} was written while it was read")
    if status is None or status < _ERROR or status in _BUSY:
        return Transient(f"the storage account does not answer for {name!r}: {text}")
    return ScoringError(f"the storage account refused {name!r}: {text}")
