"""The schedules notice what is taken out of the code: each mutant is a fix that is missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import literal, null, update

from scoring.adapters.sql import runs as sql
from scoring.adapters.sql import texts
from scoring.adapters.sql.runs import SqlRunStore
from scoring.adapters.sql.schema import runs, window_partials
from scoring.errors import ScoringError
from scoring.handlers.ending import EndRuns
from scoring.handlers.submit import SubmitRun
from scoring.ports import ScoringOrder
from scoring.runs import GIVING_BACK, NO_LIMITS, RunState, ScoringRun
from tests.interleaving.play import play_on_postgresql, play_on_sqlite
from tests.servers import postgresql
from tests.services import POSTGRESQL

SCHEDULES = 400
"""The most that a mutant may survive."""

Patch = pytest.MonkeyPatch


def claim_of_an_ended_run(patch: Patch) -> None:
    """B1: a claim that is under way goes on while its run ends."""

    def claim(self: SqlRunStore, run: ScoringRun, limit: int) -> int:
        with self._database.write() as connection:
            claimable, owner = sql._claimable(run), literal(run.number)
            return sql._hand_over(connection, claimable, limit, owner)[0]

    patch.setattr(SqlRunStore, "claim", claim)


def release_before_the_end(patch: Patch) -> None:
    """B1: windows go back first, and the state changes in a transaction of its own."""

    def end(self: EndRuns, run: ScoringRun, state: RunState, now: Any, cause: str) -> None:
        mine = update(window_partials).where(window_partials.c.claimed_by == run.number)
        database = self.store._database  # type: ignore[attr-defined]
        with database.write() as connection:
            connection.execute(mine.values(claimed_by=null()))
        with database.write() as connection:
            ended = update(runs).where(runs.c.number == run.number)
            connection.execute(ended.values(state=GIVING_BACK[state], ended_at=0, cause=cause))

    def cancel(self: EndRuns, run_id: str, now: Any) -> ScoringRun:
        run = self.store.run(run_id)
        self.engine.cancel(run_id)
        if not run.state.is_terminal:
            end(self, run, RunState.CANCELING, now, "canceled")
        return self.store.run(run_id)

    patch.setattr(EndRuns, "end", end)
    patch.setattr(EndRuns, "cancel", cancel)


def index_of_an_ended_run(patch: Patch) -> None:
    """B1: a part that is being indexed does not ask whether its run has ended."""
    patch.setattr(RunState, "gives_back", property(lambda _: False))


def jobs_nobody_follows(patch: Patch) -> None:
    """B1: the engine is given a run without a note that it may be at work on it."""

    def hand_over(self: SubmitRun, run: ScoringRun) -> None:
        prefixes = (run.input_prefix, run.prediction_prefix)
        self.engine.submit(ScoringOrder(run.run_id, run.fleet_version, *prefixes))

    patch.setattr(SubmitRun, "hand_over", hand_over)


def scored_for_ever(patch: Patch) -> None:
    """B2: a run with a part missing is noted as incomplete, and stays so."""
    complete = EndRuns.complete

    def incomplete(self: EndRuns, run: ScoringRun, now: Any) -> None:
        self.index_new(run)
        if all(part.etag is not None for part in self.store.parts(run)):
            complete(self, run, now)

    patch.setattr(EndRuns, "complete", incomplete)


def windows_of_failed_parts_kept(patch: Patch) -> None:
    """B2: a run completes without its failed parts, and keeps their windows."""
    patch.setattr(sql, "_has_failed_parts", lambda *_: False)


def nobody_suspected(patch: Patch) -> None:
    """B2: a failed part is exported again as it was."""
    patch.setattr(EndRuns, "_suspect", lambda *_, **__: None)


def texts_as_they_are(patch: Patch) -> None:
    """B3: a reason is stored as the engine gave it."""
    patch.setattr(texts, "clean", lambda text, _: text)


def nodes_for_nothing(patch: Patch) -> None:
    """B4: an empty run is given to the engine."""
    patch.setattr("scoring.handlers.submit.all", lambda _: False, raising=False)


def runs_pile_up(patch: Patch) -> None:
    """B5: any number of runs may be active."""
    begin = SqlRunStore.begin_run
    patch.setattr(SqlRunStore, "begin_run", lambda self, run, _=None: begin(self, run, NO_LIMITS))


def changed_windows_exported(patch: Patch) -> None:
    """Must show 3: a window that changed after its claim is scored by two runs."""
    patch.setattr(sql, "_of_run", lambda rows, _: [row[:-1] for row in rows])


def a_newer_claim_forgotten(patch: Patch) -> None:
    """Must show 3: a window that a newer run has becomes pending when the older one fails."""
    patch.setattr(sql, "_newer_owner", lambda _: null())


ON_SQLITE = (
    *(claim_of_an_ended_run, release_before_the_end, index_of_an_ended_run, jobs_nobody_follows),
    *(scored_for_ever, windows_of_failed_parts_kept, nobody_suspected),
    *(nodes_for_nothing, runs_pile_up, changed_windows_exported, a_newer_claim_forgotten),
)


@pytest.mark.exhaustive
@pytest.mark.parametrize("mutant", ON_SQLITE, ids=lambda mutant: mutant.__name__)
def test_a_fix_that_is_taken_out_is_noticed(
    mutant: Callable[[Patch], None], monkeypatch: Patch, tmp_path: Path
) -> None:
    mutant(monkeypatch)

    for seed in range(SCHEDULES):
        try:
            play_on_sqlite(tmp_path / str(seed), range(seed, seed + 1))
        except Exception as error:  # noqa: BLE001 - whatever it is, it was noticed
            print(f"{mutant.__name__}: schedule {seed}: {error}")  # noqa: T201
            return
    pytest.fail(f"{SCHEDULES} schedules noticed nothing")


@pytest.mark.exhaustive
def test_a_text_that_postgresql_refuses_is_noticed(monkeypatch: Patch) -> None:
    POSTGRESQL.require()
    texts_as_they_are(monkeypatch)

    with postgresql() as server, pytest.raises((AssertionError, ScoringError)):
        play_on_postgresql(server, "mutant", range(SCHEDULES))
