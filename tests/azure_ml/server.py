"""Sockets: a proxy that is all hosts of the cloud itself, with TLS inside its tunnels."""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.azure_ml.answers import Answer, ServiceError
from tests.azure_ml.faults import Fault, Faults
from tests.azure_ml.identity import API_HOST, ARM_HOST, BLOB_SUFFIX, authority
from tests.azure_ml.workspace import Call

HOST = "127.0.0.1"


@dataclass(slots=True)
class Request:
    """A request that came in.

    Attributes
    ----------
    headers
        By their names in lower case.
    status
        What was answered; 0 where the connection was broken instead.
    at
        When it came, seconds of the monotonic clock.
    """

    method: str
    host: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]
    status: int = 0
    at: float = field(default_factory=time.monotonic)


class Server(ThreadingHTTPServer):
    """Listens on a free port of the loopback, for as long as it is open."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, handle: Callable[[Call], Answer], faults: Faults) -> None:
        super().__init__((HOST, 0), _Handler)
        self.handle = handle
        self.faults = faults
        self.requests: list[Request] = []
        self.failures: list[Exception] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for the host's name, which can take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.server_port}"

    def open(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and break the connections that are still there."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._lock:
            connections = [*self._open]
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""

    def entered(self, connection: socket.socket) -> None:
        """Note a connection."""
        with self._lock:
            self._open.add(connection)

    def left(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self._lock:
            self._open.discard(connection)


class _Broken(Exception):
    """The connection is to be broken."""


class _Handler(BaseHTTPRequestHandler):
    """One connection: plain for the identity endpoint, or a tunnel to a host of the cloud."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    host = ""

    def setup(self) -> None:
        super().setup()
        self.server.entered(self.connection)

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        self.server.left(self.connection)
        # Within a tunnel it is not the one that the server closes itself.
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""

    def do_CONNECT(self) -> None:
        """Be the host that is asked for, if it is one of ours."""
        host = self.path.partition(":")[0]
        known = host in {ARM_HOST, API_HOST} or host.endswith(BLOB_SUFFIX)
        fault = self.server.faults.next("CONNECT", host, "")
        if self.host or fault is not None or not known:
            request = Request("CONNECT", host, "", {}, None, {}, status=502)
            self.server.requests.append(request)
            self._send(Answer(502, content=b""))
            self.close_connection = True
            return
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        plain = self.connection
        self.server.left(plain)
        try:
            self.connection = authority().context.wrap_socket(plain, server_side=True)
        except OSError:
            self.close_connection = True
            return
        self.server.entered(self.connection)
        self.host = host
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_GET(self) -> None:
        """Handle any other method."""
        _acknowledge(self.connection)
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length) if length else b""
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        path = unquote(parts.path)
        body = _parsed(content, headers)
        request = Request(self.command, self.host, path, query, body, headers)
        self.server.requests.append(request)
        call = Call(self.command, self.host, path, query, headers, body, content, self.path)
        fault = self.server.faults.next(self.command, self.host, path)
        try:
            answer = self._handle(call, fault)
            request.status = answer.status
            self._send(answer)
        except _Broken:
            # Of a connection that ends without a word, urllib3 believes that it never reached the
            # proxy, and azure-core that nothing was sent. One that ends within an answer's first
            # line is what any broken connection is without a proxy: `ServiceResponseError`.
            with suppress(OSError):
                self.wfile.write(b"H")
            self.close_connection = True

    do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = do_GET

    def _handle(self, call: Call, fault: Fault | None) -> Answer:
        if fault is None:
            return self._ask(call)
        time.sleep(fault.delay)
        if fault.drop:
            raise _Broken
        if fault.status is not None:
            body = fault.body
            if body is None:
                error = {"code": "ServerBusy", "message": "Try again later."}
                body = {"error": error}
            return Answer(fault.status, body, dict(fault.headers), fault.content)
        answer = self._ask(call)
        if fault.lose_answer:
            raise _Broken
        return answer

    def _ask(self, call: Call) -> Answer:
        try:
            return self.server.handle(call)
        except Exception as error:  # noqa: BLE001 - raised when the plane ends
            self.server.failures.append(error)
            return ServiceError(500, "InternalServerError", repr(error)).answer()

    def _send(self, answer: Answer) -> None:
        payload = answer.payload()
        self.send_response(answer.status)
        headers = {"Content-Length": str(len(payload)), **answer.headers}
        if answer.body is not None:
            headers.setdefault("Content-Type", "application/json; charset=utf-8")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)


def _acknowledge(connection: socket.socket) -> None:
    """Say at once that the head came: behind a proxy urllib3 sends no body before, for 40 ms."""
    option = getattr(socket, "TCP_QUICKACK", None)
    if option is not None:
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, option, 1)


def _parsed(content: bytes, headers: dict[str, str]) -> Any:
    if not content or "json" not in headers.get("content-type", ""):
        return None
    try:
        return json.loads(content)
    except ValueError:
        return None
