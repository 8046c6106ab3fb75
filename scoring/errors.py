"""Every error that this project raises on purpose.

::

    ScoringError
    |-- BadInput                what somebody gave us is wrong; the same again fails again
    |   |-- Misconfigured       settings, missing or wrong: all of them named at once
    |   |-- UnreadableSource    a file of readings as a whole: header, encoding, not there
    |   |-- InvalidFleet        a fleet file: missing, truncated, tampered, of another format
    |   |-- ModelRefused        one model file that an import does not accept
    |   `-- InvalidPart         an input or prediction part: not Parquet, columns, row count
    |-- NotFound                no such run, blob, model
    |-- Conflict                somebody else holds it, or its state does not allow this
    |   `-- CannotBegin         no run may begin now
    |       |-- TooManyRuns     as many runs are active as may be
    |       `-- RebuildUnderWay windows are being rebuilt
    |-- Transient               busy, locked, unreachable: the same again may succeed
    |-- DataRefused             the database refuses a value: the same again is refused again
    |-- StorageUnusable         disk full, folder read-only, database file damaged
    `-- EngineFailed            the engine gave up on a run; carries the cause

Adapters translate foreign errors into these once, at their edge, with ``raise ... from``.
Handlers let them pass. ``Transient`` is the only one worth a retry: `scoring.retrying`.
"""

_HIDDEN: set[str] = set()
_SHORTEST = 6
"""Characters of a secret that is looked for: a shorter one is in every other word."""


def hide(secret: str) -> None:
    """Have a secret replaced wherever an error of this project is shown, logged or stored.

    Drivers and SDKs quote what they were given, and how they do so changes from one to the next.
    """
    if len(secret) >= _SHORTEST:
        _HIDDEN.add(secret)


class ScoringError(Exception):
    """Base of all errors of this project; its text is one sentence for a person."""

    def __str__(self) -> str:
        """Return the text without what is secret."""
        text = super().__str__()
        # The longest first: one secret may be a part of another.
        for secret in sorted(_HIDDEN, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text


class BadInput(ScoringError):
    """What was given is wrong, and giving it again fails again."""


class Misconfigured(BadInput):
    """Settings that are missing or wrong.

    Parameters
    ----------
    problems
        Every problem found, each naming its setting.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("settings: " + "; ".join(problems))
        self.problems = problems


class UnreadableSource(BadInput):
    """A file of readings that cannot be read as a whole."""


class InvalidFleet(BadInput):
    """A fleet file that is missing, truncated, tampered with or of an unknown format."""


class ModelRefused(BadInput):
    """A model file that an import does not accept; the text gives the reason."""


class InvalidPart(BadInput):
    """An input or prediction part that does not have the agreed form."""


class NotFound(ScoringError):
    """The named thing does not exist."""


class Conflict(ScoringError):
    """Another process holds the thing, or its state does not allow what was asked."""


class CannotBegin(Conflict):
    """No run may begin now; the text names what has to end first."""


class TooManyRuns(CannotBegin):
    """As many runs are active as may be; the text names them."""


class RebuildUnderWay(CannotBegin):
    """Windows are being rebuilt."""


class DataRefused(ScoringError):
    """The database refuses a value that it was given: the same again is refused again."""


class Transient(ScoringError):
    """Busy, locked or unreachable: the same again may succeed.

    Parameters
    ----------
    wait
        Seconds before the same is worth trying again; 0 leaves that to whoever tries.
    """

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class StorageUnusable(ScoringError):
    """The disk is full, the folder is read-only, or the database file is damaged."""


class EngineFailed(ScoringError):
    """The engine gave up on a run; the text is the cause in one line."""


def cause_of(error: Exception) -> str:
    """Give what an error says, fit for a log line: foreign ones may quote values and secrets."""
    return str(error) if isinstance(error, ScoringError) else type(error).__name__
