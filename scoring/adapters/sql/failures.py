"""What SQLAlchemy and the drivers raise, translated once into this project's errors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from scoring.errors import DataRefused, Misconfigured, ScoringError, StorageUnusable, Transient

_SQLITE_UNUSABLE = (
    *("full", "readonly", "read-only", "malformed", "not a database", "disk i/o error"),
    "unable to open",
)
_SQLITE_TRANSIENT = ("locked", "busy")
_LOGIN = ("password", "authentication", "does not exist", "unsupported startup parameter")

# SQLSTATE of the standard, of PostgreSQL and of ODBC; two characters stand for a whole class.
_TRANSIENT = frozenset(
    {
        *("08", "40001", "40P01"),  # connection, serialisation, deadlock
        *("55P03", "57014"),  # lock and statement timeout
        *("57P01", "57P02", "57P03", "53300"),  # server goes, starts, has too many clients
        *("HYT00", "HYT01"),  # ODBC timeouts
    }
)
_UNIQUE = frozenset({"23505"})
# Who is the first to write of a partition, a file, a sensor or a device has nothing to lock, so
# that two may be; the second of them finds the other's row when it comes again. Elsewhere a lock
# keeps two writers apart: a duplicate key there is one again however often it is tried.
_FIRST_WRITERS = re.compile(
    r"\b(?:pk_)?(?:partitions|facts|sensor_counts|device_counts|hub_answers|suspects)\b"
)
# Cardinality (two rows of one key in a statement), data exceptions, integrity constraints.
_DATA = frozenset({"21", "22", "23"})
_UNUSABLE = frozenset({"53100", "25006", "58030", "XX001"})
_MISCONFIGURED = frozenset({"28", "3D000"})
# A prepared statement that is not there, or there already: another connection is at the other end.
_POOLED = frozenset({"26000", "42P05"})
# Of unixODBC, about a connection: the file or the name of a driver is not there.
_NO_DRIVER = frozenset({"IM002", "IM003", "01000"})
# SQL Server's own numbers, in brackets in its messages.
_MSSQL_TRANSIENT = frozenset({1205, 1222, 40197, 40501, 40613, 49918, 49919, 49920, 10928, 10929})
_MSSQL_UNIQUE = frozenset({2627, 2601})
_MSSQL_UNUSABLE = frozenset({1105, 9002, 3906})
_MSSQL_LOGIN = frozenset({18456, 4060})


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what SQLAlchemy and the drivers raise into this project's errors."""
    try:
        yield
    except exc.SQLAlchemyError as error:
        raise _translate(error) from error
    except ImportError as error:
        message = f"the database's driver cannot be loaded: {error}"
        raise Misconfigured([message]) from error


def _translate(error: exc.SQLAlchemyError) -> ScoringError:
    text = _first_line(str(getattr(error, "orig", None) or error))
    if isinstance(error, exc.TimeoutError):
        return Transient(f"no connection to the database was free: {text}")
    if not isinstance(error, exc.DBAPIError):
        return ScoringError(f"the database refused: {text}")
    if _states(error) & _POOLED:
        problem = (
            f"a pooler changes the database's connection between transactions: {text}; set"
            " SCORING_DATABASE_POOLER to true"
        )
        return Misconfigured([problem])
    return _by_code(error, text) or _by_words(error, text) or _of_a_value(error, text)


def _by_code(error: exc.DBAPIError, text: str) -> ScoringError | None:
    """Go by the SQLSTATE and SQL Server's number; None where the driver gives neither."""
    states = _states(error)
    numbers = {int(number) for number in re.findall(r"\((\d+)\)", text)}
    if states & _TRANSIENT or numbers & _MSSQL_TRANSIENT:
        return Transient(f"the database is busy or not reachable: {text}")
    if states & _UNIQUE or numbers & _MSSQL_UNIQUE:
        return _duplicate(text)
    if states & _UNUSABLE or numbers & _MSSQL_UNUSABLE:
        return StorageUnusable(f"the database cannot be used: {text}")
    if states & _NO_DRIVER:
        return Misconfigured([f"the ODBC driver that the database names is not installed: {text}"])
    if states & _MISCONFIGURED or numbers & _MSSQL_LOGIN:
        return Misconfigured([f"the database does not let us in: {text}"])
    return None


def _states(error: exc.DBAPIError) -> set[str]:
    """Give the SQLSTATE and its class; of psycopg an attribute, of pyodbc the first argument."""
    original = error.orig
    state = getattr(original, "sqlstate", None) or next(iter(getattr(original, "args", ())), None)
    return {state, state[:2]} if isinstance(state, str) and len(state) == 5 else set()  # noqa: PLR2004


def _by_words(error: exc.DBAPIError, text: str) -> ScoringError | None:
    """Go by the words of SQLite and of a server that cannot be connected to."""
    lowered = text.lower()
    if isinstance(error, exc.IntegrityError):
        return _duplicate(text) if "unique" in lowered else None
    if any(word in lowered for word in _SQLITE_TRANSIENT):
        return Transient(f"the database is busy: {text}")
    if any(word in lowered for word in _SQLITE_UNUSABLE):
        return StorageUnusable(f"the database cannot be used: {text}")
    return _of_a_connection(error, text)


def _duplicate(text: str) -> ScoringError:
    """Tell of a key that stands already; every engine names the table or its constraint."""
    if _FIRST_WRITERS.search(text):
        return Transient(f"another writer was first: {text}")
    return _other(text)


def _of_a_connection(error: exc.DBAPIError, text: str) -> ScoringError | None:
    if isinstance(error, exc.OperationalError) and any(word in text.lower() for word in _LOGIN):
        return Misconfigured([f"the database does not let us in: {text}"])
    if error.connection_invalidated or isinstance(error, exc.OperationalError):
        return Transient(f"the database is not reachable: {text}")
    return None


def _of_a_value(error: exc.DBAPIError, text: str) -> ScoringError:
    """Tell a value that is refused from a statement that is: only the data are to blame there."""
    if isinstance(error, (exc.DataError, exc.IntegrityError)) or _states(error) & _DATA:
        return DataRefused(f"the database refused: {text}")
    return _other(text)


def _other(text: str) -> ScoringError:
    return ScoringError(f"the database refused: {text}")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
