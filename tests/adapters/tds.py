"""A server that speaks as much of TDS as it takes to have Microsoft's driver make its errors.

What it sends is described in [MS-TDS], https://learn.microsoft.com/openspecs/windows_protocols/ms-tds
"""

import datetime
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.services import ODBC

_REPLY, _LOGIN, _PRELOGIN = 0x04, 0x10, 0x12
_ENCRYPT_ON, _NO_ENCRYPTION = 1, 2
_SEVERITY = 16
_LAST = 1
_DONE_WITH_ERROR = struct.pack("<BHHQ", 0xFD, 2, 0, 0)


def driver() -> Path:
    """Find Microsoft's driver as PyPI's mssql-python-odbc carries it."""
    package = pytest.importorskip("mssql_python_odbc")
    folder = Path(package.__file__).parent / "libs/linux/debian_ubuntu/x86_64/lib"
    return next(folder.glob("libmsodbcsql-18*"))


def connection_string(port: int, encrypt: str = "no") -> str:
    """Return a connection string for a server of this machine, or skip without the driver."""
    ODBC.require()
    return (
        f"Driver={driver()};Server=tcp:127.0.0.1,{port};Database=d;UID=u;PWD=secret;"
        f"Encrypt={encrypt};ConnectRetryCount=0"
    )


@dataclass(frozen=True)
class ServerError:
    """An error that the server answers a login with."""

    number: int
    text: str = "something failed"


@contextmanager
def tds_server(error: ServerError | None = None, certificate: Path | None = None) -> Iterator[int]:
    """Serve connections that end in an error; yields the port.

    Parameters
    ----------
    error
        What it answers a login with; None hangs up.
    certificate
        PEM file of a certificate and its key: the server asks for TLS and gives up after it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=_accept, args=(listener, error, certificate), daemon=True)
        thread.start()
        port: int = listener.getsockname()[1]
        yield port
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def self_signed(folder: Path) -> Path:
    """Make a certificate that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin.replace(year=2120))
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def _accept(listener: socket.socket, error: ServerError | None, certificate: Path | None) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            connection.settimeout(10)
            _serve(connection, error, certificate)


def _serve(connection: socket.socket, error: ServerError | None, certificate: Path | None) -> None:
    while message := _receive(connection):
        kind, _ = message
        if kind == _PRELOGIN:
            _send(connection, _prelogin(_ENCRYPT_ON if certificate else _NO_ENCRYPTION))
            if certificate:
                _shake_hands(connection, certificate)
                return
        elif kind == _LOGIN:
            if error is None:
                return
            _send(connection, _failure(error))


def _shake_hands(connection: socket.socket, certificate: Path) -> None:
    """Carry a TLS handshake in packets of TDS until the client gives up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    while message := _receive(connection):
        incoming.write(message[1])
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            return
        if data := outgoing.read():
            _send(connection, data, _PRELOGIN)


def _receive(connection: socket.socket) -> tuple[int, bytes] | None:
    body = b""
    while header := _exactly(connection, 8):
        kind, status, length = struct.unpack(">BBH4x", header)
        body += _exactly(connection, length - 8)
        if status & _LAST:
            return kind, body
    return None


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return data


def _send(connection: socket.socket, body: bytes, kind: int = _REPLY) -> None:
    connection.sendall(struct.pack(">BBHHBB", kind, _LAST, len(body) + 8, 0, 1, 0) + body)


def _prelogin(encryption: int) -> bytes:
    values = [(0, b"\x10\x00\x10\x00\x00\x00"), (1, bytes([encryption]))]
    head, body = b"", b""
    for token, value in values:
        head += struct.pack(">BHH", token, 5 * len(values) + 1 + len(body), len(value))
        body += value
    return head + b"\xff" + body


def _failure(error: ServerError) -> bytes:
    text, server = (_sized(one, size) for one, size in ((error.text, "<H"), ("server", "B")))
    body = struct.pack("<IBB", error.number, 1, _SEVERITY)
    body += text + server + _sized("", "B") + struct.pack("<I", 1)
    return struct.pack("<BH", 0xAA, len(body)) + body + _DONE_WITH_ERROR


def _sized(text: str, size: str) -> bytes:
    return struct.pack(size, len(text.encode("utf-16-le")) // 2) + text.encode("utf-16-le")
