"""Engines put up for tests, and the runs to give them.

As a program, it runs one run in a process of its own: ``python -m tests.adapters.engines FOLDER
RUN_ID`` with what `LocalHarness` has staged.
"""

import fcntl
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.local_engine import LocalEngine, ParallelSettings
from scoring.ports import Blobs, Engine, EngineReport, ScoringOrder

ROOT = Path(__file__).parents[2]
Clock = Callable[[], datetime]
SCRIPT = Path(__file__).with_name("obedient_script.py")
FLEET = "f1"


def eventually(condition: Callable[[], bool], within: float = 60) -> None:
    """Wait until it is so; fail if that takes longer than anything should."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


class EngineHarness(Protocol):
    """What the contract's tests need of an engine's surroundings."""

    @property
    def engine(self) -> Engine:
        """The engine under test."""

    def stage(self, *, good: int = 0, bad: int = 0, stuck: int = 0) -> ScoringOrder:
        """Put input parts in place, some that fail, some that take until `release`."""

    def release(self) -> None:
        """Let the stuck parts go on."""

    def settle(self, order: ScoringOrder) -> EngineReport | None:
        """Wait until the engine has nothing more to do for the run, and report."""

    def predictions(self, order: ScoringOrder) -> list[str]:
        """Name the prediction parts that stand."""

    def errors(self, order: ScoringOrder) -> dict[str, str]:
        """Give the error files that stand, by their names."""

    def lose(self, order: ScoringOrder) -> None:
        """Have the run start, and what runs it die."""

    def close(self) -> None:
        """Leave nothing running."""


class LocalHarness:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs: Blobs = FolderBlobs(folder / "blobs")
        self.blobs.write(f"fleets/{FLEET}/how", b"ok")
        self._runs = 0
        self._engines: list[LocalEngine] = []
        self._processes: list[subprocess.Popen[str]] = []
        self.engine = self.new_engine()

    def new_engine(self, clock: Clock = lambda: datetime.now(UTC), **rules: Any) -> LocalEngine:
        settings = ParallelSettings(**{"max_retries": 0, "timeout": 300, **rules})
        engine = LocalEngine(self.blobs, self.folder / "work", settings, SCRIPT, clock)
        self._engines.append(engine)
        return engine

    def stage(self, *, good: int = 0, bad: int = 0, stuck: int = 0) -> ScoringOrder:
        hold = f"hold {self.mark}"
        return self.stage_parts(*["count"] * good, *["fail"] * bad, *[hold] * stuck)

    def stage_parts(self, *commands: str) -> ScoringOrder:
        self._runs += 1
        order = order_of(f"r{self._runs}")
        for number, command in enumerate(commands):
            self.blobs.write(f"{order.input_prefix}part-{number:05d}.parquet", command.encode())
        return order

    @property
    def mark(self) -> Path:
        return self.folder / "mark"

    def release(self) -> None:
        self.mark.write_text("go")

    def is_held(self) -> bool:
        """Whether a worker is at a stuck part, and lives."""
        with self.mark.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def settle(self, order: ScoringOrder) -> EngineReport | None:
        return self.engine.wait(order.run_id, 60)

    def predictions(self, order: ScoringOrder) -> list[str]:
        return predictions_of(self.blobs, order)

    def errors(self, order: ScoringOrder) -> dict[str, str]:
        return errors_of(self.blobs, order)

    def start_elsewhere(self, order: ScoringOrder) -> subprocess.Popen[str]:
        """Run a run with a stuck part in another process, and wait until it is stuck."""
        command = [sys.executable, "-m", "tests.adapters.engines", str(self.folder), order.run_id]
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._processes.append(process)
        eventually(self.is_held)
        return process

    def lose(self, order: ScoringOrder) -> None:
        process = self.start_elsewhere(order)
        process.kill()
        process.wait()

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        for process in self._processes:
            process.kill()
            process.communicate()


def predictions_of(blobs: Blobs, order: ScoringOrder) -> list[str]:
    prefix = order.prediction_prefix
    names = [info.name.removeprefix(prefix) for info in blobs.list(prefix)]
    return [name for name in names if not name.endswith(".error")]


def errors_of(blobs: Blobs, order: ScoringOrder) -> dict[str, str]:
    prefix = order.prediction_prefix
    names = [info.name for info in blobs.list(prefix) if info.name.endswith(".error")]
    return {name.removeprefix(prefix): blobs.read(name)[0].decode() for name in names}


def order_of(run_id: str) -> ScoringOrder:
    return ScoringOrder(run_id, FLEET, f"runs/{run_id}/input/1/", f"predictions/{run_id}/")


def main(folder: Path, run_id: str) -> None:
    engine = LocalHarness(folder).engine
    try:
        engine.submit(order_of(run_id))
        engine.wait(run_id)
    except KeyboardInterrupt:
        engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
