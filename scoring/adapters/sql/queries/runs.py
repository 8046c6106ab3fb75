"""Runs, their predictions, and the anomalies among them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, func, literal, select

from scoring.adapters.sql import counts, paging
from scoring.adapters.sql.queries.reader import Reader, between, counts_of, fetch, number_of
from scoring.adapters.sql.runs import read_devices
from scoring.adapters.sql.schema import predictions, run_parts, runs, sensor_counts
from scoring.errors import NotFound
from scoring.queries import (
    Anomaly,
    AnomalyFilter,
    AnomalyKey,
    DeviceCounts,
    RunSummary,
    SensorAnomalies,
)
from scoring.runs import RunState

ANOMALIES_COUNTED = 100_000
"""Anomalies of a run that are counted by sensor, the newest: what a person waits for is bounded."""


class RunQueries(Reader):
    """Reads runs and what they said."""

    def runs(self, limit: int, after: int | None = None) -> list[RunSummary]:
        """Give the newest runs first."""
        statement = select(*_SUMMARY).order_by(runs.c.number.desc()).limit(limit)
        if after is not None:
            statement = statement.where(runs.c.number < after)
        with self._database.read() as connection:
            return _summaries(connection, fetch(connection, statement))

    def run(self, run_id: str) -> RunSummary:
        """Give one run; raise `NotFound` where there is none."""
        statement = select(*_SUMMARY).where(runs.c.run_id == run_id)
        with self._database.read() as connection:
            found = _summaries(connection, fetch(connection, statement))
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
            statement = statement.where(table.run_number == number_of(run_id))
        with self._database.read() as connection:
            rows = fetch(connection, statement)
            return [counts_of(device, sensor, said) for device, sensor, *said in rows]

    def anomalous_sensors(self, run_id: str, limit: int) -> list[SensorAnomalies]:
        """Give the sensors with anomalies in a run, the most anomalous first."""
        table = predictions.c
        newest = (
            select(table.device, table.sensor)
            .where(table.run_number == number_of(run_id), table.is_anomaly)
            # The order is that of the index of a run's anomalies: they alone are read.
            .order_by(table.window_start.desc(), table.device, table.sensor)
            .limit(ANOMALIES_COUNTED)
            .subquery()
        )
        key, found = (newest.c.device, newest.c.sensor), func.count()
        statement = select(*key, found).group_by(*key).order_by(found.desc(), *key).limit(limit)
        with self._database.read() as connection:
            return [SensorAnomalies(*row) for row in fetch(connection, statement)]

    def run_sensors(
        self, run_id: str, limit: int, after: tuple[str, str] | None = None
    ) -> list[DeviceCounts]:
        """Give all sensors of a run in the order of their names."""
        table = predictions.c
        key = (table.device, table.sensor)
        statement = (
            select(*key, *counts.totals())
            .where(table.run_number == number_of(run_id))
            .group_by(*key)
            .order_by(*key)
            .limit(limit)
        )
        with self._database.read() as connection:
            if after is not None:
                statement = statement.where(paging.after(connection, key, after))
            rows = fetch(connection, statement)
            return [counts_of(device, sensor, said) for device, sensor, *said in rows]

    def count_scored(self, since: int) -> int:
        """Count the scored windows that start at or after `since`."""
        table = predictions.c
        scored = (table.status == "scored") & (table.window_start >= since)
        with self._database.read() as connection:
            count = select(func.count()).select_from(predictions).where(scored)
            return connection.execute(count).scalar_one()


_SUMMARY = (
    *(runs.c.number, runs.c.run_id, runs.c.state, runs.c.trigger, runs.c.fleet_version),
    *(runs.c.last_start, runs.c.created_at, runs.c.ended_at, runs.c.cause),
    *(runs.c.first_start, runs.c.devices, runs.c.rescore, runs.c.engine_status, runs.c.link),
    *(runs.c.submitted_at, runs.c.job_is_open),
)


def _summaries(connection: Connection, found: Sequence[Any]) -> list[RunSummary]:
    """Add to runs, which follow each other, what their parts say; only those parts are read."""
    parts, numbers = run_parts.c, [row.number for row in found]
    # Not by a list of numbers: a thousand parameters take longer than their rows.
    theirs = parts.run_number.between(min(numbers, default=0), max(numbers, default=0))
    sums = (parts.rows, parts.indexed_rows, parts.scored, parts.anomalies)
    rows, *said = (func.coalesce(func.sum(column), 0) for column in sums)
    totals = (
        select(parts.run_number, func.count(), rows, func.count(parts.etag), *said)
        .add_columns(func.sum(case((parts.cause != "", 1), else_=0)))
        .where(theirs)
        .group_by(parts.run_number)
    )
    known = {row[0]: row[1:] for row in fetch(connection, totals)}
    return [_summary(row, known.get(row.number, (0,) * 7)) for row in found]


def _summary(row: Row[Any], totals: Sequence[Any]) -> RunSummary:
    facts: dict[str, Any] = row._asdict()
    facts |= {"state": RunState(facts["state"]), "devices": read_devices(facts["devices"])}
    counted = ("parts", "windows", "indexed_parts", "indexed", "scored", "anomalies")
    names = (*counted, "failed_parts")
    facts |= zip(names, map(int, totals), strict=True)
    return RunSummary(**facts)


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
    return [Anomaly(*row) for row in fetch(connection, statement)]


def _conditions(which: AnomalyFilter) -> list[ColumnElement[bool]]:
    table = predictions.c
    conditions = [between(table.window_start, which.since, which.until)]
    if which.device is not None:
        conditions.append(table.device == which.device)
    if which.sensor is not None:
        conditions.append(table.sensor == which.sensor)
    if which.run_id is not None:
        conditions.append(table.run_number == number_of(which.run_id))
    return conditions
