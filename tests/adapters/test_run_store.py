"""What every run store promises: the same tests on each engine."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Event, Thread, current_thread

import pytest
from sqlalchemy import event, select, update

from scoring.adapters.sql import runs as runs_module
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.sql.runs import SqlRunStore
from scoring.adapters.sql.schema import predictions as predictions_table
from scoring.adapters.sql.schema import runs as runs_table
from scoring.adapters.sql.schema import window_partials
from scoring.aggregates import merge
from scoring.errors import BadInput, InvalidPart, NotFound, TooManyRuns
from scoring.ports import IndexedPart, RunStore
from scoring.queries import AnomalyFilter
from scoring.runs import Part, RunLimits, RunState, ScoringRun, may_follow
from scoring.suspects import Suspect
from tests.adapters.stores import (
    MINUTE,
    NOW,
    P0,
    P1,
    begun,
    claimed,
    contents,
    ended,
    exported,
    joined,
    partials,
    predictions,
    proposed,
    save,
    windows_of,
)

Fill = Callable[..., None]


@pytest.fixture
def store(database: Database) -> RunStore:
    return SqlRunStore(database)


@pytest.fixture
def fill(database: Database) -> Fill:
    """Give each named sensor of device d a reading in each of the first `windows` windows."""

    def readings(*sensors: str, windows: int = 1) -> None:
        starts = [number * MINUTE for number in range(windows)]
        save(database, partials=partials({("d", s, t): [1.0] for s in sensors for t in starts}))

    return readings


def pending(database: Database) -> list[tuple[str, int]]:
    """Name the pending windows, sensor and start; those of two partitions twice."""
    table = window_partials.c
    statement = select(table.sensor, table.window_start).where(table.claimed_by.is_(None))
    with database.read() as connection:
        rows = connection.execute(statement.order_by(table.sensor, table.window_start))
        return [(sensor, start) for sensor, start in rows]


def put_into(database: Database, run: ScoringRun, state: RunState) -> None:
    with database.write() as connection:
        mine = update(runs_table).where(runs_table.c.number == run.number)
        connection.execute(mine.values(state=state))


class TestBeginning:
    def test_nothing_pending_makes_no_run(self, database: Database, store: RunStore) -> None:
        before = contents(database)["runs"]

        assert store.begin_run(proposed()) is None
        assert contents(database)["runs"] == before == []

    def test_a_window_that_is_not_final_makes_no_run(self, fill: Fill, store: RunStore) -> None:
        fill("s", windows=3)

        assert store.begin_run(proposed(last_start=-1)) is None

    def test_a_window_starting_at_the_last_start_makes_a_run(
        self, fill: Fill, store: RunStore
    ) -> None:
        fill("s")

        assert store.begin_run(proposed(last_start=0)) is not None

    def test_a_run_is_as_it_was_proposed_and_has_a_number(
        self, fill: Fill, store: RunStore
    ) -> None:
        fill("s")
        wanted = ScoringRun(0, "r7", RunState.CLAIMING, "http", "f3", 5, 6)

        run = store.begin_run(wanted)

        assert run is not None
        assert run == replace(wanted, number=run.number)
        assert store.run("r7") == run
        assert store.active_runs() == [run]

    def test_a_second_one_while_the_first_is_claiming_is_the_first(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        first = begun(database, "r1")

        assert store.begin_run(proposed("r2")) == first
        assert store.active_runs() == [first]

    def test_triggers_at_the_same_moment_make_one_run(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        together = Barrier(4)

        def begin(number: int) -> ScoringRun | None:
            together.wait()
            return SqlRunStore(database).begin_run(proposed(f"r{number}"))

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(begin, range(4)))

        assert found == store.active_runs() * 4

    def test_once_all_is_claimed_there_is_nothing_for_another(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        claimed(database, "r1")

        assert store.begin_run(proposed("r2")) is None

    def test_a_later_run_has_a_higher_number(self, fill: Fill, database: Database) -> None:
        fill("s")
        first = claimed(database, "r1")
        fill("s")

        assert claimed(database, "r2").number > first.number


class TestLimits:
    def test_what_is_scored_again_is_not_cut_at_the_limit_without_a_word(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a", windows=3)
        claimed(database, "r1")
        again = replace(proposed("r2"), rescore=True)

        with pytest.raises(BadInput, match=r"scored again \(SCORING_MAX_RUN_WINDOWS\)"):
            store.begin_run(again, RunLimits(windows=2))

        assert [run.run_id for run in store.active_runs()] == ["r1"]
        assert store.begin_run(again, RunLimits(windows=3)) is not None

    def test_a_run_beyond_the_limit_is_refused_and_names_the_active_ones(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a")
        claimed(database, "r1")
        fill("b")
        claimed(database, "r2")
        fill("c")

        with pytest.raises(TooManyRuns, match=r"r1, r2.*SCORING_MAX_ACTIVE_RUNS is 2"):
            store.begin_run(proposed("r3"), RunLimits(active=2))

        assert [run.run_id for run in store.active_runs()] == ["r1", "r2"]
        assert pending(database) == [("c", 0)]

    def test_with_nothing_to_do_the_limit_does_not_matter(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a")
        claimed(database, "r1")

        assert store.begin_run(proposed("r2"), RunLimits(active=1)) is None

    def test_a_run_that_ended_makes_room(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a")
        ended(database, claimed(database, "r1"))

        assert store.begin_run(proposed("r2"), RunLimits(active=1)) is not None

    @pytest.mark.parametrize(("limit", "starts"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3)])
    def test_of_a_backlog_a_run_takes_the_oldest_windows(
        self, fill: Fill, database: Database, store: RunStore, limit: int, starts: int
    ) -> None:
        fill("a", "b", windows=3)

        run = store.begin_run(proposed("r1", 2 * MINUTE), RunLimits(windows=limit))

        assert run is not None
        assert run.last_start == (starts - 1) * MINUTE
        while store.claim(run, 100):
            pass
        assert windows_of(database, run) == [
            ("d", sensor, start * MINUTE) for sensor in "ab" for start in range(starts)
        ]

    def test_a_run_within_the_limit_takes_what_comes_in_until_it_has_claimed(
        self, fill: Fill, store: RunStore
    ) -> None:
        fill("a")

        run = store.begin_run(proposed(last_start=9 * MINUTE), RunLimits(windows=100))

        assert run is not None
        assert run.last_start == 9 * MINUTE


class TestFailedParts:
    @pytest.fixture
    def run(self, fill: Fill, database: Database, store: RunStore) -> ScoringRun:
        """Give a scored run of two parts, the first of which is indexed."""
        fill("a", "b")
        run = exported(database, rows=[1, 1])
        store.index_part(run, 0, "t1", predictions(("d", "a", 0, 1.0)))
        put_into(database, run, RunState.SCORED)
        return run

    def test_a_run_completes_without_them_and_their_windows_are_pending(
        self, database: Database, store: RunStore, run: ScoringRun
    ) -> None:
        store.fail_parts(run, {1: "out of memory"})

        assert store.finish(run, 100, NOW)

        assert store.run("r1").state == RunState.COMPLETED
        assert pending(database) == [("b", 0)]
        assert [part.cause for part in store.parts(run)] == ["", "out of memory"]
        assert SqlQueries(database).run("r1").failed_parts == 1

    def test_the_sensors_that_they_held_are_those_without_an_answer(
        self, store: RunStore, run: ScoringRun
    ) -> None:
        assert store.unanswered(run) == [("d", "b")]

    def test_the_windows_go_back_in_chunks_and_the_last_one_ends_the_run(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a", "b", "c")
        run = exported(database, rows=[3])
        put_into(database, run, RunState.SCORED)
        store.fail_parts(run, {0: "out of memory"})

        steps = [store.finish(run, 1, NOW) for _ in range(4)]

        assert steps == [False, False, False, True]
        assert pending(database) == [("a", 0), ("b", 0), ("c", 0)]

    def test_one_that_was_indexed_meanwhile_has_not_failed(
        self, store: RunStore, run: ScoringRun
    ) -> None:
        store.fail_parts(run, {0: "no predictions"})

        assert store.parts(run)[0].cause == ""

    def test_nothing_of_one_is_indexed_afterwards(
        self, database: Database, store: RunStore, run: ScoringRun
    ) -> None:
        store.fail_parts(run, {1: "no predictions"})

        assert not store.index_part(run, 1, "t2", predictions(("d", "b", 0, 1.0)))
        assert len(contents(database)["predictions"]) == 1

    @pytest.mark.parametrize("state", [state for state in RunState if state.gives_back])
    def test_nothing_is_indexed_of_a_run_that_gives_its_windows_back(
        self, database: Database, store: RunStore, run: ScoringRun, state: RunState
    ) -> None:
        put_into(database, run, state)

        assert not store.index_part(run, 1, "t1", predictions(("d", "b", 0, 1.0)))

    def test_a_part_with_two_rows_of_one_window_is_refused_whole(
        self, database: Database, store: RunStore, run: ScoringRun
    ) -> None:
        said = predictions(("d", "b", 0, 1.0), ("d", "b", 0, 2.0))

        with pytest.raises(InvalidPart, match=r"part-00001.parquet has two rows of one window"):
            store.index_part(run, 1, "t1", said)

        assert len(contents(database)["predictions"]) == 1

    @pytest.mark.parametrize("text", ["x" * 700, "a\0b", "\U0001f600" * 500, "\0" * 401])
    def test_a_reason_is_stored_whatever_it_is(
        self, database: Database, store: RunStore, run: ScoringRun, text: str
    ) -> None:
        said = predictions(("d", "b", 0, None), status="model_failed", reason=text)

        assert store.index_part(run, 1, "t1", said)

        (window,) = SqlQueries(database).windows("d", "b", None, None, 1)
        assert window.reason == text[:400].replace("\0", "\ufffd")

    @pytest.mark.parametrize("text", ["x" * 5000, "a\0b", "half \ud83d a pair"])
    def test_so_is_every_other_text_that_is_not_ours(
        self, database: Database, store: RunStore, run: ScoringRun, text: str
    ) -> None:
        store.note(run, store.run("r1").state, text)
        store.note_engine(run, text, text)
        store.fail_parts(run, {1: text})
        store.save_suspects([Suspect("d", "b", "v1", 1, 1, 1, 0, text)])

        cleaned = text.replace("\0", "\ufffd").replace("\ud83d", "?")
        assert store.run("r1").cause == cleaned[:2000]
        assert SqlQueries(database).run("r1").engine_status == cleaned[:200]
        assert store.parts(run)[1].cause == cleaned[:1000]
        assert [suspect.cause for suspect in store.suspects()] == [cleaned[:400]]

    @pytest.mark.parametrize("database", ["postgresql"], indirect=True)
    def test_a_name_that_the_database_refuses_makes_the_part_invalid(
        self, store: RunStore, run: ScoringRun
    ) -> None:
        with pytest.raises(InvalidPart, match=r"part-00001.parquet cannot be stored"):
            store.index_part(run, 1, "t1", predictions(("d\0", "b", 0, 1.0)))

    def test_a_suspect_that_the_engine_has_scored_is_one_no_longer(
        self, store: RunStore, run: ScoringRun
    ) -> None:
        suspects = [Suspect("d", sensor, "v1", 1, 1, 1, 0, "why") for sensor in "ab"]
        store.save_suspects(suspects)

        store.clear_suspects(run)

        assert store.suspects() == suspects[1:]


class TestJobs:
    @pytest.mark.parametrize("state", RunState)
    def test_a_run_is_given_to_the_engine_only_while_it_may_be(
        self, fill: Fill, database: Database, store: RunStore, state: RunState
    ) -> None:
        fill("a")
        run = exported(database)
        put_into(database, run, state)
        may_be = state in {RunState.EXPORTED, RunState.SUBMITTED, RunState.RUNNING}

        assert store.open_job(run) is may_be
        assert store.run("r1").job_is_open is may_be

    def test_a_job_is_open_until_it_is_closed_also_after_its_run(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a")
        run = exported(database)
        store.open_job(run)
        assert store.open_jobs() == []

        ended(database, run, RunState.CANCELING, "canceled")

        assert [one.run_id for one in store.open_jobs()] == ["r1"]
        (job,) = SqlQueries(database).status().open_jobs
        assert (job.run_id, job.state, job.ended_at) == ("r1", RunState.CANCELED, NOW)
        store.close_job(run)
        assert store.open_jobs() == []

    def test_losses_are_counted(self, fill: Fill, database: Database, store: RunStore) -> None:
        fill("a")
        run = exported(database)

        for _ in range(3):
            store.lose_job(run, NOW)

        assert store.run(run.run_id).losses == 3


class TestClaiming:
    def test_all_pending_final_windows_are_claimed(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a", "b", windows=3)
        run = begun(database, last_start=MINUTE)

        assert store.claim(run, 100) == 4
        assert store.claim(run, 100) == 0
        assert windows_of(database, run) == [("d", s, t) for s in "ab" for t in (0, MINUTE)]
        assert pending(database) == [("a", 2 * MINUTE), ("b", 2 * MINUTE)]

    def test_a_claim_takes_a_chunk_of_whole_sensors(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a", "b", "c", windows=3)
        run = begun(database)

        assert store.claim(run, 4) == 6
        assert pending(database) == [("c", start * MINUTE) for start in range(3)]
        assert store.claim(run, 4) == 3
        assert store.claim(run, 4) == 0

    @pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 9])
    def test_chunks_are_bounded_by_the_limit_and_one_sensor(
        self, fill: Fill, database: Database, store: RunStore, limit: int
    ) -> None:
        fill("a", "b", "c", windows=3)
        run = begun(database)

        sizes = []
        while size := store.claim(run, limit):
            sizes.append(size)

        assert sum(sizes) == 9
        assert all(size < limit + 3 for size in sizes)

    def test_a_device_sorts_before_its_sensors(self, database: Database, store: RunStore) -> None:
        keys = [(device, sensor, 0) for device in ("a", "b") for sensor in ("x", "y")]
        save(database, partials=partials({key: [1.0] for key in keys}))
        run = begun(database)

        assert [store.claim(run, 1) for _ in keys] == [1] * 4
        assert windows_of(database, run) == keys

    def test_a_window_of_two_partitions_is_claimed_with_both(
        self, database: Database, store: RunStore
    ) -> None:
        for partition in (P0, P1):
            save(database, partition, partials=partials({("d", "s", 0): [1.0]}))
        run = begun(database)

        assert store.claim(run, 1) == 2
        assert pending(database) == []

    def test_a_run_that_stopped_claiming_takes_nothing_more(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        run = claimed(database)
        fill("t")

        # As a process would that was held up since before the run moved on.
        assert store.claim(replace(run, state=RunState.CLAIMING), 100) == 0
        assert pending(database) == [("t", 0)]

    def test_two_that_claim_for_one_run_take_each_window_once(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        sensors = [f"s{number:02}" for number in range(20)]
        fill(*sensors)
        run, together = begun(database), Barrier(2)

        def claim_all(_: int) -> int:
            together.wait()
            return sum(iter(lambda: SqlRunStore(database).claim(run, 1), 0))

        with ThreadPoolExecutor(2) as pool:
            assert sum(pool.map(claim_all, range(2))) == len(sensors)
        assert [key[1] for key in windows_of(database, run)] == sensors

    def test_a_count_of_what_was_claimed_is_never_too_low(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a", "b", windows=3)
        save(database, P1, partials=partials({("d", "a", 0): [1.0]}))
        run = claimed(database)

        assert len(windows_of(database, run)) == 6
        assert 6 <= store.count_claimed(run) <= 7


class TestLateReadings:
    def test_a_late_reading_makes_a_claimed_window_pending_again(
        self, fill: Fill, database: Database
    ) -> None:
        fill("a", "b")
        run = claimed(database)

        fill("a")

        assert pending(database) == [("a", 0)]
        assert windows_of(database, run) == [("d", "b", 0)]

    def test_the_next_run_takes_the_window_with_all_its_readings(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        claimed(database, "r1")
        save(database, partials=partials({("d", "s", 0): [3.0]}))

        found = joined(store.claimed(claimed(database, "r2")))

        assert (found.count.tolist(), found.mean.tolist()) == ([2], [2.0])

    def test_a_late_reading_of_another_partition_brings_the_whole_window(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        first = claimed(database, "r1")
        save(database, P1, partials=partials({("d", "s", 0): [3.0]}))

        second = claimed(database, "r2")

        # The window is scored once: by the run that has the late reading.
        assert windows_of(database, first) == []
        found = joined(store.claimed(second))
        assert (found.keys, found.count.tolist()) == ([("d", "s", 0)], [2])

    def test_a_window_that_waits_for_its_late_reading_to_be_claimed_is_not_exported(
        self, fill: Fill, database: Database
    ) -> None:
        fill("s", "t")
        run = claimed(database, "r1")

        save(database, P1, partials=partials({("d", "s", 0): [3.0]}))

        assert windows_of(database, run) == [("d", "t", 0)]

    def test_a_window_that_an_older_run_has_scored_belongs_to_the_newer_run(
        self, fill: Fill, database: Database
    ) -> None:
        fill("s")
        claimed(database, "r1")
        save(database, P1, partials=partials({("d", "s", 0): [3.0]}))
        second = claimed(database, "r2")

        ended(database, second)

        assert windows_of(database, claimed(database, "r3")) == [("d", "s", 0)]

    def test_a_late_reading_makes_its_own_window_pending_only(
        self, fill: Fill, database: Database
    ) -> None:
        fill("s", windows=3)
        claimed(database)

        save(database, partials=partials({("d", "s", MINUTE): [3.0]}))

        assert pending(database) == [("s", MINUTE)]


class TestClaimed:
    @pytest.mark.parametrize("fetch", [1, 2, 3, 7, 20_000])
    def test_windows_are_merged_over_partitions_and_across_fetches(
        self,
        database: Database,
        store: RunStore,
        monkeypatch: pytest.MonkeyPatch,
        fetch: int,
    ) -> None:
        monkeypatch.setattr(runs_module, "FETCH", fetch)
        keys = [("d", sensor, start * MINUTE) for sensor in "abc" for start in range(3)]
        of_both = {P0: partials({key: [1.0, 4.0] for key in keys}),
                   P1: partials({key: [7.0] for key in keys[::2]})}  # fmt: skip
        for partition, windows in of_both.items():
            save(database, partition, partials=windows)
        run = claimed(database)

        found = joined(store.claimed(run))

        expected = merge(*of_both.values())
        assert found.keys == expected.keys == keys
        assert found.count.tolist() == expected.count.tolist()
        assert found.mean.tolist() == pytest.approx(expected.mean.tolist(), rel=1e-12)
        assert found.m2.tolist() == pytest.approx(expected.m2.tolist(), rel=1e-12)
        for name in ("min", "max", "last", "last_time"):
            assert getattr(found, name).tolist() == getattr(expected, name).tolist()

    def test_sets_are_bounded(
        self, fill: Fill, database: Database, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runs_module, "FETCH", 4)
        fill("a", "b", windows=10)

        sizes = [len(one) for one in store.claimed(claimed(database))]

        assert sum(sizes) == 20
        assert max(sizes) <= 4

    def test_one_window_of_more_partitions_than_a_fetch_holds_is_one_window(
        self, database: Database, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runs_module, "FETCH", 2)
        for number in range(9):
            partition = replace(P0, id=str(number))
            save(database, partition, partials=partials({("d", "s", 0): [float(number)]}))

        found = joined(store.claimed(claimed(database)))

        assert (found.keys, found.count.tolist(), found.max.tolist()) == (
            *([("d", "s", 0)], [9], [8.0]),
        )

    def test_a_run_without_windows_gives_none(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")

        assert list(store.claimed(begun(database))) == []

    def test_ingest_goes_on_while_windows_are_read(
        self, fill: Fill, database: Database, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runs_module, "FETCH", 2)
        fill("a", "b", "c", windows=2)
        sets = store.claimed(claimed(database))
        found = [next(sets)]

        fill("b", windows=2)
        found += sets

        # What is read is the state of one moment: the run's windows as they were.
        assert joined(found).count.tolist() == [1] * 6


class TestReleasing:
    @pytest.mark.parametrize("database", ["postgresql"], indirect=True)
    def test_two_runs_that_end_at_once_keep_no_window_for_each_other(
        self, database: Database, store: RunStore
    ) -> None:
        save(database, P0, partials=partials({("d", "s", 0): [1.0]}))
        older = claimed(database, "r1")
        save(database, P1, partials=partials({("d", "s", 0): [2.0]}))
        newer = claimed(database, "r2")
        for run in (older, newer):
            assert store.transition(run, RunState.CANCELING, NOW)
        has_released, go_on = Event(), Event()

        def hold(_: object, __: object, statement: str, *___: object) -> None:
            if current_thread().name == "newer" and statement.startswith("UPDATE window_partials"):
                has_released.set()
                assert go_on.wait(30)

        event.listen(database.engine, "after_cursor_execute", hold)
        threads = [
            Thread(target=store.finish, args=(run, 10, NOW), name=name)
            for name, run in (("newer", newer), ("older", older))
        ]
        threads[0].start()
        assert has_released.wait(30)
        threads[1].start()
        # The older one waits for the newer one's release, or has not seen it.
        threads[1].join(0.5)
        go_on.set()
        for thread in threads:
            thread.join()

        assert pending(database) == [("s", 0), ("s", 0)]

    def test_windows_are_given_back_in_chunks_of_whole_sensors(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a", "b", "c", windows=2)
        run = claimed(database)
        store.transition(run, RunState.FAILING, NOW, "tried")

        assert not store.finish(run, 3, NOW)
        assert pending(database) == [(s, t) for s in "ab" for t in (0, MINUTE)]
        assert store.run(run.run_id).state == RunState.FAILING
        assert store.finish(run, 3, NOW)
        assert windows_of(database, run) == []
        assert store.run(run.run_id) == replace(
            run, state=RunState.FAILED, cause="tried", ended_at=NOW
        )
        assert not store.finish(run, 3, NOW)

    @pytest.mark.parametrize("state", [state for state in RunState if not state.gives_back])
    def test_a_run_that_is_not_ending_keeps_its_windows(
        self, fill: Fill, database: Database, store: RunStore, state: RunState
    ) -> None:
        fill("a")
        run = claimed(database)
        put_into(database, run, state)

        store.finish(run, 100, NOW)

        assert pending(database) == []

    @pytest.mark.parametrize("state", [RunState.FAILING, RunState.CANCELING])
    def test_a_claim_that_was_under_way_takes_nothing_from_a_run_that_is_ending(
        self, fill: Fill, database: Database, store: RunStore, state: RunState
    ) -> None:
        fill("a", "b")
        run = begun(database)
        assert store.claim(run, 1) == 1
        assert store.transition(run, state, NOW)

        assert store.claim(run, 1) == 0
        assert store.finish(run, 100, NOW)
        assert store.claim(run, 1) == 0
        assert pending(database) == [("a", 0), ("b", 0)]

    def test_windows_of_another_run_stay_its_own(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a")
        first = claimed(database, "r1")
        fill("b")
        second = claimed(database, "r2")

        ended(database, first)

        assert windows_of(database, second) == [("d", "b", 0)]
        assert pending(database) == [("a", 0)]

    def test_the_next_run_takes_what_was_given_back(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a", "b")
        first = claimed(database, "r1")
        ended(database, first)

        assert len(windows_of(database, claimed(database, "r2"))) == 2


class TestStates:
    @pytest.mark.parametrize("current", list(RunState))
    @pytest.mark.parametrize("new", list(RunState))
    def test_a_run_moves_only_where_the_rules_let_it(
        self, fill: Fill, database: Database, store: RunStore, current: RunState, new: RunState
    ) -> None:
        fill("s")
        run = begun(database)
        put_into(database, run, current)
        allowed = current in may_follow(new)

        assert store.transition(run, new, NOW, "why") is allowed

        after = store.run(run.run_id)
        assert (after.state, after.cause) == ((new, "why") if allowed else (current, ""))
        summary = SqlQueries(database).run(run.run_id)
        assert (summary.ended_at == NOW) is (allowed and new.is_terminal)

    def test_of_two_that_move_a_run_on_one_does(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        run, together = begun(database), Barrier(2)

        def end(state: RunState) -> bool:
            together.wait()
            return SqlRunStore(database).transition(run, state, NOW)

        with ThreadPoolExecutor(2) as pool:
            moved = list(pool.map(end, [RunState.FAILING, RunState.CANCELING]))

        assert sorted(moved) == [False, True]

    def test_a_run_that_ended_is_not_active(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a")
        first = claimed(database, "r1")
        fill("b")
        second = claimed(database, "r2")
        fill("c")
        third = begun(database, "r3")
        assert store.active_runs() == [first, second, third]

        ended(database, second, RunState.CANCELING)

        assert store.active_runs() == [first, third]

    def test_a_note_changes_the_cause_alone(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        run = begun(database)

        store.note(run, run.state, "ü" * 5000)
        store.note(run, RunState.SCORED, "it is not")

        assert store.run(run.run_id) == replace(run, cause="ü" * 2000)

    def test_an_unknown_run_is_not_found(self, store: RunStore) -> None:
        with pytest.raises(NotFound, match="nope"):
            store.run("nope")


class TestExports:
    def test_the_first_export_counts(self, fill: Fill, database: Database, store: RunStore) -> None:
        fill("s")
        run = claimed(database)

        assert store.record_export(run, "e1", [Part(0, 3), Part(4, 1)])
        assert not store.record_export(run, "e2", [Part(0, 99)])

        after = store.run(run.run_id)
        assert (after.state, after.export) == (RunState.EXPORTED, "e1")
        assert store.parts(run) == [IndexedPart(0, 3), IndexedPart(4, 1)]

    def test_a_run_that_is_still_claiming_has_no_export(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        run = begun(database)

        assert not store.record_export(run, "e1", [Part(0, 1)])
        assert store.parts(run) == []

    def test_an_export_may_have_no_part(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        run = claimed(database)

        assert store.record_export(run, "e1", [])
        assert store.parts(run) == []


class TestIndexing:
    def scores(self, database: Database) -> dict[tuple[str, int], float | None]:
        table = predictions_table.c
        with database.read() as connection:
            rows = connection.execute(select(table.sensor, table.window_start, table.anomaly_score))
            return {(sensor, start): score for sensor, start, score in rows}

    def test_a_part_is_indexed_with_its_counts(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s", windows=3)
        run = exported(database, rows=3)
        said = predictions(
            ("d", "s", 0, -1.5), ("d", "s", MINUTE, 0.25), ("d", "s", 2 * MINUTE, 1e-300)
        )

        assert store.index_part(run, 0, "t1", said)

        assert self.scores(database) == {("s", 0): -1.5, ("s", MINUTE): 0.25,
                                         ("s", 2 * MINUTE): 1e-300}  # fmt: skip
        assert store.parts(run) == [
            IndexedPart(0, 3, etag="t1", indexed_rows=3, scored=3, anomalies=2)
        ]

    def test_rows_without_a_score_say_why(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        run = exported(database)
        said = predictions(("d", "s", 0, None), status="no_model", reason="none of ü")

        store.index_part(run, 0, "t1", said)

        (window,) = SqlQueries(database).windows("d", "s", None, None, 10)
        assert (window.status, window.reason, window.anomaly_score, window.is_anomaly) == (
            *("no_model", "none of ü", None, None),
        )
        assert store.parts(run)[0].scored == 0

    def test_the_same_content_again_changes_nothing(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        run = exported(database)
        store.index_part(run, 0, "t1", predictions(("d", "s", 0, 1.0)))
        before = contents(database)

        assert not store.index_part(run, 0, "t1", predictions(("d", "s", 0, 1.0)))
        assert contents(database) == before

    def test_new_content_replaces_what_the_part_said(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s", windows=2)
        run = exported(database, rows=2)
        store.index_part(run, 0, "t1", predictions(("d", "s", 0, 1.0), ("d", "s", MINUTE, 2.0)))

        assert store.index_part(run, 0, "t2", predictions(("d", "s", MINUTE, -3.0)))

        assert self.scores(database) == {("s", MINUTE): -3.0}
        assert store.parts(run) == [
            IndexedPart(0, 2, etag="t2", indexed_rows=1, scored=1, anomalies=0)
        ]

    def test_a_part_replaces_only_what_it_said_itself(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a", "b")
        run = exported(database, rows=[1, 1])
        store.index_part(run, 0, "t1", predictions(("d", "a", 0, 1.0)))
        store.index_part(run, 1, "t1", predictions(("d", "b", 0, 2.0)))

        store.index_part(run, 0, "t2", predictions(("d", "a", 0, 5.0)))

        assert self.scores(database) == {("a", 0): 5.0, ("b", 0): 2.0}

    def test_an_older_run_never_overwrites_a_newer_one(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a", "b")
        old = exported(database, "r1", rows=2)
        fill("a")
        new = exported(database, "r2", rows=1)

        store.index_part(new, 0, "t1", predictions(("d", "a", 0, 2.0)))
        store.index_part(old, 0, "t1", predictions(("d", "a", 0, 1.0), ("d", "b", 0, 1.0)))

        assert self.scores(database) == {("a", 0): 2.0, ("b", 0): 1.0}
        # It did its own work all the same: it is as complete as it would have been before.
        assert store.parts(old)[0].indexed_rows == 2

    def test_a_newer_run_overwrites_an_older_one(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a")
        old = exported(database, "r1")
        fill("a")
        new = exported(database, "r2")

        store.index_part(old, 0, "t1", predictions(("d", "a", 0, 1.0)))
        store.index_part(new, 0, "t1", predictions(("d", "a", 0, -2.0)))

        assert self.scores(database) == {("a", 0): -2.0}
        assert SqlQueries(database).anomalies(AnomalyFilter(), 10) == []

    def test_an_older_part_indexed_anew_takes_nothing_from_a_newer_run(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("a")
        old = exported(database, "r1")
        fill("a")
        new = exported(database, "r2")
        store.index_part(old, 0, "t1", predictions(("d", "a", 0, 1.0)))
        store.index_part(new, 0, "t1", predictions(("d", "a", 0, 2.0)))

        store.index_part(old, 0, "t2", predictions(("d", "a", 0, 9.0)))

        assert self.scores(database) == {("a", 0): 2.0}

    def test_a_part_that_was_not_exported_is_not_indexed(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        run = exported(database)

        with pytest.raises(NotFound, match="no part 7"):
            store.index_part(run, 7, "t1", predictions(("d", "s", 0, 1.0)))

        assert self.scores(database) == {}

    def test_a_part_without_a_row_is_indexed_as_such(
        self, fill: Fill, database: Database, store: RunStore
    ) -> None:
        fill("s")
        run = exported(database)

        assert store.index_part(run, 0, "t1", predictions())
        assert store.parts(run) == [
            IndexedPart(0, 1, etag="t1", indexed_rows=0, scored=0, anomalies=0)
        ]

    def test_two_deliveries_at_once_index_a_part_once(self, fill: Fill, database: Database) -> None:
        fill("s")
        run, together = exported(database), Barrier(2)

        def index(_: int) -> bool:
            together.wait()
            return SqlRunStore(database).index_part(run, 0, "t1", predictions(("d", "s", 0, 1.0)))

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(index, range(2))) == [False, True]
