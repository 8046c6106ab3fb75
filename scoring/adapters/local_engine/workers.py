"""The pool of worker processes, and what happens inside them."""

import importlib.util
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import ModuleType

from pebble import ProcessExpired, ProcessPool

from scoring.errors import Misconfigured
from scoring.processes import exit_with_parent

_START_LIMIT = 120.0
"""Seconds that a worker may take to start and open the fleet, before it is given up."""

_CAUSE_LENGTH = 1000
"""Characters of a cause that are kept."""

_BROKEN = "the worker processes ended unexpectedly"
_STALLED = f"no worker process took it within {_START_LIMIT:g} s"

_LEAST = {
    "processes": 1,
    "mini_batch_size": 1,
    "max_retries": 0,
    "error_threshold": -1,
    "mini_batch_error_threshold": -1,
}


@dataclass(frozen=True, slots=True)
class ParallelSettings:
    """The parallel job's rules, as Azure ML knows them, but with no failure ignored by default.

    Attributes
    ----------
    processes
        Worker processes, of all runs together: runs follow one another.
    mini_batch_size
        Input parts a mini-batch.
    max_retries
        How often a failed mini-batch is tried again, after its first attempt.
    timeout
        Seconds that one attempt of a mini-batch may take.
    error_threshold
        Input parts that may fail before the run is aborted; -1 ignores them all.
    mini_batch_error_threshold
        Mini-batches that may fail before the run is aborted; -1 ignores them all.
    """

    processes: int = 2
    mini_batch_size: int = 1
    max_retries: int = 2
    timeout: float = 600.0
    error_threshold: int = 0
    mini_batch_error_threshold: int = 0

    def __post_init__(self) -> None:
        """Raise `Misconfigured`, naming every field that is out of range."""
        wrong = [
            f"{name} is {getattr(self, name)} and must be at least {least}"
            for name, least in _LEAST.items()
            if getattr(self, name) < least
        ]
        if not self.timeout > 0:
            wrong.append(f"timeout is {self.timeout} and must be more than 0 seconds")
        if wrong:
            raise Misconfigured(wrong)


