"""What requests may say: parameters and bodies, checked before anything is done."""

from typing import Annotated, Any, Self

from fastapi import Header, Path, Request
from fastapi.exceptions import RequestValidationError
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import WithJsonSchema
from pydantic_core import PydanticCustomError

from scoring import instants
from scoring.readings import MAX_NAME
from scoring.runs import MAX_DEVICES, Scope

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
BODY_LIMIT = 2 * 1024 * 1024
"""Bytes of a body: `MAX_DEVICES` names of `MAX_NAME` characters, be each written as two escapes."""

# No reading is as early or as late as these years: a range may begin or end there all the same.
_BORDERS = {"0001": "0003", "0002": "0003", "9998": "9997", "9999": "9997"}


def _instant(text: object) -> object:
    """Read a time as epoch microseconds."""
    if text is None:
        return None
    if not isinstance(text, str):
        message = "a time is a string"
        raise ValueError(message)  # noqa: TRY004 - pydantic takes a ValueError
    return instants.read(_BORDERS.get(text[:4], text[:4]) + text[4:])


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


async def given_once(request: Request) -> None:
    """Refuse a parameter that is given twice: none is a list, and one of two would be ignored."""
    names = [name for name, _ in request.query_params.multi_items()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        why = "is given more than once"
        raise RequestValidationError(
            [{"type": "repeated", "loc": ("query", name), "msg": why} for name in repeated]
        )


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


class _Range(BaseModel):
    """Times from `since` on, and before `until`."""

    since: When = None
    until: When = None

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.since is not None and self.until is not None and self.since > self.until:
            kind, message = "backwards_range", "since is later than until: nothing can be in there"
            raise PydanticCustomError(kind, message)
        return self


class AnomalyQuery(PageQuery, _Range):
    """Which anomalies."""

    device: Name | None = None
    sensor: Name | None = None
    run: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,39}$")] | None = None


class WindowQuery(PageQuery, _Range):
    """Which windows."""


class RejectQuery(PageQuery):
    """Which rejects."""

    reason: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")] | None = None


class RunRequest(_Range):
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
