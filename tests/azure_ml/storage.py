"""The workspace's storage account: Azurite, behind the names that the service has for it."""

import datetime
import http.client
import uuid
from urllib.parse import urlsplit

from azure.storage.blob import (
    BlobServiceClient,
    ContainerSasPermissions,
    ResourceTypes,
    generate_account_sas,
    generate_container_sas,
)

from tests.azure_ml.answers import Answer, ServiceError
from tests.azure_ml.identity import BLOB_SUFFIX

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date"})


class Storage:
    """One account; its hosts are tunnelled to where the connection string points."""

    def __init__(self, connection: str | None) -> None:
        self.connected = connection is not None
        fields = dict(part.split("=", 1) for part in (connection or "").split(";") if part)
        self.account = fields.get("AccountName", "fleetstorage")
        self.key = fields.get("AccountKey", "bm8gc3RvcmFnZQ==")
        self.container = "azureml-blobstore"
        self._endpoint = urlsplit(fields.get("BlobEndpoint", ""))
        self._connection = connection

    @property
    def host(self) -> str:
        """The account's host name in the cloud."""
        return self.account + BLOB_SUFFIX

    def new_container(self) -> str:
        """Make a container for one upload; gives its URL."""
        if self._connection is None:
            message = "The control plane was started without storage: nothing can be uploaded."
            raise ServiceError(400, "UserError", message)
        name = f"{uuid.uuid4().hex[:8]}-{uuid.uuid4()}"
        self._make(name)
        return f"https://{self.host}/{name}"

    def make_default(self) -> None:
        """Make the containers of the workspace's own datastores."""
        if self._connection is not None:
            self._make(self.container)
            self._make("azureml")

    def _make(self, container: str) -> None:
        with BlobServiceClient.from_connection_string(self._connection or "") as service:
            client = service.get_container_client(container)
            if not client.exists():
                client.create_container()

    def sas(self, container: str) -> str:
        """Sign a container for an hour."""
        now = datetime.datetime.now(datetime.UTC)
        return generate_container_sas(
            self.account,
            container,
            account_key=self.key,
            permission=ContainerSasPermissions.from_string("rwl"),
            start=now - datetime.timedelta(minutes=5),
            expiry=now + datetime.timedelta(hours=1),
        )

    def account_sas(self) -> str:
        """Sign the whole account for a minute."""
        now = datetime.datetime.now(datetime.UTC)
        return generate_account_sas(
            self.account,
            self.key,
            ResourceTypes(service=True, container=True, object=True),
            "rwdlacupt",
            expiry=now + datetime.timedelta(minutes=1),
        )

    def forward(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """Ask Azurite, as the host that the request named, so that signatures hold."""
        if not self.connected:
            return Answer(404, content=b"", headers={"x-ms-error-code": "ResourceNotFound"})
        connection = http.client.HTTPConnection(
            self._endpoint.hostname or "", self._endpoint.port, timeout=60
        )
        try:
            passed = {name: value for name, value in headers.items() if name not in _HOP - {"date"}}
            connection.request(method, target, body or None, passed)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
        if method == "HEAD":
            kept["Content-Length"] = answer.getheader("Content-Length", "0")
        return Answer(answer.status, content=content, headers=kept)
