"""All settings, from one mapping, checked at once."""

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from scoring import addresses, instants
from scoring.errors import Misconfigured, hide
from scoring.readings import FieldNames, Plausible
from scoring.schedules import check_schedule, doubt_of

PREFIX = "SCORING_"
TESTS = "SCORING_TEST_"
"""Variables that are for the tests: what they may be run against."""

DEFAULT_WINDOW = 5 * 60 * instants.SECOND
"""Of a new store whose settings name no window, microseconds."""

_HUB, _CONNECTION, _NAMESPACE, _REPAIR_GROUP = (
    f"{PREFIX}EVENT_HUB{ending}" for ending in ("", "_CONNECTION", "_NAMESPACE", "_REPAIR_GROUP")
)

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


def _instant(text: str) -> int:
    """Read an ISO 8601 date or time, of UTC where it names no offset, as epoch microseconds."""
    try:
        # Not by `instants.read`: pyarrow loads pandas for it, and this runs when the host indexes.
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        message = f"{text!r} is not a date or time such as 2001-01-01"
        raise ValueError(message) from error
    return instants.of(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


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


def _number(least: int, most: int = 1_000_000_000) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text, re.ASCII):
            message = f"{text[:40]!r} is not a whole number"
            raise ValueError(message)
        value = int(text)
        if not least <= value <= most:
            message = (
                f"{value} is less than {least}" if value < least else f"{value} is over {most}"
            )
            raise ValueError(message)
        return value

    return read


def _field_name(text: str) -> str:
    if re.fullmatch(r'[^"\\\x00-\x1f\ud800-\udfff]+', text):
        return text
    message = f"{text!r} cannot be the name of a field"
    raise ValueError(message)


