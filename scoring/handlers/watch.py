"""Watch runs: follow the engine, index what it wrote, end what has ended."""

from dataclasses import dataclass
from datetime import datetime

from scoring import instants
from scoring.errors import Conflict, InvalidPart
from scoring.handlers.index import IndexPredictions
from scoring.handlers.submit import CLAIM_LIMIT, SubmitRun
from scoring.ports import Blobs, Engine, EngineReport, EngineState, RunStore
from scoring.runs import Part, RunState, ScoringRun, missing_parts, part_name

_WITH_ENGINE = (RunState.SUBMITTED, RunState.RUNNING)


@dataclass(frozen=True, slots=True)
class WatchRuns:
    """The watch handler: brings every active run as far as it can come now."""

    store: RunStore
    blobs: Blobs
    engine: Engine
    submit: SubmitRun
    index: IndexPredictions

    def __call__(self, now: datetime, nonce: str) -> list[ScoringRun]:
        """Look at every active run once; gives them as they are then."""
        return [self.watch(run, now, nonce) for run in self.store.active_runs()]

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
        report = self.engine.poll(run.run_id)
        if report is None:
            # The answer to the submit was lost, or the engine died with the run: give it again.
            self.submit.resubmit(run)
            return
        problems = self._index_new(run)
        match report.state:
            case EngineState.RUNNING if run.state == RunState.SUBMITTED:
                self.store.transition(run, RunState.RUNNING, instants.of(now))
            case EngineState.COMPLETED:
                self.store.transition(run, RunState.SCORED, instants.of(now))
                self._complete(run, now, problems)
            case EngineState.FAILED:
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
        else:
            self.store.transition(run, RunState.COMPLETED, instants.of(now))

    def _end(self, run: ScoringRun, state: RunState, now: datetime, cause: str) -> None:
        # Windows first: a crash in between leaves the run active, and this is done again.
        while self.store.release(run, CLAIM_LIMIT):
            pass
        self.store.transition(run, state, instants.of(now), cause)


def _cause(report: EngineReport) -> str:
    return report.cause or "the engine gave no cause"
