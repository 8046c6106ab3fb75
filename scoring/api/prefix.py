"""The path below which clients see the API, where a proxy takes a part of it away.

`Location` and all other addresses in answers are paths, so that a client completes them by the
scheme and the host that it asked itself: ``X-Forwarded-Host`` and ``X-Forwarded-Proto`` are not
read, and no client can have another one sent to a host of its choice.

A path needs the prefix that a proxy has taken away. An ASGI server knows it as ``root_path``. The
Functions host has none (`azure.functions.AsgiMiddleware` always gives an empty one), passes headers
on as they came, and cannot know which proxy is in front of it; so the proxy says it, by
``X-Forwarded-Prefix``. Neither Azure Front Door nor API Management sends that by itself:
``set-header`` of a rule or a policy does. Anybody may send it to a function app that is reached
without its proxy, and gets the path back that they sent; what depends on it is marked with
``Vary``, so that no cache gives it to others.
"""

import re

from starlette.types import Scope

HEADER = "X-Forwarded-Prefix"

_NAME = HEADER.lower().encode()
_FORM = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+){1,10}/?", re.ASCII)
"""What is taken for a prefix: never ``//host``, which is another host, nor what climbs."""

_LENGTH = 200


def prefix_of(scope: Scope) -> str:
    """Return the prefix of a request, such as ``/fleet``; empty for none.

    Several proxies each add theirs to the header, the outermost first.
    """
    given = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == _NAME]
    parts = [part.strip() for value in given for part in value.split(",")]
    found = "".join(part.rstrip("/") for part in parts)
    if len(found) <= _LENGTH and all(_FORM.fullmatch(part) for part in parts) and found:
        return found
    return str(scope.get("root_path") or "").rstrip("/")


def asked_path(scope: Scope) -> str:
    """Return the path that a client asked for."""
    path, root = str(scope["path"]), str(scope.get("root_path") or "").rstrip("/")
    # A server that knows the prefix leaves it on the path.
    return prefix_of(scope) + (path.removeprefix(root) if path.startswith(f"{root}/") else path)
