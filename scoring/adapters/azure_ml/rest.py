"""Requests to REST APIs of Azure for which azure-ai-ml has no public method."""

from typing import Any, TypeAlias

from azure.core import PipelineClient
from azure.core.pipeline.policies import (
    BearerTokenCredentialPolicy,
    RedirectPolicy,
    RetryPolicy,
)
from azure.core.rest import HttpRequest, HttpResponse

from scoring.adapters.azure_ml.workspace import Workspace

Client: TypeAlias = PipelineClient[HttpRequest, HttpResponse]

BRIEF = {"retry_total": 0, "connection_timeout": 5, "read_timeout": 10}
"""Options of requests whose answer is worth only a few seconds; timeouts in seconds.

No retries, because azure-core waits between them for as long as ``Retry-After`` says.
"""


def connect(workspace: Workspace, scope: str = "", **options: Any) -> Client:
    """Return a client with the workspace's timeouts and retries, to be used as a context manager.

    Parameters
    ----------
    scope
        Of the token that each request carries; empty for requests without a token.
    options
        Override those of the workspace.
    """
    options = workspace.options | options
    policies: list[Any] = [RedirectPolicy(), RetryPolicy(**options)]
    if scope:
        policies.append(BearerTokenCredentialPolicy(workspace.credential(), scope))
    return PipelineClient("", policies=policies, **options)


def read_json(client: Client, url: str, **parameters: str) -> dict[str, Any]:
    """Return the JSON object at `url`; raises `HttpResponseError` for an error status."""
    response = client.send_request(HttpRequest("GET", url, params=parameters))
    response.raise_for_status()
    content: dict[str, Any] = response.json()
    return content
