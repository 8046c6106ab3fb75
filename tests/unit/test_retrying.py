"""What is transient is tried again, a few times; all else is told at once."""

import logging
from collections.abc import Iterator

import pytest
import stamina

from scoring.errors import Conflict, StorageUnusable, Transient
from scoring.retrying import ATTEMPTS, retried


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Try again at once, as often as ever."""
    with stamina.set_testing(True, attempts=ATTEMPTS):
        yield


class Work:
    """A unit of work that fails for a while."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.done = 0

    @retried
    def __call__(self, secret: str) -> str:
        self.done += 1
        if self.failures:
            raise self.failures.pop(0)
        return f"{secret} done"


def test_work_that_succeeds_is_done_once() -> None:
    work = Work()

    assert (work("a"), work.done) == ("a done", 1)


def test_what_is_transient_is_tried_again_until_it_succeeds() -> None:
    work = Work(*[Transient("busy")] * (ATTEMPTS - 1))

    assert (work("a"), work.done) == ("a done", ATTEMPTS)


def test_after_some_attempts_the_last_failure_is_told() -> None:
    work = Work(*[Transient(f"busy {number}") for number in range(1, 2 * ATTEMPTS)])

    with pytest.raises(Transient, match=f"busy {ATTEMPTS}"):
        work("a")

    assert work.done == ATTEMPTS


@pytest.mark.parametrize(
    "failure", [Conflict("held"), StorageUnusable("full"), ValueError("wrong"), KeyboardInterrupt()]
)
def test_what_would_fail_again_is_told_at_once(failure: BaseException) -> None:
    work = Work(failure)

    with pytest.raises(type(failure)):
        work("a")

    assert work.done == 1


def test_each_retry_is_logged_with_its_cause_and_not_with_what_was_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        Work(Transient("busy"), Transient("locked"))("a secret reading")

    logged = [vars(record) for record in caplog.records]
    assert [facts["message"] for facts in logged] == ["stamina.retry_scheduled"] * 2
    assert ["busy" in str(logged[0]), "locked" in str(logged[1])] == [True, True]
    assert "secret" not in str(logged)
