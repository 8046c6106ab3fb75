"""All settings, from one mapping, checked at once."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from scoring import instants
from scoring.errors import Misconfigured
from scoring.readings import FieldNames

PREFIX = "SCORING_"
TESTS = "SCORING_TEST_"
"""Variables that are for the tests: what they may be run against."""


_UNITS = {"ms": 1_000, "s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_LONGEST = 366 * _UNITS["d"]
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


def duration(text: str) -> int:
    """Read a duration such as ``5s``, ``1.5 min``, ``250ms``, ``2h`` or ``1d``, as microseconds.

    Raises
    ------
    ValueError
        It is of another form, zero, over 366 days, or not a whole number of microseconds.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)\s*", text)
    if not match:
        message = f"{text!r} is not a duration such as 250ms, 5s, 1.5min, 2h or 1d"
        raise ValueError(message)
    value = Fraction(match[1]) * _UNITS[match[2]]
    if value.denominator != 1 or not 0 < value <= _LONGEST:
        message = f"{text!r} is not a positive number of microseconds, or is over 366 days"
        raise ValueError(message)
    return int(value)


def _optional_duration(text: str) -> int | None:
    return duration(text) if text.strip() else None


def _flag(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    message = f"{text!r} is neither true nor false"
    raise ValueError(message)


def _one_of(*known: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            message = f"{text!r} is none of {', '.join(known)}"
            raise ValueError(message)
        return text

    return read


def _number(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if value < least:
            message = f"{value} is less than {least}"
            raise ValueError(message)
        return value

    return read


def _field_name(text: str) -> str:
    if re.fullmatch(r'[^"\\\x00-\x1f\ud800-\udfff]+', text):
        return text
    message = f"{text!r} cannot be the name of a field"
    raise ValueError(message)


def _setting(read: Callable[[str], Any], default: str, doc: str) -> Any:
    return field(default=read(default), metadata={"read": read, "default": default, "doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be set; the variable of a field is ``SCORING_`` and its name in capitals.

    Durations are microseconds here, and texts such as ``5min`` in the mapping.
    """

    # RUF009: it gives a dataclass field, not a default shared by all.
    data: Path = _setting(  # noqa: RUF009
        Path, "scoring-data", "folder of the database, blobs and work files"
    )
    database: str = _setting(
        str,
        "",
        "URL of PostgreSQL or ODBC connection string of SQL Server; empty is SQLite in data",
    )
    storage: str = _setting(
        str, "", "connection string or URL of a storage account; empty is a folder in data"
    )
    container: str = _setting(str, "scoring", "container of the storage account")
    event_hub: str = _setting(str, "", "name of the event hub; empty is none")
    event_hub_connection: str = _setting(
        str, "", "connection string of the event hub's namespace; or else:"
    )
    event_hub_namespace: str = _setting(
        str, "", "its host, such as fleet.servicebus.windows.net, for a managed identity"
    )
    event_hub_consumer_group: str = _setting(str, "$Default", "consumer group of `consume`")
    event_hub_repair_group: str = _setting(
        str, "repair", "consumer group of `repair-gaps`: one of its own, no other reader gets in"
    )
    window: int | None = _setting(
        _optional_duration, "", "size of the tumbling windows; a new store takes 5min"
    )
    allowed_lateness: int = _setting(
        duration, "2min", "how long past its end a window stays open for late readings"
    )
    idle_timeout: int = _setting(
        duration, "5min", "after how long a silent partition no longer holds windows open"
    )
    max_future_skew: int = _setting(
        duration, "5min", "how far a device's clock may run ahead of the hub's"
    )
    raw_segments: bool = _setting(_flag, "true", "keep accepted readings as Parquet segments")
    field_device: str = _setting(_field_name, "device", "name of the device in an event's body")
    field_sensor: str = _setting(_field_name, "sensor", "name of the sensor in an event's body")
    field_ts: str = _setting(_field_name, "ts", "name of the event time in an event's body")
    field_value: str = _setting(_field_name, "value", "name of the value in an event's body")
    engine: str = _setting(
        _one_of("local", "azure-ml"), "local", "what scores: `local` processes, or `azure-ml`"
    )
    azure_ml_workspace: str = _setting(
        str, "", "ARM id of the Azure ML workspace: /subscriptions/.../workspaces/..."
    )
    azure_ml_deadline: int = _setting(
        duration, "6h", "how long an Azure ML job may take, waiting for nodes included"
    )
    part_rows: int = _setting(_number(1), "20000", "windows an input part holds, about")
    processes: int = _setting(_number(0), "0", "worker processes; 0 takes one a core")
    mini_batch_size: int = _setting(_number(1), "1", "input parts a mini-batch")
    max_retries: int = _setting(_number(0), "2", "further attempts of a failed mini-batch")
    mini_batch_timeout: int = _setting(duration, "10min", "how long one attempt may take")
    error_threshold: int = _setting(
        _number(-1), "0", "input parts that may fail before the run does; -1 ignores all"
    )
    mini_batch_error_threshold: int = _setting(
        _number(-1), "0", "mini-batches that may fail before the run does; -1 ignores all"
    )

    @classmethod
    def load(cls, mapping: Mapping[str, str]) -> "Settings":
        """Read the settings from variables; other variables than ``SCORING_...`` are left alone.

        Raises
        ------
        Misconfigured
            Naming every setting that is wrong or unknown.
        """
        given = {key: text for key, text in mapping.items() if key.startswith(PREFIX)}
        problems, values = [], {}
        for one in fields(cls):
            key = PREFIX + one.name.upper()
            if (text := given.pop(key, None)) is None:
                continue
            try:
                values[one.name] = one.metadata["read"](text)
            except ValueError as error:
                problems.append(f"{key}: {error}")
        unknown = (key for key in sorted(given) if not key.startswith(TESTS))
        problems += [f"{key} is not a setting" for key in unknown]
        settings = cls(**values)
        names = asdict(settings.field_names)
        problems += [
            f"{PREFIX}FIELD_{key.upper()}: {name!r} is the name of another field too"
            for key, name in names.items()
            if list(names.values()).count(name) > 1
        ]
        if settings.engine == "azure-ml":
            problems += [
                f"{PREFIX}{name.upper()} is missing: the engine azure-ml needs it"
                for name in ("azure_ml_workspace", "storage")
                if not getattr(settings, name)
            ]
        if problems:
            raise Misconfigured(problems)
        return settings

    @property
    def field_names(self) -> FieldNames:
        """What the fields of a reading are called in the body."""
        return FieldNames(self.field_device, self.field_sensor, self.field_ts, self.field_value)


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What the triggers need to know before anything runs, from the Functions host's variables.

    Attributes
    ----------
    hub
        The event hub's name.
    blob_source
        ``EventGrid``, or ``LogsAndContainerScan`` where there is none, as with Azurite.
    auth_level
        Of the HTTP API: ``function``, ``anonymous`` or ``admin``.
    """

    hub: str
    blob_source: str
    auth_level: str

    @classmethod
    def load(cls, mapping: Mapping[str, str]) -> "HostSettings":
        """Read the host's settings, and check those of the system with them.

        Raises
        ------
        Misconfigured
            Naming every setting that is missing or wrong, of both kinds.
        """
        host = cls(
            hub=mapping.get("EVENT_HUB_NAME", ""),
            blob_source=mapping.get("BLOB_TRIGGER_SOURCE", _BLOB_SOURCES[0]),
            auth_level=mapping.get("API_AUTH_LEVEL", _AUTH_LEVELS[0]),
        )
        problems = _missing(mapping)
        problems += _none_of("BLOB_TRIGGER_SOURCE", host.blob_source, _BLOB_SOURCES)
        problems += _none_of("API_AUTH_LEVEL", host.auth_level, _AUTH_LEVELS)
        problems += _no_insights(mapping.get(APPLICATION_INSIGHTS, ""))
        try:
            settings = Settings.load(host_variables(mapping))
        except Misconfigured as error:
            raise Misconfigured(problems + error.problems) from None
        if mapping.get("EVENT_HUB_CONSUMER_GROUP") == settings.event_hub_repair_group:
            problems.append("SCORING_EVENT_HUB_REPAIR_GROUP: the trigger reads by this group")
        if problems:
            raise Misconfigured(problems)
        return host


APPLICATION_INSIGHTS = "APPLICATIONINSIGHTS_CONNECTION_STRING"
"""Where telemetry goes; empty is nowhere. The host's own variable, which holds a secret."""

_BLOB_SOURCES = ("EventGrid", "LogsAndContainerScan")
_AUTH_LEVELS = ("function", "anonymous", "admin")

_IN_TRIGGERS = (
    "EVENT_HUB_NAME",
    "EVENT_HUB_CONSUMER_GROUP",
    "REPAIR_SCHEDULE",
    "SUBMIT_SCHEDULE",
    "WATCH_SCHEDULE",
    "SCORING_CONTAINER",
)
"""What triggers name as ``%...%``; the host puts in what these say, and knows no default."""

_CONNECTIONS = ("EVENT_HUB", "STORAGE")
"""Connections of triggers: each one variable, or some of names that go on with ``__``."""

_SHARED = {
    "EVENT_HUB_NAME": "SCORING_EVENT_HUB",
    "EVENT_HUB": "SCORING_EVENT_HUB_CONNECTION",
    "EVENT_HUB__fullyQualifiedNamespace": "SCORING_EVENT_HUB_NAMESPACE",
}
"""What the host and the system both need to know, and is said once."""


def host_variables(mapping: Mapping[str, str]) -> dict[str, str]:
    """Give the variables of a function app with the system's names for what its host has."""
    shared = {ours: mapping[host] for host, ours in _SHARED.items() if mapping.get(host)}
    return shared | dict(mapping)


def _missing(mapping: Mapping[str, str]) -> list[str]:
    given = {name.partition("__")[0] for name, text in mapping.items() if text}
    problems = [f"{name} is missing" for name in _IN_TRIGGERS if not mapping.get(name)]
    return problems + [f"{name} is missing" for name in _CONNECTIONS if name not in given]


def _none_of(name: str, text: str, known: tuple[str, ...]) -> list[str]:
    return [] if text in known else [f"{name}: {text!r} is none of {', '.join(known)}"]


def _no_insights(text: str) -> list[str]:
    # The exporter would say so only when the first trigger fires.
    if not text or re.search(r"InstrumentationKey=[0-9a-f]{8}(-[0-9a-f]{4}){3}-", text, re.I):
        return []
    return [f"{APPLICATION_INSIGHTS}: it has no InstrumentationKey"]


DEFAULT_WINDOW = 5 * 60 * instants.SECOND
"""Of a new store whose settings name no window, microseconds."""
