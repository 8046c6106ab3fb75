"""One attempt at a run: mini-batches, retries and thresholds as the parallel job has them."""

import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from scoring.adapters.local_engine.run_folder import RunFolder
from scoring.adapters.local_engine.workers import (
    MiniBatch,
    ParallelSettings,
    Result,
    Workers,
    one_line,
)
from scoring.errors import EngineFailed, ScoringError
from scoring.ports import Blobs, ScoringOrder
from scoring.runs import error_name, fleet_prefix
from scoring.storage import storage_errors

_log = logging.getLogger(__name__)

TICK = 0.1
"""Seconds after which a run looks whether it was canceled."""


class Canceled(Exception):
    """Somebody canceled the run."""


class Closed(Exception):
    """The engine is closing."""


def check_stop(folder: RunFolder, closing: Event) -> None:
    """Raise `Closed` or `Canceled` if the run has to stop here."""
    if closing.is_set():
        raise Closed
    if folder.cancel_requested():
        raise Canceled


class Attempt:
    """Takes one run from its input blobs to its prediction blobs."""

    def __init__(
        self,
        order: ScoringOrder,
        folder: RunFolder,
        blobs: Blobs,
        settings: ParallelSettings,
        entry_script: Path,
    ) -> None:
        self.parts_done = 0
        self._order = order
        self._folder = folder
        self._blobs = blobs
        self._settings = settings
        self._entry_script = entry_script
        self._predictions = Path()
        self._failed_parts = 0
        self._failed_mini_batches = 0

    def execute(self, closing: Event) -> None:
        """Score all parts that have no prediction yet.

        Raises
        ------
        EngineFailed
            More failed than the settings allow.
        """
        parts = self._parts_to_score()
        self._folder.note_progress(self.parts_done)
        if not parts:
            return
        mini_batches = self._mini_batches(parts)
        workers = self._workers(self._stage(), len(mini_batches))
        try:
            self._score(mini_batches, workers, closing)
        finally:
            workers.stop()

    def _parts_to_score(self) -> list[str]:
        parts = self._names(self._order.input_prefix)
        predicted = set(self._names(self._order.prediction_prefix))
        self.parts_done = len(predicted.intersection(parts))
        return [part for part in parts if part not in predicted]

    def _names(self, prefix: str) -> list[str]:
        return [info.name.removeprefix(prefix) for info in self._blobs.list(prefix)]

    def _stage(self) -> Path:
        stage = self._folder.new_stage()
        self._predictions = stage / "predictions"
        with storage_errors(stage):
            for name in ("fleet", "input", "predictions"):
                (stage / name).mkdir()
        self._blobs.fetch(fleet_prefix(self._order.fleet_version), stage / "fleet")
        self._blobs.fetch(self._order.input_prefix, stage / "input")
        return stage

    def _workers(self, stage: Path, most: int) -> Workers:
        arguments = {
            "--fleet": stage / "fleet",
            "--fleet-version": self._order.fleet_version,
            "--predictions": self._predictions,
            "--run-id": self._order.run_id,
        }
        argv = [str(word) for pair in arguments.items() for word in pair]
        processes = min(self._settings.processes, most)
        return Workers(self._entry_script, argv, stage / "input", processes, self._settings.timeout)

    def _mini_batches(self, parts: Sequence[str]) -> deque[MiniBatch]:
        size = self._settings.mini_batch_size
        starts = range(0, len(parts), size)
        return deque(
            MiniBatch(number, tuple(parts[start : start + size]))
            for number, start in enumerate(starts, 1)
        )

    def _score(self, waiting: deque[MiniBatch], workers: Workers, closing: Event) -> None:
        while waiting or workers.are_busy:
            check_stop(self._folder, closing)
            while waiting and workers.want_more:
                workers.start(waiting.popleft())
            for mini_batch, result in workers.finished(TICK):
                if not self._settle(mini_batch, result):
                    waiting.append(mini_batch)

    def _settle(self, mini_batch: MiniBatch, result: Result) -> bool:
        """Take what a mini-batch has brought; False if it is to be tried again."""
        mini_batch.attempts += 1
        error = result.error or self._shortfall(mini_batch, result.rows)
        if result.is_final:
            raise EngineFailed(error)
        if error:
            facts = {"run": self._order.run_id, "attempt": mini_batch.attempts, "cause": error}
            _log.warning("engine.mini_batch_failed", extra=facts)
            if mini_batch.attempts <= self._settings.max_retries:
                # The next attempt may fail in another way, or at another part.
                self._forget_errors(mini_batch)
                return False
        self._upload(mini_batch)
        if error:
            failed = self._upload_errors(mini_batch, error)
            self._note_failure(mini_batch, failed, result.rows, error)
        return True

    def _shortfall(self, mini_batch: MiniBatch, rows: int) -> str:
        if rows < len(mini_batch.parts):
            return f"run() returned {rows} rows for {len(mini_batch.parts)} parts"
        for part in mini_batch.parts:
            if not (self._predictions / part).exists():
                return f"run() wrote no predictions for {part}"
        return ""

    def _upload(self, mini_batch: MiniBatch) -> None:
        """Store the finished parts, those of a mini-batch that failed in the middle too."""
        for part in mini_batch.parts:
            path = self._predictions / part
            if path.exists():
                self._blobs.write(self._order.prediction_prefix + part, path)
                self.parts_done += 1
        self._folder.note_progress(self.parts_done)

    def _forget_errors(self, mini_batch: MiniBatch) -> None:
        with storage_errors(self._predictions):
            for part in mini_batch.parts:
                (self._predictions / error_name(part)).unlink(missing_ok=True)

    def _upload_errors(self, mini_batch: MiniBatch, error: str) -> list[str]:
        """Store why parts of a mini-batch have no predictions; gives the parts that are at fault.

        The entry script says which part failed: those after it were never reached. If it does
        not, because it was killed or knows no error files, all parts without predictions have
        failed with the mini-batch, and it is not known which of them is at fault.
        """
        missing = [part for part in mini_batch.parts if not (self._predictions / part).exists()]
        told = {part: text for part in missing if (text := self._told(part))}
        for part, text in (told or dict.fromkeys(missing, error)).items():
            name = self._order.prediction_prefix + error_name(part)
            try:
                self._blobs.write(name, text.encode(errors="replace"))
            except ScoringError as failure:
                # What the mini-batch failed with counts for more.
                facts = {"run": self._order.run_id, "part": part, "cause": str(failure)}
                _log.warning("engine.no_error_file", extra=facts)
        return list(told)

    def _told(self, part: str) -> str:
        """Return what the entry script wrote of a part that failed, one line; empty if nothing."""
        try:
            data = (self._predictions / error_name(part)).read_bytes()
        except OSError:
            return ""
        return one_line(data.decode(errors="replace"))

    def _note_failure(
        self, mini_batch: MiniBatch, failed: list[str], rows: int, error: str
    ) -> None:
        self._failed_parts += len(mini_batch.parts) - rows
        self._failed_mini_batches += 1
        rules = self._settings
        if _exceeds(self._failed_parts, rules.error_threshold) or _exceeds(
            self._failed_mini_batches, rules.mini_batch_error_threshold
        ):
            attempts = mini_batch.attempts
            times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
            message = f"{mini_batch.naming(failed)} failed after {times}: {error}"
            raise EngineFailed(message)


def _exceeds(failures: int, threshold: int) -> bool:
    return 0 <= threshold < failures
