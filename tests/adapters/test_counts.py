"""Counts by sensor agree with the predictions, whatever is written over what."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.sql.rebuild import SqlRebuildStore, settle_window
from scoring.adapters.sql.runs import SqlRunStore
from scoring.adapters.sql.schema import metadata, predictions, sensor_counts
from scoring.queries import DeviceCounts
from scoring.runs import RunState
from tests.adapters.stores import (
    MINUTE,
    NOW,
    claimed,
    contents,
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

        assert counted(database) == recounted(database)


def test_what_is_delivered_again_is_counted_once(database: Database) -> None:
    save(database, partials=partials({("a", "s", 0): [1.0]}))
    run = exported(database)
    for etag in ("t1", "t1", "t2"):
        SqlRunStore(database).index_part(run, 0, etag, part_of(("a", "s", 0, 1.0)))

    assert counted(database) == {("a", "s"): (1, 1, 0)}
    assert SqlQueries(database).devices(10) == [DeviceCounts("a", "", 1, 1, 0)]


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
    store.transition(run, RunState.FAILED, NOW)

    with SqlRebuildStore(database).rebuild(2 * MINUTE):
        pass

    assert counted(database) == {} == recounted(database)
    with pytest.raises(AssertionError):
        claimed(database, "r2")
