"""Reads for people, and for training, in SQL."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, case, func, literal, select

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.rebuild import read_window
from scoring.adapters.sql.runs import FETCH, merged
from scoring.adapters.sql.schema import (
    epochs,
    gaps,
    partitions,
    predictions,
    rejects,
    run_parts,
    runs,
    window_partials,
)
from scoring.aggregates import Partials
from scoring.errors import NotFound
from scoring.queries import (
    Anomaly,
    AnomalyFilter,
    DeviceCounts,
    GapCounts,
    PartitionStatus,
    RejectRow,
    RunSummary,
    ScoredWindow,
    StoreStatus,
)
from scoring.runs import RunState

BODY_SHOWN = 200
"""Bytes of a reject's body that are shown."""


class SqlQueries:
    """Implements `queries.Queries` on any database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def status(self) -> StoreStatus:
        """Tell what came in and what waits."""
        events = func.sum(gaps.c.last_sequence - gaps.c.first_sequence + 1)
        by_state = select(gaps.c.state, func.count(), events).group_by(gaps.c.state)
        by_reason = select(rejects.c.reason, func.count()).where(~rejects.c.replayed)
        with self._database.read() as connection:
            return StoreStatus(
                window=read_window(connection) or 0,
                partitions=[PartitionStatus(*row) for row in connection.execute(_partitions())],
                gaps={state: GapCounts(*n) for state, *n in connection.execute(by_state)},
                rejects=dict(connection.execute(by_reason.group_by(rejects.c.reason)).all()),
                windows=connection.execute(_count_windows()).scalar_one(),
                pending=connection.execute(
                    _count_windows(window_partials.c.claimed_by.is_(None))
                ).scalar_one(),
            )

    def runs(self, limit: int) -> list[RunSummary]:
        """Give the newest runs first."""
        statement = _summaries().order_by(runs.c.number.desc()).limit(limit)
        with self._database.read() as connection:
            return [_summary(row) for row in connection.execute(statement)]

    def run(self, run_id: str) -> RunSummary:
        """Give one run; raise `NotFound` where there is none."""
        with self._database.read() as connection:
            row = connection.execute(_summaries().where(runs.c.run_id == run_id)).first()
        if row is None:
            message = f"there is no run {run_id}"
            raise NotFound(message)
        return _summary(row)

    def anomalies(self, which: AnomalyFilter, limit: int) -> list[Anomaly]:
        """Give anomalies, newest window first."""
        table = predictions.c
        order = (table.window_start.desc(), table.device, table.sensor)
        statement = (
            select(
                *(table.device, table.sensor, table.window_start, table.anomaly_score),
                runs.c.run_id,
            )
            .join_from(predictions, runs, runs.c.number == table.run_number)
            .where(table.is_anomaly, *_conditions(which))
            .order_by(*order)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [Anomaly(*row) for row in connection.execute(statement)]

    def windows(
        self, device: str, sensor: str, since: int | None, until: int | None, limit: int
    ) -> list[ScoredWindow]:
        """Give the newest `limit` windows of a sensor in ``[since, until)``, oldest first."""
        table, said = window_partials.c, predictions.c
        mine = (table.device == device) & (table.sensor == sensor)
        mine &= _between(table.window_start, since, until)
        starts = select(table.window_start).where(mine).distinct()
        newest = starts.order_by(table.window_start.desc()).limit(limit).subquery()
        partials = _partials().where(mine, table.window_start.in_(select(newest)))
        known = (
            select(said.window_start, said.status, said.anomaly_score, said.is_anomaly)
            .add_columns(said.reason, runs.c.run_id)
            .join_from(predictions, runs, runs.c.number == said.run_number)
            .where(said.device == device, said.sensor == sensor)
            .where(said.window_start.in_(select(newest)))
        )
        with self._database.read() as connection:
            found = list(merged(iter([connection.execute(partials).all()])))
            words = {row[0]: tuple(row[1:]) for row in connection.execute(known)}
        return [window for set_ in found for window in _scored_windows(set_, words)]

    def rejects(self, reason: str | None, limit: int) -> list[RejectRow]:
        """Give rejects in the order of partitions and sequence numbers."""
        table = rejects.c
        key = (table.partition, table.epoch, table.sequence_number, table.position)
        body = func.substr(table.body, 1, BODY_SHOWN)
        columns = (table.enqueued_time, table.reason, table.detail, body, table.replayed)
        statement = select(*key, *columns).order_by(*key).limit(limit)
        if reason is not None:
            statement = statement.where(table.reason == reason)
        with self._database.read() as connection:
            return [
                # SQLite has NULL for the first bytes of an empty body.
                RejectRow(*row[:7], (row[7] or b"").decode(errors="backslashreplace"), row[8])
                for row in connection.execute(statement)
            ]

    def counts(self, run_id: str | None, *, by_sensor: bool, limit: int) -> list[DeviceCounts]:
        """Count predictions by device or sensor, the most anomalous first."""
        table = predictions.c
        scored = func.sum(case((table.status == "scored", 1), else_=0))
        anomalies = func.sum(case((table.is_anomaly, 1), else_=0)).label("anomalies")
        keys = (table.device, table.sensor) if by_sensor else (table.device,)
        shown = keys if by_sensor else (table.device, literal(""))
        statement = (
            select(*shown, scored, anomalies, func.count() - scored)
            .group_by(*keys)
            .order_by(anomalies.desc(), *keys)
            .limit(limit)
        )
        if run_id is not None:
            statement = statement.where(table.run_number == _number_of(run_id))
        with self._database.read() as connection:
            return [DeviceCounts(*tuple[Any, ...](row)) for row in connection.execute(statement)]

    def count_scored(self, since: int) -> int:
        """Count the scored windows that start at or after `since`."""
        table = predictions.c
        scored = (table.status == "scored") & (table.window_start >= since)
        with self._database.read() as connection:
            count = select(func.count()).select_from(predictions).where(scored)
            return connection.execute(count).scalar_one()

    def sensors(self) -> list[tuple[str, str]]:
        """Give every (device, sensor) that has windows, in order."""
        key = (window_partials.c.device, window_partials.c.sensor)
        with self._database.read() as connection:
            rows = connection.execute(select(*key).distinct().order_by(*key))
            return [(device, sensor) for device, sensor in rows]

    def history(self, until: int) -> Iterator[Partials]:
        """Give all windows that end at or before `until`, merged, by device, sensor and start."""
        with self._database.read() as connection:
            last_start = until - (read_window(connection) or 0)
            statement = _partials().where(window_partials.c.window_start <= last_start)
            result = connection.execution_options(yield_per=FETCH).execute(statement)
            yield from merged(result.partitions(FETCH))


def _partitions() -> Select[Any]:
    table, newest = partitions.c, epochs.alias("newest")
    last = select(func.max(epochs.c.epoch)).where(epochs.c.partition == table.partition)
    events = func.sum(gaps.c.last_sequence - gaps.c.first_sequence + 1)
    missing = select(func.coalesce(events, 0)).where(
        gaps.c.partition == table.partition, gaps.c.state == "open"
    )
    is_newest = and_(
        newest.c.partition == table.partition, newest.c.epoch == last.scalar_subquery()
    )
    counts = (table.events, table.readings, table.rejects, table.late)
    return (
        select(table.partition, newest.c.epoch, newest.c.high_water)
        .add_columns(table.watermark, table.last_enqueued, table.ended, *counts)
        .add_columns(missing.scalar_subquery())
        .join_from(partitions, newest, is_newest)
        .order_by(table.partition)
    )


def _count_windows(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Count windows, those of two partitions once."""
    table = window_partials.c
    keys = select(table.device, table.sensor, table.window_start).where(*conditions).distinct()
    return select(func.count()).select_from(keys.subquery())


