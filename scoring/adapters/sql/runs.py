"""Runs, their claims, and the index of their predictions in SQL."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import (
    Connection,
    Row,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql import ColumnElement

from scoring.adapters.sql import bulk, counts, texts
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.facts import WindowFacts, lock_claims, read_window_facts, refuse_rebuild
from scoring.adapters.sql.schema import (
    REASON,
    predictions,
    run_parts,
    runs,
    suspects,
    window_partials,
)
from scoring.aggregates import Partials, combine
from scoring.errors import BadInput, DataRefused, InvalidPart, NotFound, TooManyRuns
from scoring.ports import IndexedPart
from scoring.predictions import summarise
from scoring.retrying import retried
from scoring.runs import (
    ACTIVE,
    GIVING_BACK,
    NO_LIMITS,
    TERMINAL,
    Part,
    RequestKey,
    RunLimits,
    RunState,
    ScoringRun,
    may_follow,
    part_name,
)
from scoring.suspects import Sensor, Suspect
from scoring.windows import last_final_start

FETCH = 20_000
"""Rows of windows read at a time."""

_RUN = tuple(
    runs.c[name]
    for name in (
        *("number", "run_id", "state", "trigger", "fleet_version"),
        *("last_start", "created_at", "export", "cause"),
        *("first_start", "devices", "rescore", "request_key", "request_digest"),
        *("submitted_at", "ended_at", "job_is_open", "enqueued_until", "losses"),
    )
)


class SqlRunStore:
    """Implements `ports.RunStore` on any database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    def begin_run(self, run: ScoringRun, limits: RunLimits = NO_LIMITS) -> ScoringRun | None:
        """Record a new run, or give the one that stands in its place; None with nothing to do."""
        with self._database.write() as connection:
            lock_claims(connection)
            if found := _in_its_place(connection, run):
                return found
            run = _with_final_windows(run, read_window_facts(connection))
            last_start = _last_start(connection, run, limits.windows)
            if last_start is None:
                return None
            if run.rescore and last_start < run.last_start:
                # What is left out would not be pending, and nobody would score it again.
                message = (
                    f"more than {limits.windows:,} windows would be scored again"
                    " (SCORING_MAX_RUN_WINDOWS): name a shorter time, or fewer devices"
                )
                raise BadInput(message)
            _refuse_too_many(connection, limits.active)
            connection.execute(insert(runs).values(_values(run) | {"last_start": last_start}))
            return _run(connection.execute(select(*_RUN).where(runs.c.run_id == run.run_id)).one())

    @retried
    def claim(self, run: ScoringRun, limit: int) -> int:
        """Take about `limit` final windows in the run's scope, whole sensors, for it."""
        with self._database.write() as connection:
            # One at a time with runs that give windows back: see `_newer_owner`.
            lock_claims(connection)
            if _locked_state(connection, run) != RunState.CLAIMING:
                return 0
            claimed, _ = _hand_over(connection, _claimable(run), limit, literal(run.number))
            return claimed

    @retried
    def finish(self, run: ScoringRun, limit: int, now: int) -> bool:
        """Take a step towards the end of a run; True if this step ended it."""
        mine = window_partials.c.claimed_by == run.number
        with self._database.write() as connection:
            # Two runs may have partials of one window: each has to see what became of the other's.
            lock_claims(connection)
            # Whoever indexes a part holds its row, and asks for the run's state then: none of
            # them can have seen another state than this transaction and be at work still.
            theirs = run_parts.c.run_number == run.number
            connection.execute(update(run_parts).where(theirs).values(part=run_parts.c.part))
            state = _locked_state(connection, run)
            if state == RunState.SCORED:
                end, is_last = RunState.COMPLETED, True
                if _has_failed_parts(connection, run):
                    mine &= _is_unanswered(run)
                    _, is_last = _hand_over(connection, mine, limit, _newer_owner(run))
            elif state in GIVING_BACK:
                end = GIVING_BACK[state]
                _, is_last = _hand_over(connection, mine, limit, _newer_owner(run))
            else:
                return False
            if is_last:
                ended = update(runs).where(runs.c.number == run.number)
                connection.execute(ended.values(state=end, ended_at=now))
            return is_last

    @retried
    def open_job(self, run: ScoringRun) -> bool:
        """Note that the engine is about to be given the run; False if it must not be any more."""
        with_engine = (RunState.EXPORTED, RunState.SUBMITTED, RunState.RUNNING)
        mine = (runs.c.number == run.number) & runs.c.state.in_(with_engine)
        with self._database.write() as connection:
            statement = update(runs).where(mine).values(job_is_open=True)
            return connection.execute(statement).rowcount == 1

    @retried
    def lose_job(self, run: ScoringRun, now: int) -> None:
        """Note that the engine had lost the run, and has it again."""
        mine = runs.c.number == run.number
        values = {"losses": runs.c.losses + 1, "submitted_at": now}
        with self._database.write() as connection:
            connection.execute(update(runs).where(mine).values(values))

    @retried
    def close_job(self, run: ScoringRun) -> None:
        """Note that the engine is done with the run."""
        statement = update(runs).where(runs.c.number == run.number, runs.c.job_is_open == true())
        with self._database.write() as connection:
            connection.execute(statement.values(job_is_open=False))

    def open_jobs(self) -> list[ScoringRun]:
        """Give the runs that have ended while the engine may still be at work on them."""
        is_open = (runs.c.job_is_open == true()) & runs.c.state.in_(TERMINAL)
        statement = select(*_RUN).where(is_open).order_by(runs.c.number)
        with self._database.read() as connection:
            return [_run(row) for row in connection.execute(statement).all()]

    @retried
    def fail_parts(self, run: ScoringRun, causes: Mapping[int, str]) -> None:
        """Note why parts failed; those that are indexed by now stay as they are."""
        mine = (run_parts.c.run_number == run.number) & run_parts.c.etag.is_(None)
        with self._database.write() as connection:
            for part, cause in sorted(causes.items()):
                statement = update(run_parts).where(mine, run_parts.c.part == part)
                connection.execute(statement.values(cause=cause))

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
            .add_columns(table.claimed_by)
            .join_from(keys, window_partials, _same_window(keys.c, table))
            .order_by(keys.c.device, keys.c.sensor, keys.c.window_start, table.partition)
        )
        with self._database.read() as connection:
            result = connection.execution_options(yield_per=FETCH).execute(statement)
            for rows in whole_windows(result.partitions(FETCH)):
                if unchanged := _of_run(rows, run.number):
                    yield _partials(unchanged)

    @retried
    def record_export(self, run: ScoringRun, export: str, parts: list[Part]) -> bool:
        """Make an export the one that counts; False if another one was first."""
        with self._database.write() as connection:
            if not _move(connection, run, RunState.EXPORTED, export=export):
                return False
            nothing = (None,) * 4
            rows = [
                (run.number, part.number, part.rows, *nothing, part.is_aside, "") for part in parts
            ]
            bulk.insert(connection, run_parts, rows)
            return True

    @retried
    def transition(self, run: ScoringRun, new: RunState, now: int, cause: str = "") -> bool:
        """Move a run on; False if it was in no state that `new` may follow."""
        values: dict[str, Any] = {"cause": cause}
        if new == RunState.SUBMITTED:
            values["submitted_at"] = now
        if new.is_terminal:
            values["ended_at"] = now
        with self._database.write() as connection:
            return _move(connection, run, new, **values)

    @retried
    def note(self, run: ScoringRun, state: RunState, cause: str) -> None:
        """Set the run's cause, if it is in a state."""
        mine = (runs.c.number == run.number) & (runs.c.state == state)
        statement = update(runs).where(mine).values(cause=cause)
        with self._database.write() as connection:
            connection.execute(statement)

    @retried
    def note_engine(self, run: ScoringRun, status: str, link: str | None = None) -> None:
        """Note what the engine says of a run, if that is new; without a link, the link stays."""
        said = {"engine_status": status} | ({} if link is None else {"link": link})
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
            return [_run(row) for row in connection.execute(statement).all()]

    def parts(self, run: ScoringRun) -> list[IndexedPart]:
        """Give the exported parts of a run with what was indexed of them."""
        mine = select(run_parts).where(run_parts.c.run_number == run.number)
        with self._database.read() as connection:
            rows = connection.execute(mine.order_by(run_parts.c.part)).all()
            return [IndexedPart(*row[1:]) for row in rows]

    def part(self, run: ScoringRun, number: int) -> IndexedPart:
        """Give one part; raise `NotFound` where the run has none of the number."""
        key = (run_parts.c.run_number == run.number) & (run_parts.c.part == number)
        with self._database.read() as connection:
            row = connection.execute(select(run_parts).where(key)).first()
        if row is None:
            message = f"run {run.run_id} has no part {number}"
            raise NotFound(message)
        return IndexedPart(*row[1:])

    @retried
    def index_part(self, run: ScoringRun, part: int, etag: str, table: pa.Table) -> bool:
        """Replace what a prediction part said before; False if this content is indexed already."""
        rows = _prediction_rows(run, part, table)
        name, summary = part_name(part), summarise(table)
        if len({row[:3] for row in rows}) != len(rows):
            message = f"{name} has two rows of one window"
            raise InvalidPart(message)
        key = (run_parts.c.run_number == run.number) & (run_parts.c.part == part)
        values = {
            "etag": etag,
            "indexed_rows": summary.rows,
            "scored": summary.scored,
            "anomalies": summary.anomalies,
        }
        with _refused_as(name), self._database.write() as connection:
            # The update locks the part's row; what stood in it says whether this is new.
            connection.execute(update(run_parts).where(key).values(part=part))
            before = connection.execute(select(run_parts).where(key)).first()
            if before is None:
                message = f"run {run.run_id} has no part {part}"
                raise NotFound(message)
            state = select(runs.c.state).where(runs.c.number == run.number)
            # Asked behind the lock: see `finish`.
            has_ended = RunState(connection.execute(state).scalar_one()).gives_back
            if before.etag == etag or before.cause or has_ended:
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

    def unanswered(self, run: ScoringRun) -> list[Sensor]:
        """Return the sensors with windows of the run that it has no prediction of, in order."""
        table = window_partials.c
        mine = (table.claimed_by == run.number) & _is_unanswered(run)
        sensor = (table.device, table.sensor)
        statement = select(*sensor).where(mine).distinct().order_by(*sensor)
        with self._database.read() as connection:
            return [(row[0], row[1]) for row in connection.execute(statement).all()]

    def suspects(self) -> list[Suspect]:
        """Give the sensors that may be why a part failed."""
        with self._database.read() as connection:
            return [Suspect(*row) for row in connection.execute(select(suspects)).all()]

    @retried
    def save_suspects(self, changed: Sequence[Suspect]) -> None:
        """Add suspects, or replace what was known of them."""
        rows = [
            astuple(replace(suspect, cause=texts.clean(suspect.cause, REASON)))
            for suspect in sorted(changed, key=lambda suspect: suspect.key)
        ]
        with self._database.write() as connection:
            bulk.upsert_suspects(connection, rows)

    @retried
    def forget_trials(self, run: ScoringRun) -> None:
        """Forget that a run has tried suspects: the engine did not come to it."""
        tried = update(suspects).where(suspects.c.tried_in == run.number)
        with self._database.write() as connection:
            connection.execute(tried.values(tried_at=None, tried_in=None))

    @retried
    def clear_suspects(self, run: ScoringRun) -> None:
        """Forget the suspects that the engine has scored in a run."""
        said, part = predictions.c, run_parts.c
        same = (said.device == suspects.c.device) & (said.sensor == suspects.c.sensor)
        by_the_engine = (part.run_number == said.run_number) & (part.part == said.part)
        in_its_part = exists().where(by_the_engine, part.is_aside == false())
        scored = exists().where(same, said.run_number == run.number, in_its_part)
        with self._database.write() as connection:
            connection.execute(delete(suspects).where(scored))


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
    if run.enqueued_until is not None:
        which &= table.late_enqueued <= run.enqueued_until
    if run.devices:
        which &= table.device.in_(run.devices)
    free: ColumnElement[bool] = table.claimed_by.is_(None)
    if run.rescore:
        # Before it is recorded a run has no number, and every other one is older.
        free |= table.claimed_by < run.number if run.number else table.claimed_by > 0
    return free & which


