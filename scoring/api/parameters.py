"""What requests may say: parameters and bodies, checked before anything is done."""

from typing import Annotated, Any

from fastapi import Header, Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.json_schema import WithJsonSchema

from scoring import instants
from scoring.readings import MAX_NAME
from scoring.runs import Scope

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
MAX_DEVICES = 1000

_DAY = len("2026-11-22")
# No reading is as early or as late as these years: a range may begin or end there all the same.
_BORDERS = {"0001": "0003", "0002": "0003", "9998": "9997", "9999": "9997"}


def _instant(text: object) -> object:
    """Read a time as epoch microseconds."""
    if text is None:
        return None
    if not isinstance(text, str):
        message = "a time is a string"
        raise ValueError(message)  # noqa: TRY004 - pydantic takes a ValueError
    text = _BORDERS.get(text[:4], text[:4]) + text[4:]
    times, readable = instants.parse([f"{text}T00:00" if len(text) == _DAY else text])
    if not readable[0]:
        message = "not a time such as 2026-11-22T23:00:00Z"
        raise ValueError(message)
    return int(times[0])


_Text = StringConstraints(min_length=1, max_length=MAX_NAME, pattern=r"^[^\x00]*$")

When = Annotated[
    int | None,
    BeforeValidator(_instant),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}),
]
Name = Annotated[str, _Text]
Version = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
RunId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,39}$")]
DeviceName = Annotated[str, Path(min_length=1, max_length=MAX_NAME, pattern=r"^[^\x00]*$")]
LogName = Annotated[str, Path(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="The same key again gives the run that was started for it.",
    ),
]


class NoQuery(BaseModel):
    """No parameter at all: one that is unknown is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")


class PageQuery(NoQuery):
    """Which page of a list."""

    limit: int = Field(default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Rows at most.")
    cursor: str | None = Field(
        default=None, min_length=1, max_length=2000, description="`next_cursor` of the page before."
    )

    @property
    def filters(self) -> dict[str, Any]:
        """What the list was asked for, but for the page."""
        return self.model_dump(exclude={"limit", "cursor"})


class AnomalyQuery(PageQuery):
    """Which anomalies."""

    device: Name | None = None
    sensor: Name | None = None
    run: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,39}$")] | None = None
    since: When = None
    until: When = None


class WindowQuery(PageQuery):
    """Which windows."""

    since: When = None
    until: When = None


class RejectQuery(PageQuery):
    """Which rejects."""

    reason: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")] | None = None


class RunRequest(BaseModel):
    """What to score: without it, everything that is pending and final."""

    model_config = ConfigDict(extra="forbid", strict=True)

    since: When = Field(default=None, description="Windows that start at this time or later.")
    until: When = Field(default=None, description="Windows that start before this time.")
    devices: list[Name] = Field(
        default=[],
        max_length=MAX_DEVICES,
        description="Their windows only; none names all devices.",
    )
    fleet: Version | None = Field(
        default=None, description="Fleet version; the current one by default."
    )
    rescore: bool = Field(default=False, description="Score windows again that were scored before.")

    @property
    def scope(self) -> Scope:
        """The windows that are asked for."""
        return Scope(self.since, self.until, tuple(self.devices), self.rescore)