def _summaries() -> Select[Any]:
    parts = run_parts.c
    totals = (
        select(
            parts.run_number,
            func.count().label("parts"),
            func.sum(parts.rows).label("windows"),
            func.count(parts.etag).label("indexed_parts"),
            *(func.sum(parts[name]).label(name) for name in ("indexed_rows", "scored")),
            func.sum(parts.anomalies).label("anomalies"),
        )
        .group_by(parts.run_number)
        .subquery()
    )
    return select(
        *(runs.c.number, runs.c.run_id, runs.c.state, runs.c.trigger, runs.c.fleet_version),
        *(runs.c.last_start, runs.c.created_at, runs.c.ended_at, runs.c.cause),
        *(func.coalesce(column, 0) for column in list(totals.c)[1:]),
    ).join_from(runs, totals, totals.c.run_number == runs.c.number, isouter=True)


def _summary(row: Row[Any]) -> RunSummary:
    number, run_id, state, *rest = tuple[Any, ...](row)
    return RunSummary(number, run_id, RunState(state), *rest)


def _conditions(which: AnomalyFilter) -> list[ColumnElement[bool]]:
    table = predictions.c
    conditions = [_between(table.window_start, which.since, which.until)]
    if which.device is not None:
        conditions.append(table.device == which.device)
    if which.sensor is not None:
        conditions.append(table.sensor == which.sensor)
    if which.run_id is not None:
        conditions.append(table.run_number == _number_of(which.run_id))
    return conditions


def _between(column: Any, since: int | None, until: int | None) -> ColumnElement[bool]:
    first = column >= since if since is not None else literal(1) == literal(1)
    return and_(first, column < until) if until is not None else first


def _number_of(run_id: str) -> Any:
    return select(runs.c.number).where(runs.c.run_id == run_id).scalar_subquery()


def _partials() -> Select[Any]:
    table = window_partials.c
    key = (table.device, table.sensor, table.window_start)
    columns = (table.count, table.mean, table.m2, table.min, table.max, table.last)
    return select(*key, *columns, table.last_time).order_by(*key, table.partition)


def _scored_windows(windows: Partials, words: dict[int, tuple[Any, ...]]) -> Iterator[ScoredWindow]:
    starts = [start for _, _, start in windows.keys]
    columns = (windows.count, windows.mean, windows.std(), windows.min, windows.max, windows.last)
    nothing = (None,) * 5
    for start, *numbers in zip(starts, *(column.tolist() for column in columns), strict=True):
        yield ScoredWindow(start, *numbers, *words.get(start, nothing))