def _same_window(left: Any, right: Any) -> ColumnElement[bool]:
    same: ColumnElement[bool] = (
        (left.device == right.device)
        & (left.sensor == right.sensor)
        & (left.window_start == right.window_start)
    )
    return same


def _locked_state(connection: Connection, run: ScoringRun) -> RunState:
    """Lock the run's row for the rest of the transaction; return its state."""
    mine = runs.c.number == run.number
    connection.execute(update(runs).where(mine).values(state=runs.c.state))
    return RunState(connection.execute(select(runs.c.state).where(mine)).scalar_one())


def _hand_over(
    connection: Connection, which: ColumnElement[bool], limit: int, owner: ColumnElement[Any]
) -> tuple[int, bool]:
    """Set the owner of the first `limit` partials in `which`, and of the rest of the sensor.

    Returns
    -------
    tuple of int and bool
        How many they were, and whether they were all.
    """
    table = window_partials.c
    sensor = (table.device, table.sensor)
    ordered = select(*sensor).where(which).order_by(*sensor, table.window_start)
    most = bulk.most_changed(connection, limit)
    last = connection.execute(ordered.offset(most - 1).limit(1)).first()
    if last:
        which &= bulk.up_to(sensor, last)
    statement = update(window_partials).where(which).values(claimed_by=owner)
    return connection.execute(statement).rowcount, last is None


