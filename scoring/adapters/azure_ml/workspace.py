"""An Azure ML workspace: how to reach it, and what its errors mean here."""

import logging
import re
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)

from scoring.errors import Conflict, Misconfigured, NotFound, ScoringError, Transient

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.core.credentials import TokenCredential

_Answer = TypeVar("_Answer")

_FORM = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)"
    r"/providers/Microsoft\.MachineLearningServices/workspaces/(?P<name>[^/]+)",
    re.IGNORECASE,
)
_SIGNATURE = re.compile(r"\bsig=[^&\s'\")]+")
"""Of an address to upload to, which stands in the errors of connections."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
"""Colors, which the SDK puts into some of its errors."""

SETTING = "SCORING_AZURE_ML_WORKSPACE"
"""Names the workspace."""

_DELETED = re.compile(r"was deleted at .*cannot be recreated", re.IGNORECASE)
"""What the service says of a version that it will never take again.

As quoted in https://github.com/Azure/azureml-assets/pull/2919 and /3439: "Asset azureml://... was
deleted at 07/17/2023 16:50:49 +00:00, it cannot be recreated. Please try again with a different
version." The code is ``UserError``, as that of every refusal; no source tells the status.
"""

_ODD = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What the SDK, and who reads an answer here, raises of one in another form, such as a proxy's."""

_ERROR = 400
"""Statuses below say of an error that an answer came and was damaged on its way."""

_UNAUTHORIZED, _FORBIDDEN, _UNKNOWN = 401, 403, 404
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_LENGTH = 500
"""Characters of the service's own words that are kept."""


