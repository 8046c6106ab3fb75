"""What SQLAlchemy and the drivers raise, translated once into this project's errors.

Codes decide (`codes`), and not the text, which may quote data. An error that is not known is not
transient: it would be retried for ever.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from scoring.adapters.sql.codes import (
    ENCRYPTION,
    RECONFIGURATION_WAIT,
    SQLITE,
    Meaning,
    meaning,
)
from scoring.errors import DataRefused, Misconfigured, ScoringError, StorageUnusable, Transient

_SETUP = {
    Meaning.NO_DRIVER: "the ODBC driver that the database names is not installed",
    Meaning.REFUSED: "the database does not let us in",
    Meaning.NO_DATABASE: "the database does not let us in",
    Meaning.POOLED: (
        "a pooler changes the database's connection between transactions, and"
        " SCORING_DATABASE_POOLER is not true"
    ),
}

# Two writers may both be the first of a partition, a file, a sensor or a device: there is no row
# to lock yet. The second one finds the other's row when it tries again. Elsewhere a lock keeps two
# writers apart: there a duplicate key is permanent.
_FIRST_WRITERS = frozenset(
    {"partitions", "facts", "sensor_counts", "device_counts", "hub_answers", "suspects"}
)
# "UNIQUE constraint failed: partitions.partition".
_SQLITE_TABLE = re.compile(r"UNIQUE constraint failed: (\w+)\.")
# SQL Server names the constraint or index before it quotes any value, in every language.
_MSSQL_CONSTRAINT = re.compile(r"\b(?:pk|ix|uq)_\w+", re.IGNORECASE)
# pyodbc puts "(number) (function)" behind the driver's text, which may quote data.
_MSSQL_NUMBER = re.compile(r"\((-?\d+)\) \(SQL\w+\)")
# libpq gives no SQLSTATE for a connection that was refused, and only its text tells why.
_LOGIN = ("password", "authentication", "does not exist", "unsupported startup parameter")
# Of servers and poolers, in English alone, and of a connection that was refused: no data in it.
_NO_ROOM = (
    *("too many clients", "too many connections", "remaining connection slots"),
    *("no more connections allowed", "client_login_timeout", "query_wait_timeout"),
)
_NO_ROOM_CODES = frozenset({"53300", 10928})
_ROOM = (
    "the server has no connection left (SCORING_DATABASE_POOL_SIZE and"
    " SCORING_DATABASE_MAX_OVERFLOW, times all processes and instances, must be below its limit)"
)


@contextmanager
def translated_errors(
    engine: str = "", has_connected: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Turn what SQLAlchemy and the drivers raise into this project's errors.

    Parameters
    ----------
    engine
        SQLAlchemy's name of the database: sqlite, postgresql or mssql.
    has_connected
        Whether the process has ever connected to this database.
    """
    try:
        yield
    except exc.SQLAlchemyError as error:
        raise _translate(error, engine, has_connected) from error
    except ImportError as error:
        message = f"the database's driver cannot be loaded: {error}"
        raise Misconfigured([message]) from error


def _translate(
    error: exc.SQLAlchemyError, engine: str, has_connected: Callable[[], bool]
) -> ScoringError:
    whole = str(getattr(error, "orig", None) or error)
    text = _first_line(whole)
    if isinstance(error, exc.TimeoutError):
        return Transient(f"no connection to the database was free: {text}")
    if not isinstance(error, exc.DBAPIError):
        return _other(text)
    if engine == "sqlite":
        return _of_sqlite(error, text)
    number = _number(whole) if engine == "mssql" else None
    found = meaning(_state(error), number)
    if not _NO_ROOM_CODES.isdisjoint({_state(error), number}):
        text = f"{_ROOM}: {text}"
    if found is Meaning.NO_DATABASE and has_connected():
        found = Meaning.RECONFIGURING
    if found is Meaning.TRANSIENT and _is_encryption_refused(error, text):
        found = Meaning.REFUSED
    return _meant(error, found, text) or _of_a_connection(error, text) or _of_a_value(error, text)


def _meant(error: exc.DBAPIError, found: Meaning | None, text: str) -> ScoringError | None:
    if found in {Meaning.TRANSIENT, Meaning.RECONFIGURING}:
        wait = RECONFIGURATION_WAIT if found is Meaning.RECONFIGURING else 0.0
        return Transient(f"the database is busy or not reachable: {text}", wait)
    if found is Meaning.DUPLICATE:
        return _duplicate(_constraint(error).removeprefix("pk_"), text)
    if found is Meaning.DATA:
        return DataRefused(f"the database refused: {text}")
    if found is Meaning.UNUSABLE:
        return StorageUnusable(f"the database cannot be used: {text}")
    return Misconfigured([f"{_SETUP[found]}: {text}"]) if found else None


def _of_sqlite(error: exc.DBAPIError, text: str) -> ScoringError:
    if found := _SQLITE_TABLE.search(text):
        return _duplicate(found[1], text)
    code = getattr(error.orig, "sqlite_errorcode", None)
    # The lowest byte is the kind of error; the others tell more of it.
    known = None if code is None else SQLITE.get(code & 0xFF)
    return _meant(error, known, text) or _of_a_value(error, text)


def _state(error: exc.DBAPIError) -> str | None:
    """Return the SQLSTATE: an attribute in psycopg, the first argument in pyodbc."""
    original = error.orig
    state = getattr(original, "sqlstate", None) or next(iter(getattr(original, "args", ())), None)
    return state if isinstance(state, str) and len(state) == 5 else None  # noqa: PLR2004


def _number(text: str) -> int | None:
    """Return SQL Server's number: the last one before the name of the ODBC function."""
    numbers = _MSSQL_NUMBER.findall(text)
    return int(numbers[-1]) if numbers else None


def _constraint(error: exc.DBAPIError) -> str:
    """Return the name of the constraint that a duplicate key violates; empty if not told."""
    original = error.orig
    diagnosis = getattr(original, "diag", None)
    if diagnosis is not None:
        return diagnosis.constraint_name or ""
    found = _MSSQL_CONSTRAINT.search(str(original))
    return found[0] if found else ""


def _is_encryption_refused(error: exc.DBAPIError, text: str) -> bool:
    return _state(error) == "08001" and any(word in text.lower() for word in ENCRYPTION)


def _duplicate(place: str, text: str) -> ScoringError:
    """Return the error of a key that exists already, by its table."""
    if place in _FIRST_WRITERS:
        return Transient(f"another writer was first: {text}")
    return _other(text)


def _of_a_connection(error: exc.DBAPIError, text: str) -> ScoringError | None:
    """Return the error of a connection that was refused or lost without a known code."""
    if error.connection_invalidated:
        return Transient(f"the database is not reachable: {text}")
    # Of libpq, which was connecting: there was no statement yet.
    is_refused = _state(error) is None and error.statement is None
    if is_refused and isinstance(error, exc.OperationalError):
        if any(word in text.lower() for word in _LOGIN):
            return Misconfigured([f"the database does not let us in: {text}"])
        if any(word in text.lower() for word in _NO_ROOM):
            return Transient(f"{_ROOM}: {text}")
        return Transient(f"the database is not reachable: {text}")
    return None


def _of_a_value(error: exc.DBAPIError, text: str) -> ScoringError:
    """Tell a value that is refused from a statement that is: only the data are to blame there."""
    if isinstance(error, (exc.DataError, exc.IntegrityError)):
        return DataRefused(f"the database refused: {text}")
    return _other(text)


def _other(text: str) -> ScoringError:
    return ScoringError(f"the database refused: {text}")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
