"""The README shows the settings of the code; ``python -m tests.unit.test_readme`` makes it so."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from scoring.settings import HOST, PREFIX, HostVariable, Settings

README = Path(__file__).parents[2] / "README.md"


def settings_table() -> str:
    """Give the table of the settings as Markdown."""
    rows = [
        f"| `{name}` | {_code(default)} | {doc} |"
        for name, default, doc in (
            (PREFIX + one.name.upper(), one.metadata["default"], one.metadata["doc"])
            for one in fields(Settings)
        )
    ]
    return "\n".join(["| Variable | Default | What it is |", "|---|---|---|", *rows, ""])


def host_table() -> str:
    """Give the table of the Functions host's variables as Markdown."""
    rows = [f"| `{one.name}` | {_default(one)} | {one.doc} |" for one in HOST]
    return "\n".join(["| Variable | Default | What it is |", "|---|---|---|", *rows, ""])


TABLES = {"settings": settings_table, "host settings": host_table}


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _default(one: HostVariable) -> str:
    return "required" if one.default is None else _code(one.default)


def _marks(name: str) -> tuple[str, str]:
    made = "made by tests/unit/test_readme.py from scoring/settings.py"
    return f"<!-- {name}: {made} -->\n", f"<!-- /{name} -->"


def _split(text: str, name: str) -> tuple[str, str, str]:
    begin, end = _marks(name)
    before, mark, rest = text.partition(begin)
    shown, other, after = rest.partition(end)
    assert mark and other, f"the README has no place for the table of the {name}"
    return before, shown, after


@pytest.mark.parametrize("name", TABLES)
def test_the_readme_shows_every_setting_as_it_is(name: str) -> None:
    assert _split(README.read_text(), name)[1] == TABLES[name]()


def test_every_variable_of_the_samples_is_documented() -> None:
    of_the_host = {"FUNCTIONS_WORKER_RUNTIME", "AzureWebJobsStorage"}
    known = {PREFIX + one.name.upper() for one in fields(Settings)} | {one.name for one in HOST}
    root = README.parent
    local = json.loads((root / "local.settings.sample.json").read_text())["Values"]
    samples = [local, *map(json.loads, (p.read_text() for p in root.glob("infra/*.sample.json")))]

    for sample in samples:
        assert {name.partition("__")[0] for name in sample} <= known | of_the_host


if __name__ == "__main__":
    text = README.read_text()
    for name, table in TABLES.items():
        before, _, after = _split(text, name)
        begin, end = _marks(name)
        text = f"{before}{begin}{table()}{end}{after}"
    README.write_text(text)
