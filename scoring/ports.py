"""What the handlers need of the outside world, and nothing of how it is done."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob's full name, its size in bytes, and a tag that changes when its content does."""

    name: str
    etag: str
    size: int


class Blobs(Protocol):
    """Named, immutable-when-read blocks of bytes; names use ``/``."""

    def read(self, name: str) -> tuple[bytes, BlobInfo]:
        """Give a blob's whole content; raise `NotFound` where there is none."""

    def write(self, name: str, data: bytes) -> BlobInfo:
        """Put a blob in place at once and durably, over what stood there."""

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Give the blobs whose names begin with `prefix`, in the order of their names."""

    def delete(self, prefix: str) -> None:
        """Remove the blobs whose names begin with `prefix`; none is no error."""

    def fetch(self, prefix: str, folder: Path) -> None:
        """Place the blobs below `prefix` as files into `folder`, by their names after `prefix`.

        The files are to be read only: an adapter may link instead of copy.
        """


class EngineState(StrEnum):
    """What an engine says of a run that it knows."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class EngineReport:
    """How far an engine is with one run.

    Attributes
    ----------
    cause
        Why it failed, one line, else empty.
    parts_done
        Prediction parts finished so far, where the engine can tell.
    """

    state: EngineState
    cause: str = ""
    parts_done: int = 0


@dataclass(frozen=True, slots=True)
class ScoringOrder:
    """All that an engine needs to score a run; the prefixes are those of blobs."""

    run_id: str
    fleet_version: str
    input_prefix: str
    prediction_prefix: str


class Engine(Protocol):
    """Scores input parts into prediction parts, somewhere, in its own time."""

    def submit(self, order: ScoringOrder) -> None:
        """Start the run, or do nothing if a run of this id was already accepted.

        Returns at once. Raises `Transient` if it is not known whether the run was accepted:
        submitting again is always safe.
        """

    def poll(self, run_id: str) -> EngineReport | None:
        """Tell how far the run is; None if no run of this id was ever accepted, or it was lost."""

    def cancel(self, run_id: str) -> None:
        """Stop the run; nothing happens if it is unknown or has ended."""
