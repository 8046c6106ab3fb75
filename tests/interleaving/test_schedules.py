"""Runs whose steps interleave with each other, with late readings, rebuilds and kills.

A sample; ``python -m tests.interleaving`` plays many more.
"""

from pathlib import Path

import pytest

from tests.interleaving.play import play_on_postgresql, play_on_sqlite
from tests.servers import postgresql
from tests.services import POSTGRESQL

SAMPLE = 30
"""Schedules of a test."""


@pytest.mark.parametrize("share", [0, 1])
def test_whatever_meets_on_sqlite_every_run_ends_and_ends_right(tmp_path: Path, share: int) -> None:
    seeds = range(share * SAMPLE, (share + 1) * SAMPLE)

    kinds = play_on_sqlite(tmp_path, seeds)

    assert sum(number for kind, number in kinds.items() if kind.startswith("fault:")) == SAMPLE


def test_whatever_meets_on_postgresql_every_run_ends_and_ends_right() -> None:
    POSTGRESQL.require()
    with postgresql() as server:
        kinds = play_on_postgresql(server, "schedules", range(SAMPLE))

    assert sum(number for kind, number in kinds.items() if kind.startswith("fault:")) == SAMPLE
