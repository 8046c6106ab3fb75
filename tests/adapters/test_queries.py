"""What everybody who asks may rely on: the same tests on each engine."""

import math

import pytest

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.sql.queries import windows as queries_module
from scoring.adapters.sql.rebuild import settle_window
from scoring.adapters.sql.runs import SqlRunStore
from scoring.errors import NotFound
from scoring.ports import Gap
from scoring.queries import (
    Anomaly,
    AnomalyFilter,
    Backlog,
    DeviceCounts,
    GapCounts,
    OpenGap,
    PartitionStatus,
    Queries,
    RejectRow,
    ScoredWindow,
    StoreStatus,
)
from scoring.readings import Partition
from scoring.runs import RunState
from tests.adapters.stores import (
    MINUTE,
    NOW,
    P0,
    P1,
    begun,
    change,
    claimed,
    contents,
    deliver,
    exported,
    joined,
    partials,
    predictions,
    reject,
    save,
)


@pytest.fixture
def queries(database: Database) -> Queries:
    return SqlQueries(database)


def fill(database: Database, *sensors: tuple[str, str], windows: int = 1) -> None:
    starts = [number * MINUTE for number in range(windows)]
    rows = {(device, sensor, start): [1.0] for device, sensor in sensors for start in starts}
    save(database, partials=partials(rows))


def index(database: Database, run_id: str, *rows: tuple[str, str, int, float | None]) -> None:
    """Have a run of one part say something about windows that are pending."""
    run = exported(database, run_id, rows=len(rows))
    SqlRunStore(database).index_part(run, 0, "t1", predictions(*rows))


class TestEmptyStore:
    def test_nothing_is_there(self, queries: Queries) -> None:
        assert queries.status() == StoreStatus(window=0, partitions=[])
        assert queries.runs(10) == []
        assert queries.anomalies(AnomalyFilter(), 10) == []
        assert queries.windows("d", "s", None, None, 10) == []
        assert queries.rejects(None, 10) == []
        assert queries.counts(None, by_sensor=True, limit=10) == []
        assert queries.count_scored(0) == 0
        assert queries.sensors() == []
        assert list(queries.history(NOW)) == []


