"""What every rebuild store promises: the same tests on each engine."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.sql.rebuild import SqlRebuildStore, settle_window
from scoring.adapters.sql.runs import SqlRunStore
from scoring.errors import Conflict, Misconfigured
from scoring.ports import RebuildStore, Segment
from scoring.queries import ScoredWindow
from scoring.runs import RunState
from tests.adapters.stores import (
    MINUTE,
    NOW,
    P0,
    P1,
    begun,
    contents,
    exported,
    joined,
    partials,
    predictions,
    save,
)


@pytest.fixture
def store(database: Database) -> RebuildStore:
    settle_window(database, MINUTE, MINUTE)
    return SqlRebuildStore(database)


def scored_window(database: Database) -> None:
    """Put a window of two readings into the store, with its segment and its prediction."""
    segment = Segment(0, 0, 1, "raw/a", 2)
    save(database, partials=partials({("d", "s", 0): [1.0, 3.0]}), segments=[segment], readings=2)
    run = exported(database)
    store = SqlRunStore(database)
    store.index_part(run, 0, "t1", predictions(("d", "s", 0, 1.0)))
    for state in (RunState.SUBMITTED, RunState.SCORED, RunState.COMPLETED):
        store.transition(run, state, NOW)


def windows(database: Database) -> list[ScoredWindow]:
    return SqlQueries(database).windows("d", "s", None, None, 10)


class TestRebuild:
    def test_the_manifest_comes_partition_by_partition_in_order(
        self, database: Database, store: RebuildStore
    ) -> None:
        first, second, third = (Segment(0, n, n + 4, f"raw/{n}", 2) for n in (0, 5, 100))
        newer = Segment(1, 0, 3, "raw/new", 4)
        save(database, P1, segments=[third, newer], readings=6)
        save(database, P0, segments=[second], readings=2)
        save(database, P0, segments=[first], readings=2)

        with store.rebuild(MINUTE) as transaction:
            found = transaction.segments

        assert found == [(P0, first), (P0, second), (P1, third), (P1, newer)]

    def test_windows_are_what_was_merged_and_nothing_else(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)

        with store.rebuild(2 * MINUTE) as transaction:
            transaction.merge(P0, partials({("d", "s", 0): [1.0]}))
            transaction.merge(P0, partials({("d", "s", 0): [5.0], ("e", "s", 0): [2.0]}))
            transaction.merge(P1, partials({("d", "s", 0): [9.0]}))

        found = joined(SqlQueries(database).history(NOW))
        assert found.keys == [("d", "s", 0), ("e", "s", 0)]
        assert (found.count.tolist(), found.mean.tolist()) == ([3, 1], [5.0, 2.0])

    def test_every_window_is_pending_again(self, database: Database, store: RebuildStore) -> None:
        scored_window(database)

        with store.rebuild(MINUTE) as transaction:
            transaction.merge(P0, partials({("d", "s", 0): [1.0, 3.0]}))

        assert SqlQueries(database).status().pending == 1
        assert SqlRunStore(database).claim(begun(database, "r2"), 10) == 1

    def test_predictions_of_windows_of_the_same_size_stay_until_they_are_scored_again(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)

        with store.rebuild(MINUTE) as transaction:
            transaction.merge(P0, partials({("d", "s", 0): [1.0, 3.0]}))

        assert [window.anomaly_score for window in windows(database)] == [1.0]

    def test_predictions_go_with_windows_of_another_size(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)

        with store.rebuild(2 * MINUTE) as transaction:
            transaction.merge(P0, partials({("d", "s", 0): [1.0, 3.0]}))

        assert [window.status for window in windows(database)] == [None]
        assert contents(database)["predictions"] == []
        assert settle_window(database, None, MINUTE) == 2 * MINUTE

    def test_what_was_ingested_stays_what_it_was(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)
        before = contents(database)

        with store.rebuild(2 * MINUTE):
            pass

        after = contents(database)
        for table in ("partitions", "epochs", "gaps", "rejects", "segments", "runs", "run_parts"):
            assert after[table] == before[table]

    def test_an_exception_leaves_everything_as_it_was(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)
        before = contents(database)

        def fail_half_way() -> None:
            with store.rebuild(2 * MINUTE) as transaction:
                transaction.merge(P0, partials({("d", "s", 0): [1.0]}))
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail_half_way()

        assert contents(database) == before

    def test_an_active_run_is_in_the_way(self, database: Database, store: RebuildStore) -> None:
        save(database, partials=partials({("d", "s", 0): [1.0]}))
        begun(database, "r1")
        before = contents(database)

        with pytest.raises(Conflict, match="run r1 is active"), store.rebuild(MINUTE):
            pass

        assert contents(database) == before

    def test_readings_that_no_segment_holds_are_in_the_way(
        self, database: Database, store: RebuildStore
    ) -> None:
        save(database, P0, segments=[Segment(0, 0, 1, "raw/a", 2)], readings=2)
        save(database, P1, partials=partials({("d", "s", 0): [1.0]}), readings=1)
        before = contents(database)

        with (
            pytest.raises(Conflict, match="0 of 1 readings of partition hub/1"),
            store.rebuild(MINUTE),
        ):
            pass

        assert contents(database) == before

    def test_an_empty_store_takes_the_size(self, database: Database) -> None:
        with SqlRebuildStore(database).rebuild(MINUTE) as transaction:
            assert transaction.segments == []

        assert settle_window(database, None, 5 * MINUTE) == MINUTE


class TestWindowSize:
    def test_a_new_store_takes_the_size_that_is_wanted(self, database: Database) -> None:
        assert settle_window(database, 7, MINUTE) == 7
        assert settle_window(database, None, MINUTE) == 7
        assert settle_window(database, 7, MINUTE) == 7

    def test_a_new_store_takes_the_default_where_nothing_is_wanted(
        self, database: Database
    ) -> None:
        assert settle_window(database, None, MINUTE) == MINUTE

    def test_another_size_is_refused_with_what_to_do(self, database: Database) -> None:
        settle_window(database, MINUTE, MINUTE)

        with pytest.raises(Misconfigured, match=r"5s.*60s long.*rebuild-windows"):
            settle_window(database, 5_000_000, MINUTE)

        assert settle_window(database, None, MINUTE) == MINUTE

    def test_of_first_starts_at_once_one_decides(self, database: Database) -> None:
        together = Barrier(4)

        def settle(size: int) -> int:
            together.wait()
            return settle_window(database, None, size)

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(settle, [1, 2, 3, 4]))) == 1
