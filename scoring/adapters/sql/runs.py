"""Runs, their claims, and the index of their predictions in SQL."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update
from sqlalchemy.sql import ColumnElement

from scoring.adapters.sql import bulk, counts
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.facts import lock_claims
from scoring.adapters.sql.schema import (
    partitions,
    predictions,
    run_parts,
    runs,
    window_partials,
)
from scoring.aggregates import Partials, combine
from scoring.errors import NotFound
from scoring.ports import IndexedPart
from scoring.predictions import summarise
from scoring.retrying import retried
from scoring.runs import ACTIVE, Part, RequestKey, RunState, ScoringRun, may_follow
from scoring.windows import PartitionProgress

FETCH = 20_000
"""Rows of windows read at a time."""

_RUN = tuple(
    runs.c[name]
    for name in (
        *("number", "run_id", "state", "trigger", "fleet_version"),
        *("last_start", "created_at", "export", "cause"),
        *("first_start", "devices", "rescore", "request_key", "request_digest"),
    )
)


class SqlRunStore:
    """Implements `ports.RunStore` on any database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    def begin_run(self, run: ScoringRun) -> ScoringRun | None:
        """Record a new run, or give the one that stands in its place; None with nothing to do."""
        with self._database.write() as connection:
            lock_claims(connection)
            if found := _in_its_place(connection, run):
                return found
            if connection.execute(select(1).where(_claimable(run)).limit(1)).first() is None:
                return None
            connection.execute(insert(runs).values(_values(run)))
            return _run(connection.execute(select(*_RUN).where(runs.c.run_id == run.run_id)).one())

    @retried
    def claim(self, run: ScoringRun, limit: int) -> int:
        """Take about `limit` final windows in the run's scope, whole sensors, for it."""
        return self._hand_over(_claimable(run), run, limit, run.number, RunState.CLAIMING)

    @retried
    def release(self, run: ScoringRun, limit: int) -> int:
        """Give about `limit` of a run's windows back as pending."""
        return self._hand_over(window_partials.c.claimed_by == run.number, run, limit, None, None)

    def _hand_over(
        self,
        which: ColumnElement[bool],
        run: ScoringRun,
        limit: int,
        owner: int | None,
        state: RunState | None,
    ) -> int:
        """Set the owner of the first `limit` partials in `which`, and of the rest of the sensor."""
        table = window_partials.c
        sensor = (table.device, table.sensor)
        ordered = select(*sensor).where(which).order_by(*sensor, table.window_start)
        with self._database.write() as connection:
            if state and not _is_in(connection, run, state):
                return 0
            if last := connection.execute(ordered.offset(limit - 1).limit(1)).first():
                which &= _up_to(*last)
            statement = update(window_partials).where(which).values(claimed_by=owner)
            return connection.execute(statement).rowcount

    def count_claimed(self, run: ScoringRun) -> int:
        """How many windows the run has, about: a window of two partitions may count twice."""
        mine = window_partials.c.claimed_by == run.number
        with self._database.read() as connection:
            count = select(func.count()).select_from(window_partials).where(mine)
            return connection.execute(count).scalar_one()

    def claimed(self, run: ScoringRun) -> Iterator[Partials]:
        """Give the run's windows, merged over partitions, in sets of bounded size."""
        mine, table = window_partials.alias("mine"), window_partials.c
        windows = select(mine.c.device, mine.c.sensor, mine.c.window_start).distinct()
        keys = windows.where(mine.c.claimed_by == run.number).subquery("keys")
        columns = (table.count, table.mean, table.m2, table.min, table.max, table.last)
        statement = (
            select(table.device, table.sensor, table.window_start, *columns, table.last_time)
            .join_from(keys, window_partials, _same_window(keys.c, table))
            .order_by(keys.c.device, keys.c.sensor, keys.c.window_start, table.partition)
        )
        with self._database.read() as connection:
            result = connection.execution_options(yield_per=FETCH).execute(statement)
            yield from merged(result.partitions(FETCH))

    @retried
    def record_export(self, run: ScoringRun, export: str, parts: list[Part]) -> bool:
        """Make an export the one that counts; False if another one was first."""
        with self._database.write() as connection:
            if not _move(connection, run, RunState.EXPORTED, export=export):
                return False
            rows = [(run.number, part.number, part.rows, None, None, None, None) for part in parts]
            bulk.insert(connection, run_parts, rows)
            return True

    @retried
    def transition(self, run: ScoringRun, new: RunState, now: int, cause: str = "") -> bool:
        """Move a run on; False if it was in no state that `new` may follow."""
        values: dict[str, Any] = {"cause": cause[:2000]}
        if new.is_terminal:
            values["ended_at"] = now
        with self._database.write() as connection:
            return _move(connection, run, new, **values)

    @retried
    def note(self, run: ScoringRun, cause: str) -> None:
        """Set the run's cause and nothing else."""
        statement = update(runs).where(runs.c.number == run.number).values(cause=cause[:2000])
        with self._database.write() as connection:
            connection.execute(statement)

    @retried
    def note_engine(self, run: ScoringRun, status: str, link: str) -> None:
        """Note what the engine says of a run; what it said before is not written again."""
        said = {"engine_status": status[:200], "link": link[:1000]}
        changed = or_(*(runs.c[name] != text for name, text in said.items()))
        statement = update(runs).where(runs.c.number == run.number, changed).values(**said)
        with self._database.write() as connection:
            connection.execute(statement)

    def run(self, run_id: str) -> ScoringRun:
        """Give one run; raise `NotFound` where there is none."""
        with self._database.read() as connection:
            row = connection.execute(select(*_RUN).where(runs.c.run_id == run_id)).first()
        if row is None:
            message = f"there is no run {run_id}"
            raise NotFound(message)
        return _run(row)

    def active_runs(self) -> list[ScoringRun]:
        """Give the runs that have not ended, oldest first."""
        statement = select(*_RUN).where(runs.c.state.in_(ACTIVE)).order_by(runs.c.number)
        with self._database.read() as connection:
            return [_run(row) for row in connection.execute(statement)]

    def parts(self, run: ScoringRun) -> list[IndexedPart]:
        """Give the exported parts of a run with what was indexed of them."""
        mine = select(run_parts).where(run_parts.c.run_number == run.number)
        with self._database.read() as connection:
            rows = connection.execute(mine.order_by(run_parts.c.part))
            return [IndexedPart(*row[1:]) for row in rows]

    @retried
    def index_part(self, run: ScoringRun, part: int, etag: str, table: pa.Table) -> bool:
        """Replace what a prediction part said before; False if this content is indexed already."""
        rows = _prediction_rows(run, part, table)
        summary = summarise(table)
        key = (run_parts.c.run_number == run.number) & (run_parts.c.part == part)
        values = {
            "etag": etag,
            "indexed_rows": summary.rows,
            "scored": summary.scored,
            "anomalies": summary.anomalies,
        }
        with self._database.write() as connection:
            # The update locks the part's row; what stood in it says whether this is new.
            connection.execute(update(run_parts).where(key).values(part=part))
            before = connection.execute(select(run_parts.c.etag).where(key)).first()
            if before is None:
                message = f"run {run.run_id} has no part {part}"
                raise NotFound(message)
            if before.etag == etag:
                return False
            counts.lock(connection, rows)
            change = counts.Change()
            if before.etag is not None:
                said = (predictions.c.run_number == run.number) & (predictions.c.part == part)
                change.subtract(connection, said)
                connection.execute(delete(predictions).where(said))
            change.replace(connection, run.number, rows)
            bulk.upsert_predictions(connection, rows)
            connection.execute(update(run_parts).where(key).values(values))
            change.write(connection)
        return True

    def progress(self) -> list[PartitionProgress]:
        """How far each partition has come."""
        table = partitions.c
        statement = select(table.watermark, table.last_enqueued, table.ended)
        with self._database.read() as connection:
            return [PartitionProgress(*row) for row in connection.execute(statement)]


