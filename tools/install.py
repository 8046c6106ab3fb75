"""Install pinned packages with pip and show the progress, which pip alone does not.

Run: ``python tools/install.py PIP_INSTALL_ARGUMENT...``, with the Python of the environment to
install into. Needs nothing but pip. Its own output is shown if it fails.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from itertools import pairwise
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from pip._vendor.packaging.requirements import Requirement

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-input")
EVERY = 10
"""Seconds between two lines where output is not a terminal, such as a CI log."""


def main(arguments: Sequence[str]) -> int:
    """Run ``pip install`` with these arguments; return its exit code."""
    wanted = set(_pinned(arguments)) - _installed()
    if not wanted:
        return _show_if_failed(*_run(arguments, Progress(wanted)))
    plural = "s" if len(wanted) > 1 else ""
    print(f"Installing {len(wanted)} package{plural} into {_environment()}:", flush=True)
    progress = Progress(wanted)
    code, output = _run(arguments, progress)
    progress.end("installed" if code == 0 else "failed")
    return _show_if_failed(code, output)


class Progress:
    """One line that is written over in a terminal, or a line every few seconds in a log.

    Parameters
    ----------
    wanted
        Names of the packages that are not there yet.
    """

    def __init__(self, wanted: set[str]) -> None:
        self._wanted = wanted
        self._collected = 0
        self._installing = False
        self._package = ""
        self._begin = time.monotonic()
        self._in_terminal = sys.stdout.isatty()
        self._next = self._begin + (0 if self._in_terminal else EVERY)

    def read(self, line: str) -> None:
        """Learn from a line of pip's output how far it is."""
        if match := re.match(r"Collecting ([\w.-]+)", line):
            self._collected += 1
            self._package = match[1]
        elif line.startswith("Installing collected packages"):
            self._installing = True

    def show(self) -> None:
        """Show how far pip is, unless it is too early for the next line of a log."""
        if self._wanted and time.monotonic() >= self._next:
            self._write(self._state())
            self._next = time.monotonic() + (0 if self._in_terminal else EVERY)

    def end(self, state: str) -> None:
        """Write the last line."""
        self._write(f"{state}, {self._elapsed()}", last=True)

    def _state(self) -> str:
        # pip downloads everything first; while it installs it says nothing.
        total, elapsed = len(self._wanted), self._elapsed()
        if self._installing:
            return f"installed {len(self._wanted & _installed())} of {total}, {elapsed}"
        collected = min(self._collected, total)
        return f"downloading {collected} of {total}, {elapsed}  {self._package}"

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._begin:.0f} s"

    def _write(self, state: str, *, last: bool = False) -> None:
        line = f"  {state}"
        if self._in_terminal:
            # A line that fills the terminal would wrap, and could not be written over.
            width = shutil.get_terminal_size().columns - 1
            print("\r" + line[:width].ljust(width), end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)


def _run(arguments: Sequence[str], progress: Progress) -> tuple[int, str]:
    """Run pip; return its exit code and output."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    output = []
    with subprocess.Popen(  # noqa: S603 - the arguments are the Makefile's
        [*PIP, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        for line in _lines(pip):
            if line is not None:
                output.append(line)
                progress.read(line)
            progress.show()
    return pip.returncode, "".join(output)


def _lines(pip: "subprocess.Popen[str]") -> Iterator[str | None]:
    """Yield the lines of the output, and None for every half second without one."""
    lines: Queue[str | None] = Queue()

    def read() -> None:
        for line in pip.stdout or ():
            lines.put(line)
        lines.put(None)

    Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=0.5)
        except Empty:
            yield None
            continue
        if line is None:
            return
        yield line


def _show_if_failed(code: int, output: str) -> int:
    if code:
        sys.stderr.write(output)
    return code


def _pinned(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the names of packages that arguments and requirements files pin for this Python."""
    lines = list(arguments)
    for flag, path in pairwise(arguments):
        if flag == "-r":
            lines += Path(path).read_text(encoding="utf-8").splitlines()
    for line in lines:
        if re.match(r"[\w.-]+==", line):
            # Hashes follow on lines of their own.
            requirement = Requirement(line.rstrip("\\ "))
            if requirement.marker is None or requirement.marker.evaluate():
                yield _normal(requirement.name)


def _installed() -> set[str]:
    return {_normal(package.name) for package in distributions() if package.name}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _environment() -> str:
    return os.path.relpath(sys.prefix)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
