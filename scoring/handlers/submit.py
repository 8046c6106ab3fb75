"""Submit a scoring run: claim final windows, export them as input parts, hand them to the engine.

Each step is persisted before the next begins, and can be repeated by any process at any time: two
that drive one run do some work twice, and never differ in what counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from scoring import instants
from scoring.errors import Conflict, ScoringError
from scoring.handlers.hub import HubProgress
from scoring.handlers.parts import Parts, Suspects
from scoring.ports import Blobs, Engine, RunStore, ScoringOrder
from scoring.runs import (
    EVERYTHING,
    NO_LIMITS,
    RequestKey,
    RunLimits,
    RunState,
    Scope,
    ScoringRun,
    aside_prefix,
    input_prefix,
    part_name,
    run_id,
)

CLAIM_LIMIT = 50_000
"""Windows claimed in one transaction: bounded, so that ingest is never blocked for long."""

ATTEMPTS = 3
"""How often a run is proposed while others are claiming."""


@dataclass(frozen=True, slots=True)
class SubmitRun:
    """The submit handler.

    Attributes
    ----------
    hub
        Asked before each run is proposed.
    allowed_lateness
        Microseconds.
    part_rows
        About how many windows an input part holds.
    limits
        How many runs may be active, and how large one may be.
    """

    store: RunStore
    blobs: Blobs
    engine: Engine
    hub: HubProgress
    allowed_lateness: int
    part_rows: int
    limits: RunLimits = NO_LIMITS

    def __call__(  # noqa: PLR0913 - what only some callers have comes by keyword
        self,
        trigger: str,
        fleet_version: str,
        now: datetime,
        nonce: str,
        *,
        scope: Scope = EVERYTHING,
        request: RequestKey | None = None,
    ) -> ScoringRun | None:
        """Make one run of the pending final windows and submit it; None if there are none.

        Parameters
        ----------
        trigger
            Who asked: ``timer``, ``http``, ``manual``.
        nonce
            Six hexadecimal digits for the run's id.
        scope
            Which windows; those that are not final are never among them.
        request
            A request of the same key gets the run that was made for it.

        Raises
        ------
        Conflict
            The key was used for another request, or other runs are claiming all the time.
        TooManyRuns
            As many runs are active as may be.
        """
        run = self.begin(trigger, fleet_version, now, nonce, scope=scope, request=request)
        return run and self.advance(run, now, nonce)

    def begin(  # noqa: PLR0913 - as above
        self,
        trigger: str,
        fleet_version: str,
        now: datetime,
        nonce: str,
        *,
        scope: Scope = EVERYTHING,
        request: RequestKey | None = None,
    ) -> ScoringRun | None:
        """Record the run and nothing more: whoever advances it later does the rest."""
        self.hub.ask(instants.of(now))
        reached = self.hub.horizon(instants.of(now))
        if reached is None:
            return None
        # No final window ends later; the store knows how long they are.
        last_end = reached - self.allowed_lateness
        proposed = ScoringRun(
            number=0,
            run_id=run_id(now, nonce),
            state=RunState.CLAIMING,
            trigger=trigger,
            fleet_version=fleet_version,
            last_start=last_end if scope.until is None else min(last_end, scope.until - 1),
            created_at=instants.of(now),
            enqueued_until=last_end,
            first_start=scope.since,
            devices=tuple(sorted(set(scope.devices))),
            rescore=scope.rescore,
            request=request,
        )
        return self._begin(proposed, now, nonce)

    def advance(self, run: ScoringRun, now: datetime, nonce: str) -> ScoringRun:
        """Drive a run, wherever it stopped, until the engine has it."""
        steps: dict[RunState, Callable[[ScoringRun], object]] = {
            RunState.CLAIMING: lambda run: self._claim(run, now),
            RunState.CLAIMED: lambda run: self._export(run, now, nonce),
            RunState.EXPORTED: lambda run: self._submit(run, now),
        }
        while step := steps.get(run.state):
            step(run)
            run = self.store.run(run.run_id)
        return run

    def hand_over(self, run: ScoringRun) -> None:
        """Give a run to the engine, again if need be: the engine knows it by its id.

        A run that was ended meanwhile is not given, or stopped again: the store knows, before the
        engine is asked, that it may have a job of the run, and `WatchRuns` follows that job until
        it has ended.
        """
        if not self.store.open_job(run):
            return
        self.engine.submit(
            ScoringOrder(run.run_id, run.fleet_version, run.input_prefix, run.prediction_prefix)
        )
        if self.store.run(run.run_id).state.gives_back:
            self.engine.cancel(run.run_id)

    def _begin(self, proposed: ScoringRun, now: datetime, nonce: str) -> ScoringRun | None:
        for _ in range(ATTEMPTS):
            run = self.store.begin_run(proposed, self.limits)
            if run is None or run.answers(proposed):
                return run
            # Another claim is under way: once it has ended, this one can begin.
            self.advance(run, now, nonce)
        message = "other runs are claiming windows all the time: try again"
        raise Conflict(message)

    def _claim(self, run: ScoringRun, now: datetime) -> None:
        while self.store.claim(run, CLAIM_LIMIT):
            pass
        self.store.transition(run, RunState.CLAIMED, instants.of(now))

    def _export(self, run: ScoringRun, now: datetime, export: str) -> None:
        count = max(1, -(-self.store.count_claimed(run) // self.part_rows))
        known = {one.key: one for one in self.store.suspects()}
        suspects = Suspects(run, known, instants.of(now))
        parts = Parts(run, count, suspects)
        for windows in self.store.claimed(run):
            parts.add(windows)
        inputs, aside = input_prefix(run.run_id, export), aside_prefix(run.run_id, export)
        for part, data in parts.finished():
            # Written once: what the engine was told to score never changes.
            self.blobs.create((aside if part.is_aside else inputs) + part_name(part.number), data)
        recorded = self.store.record_export(run, export, parts.written)
        if recorded and (tried := suspects.tried()):
            self.store.save_suspects(tried)
        # Where the answer to it was lost and it is asked again, this very export was first.
        if not recorded and self.store.run(run.run_id).export != export:
            for prefix in (inputs, aside):
                self.blobs.delete(prefix)

    def _submit(self, run: ScoringRun, now: datetime) -> None:
        parts = self.store.parts(run)
        for name in [part_name(part.number) for part in parts if part.is_aside]:
            data, _ = self.blobs.read(run.aside_prefix + name)
            self.blobs.write(run.prediction_prefix + name, data)
        if all(part.is_aside for part in parts):
            # No node is started for what late readings, or another run, have taken away.
            self.store.transition(run, RunState.SCORED, instants.of(now))
            return
        try:
            self.hand_over(run)
        except ScoringError as error:
            # Whoever looks at the run sees what keeps it, until it is submitted after all.
            self.store.note(run, RunState.EXPORTED, f"not submitted yet: {error}")
            raise
        self.store.transition(run, RunState.SUBMITTED, instants.of(now))
