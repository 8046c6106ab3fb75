"""How a run stands, in a folder that every process can read.

``lock``          held (flock) by the process that runs it; its text is the number of parts done
                  and when scoring began (epoch microseconds UTC), empty while it waits for its turn
``gate``          held for the moment in which somebody tries the lock
``cancel``        somebody asked for the run to be stopped, perhaps before it was submitted
``outcome.json``  how the run ended, written once
``stage-*/``      fleet, input parts and predictions of one attempt, removed at the end

A run whose lock is free and that has no outcome was lost with its process. What it had staged is
removed when it is taken again, or when another run ends.
"""

import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from scoring.ports import EngineReport, EngineState
from scoring.storage import storage_errors

log = logging.getLogger("scoring.engine")


class RunFolder:
    """What the file system says of one run."""

    def __init__(self, root: Path, run_id: str) -> None:
        self.path = root / run_id
        self.started: int | None = None
        self._lock: int | None = None

    def take(self) -> bool:
        """Make the run this object's own; False if another has it, or it has ended."""
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                with self._gate():
                    self._lock = _try_lock(self.path / "lock")
                    if self._lock is None:
                        return False
                    # Behind the gate: nobody takes an earlier attempt's start for this one's.
                    os.ftruncate(self._lock, 0)
                has_ended = self._outcome() is not None
            except OSError:
                self.release()
                raise
        if has_ended:
            self.release()
        return not has_ended

    def release(self) -> None:
        """Let the run go."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def report(self) -> EngineReport | None:
        """How the run stands; None if nobody has it and it has not ended."""
        if not self.path.is_dir():
            return None
        with storage_errors(self.path):
            # In this order: the outcome is written before the lock is let go.
            progress = self._progress()
            return self._outcome() or progress

    def note_start(self, now: int) -> None:
        """Tell all processes that scoring begins; `now` in epoch microseconds UTC."""
        self.started = now
        self.note_progress(0)

    def note_progress(self, parts_done: int) -> None:
        """Tell all processes how many parts of the run are done; after `note_start`."""
        if self._lock is not None:
            with storage_errors(self.path):
                os.pwrite(self._lock, f"{parts_done} {self.started}".encode(), 0)

    def request_cancel(self) -> None:
        """Ask whichever process has the run, or will have it, to stop it."""
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "cancel").touch()

    def cancel_requested(self) -> bool:
        """Whether the run is to be stopped."""
        return (self.path / "cancel").exists()

    def new_stage(self) -> Path:
        """Make an empty folder for one attempt; what earlier ones left is removed."""
        self.clear()
        with storage_errors(self.path):
            return Path(tempfile.mkdtemp(prefix="stage-", dir=self.path))

    def end(self, report: EngineReport) -> None:
        """Persist the outcome."""
        draft = self.path / "outcome.draft"
        with storage_errors(self.path):
            with draft.open("w") as file:
                json.dump(asdict(report), file)
                file.flush()
                # Else a power cut could leave an empty file under the final name.
                os.fsync(file.fileno())
            draft.replace(self.path / "outcome.json")

    def clear_if_lost(self) -> None:
        """Remove what was staged if no process has the run; a run that it has is left alone."""
        with storage_errors(self.path), self._gate():
            # Who wants to take the run waits at the gate, and does not mistake this for an owner.
            lock = _try_lock(self.path / "lock")
            if lock is not None:
                try:
                    self.clear()
                finally:
                    os.close(lock)

    def clear(self) -> None:
        """Remove what was staged."""
        for stage in self.path.glob("stage-*"):
            # A worker of a killed process may live for another moment, and write.
            shutil.rmtree(stage, ignore_errors=True)

    def _outcome(self) -> EngineReport | None:
        try:
            facts = json.loads((self.path / "outcome.json").read_bytes())
            state, cause = EngineState(facts["state"]), str(facts["cause"])
            return EngineReport(
                state, cause, int(facts["parts_done"]), started=facts.get("started")
            )
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            # Written at once, it was damaged later: the run counts as lost, and is scored again.
            log.warning("engine.outcome_unreadable", extra={"path": str(self.path)})
            return None

    def _progress(self) -> EngineReport | None:
        if self._is_free():
            return None
        said = (self.path / "lock").read_bytes()
        if not said:
            return EngineReport(EngineState.QUEUED)
        # Without a start: of a process that runs an earlier version, or damaged.
        numbers = [int(word) for word in said.split() if word.isdigit()]
        parts_done = numbers[0] if numbers else 0
        started = numbers[1] if len(numbers) > 1 else None
        return EngineReport(EngineState.RUNNING, parts_done=parts_done, started=started)

    def _is_free(self) -> bool:
        with self._gate():
            lock = _try_lock(self.path / "lock")
            if lock is not None:
                os.close(lock)
        return lock is not None

    @contextmanager
    def _gate(self) -> Iterator[None]:
        """Keep who takes a run from mistaking a look at its lock for somebody who has it."""
        with (self.path / "gate").open("ab") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            yield


def clear_lost(root: Path) -> None:
    """Remove what lost runs had staged: those whose process was killed, and that nobody resumed.

    Outcomes stay: `RunFolder.report` answers for as long as the folder is there.
    """
    for run_id in {stage.parent.name for stage in root.glob("*/stage-*")}:
        RunFolder(root, run_id).clear_if_lost()


def _try_lock(path: Path) -> int | None:
    # Not inherited: spawned workers do not keep the lock alive.
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
