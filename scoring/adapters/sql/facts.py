"""Facts about a whole store: the size of its windows, and how far a rebuild of them is."""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, insert, select, update

from scoring.adapters.sql.schema import facts
from scoring.errors import RebuildUnderWay

CLAIMS = "claims"
"""Name of the row that is locked while a run begins, a rebuild, or a partition."""

_WINDOW, _REBUILD = "window", "rebuild"


class Phase(StrEnum):
    """How far a rebuild of the windows is."""

    DONE = "done"
    CLEARING = "clearing"
    """The old windows are being deleted: readings are kept as segments only."""
    RESIZING = "resizing"
    """The same, and the predictions of these windows too: the new ones have another size."""
    FILLING = "filling"
    """Segments that no new window holds yet are being added."""


@dataclass(frozen=True, slots=True)
class WindowFacts:
    """Facts about all windows of a store.

    Attributes
    ----------
    size
        Microseconds; None for a store that has no size yet.
    rebuild
        The number of the newest rebuild, 0 before the first. Windows hold the readings of exactly
        those segments that have this number.
    """

    size: int | None
    rebuild: int = 0
    phase: Phase = Phase.DONE

    @property
    def are_deleted(self) -> bool:
        """Whether the old windows are still being deleted."""
        return self.phase in {Phase.CLEARING, Phase.RESIZING}


def read_window_facts(connection: Connection) -> WindowFacts:
    """Return the facts about all windows."""
    statement = select(facts.c.name, facts.c.value).where(facts.c.name.in_((_WINDOW, _REBUILD)))
    values = {name: value for name, value in connection.execute(statement).all()}
    size = values.get(_WINDOW)
    number, _, phase = values.get(_REBUILD, f"0:{Phase.DONE}").partition(":")
    return WindowFacts(None if size is None else int(size), int(number), Phase(phase))


def refuse_rebuild(windows: WindowFacts) -> None:
    """Raise `RebuildUnderWay` while windows are being rebuilt: some of them are not whole."""
    if windows.phase is not Phase.DONE:
        message = (
            "windows are being rebuilt: wait until that has ended; if it was stopped,"
            " `rebuild-windows` goes on"
        )
        raise RebuildUnderWay(message)


def read_window(connection: Connection) -> int | None:
    """Return the size of the store's windows, microseconds; None for a store without one."""
    return read_window_facts(connection).size


def write_window(connection: Connection, size: int) -> None:
    """Write the size of the store's windows, microseconds."""
    write_fact(connection, _WINDOW, str(size))


def write_rebuild(connection: Connection, number: int, phase: Phase) -> None:
    """Write how far a rebuild is."""
    write_fact(connection, _REBUILD, f"{number}:{phase}")


def write_fact(connection: Connection, name: str, value: str) -> None:
    """Write a fact, over what was written under its name before."""
    statement = update(facts).where(facts.c.name == name).values(value=value)
    if not connection.execute(statement).rowcount:
        connection.execute(insert(facts).values(name=name, value=value))


def lock_claims(connection: Connection) -> None:
    """Let one process at a time begin a run, a rebuild or a partition.

    The lock goes with the transaction. The first migration makes the row, so that no two processes
    ever race to do so.
    """
    connection.execute(update(facts).where(facts.c.name == CLAIMS).values(value=""))
