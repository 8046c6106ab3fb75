"""Reads for people, and for training, in SQL."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    func,
    literal,
    select,
)

from scoring.adapters.sql import counts, paging
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.facts import read_window
from scoring.adapters.sql.runs import FETCH, merged, read_devices
from scoring.adapters.sql.schema import (
    epochs,
    gaps,
    partitions,
    predictions,
    rejects,
    run_parts,
    runs,
    sensor_counts,
    window_partials,
)
from scoring.aggregates import Partials
from scoring.errors import NotFound
from scoring.queries import (
    Anomaly,
    AnomalyFilter,
    AnomalyKey,
    DeviceCounts,
    GapCounts,
    PartitionStatus,
    RejectRow,
    RejectRowKey,
    RunSummary,
    ScoredWindow,
    SensorAnomalies,
    StoreStatus,
)
from scoring.runs import RunState

BODY_SHOWN = 200
"""Bytes of a reject's body that are shown."""


ANOMALIES_COUNTED = 100_000
"""Anomalies of a run that are counted by sensor, the newest: what a person waits for is bounded."""


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

    def partitions(self, limit: int, after: str | None = None) -> list[PartitionStatus]:
        """Give partitions in the order of their names."""
        statement = _partitions().limit(limit)
        if after is not None:
            statement = statement.where(partitions.c.partition > after)
        with self._database.read() as connection:
            return [PartitionStatus(*row) for row in connection.execute(statement)]

    def gaps(self, partitions: Sequence[str]) -> dict[str, dict[str, GapCounts]]:
        """Count the gaps of some partitions by partition and what became of them."""
        key = (gaps.c.partition, gaps.c.state)
        events = func.sum(gaps.c.last_sequence - gaps.c.first_sequence + 1)
        statement = select(*key, func.count(), events).where(gaps.c.partition.in_(partitions))
        found: dict[str, dict[str, GapCounts]] = {name: {} for name in partitions}
        with self._database.read() as connection:
            for name, state, *numbers in connection.execute(statement.group_by(*key)):
                found[name][state] = GapCounts(*map(int, numbers))
        return found

    def runs(self, limit: int, after: int | None = None) -> list[RunSummary]:
        """Give the newest runs first."""
        statement = select(*_SUMMARY).order_by(runs.c.number.desc()).limit(limit)
        if after is not None:
            statement = statement.where(runs.c.number < after)
        with self._database.read() as connection:
            return _summaries(connection, connection.execute(statement).all())

    def run(self, run_id: str) -> RunSummary:
        """Give one run; raise `NotFound` where there is none."""
        statement = select(*_SUMMARY).where(runs.c.run_id == run_id)
        with self._database.read() as connection:
            found = _summaries(connection, connection.execute(statement).all())
        if not found:
            message = f"there is no run {run_id}"
            raise NotFound(message)
        return found[0]

    def anomalies(
        self, which: AnomalyFilter, limit: int, after: AnomalyKey | None = None
    ) -> list[Anomaly]:
        """Give anomalies, newest window first."""
        with self._database.read() as connection:
            if after is None:
                return _anomalies(connection, which, limit)
            # Newest first, but names in their order: no engine compares such a key in one go. The
            # rest of the window where the page before ended comes by itself.
            start, *names = after
            key = (predictions.c.device, predictions.c.sensor)
            rest = (predictions.c.window_start == start, paging.after(connection, key, names))
            found = _anomalies(connection, which, limit, *rest)
            older = predictions.c.window_start < start
            if len(found) < limit:
                found += _anomalies(connection, which, limit - len(found), older)
            return found

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

    def rejects(
        self, reason: str | None, limit: int, after: RejectRowKey | None = None
    ) -> list[RejectRow]:
        """Give rejects in the order of partitions and sequence numbers."""
        table = rejects.c
        key = (table.partition, table.epoch, table.sequence_number, table.position)
        body = func.substr(table.body, 1, BODY_SHOWN)
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
                for row in connection.execute(statement)
            ]

    def devices(self, limit: int, after: str | None = None) -> list[DeviceCounts]:
        """Give the devices that have windows, scored or not, in the order of their names."""
        with self._database.read() as connection:
            names = paging.values(connection, window_partials.c.device, after, limit)
            table = sensor_counts.c
            known = _count_sensors(table.device).where(table.device.in_(names))
            found = {row[0]: row[1:] for row in connection.execute(known)}
        return [_device_counts(name, "", found.get(name)) for name in names]

    def anomalous_devices(
        self, limit: int, after: tuple[int, str] | None = None
    ) -> list[DeviceCounts]:
        """Give the devices that have anomalies, the most anomalous first."""
        device, anomalies = sensor_counts.c.device, func.sum(sensor_counts.c.anomalies)
        statement = _count_sensors(device).having(anomalies > 0)
        if after is not None:
            fewer = (anomalies < after[0]) | ((anomalies == after[0]) & (device > after[1]))
            statement = statement.having(fewer)
        statement = statement.order_by(anomalies.desc(), device).limit(limit)
        with self._database.read() as connection:
            return [_device_counts(row[0], "", row[1:]) for row in connection.execute(statement)]

    def device_sensors(
        self, device: str, limit: int, after: str | None = None
    ) -> list[DeviceCounts]:
        """Give the sensors of a device that have windows, in the order of their names."""
        mine = window_partials.c.device == device
        with self._database.read() as connection:
            names = paging.values(connection, window_partials.c.sensor, after, limit, mine)
            table = sensor_counts.c
            known = _count_sensors(table.sensor).where(
                table.device == device, table.sensor.in_(names)
            )
            found = {row[0]: row[1:] for row in connection.execute(known)}
        return [_device_counts(device, name, found.get(name)) for name in names]

    def counts(self, run_id: str | None, *, by_sensor: bool, limit: int) -> list[DeviceCounts]:
        """Count predictions by device or sensor, the most anomalous first."""
        table = sensor_counts.c if run_id is None else predictions.c
        keys = (table.device, table.sensor) if by_sensor else (table.device,)
        shown = keys if by_sensor else (table.device, literal(""))
        numbers = (
            [func.sum(table[name]) for name in ("scored", "anomalies", "not_scored")]
            if run_id is None
            else counts.totals()
        )
        statement = (
            select(*shown, *numbers)
            .group_by(*keys)
            .having(numbers[0] + numbers[2] > 0)
            .order_by(numbers[1].desc(), *keys)
            .limit(limit)
        )
        if run_id is not None:
            statement = statement.where(table.run_number == _number_of(run_id))
        with self._database.read() as connection:
            rows = connection.execute(statement)
            return [_device_counts(device, sensor, said) for device, sensor, *said in rows]

    def anomalous_sensors(self, run_id: str, limit: int) -> list[SensorAnomalies]:
        """Give the sensors with anomalies in a run, the most anomalous first."""
        table = predictions.c
        newest = (
            select(table.device, table.sensor)
            .where(table.run_number == _number_of(run_id), table.is_anomaly)
            # The order is that of the index of a run's anomalies: they alone are read.
            .order_by(table.window_start.desc(), table.device, table.sensor)
            .limit(ANOMALIES_COUNTED)
            .subquery()
        )
        key, found = (newest.c.device, newest.c.sensor), func.count()
        statement = select(*key, found).group_by(*key).order_by(found.desc(), *key).limit(limit)
        with self._database.read() as connection:
            return [SensorAnomalies(*row) for row in connection.execute(statement)]

    def run_sensors(
        self, run_id: str, limit: int, after: tuple[str, str] | None = None
    ) -> list[DeviceCounts]:
        """Give all sensors of a run in the order of their names."""
        table = predictions.c
        key = (table.device, table.sensor)
        statement = (
            select(*key, *counts.totals())
            .where(table.run_number == _number_of(run_id))
            .group_by(*key)
            .order_by(*key)
            .limit(limit)
        )
        with self._database.read() as connection:
            if after is not None:
                statement = statement.where(paging.after(connection, key, after))
            rows = connection.execute(statement)
            return [_device_counts(device, sensor, said) for device, sensor, *said in rows]

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


