"""End runs: complete, failed or canceled, and nothing owned by them that they did not score."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import pyarrow as pa

from scoring import instants
from scoring.errors import BadInput, Conflict, InvalidPart, NotFound, cause_of
from scoring.handlers.submit import CLAIM_LIMIT
from scoring.ports import Blobs, Engine, IndexedPart, RunStore
from scoring.predictions import INPUT_SCHEMA, PREDICTION_SCHEMA, read_table
from scoring.runs import RunState, ScoringRun, Tolerance, error_name, part_name
from scoring.suspects import FailedPart, suspected

UNANSWERED = 16
"""Parts without predictions of which each is suspected, where no part is known to have failed."""

FORGOTTEN = 3600 * instants.SECOND
"""Microseconds after its end when a run that the engine does not know was never given to it."""

NO_PREDICTIONS = "no predictions"
"""Why a part failed of which nothing else is known."""

INPUT_GONE = "its input part was removed before it was scored"
"""Why a part failed that the engine cannot have read."""

UNKNOWN = "the engine knows no such job; it is asked for an hour, for one may be on its way"
"""What is shown of a job that may never have been."""

CAUSES = 100
"""Parts of a run whose causes are read, of those that an engine wrote."""

_SHOWN = 3
"""Failed parts that a run's cause names."""

log = logging.getLogger("scoring.watch")


def tell_nobody(_: object) -> None:
    """Take note of nothing."""


