"""Commands run in this process, as ``python -m scoring`` does."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scoring.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    def error(self) -> str:
        """Give the one line that it said; nothing else, and nothing on standard output."""
        assert (self.code, self.out) == (1, ""), (self.code, self.out, self.err)
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line

    def usage_error(self) -> str:
        """Give what it said of wrong usage; Typer draws a box around it."""
        assert (self.code, self.out) == (2, ""), (self.code, self.out, self.err)
        assert "Traceback" not in self.err
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", self.err).split())


def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> Outcome:
    """Run the program with these arguments."""
    monkeypatch.setattr(sys, "argv", ["scoring", *map(str, arguments)])
    capsys.readouterr()
    try:
        main()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    if isinstance(code, str):
        # What the interpreter makes of it.
        return Outcome(1, captured.out, captured.err + code + "\n")
    return Outcome(code or 0, captured.out, captured.err)
