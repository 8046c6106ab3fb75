"""What came in: partitions, gaps, rejects, and what waits."""

from collections import defaultdict
from typing import Any

from sqlalchemy import ColumnElement, Select, func, literal, select, true

from scoring.adapters.sql import paging
from scoring.adapters.sql.facts import Phase, read_window_facts
from scoring.adapters.sql.hubs import newest_epoch
from scoring.adapters.sql.queries.reader import Reader, fetch
from scoring.adapters.sql.schema import (
    epochs,
    gaps,
    partitions,
    rejects,
    runs,
    suspects,
    window_partials,
)
from scoring.queries import (
    Backlog,
    GapCounts,
    OpenGap,
    OpenJob,
    PartitionStatus,
    RejectRow,
    RejectRowKey,
    StoreStatus,
)
from scoring.runs import ACTIVE, TERMINAL, RunState

RUNS_SHOWN = 100
"""Active runs, and runs whose jobs are open, that a status names."""

BODY_SHOWN = 200
"""Bytes of a reject's body that are shown."""


class IncomingQueries(Reader):
    """Reads what came in."""

    def status(self) -> StoreStatus:
        """Tell what came in and what waits."""
        events = func.sum(_EVENTS)
        by_state = select(gaps.c.state, func.count(), events).group_by(gaps.c.state)
        by_reason = select(rejects.c.reason, func.count()).where(~rejects.c.replayed)
        with self._database.read() as connection:
            facts = read_window_facts(connection)
            return StoreStatus(
                window=facts.size or 0,
                partitions=[PartitionStatus(*row) for row in fetch(connection, _partitions())],
                gaps={state: GapCounts(*n) for state, *n in fetch(connection, by_state)},
                rejects=dict(fetch(connection, by_reason.group_by(rejects.c.reason))),
                windows=connection.execute(_count_windows()).scalar_one(),
                pending=connection.execute(
                    _count_windows(window_partials.c.claimed_by.is_(None))
                ).scalar_one(),
                active_runs=list(connection.execute(_active_runs()).scalars().all()),
                open_jobs=[
                    OpenJob(run_id, RunState(state), *rest)
                    for run_id, state, *rest in fetch(connection, _open_jobs())
                ],
                suspects=connection.execute(_count_suspects()).scalar_one(),
                set_aside=connection.execute(
                    _count_suspects(suspects.c.set_aside_at.is_not(None))
                ).scalar_one(),
                is_rebuilding=facts.phase is not Phase.DONE,
            )

    def partitions(self, limit: int, after: str | None = None) -> list[PartitionStatus]:
        """Give partitions in the order of their names."""
        statement = _partitions().limit(limit)
        if after is not None:
            statement = statement.where(partitions.c.partition > after)
        with self._database.read() as connection:
            return [PartitionStatus(*row) for row in fetch(connection, statement)]

    def gaps(self, first: str, last: str) -> dict[str, dict[str, GapCounts]]:
        """Count the gaps of a range of partitions by partition and what became of them."""
        key = (gaps.c.partition, gaps.c.state)
        statement = select(*key, func.count(), func.sum(_EVENTS)).where(_of(first, last))
        found: dict[str, dict[str, GapCounts]] = defaultdict(dict)
        with self._database.read() as connection:
            for name, state, *numbers in fetch(connection, statement.group_by(*key)):
                found[name][state] = GapCounts(*map(int, numbers))
        return found

    def open_gaps(self, first: str, last: str, limit: int) -> dict[str, list[OpenGap]]:
        """Give the first `limit` open gaps of each of a range of partitions."""
        table = gaps.c
        order = (table.epoch, table.first_sequence)
        place = func.row_number().over(partition_by=table.partition, order_by=order).label("place")
        columns = (table.partition, *order, table.last_sequence)
        is_open = (_of(first, last), table.state == "open")
        numbered = select(*columns, place).where(*is_open).subquery().c
        shown = (numbered[column.name] for column in columns)
        statement = (
            select(*shown)
            .where(numbered.place <= limit)
            .order_by(numbered.partition, numbered.place)
        )
        found: dict[str, list[OpenGap]] = defaultdict(list)
        with self._database.read() as connection:
            for name, *range_ in fetch(connection, statement):
                found[name].append(OpenGap(*range_))
        return found

    def backlog(self, limit: int) -> Backlog:
        """Count what waits; of the pending windows at most `limit`."""
        pending = select(literal(1)).where(window_partials.c.claimed_by.is_(None)).limit(limit)
        counted = select(func.count()).select_from(pending.subquery())
        missing = select(func.coalesce(func.sum(_EVENTS), 0)).where(gaps.c.state == "open")
        with self._database.read() as connection:
            return Backlog(
                int(connection.execute(counted).scalar_one()),
                int(connection.execute(missing).scalar_one()),
            )

    def rejects(
        self, reason: str | None, limit: int, after: RejectRowKey | None = None
    ) -> list[RejectRow]:
        """Give rejects in the order of partitions and sequence numbers."""
        table = rejects.c
        key = (table.partition, table.epoch, table.sequence_number, table.position)
        body = func.substring(table.body, 1, BODY_SHOWN)
        columns = (table.enqueued_time, table.reason, table.detail, body, table.replayed)
        statement = select(*key, *columns).order_by(*key).limit(limit)
        if reason is not None:
            statement = statement.where(table.reason == reason)
        with self._database.read() as connection:
            if after is not None:
                statement = statement.where(paging.after(connection, key, after))
            return [
                # SQLite has NULL for the first bytes of an empty body.
                RejectRow(*row[:7], (row[7] or b"").decode(errors="backslashreplace"), row[8])
                for row in connection.execute(statement).all()
            ]


_EVENTS = gaps.c.last_sequence - gaps.c.first_sequence + 1


def _partitions() -> Select[Any]:
    table, newest = partitions.c, epochs.alias("newest")
    events = func.sum(_EVENTS)
    missing = select(func.coalesce(events, 0)).where(
        gaps.c.partition == table.partition, gaps.c.state == "open"
    )
    number = newest_epoch(table.partition)
    is_newest = (newest.c.partition == table.partition) & (newest.c.epoch == number)
    counts = (table.events, table.readings, table.rejects, table.late)
    return (
        select(table.partition, newest.c.epoch, newest.c.high_water)
        .add_columns(table.watermark, table.last_enqueued, table.ended, *counts)
        .add_columns(missing.scalar_subquery())
        .join_from(partitions, newest, is_newest)
        .order_by(table.partition)
    )


def _active_runs() -> Select[Any]:
    active = select(runs.c.run_id).where(runs.c.state.in_(ACTIVE))
    return active.order_by(runs.c.number).limit(RUNS_SHOWN)


def _open_jobs() -> Select[Any]:
    columns = (runs.c.run_id, runs.c.state, runs.c.ended_at, runs.c.engine_status)
    is_open = (runs.c.job_is_open == true()) & runs.c.state.in_(TERMINAL)
    return select(*columns).where(is_open).order_by(runs.c.number).limit(RUNS_SHOWN)


def _count_suspects(*conditions: ColumnElement[bool]) -> Select[Any]:
    return select(func.count()).select_from(suspects).where(*conditions)


def _count_windows(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Count windows, those of two partitions once."""
    table = window_partials.c
    keys = select(table.device, table.sensor, table.window_start).where(*conditions).distinct()
    return select(func.count()).select_from(keys.subquery())


def _of(first: str, last: str) -> ColumnElement[bool]:
    """Tell which gaps are of a range of partitions: a thousand names would each be a parameter."""
    return gaps.c.partition.between(first, last)