class TestStatus:
    def test_each_partition_shows_how_far_it_is(self, database: Database, queries: Queries) -> None:
        deliver(database, [3, 4, 8], P1)
        with SqlIngestStore(database).transaction(P1) as transaction:
            transaction.save(
                change(watermark=7, last_enqueued=9, events=1, readings=5, late=2,
                       rejects=[reject(1)])
            )  # fmt: skip
        deliver(database, [0], P0)
        SqlIngestStore(database).end_partition(P0)

        assert queries.status().partitions == [
            PartitionStatus("hub/0", 0, 0, None, 0, ended=True, events=1, readings=0, rejects=0,
                            late=0, missing=0),
            PartitionStatus("hub/1", 0, 8, 7, 9, ended=False, events=4, readings=5, rejects=1,
                            late=2, missing=3),
        ]  # fmt: skip

    def test_a_partition_shows_its_newest_epoch_and_what_all_of_them_miss(
        self, database: Database, queries: Queries
    ) -> None:
        deliver(database, [0, 10])
        deliver(database, [2, 4], enqueued=10**12)

        (status,) = queries.status().partitions
        assert (status.epoch, status.high_water, status.missing) == (1, 4, 9 + 2 + 1)

    def test_gaps_are_counted_by_what_became_of_them(
        self, database: Database, queries: Queries
    ) -> None:
        deliver(database, [0, 10, 20])
        deliver(database, [5])
        SqlIngestStore(database).mark_lost(Gap(P0, 0, 11, 12, "open"))

        status = queries.status()
        assert status.gaps == {
            "open": GapCounts(3, 4 + 4 + 7),
            "repaired": GapCounts(1, 1),
            "lost": GapCounts(1, 2),
        }
        assert status.partitions[0].missing == 15

    def test_gaps_are_counted_of_the_partitions_that_are_asked_for(
        self, database: Database, queries: Queries
    ) -> None:
        for number in range(4):
            deliver(database, [0, 5], Partition("hub", str(number)))
        deliver(database, [2], P1)

        assert queries.gaps("hub/1", "hub/2") == {
            "hub/1": {"open": GapCounts(2, 3), "repaired": GapCounts(1, 1)},
            "hub/2": {"open": GapCounts(1, 4)},
        }
        assert queries.gaps("hub/7", "hub/9") == {}

    def test_open_gaps_come_by_epoch_and_number_and_no_more_than_asked_for(
        self, database: Database, queries: Queries
    ) -> None:
        deliver(database, [0, 10, 20, 30])
        deliver(database, [5])
        deliver(database, [3, 5], enqueued=10**12)
        deliver(database, [0, 9], P1)
        SqlIngestStore(database).mark_lost(Gap(P0, 0, 11, 19, "open"))
        everything = [
            OpenGap(0, 1, 4), OpenGap(0, 6, 9), OpenGap(0, 21, 29), OpenGap(1, 0, 2),
            OpenGap(1, 4, 4),
        ]  # fmt: skip

        assert queries.open_gaps("hub/0", "hub/1", 9) == {
            "hub/0": everything,
            "hub/1": [OpenGap(0, 1, 8)],
        }
        assert queries.open_gaps("hub/0", "hub/0", 2) == {"hub/0": everything[:2]}
        assert [gap.events for gap in everything] == [4, 4, 9, 3, 1]

    def test_the_backlog_is_what_waits_and_what_is_missing_now(
        self, database: Database, queries: Queries
    ) -> None:
        assert queries.backlog(10) == Backlog(0, 0)
        fill(database, ("d", "a"), ("d", "b"), windows=3)
        claimed(database)
        fill(database, ("d", "b"), windows=2)
        deliver(database, [0, 10])
        deliver(database, [0, 3], P1)
        deliver(database, [4, 5])

        assert queries.backlog(10) == Backlog(2, 7 + 2)
        assert queries.backlog(1).pending == 1

    def test_rejects_are_counted_by_reason_until_they_are_replayed(
        self, database: Database, queries: Queries
    ) -> None:
        reasons = ["not_json", "not_json", "bad_value"]
        save(database, rejects=[reject(n, reason=reason) for n, reason in enumerate(reasons)])
        save(database, replayed=((0, 0, 0),))

        assert queries.status().rejects == {"not_json": 1, "bad_value": 1}

    def test_a_window_of_two_partitions_counts_once(
        self, database: Database, queries: Queries
    ) -> None:
        for partition in (P0, P1):
            save(database, partition, partials=partials({("d", "s", 0): [1.0]}))

        assert (queries.status().windows, queries.status().pending) == (1, 1)

    def test_claimed_windows_are_not_pending(self, database: Database, queries: Queries) -> None:
        fill(database, ("d", "a"), ("d", "b"))
        claimed(database)
        fill(database, ("d", "b"))

        assert (queries.status().windows, queries.status().pending) == (2, 1)

    def test_the_size_of_the_windows_is_told(self, database: Database, queries: Queries) -> None:
        settle_window(database, MINUTE, MINUTE)

        assert queries.status().window == MINUTE


class TestRuns:
    def test_a_run_shows_what_came_of_it(self, database: Database, queries: Queries) -> None:
        fill(database, ("d", "a"), ("d", "b"), ("d", "c"))
        run = exported(database, "r1", rows=[2, 1])
        store = SqlRunStore(database)
        said = predictions(("d", "a", 0, 1.0), ("d", "b", 0, -1.0))
        store.index_part(run, 0, "t1", said)

        summary = queries.run("r1")

        assert (summary.state, summary.trigger, summary.fleet_version) == (
            *(RunState.EXPORTED, "manual", "f1"),
        )
        assert (summary.last_start, summary.created_at, summary.ended_at) == (NOW, NOW, None)
        assert (summary.parts, summary.windows, summary.indexed_parts) == (2, 3, 1)
        assert (summary.indexed, summary.scored, summary.anomalies) == (2, 2, 1)
        assert summary.not_scored == 0

    def test_what_has_no_score_is_counted_too(self, database: Database, queries: Queries) -> None:
        fill(database, ("d", "a"))
        run = exported(database)
        said = predictions(("d", "a", 0, None), status="no_model", reason="none")
        SqlRunStore(database).index_part(run, 0, "t1", said)

        assert (queries.run("r1").scored, queries.run("r1").not_scored) == (0, 1)

    def test_a_run_that_was_not_exported_has_no_part(
        self, database: Database, queries: Queries
    ) -> None:
        fill(database, ("d", "a"))
        begun(database)

        summary = queries.run("r1")
        assert (summary.parts, summary.windows, summary.indexed, summary.anomalies) == (0, 0, 0, 0)

    def test_of_a_list_of_runs_each_shows_its_own_parts(
        self, database: Database, queries: Queries
    ) -> None:
        for run_id, rows in (("a", [1]), ("b", []), ("c", [1, 1])):
            fill(database, ("d", "s"))
            exported(database, run_id, rows=rows)

        assert [(run.run_id, run.parts) for run in queries.runs(9)] == [
            ("c", 2), ("b", 0), ("a", 1),
        ]  # fmt: skip
        assert queries.runs(9, after=1) == []

    def test_the_newest_come_first_and_no_more_than_asked_for(
        self, database: Database, queries: Queries
    ) -> None:
        for run_id in ("z", "a", "m"):
            fill(database, ("d", "s"))
            claimed(database, run_id)

        assert [run.run_id for run in queries.runs(10)] == ["m", "a", "z"]
        assert [run.run_id for run in queries.runs(2)] == ["m", "a"]

    def test_an_unknown_run_is_not_found(self, queries: Queries) -> None:
        with pytest.raises(NotFound, match="no run nope"):
            queries.run("nope")


