"""What every rebuild store promises: the same tests on each engine."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.sql.rebuild import SqlRebuildStore, settle_window
from scoring.adapters.sql.runs import SqlRunStore
from scoring.aggregates import Partials
from scoring.errors import Conflict, Misconfigured, RebuildUnderWay, Transient
from scoring.ports import RebuildStore, Segment
from scoring.queries import ScoredWindow
from scoring.readings import Partition
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
    proposed,
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


def rebuilt(
    store: RebuildStore, window: int, *given: tuple[Partition, Sequence[Segment], Partials]
) -> None:
    """Rebuild windows from what is given for segments."""
    assert store.begin(window)
    while store.clear(1):
        pass
    for partition, added, of_them in given:
        assert store.fill(partition, window, added, of_them)
    assert store.end()


A = Segment(0, 0, 1, "raw/a", 2)
"""The segment of `scored_window`."""


class TestRebuild:
    def test_segments_are_pending_partition_by_partition_in_order(
        self, database: Database, store: RebuildStore
    ) -> None:
        first, second, third = (Segment(0, n, n + 4, f"raw/{n}", 2) for n in (0, 5, 100))
        newer = Segment(1, 0, 3, "raw/new", 4)
        save(database, P1, segments=[third, newer], readings=6)
        save(database, P0, segments=[second], readings=2)
        save(database, P0, segments=[first], readings=2)

        assert store.pending(10) == []
        assert store.begin(MINUTE)
        assert not store.clear(10)
        assert store.pending(1) == [(P0, first)]
        assert store.pending(10) == [(P0, first), (P0, second)]
        assert store.fill(P0, MINUTE, [first, second], partials({}))
        assert store.pending(10) == [(P1, third), (P1, newer)]
        assert store.count() == (2, 4)

    def test_windows_are_what_was_filled_in_and_nothing_else(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)
        b = Segment(0, 0, 0, "raw/b", 1)
        save(database, P1, segments=[b], readings=1)

        of_a = partials({("d", "s", 0): [1.0, 5.0], ("e", "s", 0): [2.0]})
        rebuilt(store, 2 * MINUTE, (P0, [A], of_a), (P1, [b], partials({("d", "s", 0): [9.0]})))

        found = joined(SqlQueries(database).history(NOW))
        assert found.keys == [("d", "s", 0), ("e", "s", 0)]
        assert (found.count.tolist(), found.mean.tolist()) == ([3, 1], [5.0, 2.0])

    def test_every_window_is_pending_again(self, database: Database, store: RebuildStore) -> None:
        scored_window(database)

        rebuilt(store, MINUTE, (P0, [A], partials({("d", "s", 0): [1.0, 3.0]})))

        assert SqlQueries(database).status().pending == 1
        assert SqlRunStore(database).claim(begun(database, "r2"), 10) == 1

    def test_predictions_of_windows_of_the_same_size_stay_until_they_are_scored_again(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)

        rebuilt(store, MINUTE, (P0, [A], partials({("d", "s", 0): [1.0, 3.0]})))

        assert [window.anomaly_score for window in windows(database)] == [1.0]

    def test_predictions_go_with_windows_of_another_size(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)

        rebuilt(store, 2 * MINUTE, (P0, [A], partials({("d", "s", 0): [1.0, 3.0]})))

        assert [window.status for window in windows(database)] == [None]
        assert contents(database)["predictions"] == []
        assert settle_window(database, None, MINUTE) == 2 * MINUTE

    def test_old_windows_go_in_bounded_steps(self, database: Database, store: RebuildStore) -> None:
        names = [(f"d{n}", sensor, start) for n in range(3) for sensor in "ab" for start in (0, 1)]
        save(database, partials=partials({name: [1.0] for name in names}))
        left = [12]

        assert store.begin(MINUTE)
        while store.clear(5):
            left.append(len(contents(database)["window_partials"]))

        assert left == [12, 7, 2, 0]

    def test_what_was_ingested_stays_what_it_was(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)
        before = contents(database)

        rebuilt(store, 2 * MINUTE, (P0, [A], partials({("d", "s", 0): [1.0, 3.0]})))

        after = contents(database)
        for table in ("partitions", "epochs", "gaps", "rejects", "runs", "run_parts"):
            assert after[table] == before[table]

    def test_one_that_was_stopped_goes_on_and_adds_nothing_twice(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)
        assert store.begin(2 * MINUTE)
        while store.clear(10):
            pass
        once = partials({("d", "s", 0): [1.0, 3.0]})
        assert store.fill(P0, 2 * MINUTE, [A], once)

        assert not store.begin(2 * MINUTE)
        assert not store.fill(P0, 2 * MINUTE, [A], once)
        assert store.end()

        assert joined(SqlQueries(database).history(NOW)).count.tolist() == [2]

    def test_no_run_begins_before_it_has_ended(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)
        assert store.begin(MINUTE)

        with pytest.raises(RebuildUnderWay, match="rebuild-windows"):
            SqlRunStore(database).begin_run(proposed("r2"))
        with pytest.raises(RebuildUnderWay):
            list(SqlQueries(database).history(NOW))
        while store.clear(10):
            pass
        with pytest.raises(RebuildUnderWay):
            SqlRunStore(database).begin_run(proposed("r2"))
        assert not store.end()

        assert store.fill(P0, MINUTE, [A], partials({("d", "s", 0): [1.0, 3.0]}))
        assert store.end()
        assert begun(database, "r2")

    def test_another_size_waits_until_it_has_ended(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)
        assert store.begin(2 * MINUTE)

        with pytest.raises(Conflict, match="being rebuilt with 120 s"):
            store.begin(3 * MINUTE)

    def test_readings_that_come_while_old_windows_are_deleted_are_added_once(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)
        came = Segment(0, 2, 2, "raw/came", 1)
        assert store.begin(2 * MINUTE)
        save(database, segments=[came], readings=1, partials=partials({("d", "s", 0): [8.0]}))
        assert contents(database)["window_partials"] != []
        while store.clear(10):
            pass

        assert contents(database)["window_partials"] == []
        assert store.pending(10) == [(P0, A), (P0, came)]

    def test_readings_that_come_while_windows_are_filled_are_there_at_once(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)
        assert store.begin(2 * MINUTE)
        while store.clear(10):
            pass
        came = Segment(0, 2, 2, "raw/came", 1)
        save(database, segments=[came], readings=1, partials=partials({("d", "s", 0): [8.0]}))

        assert [row[4] for row in contents(database)["window_partials"]] == [1]
        assert store.pending(10) == [(P0, A)]

    def test_readings_that_no_segment_keeps_wait_while_old_windows_are_deleted(
        self, database: Database, store: RebuildStore
    ) -> None:
        scored_window(database)
        assert store.begin(2 * MINUTE)
        before = contents(database)

        with pytest.raises(Transient, match="being rebuilt"):
            save(database, readings=1, partials=partials({("d", "s", 0): [8.0]}))

        assert contents(database) == before

    def test_an_active_run_is_in_the_way(self, database: Database, store: RebuildStore) -> None:
        save(database, partials=partials({("d", "s", 0): [1.0]}))
        begun(database, "r1")
        before = contents(database)

        with pytest.raises(Conflict, match="run r1 is active"):
            store.begin(MINUTE)

        assert contents(database) == before

    def test_readings_that_no_segment_holds_are_in_the_way(
        self, database: Database, store: RebuildStore
    ) -> None:
        save(database, P0, segments=[A], readings=2)
        save(database, P1, partials=partials({("d", "s", 0): [1.0]}), readings=1)
        before = contents(database)

        with pytest.raises(Conflict, match="0 of 1 readings of partition hub/1"):
            store.begin(MINUTE)

        assert contents(database) == before

    def test_an_empty_store_takes_the_size(self, database: Database) -> None:
        rebuilt(SqlRebuildStore(database), MINUTE)

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