@dataclass(frozen=True, slots=True)
class EndRuns:
    """Ends runs. Each step can be repeated by any process after a crash at any point.

    Attributes
    ----------
    index
        The index handler.
    tolerance
        How many parts of a run may fail before the run does.
    ended
        Told the id of each run that was ended here, once.
    """

    store: RunStore
    blobs: Blobs
    engine: Engine
    index: Callable[[str], bool]
    tolerance: Tolerance = field(default_factory=Tolerance)
    ended: Callable[[str], None] = tell_nobody

    def complete(self, run: ScoringRun, now: datetime) -> None:
        """End a run that the engine has scored.

        Where parts failed, and so few that it is tolerated, their windows become pending again;
        where more failed, or all, so does the run.
        """
        current = self.store.run(run.run_id)
        if current.state != RunState.SCORED:
            return
        if evidence := self._evidence(run, self.index_new(run)):
            self._suspect(run, evidence, now, guess=True)
            causes = {number: cause or NO_PREDICTIONS for number, cause in evidence.items()}
            self.store.fail_parts(run, causes)
        self.store.clear_suspects(run)
        parts = self.store.parts(run)
        if failed := [part for part in parts if part.etag is None]:
            cause = _summary(failed, len(parts))
            exceeded = self.tolerance.exceeded(len(failed))
            if exceeded or len(failed) == len(parts):
                why = f" ({' and '.join(exceeded)})" if exceeded else ""
                self.end(run, RunState.FAILING, now, cause + why)
                return
            self.store.note(run, RunState.SCORED, f"{cause}; their windows are pending again")
        elif current.cause:
            # What kept it from being completed until now.
            self.store.note(run, RunState.SCORED, "")
        self._note_aside(run, parts)
        self.finish(run, now)

    def fail(self, run: ScoringRun, now: datetime, cause: str) -> None:
        """End a run that the engine has given up."""
        evidence = self._evidence(run, self.index_new(run))
        self._suspect(run, evidence, now, guess=len(evidence) <= UNANSWERED)
        self.store.fail_parts(run, {number: why for number, why in evidence.items() if why})
        self.store.clear_suspects(run)
        self.end(run, RunState.FAILING, now, cause)

    def stop(self, run: ScoringRun, state: RunState, now: datetime, cause: str) -> None:
        """End a run as `end` does, that the engine never began with, or somebody stopped.

        It says nothing of the sensors in it.
        """
        self.store.forget_trials(run)
        self.end(run, state, now, cause)

    def end(self, run: ScoringRun, state: RunState, now: datetime, cause: str) -> None:
        """End a run as failing or canceling; its windows become pending again."""
        self.store.transition(run, state, instants.of(now), cause)
        self.finish(run, now)

    def finish(self, run: ScoringRun, now: datetime) -> None:
        """Take a run that is ending to its end."""
        while not self.store.run(run.run_id).state.is_terminal:
            if self.store.finish(run, CLAIM_LIMIT, instants.of(now)):
                self.ended(run.run_id)

    def cancel(self, run_id: str, now: datetime) -> ScoringRun:
        """Stop a run and give its windows back.

        What the engine was asked to stop and did not, `follow_job` asks it again.

        Raises
        ------
        NotFound, Conflict
            There is no such run, or it has ended.
        """
        run = self.store.run(run_id)
        cause = "canceled on request"
        if not self.store.transition(run, RunState.CANCELING, instants.of(now), cause):
            state = self.store.run(run_id).state
            if state != RunState.CANCELING:
                message = f"run {run_id} is {state} and cannot be canceled"
                raise Conflict(message)
        try:
            self.engine.cancel(run_id)
        except Exception as error:  # noqa: BLE001 - its windows go back whatever the engine meets
            facts = {"run": run_id, "cause": cause_of(error)}
            log.warning("watch.not_stopped_yet", extra=facts)
        self.store.forget_trials(run)
        self.finish(run, now)
        return self.store.run(run_id)

    def follow_job(self, run: ScoringRun, now: datetime) -> None:
        """Look at the job of a run that has ended: stop it, until the engine says it has ended."""
        report = self.engine.poll(run.run_id)
        if report is None:
            # It may be on its way: whoever was giving it to the engine stops it after that.
            is_forgotten = instants.of(now) - (run.ended_at or 0) >= FORGOTTEN
            self.store.note_engine(run, "" if is_forgotten else UNKNOWN)
            if is_forgotten:
                self.store.close_job(run)
        elif report.has_ended:
            self.store.close_job(run)
        else:
            self.store.note_engine(run, report.status or report.state.value, report.link)
            self.engine.cancel(run.run_id)

    def index_new(self, run: ScoringRun) -> dict[int, str]:
        """Index the parts that are there and were not indexed; return what is wrong with any."""
        parts = {
            run.prediction_prefix + part_name(part.number): part for part in self.store.parts(run)
        }
        problems = {}
        for blob in self.blobs.list(run.prediction_prefix):
            part = parts.get(blob.name)
            if part is not None and part.etag != blob.etag:
                try:
                    self.index(blob.name)
                except InvalidPart as error:
                    problems[part.number] = str(error)
                except NotFound:
                    # It was there a moment ago.
                    problems[part.number] = "its predictions were removed"
        return problems

    def _evidence(self, run: ScoringRun, problems: Mapping[int, str]) -> dict[int, str]:
        """Return why parts that are not indexed failed, by number; empty where not known."""
        missing = [part.number for part in self.store.parts(run) if part.etag is None]
        if not missing:
            return {}
        written = {
            blob.name.removeprefix(run.prediction_prefix)
            for blob in self.blobs.list(run.prediction_prefix)
        }
        evidence = dict.fromkeys(missing, "") | {n: problems[n] for n in missing if n in problems}
        inputs = {
            blob.name.removeprefix(run.input_prefix) for blob in self.blobs.list(run.input_prefix)
        }
        # First of all: without it, what the engine says of the part is what follows from that.
        evidence |= {n: INPUT_GONE for n in missing if part_name(n) not in inputs}
        names = {n: error_name(part_name(n)) for n in missing if not evidence[n]}
        told = [number for number, name in names.items() if name in written]
        for number in told[:CAUSES]:
            evidence[number] = self._engine_error(run, names[number])
        return evidence | {number: f"see {names[number]}" for number in told[CAUSES:]}

    def _engine_error(self, run: ScoringRun, name: str) -> str:
        """Read what the engine wrote of a part that it could not score."""
        data, _ = self.blobs.read(run.prediction_prefix + name)
        return " ".join(data.decode(errors="replace").split()) or f"see {name}"

    def _suspect(
        self, run: ScoringRun, evidence: Mapping[int, str], now: datetime, *, guess: bool
    ) -> None:
        """Make suspects of the sensors in the parts that failed.

        Where no part was scored, the run may have failed as a whole: all of its parts suspected
        would only make the next run smaller parts. But one of several that is known to have
        failed is taken last next time, and a lone part is split, so that something can be scored.

        Parameters
        ----------
        evidence
            Parts without predictions, and why they failed where that is known.
        guess
            Whether all of them are suspected where nothing is known of any, as when workers were
            killed by what they scored. A part that is the only one counts as known.
        """
        parts = {part.number: part for part in self.store.parts(run) if not part.is_aside}
        evidence = {number: cause for number, cause in evidence.items() if number in parts}
        any_scored = len(evidence) < len(parts)
        known = [number for number, cause in evidence.items() if cause]
        numbers = known or (list(evidence) if guess else [])
        if not any_scored and len(numbers) == len(parts) > 1:
            return
        read = {number: self._sensors(run, number) for number in numbers}
        failed = [
            FailedPart(
                sensors,
                rows=parts[number].rows,
                cause=evidence[number] or NO_PREDICTIONS,
                is_certain=any_scored and (number in known or len(numbers) == 1),
            )
            for number, sensors in read.items()
            if sensors
        ]
        if lost := [number for number, sensors in read.items() if not sensors]:
            # Which of them held whom cannot be told, nor did the sensors do it: it never counts.
            told = {sensor for sensors in read.values() for sensor in sensors}
            others = tuple(one for one in self.store.unanswered(run) if one not in told)
            rows = max(parts[number].rows for number in lost)
            cause = evidence[lost[0]] or NO_PREDICTIONS
            failed.append(FailedPart(others, rows, cause, is_certain=False))
        if failed:
            before = {suspect.key: suspect for suspect in self.store.suspects()}
            moment = instants.of(now)
            changed = suspected(failed, before, run.fleet_version, run.number, moment)
            self.store.save_suspects(changed)

    def _sensors(self, run: ScoringRun, number: int) -> tuple[tuple[str, str], ...]:
        """Return the sensors of an input part; none where the part itself is what is damaged."""
        table = self._rows(run.input_prefix + part_name(number), INPUT_SCHEMA)
        names = (table[column].to_pylist() for column in ("device", "sensor"))
        return tuple(dict.fromkeys(zip(*names, strict=True)))

    def _note_aside(self, run: ScoringRun, parts: Iterable[IndexedPart]) -> None:
        """Note which windows were answered as set aside: others of these sensors have changed."""
        known = {suspect.key: suspect for suspect in self.store.suspects()}
        changed = {}
        for part in parts:
            if not part.is_aside:
                continue
            # Where it is gone, it was indexed all the same.
            table = self._rows(run.aside_prefix + part_name(part.number), PREDICTION_SCHEMA)
            rows = zip(*(table[c].to_pylist() for c in ("device", "sensor")), strict=True)
            starts = table["window_start"].cast("int64").to_pylist()
            for sensor, start in zip(rows, starts, strict=True):
                if suspect := known.get(sensor):
                    newest = max(start, suspect.newest_aside or start)
                    known[sensor] = changed[sensor] = replace(suspect, newest_aside=newest)
        if changed:
            self.store.save_suspects(list(changed.values()))

    def _rows(self, name: str, schema: pa.Schema) -> pa.Table:
        """Return the rows of a part; none, and a warning, where it is gone or damaged."""
        try:
            return read_table(self.blobs.read(name)[0], schema, name)
        except (NotFound, BadInput) as error:
            log.warning("watch.part_unreadable", extra={"part": name, "cause": str(error)})
            return schema.empty_table()


def _summary(failed: list[IndexedPart], parts: int) -> str:
    """Say in one line which parts failed, and why the first of them did."""
    shown = "; ".join(f"{part_name(part.number)}: {part.cause}" for part in failed[:_SHOWN])
    more = f"; and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
    are = "part" if parts == 1 else "parts"
    return f"{len(failed)} of {parts} {are} failed: {shown}{more}"
