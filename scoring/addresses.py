"""What the addresses of databases, storage accounts and event hubs look like.

Each function gives the text back, or raises `ValueError`. No message repeats the text: most of
these hold secrets, and those that do not are where a secret is pasted by mistake.
"""

import re
from urllib.parse import unquote

_PAIR = re.compile(r"[\s;]*([A-Za-z][\w .-]*?)\s*=\s*(\{(?:[^}]|\}\})*\}|[^;]*?)\s*(?:[\s;]+|\Z)")
_LABEL = r"[A-Za-z0-9](?:[\w-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_AUTHORITY = r"(?:[^:/@]*(?::[^@]*)?@)?(?:\[[^]/?]+\]|[^:/?\[@]*)(?::\d{1,5})?"
_SECRET = re.compile(r"pass|pwd|key(?!name)|signature|secret|token|sig\b", re.IGNORECASE)
_DATABASE_URL = re.compile(rf"([\w-]+)(?:\+\w+)?://{_AUTHORITY}(?:[/?].*)?")
_FILE_HUB = re.compile(r"file-[0-9a-f]{12}")
_DATABASES = ("postgresql", "sqlite")
_WORKSPACE = re.compile(
    r"/subscriptions/[^/\s]+/resourceGroups/[^/\s]+"
    r"/providers/Microsoft\.MachineLearningServices/workspaces/[^/\s]+/?",
    re.IGNORECASE,
)

DEVELOPMENT_STORAGE = "UseDevelopmentStorage=true"
"""Stands for Azurite on its usual port."""


def database(text: str) -> str:
    """Read a URL of PostgreSQL (or SQLite), an ODBC connection string, or nothing."""
    if not text:
        return text
    if "://" in text.partition("=")[0]:
        return _database_url(text)
    given = pairs(text)
    if given is None or "driver" not in given:
        message = (
            "is neither a URL such as postgresql://user@host/database"
            " nor an ODBC connection string with Driver="
        )
        raise ValueError(message)
    if not given.keys() & {"server", "address", "addr"}:
        message = "is an ODBC connection string without Server="
        raise ValueError(message)
    return text


def _database_url(text: str) -> str:
    match = _DATABASE_URL.fullmatch(text)
    if not match:
        message = (
            "is not a URL such as postgresql://user:password@host:5432/database; in a password"
            " @ is written as %40, / as %2F, ? as %3F and % as %25"
        )
        raise ValueError(message)
    if match[1] not in _DATABASES:
        message = f"databases of kind {match[1]} are not supported"
        raise ValueError(message)
    return text


def storage(text: str) -> str:
    """Read the URL or a connection string of a storage account, or nothing.

    An account that is given by its URL is signed in to with a token, which no client sends
    without TLS, not even to this machine.
    """
    if not text:
        return text
    if text.lower().startswith("http://"):
        message = "is a URL without TLS, and no identity signs in without: write https://..."
        raise ValueError(message)
    if text.startswith("https://"):
        host, _, path = text.removeprefix("https://").partition("/")
        if not _is_host(host.partition(":")[0]) or not re.fullmatch(r"[a-z0-9]*/?", path):
            message = "is not a URL such as https://ACCOUNT.blob.core.windows.net"
            raise ValueError(message)
        return text
    return storage_connection(text)


def storage_connection(text: str) -> str:
    """Read a connection string of a storage account."""
    if text.rstrip(";") == DEVELOPMENT_STORAGE:
        return DEVELOPMENT_STORAGE
    given = pairs(text)
    if given is None or not given.keys() & {"accountname", "blobendpoint"}:
        message = (
            "is neither a URL such as https://ACCOUNT.blob.core.windows.net,"
            f" nor {DEVELOPMENT_STORAGE}, nor a connection string with AccountName="
        )
        raise ValueError(message)
    if not given.keys() & {"accountkey", "sharedaccesssignature"}:
        message = "is a connection string without AccountKey= or SharedAccessSignature="
        raise ValueError(message)
    return text


