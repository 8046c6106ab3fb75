"""The README shows the settings of the code; ``python -m tests.unit.test_readme`` makes it so."""

from dataclasses import fields
from pathlib import Path

from scoring.settings import PREFIX, Settings

README = Path(__file__).parents[2] / "README.md"
BEGIN = "<!-- settings: made by tests/unit/test_readme.py from scoring/settings.py -->\n"
END = "<!-- /settings -->"


def table() -> str:
    """Give the table as Markdown."""
    rows = [
        f"| `{name}` | {_code(default)} | {doc} |"
        for name, default, doc in (
            (PREFIX + one.name.upper(), one.metadata["default"], one.metadata["doc"])
            for one in fields(Settings)
        )
    ]
    return "\n".join(["| Variable | Default | What it is |", "|---|---|---|", *rows, ""])


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _split() -> tuple[str, str, str]:
    before, _, rest = README.read_text().partition(BEGIN)
    shown, _, after = rest.partition(END)
    return before, shown, after


def test_the_readme_shows_every_setting_as_it_is() -> None:
    assert _split()[1] == table()


if __name__ == "__main__":
    before, _, after = _split()
    README.write_text(f"{before}{BEGIN}{table()}{END}{after}")