class TestAnomalies:
    @pytest.fixture(autouse=True)
    def index_two_runs(self, database: Database) -> None:
        fill(database, ("d1", "a"), ("d1", "b"), ("d2", "a"), windows=2)
        index(database, "r1", ("d1", "a", 0, 1.5), ("d1", "a", MINUTE, -1.0), ("d2", "a", 0, 0.5))
        fill(database, ("d1", "b"), ("d2", "a"), windows=2)
        index(database, "r2", ("d1", "b", MINUTE, 2.0), ("d2", "a", MINUTE, 3.0))

    EVERYTHING = (
        Anomaly("d1", "b", MINUTE, 2.0, "r2"),
        Anomaly("d2", "a", MINUTE, 3.0, "r2"),
        Anomaly("d1", "a", 0, 1.5, "r1"),
        Anomaly("d2", "a", 0, 0.5, "r1"),
    )

    def test_the_newest_window_comes_first(self, queries: Queries) -> None:
        assert queries.anomalies(AnomalyFilter(), 10) == list(self.EVERYTHING)

    def test_no_more_come_than_asked_for(self, queries: Queries) -> None:
        assert queries.anomalies(AnomalyFilter(), 3) == list(self.EVERYTHING[:3])

    @pytest.mark.parametrize(
        ("which", "expected"),
        [
            (AnomalyFilter(device="d2"), [1, 3]),
            (AnomalyFilter(sensor="a"), [1, 2, 3]),
            (AnomalyFilter(device="d1", sensor="a"), [2]),
            (AnomalyFilter(run_id="r1"), [2, 3]),
            (AnomalyFilter(run_id="r2", device="d2"), [1]),
            (AnomalyFilter(run_id="nope"), []),
            (AnomalyFilter(device=""), []),
            (AnomalyFilter(since=MINUTE), [0, 1]),
            (AnomalyFilter(since=1), [0, 1]),
            (AnomalyFilter(until=MINUTE), [2, 3]),
            (AnomalyFilter(until=MINUTE + 1), [0, 1, 2, 3]),
            (AnomalyFilter(since=0, until=MINUTE), [2, 3]),
            (AnomalyFilter(since=0, until=0), []),
        ],
    )
    def test_each_filter_leaves_out_what_it_says(
        self, queries: Queries, which: AnomalyFilter, expected: list[int]
    ) -> None:
        assert queries.anomalies(which, 10) == [self.EVERYTHING[i] for i in expected]


