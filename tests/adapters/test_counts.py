"""Counts by sensor agree with the predictions, whatever is written over what."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.sql.rebuild import SqlRebuildStore, settle_window
from scoring.adapters.sql.runs import SqlRunStore
from scoring.adapters.sql.schema import device_counts, metadata, predictions, sensor_counts
from scoring.queries import DeviceCounts
from tests.adapters.stores import (
    MINUTE,
    claimed,
    contents,
    ended,
    exported,
    partials,
    save,
)
from tests.adapters.stores import predictions as part_of


def counted(database: Database) -> dict[tuple[str, str], tuple[int, int, int]]:
    with database.read() as connection:
        rows = connection.execute(select(sensor_counts)).all()
    return {(d, s): tuple(numbers) for d, s, *numbers in rows if any(numbers)}


def recounted(database: Database) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Count the predictions one by one."""
    table = predictions.c
    found: dict[tuple[str, str], Counter[str]] = {}
    with database.read() as connection:
        for d, s, status, is_anomaly in connection.execute(
            select(table.device, table.sensor, table.status, table.is_anomaly)
        ):
            count = found.setdefault((d, s), Counter())
            count["scored" if status == "scored" else "not"] += 1
            count["anomalies"] += bool(is_anomaly)
    return {key: (c["scored"], c["anomalies"], c["not"]) for key, c in found.items()}


def agree(database: Database) -> bool:
    """Tell whether the counts are those of the predictions, of each sensor and of each device."""
    names = ("scored", "anomalies", "not_scored")
    sums = (func.sum(sensor_counts.c[name]) for name in names)
    statement = select(sensor_counts.c.device, *sums).group_by(sensor_counts.c.device)
    with database.read() as connection:
        devices = {row[0]: tuple(row[1:]) for row in connection.execute(select(device_counts))}
        expected = {d: tuple(map(int, n)) for d, *n in connection.execute(statement)}
    assert {d: n for d, n in devices.items() if any(n)} == {
        d: n for d, n in expected.items() if any(n)
    }
    return counted(database) == recounted(database)


ROWS = st.dictionaries(
    st.tuples(st.sampled_from("ab"), st.sampled_from("st"), st.integers(0, 3)),
    st.sampled_from([None, -1.0, 1.0]),
    max_size=8,
)


@given(parts=st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 1), ROWS), max_size=8))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_is_indexed_over_what_the_counts_agree(
    database: Database, parts: list[tuple[int, int, dict[tuple[str, str, int], float | None]]]
) -> None:
    with database.write() as connection:
        for table in metadata.sorted_tables:
            connection.execute(delete(table))
    runs = []
    for run_id in ("r1", "r2"):
        save(database, partials=partials({("a", "s", 0): [1.0]}))
        runs.append(exported(database, run_id, rows=[1, 1]))
    for turn, (run, part, rows) in enumerate(parts):
        said = part_of(*((d, s, n * MINUTE, score) for (d, s, n), score in rows.items()))
        SqlRunStore(database).index_part(runs[run], part, f"t{turn}", said)

        assert agree(database)


def test_what_is_delivered_again_is_counted_once(database: Database) -> None:
    save(database, partials=partials({("a", "s", 0): [1.0]}))
    run = exported(database)
    for etag in ("t1", "t1", "t2"):
        SqlRunStore(database).index_part(run, 0, etag, part_of(("a", "s", 0, 1.0)))

    assert counted(database) == {("a", "s"): (1, 1, 0)}
    assert SqlQueries(database).devices(10) == [DeviceCounts("a", "", 1, 1, 0)]


def test_a_window_that_a_late_reading_changed_is_counted_as_it_is_now(database: Database) -> None:
    windows = {("a", sensor, start): [1.0] for sensor in "st" for start in (0, MINUTE)}
    save(database, partials=partials(windows))
    first = exported(database, "r1")
    said = [(*key, 1.0) for key in windows]
    SqlRunStore(database).index_part(first, 0, "t1", part_of(*said))
    assert SqlQueries(database).devices(10) == [DeviceCounts("a", "", 4, 4, 0)]

    save(database, partials=partials({("a", "s", 0): [2.0], ("a", "t", 0): [2.0]}))
    again = exported(database, "r2")
    now = part_of(("a", "s", 0, -1.0), ("a", "t", 0, None))
    SqlRunStore(database).index_part(again, 0, "t2", now)

    assert agree(database)
    assert SqlQueries(database).devices(10) == [DeviceCounts("a", "", 3, 2, 1)]
    assert SqlQueries(database).anomalous_devices(10) == [DeviceCounts("a", "", 3, 2, 1)]


def test_parts_that_are_indexed_at_once_share_a_device_and_lose_no_count(
    database: Database,
) -> None:
    sensors = [f"s{number}" for number in range(6)]
    save(database, partials=partials({("a", sensor, 0): [1.0] for sensor in sensors}))
    run = exported(database, rows=[1] * len(sensors))
    start = Barrier(len(sensors))

    def index(part: int) -> bool:
        start.wait()
        said = part_of(("a", sensors[part], 0, 1.0))
        return SqlRunStore(database).index_part(run, part, "t1", said)

    with ThreadPoolExecutor(len(sensors)) as threads:
        assert all(threads.map(index, range(len(sensors))))

    assert agree(database)
    assert SqlQueries(database).anomalous_devices(10) == [DeviceCounts("a", "", 6, 6, 0)]


def test_the_most_anomalous_devices_come_page_by_page(database: Database) -> None:
    many = {"a": 1, "b": 3, "c": 1, "d": 0, "e": 3, "f": 1}
    keys = [(device, "s", n * MINUTE) for device, most in many.items() for n in range(3) if most]
    save(database, partials=partials({key: [1.0] for key in keys}))
    run = exported(database)
    said = [(*key, 1.0 if key[2] < many[key[0]] * MINUTE else -1.0) for key in keys]
    SqlRunStore(database).index_part(run, 0, "t1", part_of(*said))
    queries = SqlQueries(database)
    found, after = [], None
    while page := queries.anomalous_devices(2, after):
        found += [(row.device, row.anomalies) for row in page]
        after = (page[-1].anomalies, page[-1].device)

    assert found == [("b", 3), ("e", 3), ("a", 1), ("c", 1), ("f", 1)]


def test_a_part_that_fails_half_way_counts_for_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(database, partials=partials({("a", "s", 0): [1.0]}))
    run, before = exported(database), contents(database)

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("scoring.adapters.sql.bulk.upsert_predictions", fail)
    with pytest.raises(RuntimeError):
        SqlRunStore(database).index_part(run, 0, "t1", part_of(("a", "s", 0, 1.0)))

    assert contents(database) == before


def test_windows_of_another_size_begin_to_be_counted_anew(database: Database) -> None:
    settle_window(database, MINUTE, MINUTE)
    save(database, partials=partials({("a", "s", 0): [1.0]}))
    store, run = SqlRunStore(database), exported(database)
    store.index_part(run, 0, "t1", part_of(("a", "s", 0, 1.0)))
    ended(database, run)

    rebuild = SqlRebuildStore(database)
    assert rebuild.begin(2 * MINUTE)
    while rebuild.clear(1):
        pass
    assert rebuild.end()

    assert agree(database)
    assert contents(database)["device_counts"] == contents(database)["sensor_counts"] == []
    with pytest.raises(AssertionError):
        claimed(database, "r2")
