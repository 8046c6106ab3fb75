"""What a run is limited to, and the request it was made for: the same tests on each engine."""

from dataclasses import replace
from typing import Any

import pytest

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.runs import SqlRunStore
from scoring.runs import RequestKey, RunState, ScoringRun
from tests.adapters.stores import (
    MINUTE,
    NOW,
    P0,
    P1,
    claimed,
    ended,
    partials,
    proposed,
    save,
    windows_of,
)

K1 = RequestKey("k1", "d1")


@pytest.fixture
def store(database: Database) -> SqlRunStore:
    for partition in (P0, P1):
        rows = {(d, "s", n * MINUTE): [1.0] for d in "abc" for n in range(4)}
        save(database, partition, partials=partials(rows))
    return SqlRunStore(database)


def begun(store: SqlRunStore, run_id: str = "r1", **limits: Any) -> ScoringRun:
    run = store.begin_run(replace(proposed(run_id), **limits))
    assert run is not None
    return run


def claim_all(store: SqlRunStore, run: ScoringRun, limit: int = 3) -> int:
    return sum(iter(lambda: store.claim(run, limit), 0))


class TestScope:
    @pytest.mark.parametrize(
        ("limits", "expected"),
        [
            ({}, [(d, n) for d in "abc" for n in range(4)]),
            ({"devices": ("b",)}, [("b", n) for n in range(4)]),
            ({"devices": ("a", "c", "nobody")}, [(d, n) for d in "ac" for n in range(4)]),
            ({"first_start": 2 * MINUTE}, [(d, n) for d in "abc" for n in (2, 3)]),
            ({"first_start": 2 * MINUTE + 1}, [(d, 3) for d in "abc"]),
            ({"last_start": MINUTE, "devices": ("c",)}, [("c", 0), ("c", 1)]),
            ({"first_start": MINUTE, "last_start": MINUTE}, [(d, 1) for d in "abc"]),
        ],
    )
    def test_a_run_claims_what_it_was_asked_for(
        self,
        database: Database,
        store: SqlRunStore,
        limits: dict[str, Any],
        expected: list[tuple[str, int]],
    ) -> None:
        run = begun(store, **limits)

        assert claim_all(store, run) == 2 * len(expected)
        assert windows_of(database, run) == [(d, "s", n * MINUTE) for d, n in expected]

    @pytest.mark.parametrize(
        "limits", [{"devices": ("nobody",)}, {"first_start": 4 * MINUTE}, {"last_start": -1}]
    )
    def test_a_scope_without_a_window_makes_no_run(
        self, store: SqlRunStore, limits: dict[str, Any]
    ) -> None:
        assert store.begin_run(replace(proposed(), **limits)) is None

    def test_the_scope_is_kept_with_the_run(self, store: SqlRunStore) -> None:
        limits: dict[str, Any] = {
            "first_start": MINUTE,
            "devices": ("a", "ü'\"\\"),
            "rescore": True,
        }

        run = begun(store, request=K1, **limits)

        assert store.run("r1") == run
        assert (run.first_start, run.devices, run.rescore) == (MINUTE, ("a", "ü'\"\\"), True)
        assert run.request == K1


class TestScoringAgain:
    def test_windows_of_older_runs_are_taken_in_chunks_each_once(
        self, database: Database, store: SqlRunStore
    ) -> None:
        claimed(database, "r1")
        run = begun(store, "r2", rescore=True, devices=("a", "c"))

        sizes = []
        while size := store.claim(run, 3):
            sizes.append(size)

        assert sizes == [8, 8]
        assert [key[0] for key in windows_of(database, run)] == ["a"] * 4 + ["c"] * 4
        assert [key[0] for key in windows_of(database, store.run("r1"))] == ["b"] * 4

    def test_pending_windows_are_taken_too(self, database: Database, store: SqlRunStore) -> None:
        claimed(database, "r1")
        save(database, partials=partials({("d", "s", 0): [1.0]}))
        run = begun(store, "r2", rescore=True, first_start=0, last_start=0)

        claim_all(store, run)

        assert [key[0] for key in windows_of(database, run)] == ["a", "b", "c", "d"]

    def test_after_a_crash_in_between_the_rest_is_taken(
        self, database: Database, store: SqlRunStore
    ) -> None:
        claimed(database, "r1")
        store.claim(begun(store, "r2", rescore=True), 3)

        resumed = SqlRunStore(database).run("r2")
        claim_all(SqlRunStore(database), resumed)

        assert resumed.rescore
        assert len(windows_of(database, resumed)) == 12

    def test_a_run_that_ends_without_scoring_leaves_them_pending(
        self, database: Database, store: SqlRunStore
    ) -> None:
        claimed(database, "r1")
        run = begun(store, "r2", rescore=True, devices=("a",))
        claim_all(store, run)
        ended(database, run, RunState.CANCELING)

        assert [key[0] for key in windows_of(database, claimed(database, "r3"))] == ["a"] * 4

    def test_an_empty_store_has_nothing_to_score_again(self, database: Database) -> None:
        assert SqlRunStore(database).begin_run(replace(proposed(), rescore=True)) is None


class TestRequests:
    def test_a_request_finds_its_run_whatever_became_of_it(
        self, database: Database, store: SqlRunStore
    ) -> None:
        first = begun(store, "r1", request=K1)
        claim_all(store, first)
        ended(database, first)

        again = store.begin_run(replace(proposed("r2"), request=RequestKey("k1", "other")))

        assert again == store.run("r1")

    def test_its_own_run_comes_before_one_that_is_claiming(self, store: SqlRunStore) -> None:
        first = begun(store, "r1", request=K1, devices=("a",))
        claim_all(store, first)
        store.transition(first, RunState.CLAIMED, NOW)
        begun(store, "r2")

        assert begun(store, "r3", request=K1).run_id == "r1"
        assert begun(store, "r3", request=RequestKey("k2", "d")).run_id == "r2"

    def test_many_runs_without_a_request_stand_side_by_side(
        self, database: Database, store: SqlRunStore
    ) -> None:
        claimed(database, "r1")
        save(database, partials=partials({("a", "s", 0): [1.0]}))
        claimed(database, "r2")

        assert len(store.active_runs()) == 2
