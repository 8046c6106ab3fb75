"""Predictions counted by sensor, in step with them: every change of one changes the other.

A count is corrected by what a prediction said before and says now, so that it costs what is
written, however long a sensor's history is.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    FromClause,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    select,
    text,
)
from sqlalchemy.dialects import mssql as mssql_dialect
from sqlalchemy.dialects.postgresql import JSON

from scoring.adapters.sql.bulk import mssql, postgresql, sqlite
from scoring.adapters.sql.bulk.upsert import Row, Upsert
from scoring.adapters.sql.schema import predictions, sensor_counts
from scoring.predictions import Status

_KEY = ("device", "sensor", "window_start")
_COUNTS = ("scored", "anomalies", "not_scored")
_ADD = Upsert(
    sensor_counts,
    tuple(column.name for column in sensor_counts.c),
    lambda old, new: {name: old[name] + new[name] for name in _COUNTS},
)
_UPSERTS = {"sqlite": sqlite.upsert, "postgresql": postgresql.upsert, "mssql": mssql.upsert}

_MSSQL: Any = mssql_dialect.dialect()  # type: ignore[no-untyped-call]

_Totals = defaultdict[tuple[str, str], list[int]]


def totals(table: Any = predictions.c) -> tuple[ColumnElement[int], ...]:
    """Give the sums of a group of predictions: scored, anomalies, not scored."""
    scored = func.sum(case((table.status == Status.SCORED, 1), else_=0))
    anomalies = func.sum(case((table.is_anomaly, 1), else_=0))
    return scored, anomalies, func.count() - scored


def lock(connection: Connection, rows: Sequence[Row]) -> None:
    """Keep others from the counts of the sensors in `rows` until the transaction ends.

    Two runs may say something of one window at once: what it said before must not change between
    looking and writing. SQLite has one writer anyway.
    """
    if connection.dialect.name != "sqlite":
        sensors = sorted({(row[0], row[1]) for row in rows})
        _upsert(connection, [(*sensor, 0, 0, 0) for sensor in sensors])


def subtract(connection: Connection, which: ColumnElement[bool]) -> None:
    """Take predictions that are about to be deleted out of the counts."""
    key = (predictions.c.device, predictions.c.sensor)
    statement = select(*key, *totals()).where(which).group_by(*key)
    _add(
        connection,
        [
            (row[0], row[1], *(-number for number in row[2:]))
            for row in connection.execute(statement)
        ],
    )


def replace(connection: Connection, run_number: int, rows: Sequence[Row]) -> None:
    """Correct the counts for predictions that are about to be written over older ones.

    Parameters
    ----------
    rows
        As `bulk.upsert_predictions` takes them: those over a newer run's count for nothing.
    """
    change: _Totals = defaultdict(lambda: [0, 0, 0])
    known = {tuple(row[:3]): row for row in _known(connection, rows)} if rows else {}
    for device, sensor, start, _, _, _, is_anomaly, status, _ in rows:
        before = known.get((device, sensor, start))
        if before is not None and before[3] > run_number:
            continue
        total = change[device, sensor]
        _count(total, 1, status, is_anomaly)
        if before is not None:
            _count(total, -1, before[4], before[5])
    _add(connection, [(*key, *total) for key, total in sorted(change.items())])


def _count(total: list[int], sign: int, status: str, is_anomaly: bool | None) -> None:
    total[0 if status == Status.SCORED else 2] += sign
    total[1] += sign * bool(is_anomaly)


def _add(connection: Connection, rows: list[Row]) -> None:
    _upsert(connection, [row for row in rows if any(row[2:])])


def _upsert(connection: Connection, rows: list[Row]) -> None:
    if rows:
        _UPSERTS[connection.dialect.name](connection, _ADD, rows)


def _known(connection: Connection, rows: Sequence[Row]) -> Sequence[Any]:
    """Give what is known of the windows of `rows`: key, run, status and label."""
    keys = [dict(zip(_KEY, row, strict=False)) for row in rows]
    given = msgspec.json.encode(keys).decode()
    return connection.execute(_LOOK_UP[connection.dialect.name], {"keys": given}).all()


def _look_up(given: FromClause) -> Executable:
    table = predictions.c
    same = and_(*(table[name] == given.c[name] for name in _KEY))
    columns = (*(table[name] for name in _KEY), table.run_number, table.status, table.is_anomaly)
    return select(*columns).join_from(given, predictions, same)


def _given_sqlite() -> FromClause:
    value = func.json_each(bindparam("keys")).table_valued("value").c.value
    return select(*(func.json_extract(value, f"$.{name}").label(name) for name in _KEY)).subquery()


def _given_postgresql() -> FromClause:
    keys = cast(bindparam("keys"), JSON(none_as_null=False))
    columns = [column(name, predictions.c[name].type) for name in _KEY]
    rows = func.json_to_recordset(keys).table_valued(*columns)
    return rows.render_derived(name="given", with_types=True)


def _look_up_mssql() -> Executable:
    types = {name: predictions.c[name].type.compile(dialect=_MSSQL) for name in _KEY}
    # Names come from the schema alone, values from the one parameter.
    return text(
        "SELECT p.device, p.sensor, p.window_start, p.run_number, p.status, p.is_anomaly"  # noqa: S608
        f" FROM OPENJSON(:keys) WITH ({', '.join(f'{name} {types[name]}' for name in _KEY)})"
        " AS given INNER JOIN predictions AS p"
        f" ON {' AND '.join(f'p.{name} = given.{name}' for name in _KEY)}"
    )


_LOOK_UP: dict[str, Executable] = {
    "sqlite": _look_up(_given_sqlite()),
    "postgresql": _look_up(_given_postgresql()),
    "mssql": _look_up_mssql(),
}
