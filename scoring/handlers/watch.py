"""Watch runs: follow the engine, index what it wrote, end what has ended."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from scoring import instants
from scoring.errors import ScoringError, cause_of
from scoring.handlers.ending import EndRuns, tell_nobody
from scoring.handlers.logs import RunLogs
from scoring.handlers.submit import SubmitRun
from scoring.ports import Blobs, Engine, EngineReport, EngineState, RunStore
from scoring.runs import RunState, ScoringRun

LOSSES = 10
"""How often a run that the engine has lost is given to it again."""

GRACE = 24 * 3600 * instants.SECOND
"""Microseconds more that a run may take to complete once it is scored: nothing is left but that."""

_WITH_ENGINE = (RunState.SUBMITTED, RunState.RUNNING)

_BEFORE_ENGINE = (RunState.CLAIMING, RunState.CLAIMED, RunState.EXPORTED)
_KEPT = "could not be followed: "

log = logging.getLogger("scoring.watch")


@dataclass(frozen=True, slots=True)
class WatchRuns:
    """The watch handler: brings every run as far as it can come now.

    Attributes
    ----------
    ending
        Ends what has ended.
    deadline
        Microseconds that a run may be scored for, from when the engine began.
    queue_limit
        Microseconds that a run may wait for the engine to begin.
    """

    store: RunStore
    blobs: Blobs
    engine: Engine
    submit: SubmitRun
    ending: EndRuns
    deadline: int
    queue_limit: int

    def __call__(
        self, now: datetime, nonce: str, tell: Callable[[ScoringRun], None] = tell_nobody
    ) -> list[ScoringRun]:
        """Look at every active run once, and at the jobs of runs that have ended.

        A run that fails keeps nobody from looking at those after it: its error is logged, and the
        first one is raised in the end.

        Parameters
        ----------
        tell
            Told each active run as it is then, also where another one fails.

        Returns
        -------
        list of ScoringRun
            The runs that were active, as they are then.
        """
        # First: a run that ends in this look is followed from the next one on.
        self.follow_jobs(now)
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

    def follow_jobs(self, now: datetime) -> None:
        """Follow the jobs of runs that have ended, until they have.

        What keeps one from being followed is logged, and seen in the status: the run itself has
        ended, so that this is no failure.
        """
        for run in self.store.open_jobs():
            try:
                self.ending.follow_job(run, now)
            except Exception as error:  # noqa: BLE001 - as above, and all active runs come after
                _log_failure(run, error)
                with suppress(ScoringError):
                    self.store.note_engine(run, f"could not be asked: {cause_of(error)}")

    @property
    def logs(self) -> RunLogs:
        """Logs of runs that failed."""
        return RunLogs(self.blobs)

    def watch(self, run: ScoringRun, now: datetime, nonce: str) -> ScoringRun:
        """Look at one run once."""
        try:
            run = self.submit.advance(run, now, nonce)
        except Exception as error:
            if not self._has_waited(run, now):
                with suppress(ScoringError):
                    self._note_delay(run, error)
                raise
            waited = f"not submitted within {_text(self.queue_limit)}: {cause_of(error)}"
            self.ending.stop(run, RunState.FAILING, now, waited)
        if run.state in _WITH_ENGINE:
            self._follow(run, now, self._look)
        elif run.state == RunState.SCORED:
            self._follow(run, now, self.ending.complete)
        elif run.state.gives_back:
            self.ending.finish(run, now)
        return self.store.run(run.run_id)

    def cancel(self, run_id: str, now: datetime) -> ScoringRun:
        """Stop a run and give its windows back; see `EndRuns.cancel`."""
        return self.ending.cancel(run_id, now)

    def _note_delay(self, run: ScoringRun, error: Exception) -> None:
        """Say what keeps a run from being exported; what keeps it from the engine is said there."""
        current = self.store.run(run.run_id)
        if current.state in {RunState.CLAIMING, RunState.CLAIMED}:
            self._note(current, f"not exported yet: {cause_of(error)}")

    def _has_waited(self, run: ScoringRun, now: datetime) -> bool:
        """Whether a run that could not be submitted is given up."""
        has_begun = self.store.run(run.run_id).state in _BEFORE_ENGINE
        return has_begun and instants.of(now) - run.created_at > self.queue_limit

    @property
    def _all_its_time(self) -> str:
        return _text(self.queue_limit + self.deadline)

    def _has_had_all_its_time(self, run: ScoringRun, now: int) -> bool:
        """Whether a run is late though it is not known when the engine began."""
        submitted = run.submitted_at or run.created_at
        return now - submitted > self.queue_limit + self.deadline

    def _follow(
        self, run: ScoringRun, now: datetime, look: Callable[[ScoringRun, datetime], None]
    ) -> None:
        """Look at a run that the engine has or has scored; give up one that keeps failing."""
        try:
            look(run, now)
        except Exception as error:
            # What keeps it is seen with the run, until a look goes well. The error itself counts
            # for more than that it could not be noted.
            with suppress(ScoringError):
                self._note(run, f"{_KEPT}{cause_of(error)}")
            grace = GRACE if run.state == RunState.SCORED else 0
            if not self._has_had_all_its_time(run, instants.of(now) - grace):
                raise
            _log_failure(run, error)
            cause = f"not known to be done within {self._all_its_time}: {cause_of(error)}"
            self.ending.end(run, RunState.FAILING, now, cause)
            return
        if run.cause:
            self._note(run, "")

    def _note(self, run: ScoringRun, cause: str) -> None:
        """Say what keeps a run that is still where it was; the same again is not written."""
        if self.store.run(run.run_id).cause != cause:
            self.store.note(run, run.state, cause)

    def _look(self, run: ScoringRun, now: datetime) -> None:
        report = self.engine.poll(run.run_id)
        if report is None:
            self._lost(run, now)
            return
        if report.status or report.link:
            self.store.note_engine(run, report.status, report.link)
        match report.state:
            case EngineState.COMPLETED:
                self.store.transition(run, RunState.SCORED, instants.of(now))
                self.ending.complete(run, now)
            case EngineState.FAILED:
                # Before it has failed: a crash in between leaves it to be asked again.
                self.logs.keep(run.run_id, report.logs)
                self.ending.fail(run, now, report.cause or "the engine gave no cause")
            case EngineState.CANCELED:
                self.ending.stop(run, RunState.CANCELING, now, "canceled at the engine")
            case _:
                self._go_on(run, report, now)
                return
        self.store.close_job(run)

    def _lost(self, run: ScoringRun, now: datetime) -> None:
        """Resubmit a run that the engine does not know, a number of times.

        It counts once the engine has taken it again: one that refuses it has not lost it anew.
        """
        if run.losses >= LOSSES:
            cause = f"the engine lost the run {run.losses + 1} times"
            self.ending.end(run, RunState.FAILING, now, cause)
        else:
            self.submit.hand_over(run)
            self.store.lose_job(run, instants.of(now))

    def _go_on(self, run: ScoringRun, report: EngineReport, now: datetime) -> None:
        """Index what is there of a run that the engine is not done with; end one that is late."""
        self.ending.index_new(run)
        if report.state == EngineState.RUNNING and run.state == RunState.SUBMITTED:
            self.store.transition(run, RunState.RUNNING, instants.of(now))
        if late := self._lateness(run, report, instants.of(now)):
            status = report.status or report.state.value
            cause = f"{late}, and canceled then; the engine says: {status}"
            has_begun = report.started is not None or report.state != EngineState.QUEUED
            end = self.ending.end if has_begun else self.ending.stop
            end(run, RunState.FAILING, now, cause)
            self.engine.cancel(run.run_id)

    def _lateness(self, run: ScoringRun, report: EngineReport, now: int) -> str:
        """Say which limit a run has passed; empty if it has passed none."""
        submitted = run.submitted_at or run.created_at
        if report.started is not None:
            is_late = now - report.started > self.deadline
            return f"not done within {_text(self.deadline)} of its start" if is_late else ""
        if report.state == EngineState.QUEUED:
            is_late = now - submitted > self.queue_limit
            return f"not started within {_text(self.queue_limit)}" if is_late else ""
        # The engine cannot tell when it began.
        is_late = self._has_had_all_its_time(run, now)
        return f"not done within {self._all_its_time}" if is_late else ""


def _text(microseconds: int) -> str:
    return str(timedelta(microseconds=microseconds))


def _log_failure(run: ScoringRun, error: Exception) -> None:
    facts = {"run": run.run_id, "error": type(error).__name__, "cause": cause_of(error)}
    # Only one error of a look is raised: nobody else would show where a defect is.
    trace = None if isinstance(error, ScoringError) else error
    log.warning("watch.run_failed", extra=facts, exc_info=trace)