_SUMMARY = (
    *(runs.c.number, runs.c.run_id, runs.c.state, runs.c.trigger, runs.c.fleet_version),
    *(runs.c.last_start, runs.c.created_at, runs.c.ended_at, runs.c.cause),
    *(runs.c.first_start, runs.c.devices, runs.c.rescore),
)


def _summaries(connection: Connection, found: Sequence[Any]) -> list[RunSummary]:
    """Add to runs what their parts say; only those parts are read."""
    parts = run_parts.c
    sums = (parts.rows, parts.indexed_rows, parts.scored, parts.anomalies)
    rows, *said = (func.coalesce(func.sum(column), 0) for column in sums)
    totals = (
        select(parts.run_number, func.count(), rows, func.count(parts.etag), *said)
        .where(parts.run_number.in_([row.number for row in found]))
        .group_by(parts.run_number)
    )
    known = {row[0]: row[1:] for row in connection.execute(totals)}
    return [_summary(row, known.get(row.number, (0,) * 6)) for row in found]


def _summary(row: Row[Any], totals: Sequence[Any]) -> RunSummary:
    number, run_id, state, *rest, first_start, devices, rescore = tuple[Any, ...](row)
    limits: tuple[Any, ...] = (first_start, read_devices(devices), rescore)
    sums: tuple[Any, ...] = tuple(map(int, totals))
    return RunSummary(number, run_id, RunState(state), *rest, *sums, *limits)


def _anomalies(
    connection: Connection, which: AnomalyFilter, limit: int, *more: ColumnElement[bool]
) -> list[Anomaly]:
    table = predictions.c
    statement = (
        select(
            *(table.device, table.sensor, table.window_start, table.anomaly_score),
            runs.c.run_id,
        )
        .join_from(predictions, runs, runs.c.number == table.run_number)
        .where(table.is_anomaly, *_conditions(which), *more)
        .order_by(table.window_start.desc(), table.device, table.sensor)
        .limit(limit)
    )
    return [Anomaly(*row) for row in connection.execute(statement)]


def _count_sensors(key: ColumnElement[str]) -> Select[Any]:
    table = sensor_counts.c
    sums = (func.sum(table[name]) for name in ("scored", "anomalies", "not_scored"))
    columns: tuple[Any, ...] = (key, *sums)
    return select(*columns).group_by(key)


def _device_counts(device: str, sensor: str, numbers: Sequence[Any] | None) -> DeviceCounts:
    return DeviceCounts(device, sensor, *map(int, numbers or (0, 0, 0)))


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