def _setting(read: Callable[[str], Any], default: str, doc: str, *, is_secret: bool = False) -> Any:
    told = {"read": read, "default": default, "doc": doc, "is_secret": is_secret}
    return field(default=read(default), repr=not is_secret, metadata=told)


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
        addresses.database,
        "",
        "URL of PostgreSQL or ODBC connection string of SQL Server; empty is SQLite in data",
        is_secret=True,
    )
    database_pool_size: int = _setting(
        _number(1, 1000), "2", "connections to the database that each process keeps"
    )
    database_max_overflow: int = _setting(
        _number(0, 1000), "2", "connections that each process makes beyond these while it is busy"
    )
    database_pooler: bool = _setting(
        _flag,
        "false",
        "whether a pooler in transaction mode is in between: PgBouncer, port 6432 on Azure",
    )
    storage: str = _setting(
        addresses.storage,
        "",
        "connection string or `https://` URL of a storage account; empty is a folder in data",
        is_secret=True,
    )
    container: str = _setting(addresses.container, "scoring", "container of the storage account")
    event_hub: str = _setting(addresses.event_hub, "", "name of the event hub; empty is none")
    event_hub_connection: str = _setting(
        addresses.event_hub_connection,
        "",
        "connection string of the event hub's namespace; or else:",
        is_secret=True,
    )
    event_hub_namespace: str = _setting(
        addresses.namespace,
        "",
        "its host, such as fleet.servicebus.windows.net, for a managed identity",
    )
    event_hub_consumer_group: str = _setting(
        addresses.consumer_group, "$Default", "consumer group of `consume`"
    )
    event_hub_repair_group: str = _setting(
        addresses.consumer_group,
        "repair",
        "consumer group of `repair-gaps`: one of its own, no other reader gets in",
    )
    window: int | None = _setting(
        _optional_duration,
        "",
        "size of the tumbling windows; a new store takes 5min. They are aligned to 1970-01-01"
        " 00:00 UTC: windows of 1d begin at 00:00 UTC, those of 7d on Thursday",
    )
    allowed_lateness: int = _setting(
        duration, "2min", "how long past its end a window stays open for late readings"
    )
    idle_timeout: int = _setting(
        duration, "5min", "after how long a silent partition no longer holds windows open"
    )
    stall_timeout: int = _setting(
        duration,
        "1h",
        "after how long a partition that lags without progress, while others of its hub go on,"
        " no longer holds windows open",
    )
    watermark_lag: int = _setting(
        duration,
        "10min",
        "how far event times of a partition may stay behind the hub's clock before they are late",
    )
    max_future_skew: int = _setting(
        duration, "5min", "how far a device's clock may run ahead of the hub's"
    )
    max_age: int = _setting(
        duration, "30d", "how old an event time of the hub may be when it is enqueued"
    )
    earliest_time: int = _setting(
        _instant, "2001-01-01", "the earliest event time in a file, ISO 8601, UTC"
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
        addresses.workspace,
        "",
        "ARM id of the Azure ML workspace: /subscriptions/.../workspaces/...",
    )
    run_deadline: int = _setting(
        duration, "6h", "how long a run may be scored for, from when the engine has begun"
    )
    queue_limit: int = _setting(
        duration, "2h", "how long a run may wait for the engine to begin, as for nodes"
    )
    max_active_runs: int = _setting(
        _number(1, 1000), "2", "runs that may be active at once; a further one is refused"
    )
    max_run_windows: int = _setting(
        _number(1), "2000000", "windows that one run takes, about: of a backlog the oldest"
    )
    part_rows: int = _setting(_number(1), "20000", "windows an input part holds, about")
    training_windows: int = _setting(
        _number(10), "5000", "windows that a sensor is trained on at most: a random sample of them"
    )
    processes: int = _setting(
        _number(0, 1024), "0", "worker processes; 0 takes one a core, and 1024 is the most"
    )
    mini_batch_size: int = _setting(_number(1), "1", "input parts a mini-batch")
    max_retries: int = _setting(_number(0), "2", "further attempts of a failed mini-batch")
    mini_batch_timeout: int = _setting(duration, "10min", "how long one attempt may take")
    error_threshold: int = _setting(
        _number(-1),
        "0",
        "input parts that may fail before the run does, if the next setting allows it too;"
        " -1 ignores all",
    )
    mini_batch_error_threshold: int = _setting(
        _number(-1),
        "0",
        "mini-batches that may fail before the run does, if the setting before allows it too;"
        " -1 ignores all",
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
        problems, values, wrong = [], {}, set()
        for one in fields(cls):
            key = PREFIX + one.name.upper()
            if (text := given.pop(key, None)) is None:
                continue
            if one.metadata["is_secret"]:
                # Also of one that is wrong: what is said of it may quote it.
                for secret in addresses.secrets_of(text):
                    hide(secret)
            try:
                values[one.name] = one.metadata["read"](text)
            except ValueError as error:
                problems.append(f"{key}: {error}")
                wrong.add(key)
        unknown = (key for key in sorted(given) if not key.startswith(TESTS))
        problems += [f"{key} is not a setting" for key in unknown]
        settings = cls(**values)
        names = asdict(settings.field_names)
        problems += [
            f"{PREFIX}FIELD_{key.upper()}: {name!r} is the name of another field too"
            for key, name in names.items()
            if list(names.values()).count(name) > 1
        ]
        problems += settings._contradictions(wrong)
        if settings.engine == "azure-ml":
            problems += [
                f"{PREFIX}{name.upper()} is missing: the engine azure-ml needs it"
                for name in ("azure_ml_workspace", "storage")
                if not getattr(settings, name) and PREFIX + name.upper() not in wrong
            ]
        if problems:
            raise Misconfigured(problems)
        return settings

    def _contradictions(self, wrong: Set[str]) -> list[str]:
        """Return the contradictions between settings that are right by themselves."""
        hub, connection = self.event_hub, self.event_hub_connection
        problems = too_young(self, self.window or DEFAULT_WINDOW)
        if connection and self.event_hub_namespace:
            problems.append(f"{_CONNECTION} and {_NAMESPACE}: only one of them can be the way")
        if (
            hub
            and not connection
            and not self.event_hub_namespace
            and not wrong & {_CONNECTION, _NAMESPACE}
        ):
            problems.append(f"{_CONNECTION} or {_NAMESPACE} is missing: {_HUB} needs one of them")
        if hub and addresses.entity_path(connection) not in {"", hub}:
            problems.append(f"{_CONNECTION}: its EntityPath is another hub than {_HUB}")
        return problems

    @property
    def plausible(self) -> Plausible:
        """Which event times readings may have."""
        return Plausible(self.max_future_skew, self.max_age, self.earliest_time)

    @property
    def field_names(self) -> FieldNames:
        """What the fields of a reading are called in the body."""
        return FieldNames(self.field_device, self.field_sensor, self.field_ts, self.field_value)


def too_young(settings: Settings, window: int) -> list[str]:
    """Return the problem if readings are rejected as too old while their window is still open.

    Parameters
    ----------
    window
        Size of the windows, microseconds.
    """
    least = window + settings.allowed_lateness
    if settings.max_age >= least:
        return []
    return [
        f"{PREFIX}MAX_AGE is below {PREFIX}WINDOW and {PREFIX}ALLOWED_LATENESS together,"
        f" {least / 1e6:g} s: readings would be rejected while their window is open"
    ]


@dataclass(frozen=True, slots=True)
class HostVariable:
    """A variable of the Functions host that the triggers or their connections need.

    Attributes
    ----------
    default
        None where the host knows none, and so it has to be set.
    """

    name: str
    default: str | None
    doc: str
    read: Callable[[str], str] = str


APPLICATION_INSIGHTS = "APPLICATIONINSIGHTS_CONNECTION_STRING"
"""Where telemetry goes; empty is nowhere. The host's own variable, which holds a secret."""

_SHARED = {"EVENT_HUB_NAME": _HUB, "EVENT_HUB": _CONNECTION}
"""What the host and the system both need to know, and is said once."""

_IDENTITY = "EVENT_HUB__fullyQualifiedNamespace"


def _host_storage(text: str) -> str:
    if "usedevelopmentstorage" in (addresses.pairs(text) or {}):
        return text
    if "://" in text.partition("=")[0]:
        message = "is a URL: an identity's goes into STORAGE__blobServiceUri"
        raise ValueError(message)
    return addresses.storage_connection(text)


def _insights(text: str) -> str:
    # The exporter would say so only when the first trigger fires.
    if not text or re.search(r"InstrumentationKey=[0-9a-f]{8}(-[0-9a-f]{4}){3}-", text, re.I):
        return text
    message = "it has no InstrumentationKey"
    raise ValueError(message)


HOST = (
    HostVariable(
        "EVENT_HUB",
        None,
        "connection string of the namespace that the trigger reads; by an identity"
        f" `{_IDENTITY}` instead",
        addresses.event_hub_connection,
    ),
    HostVariable(
        "EVENT_HUB_NAME",
        None,
        f"the event hub; `{_HUB}` may say the same, and no other",
        addresses.event_hub,
    ),
    HostVariable(
        "EVENT_HUB_CONSUMER_GROUP",
        None,
        "consumer group of `ingest_readings`; another than `SCORING_EVENT_HUB_REPAIR_GROUP`",
        addresses.consumer_group,
    ),
    HostVariable(
        "STORAGE",
        None,
        "connection string of the account whose predictions `index_predictions` waits for; by an"
        " identity `STORAGE__blobServiceUri` and `STORAGE__queueServiceUri` instead",
        _host_storage,
    ),
    HostVariable("SCORING_CONTAINER", None, "container of these predictions: the triggers name it"),
    HostVariable(
        "BLOB_TRIGGER_SOURCE",
        "EventGrid",
        "how it hears of them: `EventGrid`, or `LogsAndContainerScan` where there is none",
        _one_of("EventGrid", "LogsAndContainerScan"),
    ),
    HostVariable("REPAIR_SCHEDULE", None, "when `repair_gaps` runs, six fields", check_schedule),
    HostVariable("SUBMIT_SCHEDULE", None, "when `submit_scoring_run` runs", check_schedule),
    HostVariable("WATCH_SCHEDULE", None, "when `watch_runs` runs", check_schedule),
    HostVariable(
        "API_AUTH_LEVEL",
        "function",
        "what the API asks for: `function` or `admin` key, or nothing with `anonymous`",
        _one_of("function", "anonymous", "admin"),
    ),
    HostVariable(
        APPLICATION_INSIGHTS, "", "where traces and metrics go; empty is nowhere", _insights
    ),
)
"""Every variable of a function app that is not one of `Settings`, and what it is."""

_SITE = "WEBSITE_SITE_NAME"
"""Names the app, on every plan in Azure; ``WEBSITE_INSTANCE_ID`` is not set on Flex Consumption."""

_CORE_TOOLS = "FUNCTIONS_CORETOOLS_ENVIRONMENT"
"""Set by Core Tools: an app on a laptop, even where its settings were fetched from Azure."""


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
    doubts
        What is right and may not be meant, in a sentence each.
    """

    hub: str
    blob_source: str
    auth_level: str
    doubts: tuple[str, ...] = ()

    @classmethod
    def load(cls, mapping: Mapping[str, str]) -> "HostSettings":
        """Read the host's settings, and check those of the system with them.

        Raises
        ------
        Misconfigured
            Naming every setting that is missing or wrong, of both kinds.
        """
        problems = [problem for one in HOST for problem in _wrong(one, mapping)]
        try:
            Settings.load(host_variables(mapping))
        except Misconfigured as error:
            problems += [_by_its_name(problem, mapping) for problem in error.problems]
        problems += _contradictions_of_both(mapping) + _ephemeral(mapping)
        if problems:
            # What host and system share is wrong for both.
            raise Misconfigured(list(dict.fromkeys(problems)))
        given = {one.name: mapping.get(one.name, one.default or "") for one in HOST}
        schedules = [one.name for one in HOST if one.read is check_schedule]
        doubts = tuple(f"{name}: {doubt}" for name in schedules if (doubt := doubt_of(given[name])))
        hub, source = given["EVENT_HUB_NAME"], given["BLOB_TRIGGER_SOURCE"]
        return cls(hub, source, given["API_AUTH_LEVEL"], doubts)


def host_variables(mapping: Mapping[str, str]) -> dict[str, str]:
    """Give the variables of a function app with the system's names for what its host has."""
    return dict(mapping) | {ours: mapping[host] for ours, host in _taken(mapping).items()}


def _taken(mapping: Mapping[str, str]) -> dict[str, str]:
    """Tell which of the system's variables come from the host's: what is not set, or empty."""
    taken = {
        ours: host for host, ours in _SHARED.items() if mapping.get(host) and not mapping.get(ours)
    }
    if mapping.get(_CONNECTION) or mapping.get(_NAMESPACE):
        taken.pop(_CONNECTION, None)
    elif mapping.get(_IDENTITY):
        taken[_NAMESPACE] = _IDENTITY
    return taken


def _by_its_name(problem: str, mapping: Mapping[str, str]) -> str:
    """Name variables as they were given: by the host's names, if that is where they are from."""
    taken = _taken(mapping)
    return re.sub(rf"{PREFIX}\w+", lambda match: taken.get(match[0], match[0]), problem)


def _wrong(one: HostVariable, mapping: Mapping[str, str]) -> list[str]:
    text = mapping.get(one.name)
    if not text and one.default is None:
        # A connection is one variable, or some of names that go on.
        is_connection = one.name in {"EVENT_HUB", "STORAGE"}
        by_parts = any(n.startswith(f"{one.name}__") and t for n, t in mapping.items())
        return [] if is_connection and by_parts else [f"{one.name} is missing"]
    try:
        one.read(one.default or "" if text is None else text)
    except ValueError as error:
        return [f"{one.name}: {error}"]
    return []


def _contradictions_of_both(mapping: Mapping[str, str]) -> list[str]:
    """Tell where the host and the system would read different hubs, or get into each other's way.

    Gaps of the one hub would be looked for in the other, and never be found.
    """
    ours, problems = host_variables(mapping), []
    name, way = mapping.get("EVENT_HUB_NAME", ""), mapping.get("EVENT_HUB", "")
    if name and ours[_HUB] != name:
        problems.append(f"{_HUB} and EVENT_HUB_NAME: two hubs, where one is needed")
    if name and addresses.entity_path(way) not in {"", name}:
        problems.append("EVENT_HUB: its EntityPath is another hub than EVENT_HUB_NAME")
    theirs = addresses.endpoint_host(way) or mapping.get(_IDENTITY, "").lower()
    for key in (_CONNECTION, _NAMESPACE):
        text = ours.get(key, "")
        host = text.lower() if key == _NAMESPACE else addresses.endpoint_host(text)
        if host and theirs and host != theirs:
            problems.append(f"{key} and {'EVENT_HUB' if way else _IDENTITY}: two namespaces")
    groups = ours.get("EVENT_HUB_CONSUMER_GROUP", ""), ours.get(_REPAIR_GROUP, "repair")
    if groups[0].lower() == groups[1].lower():
        problems.append(f"{_REPAIR_GROUP}: the trigger reads by this group")
    return problems


def _ephemeral(mapping: Mapping[str, str]) -> list[str]:
    """Name what has to be set in Azure, where each instance has a disk of its own for a while."""
    if not mapping.get(_SITE) or mapping.get(_CORE_TOOLS):
        return []
    return [
        f"{PREFIX}{name} is missing: in Azure {kept} would be on one instance's own disk,"
        " and go with it"
        for name, kept in (("DATABASE", "a SQLite file"), ("STORAGE", "a folder"))
        if not mapping.get(PREFIX + name)
    ]
