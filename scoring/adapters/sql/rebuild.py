"""Rebuild windows from segments, in steps that any process can go on with."""

from collections.abc import Sequence

from sqlalchemy import Connection, Table, delete, func, select, update

from scoring.adapters.sql import bulk
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.facts import (
    Phase,
    lock_claims,
    read_window,
    read_window_facts,
    write_rebuild,
    write_window,
)
from scoring.adapters.sql.hubs import lock_partition, parse_partition
from scoring.adapters.sql.schema import (
    device_counts,
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
from scoring.retrying import retried
from scoring.runs import ACTIVE

_OF_OLD_WINDOWS = (predictions, sensor_counts, device_counts, suspects)
"""Tables whose rows are deleted with windows of another size."""


class SqlRebuildStore:
    """Implements `ports.RebuildStore` on any database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    def begin(self, window: int) -> bool:
        """Begin to rebuild with windows of `window` microseconds; False if one is under way."""
        with self._database.write() as connection:
            # No run begins, and no partition is added, until this is known.
            lock_claims(connection)
            facts = read_window_facts(connection)
            if facts.phase is not Phase.DONE:
                if facts.size != window:
                    message = (
                        f"windows are being rebuilt with {(facts.size or 0) / 1e6:g} s: let that"
                        " end first"
                    )
                    raise Conflict(message)
                return False
            _refuse_active_runs(connection)
            _refuse_missing_segments(connection)
            phase = Phase.CLEARING if facts.size == window else Phase.RESIZING
            write_window(connection, window)
            write_rebuild(connection, facts.rebuild + 1, phase)
            return True

    def wait_for_writers(self) -> None:
        """Wait until every event batch that is being applied is."""
        with self._database.read() as connection:
            names = connection.execute(select(partitions.c.partition)).scalars().all()
        for name in names:
            self._pass_by(name)

    @retried
    def clear(self, limit: int) -> bool:
        """Delete about `limit` of the old windows; False once none is left."""
        with self._database.write() as connection:
            lock_claims(connection)
            facts = read_window_facts(connection)
            if not facts.are_deleted:
                return False
            tables = [window_partials]
            if facts.phase is Phase.RESIZING:
                tables += _OF_OLD_WINDOWS
            if any(_delete_some(connection, table, limit) for table in tables):
                return True
            write_rebuild(connection, facts.rebuild, Phase.FILLING)
            return False

    def pending(self, limit: int) -> list[tuple[Partition, Segment]]:
        """Return the first `limit` segments that no new window holds, all of one partition."""
        table = segments.c
        order = (table.partition, table.epoch, table.first_sequence, table.blob)
        with self._database.read() as connection:
            number = read_window_facts(connection).rebuild
            statement = select(segments).where(table.rebuild < number).order_by(*order)
            rows = connection.execute(statement.limit(limit)).all()
        first = rows[0].partition if rows else ""
        return [
            (
                parse_partition(row.partition),
                Segment(
                    *(row.epoch, row.first_sequence, row.last_sequence, row.blob, row.readings),
                    row.late_enqueued,
                ),
            )
            for row in rows
            if row.partition == first
        ]

    @retried
    def fill(
        self, partition: Partition, window: int, added: Sequence[Segment], partials: Partials
    ) -> bool:
        """Merge the partials of segments into a partition's windows; they become pending."""
        table, name = segments.c, str(partition)
        with self._database.write() as connection:
            lock_partition(connection, name)
            facts = read_window_facts(connection)
            mine = (table.partition == name) & (table.rebuild < facts.rebuild)
            mine &= table.blob.in_([segment.blob for segment in added])
            left = connection.execute(select(func.count()).where(mine)).scalar_one()
            if facts.phase is not Phase.FILLING or facts.size != window or left != len(added):
                return False
            connection.execute(update(segments).where(mine).values(rebuild=facts.rebuild))
            bulk.merge_partials(connection, name, partials)
            return True

    @retried
    def end(self) -> bool:
        """End the rebuild; False if segments are left."""
        with self._database.write() as connection:
            lock_claims(connection)
            facts = read_window_facts(connection)
            left = select(segments.c.blob).where(segments.c.rebuild < facts.rebuild).limit(1)
            if connection.execute(left).first() is not None:
                return False
            if facts.phase is Phase.FILLING:
                write_rebuild(connection, facts.rebuild, Phase.DONE)
            return True

    def count(self) -> tuple[int, int]:
        """Return how many segments were added, and how many there are."""
        with self._database.read() as connection:
            number = read_window_facts(connection).rebuild
            left = select(func.count()).where(segments.c.rebuild < number)
            total = connection.execute(select(func.count()).select_from(segments)).scalar_one()
            return total - connection.execute(left).scalar_one(), total

    @retried
    def _pass_by(self, partition: str) -> None:
        """Wait until whoever writes to a partition has ended."""
        with self._database.write() as connection:
            lock_partition(connection, partition)


def settle_window(database: Database, window: int | None, default: int) -> int:
    """Return the size of the store's windows, microseconds; a new store takes the one wanted.

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
        size = read_window(connection)
    if size is None:
        with database.write() as connection:
            # The lock is held: of two first starts, one decides.
            lock_claims(connection)
            size = read_window(connection)
            if size is None:
                size = window or default
                write_window(connection, size)
    if window not in {None, size}:
        problem = (
            f"SCORING_WINDOW is {window / 1e6:g}s, but this store's windows are {size / 1e6:g}s"
            " long: `rebuild-windows` computes them anew"
        )
        raise Misconfigured([problem])
    return size


def _delete_some(connection: Connection, table: Table, limit: int) -> bool:
    """Delete the first `limit` rows in the order of a table's key; False if it is empty."""
    names = ("device", "sensor", "window_start")
    key = [table.c[name] for name in names if name in table.primary_key.columns]
    most = bulk.most_changed(connection, limit)
    rows = select(*key).order_by(*key).limit(most).subquery()
    last = select(*rows.c).order_by(*(column.desc() for column in rows.c)).limit(1)
    found = connection.execute(last).first()
    if found is None:
        return False
    connection.execute(delete(table).where(bulk.up_to(key, found)))
    return True


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
