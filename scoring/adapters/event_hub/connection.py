"""Where an event hub is, how to sign in to it, and what its errors mean here."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
)
from azure.eventhub import CheckpointStore, EventHubConsumerClient, EventHubProducerClient
from azure.eventhub.exceptions import EventHubError

from scoring.errors import Conflict, Misconfigured, NotFound, ScoringError, Transient

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

DEFAULT_GROUP = "$Default"
_SCOPE = "https://eventhubs.azure.net//.default"
_STATUS = re.compile(r"status code: (\d+)", re.IGNORECASE)
_MISSING = frozenset({"not-found", "resource-deleted"})
_HELD = frozenset({"link:stolen", "resource-locked"})
# Names of AMQP and of Event Hubs, without what stands before their first colon.
_REFUSED = frozenset(
    {
        *("unauthorized-access", "auth-failed", "entity-disabled", "not-allowed"),
        *("argument-error", "argument-out-of-range", "invalid-field", "not-implemented"),
        *("link:message-size-exceeded",),
    }
)
_NOT_FOUND = 404
_REFUSALS = frozenset(range(400, 500)) - {408, 429}
"""Statuses that mean the same again will fail again: not a timeout, nor too many requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventHub:
    """An event hub and the way to it: either a connection string or a namespace.

    Attributes
    ----------
    connection_string
        With a shared access key or signature; a key, and so never shown.
    namespace
        Fully qualified, for example ``fleet.servicebus.windows.net``; signs in with the managed
        identity or whatever else `DefaultAzureCredential` finds.
    retries, backoff
        How often azure-eventhub tries again by itself, and how long it waits before the first
        time, seconds; it doubles.

    Raises
    ------
    Misconfigured
        Not exactly one way is given, or it cannot be understood.
    """

    name: str
    connection_string: str = field(default="", repr=False)
    namespace: str = ""
    retries: int = 3
    backoff: float = 0.8

    def __post_init__(self) -> None:
        """Check that there is a name and one way."""
        problems = [] if self.name else ["the event hub has no name"]
        if bool(self.connection_string) == bool(self.namespace):
            problems.append("an event hub needs either a connection string or a namespace")
        if problems:
            raise Misconfigured(problems)

    def consumer(
        self,
        group: str,
        *,
        checkpoints: CheckpointStore | None = None,
        balance_interval: float = 10.0,
    ) -> EventHubConsumerClient:
        """Make a client that reads as a member of a consumer group; close it after use."""
        options: dict[str, Any] = {
            "consumer_group": group,
            "checkpoint_store": checkpoints,
            "load_balancing_interval": balance_interval,
        }
        client: EventHubConsumerClient = self._client(EventHubConsumerClient, options)
        return client

    def producer(self) -> EventHubProducerClient:
        """Make a client that sends; close it after use."""
        client: EventHubProducerClient = self._client(EventHubProducerClient, {})
        return client

    def check(self) -> None:
        """Ask the hub for its properties, once; a hub that takes it and is silent is waited for.

        Raises
        ------
        NotFound, Misconfigured, Transient
            It is not there, refuses the credentials, or cannot be reached.
        """
        with (
            translated_errors(f"event hub {self.name}"),
            replace(self, retries=0).consumer(DEFAULT_GROUP) as client,
        ):
            client.get_eventhub_properties()

    def _client(self, kind: Any, options: dict[str, Any]) -> Any:
        options |= {
            "eventhub_name": self.name,
            "retry_total": self.retries,
            "retry_backoff_factor": self.backoff,
        }
        if self.namespace:
            return kind(self.namespace, credential=_credential(), **options)
        try:
            return kind.from_connection_string(self.connection_string, **options)
        except ValueError as error:
            # The message says what is missing, and never what is there.
            raise Misconfigured([f"connection string of event hub {self.name}: {error}"]) from error


def _credential() -> "TokenCredential":
    """Sign in at once: azure-eventhub would make a nameless error of a refusal."""
    # It brings msal, which takes longer to load than the rest, and only this way in needs it.
    from azure.identity import DefaultAzureCredential  # noqa: PLC0415

    credential = DefaultAzureCredential()
    with translated_errors("event hub"):
        credential.get_token(_SCOPE)
    return credential


@contextmanager
def translated_errors(what: str) -> Iterator[None]:
    """Translate the errors of azure-eventhub, azure-identity and the sockets below.

    Parameters
    ----------
    what
        Begins the text of the error.
    """
    try:
        yield
    except (EventHubError, AzureError, OSError) as error:
        raise translated(error, what) from error


def translated(error: Exception, what: str) -> ScoringError:
    """Give the error of this project that says the same; what is unknown counts as transient."""
    # What follows says it once more, in the words of AMQP.
    said = " ".join(str(error).split()).partition(" Error condition:")[0]
    text = f"{what}: {said}"
    condition, status = getattr(error, "error", None), _status(error)
    if condition in _MISSING or status == _NOT_FOUND or isinstance(error, ResourceNotFoundError):
        return NotFound(text)
    if condition in _HELD:
        return Conflict(text)
    is_refused = condition in _REFUSED or status in _REFUSALS
    if is_refused or isinstance(error, ClientAuthenticationError):
        return Misconfigured([text])
    return Transient(text)


def _status(error: Exception) -> int | None:
    """Give the HTTP-like status of an answer; of the token's and the management's, by text."""
    if isinstance(error, HttpResponseError):
        return error.status_code
    match = _STATUS.search(str(error)) if isinstance(error, EventHubError) else None
    return int(match[1]) if match else None