class Workspace:
    """A workspace, signed in to by the environment's identity when it is first needed.

    azure-core repeats by itself what is throttled (as ``Retry-After`` says), refused with a 5xx
    or lost on the way, `retries` times.

    Parameters
    ----------
    workspace_id
        ARM id, ``/subscriptions/<id>/resourceGroups/<name>/providers/...``.
    wait
        Seconds; the first repetition comes at once, the second after twice that, and so on.

    Attributes
    ----------
    options
        Repetitions and timeouts, as azure-core's clients take them.

    Raises
    ------
    Misconfigured
        The id is of another form.
    """

    def __init__(self, workspace_id: str, *, retries: int = 4, wait: float = 0.8) -> None:
        match = _FORM.fullmatch(workspace_id.rstrip("/"))
        if not match:
            problem = f"{workspace_id!r} is not the ARM id of an Azure ML workspace"
            raise Misconfigured([problem])
        self.id = match[0]
        self.name = match["name"]
        self._scope = match["subscription"], match["group"], match["name"]
        kinds = ("total", "connect", "read", "status")
        self.options: dict[str, Any] = {
            # All of them: each has a limit of its own, and the lowest holds.
            **{f"retry_{kind}": retries for kind in kinds},
            "retry_backoff_factor": wait,
            # Seconds. The defaults of 300 would use up the time that a function has.
            "connection_timeout": 10,
            "read_timeout": 60,
        }
        self._lock = Lock()
        self._client: MLClient | None = None
        self._credential: TokenCredential | None = None

    def arm_id(self, kind: str, name: str, version: str = "") -> str:
        """Give the ARM id of what the workspace holds, such as a component's version."""
        return f"{self.id}/{kind}/{name}" + (f"/versions/{version}" if version else "")

    def ask(self, what: str, question: Callable[["MLClient"], _Answer]) -> _Answer:
        """Ask the service, and translate its errors.

        An expired token, or one that the service's clock thinks is not valid yet, is replaced by
        a new one, once.

        Parameters
        ----------
        what
            Names in errors what was asked for, such as ``job r1``.

        Raises
        ------
        NotFound, Misconfigured, Transient, VersionDeleted, ScoringError
            It does not exist; access is denied; it may succeed later; it is a version that was
            deleted; the service refuses it, or answers in an unknown form.
        """
        try:
            return self._once(what, question)
        except _TokenRefused:
            self._sign_out()
        try:
            return self._once(what, question)
        except _TokenRefused as error:
            raise Transient(str(error)) from error

    def check(self) -> None:
        """See that the workspace exists: of what is not found, it may be the reason.

        Raises
        ------
        Misconfigured
            It does not, or it may not be read.
        """
        try:
            self.ask(f"workspace {self.name}", lambda ml: ml.workspaces.get(self.name))
        except NotFound as error:
            problem = f"{SETTING}: there is no workspace {self.id}"
            raise Misconfigured([problem]) from error

    def holds(self, arm_id: str) -> bool:
        """Whether an ARM id is this workspace's, or that of something in it."""
        return f"{arm_id.lower()}/".startswith(f"{self.id.lower()}/")

    def credential(self) -> "TokenCredential":
        """Give the identity that the workspace is asked with."""
        with self._lock:
            return self._signed_in()

    def _once(self, what: str, question: Callable[["MLClient"], _Answer]) -> _Answer:
        client = self._connected()
        try:
            return question(client)
        except AzureError as error:
            raise translate(error, what) from error
        except _ODD as error:
            message = f"Azure ML answered in an unknown form for {what}"
            raise ScoringError(message) from error

    def _connected(self) -> "MLClient":
        with self._lock:
            if self._client is None:
                self._client = self._connect(self._signed_in())
            return self._client

    def _signed_in(self) -> "TokenCredential":
        if self._credential is None:
            from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - heavy

            # Logs on many lines what it then raises.
            logging.getLogger("azure.identity").setLevel(logging.ERROR)
            self._credential = DefaultAzureCredential()
        return self._credential

    def _connect(self, credential: "TokenCredential") -> "MLClient":
        # Says of its own classes, on every start, that they are experimental.
        logging.getLogger("azure.ai.ml._utils._experimental").setLevel(logging.ERROR)
        from azure.ai.ml import MLClient  # noqa: PLC0415 - over a second

        client = MLClient(
            credential,
            *self._scope,
            # Without it the SDK waits for ever for a file that could not be uploaded.
            show_progress=True,
            enable_telemetry=False,
            **self.options,
        )
        # Without telemetry its events go to everybody's logs: an error whenever a thing is new.
        logging.getLogger("azure.ai.ml._telemetry").setLevel(logging.CRITICAL)
        return client

    def _sign_out(self) -> None:
        with self._lock:
            # Both keep tokens.
            self._client = self._credential = None


class VersionDeleted(Conflict):
    """The version of the asset was deleted, and can never be created again."""


class _TokenRefused(ScoringError):
    """The service refused the token, which a new one may mend."""


def translate(error: AzureError, what: str) -> ScoringError:
    """Turn what the SDK raises into this project's errors."""
    said = _ANSI.sub("", str(error.message))
    text = _SIGNATURE.sub("sig=...", " ".join(said.split()))[:_LENGTH]
    if _DELETED.search(text):
        return VersionDeleted(f"Azure ML refused {what}: {text}")
    return _by_status(error, what, text)


def _by_status(error: AzureError, what: str, text: str) -> ScoringError:
    status = error.status_code if isinstance(error, HttpResponseError) else None
    if isinstance(error, ResourceNotFoundError) or status == _UNKNOWN:
        return NotFound(f"Azure ML has no {what}: {text}")
    if status == _UNAUTHORIZED:
        return _TokenRefused(f"Azure ML refused the token for {what}: {text}")
    if status == _FORBIDDEN:
        return Misconfigured([f"Azure ML denies access to {what}: {text}"])
    if isinstance(error, ClientAuthenticationError):
        return Misconfigured([f"no identity to ask Azure ML for {what} with: {text}"])
    is_damaged = status is not None and status < _ERROR
    is_lost = isinstance(error, ServiceRequestError | ServiceResponseError)
    if is_lost or is_damaged or status in _BUSY:
        return Transient(f"Azure ML does not answer for {what}: {text}")
    return ScoringError(f"Azure ML refused {what}: {text}")