def _newer_owner(run: ScoringRun) -> ColumnElement[Any]:
    """Return the owner of a partial once a run gives it back: none, so that it is pending.

    Or the newer run that has claimed another partial of the window, which late readings of
    another partition have made: that run scores the whole window.
    """
    other = window_partials.alias("other")
    same = _same_window(other.c, window_partials.c)
    newest = select(func.max(other.c.claimed_by)).where(same, other.c.claimed_by > run.number)
    return newest.scalar_subquery()


def _with_final_windows(run: ScoringRun, windows: WindowFacts) -> ScoringRun:
    """Return the run without windows that are not final, by the store's own window size.

    Raises
    ------
    RebuildUnderWay
        Windows are being rebuilt.
    """
    refuse_rebuild(windows)
    if run.enqueued_until is None or windows.size is None:
        return run
    final = last_final_start(run.enqueued_until, windows.size)
    return replace(run, last_start=min(run.last_start, final))


def _last_start(connection: Connection, run: ScoringRun, windows: int) -> int | None:
    """Return the newest window start of a run that takes about `windows`; None if there is none.

    All of the oldest start belong to it, however many they are.
    """
    start = window_partials.c.window_start
    counted = select(start, func.count()).where(_claimable(run)).group_by(start).order_by(start)
    total, last = 0, None
    for begin, number in connection.execute(counted).all():
        total += number
        if last is not None and total > windows:
            return last
        last = int(begin)
    # Not the newest start found: what comes in until the run has claimed belongs to it as well.
    return None if last is None else run.last_start


