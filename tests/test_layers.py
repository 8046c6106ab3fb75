"""The layers hold, and the check that says so can fail."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scoring.adapters.azure_ml.components import CORE

ROOT = Path(__file__).parents[1]


def _check(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Give a copy of the package that can be spoiled."""
    shutil.copytree(ROOT / "scoring", tmp_path / "scoring")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_layers_hold(copy: Path) -> None:
    result = _check(copy)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("windows.py", "import scoring.handlers.ingest", "Imports point one way"),
        ("readings.py", "import sqlalchemy", "know no driver"),
        ("handlers/submit.py", "import os", "know no driver"),
        ("handlers/ingest.py", "import stamina", "know no driver"),
        ("storage.py", "import scoring.readings", "Imports point one way"),
        ("adapters/blobs.py", "import scoring.adapters.sql.schema", "do not know each other"),
        ("job/score.py", "import scoring.handlers.ingest", "needs the core only"),
        ("helpers.py", "", "Imports point one way"),
    ],
)
def test_a_violation_is_caught(copy: Path, module: str, statement: str, contract: str) -> None:
    path = copy / "scoring" / module
    text = path.read_text() if path.exists() else ""
    path.write_text(f"{text}\n{statement}\n")
    result = _check(copy)
    assert result.returncode == 1
    # The names of contracts are wrapped; each is followed by its verdict.
    output = " ".join(result.stdout.split())
    assert re.search(rf"{contract}(?:(?!KEPT).)*?(BROKEN|not listed as layers)", output)


def test_the_cluster_is_given_every_module_that_its_entry_script_loads() -> None:
    """Without a service: publishing is tested as a whole only where Azurite is installed."""
    program = (
        "import sys, scoring.job.score, scoring.fleet.payloads, scoring.fleet.predicting\n"
        "print(*(name for name in sys.modules if name.startswith('scoring.')))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    core = {name.split(".")[1] for name in found.stdout.split()} - {"job", "fleet"}

    assert core <= set(CORE)
