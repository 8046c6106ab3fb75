"""Child processes: what they may do, and that one that dies costs its own request only."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scoring import children
from scoring.children import Answer, Child, Request
from scoring.frames import EXHAUSTED, OK, REFUSED

linux = pytest.mark.skipif(sys.platform != "linux", reason="the filter of calls is Linux's")


@pytest.fixture
def child() -> Iterator[Child]:
    found = Child("tests.security.misbehaving")
    yield found
    found.close()


def ask(child: Child, what: str, path: Path = Path("none")) -> Answer:
    return child.ask(Request({"what": what, "path": str(path)}, b""))


@linux
@pytest.mark.parametrize("what", ["read", "write", "delete", "connect", "run", "fork", "kill"])
def test_a_child_reaches_no_file_no_network_and_no_other_process(
    child: Child, tmp_path: Path, what: str
) -> None:
    canary = tmp_path / "canary"
    if what == "delete":
        canary.touch()

    answer = ask(child, what, canary)

    assert (answer.code, answer.reason()) == (REFUSED, "PermissionError 1")
    assert canary.exists() == (what == "delete")


def test_a_child_is_told_nothing_of_the_environment(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORING_DATABASE", "postgresql://u:secret@host")
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "secret")

    told = ask(child, "tell").header["environment"]

    assert not [name for name, value in told.items() if "secret" in value]
    assert set(told) <= {*os.environ, "PYTHONPATH"} | set(children.ONE_THREAD)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("crash", "ended: SIGSEGV"),
        ("abort", "ended: SIG"),
        ("leave", "ended: exit code 3"),
        ("spin", "takes too much processor time"),
        ("eat", "memory"),
    ],
)
def test_a_request_that_a_child_does_not_survive_fails_alone(
    child: Child, what: str, why: str
) -> None:
    requests = [Request({"what": one, "path": ""}, b"x" * 100_000) for one in ("a", what, "b", "c")]

    first, failed, *after = child.ask_all(requests)

    assert first.code == OK
    assert failed.code == EXHAUSTED
    assert why in failed.reason()
    assert [one.header for one in after] == [{"did": "b"}, {"did": "c"}]


def test_a_child_that_gives_no_answer_is_ended(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(child, "a")
    monkeypatch.setattr(children, "WALL", 0.2)

    answer = ask(child, "sleep")

    assert (answer.code, answer.reason()) == (EXHAUSTED, "takes longer than 0.2 s")


def test_requests_larger_than_a_pipe_holds_get_through(child: Child) -> None:
    requests = [Request({"what": "a", "path": ""}, os.urandom(3_000_000)) for _ in range(5)]

    assert [one.code for one in child.ask_all(requests)] == [OK] * 5


def test_a_module_that_is_not_there_is_an_error_that_names_it() -> None:
    broken = Child("tests.security.nothing")

    with pytest.raises(Exception, match=r"tests\.security\.nothing"):
        ask(broken, "a")
