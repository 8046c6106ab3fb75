"""A storage account over HTTP, for the real SDK: what Azurite does not do.

Containers that are being deleted or are disabled, accounts with a hierarchical namespace, and
whatever error code a test asks for. Codes and statuses:
https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ACCOUNT = "fleet"
_ABSENT = (404, "ContainerNotFound")


@dataclass(slots=True)
class Blob:
    """One blob, or one directory of a hierarchical namespace."""

    data: bytes
    etag: str
    is_directory: bool = False
    snapshots: int = 0


@dataclass(slots=True)
class Account:
    """One account with one container.

    Attributes
    ----------
    blobs
        By name; None while there is no container.
    refusals
        Status and code for requests whose method and path match a pattern, instead of an answer.
    refused_creations
        Status and code of the next creations of the container, one each.
    hierarchical
        A blob's name makes directories, which are listed and are deleted only when empty.
    page
        Blobs in one page of a list.
    truncate
        Cut the body of each answer to this many bytes, though the headers promise all of it.
    clients
        What is to be closed before the account is.
    """

    blobs: dict[str, Blob] | None = None
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    refused_creations: list[tuple[int, str]] = field(default_factory=list)
    hierarchical: bool = False
    page: int = 5000
    truncate: int | None = None
    retry_after: str = ""
    requests: list[str] = field(default_factory=list)
    connection: str = ""
    clients: ExitStack = field(default_factory=ExitStack)
    before: Callable[[str], None] = lambda _: None
    _tags: int = 0

    def put(self, name: str, data: bytes = b"", **facts: object) -> Blob:
        """Store a blob, and the directories above it."""
        assert self.blobs is not None
        if self.hierarchical:
            for end in (match.start() for match in re.finditer("/", name)):
                self.blobs.setdefault(name[:end], Blob(b"", self._tag(), is_directory=True))
        self.blobs[name] = Blob(data, self._tag(), **facts)  # type: ignore[arg-type]
        return self.blobs[name]

    def _tag(self) -> str:
        self._tags += 1
        return f'"0x{self._tags:X}"'


@contextmanager
def blob_account(**facts: object) -> Iterator[Account]:
    """Serve an account on the loopback; `connection` is its connection string."""
    account = Account(**facts)  # type: ignore[arg-type]

    class Handler(_Handler):
        pass

    Handler.account = account
    with _Server(("127.0.0.1", 0), Handler) as server:
        account.connection = (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey=a2V5;"
            f"BlobEndpoint=http://127.0.0.1:{server.server_address[1]}/{ACCOUNT}"
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with account.clients:
                yield account
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    account: Account

    def do_GET(self) -> None:
        if self._refused():
            return
        if self._query.get("comp") == "list":
            self._list()
        elif (blob := self._blob()) is not None:
            self._send_blob(blob)

    def do_HEAD(self) -> None:
        if not self._refused() and (blob := self._blob()) is not None:
            self._answer(200, b"", **self._facts(blob), **{"Content-Length": str(len(blob.data))})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._refused():
            return
        if self._query.get("restype") == "container":
            self._create()
            return
        if self.account.blobs is None:
            self._refuse(*_ABSENT)
            return
        old = self.account.blobs.get(self._name)
        if old and self.headers.get("If-None-Match") == "*":
            self._refuse(409, "BlobAlreadyExists")
        elif self.headers.get("If-Match") not in {None, old and old.etag}:
            self._refuse(412, "ConditionNotMet")
        else:
            blob = self.account.put(self._name, body)
            self._answer(201, b"", ETag=blob.etag, **{"Last-Modified": formatdate(usegmt=True)})

    def do_DELETE(self) -> None:
        if self._refused() or (blob := self._blob()) is None:
            return
        blobs = self.account.blobs or {}
        if blob.is_directory and any(name.startswith(f"{self._name}/") for name in blobs):
            self._refuse(409, "DirectoryIsNotEmpty")
        elif blob.is_directory and "x-ms-delete-snapshots" in self.headers:
            self._refuse(400, "OperationNotSupportedOnDirectory")
        elif blob.snapshots and self.headers.get("x-ms-delete-snapshots") != "include":
            self._refuse(409, "SnapshotsPresent")
        else:
            del blobs[self._name]
            self._answer(202, b"")

    def _create(self) -> None:
        if self.account.refused_creations:
            self._refuse(*self.account.refused_creations.pop(0))
        elif self.account.blobs is not None:
            self._refuse(409, "ContainerAlreadyExists")
        else:
            self.account.blobs = {}
            self._answer(201, b"")

    def _list(self) -> None:
        if self.account.blobs is None:
            self._refuse(*_ABSENT)
            return
        prefix, marker = self._query.get("prefix", ""), self._query.get("marker", "")
        names = sorted(n for n in self.account.blobs if n.startswith(prefix) and n >= marker)
        shown, rest = names[: self.account.page], names[self.account.page :]
        blobs = "".join(self._listed(name, self.account.blobs[name]) for name in shown)
        following = escape(rest[0]) if rest else ""
        text = (
            '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="http://x/"'
            f' ContainerName="c"><Prefix>{escape(prefix)}</Prefix><Blobs>{blobs}</Blobs>'
            f"<NextMarker>{following}</NextMarker></EnumerationResults>"
        )
        self._answer(200, text.encode(), **{"Content-Type": "application/xml"})

    def _listed(self, name: str, blob: Blob) -> str:
        is_told = blob.is_directory and "metadata" in self._query.get("include", "")
        metadata = "<Metadata><hdi_isfolder>true</hdi_isfolder></Metadata>" if is_told else ""
        return (
            f"<Blob><Name>{escape(name)}</Name><Properties><Etag>{escape(blob.etag)}</Etag>"
            f"<Last-Modified>{formatdate(usegmt=True)}</Last-Modified>"
            f"<Content-Length>{len(blob.data)}</Content-Length><BlobType>BlockBlob</BlobType>"
            f"</Properties>{metadata}</Blob>"
        )

    def _send_blob(self, blob: Blob) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("x-ms-range", ""))
        if not match:
            self._answer(200, blob.data, **self._facts(blob))
        elif not blob.data:
            self._refuse(416, "InvalidRange")
        else:
            first, last = int(match[1]), min(int(match[2]), len(blob.data) - 1)
            where = {"Content-Range": f"bytes {first}-{last}/{len(blob.data)}"}
            self._answer(206, blob.data[first : last + 1], **self._facts(blob), **where)

    def _facts(self, blob: Blob) -> dict[str, str]:
        facts = {"ETag": blob.etag, "Last-Modified": formatdate(usegmt=True)}
        facts["x-ms-blob-type"] = "BlockBlob"
        return facts | ({"x-ms-meta-hdi_isfolder": "true"} if blob.is_directory else {})

    @property
    def _query(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}

    @property
    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).split("/", 3)[3]

    def _blob(self) -> Blob | None:
        """Find the blob that is asked for; refuse where there is none."""
        if self.account.blobs is None:
            self._refuse(*_ABSENT)
            return None
        if self._name not in self.account.blobs:
            self._refuse(404, "BlobNotFound")
            return None
        return self.account.blobs[self._name]

    def _refused(self) -> bool:
        asked = f"{self.command} {unquote(self.path)}"
        self.account.requests.append(asked)
        self.account.before(asked)
        for pattern, refusal in self.account.refusals.items():
            if re.search(pattern, asked):
                self._refuse(*refusal)
                return True
        return False

    def _refuse(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>It is {code}.\nRequestId:1</Message></Error>"
        body = b"" if self.command == "HEAD" else text.encode()
        after = {"Retry-After": self.account.retry_after} if self.account.retry_after else {}
        self._answer(
            status, body, **{"x-ms-error-code": code, "Content-Type": "application/xml"}, **after
        )

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.account.truncate is None or len(body) <= self.account.truncate:
            self.wfile.write(body)
            return
        self.wfile.write(body[: self.account.truncate])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""