def _run(row: Row[Any]) -> ScoringRun:
    values = row._asdict() | {"state": RunState(row.state), "devices": read_devices(row.devices)}
    key, digest = values.pop("request_key"), values.pop("request_digest")
    return ScoringRun(**values, request=None if key is None else RequestKey(key, digest))


def _values(run: ScoringRun) -> dict[str, Any]:
    """Give the columns of a run that is to be recorded."""
    key, digest = (run.request.key, run.request.digest) if run.request else (None, None)
    given = {"devices": json.dumps(run.devices), "request_key": key, "request_digest": digest}
    names = (column.name for column in _RUN if column.name not in {"number", *given})
    return {name: getattr(run, name) for name in names} | given


def read_devices(text: str) -> tuple[str, ...]:
    """Read the devices of a run as they are stored."""
    return tuple(json.loads(text))


def _in_its_place(connection: Connection, run: ScoringRun) -> ScoringRun | None:
    """Give the run itself, or that of the same request, or else the one that is claiming."""
    # Itself: where the answer to recording it was lost, and it is recorded again.
    instead = [runs.c.run_id == run.run_id, runs.c.state == RunState.CLAIMING]
    if run.request:
        instead.insert(1, runs.c.request_key == run.request.key)
    for which in instead:
        if row := connection.execute(select(*_RUN).where(which)).first():
            return _run(row)
    return None


