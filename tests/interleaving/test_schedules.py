"""Runs, and what comes in, whose steps interleave, with rebuilds, hubs created again, and kills.

A sample; ``python -m tests.interleaving`` plays many more.
"""

from pathlib import Path

import pytest

from tests.interleaving.play import play_incoming, play_on_postgresql, play_on_sqlite
from tests.servers import postgresql
from tests.services import POSTGRESQL

SAMPLE = 15
"""Schedules of a test."""
INCOMING = 5
"""Schedules of a test of what comes in, which are longer."""


@pytest.mark.parametrize("share", [0, 1])
def test_whatever_meets_on_sqlite_every_run_ends_and_ends_right(tmp_path: Path, share: int) -> None:
    seeds = range(share * SAMPLE, (share + 1) * SAMPLE)

    kinds = play_on_sqlite(tmp_path, seeds)

    assert sum(number for kind, number in kinds.items() if kind.startswith("fault:")) == SAMPLE


def test_whatever_comes_in_on_sqlite_is_counted_once_or_missing(tmp_path: Path) -> None:
    kinds = play_on_sqlite(tmp_path, range(INCOMING), play_incoming)

    assert sum(number for kind, number in kinds.items() if kind.startswith("incoming:")) == INCOMING


def test_whatever_meets_on_postgresql_every_run_ends_and_ends_right() -> None:
    POSTGRESQL.require()
    with postgresql() as server:
        kinds = play_on_postgresql(server, "schedules", range(SAMPLE // 2))

    played = sum(number for kind, number in kinds.items() if kind.startswith("fault:"))
    assert played == SAMPLE // 2


def test_whatever_comes_in_on_postgresql_is_counted_once_or_missing() -> None:
    POSTGRESQL.require()
    with postgresql() as server:
        kinds = play_on_postgresql(server, "incoming", range(INCOMING), play_incoming)

    assert sum(number for kind, number in kinds.items() if kind.startswith("incoming:")) == INCOMING
