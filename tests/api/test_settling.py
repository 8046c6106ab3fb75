"""What a process has loaded is left out of the garbage collector's looks, once."""

import gc
from itertools import count
from typing import Any

import pytest

from scoring.api import settling
from tests.api.conftest import Client


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give what the collector is told from here on, by a process that has answered nothing yet."""
    told: list[str] = []

    def note(name: str) -> Any:
        return lambda: told.append(name)

    monkeypatch.setattr(settling, "_answers", count(1))
    monkeypatch.setattr(gc, "collect", note("collect"))
    monkeypatch.setattr(gc, "freeze", note("freeze"))
    return told


def test_what_is_garbage_by_then_is_not_kept(client: Client, calls: list[str]) -> None:
    for _ in range(settling.SETTLED - 1):
        client.get("/health")
    before = list(calls)
    client.get("/nothing")

    assert (before, calls) == ([], ["collect", "freeze"])


def test_a_process_settles_once(calls: list[str]) -> None:
    for _ in range(3 * settling.SETTLED):
        settling.settle()

    assert calls == ["collect", "freeze"]
