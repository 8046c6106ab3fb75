"""What every set of queries stands on."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, literal, select

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.schema import runs
from scoring.queries import DeviceCounts


class Reader:
    """Reads a database."""

    def __init__(self, database: Database) -> None:
        self._database = database


def fetch(connection: Connection, statement: Select[*tuple[Any, ...]]) -> Sequence[Any]:
    """Give all rows: one by one, each would cost a call of the driver."""
    return connection.execute(statement).all()


def between(column: Any, since: int | None, until: int | None) -> ColumnElement[bool]:
    """Tell what lies in ``[since, until)``; None leaves an end open."""
    first = column >= since if since is not None else literal(1) == literal(1)
    return and_(first, column < until) if until is not None else first


def number_of(run_id: str) -> Any:
    """Look a run's number up, as part of a statement."""
    return select(runs.c.number).where(runs.c.run_id == run_id).scalar_subquery()


def counts_of(device: str, sensor: str, numbers: Sequence[Any] | None) -> DeviceCounts:
    """Make counts of a row's numbers; None stands for no prediction at all."""
    return DeviceCounts(device, sensor, *map(int, numbers or (0, 0, 0)))