def _refuse_too_many(connection: Connection, most: int) -> None:
    active = select(runs.c.run_id).where(runs.c.state.in_(ACTIVE)).order_by(runs.c.number)
    names = connection.execute(active).scalars().all()
    if len(names) >= most:
        are = "run is" if len(names) == 1 else "runs are"
        message = (
            f"{len(names)} {are} active ({', '.join(names)}), and SCORING_MAX_ACTIVE_RUNS is"
            f" {most}: wait until one ends, or cancel one"
        )
        raise TooManyRuns(message)


def _has_failed_parts(connection: Connection, run: ScoringRun) -> bool:
    failed = (run_parts.c.run_number == run.number) & (run_parts.c.cause != "")
    return connection.execute(select(1).where(failed).limit(1)).first() is not None


def _is_unanswered(run: ScoringRun) -> ColumnElement[bool]:
    """Return which partials are of windows without a prediction of the run, or of a newer one."""
    same = _same_window(predictions.c, window_partials.c)
    return ~exists().where(same, predictions.c.run_number >= run.number)


@contextmanager
def _refused_as(name: str) -> Iterator[None]:
    """Make what the database refuses of a part the fault of the part."""
    try:
        yield
    except DataRefused as error:
        message = f"{name} cannot be stored: {error}"
        raise InvalidPart(message) from error


def _move(connection: Connection, run: ScoringRun, new: RunState, **values: object) -> bool:
    statement = update(runs).where(runs.c.number == run.number, runs.c.state.in_(may_follow(new)))
    return connection.execute(statement.values(state=new, **values)).rowcount == 1


def _of_run(rows: list[Any], run_number: int) -> list[Any]:
    """Leave out windows that have changed since a run claimed them, or that a newer run has.

    Parameters
    ----------
    rows
        Of whole windows, as for `merged`, each with the number of the run that claimed it behind.
    """
    changed = {row[:3] for row in rows if row[-1] is None or row[-1] > run_number}
    return [row[:-1] for row in rows if row[:3] not in changed]


def merged(chunks: Iterator[Any]) -> Iterator[Partials]:
    """Merge rows of one window, also where a chunk's end parts them.

    Parameters
    ----------
    chunks
        Lists of rows (device, sensor, start, count, mean, M2, min, max, last, last time), ordered
        so that rows of one window follow each other.
    """
    for rows in whole_windows(chunks):
        yield _partials(rows)


def whole_windows(chunks: Iterator[Any]) -> Iterator[list[Any]]:
    """Cut chunks of rows anew, so that none parts the rows of a window.

    Parameters
    ----------
    chunks
        Lists of rows that begin with device, sensor and start, ordered by them.
    """
    held: list[Any] = []
    for chunk in chunks:
        rows = held + list(chunk)
        cut = len(rows)
        while cut and rows[cut - 1][:3] == rows[-1][:3]:
            cut -= 1
        held = rows[cut:]
        if cut:
            yield rows[:cut]
    if held:
        yield held


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
            late_enqueued=np.zeros(len(rows), dtype=np.int64),
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
    device, sensor, start, *values, reason = (column.to_pylist() for column in columns)
    number, parts = [run.number] * len(device), [part] * len(device)
    # Few texts are said of many rows.
    cleaned = {text: text and texts.clean(text, REASON) for text in set(reason)}
    reason = [cleaned[text] for text in reason]
    return list(zip(device, sensor, start, number, parts, *values, reason, strict=True))