def _claimable(run: ScoringRun) -> ColumnElement[bool]:
    """Tell which partials belong to windows that are final for the run, and in its scope.

    A run that scores again takes those of older runs at once: if they became pending first,
    a crash in between could not tell which of them it had taken already.
    """
    table = window_partials.c
    which: ColumnElement[bool] = table.window_start <= run.last_start
    if run.first_start is not None:
        which &= table.window_start >= run.first_start
    if run.devices:
        which &= table.device.in_(run.devices)
    free: ColumnElement[bool] = table.claimed_by.is_(None)
    if run.rescore:
        # Before it is recorded a run has no number, and every other one is older.
        free |= table.claimed_by < run.number if run.number else table.claimed_by > 0
    return free & which


def _up_to(device: str, sensor: str) -> ColumnElement[bool]:
    """Everything up to a sensor, in the order of (device, sensor)."""
    table = window_partials.c
    return (table.device < device) | ((table.device == device) & (table.sensor <= sensor))


def _same_window(left: Any, right: Any) -> ColumnElement[bool]:
    same: ColumnElement[bool] = (
        (left.device == right.device)
        & (left.sensor == right.sensor)
        & (left.window_start == right.window_start)
    )
    return same


def _is_in(connection: Connection, run: ScoringRun, state: RunState) -> bool:
    """Whether the run is in a state, and stays there for this transaction: its row is locked."""
    mine = (runs.c.number == run.number) & (runs.c.state == state)
    return connection.execute(update(runs).where(mine).values(state=state)).rowcount == 1


def _move(connection: Connection, run: ScoringRun, new: RunState, **values: object) -> bool:
    statement = update(runs).where(runs.c.number == run.number, runs.c.state.in_(may_follow(new)))
    return connection.execute(statement.values(state=new, **values)).rowcount == 1


def merged(chunks: Iterator[Any]) -> Iterator[Partials]:
    """Merge rows of one window, also where a chunk's end parts them.

    Parameters
    ----------
    chunks
        Lists of rows (device, sensor, start, count, mean, M2, min, max, last, last time), ordered
        so that rows of one window follow each other.
    """
    held: list[Any] = []
    for chunk in chunks:
        rows = held + list(chunk)
        cut = len(rows)
        while cut and rows[cut - 1][:3] == rows[-1][:3]:
            cut -= 1
        held = rows[cut:]
        if cut:
            yield _partials(rows[:cut])
    if held:
        yield _partials(held)


def _partials(rows: list[Any]) -> Partials:
    device, sensor, start, count, *floats, last_time = zip(*rows, strict=True)
    mean, m2, low, high, last = (np.array(column, dtype=np.float64) for column in floats)
    return combine(
        Partials(
            keys=list(zip(device, sensor, start, strict=True)),
            count=np.array(count, dtype=np.int64),
            mean=mean,
            m2=m2,
            min=low,
            max=high,
            last=last,
            last_time=np.array(last_time, dtype=np.int64),
        )
    )


def _prediction_rows(run: ScoringRun, part: int, table: pa.Table) -> list[bulk.Row]:
    columns = [
        table["device"].cast(pa.string()),
        table["sensor"].cast(pa.string()),
        pc.cast(table["window_start"], pa.int64()),
        *(table[name] for name in ("anomaly_score", "is_anomaly")),
        *(table[name].cast(pa.string()) for name in ("status", "reason")),
    ]
    device, sensor, start, *values = (column.to_pylist() for column in columns)
    number, parts = [run.number] * len(device), [part] * len(device)
    return list(zip(device, sensor, start, number, parts, *values, strict=True))
