"""How many statements reach a database: sets of rows, and not row by row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.handlers.ingest import Ingest
from scoring.readings import EventBatch, ReadingDecoder
from scoring.windows import Windowing
from tests.adapters.stores import MINUTE, P0, change, contents, reject, save

MOST = 10
"""Statements of one event batch."""


@pytest.fixture
def sent(database: Database) -> Iterator[list[str]]:
    """Collect the statements that the driver sends.

    SQLite takes many rows in one call. A server's driver sends one statement a row.
    """
    found: list[str] = []

    def note(*arguments: Any) -> None:
        _, _, statement, rows, _, is_many = arguments
        is_row_by_row = is_many and database.engine.dialect.name != "sqlite"
        if not statement.startswith("BEGIN"):
            found.extend([statement] * (len(rows) if is_row_by_row else 1))

    event.listen(database.engine, "before_cursor_execute", note)
    yield found
    event.remove(database.engine, "before_cursor_execute", note)


def batch(first: int, rejects: int) -> EventBatch:
    """Make an event batch of one reading and of events that cannot be read."""
    bodies = [b'{"device":"d","sensor":"s","ts":1000,"value":1.5}', *[b"{"] * rejects]
    numbers = np.arange(first, first + len(bodies))
    return EventBatch(P0, numbers, numbers + MINUTE, bodies)


@pytest.mark.parametrize("rejects", [1, 1000])
def test_an_event_batch_takes_few_statements_however_many_rejects_it_has(
    database: Database, tmp_path: Path, sent: list[str], rejects: int
) -> None:
    store = SqlIngestStore(database)
    ingest = Ingest(
        store, FolderBlobs(tmp_path), ReadingDecoder(), Windowing(MINUTE, MINUTE, MINUTE)
    )
    ingest(batch(0, 1))
    sent.clear()

    outcome = ingest(batch(2, rejects))

    assert outcome.rejects.total() == rejects
    # SQL Server merges by two statements, an UPDATE and an INSERT.
    spare = 0 if database.engine.dialect.name == "mssql" else 1
    # Behind a pooler each transaction is told its limits: that is not of the batch.
    of_batch = [one for one in sent if "set_config" not in one]
    assert len(of_batch) + spare <= MOST, sent
    assert len(contents(database)["rejects"]) == rejects + 1


def test_rejects_are_marked_as_replayed_in_one_statement(
    database: Database, sent: list[str]
) -> None:
    save(database, rejects=[reject(number) for number in range(1000)])
    keys = [(0, number, 0) for number in range(999)]
    sent.clear()

    with SqlIngestStore(database).transaction(P0) as transaction:
        transaction.save(change(replayed=keys))
        assert [one.sequence_number for one in transaction.rejects(None, 10)] == [999]

    assert len([one for one in sent if "replayed" in one and "UPDATE" in one]) == 1


def test_a_reject_is_stored_byte_for_byte(database: Database) -> None:
    odd = reject(
        1, body=bytes(range(256)), detail="\0" + "x" * 500, connection_device_id="a \U0001f642 "
    )
    empty = reject(2, body=b"", detail="", connection_device_id=None)
    save(database, rejects=[odd, empty])

    with SqlIngestStore(database).transaction(P0) as transaction:
        first, second = transaction.rejects(None, 10)

    assert (first.body, first.connection_device_id) == (odd.body, "a \U0001f642 ")
    assert first.detail == "\ufffd" + "x" * 399
    assert (second.body, second.detail, second.connection_device_id) == (b"", "", None)
