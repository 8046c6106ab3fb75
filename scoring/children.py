"""Child processes that are asked one thing after the other, and replaced when they die of it."""

import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from scoring.errors import Misconfigured
from scoring.frames import EXHAUSTED, OK, frame, length, opened

WALL = 300.0
"""Seconds after which a child that gives no answer is killed, however busy the machine is."""

_START = 120.0
"""Seconds that a child may take to be ready."""

_AHEAD = 2
"""Requests that a child has: one that it answers, and one that is on its way."""

_CHUNK = 1 << 20

_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT", "PYTHONDONTWRITEBYTECODE")
"""Variables that a child gets: none that holds a secret."""

ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a child is asked."""

    header: dict[str, Any]
    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What it says; `code` is one of those of `scoring.frames`."""

    code: int
    header: dict[str, Any]
    data: bytes

    def reason(self) -> str:
        """Return why it refused, in one line."""
        return " ".join(str(self.header.get("reason", "")).split())[:300]


class Child:
    """A child process, started when it is first asked, and again when it has died.

    Parameters
    ----------
    module
        What it runs; it answers frames on standard input by frames on standard output, after one
        that says that it is ready.
    arguments
        Of the module.

    Attributes
    ----------
    generation
        Of the process: another one has forgotten what this one was told.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._outbox = bytearray()
        self._inbox = bytearray()
        self.generation = 0

    def ask(self, request: Request) -> Answer:
        """Ask one thing."""
        return next(self.ask_all([request]))

    def ask_all(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Ask many things, one answer for each, in their order.

        A request that the child did not survive has an answer that says so.
        """
        waiting: deque[Request] = deque()
        source = iter(requests)
        while True:
            while len(waiting) < _AHEAD and (request := next(source, None)) is not None:
                waiting.append(request)
                self._send(request)
            if not waiting:
                return
            answer = self._receive()
            waiting.popleft()
            if answer.code == EXHAUSTED:
                self.close()
                for request in waiting:
                    self._send(request)
            yield answer

    def close(self) -> None:
        """End the process, in the middle of its work if need be."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
            self._process = None
            self._outbox.clear()
            self._inbox.clear()

    def _send(self, request: Request) -> None:
        if self._process is None:
            self._start()
        self._outbox += frame(OK, request.header, request.data)

    def _start(self) -> None:
        path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | ONE_THREAD | {"PYTHONPATH": path},
        )
        self.generation += 1
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None  # noqa: S101 - both were asked for
            os.set_blocking(pipe.fileno(), False)
        started = self._receive(_START)
        if started.code != OK:
            self.close()
            message = f"a child process does not start ({self._command[2]}): {started.reason()}"
            raise Misconfigured([message])

    def _receive(self, seconds: float | None = None) -> Answer:
        """Wait for the next answer, and meanwhile send what there is to be sent."""
        assert self._process is not None  # noqa: S101 - it was sent something
        seconds = WALL if seconds is None else seconds
        deadline = monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
            is_writing = False
            while (answer := self._next_answer()) is None:
                if bool(self._outbox) != is_writing:
                    is_writing = bool(self._outbox)
                    if is_writing:
                        selector.register(self._process.stdin, selectors.EVENT_WRITE)  # type: ignore[arg-type]
                    else:
                        selector.unregister(self._process.stdin)  # type: ignore[arg-type]
                left = deadline - monotonic()
                ready = selector.select(max(0.0, left))
                if not ready and left <= 0:
                    return self._died(f"takes longer than {seconds:g} s")
                if not all(self._exchange(key.fileobj) for key, _ in ready):
                    return self._died("")
            return answer

    def _exchange(self, pipe: Any) -> bool:
        """Read or write what can be; False once the child has ended."""
        try:
            if pipe.readable():
                data = os.read(pipe.fileno(), _CHUNK)
                self._inbox += data
                return bool(data)
            sent = os.write(pipe.fileno(), bytes(self._outbox[:_CHUNK]))
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        del self._outbox[:sent]
        return True

    def _next_answer(self) -> Answer | None:
        size = length(self._inbox)
        if not size or len(self._inbox) < size:
            return None
        found = Answer(*opened(self._inbox[:size]))
        del self._inbox[:size]
        return found

    def _died(self, why: str) -> Answer:
        """Return how the child has ended, as the answer to what it was asked."""
        assert self._process is not None  # noqa: S101 - it has died
        if why:
            self._process.kill()
        code = self._process.wait()
        if code == -signal.SIGPROF:
            why = "takes too much processor time"
        elif not why:
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            why = f"the process that opened it ended: {name}"
        return Answer(EXHAUSTED, {"reason": why}, b"")
