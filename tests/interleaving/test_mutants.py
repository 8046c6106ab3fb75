"""The schedules notice what is taken out of the code: each mutant is a fix that is missing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import literal, null, update

from scoring import ledger
from scoring.adapters.sql import runs as sql
from scoring.adapters.sql import texts
from scoring.adapters.sql.facts import Phase, WindowFacts
from scoring.adapters.sql.runs import SqlRunStore
from scoring.adapters.sql.schema import runs, window_partials
from scoring.errors import ScoringError
from scoring.handlers.ending import EndRuns
from scoring.handlers.submit import SubmitRun
from scoring.horizon import PartitionState
from scoring.ledger import Epoch
from scoring.ports import ScoringOrder
from scoring.runs import GIVING_BACK, NO_LIMITS, RunState, ScoringRun
from scoring.windows import Windowing
from tests.interleaving.play import Player, play, play_incoming, play_on_postgresql, play_on_sqlite
from tests.servers import postgresql
from tests.services import POSTGRESQL

SCHEDULES = 1000
"""The most that a mutant may survive: as many as CI plays on SQLite."""

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


def hub_never_asked(patch: Patch) -> None:
    """1: a hub that was created again is told from the old one by numbers alone."""
    patch.setattr(ledger, "has_pause", lambda *_: False)
    patch.setattr(ledger, "admit", lambda *_: [])


def first_delivery_unchecked(patch: Patch) -> None:
    """1: a partition that was never seen begins wherever it begins."""
    admit = ledger.admit

    def admitted(epochs: Any, answer: Any, before: Any = None) -> list[Epoch]:
        return admit(epochs, answer, before) if list(epochs) else []

    patch.setattr(ledger, "admit", admitted)


def range_over_the_end_of_an_epoch(patch: Patch) -> None:
    """1: numbers over a gap at the end of an epoch leave its high-water mark behind."""
    extend = ledger._extend

    def extended(epoch: Epoch, first: int, last: int) -> Epoch:
        after = extend(epoch, first, last)
        is_over = first <= epoch.high_water < last
        return replace(after, high_water=epoch.high_water) if is_over else after

    patch.setattr(ledger, "_extend", extended)


def backlog_taken_for_silence(patch: Patch) -> None:
    """2: a partition is idle by its newest applied event."""
    patch.setattr(PartitionState, "unapplied", property(lambda _: 0))


def skipped_tail_left(patch: Patch) -> None:
    """2: repair does not read on from a high-water mark that stands still."""
    patch.setattr("scoring.handlers.repair._stands_still", lambda *_: False)


def watermark_by_event_time(patch: Patch) -> None:
    """3: a partition's watermark follows event times, wherever they lead."""

    def arrive(self: Windowing, mark: Any, times: Any, _: Any, __: Any) -> Any:
        return self.arrive_from_file(mark, times)

    patch.setattr(Windowing, "arrive", arrive)


def rebuild_beside_ingest(patch: Patch) -> None:
    """5: readings that come while old windows are deleted are merged into them."""
    patch.setattr(WindowFacts, "are_deleted", property(lambda _: False))


def runs_beside_a_rebuild(patch: Patch) -> None:
    """5: a run begins while windows are rebuilt."""
    final = sql._with_final_windows
    patch.setattr(
        sql, "_with_final_windows", lambda run, facts: final(run, replace(facts, phase=Phase.DONE))
    )


INCOMING = (
    *(hub_never_asked, first_delivery_unchecked, range_over_the_end_of_an_epoch),
    *(backlog_taken_for_silence, skipped_tail_left, watermark_by_event_time),
    *(rebuild_beside_ingest, runs_beside_a_rebuild),
)
ON_SQLITE = (
    *(claim_of_an_ended_run, release_before_the_end, index_of_an_ended_run, jobs_nobody_follows),
    *(scored_for_ever, windows_of_failed_parts_kept, nobody_suspected),
    *(nodes_for_nothing, runs_pile_up, changed_windows_exported, a_newer_claim_forgotten),
)


def assert_noticed(
    mutant: Callable[[Patch], None], patch: Patch, folder: Path, schedules: int, player: Player
) -> None:
    """Take a fix out, and play schedules until one fails."""
    mutant(patch)
    for seed in range(schedules):
        try:
            play_on_sqlite(folder / str(seed), range(seed, seed + 1), player)
        except Exception as error:  # noqa: BLE001 - whatever it is, it was noticed
            print(f"{mutant.__name__}: schedule {seed}: {error}")  # noqa: T201
            return
    pytest.fail(f"{schedules} schedules noticed nothing")


@pytest.mark.exhaustive
@pytest.mark.parametrize("mutant", ON_SQLITE, ids=lambda mutant: mutant.__name__)
def test_a_fix_that_is_taken_out_is_noticed(
    mutant: Callable[[Patch], None], monkeypatch: Patch, tmp_path: Path
) -> None:
    assert_noticed(mutant, monkeypatch, tmp_path, SCHEDULES, play)


@pytest.mark.exhaustive
@pytest.mark.parametrize("mutant", INCOMING, ids=lambda mutant: mutant.__name__)
def test_a_fix_of_what_comes_in_that_is_taken_out_is_noticed(
    mutant: Callable[[Patch], None], monkeypatch: Patch, tmp_path: Path
) -> None:
    assert_noticed(mutant, monkeypatch, tmp_path, 400, play_incoming)


@pytest.mark.exhaustive
def test_a_text_that_postgresql_refuses_is_noticed(monkeypatch: Patch) -> None:
    POSTGRESQL.require()
    texts_as_they_are(monkeypatch)

    with postgresql() as server, pytest.raises((AssertionError, ScoringError)):
        play_on_postgresql(server, "mutant", range(SCHEDULES))
