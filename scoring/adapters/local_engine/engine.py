"""The engine: which runs are under way in this process, and how they end."""

import atexit
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event, Semaphore, Thread

from scoring import instants
from scoring.adapters.local_engine.attempt import TICK, Attempt, Canceled, Closed, check_stop
from scoring.adapters.local_engine.run_folder import RunFolder, clear_lost
from scoring.adapters.local_engine.workers import ParallelSettings, describe
from scoring.errors import BadInput, EngineFailed, StorageUnusable, Transient
from scoring.ports import Blobs, EngineReport, EngineState, ScoringOrder

_log = logging.getLogger(__name__)

SCORE = Path(__file__).parents[2] / "job" / "score.py"
"""The project's own entry script."""

ELSEWHERE = 0.5
"""Seconds between two looks at a run that another process has."""


class LocalEngine:
    """Scores runs on this machine, one after the other, each in a pool of processes.

    Parameters
    ----------
    work_folder
        On a local disk; engines of several processes may share it.
    entry_script
        A Python file with the parallel job's ``init()`` and ``run(mini_batch)``, given the
        arguments of `scoring.job.score`. Its ``shutdown()`` is not called: workers are stopped.
    clock
        Returns the time, aware; for when a run began to score.
    """

    def __init__(
        self,
        blobs: Blobs,
        work_folder: Path,
        settings: ParallelSettings,
        entry_script: Path = SCORE,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._blobs = blobs
        self._work_folder = work_folder
        self._settings = settings
        self._entry_script = entry_script
        self._clock = clock
        self._turn = Semaphore(1)
        self._closing = Event()
        self._threads: dict[str, Thread] = {}
        # A program that ends without close() must not wait for the run, nor leave workers.
        atexit.register(self.close)

    def submit(self, order: ScoringOrder) -> None:
        """Start the run in the background, or do nothing if it runs or has ended, wherever.

        A run that was canceled before ends as canceled at once.

        Raises
        ------
        Transient
            The engine is closing, or the system has no thread left: submit again later.
        StorageUnusable
            The work folder cannot be written.
        """
        if self._closing.is_set():
            message = f"run {order.run_id} was not started: the engine is closing"
            raise Transient(message)
        folder = self._folder(order.run_id)
        if not folder.take():
            return
        if folder.cancel_requested():
            try:
                self._end(order, folder, EngineReport(EngineState.CANCELED))
            finally:
                folder.release()
            return
        try:
            self._start(order, folder)
        except RuntimeError as error:
            folder.release()
            message = f"run {order.run_id} was not started: {error}"
            raise Transient(message) from error

    def poll(self, run_id: str) -> EngineReport | None:
        """Tell how far the run is, whichever process runs it; None if unknown or lost."""
        return self._folder(run_id).report()

    def cancel(self, run_id: str) -> None:
        """Have the run stopped, whichever process runs it.

        For a run that is unknown the request is kept: another process may be about to submit it.
        """
        folder = self._folder(run_id)
        report = folder.report()
        if report is None or not report.has_ended:
            folder.request_cancel()

    def wait(self, run_id: str, timeout: float | None = None) -> EngineReport | None:
        """Wait until a run of this process ends, at most `timeout` seconds; then as `poll`.

        One that another process has is looked at again after `ELSEWHERE`: it cannot be joined.
        """
        if thread := self._threads.get(run_id):
            thread.join(timeout)
        elif (report := self.poll(run_id)) and not report.has_ended:
            self._closing.wait(ELSEWHERE)
        return self.poll(run_id)

    def close(self) -> None:
        """Stop all runs of this process and wait for their end; each can be submitted again."""
        self._closing.set()
        for thread in list(self._threads.values()):
            thread.join()
        atexit.unregister(self.close)

    def _folder(self, run_id: str) -> RunFolder:
        if not run_id or Path(run_id).name != run_id or run_id.startswith("."):
            message = f"{run_id!r} cannot be the id of a run"
            raise BadInput(message)
        return RunFolder(self._work_folder, run_id)

    def _start(self, order: ScoringOrder, folder: RunFolder) -> None:
        thread = Thread(target=self._drive, args=(order, folder), name=order.run_id, daemon=True)
        thread.start()
        for run_id, other in list(self._threads.items()):
            if not other.is_alive():
                self._threads.pop(run_id, None)
        self._threads[order.run_id] = thread

    def _drive(self, order: ScoringOrder, folder: RunFolder) -> None:
        try:
            _shield_from_ctrl_c()
            if report := self._outcome(order, folder):
                self._end(order, folder, report)
                clear_lost(self._work_folder)
        except StorageUnusable:
            # No outcome could be written: to others the run is lost, and may be submitted again.
            _log.exception("engine.run_lost", extra={"run": order.run_id})
        finally:
            folder.clear()
            folder.release()

    @staticmethod
    def _end(order: ScoringOrder, folder: RunFolder, report: EngineReport) -> None:
        folder.end(report)
        _log.info("engine.run_ended", extra={"run": order.run_id, **asdict(report)})

    def _outcome(self, order: ScoringOrder, folder: RunFolder) -> EngineReport | None:
        """Run to the end; None if the engine closes before."""
        attempt = Attempt(order, folder, self._blobs, self._settings, self._entry_script)
        state, cause = EngineState.COMPLETED, ""
        try:
            with self._next_in_turn(folder):
                check_stop(folder, self._closing)
                folder.note_start(instants.of(self._clock()))
                _log.info("engine.run_started", extra={"run": order.run_id})
                attempt.execute(self._closing)
        except Closed:
            return None
        except Canceled:
            state = EngineState.CANCELED
        except EngineFailed as error:
            state, cause = EngineState.FAILED, str(error)
        except Exception as error:  # noqa: BLE001 - nobody is above: it becomes the outcome
            if self._closing.is_set():
                return None
            _log.exception("engine.run_failed", extra={"run": order.run_id})
            state, cause = EngineState.FAILED, describe(error)
        return EngineReport(state, cause, attempt.parts_done, started=folder.started)

    @contextmanager
    def _next_in_turn(self, folder: RunFolder) -> Iterator[None]:
        while not self._turn.acquire(timeout=TICK):
            check_stop(folder, self._closing)
        try:
            yield
        finally:
            self._turn.release()


def _shield_from_ctrl_c() -> None:
    """Block SIGINT in this thread, and in the threads and processes that it starts.

    They inherit the mask, so that Ctrl-C in a terminal reaches no worker, not even one that is
    just starting and could not ignore it yet. The main thread still hears it.
    """
    # It unblocks the signal when it starts: have that behind us.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
