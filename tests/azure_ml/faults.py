"""What goes wrong on purpose: scripted, or by a seed."""

import random
import re
import threading
from dataclasses import dataclass, field
from typing import Any

KINDS = ("429", "503", "drop", "lose_answer", "delay")
"""Faults that chaos knows."""


@dataclass(slots=True)
class Fault:
    """One thing that goes wrong, `times` times.

    Attributes
    ----------
    method, path, host
        Which requests: any method where none is given; `path` and `host` are regular expressions
        that are searched for. ``CONNECT`` lets no new connection to the host come about.
    status, headers, body, content
        Answered instead of handling the request, `body` as JSON or `content` as it is. The SDK
        takes ``Retry-After: 0`` for none, and then waits 0, 1.6, 3.2, ... s: to be quick, say 0.01.
    drop
        Break the connection before the request is handled.
    lose_answer
        Handle the request, then break the connection instead of answering.
    delay
        Seconds to wait before anything else.
    times
        How often; None is always.
    hits
        How often it happened.
    """

    method: str | None = None
    path: str = ""
    host: str = ""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    content: bytes | None = None
    drop: bool = False
    lose_answer: bool = False
    delay: float = 0.0
    times: int | None = 1
    hits: int = 0

    def matches(self, method: str, host: str, path: str) -> bool:
        """Whether it is the turn of this fault."""
        return (
            (self.times is None or self.hits < self.times)
            and _for(self.method, method)
            and re.search(self.host, host) is not None
            and re.search(self.path, path) is not None
        )


def _for(asked: str | None, method: str) -> bool:
    return asked == method or (asked is None and method != "CONNECT")


@dataclass(slots=True)
class _Chaos:
    random: random.Random
    rate: float
    kinds: tuple[str, ...]
    path: str
    method: str | None

    def throw(self, method: str, path: str) -> Fault | None:
        if not _for(self.method, method) or not re.search(self.path, path):
            return None
        if self.random.random() >= self.rate:
            return None
        kind = self.random.choice(self.kinds)
        if kind in {"drop", "lose_answer"}:
            return Fault(drop=kind == "drop", lose_answer=kind == "lose_answer")
        if kind == "delay":
            return Fault(delay=self.random.uniform(0, 0.05))
        return Fault(status=int(kind), headers={"Retry-After": "0.01"})


class Faults:
    """The scripted faults, the first that matches first, and chaos after them."""

    def __init__(self) -> None:
        self.scripted: list[Fault] = []
        self.thrown: list[tuple[str, str, Fault]] = []
        self._chaos: _Chaos | None = None
        self._lock = threading.Lock()

    def chaos(
        self, seed: int, rate: float, kinds: tuple[str, ...], path: str, method: str | None
    ) -> None:
        """Let a share of the requests go wrong; a rate of 0 ends it."""
        unknown = set(kinds) - set(KINDS)
        assert not unknown, f"no such faults: {unknown}"
        self._chaos = _Chaos(random.Random(seed), rate, kinds, path, method)

    def next(self, method: str, host: str, path: str) -> Fault | None:
        """Give what goes wrong with this request."""
        with self._lock:
            for fault in self.scripted:
                if fault.matches(method, host, path):
                    fault.hits += 1
                    break
            else:
                found = self._chaos.throw(method, path) if self._chaos else None
                if found is None:
                    return None
                fault = found
            self.thrown.append((method, path, fault))
            return fault
