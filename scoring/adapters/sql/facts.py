"""What holds for a whole store."""

from sqlalchemy import Connection, select, update

from scoring.adapters.sql.schema import facts

CLAIMS = "claims"
"""Name of the row that is locked while a run begins."""

WINDOW = facts.c.name == "window"
"""The row that has the window size."""


def read_window(connection: Connection) -> int | None:
    """Give the size of the store's windows, microseconds; None for a store that has none yet."""
    value = connection.execute(select(facts.c.value).where(WINDOW)).scalar()
    return None if value is None else int(value)


def lock_claims(connection: Connection) -> None:
    """Let one process at a time begin a run; the lock goes with the transaction.

    The first migration makes the row, so that no two processes ever race to do so.
    """
    connection.execute(update(facts).where(facts.c.name == CLAIMS).values(value=""))
