"""Windows, and the devices and sensors that have them."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, select

from scoring.adapters.sql import paging
from scoring.adapters.sql.facts import read_window_facts, refuse_rebuild
from scoring.adapters.sql.queries.reader import Reader, between, counts_of, fetch
from scoring.adapters.sql.runs import FETCH, merged
from scoring.adapters.sql.schema import (
    device_counts,
    predictions,
    runs,
    sensor_counts,
    window_partials,
)
from scoring.aggregates import Partials
from scoring.queries import DeviceCounts, ScoredWindow


class WindowQueries(Reader):
    """Reads windows, devices and sensors."""

    def windows(
        self, device: str, sensor: str, since: int | None, until: int | None, limit: int
    ) -> list[ScoredWindow]:
        """Give the newest `limit` windows of a sensor in ``[since, until)``, oldest first."""
        table, said = window_partials.c, predictions.c
        mine = (table.device == device) & (table.sensor == sensor)
        mine &= between(table.window_start, since, until)
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
            found = list(merged(iter([fetch(connection, partials)])))
            words = {row[0]: tuple(row[1:]) for row in fetch(connection, known)}
        return [window for set_ in found for window in _scored_windows(set_, words)]

    def devices(self, limit: int, after: str | None = None) -> list[DeviceCounts]:
        """Give the devices that have windows, scored or not, in the order of their names."""
        with self._database.read() as connection:
            names = paging.values(connection, window_partials.c.device, after, limit)
            found = _counted(connection, device_counts, device_counts.c.device, names)
        return [counts_of(name, "", found.get(name)) for name in names]

    def anomalous_devices(
        self, limit: int, after: tuple[int, str] | None = None
    ) -> list[DeviceCounts]:
        """Give the devices that have anomalies, the most anomalous first."""
        table = device_counts.c
        order = (table.anomalies.desc(), table.device)
        statement = select(device_counts).where(table.anomalies > 0).order_by(*order)
        with self._database.read() as connection:
            if after is None:
                found = [*fetch(connection, statement.limit(limit))]
            else:
                # As with anomalies, no engine compares such a key in one go: the rest of those
                # that have as many as the last one comes by itself.
                rest = statement.where(table.anomalies == after[0], table.device > after[1])
                found = [*fetch(connection, rest.limit(limit))]
                if left := limit - len(found):
                    fewer = statement.where(table.anomalies < after[0])
                    found += fetch(connection, fewer.limit(left))
        return [counts_of(device, "", said) for device, *said in found]

    def device_sensors(
        self, device: str, limit: int, after: str | None = None
    ) -> list[DeviceCounts]:
        """Give the sensors of a device that have windows, in the order of their names."""
        mine = window_partials.c.device == device
        with self._database.read() as connection:
            names = paging.values(connection, window_partials.c.sensor, after, limit, mine)
            its = sensor_counts.c.device == device
            found = _counted(connection, sensor_counts, sensor_counts.c.sensor, names, its)
        return [counts_of(device, name, found.get(name)) for name in names]

    def sensors(self) -> list[tuple[str, str]]:
        """Give every (device, sensor) that has windows, in order."""
        key = (window_partials.c.device, window_partials.c.sensor)
        with self._database.read() as connection:
            rows = fetch(connection, select(*key).distinct().order_by(*key))
            return [(device, sensor) for device, sensor in rows]

    def history(self, until: int, since: int | None = None) -> Iterator[Partials]:
        """Give all windows from `since` to `until`, merged, by device, sensor and start."""
        with self._database.read() as connection:
            windows = read_window_facts(connection)
            refuse_rebuild(windows)
            last_start = until - (windows.size or 0)
            statement = _partials().where(window_partials.c.window_start <= last_start)
            if since is not None:
                statement = statement.where(window_partials.c.window_start >= since)
            result = connection.execution_options(yield_per=FETCH).execute(statement)
            yield from merged(result.partitions(FETCH))


def _counted(
    connection: Connection,
    table: Table,
    column: ColumnElement[str],
    names: list[str],
    *conditions: ColumnElement[bool],
) -> dict[str, Sequence[Any]]:
    """Give the counts of names that follow each other, by name.

    By the first and the last of them: a thousand parameters take longer than their rows.
    """
    if not names:
        return {}
    columns: tuple[Any, ...] = (column, table.c.scored, table.c.anomalies, table.c.not_scored)
    known = select(*columns).where(column.between(names[0], names[-1]), *conditions)
    return {row[0]: row[1:] for row in fetch(connection, known)}


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
