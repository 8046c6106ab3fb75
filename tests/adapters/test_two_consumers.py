"""Two consumers of one partition at the same time: what a hub's rebalancing makes of one."""

from pathlib import Path
from random import Random
from threading import Barrier, Thread

import numpy as np
import pytest
import stamina

from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.errors import Transient
from scoring.handlers.ingest import Ingest, IngestOutcome
from scoring.readings import EventBatch, Partition, ReadingDecoder
from scoring.windows import Windowing
from tests.adapters.stores import contents

EVENTS = 3_000
SECOND = 1_000_000
BODY = '{{"device":"d{}","sensor":"s","ts":{},"value":{}.5}}'


def batches(partition: str, size: int) -> list[EventBatch]:
    """Cut the same events of a partition into event batches of a size; one in 50 is unreadable."""
    numbers = np.arange(EVENTS)
    bodies = [
        b"nonsense" if n % 50 == 7 else BODY.format(n % 7, n * 1000, n % 11).encode()
        for n in numbers.tolist()
    ]
    return [
        EventBatch(
            Partition("hub", partition),
            numbers[i : i + size],
            numbers[i : i + size] * SECOND,
            bodies[i : i + size],
        )
        for i in range(0, EVENTS, size)
    ]


def consume(
    ingest: Ingest, work: list[EventBatch], start: Barrier, out: list[IngestOutcome]
) -> None:
    retrying = stamina.retry(on=Transient, attempts=20, wait_initial=0.01, wait_max=0.1)(ingest)
    start.wait()
    out.extend(map(retrying, work))


@pytest.fixture
def ingest(database: Database, tmp_path: Path) -> Ingest:
    return Ingest(
        SqlIngestStore(database),
        FolderBlobs(tmp_path),
        ReadingDecoder(),
        Windowing(60 * SECOND, 30 * SECOND, 600 * SECOND),
    )


@pytest.mark.parametrize("seed", range(3))
def test_no_event_counts_twice_none_is_lost_and_nobody_gives_up(
    ingest: Ingest, database: Database, seed: int
) -> None:
    random = Random(seed)
    # The same two partitions, cut elsewhere by each consumer, some batches twice.
    works = []
    for size in (100, 130):
        one, other = batches("0", size), batches("1", size)
        work = [batch for pair in zip(one, other, strict=True) for batch in pair]
        works.append(sorted([*work, *random.sample(work, 10)], key=lambda b: b.sequence_numbers[0]))
    start = Barrier(len(works))
    outcomes: list[list[IngestOutcome]] = [[] for _ in works]
    threads = [
        Thread(target=consume, args=(ingest, work, start, out))
        for work, out in zip(works, outcomes, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    total = sum((outcome for out in outcomes for outcome in out), IngestOutcome())
    delivered = sum(len(batch) for work in works for batch in work)
    assert (total.events, total.duplicates) == (delivered, delivered - 2 * EVENTS)
    assert total.readings == 2 * (EVENTS - EVENTS // 50)
    assert sum(total.rejects.values()) == 2 * (EVENTS // 50)

    rows = contents(database)
    assert sum(row[4] for row in rows["window_partials"]) == total.readings
    assert len(rows["rejects"]) == 2 * (EVENTS // 50)
    assert [(row[0], row[3]) for row in rows["epochs"]] == [
        ("hub/0", EVENTS - 1),
        ("hub/1", EVENTS - 1),
    ]
    assert {row[-1] for row in rows["gaps"]} <= {"repaired"}
