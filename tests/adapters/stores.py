"""Stores put up for tests on every engine, and what to fill them with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sqlalchemy import select

from scoring import ledger
from scoring.adapters.sql import engines
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.runs import SqlRunStore
from scoring.adapters.sql.schema import metadata
from scoring.aggregates import Partials, combine, merge
from scoring.ledger import Epoch
from scoring.ports import IngestChange, StoredReject
from scoring.predictions import PREDICTION_SCHEMA
from scoring.readings import Partition
from scoring.runs import Part, RunState, ScoringRun

P0 = Partition("hub", "0")
P1 = Partition("hub", "1")
MINUTE = 60_000_000
NOW = 1_000 * MINUTE

NO_PARTIALS = Partials(
    [],
    *(np.empty(0, t) for t in (np.int64, *[np.float64] * 5, np.int64, np.int64)),
)


def impatient(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Open the same database for a writer that does not wait for anybody."""
    monkeypatch.setattr(engines, "BUSY_TIMEOUT", 0)
    return Database(database.url)


def contents(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Give all rows of all tables, in the order of their keys."""
    with database.read() as connection:
        return {
            table.name: [
                tuple(row)
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in metadata.sorted_tables
        }


def partials(windows: Mapping[tuple[str, str, int], Sequence[float]]) -> Partials:
    """Make the partials of readings, one a microsecond from each window's start on."""
    rows = [(key, i, value) for key, values in windows.items() for i, value in enumerate(values)]
    value = np.array([value for *_, value in rows], dtype=np.float64)
    time = np.array([key[2] + i for key, i, _ in rows], dtype=np.int64)
    one, zero = np.ones(len(rows), dtype=np.int64), np.zeros(len(rows))
    keys = [key for key, *_ in rows]
    return combine(Partials(keys, one, value, zero, value, value, value, time, np.zeros_like(time)))


def joined(sets: Iterable[Partials]) -> Partials:
    """Put sets of windows together; fails if they have one in common."""
    pieces = list(sets)
    whole = reduce(merge, pieces, NO_PARTIALS)
    assert len(whole) == sum(map(len, pieces)), "a window was split over two sets"
    return whole


def change(**fields: Any) -> IngestChange:
    """Make a change of a partition that changes nothing but what is given."""
    nothing = IngestChange(
        epochs=(),
        partials=NO_PARTIALS,
        rejects=[],
        segments=[],
        watermark=None,
        last_enqueued=0,
        events=0,
        readings=0,
        late=0,
    )
    return replace(nothing, **fields)


def save(database: Database, partition: Partition = P0, **fields: Any) -> None:
    """Change a partition in a transaction of its own."""
    with SqlIngestStore(database).transaction(partition) as transaction:
        transaction.save(change(**fields))


def deliver(
    database: Database,
    numbers: Iterable[int],
    partition: Partition = P0,
    enqueued: int | None = None,
) -> int:
    """Apply events to the ledger as the ingest handler does; gives how many were new.

    An event's enqueued time is its number in seconds, if not given.
    """
    sequence = np.array(list(numbers), dtype=np.int64)
    times = sequence * 1_000_000 if enqueued is None else np.full(len(sequence), enqueued)
    with SqlIngestStore(database).transaction(partition) as transaction:
        slices = ledger.apply(transaction.epochs, sequence, times)
        events = sum(len(part.events) for part in slices)
        epochs = tuple(part.epoch for part in slices)
        transaction.save(change(epochs=epochs, events=events))
    return events


def epochs_of(database: Database, partition: Partition = P0) -> tuple[Epoch, ...]:
    """Read a partition's ledger."""
    with SqlIngestStore(database).transaction(partition) as transaction:
        return transaction.epochs


def gaps_of(database: Database, partition: Partition = P0) -> list[tuple[int, int, str]]:
    """First and last number and state of a partition's gaps."""
    found = SqlIngestStore(database).gaps()
    return [(gap.first, gap.last, gap.state) for gap in found if gap.partition == partition]


def reject(sequence_number: int, **fields: Any) -> StoredReject:
    """Make a reject."""
    usual = StoredReject(
        epoch=0,
        sequence_number=sequence_number,
        position=0,
        enqueued_time=NOW,
        reason="not_json",
        detail="it is not",
        body=b"{",
    )
    return replace(usual, **fields)


def proposed(run_id: str = "r1", last_start: int = NOW) -> ScoringRun:
    """Propose a run of all windows that start up to `last_start`."""
    return ScoringRun(0, run_id, RunState.CLAIMING, "manual", "f1", last_start, NOW)


def begun(database: Database, run_id: str = "r1", last_start: int = NOW) -> ScoringRun:
    """Begin a run that has something to do."""
    run = SqlRunStore(database).begin_run(proposed(run_id, last_start))
    assert run is not None
    assert run.run_id == run_id
    return run


def claimed(database: Database, run_id: str = "r1", last_start: int = NOW) -> ScoringRun:
    """Begin a run and claim all that it can have."""
    store, run = SqlRunStore(database), begun(database, run_id, last_start)
    while store.claim(run, 1000):
        pass
    assert store.transition(run, RunState.CLAIMED, NOW)
    return store.run(run_id)


def exported(database: Database, run_id: str = "r1", rows: int | Sequence[int] = 1) -> ScoringRun:
    """Claim all pending windows for a run and record an export of parts with so many rows."""
    store, run = SqlRunStore(database), claimed(database, run_id)
    sizes = [rows] if isinstance(rows, int) else rows
    parts = [Part(number, size) for number, size in enumerate(sizes)]
    assert store.record_export(run, "e1", parts)
    return store.run(run_id)


def ended(
    database: Database,
    run: ScoringRun,
    state: RunState = RunState.FAILING,
    cause: str = "",
    now: int = NOW,
) -> ScoringRun:
    """End a run as failing or canceling, with its windows given back."""
    store = SqlRunStore(database)
    assert store.transition(run, state, now, cause)
    while not store.finish(run, 1000, now):
        pass
    return store.run(run.run_id)


def windows_of(database: Database, run: ScoringRun) -> list[tuple[str, str, int]]:
    """Name the windows that a run would export now."""
    return [key for one in SqlRunStore(database).claimed(run) for key in one.keys]


def predictions(
    *rows: tuple[str, str, int, float | None], status: str = "no_model", reason: str | None = None
) -> pa.Table:
    """Make a prediction part of (device, sensor, window start, score); above 0 is an anomaly.

    `status` is that of the rows without a score, and `reason` too.
    """
    columns: list[list[Any]] = [[], [], [], [], [], [], []]
    for device, sensor, start, score in rows:
        said = (None, status, reason) if score is None else (score > 0, "scored", None)
        row = (device, sensor, start, score, *said)
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    arrays = [
        pa.array(column, pa.string()).dictionary_encode()
        if pa.types.is_dictionary(field.type)
        else pa.array(column, field.type)
        for column, field in zip(columns, PREDICTION_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, names=PREDICTION_SCHEMA.names).cast(PREDICTION_SCHEMA)
