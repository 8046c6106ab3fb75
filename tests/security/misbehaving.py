"""A child process that does what it is told, shut in as the one that opens models is."""

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

import numpy as np

from scoring.confine import confine
from scoring.frames import EXHAUSTED, OK, REFUSED, frame, read_frame


def spin(_: str) -> None:
    """Compute for ever, under a limit that is set as for a model."""
    signal.setitimer(signal.ITIMER_PROF, 0.2)
    while True:
        pass


DEEDS: dict[str, Callable[[str], object]] = {
    "crash": lambda _: ctypes.string_at(0),
    "abort": lambda _: os.abort(),
    "leave": lambda _: os._exit(3),
    "spin": spin,
    "sleep": lambda _: time.sleep(1000),
    "eat": lambda _: np.ones(2**29),
    "read": lambda _: os.open("/etc/passwd", os.O_RDONLY),
    "write": lambda path: os.open(path, os.O_CREAT | os.O_WRONLY),
    "delete": os.remove,
    "connect": lambda _: socket.socket().connect(("127.0.0.1", 9)),
    "run": lambda _: os.execv("/bin/true", ["true"]),  # noqa: S606 - that it cannot
    "fork": lambda _: os.fork(),
    "kill": lambda _: os.kill(os.getppid(), 0),
}
"""What a child may be told to do."""


def obey(what: str, path: str) -> bytes:
    """Do something, and say how it went."""
    if what == "tell":
        return frame(OK, {"environment": dict(os.environ)})
    if deed := DEEDS.get(what):
        deed(path)
    return frame(OK, {"did": what})


def main() -> None:
    """Answer until the input ends."""
    answers = sys.stdout.buffer
    how = confine(2**30)
    answers.write(frame(OK, {"confined": how}))
    answers.flush()
    while request := read_frame(sys.stdin.buffer.read):
        _, header, _ = request
        try:
            answer = obey(header["what"], header["path"])
        except MemoryError:
            answer = frame(EXHAUSTED, {"reason": "memory"})
        except OSError as error:
            answer = frame(REFUSED, {"reason": f"{type(error).__name__} {error.errno}"})
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    main()
