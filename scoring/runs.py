"""Scoring runs: their states, names and parts."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from zlib import crc32

from scoring.errors import BadInput, Conflict
from scoring.windows import last_final_start


class RunState(StrEnum):
    """Where a run stands. Each state is persisted before the next step begins."""

    CLAIMING = "claiming"
    CLAIMED = "claimed"
    EXPORTED = "exported"
    SUBMITTED = "submitted"
    RUNNING = "running"
    SCORED = "scored"
    COMPLETED = "completed"
    FAILING = "failing"
    FAILED = "failed"
    CANCELING = "canceling"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can follow."""
        return self in TERMINAL

    @property
    def gives_back(self) -> bool:
        """Whether the run's windows are, or were, given back: nothing of the run counts any more.

        From its first moment such a state stops every other step of the run: each step is a
        conditional update of the state that it expects.
        """
        return self in GIVING_BACK or self in GIVING_BACK.values()


TERMINAL = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELED})
ACTIVE = tuple(state for state in RunState if state not in TERMINAL)

GIVING_BACK = {RunState.FAILING: RunState.FAILED, RunState.CANCELING: RunState.CANCELED}
"""States in which a run gives its windows back, and the state that each ends in."""

_ENDINGS = frozenset(GIVING_BACK)
_NEXT: dict[RunState, frozenset[RunState]] = {
    RunState.CLAIMING: _ENDINGS | {RunState.CLAIMED},
    RunState.CLAIMED: _ENDINGS | {RunState.EXPORTED},
    # A run that has nothing to score needs no engine.
    RunState.EXPORTED: _ENDINGS | {RunState.SUBMITTED, RunState.SCORED},
    # An engine may be done before anybody saw it running.
    RunState.SUBMITTED: _ENDINGS | {RunState.RUNNING, RunState.SCORED},
    RunState.RUNNING: _ENDINGS | {RunState.SCORED},
    RunState.SCORED: _ENDINGS | {RunState.COMPLETED},
    **{state: frozenset({end}) for state, end in GIVING_BACK.items()},
    **dict.fromkeys(TERMINAL, frozenset()),
}


def may_follow(new: RunState) -> tuple[RunState, ...]:
    """All states that `new` may follow: what a conditional update asks for."""
    return tuple(state for state in RunState if new in _NEXT[state])


def run_id(now: datetime, nonce: str) -> str:
    """Name a run, for example ``r20261122T230000Z-1a2b3c``.

    Parameters
    ----------
    now
        Aware, in UTC.
    nonce
        Six hexadecimal digits that keep two runs of one second apart.
    """
    return f"r{now:%Y%m%dT%H%M%SZ}-{nonce}"


def part_of(device: str, sensor: str, parts: int) -> int:
    """Which of `parts` a sensor belongs to: the same one in every process and run.

    CRC-32 over both names: fast, stable across versions, and even enough for files.
    """
    return crc32(sensor.encode(), crc32(b"\0", crc32(device.encode()))) % parts


def part_name(part: int) -> str:
    """File name of an input part and of its prediction part, ``part-00042.parquet``."""
    return f"part-{part:05d}.parquet"


def error_name(file: str) -> str:
    """Return the name of the file that says why a part was not scored, ``part-00042.error``.

    It lies beside the prediction parts, holds one line of UTF-8 text, and means nothing where
    the prediction part itself is there: a later attempt succeeded.

    Parameters
    ----------
    file
        As `part_name` gives it.
    """
    return file.removesuffix(".parquet") + ".error"


def input_prefix(run: str, export: str) -> str:
    """Where an export of a run puts its input parts.

    `export` names the attempt: two exports of one run, one of them in a process believed dead,
    never write to the same files.
    """
    return f"runs/{run}/input/{export}/"


def prediction_prefix(run: str) -> str:
    """Where a run's prediction parts land."""
    return f"predictions/{run}/"


def fleet_prefix(version: str) -> str:
    """Where the files of a fleet are.

    Raises
    ------
    BadInput
        The text cannot be a version: it becomes the name of a folder, here and on other machines.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", version):
        message = f"{version[:70]!r} is not the version of a fleet: those are letters and digits"
        raise BadInput(message)
    return f"fleets/{version}/"


def aside_prefix(run: str, export: str) -> str:
    """Where an export of a run puts the predictions of the sensors that are set aside."""
    return f"runs/{run}/aside/{export}/"


def log_prefix(run: str) -> str:
    """Where the logs of a run that failed are kept."""
    return f"runs/{run}/logs/"


def parse_prediction_name(name: str) -> tuple[str, int]:
    """Split ``predictions/<run>/part-00042.parquet`` into the run's id and the part's number.

    Raises
    ------
    BadInput
        The name is not of that form.
    """
    match name.split("/"):
        case ["predictions", run, file] if run and _is_part_name(file):
            return run, int(file[5:-8])
    message = (
        f"{name!r} is not the name of a prediction part (predictions/<run>/part-NNNNN.parquet)"
    )
    raise BadInput(message)


_DIGITS = 9
"""Of a part's number: it is an integer of every database."""


def _is_part_name(file: str) -> bool:
    digits = file.removeprefix("part-").removesuffix(".parquet")
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS
    return is_number and file == part_name(int(digits))


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a run: its number and how many windows were exported into it.

    Attributes
    ----------
    is_aside
        The windows are of sensors that are set aside: they were not exported for the engine, and
        their predictions are written by the run itself.
    """

    number: int
    rows: int
    is_aside: bool = False


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What keeps runs from piling up.

    Attributes
    ----------
    active
        Runs that may be active at once.
    windows
        About how many windows one run takes; at least all of the oldest window start. A backlog
        is taken oldest windows first.
    """

    active: int = 1_000_000
    windows: int = 2**62