def container(text: str) -> str:
    """Read the name of a container, by the rules of Azure Storage."""
    if re.fullmatch(r"(?=.{3,63}\Z)[a-z0-9]+(-[a-z0-9]+)*", text):
        return text
    message = "is not the name of a container: 3 to 63 of a-z, 0-9 and single hyphens"
    raise ValueError(message)


def event_hub(text: str) -> str:
    """Read the name of an event hub, or nothing."""
    if is_file_hub(text):
        message = "is a name that stands for a file of readings here: the event hub needs another"
        raise ValueError(message)
    if not text or re.fullmatch(r"(?=.{1,256}\Z)[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", text, re.ASCII):
        return text
    message = "is not the name of an event hub: letters, digits, periods, hyphens, underscores"
    raise ValueError(message)


def is_file_hub(name: str) -> bool:
    """Return whether a hub's name is one that stands for a file of readings."""
    return _FILE_HUB.fullmatch(name) is not None


def consumer_group(text: str) -> str:
    """Read the name of a consumer group."""
    if re.fullmatch(r"\$default|[a-z0-9][\w.-]{0,49}", text, re.ASCII | re.IGNORECASE):
        return text
    message = "is neither $Default nor a name of letters, digits, periods, hyphens, underscores"
    raise ValueError(message)


def event_hub_connection(text: str) -> str:
    """Read a connection string of an event hub's namespace, or nothing."""
    if not text:
        return text
    given = pairs(text)
    if given is None or not endpoint_host(text):
        message = "is not a connection string: it has no Endpoint=sb://HOST/"
        raise ValueError(message)
    has_key = given.keys() >= {"sharedaccesskeyname", "sharedaccesskey"}
    if not has_key and "sharedaccesssignature" not in given:
        message = "has neither SharedAccessKeyName= and SharedAccessKey= nor SharedAccessSignature="
        raise ValueError(message)
    return text


def namespace(text: str) -> str:
    """Read the host of an event hub's namespace, or nothing."""
    if not text or ("." in text and _is_host(text)):
        return text
    message = "is not a host such as fleet.servicebus.windows.net"
    raise ValueError(message)


def workspace(text: str) -> str:
    """Read the ARM id of an Azure ML workspace, or nothing."""
    if not text or _WORKSPACE.fullmatch(text):
        return text
    message = (
        "is not an ARM id such as /subscriptions/ID/resourceGroups/GROUP"
        "/providers/Microsoft.MachineLearningServices/workspaces/NAME"
    )
    raise ValueError(message)


def endpoint_host(connection: str) -> str:
    """Give the host of an event hub's connection string in small letters; empty for none."""
    endpoint = (pairs(connection) or {}).get("endpoint", "")
    match = re.fullmatch(r"sb://([^/:]+)(?::\d{1,5})?/?", endpoint, re.IGNORECASE)
    return match[1].lower() if match and _is_host(match[1]) else ""


def entity_path(connection: str) -> str:
    """Give the event hub that a connection string itself names; empty for none."""
    return (pairs(connection) or {}).get("entitypath", "")


def pairs(text: str) -> dict[str, str] | None:
    """Take a text such as ``Key=value;Other={a;b}`` apart, keys in small letters; None for another.

    An empty value counts as none.
    """
    found, at = {}, 0
    while at < len(text):
        match = _PAIR.match(text, at)
        if not match:
            return None
        if match[2]:
            found[match[1].lower()] = match[2]
        at = match.end()
    return found


def secrets_of(text: str) -> set[str]:
    """Return what must not be shown of a URL or connection string: passwords, keys, signatures."""
    if "://" not in text.partition("=")[0]:
        found = {value for key, value in (pairs(text) or {}).items() if _SECRET.search(key)}
        return found | {value[1:-1] for value in found if value.startswith("{")}
    rest = text.partition("://")[2]
    address, _, query = rest.partition("?")
    # Behind the last @, whatever the password has.
    user = address.rpartition("@")[0]
    given = [user.partition(":")[2]]
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if _SECRET.search(name):
            given.append(value)
    return {one for value in given if value for one in (value, unquote(value))}


def _is_host(text: str) -> bool:
    return len(text) <= 253 and _HOST.fullmatch(text) is not None  # noqa: PLR2004 - of DNS
