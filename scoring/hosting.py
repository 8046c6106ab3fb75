"""The system of a process that serves, as under the Functions host: a log line an invocation."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

from scoring import instants
from scoring.adapters.environment import environment
from scoring.adapters.telemetry import Telemetry, show_facts, telemetry
from scoring.bootstrap import App, nonce, now, settings_from_environment
from scoring.errors import (
    BadInput,
    CannotBegin,
    Conflict,
    InvalidFleet,
    InvalidPart,
    Misconfigured,
    NotFound,
    cause_of,
)
from scoring.handlers.ending import EndRuns
from scoring.handlers.index import IndexPredictions
from scoring.handlers.ingest import IngestOutcome
from scoring.readings import EventBatch
from scoring.runs import ScoringRun
from scoring.settings import APPLICATION_INSIGHTS, PREFIX, Settings, host_variables

PENDING_COUNTED = 1_000_000
"""Pending windows that are counted at a look: 0.2 s on a server, however many there are."""

_HOSTING = Lock()

log = logging.getLogger("scoring.hosted")


def _is_never(_: Exception) -> bool:
    return False


def _is_refused(error: Exception) -> bool:
    """Whether an error is of a request's making, and not what it met here."""
    is_ours = isinstance(error, (Misconfigured, InvalidFleet, InvalidPart))
    return isinstance(error, (BadInput, NotFound, Conflict)) and not is_ours


class HostedApp(App):
    """The system of a process that serves: one method a trigger, one log line an invocation."""

    def __init__(self, settings: Settings, telemetry: Telemetry | None = None) -> None:
        super().__init__(settings)
        self.telemetry = telemetry or Telemetry()

    def ingest_events(self, batch: EventBatch) -> IngestOutcome:
        """Apply an event batch."""
        numbers = batch.sequence_numbers
        facts = {
            "hub": batch.partition.hub,
            "partition": batch.partition.id,
            "first_sequence": int(numbers.min()),
            "last_sequence": int(numbers.max()),
        }
        with self._invocation("ingest.batch", **facts) as said:
            outcome = super().ingest_events(batch)
            said.update(_facts(outcome))
        lag = instants.of(now()) - int(batch.enqueued_times.max())
        self.telemetry.lag(lag / instants.SECOND, facts)
        return outcome

    def repair(self, *, past_due: bool = False) -> IngestOutcome:
        """Repair the gaps; where one fails, what became of the others is said all the same."""
        done: list[IngestOutcome] = []
        with self._invocation("repair.gaps", past_due=past_due) as said:
            try:
                self.repair_gaps(instants.of(now()), done.append)
            finally:
                said.update(_facts(outcome := sum(done, IngestOutcome())))
        return outcome

    def submit_pending(self, *, past_due: bool = False) -> ScoringRun | None:
        """Make a run of all that is pending and final; none while there is no fleet."""
        with self._invocation("submit.run", past_due=past_due) as said:
            try:
                version = self.shelf.current()
            except NotFound as error:
                # Windows stay pending: the first fleet finds them. An error every few minutes
                # would only hide others.
                log.warning("submit.no_fleet", extra={"cause": str(error)})
                said["run"] = None
                return None
            # What was applied by then: this is how an event batch is followed to its run.
            applied = self.ingest_store.applied(self.settings.event_hub)
            try:
                run = self.submit("timer", version, now(), nonce())
            except CannotBegin as error:
                # What is pending stays so, and makes the next run larger.
                said |= {"run": None, "waits": str(error)}
                return None
            said |= {"run": run and run.run_id, "state": run and run.state.value}
            if run:
                said["applied"] = {partition: mark for partition, (mark, _) in applied.items()}
        return run

    def watch_active(self, *, past_due: bool = False) -> list[ScoringRun]:
        """Look at every active run once, and at what waits."""
        runs: list[ScoringRun] = []
        try:
            with self._invocation("watch.runs", past_due=past_due) as said:
                try:
                    self.watch(now(), nonce(), runs.append)
                finally:
                    said["runs"] = {run.run_id: run.state.value for run in runs}
        finally:
            self.telemetry.backlog(lambda: self.queries.backlog(PENDING_COUNTED))
        return runs

    def ender(self) -> EndRuns:
        """Build what ends runs; what it indexes is noted as what blob triggers bring."""
        return replace(super().ender(), index=self._index, ended=self._run_ended)

    def _run_ended(self, run_id: str) -> None:
        self.telemetry.ended(run_id, self.queries.run)

    def index_blob(self, path: str) -> bool:
        """Index a prediction part; `path` begins with the container, as blob triggers tell it."""
        return self._index(path.partition("/")[2])

    def _index(self, name: str) -> bool:
        with self._invocation("index.part", blob=name) as said:
            said["new"] = IndexPredictions(self.submit.store, self.blobs)(name)
        return bool(said["new"])

    @contextmanager
    def request(self, event: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Note what a request changes as an invocation; one that is refused is no failure."""
        with self._invocation(event, _is_refused, **facts) as said:
            yield said

    @contextmanager
    def _invocation(
        self, event: str, is_refused: Callable[[Exception], bool] = _is_never, /, **facts: Any
    ) -> Iterator[dict[str, Any]]:
        """Log one line, whatever becomes of the invocation; what is raised goes on to the host."""
        begin, level = perf_counter(), logging.INFO
        failure: Exception | None = None
        try:
            yield facts
        except Exception as error:
            facts |= {"error": type(error).__name__, "cause": cause_of(error)}
            if is_refused(error):
                raise
            level, failure = logging.ERROR, error
            if isinstance(error, Conflict):
                self._forget_window()
            raise
        finally:
            facts["milliseconds"] = round((perf_counter() - begin) * 1000, 3)
            log.log(level, event, extra=facts)
            self.telemetry.invocation(event, facts, failure)
            # Its traceback holds this frame, and all that the frames below hold.
            failure = None

    def _forget_window(self) -> None:
        """Ask again for the windows' size, which may be another one since they were rebuilt."""
        for part in ("window", "submit", "watch", "repair_gaps", "replay_rejects"):
            self.__dict__.pop(part, None)


def _facts(outcome: IngestOutcome) -> dict[str, Any]:
    values = {one.name: getattr(outcome, one.name) for one in fields(outcome)}
    return values | {"rejects": {str(reason): n for reason, n in outcome.rejects.items()}}


def open_hosted(data: Path | None = None) -> HostedApp:
    """Build an app from the environment, for another data folder if given: without a host."""
    own = {} if data is None else {f"{PREFIX}DATA": str(data)}
    return HostedApp(settings_from_environment(**own), _telemetry(environment()))


def _telemetry(variables: Mapping[str, str]) -> Telemetry:
    try:
        return telemetry(variables.get(APPLICATION_INSIGHTS, ""))
    except ValueError:
        # Its words may quote the variable, which holds a secret.
        raise Misconfigured([f"{APPLICATION_INSIGHTS}: no connection string"]) from None


@cache
def _hosted_app() -> HostedApp:
    variables = environment()
    # The host hands on the text of log records only.
    show_facts(logging.getLogger())
    return HostedApp(Settings.load(host_variables(variables)), _telemetry(variables))


def hosted_app() -> HostedApp:
    """Give the system of this process of a function app: the same one every time."""
    with _HOSTING:
        return _hosted_app()
