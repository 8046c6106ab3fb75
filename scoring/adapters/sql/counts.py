"""Predictions counted by sensor and by device, in step with them: all change together.

A count is corrected by what a prediction said before and says now, so that it costs what is
written, however long a sensor's history is, and however many sensors a device has.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Table,
    TextualSelect,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSON

from scoring.adapters.sql.bulk import mssql, postgresql, sqlite
from scoring.adapters.sql.bulk.upsert import Row, Upsert
from scoring.adapters.sql.schema import device_counts, predictions, sensor_counts
from scoring.predictions import Status

_KEY = ("device", "sensor", "window_start")
_COUNTS = ("scored", "anomalies", "not_scored")
_UPSERTS = {"sqlite": sqlite.upsert, "postgresql": postgresql.upsert, "mssql": mssql.upsert}


def _adding(table: Table) -> Upsert:
    return Upsert(
        table,
        tuple(column.name for column in table.c),
        lambda old, new: {name: old[name] + new[name] for name in _COUNTS},
    )


ADD_TO_SENSORS = _adding(sensor_counts)
ADD_TO_DEVICES = _adding(device_counts)


def totals(table: Any = predictions.c) -> tuple[ColumnElement[int], ...]:
    """Give the sums of a group of predictions: scored, anomalies, not scored."""
    scored = func.sum(case((table.status == Status.SCORED, 1), else_=0))
    # Compared: a bit is no condition to SQL Server.
    anomalies = func.sum(case((table.is_anomaly == true(), 1), else_=0))
    return scored, anomalies, func.count() - scored


def lock(connection: Connection, rows: Sequence[Row]) -> None:
    """Keep others from the counts of the sensors in `rows` until the transaction ends.

    Two runs may say something of one window at once: what it said before must not change between
    looking and writing. SQLite has one writer anyway.
    """
    if connection.dialect.name != "sqlite":
        sensors = sorted({(row[0], row[1]) for row in rows})
        _upsert(connection, ADD_TO_SENSORS, [(*sensor, 0, 0, 0) for sensor in sensors])


class Change:
    """What a transaction changes of the counts."""

    def __init__(self) -> None:
        self._sensors: dict[tuple[str, str], list[int]] = defaultdict(_nothing)

    def subtract(self, connection: Connection, which: ColumnElement[bool]) -> None:
        """Take predictions that are about to be deleted out of the counts."""
        key = (predictions.c.device, predictions.c.sensor)
        statement = select(*key, *totals()).where(which).group_by(*key)
        for device, sensor, *numbers in connection.execute(statement).all():
            _add(self._sensors[device, sensor], [-number for number in numbers])

    def replace(self, connection: Connection, run_number: int, rows: Sequence[Row]) -> None:
        """Correct the counts for predictions that are about to be written over older ones.

        Parameters
        ----------
        rows
            As `bulk.upsert_predictions` takes them: those over a newer run's count for nothing.
        """
        known = {tuple(row[:3]): row for row in _known(connection, rows)} if rows else {}
        for device, sensor, start, _, _, _, is_anomaly, status, _ in rows:
            before = known.get((device, sensor, start))
            if before is not None and before[3] > run_number:
                continue
            total = self._sensors[device, sensor]
            _count(total, 1, status, is_anomaly)
            if before is not None:
                _count(total, -1, before[4], before[5])

    def write(self, connection: Connection) -> None:
        """Write all of it; best last.

        By `lock` the sensors are the transaction's own. But parts that are indexed at once share
        devices: from here on they wait for each other, in one order, so that none does in a ring.
        """
        devices: dict[str, list[int]] = defaultdict(_nothing)
        for (device, _), numbers in self._sensors.items():
            _add(devices[device], numbers)
        sensors = [(*key, *numbers) for key, numbers in sorted(self._sensors.items())]
        _upsert(connection, ADD_TO_SENSORS, [row for row in sensors if any(row[2:])])
        sums = [(device, *numbers) for device, numbers in sorted(devices.items())]
        _upsert(connection, ADD_TO_DEVICES, [row for row in sums if any(row[1:])])


def _nothing() -> list[int]:
    return [0] * len(_COUNTS)


def _add(total: list[int], numbers: Sequence[int]) -> None:
    total[:] = [old + new for old, new in zip(total, numbers, strict=True)]


def _count(total: list[int], sign: int, status: str, is_anomaly: bool | None) -> None:
    total[0 if status == Status.SCORED else 2] += sign
    total[1] += sign * bool(is_anomaly)


def _upsert(connection: Connection, what: Upsert, rows: Sequence[Row]) -> None:
    if rows:
        _UPSERTS[connection.dialect.name](connection, what, rows)


def _known(connection: Connection, rows: Sequence[Row]) -> Sequence[Any]:
    """Give what is known of the windows of `rows`: key, run, status and label."""
    keys = [row[: len(_KEY)] for row in rows]
    if connection.dialect.name == "mssql":
        keys = mssql.stored(_KNOWN[: len(_KEY)], keys)
    given = msgspec.json.encode([dict(zip(_KEY, key, strict=True)) for key in keys]).decode()
    return connection.execute(LOOK_UP[connection.dialect.name], {"keys": given}).all()


_KNOWN = tuple(predictions.c[name] for name in (*_KEY, "run_number", "status", "is_anomaly"))


def _look_up(given: FromClause) -> Select[Any]:
    same = and_(*(predictions.c[name] == given.c[name] for name in _KEY))
    return select(*_KNOWN).join_from(given, predictions, same)


def _given_sqlite() -> FromClause:
    value = func.json_each(bindparam("keys")).table_valued("value").c.value
    return select(*(func.json_extract(value, f"$.{name}").label(name) for name in _KEY)).subquery()


def _given_postgresql() -> FromClause:
    keys = cast(bindparam("keys"), JSON(none_as_null=False))
    columns = [column(name, predictions.c[name].type) for name in _KEY]
    rows = func.json_to_recordset(keys).table_valued(*columns)
    return rows.render_derived(name="given", with_types=True)


def _look_up_mssql() -> TextualSelect:
    # Names come from the schema alone, values from the one parameter.
    statement = (
        f"SELECT {', '.join(f'p.{column.name}' for column in _KNOWN)}"  # noqa: S608
        f" FROM {mssql.given(_KNOWN[: len(_KEY)], ':keys')}"
        f" INNER {mssql.SEEK} predictions AS p"
        f" ON {' AND '.join(f'p.{name} = given.{name}' for name in _KEY)}"
    )
    # As NVARCHAR: SQLAlchemy has a text that it knows nothing of sent as VARCHAR. And what comes
    # out has its types, so that names are what they were.
    keys = bindparam("keys", type_=mssql.JSON_TEXT)
    return text(statement).bindparams(keys).columns(*_KNOWN)


LOOK_UP: dict[str, Select[Any] | TextualSelect] = {
    "sqlite": _look_up(_given_sqlite()),
    "postgresql": _look_up(_given_postgresql()),
    "mssql": _look_up_mssql(),
}
