"""Each result is read completely before the next statement, as SQL Server's driver wants it."""

import pytest
from sqlalchemy import select

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.facts import CLAIMS
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.migrations import migrate
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.sql.schema import facts
from scoring.ledger import Epoch, HubAnswer
from tests.adapters.one_result import BusyError, allow_one_result
from tests.adapters.stores import P0, change, epochs_of, gaps_of, partials, save

EPOCHS = (
    Epoch(0, 0, 9, 10, 19, ((2, 3), (7, 7)), created=5),
    Epoch(1, 0, 4, 30, 34, ((1, 1),), created=25),
)


def test_a_statement_in_a_loop_over_another_ones_rows_is_refused(database: Database) -> None:
    statement = select(facts.c.name)

    with database.read() as connection, pytest.raises(BusyError, match="busy with the rows"):
        for _ in connection.execute(statement):
            connection.execute(statement).all()


def test_a_result_that_is_left_before_its_end_is_refused(database: Database) -> None:
    statement = select(facts.c.name)

    with database.read() as connection:
        connection.execute(statement)
        with pytest.raises(BusyError):
            connection.execute(statement).all()


def test_results_one_after_another_are_allowed(database: Database) -> None:
    statement = select(facts.c.name)

    with database.read() as connection:
        found = [connection.execute(statement).scalars().all() for _ in range(2)]

    assert found == [[CLAIMS]] * 2


def test_a_hub_that_was_created_again_goes_on_where_it_was(database: Database) -> None:
    store = SqlIngestStore(database)
    save(database, epochs=EPOCHS, events=12)

    with store.transaction(P0) as transaction:
        assert transaction.epochs == EPOCHS
        transaction.admit([], HubAnswer(25, 0, 5, 35))
        last = Epoch(1, 0, 5, 30, 35, (), created=25)
        transaction.save(
            change(epochs=(last,), events=2, partials=partials({("d", "s", 0): [1.0]}))
        )

    assert epochs_of(database) == (EPOCHS[0], last)
    assert gaps_of(database) == [(2, 3, "open"), (7, 7, "open"), (1, 1, "repaired")]
    (state,) = store.states()
    assert (state.epoch, state.high_water, state.answer) == (1, 5, HubAnswer(25, 0, 5, 35))
    assert SqlQueries(database).status().partitions[0].events == 14


def test_a_database_is_migrated_with_one_result_at_a_time(empty_database: Database) -> None:
    allow_one_result(empty_database.engine)

    assert migrate(empty_database) is True
    assert migrate(empty_database) is False
