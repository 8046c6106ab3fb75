"""A migrated database of every engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.migrations import migrate
from tests.adapters.stores import ENGINES


@pytest.fixture(params=sorted(ENGINES))
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Open a database without a table."""
    database = ENGINES[request.param](tmp_path)
    yield database
    database.close()


@pytest.fixture
def database(empty_database: Database) -> Database:
    """Give a database of the newest schema, without a row."""
    migrate(empty_database)
    return empty_database
