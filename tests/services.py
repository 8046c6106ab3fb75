"""What some tests need that pip cannot install, and what is said of tests skipped without it."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Service:
    """Something that tests need and that a machine may not have.

    Attributes
    ----------
    package
        Its name on Debian and Ubuntu; on npm if `by_npm`.
    is_here
        Whether tests can use it on this machine.
    """

    name: str
    package: str
    is_here: Callable[[], bool]
    by_npm: bool = False

    @property
    def reason(self) -> str:
        """Why a test is skipped without it."""
        return f"{self.name} is not installed"

    def require(self) -> None:
        """Skip the test that is running if the service is not here."""
        if not self.is_here():
            pytest.skip(self.reason)

    def needed(self) -> pytest.MarkDecorator:
        """Return the mark that skips a test if the service is not here."""
        return pytest.mark.skipif(not self.is_here(), reason=self.reason)


@cache
def postgresql_programs() -> Path | None:
    """Return the folder of PostgreSQL's server programs; None where it is not installed."""
    found = shutil.which("initdb")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    place = Path(found).resolve() if found else installed[-1] if installed else None
    return place.parent if place else None


@cache
def pgbouncer_program() -> Path | None:
    """Return PgBouncer; None where it is not installed."""
    # Debian has it where only root looks.
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return Path(found) if found else None


@cache
def azurite_program() -> Path | None:
    """Return Azurite's blob service; None where it is not installed."""
    local = ROOT / "node_modules" / ".bin" / "azurite-blob"
    found = str(local) if local.exists() else shutil.which("azurite-blob")
    return Path(found) if found else None


@cache
def _is_odbc_here() -> bool:
    # pyodbc is always installed; it cannot be imported without the driver manager's library.
    if importlib.util.find_spec("pyodbc") is None:
        return False
    probe = [sys.executable, "-c", "import pyodbc"]
    return subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0


@cache
def tsqlcheck_program() -> Path | None:
    """Return the program around Microsoft's T-SQL parser; None where it is not there.

    It is no package. Continuous integration has it in the folder ``shared/tools`` beside the clone.
    """
    beside = ROOT.parent / "shared" / "tools" / "tsqlcheck"
    found = str(beside) if beside.exists() else shutil.which("tsqlcheck")
    return Path(found) if found else None


POSTGRESQL = Service("PostgreSQL", "postgresql", lambda: postgresql_programs() is not None)
ODBC = Service("unixODBC", "unixodbc", _is_odbc_here)
AZURITE = Service("Azurite", "azurite@3.35.0", lambda: azurite_program() is not None, by_npm=True)
PGBOUNCER = Service("PgBouncer", "pgbouncer", lambda: pgbouncer_program() is not None)
SERVICES = (AZURITE, POSTGRESQL, PGBOUNCER, ODBC)

TSQLCHECK = Service("tsqlcheck", "", lambda: tsqlcheck_program() is not None)
"""It cannot be installed, so it is none of `SERVICES`: a test without it is skipped for a reason
that is listed, and fails where every service has to be there."""

MSSQL = os.environ.get("SCORING_TEST_MSSQL")
"""An ODBC connection string of an SQL Server database that the tests may empty."""

NO_SQL_SERVER = "SCORING_TEST_MSSQL is not set"
"""Why tests on SQL Server are skipped: no package registry has it."""


def missing() -> list[Service]:
    """Return the services that are not here."""
    return [service for service in SERVICES if not service.is_here()]


def explained(reasons: Iterable[str]) -> list[str]:
    """Say in a sentence each which skipped tests could run, and what for.

    Parameters
    ----------
    reasons
        Why tests were skipped, one a test.
    """
    skipped = list(reasons)
    by_service = {service.name: skipped.count(service.reason) for service in SERVICES}
    absent = [name for name, tests in by_service.items() if tests]
    on_sql_server = skipped.count(NO_SQL_SERVER)
    others = len(skipped) - sum(by_service.values()) - on_sql_server
    sentences = []
    if absent:
        tests, are = _were(sum(by_service.values())), "is" if len(absent) == 1 else "are"
        sentences.append(
            f"{tests} skipped because {listed(absent)} {are} not installed:"
            " run `make services`, then `make test` again."
        )
    if on_sql_server:
        sentences.append(
            f"{_were(on_sql_server)} skipped because {NO_SQL_SERVER}: set it to the ODBC"
            " connection string of an SQL Server database that the tests may empty."
        )
    if others:
        sentences.append(f"{_were(others)} skipped for another reason, listed above.")
    return sentences


def forget() -> None:
    """Look again at what is here: something was installed."""
    looked_for = (postgresql_programs, pgbouncer_program, azurite_program, tsqlcheck_program)
    for looked in (*looked_for, _is_odbc_here):
        looked.cache_clear()


def may_be_skipped(reason: str) -> bool:
    """Whether a test may be skipped for this reason even where everything was installed."""
    return reason == NO_SQL_SERVER


def _were(number: int) -> str:
    return "1 test was" if number == 1 else f"{number} tests were"


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
