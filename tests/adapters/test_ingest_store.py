"""What every ingest store promises: the same tests on each engine."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, pairwise
from threading import Barrier

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from scoring import ledger
from scoring.adapters.sql import hubs
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.sql.schema import partitions, window_partials
from scoring.aggregates import Key, Partials, merge
from scoring.errors import ScoringError, Transient
from scoring.horizon import PartitionState
from scoring.ledger import Epoch, HubAnswer
from scoring.ports import FileNote, Gap, IngestStore, RejectKey, Segment, StoredReject
from scoring.readings import Partition
from scoring.windows import PartitionProgress
from tests.adapters.stores import (
    MINUTE,
    NOW,
    P0,
    P1,
    change,
    contents,
    deliver,
    epochs_of,
    gaps_of,
    impatient,
    joined,
    partials,
    reject,
    save,
)

# The database is not made anew for each example: examples take partitions or sensors of their own.
FRESH = count()
SHARED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def store(database: Database) -> IngestStore:
    return SqlIngestStore(database)


class TestAnswersOfHubs:
    OLD, NEW = HubAnswer(5, 0, 99, 70), HubAnswer(80, 0, 3, 90)

    @pytest.fixture(autouse=True)
    def known(self, store: IngestStore) -> None:
        with store.transaction(P0) as transaction:
            transaction.admit([Epoch(0, 0, 3, 80, 90, created=80)], self.NEW)

    @staticmethod
    def answer(store: IngestStore) -> HubAnswer | None:
        return store.states()[0].answer

    @pytest.mark.parametrize("stale", [OLD, replace(NEW, last=2)])
    def test_an_answer_that_comes_late_replaces_no_newer_one(
        self, store: IngestStore, stale: HubAnswer
    ) -> None:
        (state,) = store.observe({P0: stale}, 100)
        with store.transaction(P0) as transaction:
            transaction.admit([], stale)

        assert state.answer == self.answer(store) == self.NEW

    @pytest.mark.parametrize(
        "later", [replace(NEW, last=9), replace(NEW, beginning=2), HubAnswer(85, 0, -1, 0, True)]
    )
    def test_a_later_one_does(self, store: IngestStore, later: HubAnswer) -> None:
        (state,) = store.observe({P0: later}, 100)

        assert state.answer == self.answer(store) == later
        assert store.states()[0].asked_at == 100

    def test_a_hub_that_was_not_asked_leaves_all_answers_as_they_are(
        self, database: Database, store: IngestStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An answer that ingest writes while somebody looks is not undone."""
        newer = replace(self.NEW, last=7)
        read = hubs.read_states

        def meanwhile(connection: Connection) -> list[PartitionState]:
            found = read(connection)
            hubs.write_answer(connection, str(P0), newer)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(hubs, "read_states", meanwhile)
            store.observe({}, 100)

        assert self.answer(store) == newer

    def test_that_a_partition_is_gone_counts_unless_it_was_seen_later(
        self, store: IngestStore
    ) -> None:
        store.observe({P0: self.NEW}, 100)

        assert [store.observe({P0: None}, at)[0].is_absent for at in (99, 101)] == [False, True]
        assert not store.observe({P0: self.NEW}, 102)[0].is_absent


