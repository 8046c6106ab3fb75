"""Names that look alike stay apart, from the event to the list that shows them."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.sql import texts
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.migrations import migrate
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.sql.runs import SqlRunStore
from scoring.handlers.ingest import Ingest
from scoring.queries import AnomalyFilter, DeviceCounts
from scoring.readings import EventBatch, ReadingDecoder
from scoring.windows import Windowing
from tests.adapters.stores import MINUTE, P0, exported, predictions, proposed, windows_of
from tests.servers import PostgreSql

# In the order of code points; only SQL Server has a few others in another one, as `texts` says.
NAMES = [
    "A1", "A1 ", "B", "_", "a1", "a1 ", "a1\x7f", "\u00c4", "\u0394", "\u0414\u0430\u0442",
    "\u0434\u0430\u0442", "\u6e29\u5ea6", "\U0001f321", "\U0001f642", "\U0001f642 ",
    "\U0001f642" * 128,
]  # fmt: skip


def ingest(database: Database, folder: Path, names: list[str], value: float = 1.0) -> None:
    """Have one event batch bring a reading of each pair of a device and a sensor."""
    bodies = [
        json.dumps({"device": d, "sensor": s, "ts": 0, "value": value}).encode()
        for d in names
        for s in names
    ]
    store, blobs = SqlIngestStore(database), FolderBlobs(folder)
    applied, _ = store.applied("hub").get("0", (-1, 0))
    numbers = np.arange(applied + 1, applied + 1 + len(bodies))
    batch = EventBatch(P0, numbers, numbers + MINUTE, bodies)
    outcome = Ingest(store, blobs, ReadingDecoder(), Windowing(MINUTE, MINUTE, MINUTE))(batch)
    assert outcome.readings == len(bodies)


def score(database: Database, run_id: str, pairs: list[tuple[str, str]]) -> None:
    run = exported(database, run_id, rows=len(pairs))
    assert [key[:2] for key in windows_of(database, run)] == pairs
    table: pa.Table = predictions(*((d, s, 0, 1.0) for d, s in pairs))
    assert SqlRunStore(database).index_part(run, 0, run_id, table)


def test_names_that_look_alike_stay_apart(database: Database, tmp_path: Path) -> None:
    ingest(database, tmp_path, NAMES)
    ingest(database, tmp_path, NAMES, value=3.0)
    queries = SqlQueries(database)
    pairs = [(d, s) for d in NAMES for s in NAMES]

    assert queries.sensors() == pairs
    assert {float(mean) for one in queries.history(MINUTE) for mean in one.mean} == {2.0}

    score(database, "r1", pairs)
    ingest(database, tmp_path, NAMES)
    score(database, "r2", pairs)

    each = len(NAMES)
    by_name = [DeviceCounts(name, "", each, each, 0) for name in NAMES]
    assert queries.devices(100) == queries.anomalous_devices(100) == by_name
    assert queries.counts(None, by_sensor=False, limit=100) == by_name
    assert queries.counts("r1", by_sensor=False, limit=100) == []
    assert [(one.device, one.sensor) for one in queries.run_sensors("r2", 1000)] == pairs
    for name in NAMES:
        its = [DeviceCounts(name, sensor, 1, 1, 0) for sensor in NAMES]
        assert queries.device_sensors(name, 100) == its
        found = queries.anomalies(AnomalyFilter(device=name), 1000)
        assert [(one.device, one.sensor) for one in found] == [(name, s) for s in NAMES]
        (window,) = queries.windows(name, name, None, None, 10)
        assert (window.count, window.run_id) == (3, "r2")


def test_every_page_goes_on_behind_the_name_before(database: Database, tmp_path: Path) -> None:
    ingest(database, tmp_path, NAMES)
    score(database, "r1", [(d, s) for d in NAMES for s in NAMES])
    queries = SqlQueries(database)
    most = len(NAMES)

    for before, name in pairwise(NAMES):
        assert queries.devices(1, before)[0].device == name
        assert queries.anomalous_devices(1, (most, before))[0].device == name
        assert queries.device_sensors(name, 1, before)[0].sensor == name
        assert queries.anomalies(AnomalyFilter(), 1, (0, name, before))[0].sensor == name
        assert queries.run_sensors("r1", 1, (name, before))[0].sensor == name


def test_a_run_takes_the_devices_of_its_scope_and_none_that_look_alike(
    database: Database, tmp_path: Path
) -> None:
    ingest(database, tmp_path, NAMES)
    devices = ("A1 ", "\u0434\u0430\u0442")
    store = SqlRunStore(database)
    run = store.begin_run(replace(proposed("r1"), devices=devices))
    assert run is not None
    while store.claim(run, 10):
        pass

    assert windows_of(database, run) == [(d, s, 0) for d in devices for s in NAMES]


def test_postgresql_orders_names_alike_whatever_the_order_of_its_database(
    postgresql_server: PostgreSql, tmp_path: Path
) -> None:
    postgresql_server.execute(
        "CREATE DATABASE of_people TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en'"
    )
    database = Database(postgresql_server.url("of_people"))
    migrate(database)
    with database.read() as connection:
        # Here an "a" comes before a "B".
        assert connection.exec_driver_sql("SELECT 'a' < 'B'").scalar()

    test_names_that_look_alike_stay_apart(database, tmp_path)
    database.close()


@pytest.mark.parametrize("name", [*NAMES, "", " ", "\x7f", " \x7f", "a \x7f\x7f"])
def test_what_sql_server_stores_is_the_same_name_again(name: str) -> None:
    stored = texts.guarded(name)

    assert texts.bare(stored) == name
    assert not stored.endswith(" ")
    # As long as NVARCHAR counts it.
    assert len(stored.encode("utf-16-le")) // 2 <= 256


def test_no_two_names_are_stored_alike() -> None:
    names = {*NAMES, *(f"a{end}" for end in ("", " ", "  ", "\x7f", " \x7f", " \x7f\x7f"))}

    assert len({texts.guarded(name) for name in names}) == len(names)
