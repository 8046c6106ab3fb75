"""An entry script of a parallel job that does what its input parts say.

A part is one line: a command, and a file on which the command leaves its marks, if it needs one.
The fleet is one file, `how`: ``ok``, or what `init` is to do instead.
"""

import argparse
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

FAILURES_BEFORE_SUCCESS = 2
_predictions = Path()


def init() -> None:
    global _predictions  # noqa: PLW0603 - the parallel job's contract is two functions of a module
    parser = argparse.ArgumentParser()
    parser.add_argument("--fleet", type=Path)
    parser.add_argument("--predictions", type=Path)
    arguments, _ = parser.parse_known_args(sys.argv[1:])
    _predictions = arguments.predictions
    how = (arguments.fleet / "how").read_text()
    if how == "die":
        os._exit(7)
    if how == "refuse":
        sys.exit("arguments not understood")


def run(mini_batch: list[str]) -> list[str]:
    return [row for path in mini_batch for row in _obey(Path(path))]


def _obey(part: Path) -> list[str]:
    command, _, mark = part.read_text().partition(" ")
    if command == "explain-once" and _count(Path(mark)) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if command in {"fail", "explain", "explain-once"}:
        message = "this part\nis no good"
        if command != "fail":
            # As the project's own entry script does.
            (_predictions / part.with_suffix(".error").name).write_text(f"told: {message}")
        raise ValueError(message)
    if command == "exit":
        sys.exit(3)
    if mark:
        _WITH_MARK[command](Path(mark))
    if command != "idle":
        (_predictions / part.name).write_bytes(b"predictions of " + part.read_bytes())
    return [] if command == "short" else [part.name]


def _count(mark: Path) -> int:
    """Add a line to the mark and say how many there are."""
    with mark.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(mark.read_text().splitlines())


def _recover(mark: Path) -> None:
    if _count(mark) <= FAILURES_BEFORE_SUCCESS:
        message = "not yet"
        raise ValueError(message)


def _die_once(mark: Path) -> None:
    if _count(mark) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def _hold(mark: Path) -> None:
    """Hold a lock on the mark, for as long as this process lives, until the mark says go."""
    file = mark.open("a+")
    fcntl.flock(file, fcntl.LOCK_EX)
    while "go" not in mark.read_text():
        time.sleep(0.01)
    file.close()


_WITH_MARK = {"recover": _recover, "die-once": _die_once, "hold": _hold, "count": _count}
