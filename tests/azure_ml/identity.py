"""Certificates of the loopback, and the tokens of a managed identity."""

import atexit
import datetime
import ipaddress
import shutil
import ssl
import tempfile
import time
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.azure_ml.answers import Answer, ServiceError

ARM_HOST = "management.azure.com"
API_HOST = "westeurope.api.azureml.ms"
BLOB_SUFFIX = ".blob.core.windows.net"
ARM = f"https://{ARM_HOST}"
AZURE_ML = "https://ml.azure.com"
TENANT = "72f988bf-0000-4000-8000-2d7cd011db47"

_NAMES = (ARM_HOST, "*.api.azureml.ms", f"*{BLOB_SUFFIX}", "localhost")


@cache
def authority() -> "Authority":
    """Make the process's certificate authority, once."""
    return Authority()


class Authority:
    """A certificate authority of its own, with one certificate for every name of the service."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="scoring-azure-ml-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self.bundle = folder / "authority.pem"
        root, server = (
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP256R1()),
        )
        issuer = _name("scoring tests")
        root_certificate = (
            _certificate(issuer, issuer, root)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(root.public_key()), critical=False
            )
            .sign(root, hashes.SHA256())
        )
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in _NAMES]
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        certificate = (
            _certificate(_name("loopback"), issuer, server)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()),
                critical=False,
            )
            .sign(root, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        self.bundle.write_bytes(root_certificate.public_bytes(pem))
        chain = folder / "server.pem"
        key = server.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain.write_bytes(certificate.public_bytes(pem) + key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(chain)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + 7 * day)
    )


def _key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


class Tokens:
    """Issues the identity's tokens as App Service does, and checks them as the service does.

    Attributes
    ----------
    lifetime, begins_in
        Seconds until a token that is issued from now on ends (negative: it has ended) and begins.
    audience
        Written into tokens instead of the one that was asked for.
    denied
        The identity endpoint knows no identity.
    """

    def __init__(self) -> None:
        self.secret = uuid.uuid4().hex
        self.lifetime = 24 * 3600.0
        self.begins_in = 0.0
        self.audience: str | None = None
        self.denied = False
        self.issued = 0
        self._key = uuid.uuid4().hex + uuid.uuid4().hex
        self._revoked: set[str] = set()
        self._ids: list[str] = []

    def issue(self, resource: str) -> str:
        """Make a token for an audience."""
        now = time.time()
        self.issued += 1
        self._ids.append(uuid.uuid4().hex)
        claims: dict[str, Any] = {
            "aud": self.audience or resource,
            "iss": f"https://sts.windows.net/{TENANT}/",
            "iat": int(now),
            "nbf": int(now + self.begins_in),
            "exp": int(now + self.lifetime),
            "tid": TENANT,
            "oid": "00000000-0000-4000-8000-0000000000aa",
            "uti": self._ids[-1],
        }
        return jwt.encode(claims, self._key, algorithm="HS256")

    def revoke(self) -> None:
        """Make the service refuse every token that was issued so far."""
        self._revoked.update(self._ids)

    def endpoint(self, query: dict[str, str], headers: dict[str, str]) -> Answer:
        """Answer as App Service's identity endpoint does."""
        if headers.get("x-identity-header") != self.secret:
            return Answer(401, {"statusCode": 401, "message": "Unauthorized"})
        if self.denied or "resource" not in query:
            return Answer(400, {"statusCode": 400, "message": "No Managed Identity found"})
        resource = query["resource"]
        token = self.issue(resource)
        # What the client believes is what was promised, whatever the service thinks of it.
        promised = max(self.lifetime, 3600)
        return Answer(
            body={
                "access_token": token,
                "expires_on": str(int(time.time() + promised)),
                "resource": resource,
                "token_type": "Bearer",
                "client_id": "00000000-0000-4000-8000-0000000000bb",
            }
        )

    def check(self, headers: dict[str, str], *audiences: str) -> None:
        """Refuse a request whose bearer token is none, or not for one of `audiences`."""
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind != "Bearer":
            message = "Authentication failed. The 'Authorization' header is missing."
            raise ServiceError(401, "AuthenticationFailed", message)
        self.verify(token, *audiences)

    def verify(self, token: str, *audiences: str) -> None:
        """Refuse a token that is not ours, too early, too late, or for another audience."""
        try:
            claims = jwt.decode(
                token, self._key, algorithms=["HS256"], options={"verify_aud": False}
            )
        except jwt.ExpiredSignatureError as error:
            message = "The access token expiry UTC time is earlier than current UTC time."
            raise ServiceError(401, "ExpiredAuthenticationToken", message) from error
        except jwt.InvalidTokenError as error:
            message = f"The access token is invalid: {error}."
            raise ServiceError(401, "InvalidAuthenticationToken", message) from error
        if claims["uti"] in self._revoked:
            message = "The access token has been revoked."
            raise ServiceError(401, "InvalidAuthenticationToken", message)
        if claims["aud"].rstrip("/") not in audiences:
            message = (
                "The access token has been obtained for wrong audience or resource "
                f"'{claims['aud']}'. It should exactly match with one of the allowed audiences "
                + ",".join(f"'{audience}'" for audience in audiences)
            )
            raise ServiceError(401, "InvalidAuthenticationTokenAudience", message)
