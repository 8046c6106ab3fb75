"""What is published as a function app: the program, and nothing that lies beside it."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IGNORED = ROOT / ".funcignore"
STRAY = (
    *(
        ".env",
        ".env.local",
        "key.pem",
        "app.PublishSettings",
        "local.settings.json",
        "settings.json",
    ),
    *("scoring-data/store.db", "demo-data/store.db", "venv/lib/a.py", ".venv/bin/python", "x.csv"),
    *("tests/test_a.py", ".git/config", "infra/main.bicep", "models/model_a_b.pkl", "secret.txt"),
    *("node_modules/a/index.js", "function_app_old.txt", ".azure/config", "notes/host.json"),
)
WANTED = ("function_app.py", "host.json", "requirements.txt", "scoring/runs.py", "scoring/a/b.yml")


def taken_by_git(folder: Path) -> set[str]:
    """Return the files that the rules leave, as git and azd read them."""
    subprocess.run(["git", "init", "-q", str(folder)], check=True)  # noqa: S607 - whichever git
    listing = ["git", "-C", str(folder), "ls-files", "--others", f"--exclude-from={IGNORED}"]
    done = subprocess.run(listing, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def taken_by_core_tools(files: tuple[str, ...]) -> set[str]:
    """Return the files that the rules leave, as Azure Functions Core Tools reads them.

    A rule with ``!`` wins wherever it stands, and rules match the beginning of a path. Source:
    ``GitIgnoreParser`` in azure-functions-core-tools, after the npm package gitignore-parser.
    """
    rules = [line for line in IGNORED.read_text().splitlines() if line and line[0] != "#"]

    def matches(rule: str, path: str) -> bool:
        pattern = re.escape(rule).replace(r"\*\*", "(.+)").replace(r"\*", "([^/]+)")
        return re.match(rf"{pattern}\b", path) is not None

    return {
        path
        for path in files
        if any(matches(rule[1:], path) for rule in rules if rule[0] == "!")
        or not any(matches(rule, path) for rule in rules if rule[0] != "!")
    }


@pytest.mark.parametrize("reader", ["git", "core tools"])
def test_nothing_is_published_but_the_program(tmp_path: Path, reader: str) -> None:
    files = (*STRAY, *WANTED)
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    if reader == "core tools":
        taken = taken_by_core_tools(files)
    else:
        (tmp_path / ".git" / "config").unlink()
        taken = taken_by_git(tmp_path)

    assert taken == set(WANTED)


def test_all_of_the_program_is_published() -> None:
    listing = ["git", "-C", str(ROOT), "ls-files", "scoring"]
    done = subprocess.run(listing, capture_output=True, text=True, check=True)
    tracked = tuple(done.stdout.splitlines())

    assert taken_by_core_tools(tracked) == set(tracked)