@dataclass(slots=True)
class MiniBatch:
    """Input parts that are scored by one call of ``run()``, and how often that was tried."""

    number: int
    parts: tuple[str, ...]
    attempts: int = 0

    def naming(self, parts: Sequence[str]) -> str:
        """Name it for a cause, by the parts that are at fault; by all its parts if there are none.

        For example ``part-00000.parquet and 2 more (mini-batch 1)``.
        """
        parts = parts or self.parts
        more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        return f"{parts[0]}{more} (mini-batch {self.number})"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one attempt of a mini-batch.

    Attributes
    ----------
    rows
        Rows that ``run()`` returned.
    error
        One line; empty if it went well.
    is_final
        Trying again is no use: the worker could not be set up.
    """

    rows: int = 0
    error: str = ""
    is_final: bool = False


class Workers:
    """The pool of worker processes, replaced as a whole when it is beyond repair.

    pebble takes care of a worker that dies or takes too long over its mini-batch. Two things are
    left: a worker that dies between mini-batches breaks the pool; one that dies as it fetches a
    mini-batch, or that never gets through ``init()``, would be waited for without end.
    """

    def __init__(
        self, script: Path, argv: list[str], inputs: Path, processes: int, timeout: float
    ) -> None:
        self._script = script
        self._argv = argv
        self._inputs = inputs
        self._processes = processes
        self._timeout = timeout
        self._running: dict[Future[Result], MiniBatch] = {}
        self._pool = self._new_pool()
        self._last_news = monotonic()

    @property
    def are_busy(self) -> bool:
        """Whether any mini-batch is under way."""
        return bool(self._running)

    @property
    def want_more(self) -> bool:
        """Whether another mini-batch should be started, so that no process has to wait for one."""
        return len(self._running) < 2 * self._processes

    def start(self, mini_batch: MiniBatch) -> None:
        """Give a mini-batch to the next process that is free."""
        if not self._running:
            self._last_news = monotonic()
        paths = [str(self._inputs / part) for part in mini_batch.parts]
        try:
            future: Future[Result] = self._pool.schedule(
                run_mini_batch, args=(paths,), timeout=self._timeout
            )
        except RuntimeError as error:
            # The pool broke a moment ago: `finished` hears of it in this way.
            future = Future()
            future.set_exception(BrokenProcessPool(str(error)))
        self._running[future] = mini_batch

    def finished(self, within: float) -> list[tuple[MiniBatch, Result]]:
        """Wait for mini-batches that have ended, well or not, `within` seconds."""
        done, _ = wait(self._running, within, FIRST_COMPLETED)
        broken = any(isinstance(future.exception(), BrokenProcessPool) for future in done)
        ended = [(self._running.pop(future), self._result(future)) for future in done]
        if broken:
            ended += self._start_over(_BROKEN)
        elif self._is_stalled(bool(ended)):
            ended += self._start_over(_STALLED)
        return ended

    def stop(self) -> None:
        """End all processes, in the middle of their work if need be."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def _is_stalled(self, news: bool) -> bool:
        # While a mini-batch is being scored, its timeout holds.
        if news or any(future.running() for future in self._running):
            self._last_news = monotonic()
        return monotonic() - self._last_news > _START_LIMIT

    def _start_over(self, reason: str) -> list[tuple[MiniBatch, Result]]:
        self.stop()
        self._pool = self._new_pool()
        lost = [(mini_batch, Result(error=reason)) for mini_batch in self._running.values()]
        self._running.clear()
        return lost

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._processes,
            initializer=start_worker,
            initargs=(self._script, self._argv),
            # Forking a process that has threads is not safe.
            context=multiprocessing.get_context("spawn"),
        )

    def _result(self, future: Future[Result]) -> Result:
        match future.exception():
            case None:
                return future.result()
            case TimeoutError():
                return Result(error=f"run() took longer than {self._timeout:g} s")
            case BrokenProcessPool():
                return Result(error=_BROKEN)
            case ProcessExpired() as error:
                return Result(error=f"the worker process ended with exit code {error.exitcode}")
            case error:
                return Result(error=describe(error))


def describe(error: BaseException) -> str:
    """Put an error's class and text into one line."""
    return one_line(f"{type(error).__name__}: {error}")


def one_line(text: str) -> str:
    """Put a cause into one line of bounded length."""
    return " ".join(text.split())[:_CAUSE_LENGTH]


# From here on: what happens in a worker process.


class _Entry:
    """The entry script of this worker process."""

    def __init__(self) -> None:
        self.run: Callable[[list[str]], Sized] | None = None
        self.error = ""

    def load(self, script: Path) -> None:
        try:
            module = _import(script)
            module.init()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - told by the first mini-batch
            self.error = f"init() failed: {describe(error)}"
        else:
            self.run = module.run


_entry = _Entry()


def start_worker(script: Path, argv: list[str]) -> None:
    """Set a new process up: signals, the parent's death, ``init()``."""
    # pebble's own handler waits for Python to get its turn, a long calculation would delay it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    exit_with_parent()
    sys.argv = [str(script), *argv]
    # An error raised here would have pebble start the next process, without end or message.
    _entry.load(script)


def _import(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("entry_script", script)
    if spec is None or spec.loader is None:
        message = f"{script} is not a Python file"
        raise ImportError(message)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_mini_batch(paths: list[str]) -> Result:
    """Run one mini-batch; errors go back as text, for their classes may not be known there."""
    if _entry.run is None:
        return Result(error=_entry.error, is_final=True)
    try:
        return Result(rows=len(_entry.run(paths)))
    except Exception as error:  # noqa: BLE001 - the entry script may be anybody's
        return Result(error=describe(error))
