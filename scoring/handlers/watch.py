"""Watch runs: follow the engine, index what it wrote, end what has ended."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from scoring import instants
from scoring.errors import Conflict, InvalidPart, ScoringError, cause_of
from scoring.handlers.logs import RunLogs
from scoring.handlers.submit import CLAIM_LIMIT, SubmitRun
from scoring.ports import Blobs, Engine, EngineReport, EngineState, RunStore
from scoring.runs import Part, RunState, ScoringRun, missing_parts, part_name

_WITH_ENGINE = (RunState.SUBMITTED, RunState.RUNNING)

_KEPT = "could not be followed: "

log = logging.getLogger("scoring.watch")


def _tell_nobody(_: object) -> None:
    """Take note of nothing."""


@dataclass(frozen=True, slots=True)
class WatchRuns:
    """The watch handler: brings every active run as far as it can come now.

    Attributes
    ----------
    index
        The index handler.
    ended
        Told the id of each run that was ended here, once.
    """

    store: RunStore
    blobs: Blobs
    engine: Engine
    submit: SubmitRun
    index: Callable[[str], bool]
    ended: Callable[[str], None] = _tell_nobody

    def __call__(
        self, now: datetime, nonce: str, tell: Callable[[ScoringRun], None] = _tell_nobody
    ) -> list[ScoringRun]:
        """Look at every active run once; gives them as they are then.

        A run that fails keeps nobody from looking at those after it: its error is logged, and the
        first one is raised in the end.

        Parameters
        ----------
        tell
            Told each run as it is then, also where another one fails.
        """
        seen, errors = [], []
        for run in self.store.active_runs():
            try:
                seen.append(self.watch(run, now, nonce))
            except Exception as error:  # noqa: BLE001 - a defect that one run meets is its own too
                _log_failure(run, error)
                errors.append(error)
            else:
                tell(seen[-1])
        if errors:
            raise errors[0]
        return seen

    @property
    def logs(self) -> RunLogs:
        """Logs of runs that failed."""
        return RunLogs(self.blobs)

    def watch(self, run: ScoringRun, now: datetime, nonce: str) -> ScoringRun:
        """Look at one run once."""
        run = self.submit.advance(run, now, nonce)
        if run.state in _WITH_ENGINE:
            self._follow(run, now)
        elif run.state == RunState.SCORED:
            self._complete(run, now)
        return self.store.run(run.run_id)

    def cancel(self, run_id: str, now: datetime) -> ScoringRun:
        """Stop a run and give its windows back.

        Raises
        ------
        NotFound, Conflict
            There is no such run, or it has ended.
        """
        run = self.store.run(run_id)
        if run.state.is_terminal:
            message = f"run {run_id} is {run.state} and cannot be canceled"
            raise Conflict(message)
        self.engine.cancel(run_id)
        self._end(run, RunState.CANCELED, now, "canceled on request")
        return self.store.run(run_id)

    def _follow(self, run: ScoringRun, now: datetime) -> None:
        try:
            self._look(run, now)
        except ScoringError as error:
            # What keeps it is seen with the run, until a look goes well. The error itself counts
            # for more than that it could not be noted.
            with suppress(ScoringError):
                self._note(run, f"{_KEPT}{error}")
            raise
        if run.cause:
            self._note(run, "")

    def _note(self, run: ScoringRun, cause: str) -> None:
        """Say what keeps a run that is still where it was; the same again is not written."""
        current = self.store.run(run.run_id)
        if current.state == run.state and current.cause != cause:
            self.store.note(run, cause)

    def _look(self, run: ScoringRun, now: datetime) -> None:
        report = self.engine.poll(run.run_id)
        if report is None:
            # The answer to the submit was lost, or the engine died with the run: give it again.
            self.submit.resubmit(run)
            return
        if report.status or report.link:
            self.store.note_engine(run, report.status, report.link)
        problems = self._index_new(run)
        match report.state:
            case EngineState.RUNNING if run.state == RunState.SUBMITTED:
                self.store.transition(run, RunState.RUNNING, instants.of(now))
            case EngineState.COMPLETED:
                self.store.transition(run, RunState.SCORED, instants.of(now))
                self._complete(run, now, problems)
            case EngineState.FAILED:
                # Before it has failed: a crash in between leaves it to be asked again.
                self.logs.keep(run.run_id, report.logs)
                self._end(run, RunState.FAILED, now, _cause(report))
            case EngineState.CANCELED:
                self._end(run, RunState.CANCELED, now, "canceled at the engine")
            case _:
                pass

    def _index_new(self, run: ScoringRun) -> list[str]:
        """Index the parts that are there and were not indexed; gives what is wrong with any."""
        etags = {run.prediction_prefix + part_name(p.number): p.etag for p in self.store.parts(run)}
        problems = []
        for blob in self.blobs.list(run.prediction_prefix):
            if blob.name in etags and etags[blob.name] != blob.etag:
                try:
                    self.index(blob.name)
                except InvalidPart as error:
                    problems.append(str(error))
        return problems

    def _complete(self, run: ScoringRun, now: datetime, problems: list[str] | None = None) -> None:
        problems = self._index_new(run) if problems is None else problems
        parts = self.store.parts(run)
        indexed = {p.number: p.indexed_rows for p in parts if p.indexed_rows is not None}
        expected = [Part(part.number, part.rows) for part in parts]
        problems = problems + missing_parts(expected, indexed)
        if problems:
            self.store.note(run, "incomplete: " + "; ".join(problems))
        elif self.store.transition(run, RunState.COMPLETED, instants.of(now)):
            self.ended(run.run_id)

    def _end(self, run: ScoringRun, state: RunState, now: datetime, cause: str) -> None:
        # Windows first: a crash in between leaves the run active, and this is done again.
        while self.store.release(run, CLAIM_LIMIT):
            pass
        if self.store.transition(run, state, instants.of(now), cause):
            self.ended(run.run_id)


def _log_failure(run: ScoringRun, error: Exception) -> None:
    facts = {"run": run.run_id, "error": type(error).__name__, "cause": cause_of(error)}
    # Only one error of a look is raised: nobody else would show where a defect is.
    trace = None if isinstance(error, ScoringError) else error
    log.warning("watch.run_failed", extra=facts, exc_info=trace)


def _cause(report: EngineReport) -> str:
    return report.cause or "the engine gave no cause"