class TestWindows:
    def test_a_window_is_merged_and_shows_its_prediction(
        self, database: Database, queries: Queries
    ) -> None:
        save(database, P0, partials=partials({("d", "s", 0): [1.0, 2.0]}))
        save(database, P1, partials=partials({("d", "s", 0): [6.0]}))
        index(database, "r1", ("d", "s", 0, 0.5))

        (window,) = queries.windows("d", "s", None, None, 10)

        # Of the readings 1, 2 and 6: the spread is that of the population.
        assert window.std == pytest.approx(math.sqrt(14 / 3), rel=1e-12)
        assert window == ScoredWindow(
            *(0, 3, 3.0, window.std, 1.0, 6.0, 2.0),
            *("scored", 0.5, True, None, "r1"),
        )

    def test_a_window_that_was_never_scored_says_nothing(
        self, database: Database, queries: Queries
    ) -> None:
        fill(database, ("d", "s"))

        (window,) = queries.windows("d", "s", None, None, 10)
        assert (window.status, window.anomaly_score, window.is_anomaly, window.run_id) == (
            *(None, None, None, None),
        )

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            ((None, None, 10), [0, 1, 2, 3]),
            ((None, None, 2), [2, 3]),
            ((MINUTE, None, 10), [1, 2, 3]),
            ((MINUTE + 1, None, 10), [2, 3]),
            ((None, 2 * MINUTE, 10), [0, 1]),
            ((MINUTE, 3 * MINUTE, 1), [2]),
            ((9 * MINUTE, None, 10), []),
        ],
    )
    def test_the_newest_in_the_range_come_oldest_first(
        self,
        database: Database,
        queries: Queries,
        asked: tuple[int | None, int | None, int],
        expected: list[int],
    ) -> None:
        fill(database, ("d", "s"), windows=4)

        found = queries.windows("d", "s", *asked)

        assert [window.window_start for window in found] == [n * MINUTE for n in expected]

    def test_the_limit_counts_windows_and_not_partitions(
        self, database: Database, queries: Queries
    ) -> None:
        for partition in (P0, P1):
            rows = {("d", "s", start * MINUTE): [1.0] for start in range(3)}
            save(database, partition, partials=partials(rows))

        found = queries.windows("d", "s", None, None, 2)
        assert [(window.window_start, window.count) for window in found] == [
            *[(MINUTE, 2), (2 * MINUTE, 2)]
        ]

    def test_other_sensors_are_left_out(self, database: Database, queries: Queries) -> None:
        fill(database, ("d", "s"), ("d", "t"), ("e", "s"))
        index(database, "r1", ("d", "t", 0, 1.0), ("e", "s", 0, 1.0))

        (window,) = queries.windows("d", "s", None, None, 10)
        assert window.status is None


class TestRejects:
    def test_they_come_in_the_order_of_partitions_and_numbers(
        self, database: Database, queries: Queries
    ) -> None:
        save(database, P1, rejects=[reject(1)])
        save(
            database, P0, rejects=[reject(9), reject(3, position=2), reject(3), reject(0, epoch=1)]
        )

        found = queries.rejects(None, 10)

        assert [(row.partition, row.epoch, row.sequence_number, row.position) for row in found] == [
            *[("hub/0", 0, 3, 0), ("hub/0", 0, 3, 2), ("hub/0", 0, 9, 0), ("hub/0", 1, 0, 0)],
            ("hub/1", 0, 1, 0),
        ]
        assert queries.rejects(None, 2) == found[:2]

    def test_one_reason_can_be_asked_for(self, database: Database, queries: Queries) -> None:
        rejects = [reject(n, reason=reason) for n, reason in enumerate(["a", "b", "a"])]
        save(database, rejects=rejects)

        assert [row.sequence_number for row in queries.rejects("a", 10)] == [0, 2]
        assert [row.sequence_number for row in queries.rejects("a", 1)] == [0]
        assert queries.rejects("c", 10) == []

    def test_all_that_a_person_can_look_at_is_shown(
        self, database: Database, queries: Queries
    ) -> None:
        save(database, rejects=[reject(4, body=b'{"a": 1', enqueued_time=7)])
        save(database, replayed=((0, 4, 0),))

        assert queries.rejects(None, 10) == [
            RejectRow("hub/0", 0, 4, 0, 7, "not_json", "it is not", '{"a": 1', replayed=True)
        ]

    @pytest.mark.parametrize(
        ("body", "shown"),
        [
            (b"", ""),
            ("ü€🦆".encode(), "ü€🦆"),
            (b"\xff\xfea\x00b", "\\xff\\xfea\x00b"),
            (b"x" * 1_000_000, "x" * 200),
            # Cut in the middle of a character.
            (b"x" * 199 + "€".encode(), "x" * 199 + "\\xe2"),
        ],
    )
    def test_a_body_is_shown_whatever_is_in_it(
        self, database: Database, queries: Queries, body: bytes, shown: str
    ) -> None:
        save(database, rejects=[reject(1, body=body)])

        assert [row.body for row in queries.rejects(None, 10)] == [shown]


