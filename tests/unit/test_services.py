"""Services that tests need: what is said where they are missing, and how they are installed."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.services import AZURITE, NO_SQL_SERVER, ODBC, POSTGRESQL, ROOT, explained
from tools import services

PLUGIN = """\
from tests.conftest import *
"""

TESTS = """\
import pytest
from tests.services import MSSQL, NO_SQL_SERVER, Service

absent = Service("Azurite", "azurite", lambda: False)

@pytest.fixture
def account():
    absent.require()

def test_it_needs_an_account(account):
    pass

@absent.needed()
def test_it_is_marked():
    pass

@pytest.mark.skipif(True, reason=NO_SQL_SERVER)
def test_it_needs_sql_server():
    pass

def test_it_needs_nothing():
    pass
"""


class TestExplained:
    def test_nothing_is_said_where_nothing_was_skipped(self) -> None:
        assert explained([]) == []

    def test_one_sentence_names_what_is_missing_and_the_command(self) -> None:
        reasons = [*[POSTGRESQL.reason] * 60, *[AZURITE.reason] * 41]

        assert explained(reasons) == [
            "101 tests were skipped because Azurite and PostgreSQL are not installed:"
            " run `make services`, then `make test` again."
        ]

    def test_only_what_is_missing_is_named(self) -> None:
        (sentence,) = explained([ODBC.reason])

        assert sentence.startswith("1 test was skipped because unixODBC is not installed:")

    def test_sql_server_and_other_reasons_are_told_apart(self) -> None:
        sentences = explained(["git is not installed", NO_SQL_SERVER, NO_SQL_SERVER])

        assert [sentence.partition(":")[0] for sentence in sentences] == [
            "2 tests were skipped because SCORING_TEST_MSSQL is not set",
            "1 test was skipped for another reason, listed above.",
        ]


class TestSession:
    """A session of pytest in a folder of its own."""

    @staticmethod
    def run(folder: Path, *arguments: str) -> tuple[int, list[str]]:
        (folder / "conftest.py").write_text(PLUGIN)
        (folder / "test_it.py").write_text(TESTS)
        # Without the plugins that load slowly.
        quick = ["-p", "no:schemathesis", "-p", "no:hypothesispytest", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", f"--rootdir={folder}", *quick, *arguments]
        run = subprocess.run(
            [*command, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return run.returncode, run.stdout.splitlines()

    @pytest.mark.parametrize("workers", ["0", "2"])
    def test_what_was_skipped_is_said_at_its_end(self, tmp_path: Path, workers: str) -> None:
        code, lines = self.run(tmp_path, "-n", workers)

        assert code == 0
        assert lines[-3].startswith("2 tests were skipped because Azurite is not installed: run")
        assert lines[-2].startswith("1 test was skipped because SCORING_TEST_MSSQL is not set")

    def test_with_all_services_it_fails_unless_only_sql_server_was_missing(
        self, tmp_path: Path
    ) -> None:
        code, lines = self.run(tmp_path, "-n", "2", "--all-services")
        assert code == 1
        assert "With --all-services" in lines[-2]

        code, _ = self.run(tmp_path, "--all-services", "-k", "sql_server or nothing")
        assert code == 0


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Record commands instead of running them; all succeed."""
    run: list[Sequence[str]] = []

    def record(command: Sequence[str]) -> None:
        run.append(command)

    monkeypatch.setattr(services, "_run", record)
    return run


class TestInstall:
    @staticmethod
    def machine(
        monkeypatch: pytest.MonkeyPatch,
        *programs: str,
        missing: Sequence[object] = (AZURITE, POSTGRESQL, ODBC),
        user: int = 1000,
    ) -> None:
        """Stand on a machine with these programs."""
        monkeypatch.setattr(services, "missing", lambda: list(missing))
        monkeypatch.setattr("os.geteuid", lambda: user)
        monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)

    def test_where_all_is_there_it_does_nothing(
        self,
        monkeypatch: pytest.MonkeyPatch,
        commands: list[Sequence[str]],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.machine(monkeypatch, "apt-get", "npm", "sudo", missing=())

        assert services.main() == 0
        assert commands == []
        assert "Nothing to do" in capsys.readouterr().out

    @pytest.mark.parametrize(("user", "before"), [(0, []), (1000, ["sudo"])])
    def test_only_what_is_missing_is_installed_and_by_root(
        self,
        monkeypatch: pytest.MonkeyPatch,
        commands: list[Sequence[str]],
        user: int,
        before: list[str],
    ) -> None:
        self.machine(monkeypatch, "apt-get", "npm", "sudo", missing=(AZURITE, ODBC), user=user)

        services.main()

        root = [*before, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
        assert [list(command) for command in commands] == [
            [*root, "update"],
            [*root, "install", "--yes", "unixodbc"],
            ["npm", "install", "--no-save", "--no-audit", "--no-fund", "azurite@3.35.0"],
        ]

    @pytest.mark.parametrize(
        ("programs", "said"),
        [
            (["npm"], "no apt-get here: install postgresql and unixodbc another way"),
            (["npm", "apt-get"], "As root: apt-get update && apt-get install --yes postgresql"),
            (["apt-get", "sudo"], "no npm here, which azurite@3.35.0 needs"),
        ],
    )
    def test_what_could_not_be_installed_is_said_with_the_reason(
        self,
        monkeypatch: pytest.MonkeyPatch,
        commands: list[Sequence[str]],
        capsys: pytest.CaptureFixture[str],
        programs: list[str],
        said: str,
    ) -> None:
        self.machine(monkeypatch, *programs)

        assert services.main() == 1
        assert commands
        printed = capsys.readouterr()
        assert said in printed.err
        assert "PostgreSQL: NOT installed" in printed.out