NO_LIMITS = RunLimits()


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much of a run may fail before the run does; -1 is any number.

    Attributes
    ----------
    parts
        Input parts without predictions.
    mini_batches
        Mini-batches that failed.
    mini_batch_size
        Input parts in a mini-batch.
    """

    parts: int = 0
    mini_batches: int = 0
    mini_batch_size: int = 1

    def exceeded(self, failed: int) -> list[str]:
        """Return the settings that so many failed parts go beyond; both have to allow them.

        Which parts shared a mini-batch is not known afterwards: the least number of mini-batches
        that can hold them counts.
        """
        mini_batches = -(-failed // self.mini_batch_size)
        limits = (
            ("SCORING_ERROR_THRESHOLD", failed, self.parts),
            ("SCORING_MINI_BATCH_ERROR_THRESHOLD", mini_batches, self.mini_batches),
        )
        return [f"{name} is {limit}" for name, number, limit in limits if 0 <= limit < number]


MAX_DEVICES = 1000
"""Devices that a run can be limited to: SQL Server takes 2,100 parameters in a statement."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which windows a run is asked to score; by default, all that are pending.

    Attributes
    ----------
    since, until
        Windows that start in ``[since, until)``, epoch microseconds UTC; None leaves an end open.
    devices
        Their windows only; empty for all devices.
    rescore
        Score windows again that were scored before, too.
    """

    since: int | None = None
    until: int | None = None
    devices: tuple[str, ...] = ()
    rescore: bool = False

    def __post_init__(self) -> None:
        """Refuse more devices than a statement can name."""
        if len(self.devices) > MAX_DEVICES:
            message = f"{len(self.devices):,} devices: a run can be limited to {MAX_DEVICES:,}"
            raise BadInput(message)


EVERYTHING = Scope()
"""All that is pending: what a timer asks for."""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What tells a repeated request from a new one.

    Attributes
    ----------
    key
        The caller's own, once for each request.
    digest
        Of what was requested: the same key with another one is a mistake.
    """

    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class ScoringRun:
    """One scoring of a set of windows.

    Attributes
    ----------
    number
        Order of claiming; a prediction of a higher number replaces one of a lower.
    last_start
        Only windows starting at or before this instant belong to the run: those that were final
        when it began. Epoch microseconds, UTC.
    enqueued_until
        Late readings belong to the run only if the newest of their window was enqueued at or before
        this instant, epoch microseconds UTC; None for no limit.
    export
        The attempt whose input parts count, empty until the run is exported.
    cause
        Why the run failed or is incomplete, one line, else empty.
    first_start, devices
        Only windows starting at or after this instant, and only those of these devices, where
        they are given.
    rescore
        Windows that an older run took belong to the run too.
    request
        The request that the run was made for, where its caller named it.
    submitted_at, ended_at
        When the engine last took it, and when it ended; None until then.
    job_is_open
        The engine may be at work on it, also after the run has ended: from before the run is
        submitted until the engine says that its job has ended.
    losses
        How often the engine did not know it any more, and was given it again.
    """

    number: int
    run_id: str
    state: RunState
    trigger: str
    fleet_version: str
    last_start: int
    created_at: int
    export: str = ""
    cause: str = ""
    first_start: int | None = None
    devices: tuple[str, ...] = ()
    rescore: bool = False
    request: RequestKey | None = None
    submitted_at: int | None = None
    ended_at: int | None = None
    job_is_open: bool = False
    enqueued_until: int | None = None
    losses: int = 0

    @property
    def input_prefix(self) -> str:
        """Where the input parts that count stand."""
        return input_prefix(self.run_id, self.export)

    @property
    def aside_prefix(self) -> str:
        """Where the predictions of sensors that are set aside stand."""
        return aside_prefix(self.run_id, self.export)

    @property
    def prediction_prefix(self) -> str:
        """Where the prediction parts land."""
        return prediction_prefix(self.run_id)

    @property
    def is_limited(self) -> bool:
        """Whether it was asked for some windows, and not for all that are pending."""
        return self.first_start is not None or bool(self.devices) or self.rescore

    def is_capped(self, window: int, scope: Scope) -> bool:
        """Return whether it takes the oldest of the final windows in a scope, not all of them.

        Parameters
        ----------
        window
            Size of the windows, microseconds.
        """
        newest = (
            [] if self.enqueued_until is None else [last_final_start(self.enqueued_until, window)]
        )
        newest += [] if scope.until is None else [scope.until - 1]
        return bool(newest) and self.last_start < min(newest)

    def answers(self, proposed: "ScoringRun") -> bool:
        """Whether it does what was proposed, so that no other run is needed.

        Raises
        ------
        Conflict
            It was made for a request of the same key that asked for something else.
        """
        if self.run_id == proposed.run_id:
            return True
        if proposed.request is None:
            return not proposed.is_limited or self._does_the_same(proposed)
        if self.request is None or self.request.key != proposed.request.key:
            return False
        if self.request != proposed.request:
            message = f"run {self.run_id} was made for another request of the same key"
            raise Conflict(message)
        return True

    def _does_the_same(self, other: "ScoringRun") -> bool:
        mine = (self.first_start, self.last_start, self.devices, self.rescore, self.fleet_version)
        return mine == (
            *(other.first_start, other.last_start, other.devices, other.rescore),
            other.fleet_version,
        )