class TestCounts:
    @pytest.fixture(autouse=True)
    def index_three_runs(self, database: Database) -> None:
        fill(database, ("d1", "a"), ("d1", "b"), ("d2", "a"), windows=2)
        index(
            database, "r1",
            ("d1", "a", 0, 1.0), ("d1", "a", MINUTE, -1.0), ("d1", "b", 0, -1.0),
            ("d2", "a", 0, 1.0), ("d2", "a", MINUTE, 1.0),
        )  # fmt: skip
        fill(database, ("d1", "a"))
        index(database, "r2", ("d1", "a", 0, None))

    def test_each_window_counts_once_by_what_is_known_of_it_now(self, queries: Queries) -> None:
        assert queries.counts(None, by_sensor=False, limit=10) == [
            DeviceCounts("d2", "", 2, 2, 0),
            DeviceCounts("d1", "", 2, 0, 1),
        ]

    def test_sensors_are_counted_each(self, queries: Queries) -> None:
        assert queries.counts(None, by_sensor=True, limit=10) == [
            DeviceCounts("d2", "a", 2, 2, 0),
            DeviceCounts("d1", "a", 1, 0, 1),
            DeviceCounts("d1", "b", 1, 0, 0),
        ]

    def test_the_most_anomalous_come_first_and_no_more_than_asked_for(
        self, queries: Queries
    ) -> None:
        assert [c.device for c in queries.counts(None, by_sensor=True, limit=1)] == ["d2"]

    def test_a_run_counts_the_windows_that_it_was_the_last_to_score(self, queries: Queries) -> None:
        assert queries.counts("r1", by_sensor=False, limit=10) == [
            DeviceCounts("d2", "", 2, 2, 0),
            DeviceCounts("d1", "", 2, 0, 0),
        ]
        assert queries.counts("nope", by_sensor=False, limit=10) == []

    def test_scored_windows_are_counted_from_an_instant_on(self, queries: Queries) -> None:
        assert queries.count_scored(0) == 4
        assert queries.count_scored(1) == 2
        assert queries.count_scored(MINUTE) == 2
        assert queries.count_scored(MINUTE + 1) == 0


class TestSensors:
    def test_each_is_named_once_in_order(self, database: Database, queries: Queries) -> None:
        fill(database, ("b", "x"), ("a", "y"), ("a", "x"), windows=3)
        save(database, P1, partials=partials({("a", "x", 0): [1.0]}))

        assert queries.sensors() == [("a", "x"), ("a", "y"), ("b", "x")]


class TestHistory:
    def test_only_windows_that_end_by_then_are_given(
        self, database: Database, queries: Queries
    ) -> None:
        settle_window(database, MINUTE, MINUTE)
        fill(database, ("d", "s"), windows=3)

        for until, expected in [(MINUTE - 1, 0), (MINUTE, 1), (2 * MINUTE, 2), (NOW, 3)]:
            assert len(joined(queries.history(until))) == expected

    def test_only_windows_that_start_then_or_later_are_given(
        self, database: Database, queries: Queries
    ) -> None:
        settle_window(database, MINUTE, MINUTE)
        fill(database, ("d", "s"), windows=3)

        for since, expected in [(0, 3), (1, 2), (MINUTE, 2), (2 * MINUTE, 1), (NOW, 0)]:
            assert sum(map(len, queries.history(NOW, since))) == expected

    def test_claimed_windows_are_history_too(self, database: Database, queries: Queries) -> None:
        fill(database, ("d", "s"))
        claimed(database)

        assert len(joined(queries.history(NOW))) == 1

    @pytest.mark.parametrize("fetch", [1, 2, 5])
    def test_windows_are_merged_over_partitions_and_across_fetches(
        self, database: Database, queries: Queries, monkeypatch: pytest.MonkeyPatch, fetch: int
    ) -> None:
        monkeypatch.setattr(queries_module, "FETCH", fetch)
        keys = [(device, "s", start * MINUTE) for device in "ab" for start in range(3)]
        for partition in (P0, P1):
            save(database, partition, partials=partials({key: [1.0, 2.0] for key in keys}))

        found = joined(queries.history(NOW))

        assert found.keys == keys
        assert found.count.tolist() == [4] * 6
        assert found.mean.tolist() == pytest.approx([1.5] * 6, rel=1e-12)


class TestReading:
    def test_looking_changes_nothing(self, database: Database, queries: Queries) -> None:
        fill(database, ("d", "s"), windows=2)
        index(database, "r1", ("d", "s", 0, 1.0))
        deliver(database, [0, 5])
        before = contents(database)

        queries.status()
        queries.runs(10)
        queries.anomalies(AnomalyFilter(), 10)
        queries.windows("d", "s", None, None, 10)
        list(queries.history(NOW))

        assert contents(database) == before