class TestTransaction:
    def test_a_new_partition_has_no_ledger_and_no_progress(self, store: IngestStore) -> None:
        with store.transaction(P0) as transaction:
            assert transaction.epochs == ()
            assert transaction.progress is None

    def test_what_was_saved_is_there_in_the_next_one(self, store: IngestStore) -> None:
        epochs = (Epoch(0, 5, 20, 50, 200, ((7, 9), (11, 11))), Epoch(1, 0, 3, 300, 400))
        with store.transaction(P0) as transaction:
            transaction.save(change(epochs=epochs, watermark=17, last_enqueued=400))

        with store.transaction(P0) as transaction:
            assert transaction.epochs == epochs
            assert transaction.progress == PartitionProgress(17, 400)

    def test_a_partition_without_an_accepted_reading_has_no_watermark(
        self, store: IngestStore
    ) -> None:
        with store.transaction(P0) as transaction:
            transaction.save(change(last_enqueued=5))

        with store.transaction(P0) as transaction:
            assert transaction.progress == PartitionProgress(None, 5)

    def test_partitions_do_not_see_each_other(self, database: Database, store: IngestStore) -> None:
        deliver(database, range(10))

        with store.transaction(P1) as transaction:
            assert transaction.epochs == ()
            assert transaction.progress is None

    def test_counts_add_up(self, database: Database) -> None:
        save(database, epochs=(Epoch(0, 0, 3, 0, 3),), events=4, readings=3, late=1)
        save(database, events=2, readings=5, late=0, rejects=[reject(4), reject(5)])

        (status,) = SqlQueries(database).status().partitions
        assert (status.events, status.readings, status.rejects, status.late) == (6, 8, 2, 1)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_an_exception_undoes_all_of_it(
        self, database: Database, store: IngestStore, error: type[BaseException]
    ) -> None:
        deliver(database, [0, 5])
        before = contents(database)

        def fail_after_saving() -> None:
            with store.transaction(P0) as transaction:
                transaction.save(
                    change(
                        epochs=(Epoch(0, 0, 9, 0, 9, ((1, 2),)),),
                        partials=partials({("d", "s", 0): [1.0]}),
                        rejects=[reject(6)],
                        segments=[Segment(0, 6, 9, "raw/a", 3)],
                        watermark=3,
                        events=4,
                    )
                )
                raise error

        with pytest.raises(error):
            fail_after_saving()

        assert contents(database) == before

    def test_a_partition_that_was_locked_for_nothing_is_not_one_that_spoke(
        self, store: IngestStore
    ) -> None:
        with store.transaction(P0):
            pass

        assert store.partitions() == {}

    def test_writers_of_one_partition_take_turns(self, database: Database) -> None:
        # The row that they lock; of writers that make it at once, all but one must try again.
        save(database)
        together, turns = Barrier(4), 10

        def count_up() -> None:
            together.wait()
            for _ in range(turns):
                with SqlIngestStore(database).transaction(P0) as transaction:
                    reached = transaction.epochs[0].high_water if transaction.epochs else -1
                    epoch = Epoch(0, 0, reached + 1, 0, reached + 1)
                    transaction.save(change(epochs=(epoch,), events=1))

        with ThreadPoolExecutor(4) as pool:
            for writer in [pool.submit(count_up) for _ in range(4)]:
                writer.result()

        assert [epoch.high_water for epoch in epochs_of(database)] == [4 * turns - 1]
        assert SqlQueries(database).status().partitions[0].events == 4 * turns

    def test_a_writer_that_waited_too_long_may_try_again(
        self, database: Database, store: IngestStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deliver(database, [0])
        other = impatient(database, monkeypatch)

        with store.transaction(P0) as transaction:
            transaction.save(change(epochs=(Epoch(0, 0, 1, 0, 1),)))
            with pytest.raises(Transient, match="busy"):
                deliver(other, [0, 1])
        other.close()

        assert deliver(database, [0, 1]) == 0

    def test_readers_see_what_was_before_and_do_not_wait(
        self, database: Database, store: IngestStore
    ) -> None:
        deliver(database, [0])

        with store.transaction(P0) as transaction:
            transaction.save(change(epochs=(Epoch(0, 0, 9, 0, 9, ((1, 8),)),), events=1))
            assert store.gaps() == []
            assert SqlQueries(database).status().partitions[0].events == 1

        assert len(store.gaps()) == 1


class TestGaps:
    def test_events_without_a_hole_leave_none(self, database: Database) -> None:
        deliver(database, range(5))
        deliver(database, range(5, 9))

        assert gaps_of(database) == []

    def test_a_skipped_range_is_open(self, database: Database) -> None:
        deliver(database, [0, 4, 5, 9])

        assert gaps_of(database) == [(1, 3, "open"), (6, 8, "open")]

    def test_a_gap_that_was_filled_is_repaired(self, database: Database) -> None:
        deliver(database, [0, 4])

        assert deliver(database, [1, 2, 3]) == 3
        assert gaps_of(database) == [(1, 3, "repaired")]
        assert epochs_of(database)[0].gaps == ()

    def test_a_gap_filled_in_its_middle_is_split(self, database: Database) -> None:
        deliver(database, [0, 10])

        deliver(database, [4, 5])

        assert gaps_of(database) == [(1, 3, "open"), (4, 5, "repaired"), (6, 9, "open")]
        assert epochs_of(database)[0].gaps == ((1, 3), (6, 9))

    def test_a_gap_shrinks_from_either_end(self, database: Database) -> None:
        deliver(database, [0, 10])

        deliver(database, [1, 2, 9])

        assert gaps_of(database) == [(1, 2, "repaired"), (3, 8, "open"), (9, 9, "repaired")]

    def test_one_batch_may_touch_several_gaps_and_open_another(self, database: Database) -> None:
        deliver(database, [0, 3, 6])

        deliver(database, [1, 4, 5, 8])

        assert gaps_of(database) == [
            *[(1, 1, "repaired"), (2, 2, "open"), (4, 5, "repaired"), (7, 7, "open")]
        ]

    def test_what_comes_before_the_first_number_leaves_a_gap_up_to_it(
        self, database: Database
    ) -> None:
        deliver(database, [10, 11])

        deliver(database, [5, 6])

        assert gaps_of(database) == [(7, 9, "open")]
        assert epochs_of(database)[0].first_sequence == 5

    def test_a_gap_filled_by_a_transaction_that_failed_stays_open(
        self, database: Database, store: IngestStore
    ) -> None:
        deliver(database, [0, 4])

        def fail_after_saving() -> None:
            with store.transaction(P0) as transaction:
                transaction.save(change(epochs=(Epoch(0, 0, 4, 0, 4),)))
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail_after_saving()

        assert gaps_of(database) == [(1, 3, "open")]

    def test_epochs_have_gaps_of_their_own(self, database: Database, store: IngestStore) -> None:
        deliver(database, [0, 4])
        deliver(database, [2], enqueued=10**12)

        assert store.gaps() == [Gap(P0, 0, 1, 3, "open"), Gap(P0, 1, 0, 1, "open")]
        assert store.partitions() == {P0: 1}

    def test_gaps_come_in_the_order_of_partitions_and_numbers(
        self, database: Database, store: IngestStore
    ) -> None:
        for partition in (P1, P0):
            deliver(database, [0, 5, 10], partition)

        assert [(gap.partition, gap.first) for gap in store.gaps()] == [
            *[(P0, 1), (P0, 6), (P1, 1), (P1, 6)]
        ]

    def test_a_hub_may_have_a_slash_in_its_name(self, database: Database) -> None:
        partition = Partition("space/hub", "7")
        deliver(database, [0, 2], partition)

        assert gaps_of(database, partition) == [(1, 1, "open")]
        assert SqlIngestStore(database).partitions() == {partition: 0}

    @SHARED
    @given(deliveries=st.lists(st.sets(st.integers(0, 30), min_size=1), max_size=6))
    def test_the_ledger_is_what_the_arithmetic_says_whatever_comes_in_whatever_order(
        self, database: Database, deliveries: list[set[int]]
    ) -> None:
        partition = Partition("any", str(next(FRESH)))
        known: dict[int, Epoch] = {}
        for numbers in deliveries:
            sequence = np.array(sorted(numbers), dtype=np.int64)
            slices = ledger.apply(known.values(), sequence, sequence * 1_000_000)
            known |= {part.epoch.number: part.epoch for part in slices}
            deliver(database, sorted(numbers), partition)

        assert epochs_of(database, partition) == tuple(known.values())
        gaps = gaps_of(database, partition)
        assert [gap[:2] for gap in gaps if gap[2] == "open"] == [
            gap for epoch in known.values() for gap in epoch.gaps
        ]
        # Nothing is on record twice.
        assert all(before[1] < after[0] for before, after in pairwise(gaps))


class TestLost:
    @pytest.fixture
    def gap(self, database: Database) -> Gap:
        deliver(database, [0, 10])
        return Gap(P0, 0, 1, 9, "open")

    def lose(self, store: IngestStore, first: int, last: int, epoch: int = 0) -> None:
        store.mark_lost(Gap(P0, epoch, first, last, "open"))

    @pytest.mark.usefixtures("gap")
    def test_a_whole_gap_can_be_lost(self, database: Database, store: IngestStore) -> None:
        self.lose(store, 1, 9)

        assert gaps_of(database) == [(1, 9, "lost")]

    @pytest.mark.usefixtures("gap")
    def test_a_part_of_a_gap_can_be_lost(self, database: Database, store: IngestStore) -> None:
        self.lose(store, 3, 5)

        assert gaps_of(database) == [(1, 2, "open"), (3, 5, "lost"), (6, 9, "open")]

    @pytest.mark.usefixtures("gap")
    def test_only_what_is_in_the_gap_is_lost(self, database: Database, store: IngestStore) -> None:
        deliver(database, [4])

        self.lose(store, 0, 100)

        assert gaps_of(database) == [(1, 3, "lost"), (4, 4, "repaired"), (5, 9, "lost")]

    @pytest.mark.usefixtures("gap")
    def test_a_gap_of_another_epoch_is_not_lost(
        self, database: Database, store: IngestStore
    ) -> None:
        self.lose(store, 1, 9, epoch=1)

        assert gaps_of(database) == [(1, 9, "open")]

    @pytest.mark.usefixtures("gap")
    def test_losing_it_twice_changes_nothing(self, database: Database, store: IngestStore) -> None:
        self.lose(store, 3, 5)
        before = contents(database)

        self.lose(store, 3, 5)

        assert contents(database) == before

    @pytest.mark.usefixtures("gap")
    def test_losing_a_part_of_what_is_lost_changes_nothing(
        self, database: Database, store: IngestStore
    ) -> None:
        self.lose(store, 1, 9)

        self.lose(store, 3, 5)

        assert gaps_of(database) == [(1, 9, "lost")]

    @pytest.mark.usefixtures("gap")
    def test_it_waits_for_who_is_at_work_on_the_partition(
        self, database: Database, store: IngestStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = impatient(database, monkeypatch)

        with store.transaction(P0), pytest.raises(Transient):
            self.lose(SqlIngestStore(other), 1, 9)
        other.close()

        assert gaps_of(database) == [(1, 9, "open")]

    @pytest.mark.usefixtures("gap")
    def test_what_was_lost_and_then_turns_up_is_applied_and_repaired(
        self, database: Database, store: IngestStore
    ) -> None:
        self.lose(store, 1, 6)

        assert deliver(database, [3, 4]) == 2
        assert gaps_of(database) == [
            *[(1, 2, "lost"), (3, 4, "repaired"), (5, 6, "lost"), (7, 9, "open")]
        ]
        assert deliver(database, [3, 4]) == 0

    @pytest.mark.usefixtures("gap")
    def test_a_batch_may_span_what_is_lost_and_what_is_open(
        self, database: Database, store: IngestStore
    ) -> None:
        self.lose(store, 1, 4)

        assert deliver(database, range(3, 7)) == 4
        assert gaps_of(database) == [
            *[(1, 2, "lost"), (3, 4, "repaired"), (5, 6, "repaired"), (7, 9, "open")]
        ]


class TestPartitions:
    def test_an_ended_partition_says_so(self, database: Database, store: IngestStore) -> None:
        save(database, watermark=5, last_enqueued=6)

        store.end_partition(P0)

        with store.transaction(P0) as transaction:
            assert transaction.progress == PartitionProgress(5, 6, ended=True)

    def test_a_hub_says_how_far_each_partition_was_applied_and_when_that_arrived(
        self, database: Database, store: IngestStore
    ) -> None:
        deliver(database, [5, 6], P0)
        deliver(database, [3], P1)
        deliver(database, [1], Partition("hub-2", "0"))
        deliver(database, [2], Partition("h_b", "0"))

        assert store.applied("hub") == {"0": (6, 6_000_000), "1": (3, 3_000_000)}
        assert store.applied("hu") == {}

    def test_a_file_is_known_by_what_was_noted_last(self, store: IngestStore) -> None:
        store.note_file("file-1", FileNote(10, "aa"))
        store.note_file("file-2", FileNote(10, "bb", "b"))
        store.note_file("file-1", FileNote(12, "cc", "c"))

        assert store.files() == {
            "file-1": FileNote(12, "cc", "c"),
            "file-2": FileNote(10, "bb", "b"),
        }

    def test_the_end_of_a_partition_that_never_spoke_leaves_no_trace(
        self, database: Database, store: IngestStore
    ) -> None:
        before = contents(database)

        store.end_partition(P0)

        assert contents(database) == before


class TestRejects:
    def page_through(
        self, store: IngestStore, limit: int, partition: Partition = P0
    ) -> list[StoredReject]:
        found: list[StoredReject] = []
        after: RejectKey | None = None
        while True:
            with store.transaction(partition) as transaction:
                page = transaction.rejects(after, limit)
            assert len(page) <= limit
            if not page:
                return found
            found, after = found + page, page[-1].key

    @pytest.mark.parametrize(
        "body",
        [b"", b"\x00", b"\xff\xfe\x80 not UTF-8", "ü€🦆".encode(), b"'; --", b"x" * 1_000_000],
    )
    def test_a_body_comes_back_byte_by_byte(
        self, database: Database, store: IngestStore, body: bytes
    ) -> None:
        save(database, rejects=[reject(1, body=body)])

        with store.transaction(P0) as transaction:
            assert transaction.rejects(None, 10) == [reject(1, body=body)]

    def test_all_that_is_known_of_a_reject_is_kept(
        self, database: Database, store: IngestStore
    ) -> None:
        one = reject(7, epoch=2, position=3, detail="ü" * 399, connection_device_id="dev-ü")
        save(database, rejects=[one])

        with store.transaction(P0) as transaction:
            assert transaction.rejects(None, 10) == [one]

    def test_a_detail_that_is_too_long_is_cut(self, database: Database, store: IngestStore) -> None:
        save(database, rejects=[reject(1, detail="x" * 5000)])

        with store.transaction(P0) as transaction:
            assert transaction.rejects(None, 10)[0].detail == "x" * 400

    @pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
    def test_pages_give_each_reject_once_in_order(
        self, database: Database, store: IngestStore, limit: int
    ) -> None:
        keys = [(0, 5, 0), (0, 5, 1), (0, 5, 2), (0, 6, 0), (0, 60, 0), (1, 0, 9), (1, 5, 0)]
        rejects = [reject(n, epoch=epoch, position=at) for epoch, n, at in keys]
        save(database, rejects=rejects[::-1])
        save(database, P1, rejects=[reject(1)])

        assert self.page_through(store, limit) == rejects

    def test_a_replayed_reject_is_on_no_page(self, database: Database, store: IngestStore) -> None:
        save(database, rejects=[reject(n) for n in range(4)])
        save(database, P1, rejects=[reject(1)])

        save(database, replayed=((0, 1, 0), (0, 3, 0)))

        assert self.page_through(store, 10) == [reject(0), reject(2)]
        assert self.page_through(store, 10, P1) == [reject(1)]


VALUES = st.floats(-1e6, 1e6, allow_subnormal=False)
BATCHES = st.lists(
    st.dictionaries(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from([0, MINUTE])),
        st.lists(VALUES, min_size=1, max_size=5),
        min_size=1,
    ),
    min_size=1,
    max_size=4,
)


def by_key(rows: Partials) -> dict[Key, tuple[float, ...]]:
    columns = (rows.count, rows.mean, rows.m2, rows.min, rows.max, rows.last, rows.last_time)
    numbers = zip(*(column.tolist() for column in columns), strict=True)
    return dict(zip(rows.keys, numbers, strict=True))


def assert_same(found: Partials, expected: Partials, which: Callable[[Key], bool]) -> None:
    found_ = {key: row for key, row in by_key(found).items() if which(key)}
    expected_ = by_key(expected)
    assert found_.keys() == expected_.keys()
    for key, (count_, mean, m2, *exact) in expected_.items():
        # Another grouping rounds otherwise: to about 1e-16 of each reading, or of its square.
        largest = max(abs(exact[0]), abs(exact[1]), 1e-150)
        assert found_[key][0] == count_
        assert found_[key][1] == pytest.approx(mean, rel=1e-12, abs=1e-14 * largest)
        assert found_[key][2] == pytest.approx(m2, rel=1e-12, abs=1e-13 * count_ * largest**2)
        assert list(found_[key][3:]) == exact


class TestPartials:
    @SHARED
    @given(batches=BATCHES)
    def test_merging_is_that_of_the_aggregates(
        self,
        database: Database,
        batches: list[dict[Key, list[float]]],
    ) -> None:
        prefix = f"{next(FRESH):06}"
        renamed = [
            partials({(prefix + device, *rest): v for (device, *rest), v in batch.items()})  # type: ignore[misc]
            for batch in batches
        ]
        expected = renamed[0]
        for batch in renamed[1:]:
            expected = merge(expected, batch)

        for batch in renamed:
            save(database, partials=batch)

        found = joined(SqlQueries(database).history(NOW))
        assert_same(found, expected, lambda key: key[0].startswith(prefix))

    def test_of_two_readings_at_one_instant_the_greater_is_the_last(
        self, database: Database
    ) -> None:
        for values in ([1.0, 5.0], [9.0, 3.0], [2.0, 4.0]):
            save(database, partials=partials({("d", "s", 0): values}))

        found = joined(SqlQueries(database).history(NOW))
        assert (found.last.tolist(), found.last_time.tolist()) == ([5.0], [1])

    def test_equal_values_have_no_spread_however_they_come(self, database: Database) -> None:
        for _ in range(50):
            save(database, partials=partials({("d", "s", 0): [1e6 + 0.1] * 3}))

        found = joined(SqlQueries(database).history(NOW))
        assert (found.count.tolist(), found.mean.tolist(), found.m2.tolist()) == (
            *([150], [1e6 + 0.1], [0.0]),
        )

    @pytest.mark.parametrize("small", [5e-324, 1e-310, 1e-290, 1e-170, 1e-162, 1e-157, 1e-150])
    def test_readings_may_be_as_near_to_each_other_as_floats_are(
        self, database: Database, small: float
    ) -> None:
        expected, *others = (partials({("d", "s", 0): v}) for v in ([0.0], [small] * 3, [-small]))
        save(database, partials=expected)
        for one in others:
            save(database, partials=one)
            expected = merge(expected, one)

        found = joined(SqlQueries(database).history(NOW))
        assert_same(found, expected, lambda _: True)

    def test_a_key_that_stands_is_tried_again_only_where_first_writers_race(
        self, database: Database
    ) -> None:
        save(database, partials=partials({("d", "s", 0): [1.0]}))
        for table, is_transient in ((partitions, True), (window_partials, False)):
            with database.read() as connection:
                row = connection.execute(select(table)).one()._asdict()
            with pytest.raises(ScoringError) as caught, database.write() as connection:
                connection.execute(table.insert().values(row))

            assert isinstance(caught.value, Transient) == is_transient

    def test_names_are_told_apart_by_every_character(self, database: Database) -> None:
        names = ["a", "A", "a ", " a", "ä", "a\u0308", "1", "01", "'", "x" * 128, "🦆" * 128]
        save(database, partials=partials({(name, "s", 0): [1.0] for name in names}))

        assert SqlQueries(database).sensors() == [(name, "s") for name in sorted(names)]

    def test_windows_before_1970_are_windows_too(self, database: Database) -> None:
        save(database, partials=partials({("d", "s", -MINUTE): [1.0], ("d", "s", 0): [2.0]}))

        found = joined(SqlQueries(database).history(NOW))
        assert [key[2] for key in found.keys] == [-MINUTE, 0]
