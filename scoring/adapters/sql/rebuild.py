"""Windows computed anew, in one transaction."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from scoring.adapters.sql import bulk
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.facts import WINDOW, lock_claims, read_window
from scoring.adapters.sql.ingest import parse_partition
from scoring.adapters.sql.schema import (
    device_counts,
    facts,
    partitions,
    predictions,
    runs,
    segments,
    sensor_counts,
    suspects,
    window_partials,
)
from scoring.aggregates import Partials
from scoring.errors import Conflict, Misconfigured
from scoring.ports import Segment
from scoring.readings import Partition
from scoring.runs import ACTIVE


@dataclass(frozen=True, slots=True)
class _Transaction:
    """Implements `ports.RebuildTransaction`."""

    connection: Connection

    @property
    def segments(self) -> list[tuple[Partition, Segment]]:
        """The whole manifest of the raw store, partition by partition, in order."""
        table = segments.c
        order = (table.partition, table.epoch, table.first_sequence, table.blob)
        rows = self.connection.execute(select(segments).order_by(*order))
        return [
            (
                parse_partition(row.partition),
                Segment(row.epoch, row.first_sequence, row.last_sequence, row.blob, row.readings),
            )
            for row in rows
        ]

    def merge(self, partition: Partition, partials: Partials) -> None:
        """Merge partials into a partition's windows; they become pending."""
        bulk.merge_partials(self.connection, str(partition), partials)


class SqlRebuildStore:
    """Implements `ports.RebuildStore` on any database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def rebuild(self, window: int) -> Iterator[_Transaction]:
        """Begin again with windows of `window` microseconds; commits when the block ends."""
        with self._database.write() as connection:
            # No run begins until the windows are there again.
            lock_claims(connection)
            connection.execute(update(partitions).values(ended=partitions.c.ended))
            _refuse_active_runs(connection)
            _refuse_missing_segments(connection)
            if read_window(connection) != window:
                connection.execute(delete(predictions))
                connection.execute(delete(sensor_counts))
                connection.execute(delete(device_counts))
                connection.execute(delete(suspects))
                _write_window(connection, window)
            connection.execute(delete(window_partials))
            yield _Transaction(connection)


def settle_window(database: Database, window: int | None, default: int) -> int:
    """Give the size of the store's windows, microseconds; a new store takes the one wanted.

    Parameters
    ----------
    window
        What the settings say; None takes what is there.
    default
        For a new store, where the settings say nothing.

    Raises
    ------
    Misconfigured
        The store's windows have another size than the settings say.
    """
    with database.read() as connection:
        found = read_window(connection)
    if found is None:
        with database.write() as connection:
            # The lock is held: of two first starts, one decides.
            lock_claims(connection)
            found = read_window(connection)
            if found is None:
                found = window or default
                _write_window(connection, found)
    if window not in {None, found}:
        problem = (
            f"SCORING_WINDOW is {window / 1e6:g}s, but this store's windows are {found / 1e6:g}s"
            " long: `rebuild-windows` computes them anew"
        )
        raise Misconfigured([problem])
    return found


def _write_window(connection: Connection, window: int) -> None:
    statement = update(facts).where(WINDOW).values(value=str(window))
    if not connection.execute(statement).rowcount:
        connection.execute(insert(facts).values(name="window", value=str(window)))


def _refuse_active_runs(connection: Connection) -> None:
    active = select(runs.c.run_id).where(runs.c.state.in_(ACTIVE)).limit(1)
    if run := connection.execute(active).scalar():
        message = f"run {run} is active: let it end or cancel it before windows are rebuilt"
        raise Conflict(message)


def _refuse_missing_segments(connection: Connection) -> None:
    """Rebuild only from a raw store that holds every reading that was counted."""
    kept = func.coalesce(func.sum(segments.c.readings), 0)
    statement = (
        select(partitions.c.partition, partitions.c.readings, kept)
        .outerjoin(segments, segments.c.partition == partitions.c.partition)
        .group_by(partitions.c.partition, partitions.c.readings)
        .having(kept != partitions.c.readings)
    )
    if row := connection.execute(statement).first():
        message = f"the raw store holds {row[2]} of {row[1]} readings of partition {row[0]}"
        raise Conflict(message)
