"""Every page of every list begins where an index says, and is not sorted or searched for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.migrations import migrate
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.sql.schema import metadata
from scoring.queries import AnomalyFilter
from tests.adapters.stores import partials, save

KEY = (5, "d", "s")
ASKED: dict[str, Callable[[SqlQueries], object]] = {
    "runs": lambda q: q.runs(9, 5),
    "anomalies": lambda q: q.anomalies(AnomalyFilter(), 9, KEY),
    "anomalies of a device": lambda q: q.anomalies(AnomalyFilter(device="d"), 9, KEY),
    "anomalies of a sensor": lambda q: q.anomalies(AnomalyFilter(sensor="s"), 9, KEY),
    "anomalies of a run": lambda q: q.anomalies(AnomalyFilter(run_id="r"), 9, KEY),
    "anomalies of a span": lambda q: q.anomalies(AnomalyFilter(since=1, until=9), 9, KEY),
    "rejects": lambda q: q.rejects(None, 9, ("p", 0, 1, 2)),
    "rejects of a reason": lambda q: q.rejects("r", 9, ("p", 0, 1, 2)),
    "devices": lambda q: q.devices(9, "d"),
    "anomalous devices": lambda q: q.anomalous_devices(9, (5, "d")),
    "sensors of a device": lambda q: q.device_sensors("d", 9, "s"),
    "sensors of a run": lambda q: q.run_sensors("r", 9, ("d", "s")),
    "partitions": lambda q: q.partitions(9, "p"),
    "gaps of partitions": lambda q: q.gaps("p", "q"),
    "open gaps of partitions": lambda q: q.open_gaps("p", "q", 9),
    "a run": lambda q: q.anomalous_sensors("r", 9),
    "windows": lambda q: q.windows("d", "s", 1, 9, 9),
}


def plans(database: Database, ask: Callable[[SqlQueries], object]) -> list[str]:
    """Give the steps that SQLite takes for the statements of one question."""
    statements: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if statement.startswith(("SELECT", "WITH")):
            statements.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    ask(SqlQueries(database))
    event.remove(database.engine, "before_cursor_execute", note)
    with database.read() as connection:
        return [
            row[3]
            for statement, parameters in statements
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]


@pytest.mark.parametrize("name", ASKED)
def test_a_page_is_found_by_an_index(tmp_path: Path, name: str) -> None:
    # SQLite's plans alone do not depend on what is in the tables.
    database = Database.file(tmp_path / "store.db")
    migrate(database)
    # A page of names asks for their counts only if there are any.
    save(database, partials=partials({("d", "t", 0): [1.0], ("e", "t", 0): [1.0]}))
    steps = plans(database, ASKED[name])
    database.close()

    assert any(step.startswith("SEARCH") for step in steps)
    for step in steps:
        # What a step before has found may be scanned, a table may not.
        assert not step.startswith("SCAN") or step.split()[1] not in metadata.tables, steps
        if name.startswith(("anomal", "rejects", "sensors of a run")):
            assert "TEMP B-TREE" not in step or "RIGHT PART" in step, steps
