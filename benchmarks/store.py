"""The ingest store under several partitions at once: SQLite's file and a PostgreSQL server.

Each partition has a process of its own, as the workers of a Functions host are, which gives real
event batches of 1,000 readings to the ingest handler: ledger, windows, rejects, raw segments, and
a commit that waits for the disk. In the end every partition delivers some batches again, and the
store must hold every event once. Without PostgreSQL's server programs SQLite is measured alone.

Run: ``python benchmarks/store.py [--batches N] [--rounds N]``
"""

import argparse
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import func, select

from scoring import instants
from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.migrations import migrate
from scoring.adapters.sql.schema import rejects, segments, window_partials
from scoring.errors import Transient
from scoring.handlers.ingest import Ingest
from scoring.readings import EventBatch, Partition, ReadingDecoder
from scoring.windows import Windowing
from tests.servers import PostgreSql, postgresql
from tests.services import postgresql_programs

BATCH = 1_000
SENSORS = 1_000
"""Sensors of a partition: a batch has one reading of each."""
WINDOW = 300 * instants.SECOND
LATENESS = 120 * instants.SECOND
START = 1_767_571_200 * instants.SECOND
PARTITIONS = (1, 4, 8)
AGAIN = 3
"""Batches that each partition delivers again in the end."""

Measured = tuple[float, int]
"""Seconds, and how many batches met somebody else's lock and were delivered again."""


@dataclass(frozen=True)
class Place:
    """A store for one measurement."""

    url: str
    folder: Path


def event_batch(partition: int, number: int) -> EventBatch:
    """Make half a minute of a partition's sensors, a reading each, one of them unreadable."""
    base = START + number * 30 * instants.SECOND
    bodies = [
        json.dumps(
            {
                "device": f"d{partition}-{i // 5:04}",
                "sensor": f"s{i % 5}",
                "ts": instants.text(base + i * 1000),
                "value": round(20 + 5 * math.sin(number + i), 3),
            }
        ).encode()
        for i in range(1, BATCH)
    ]
    numbers = np.arange(number * BATCH, (number + 1) * BATCH)
    enqueued = np.full(BATCH, base + 2 * instants.SECOND)
    return EventBatch(Partition("bench", str(partition)), numbers, enqueued, [b"{", *bodies])


def work(place: Place, partition: int, count: int, start: Any, found: Any) -> None:
    """Deliver one partition, in a process of its own."""
    batches = [event_batch(partition, number) for number in range(count)]
    database = Database(place.url)
    ingest = Ingest(
        *(SqlIngestStore(database), FolderBlobs(place.folder), ReadingDecoder()),
        Windowing(WINDOW, LATENESS, LATENESS),
    )
    with database.read():
        start.wait()
    begin = time.monotonic()
    busy = sum(deliver(ingest, batch) for batch in batches)
    end = time.monotonic()
    for batch in batches[-AGAIN:]:
        assert ingest(batch).duplicates == BATCH
    database.close()
    found.put((begin, end, busy))


def deliver(ingest: Ingest, batch: EventBatch) -> int:
    """Deliver a batch until it is applied, as the host does; gives how often it was in vain."""
    busy = 0
    while True:
        try:
            assert ingest(batch).duplicates == 0
        except Transient as error:
            print(f"  partition {batch.partition.id}: {error}")
            busy += 1
        else:
            return busy


def measure(place: Place, partitions: int, count: int) -> Measured:
    """Have all partitions deliver at once."""
    database = Database(place.url)
    migrate(database)
    spawn = multiprocessing.get_context("spawn")
    start, found = spawn.Barrier(partitions), spawn.SimpleQueue()
    workers = [
        spawn.Process(target=work, args=(place, partition, count, start, found))
        for partition in range(partitions)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0, "a worker failed"
    begins, ends, busy = zip(*(found.get() for _ in workers), strict=True)
    check(database, partitions, count)
    database.close()
    return max(ends) - min(begins), sum(busy)


def check(database: Database, partitions: int, count: int) -> None:
    """Every event once: in the ledger, in the windows, in the manifest, among the rejects."""
    events, bad = count * BATCH, count
    totals = (
        select(window_partials.c.partition, func.sum(window_partials.c.count)),
        select(segments.c.partition, func.sum(segments.c.readings)),
        select(rejects.c.partition, func.count()),
    )
    names = [f"bench/{partition}" for partition in range(partitions)]
    with database.read() as connection:
        for statement, expected in zip(totals, (events - bad, events - bad, bad), strict=True):
            rows = connection.execute(statement.group_by(statement.selected_columns[0])).all()
            assert {name: int(n) for name, n in rows} == dict.fromkeys(names, expected)
    store = SqlIngestStore(database)
    assert [mark for mark, _ in store.applied("bench").values()] == [events - 1] * partitions
    assert store.gaps() == []


@contextmanager
def sqlite_place(_: None) -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as folder:
        yield Place(f"sqlite:///{folder}/store.db", Path(folder))


@contextmanager
def server_place(server: PostgreSql) -> Iterator[Place]:
    server.execute("DROP DATABASE IF EXISTS bench")
    server.execute("CREATE DATABASE bench")
    with tempfile.TemporaryDirectory() as folder:
        yield Place(server.url("bench"), Path(folder))


def main() -> None:
    """Measure in turn, print rates and ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=60, help="of a partition")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"event batches of {BATCH:,} readings of {SENSORS:,} sensors, a process a partition")
    if postgresql_programs() is None:
        print("PostgreSQL is skipped: no initdb on the PATH nor below /usr/lib/postgresql")
        report(options, {"SQLite": (sqlite_place, None)})
        return
    with postgresql(durable=True) as server:
        places = {"SQLite": (sqlite_place, None), "PostgreSQL": (server_place, server)}
        report(options, places)


def report(options: argparse.Namespace, engines: dict[str, Any]) -> None:
    best: dict[tuple[str, int], float] = {}
    busy: dict[tuple[str, int], int] = {}
    for _ in range(options.rounds):
        for engine, (opened, server) in engines.items():
            for partitions in PARTITIONS:
                with opened(server) as place:
                    seconds, waits = measure(place, partitions, options.batches)
                key = engine, partitions
                best[key] = max(best.get(key, 0), options.batches * partitions * BATCH / seconds)
                busy[key] = busy.get(key, 0) + waits
    one = best["SQLite", 1]
    print(f"{'':12}{'partitions':>11}{'events/s':>11}{'x SQLite, 1':>13}{'lock waits in vain':>20}")
    for (engine, partitions), rate in best.items():
        waits = busy[engine, partitions]
        print(f"{engine:12}{partitions:11}{rate:11,.0f}{rate / one:13.2f}{waits:20}")
    print("every event was counted once")


if __name__ == "__main__":
    main()
