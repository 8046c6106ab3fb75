"""Play many schedules, and say how many of each kind: ``python -m tests.interleaving``.

A schedule that fails is printed step by step, with the seed that plays it again.
"""

import argparse
import multiprocessing
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from time import perf_counter

from tests.interleaving.play import play, play_incoming, play_share
from tests.services import POSTGRESQL

CHUNK = 50
"""Schedules that a process plays before it says how they went."""


def main() -> int:
    """Play what the command line asks for; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.interleaving", description=__doc__)
    parser.add_argument("--sqlite", type=int, default=1000, help="schedules on SQLite")
    parser.add_argument("--postgresql", type=int, default=500, help="schedules on PostgreSQL")
    parser.add_argument("--incoming-sqlite", type=int, default=400, help="of what comes in")
    parser.add_argument("--incoming-postgresql", type=int, default=200, help="of what comes in")
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    chosen = parser.parse_args()
    if chosen.postgresql + chosen.incoming_postgresql and not POSTGRESQL.is_here():
        sys.stderr.write("PostgreSQL is not installed: `make services` installs it\n")
        return 1
    begin = perf_counter()
    shares = (
        *(("postgresql", chosen.postgresql, play), ("sqlite", chosen.sqlite, play)),
        ("postgresql", chosen.incoming_postgresql, play_incoming),
        ("sqlite", chosen.incoming_sqlite, play_incoming),
    )
    work = [
        (engine, range(first, min(first + CHUNK, chosen.seed + number)), player)
        for engine, number, player in shares
        for first in range(chosen.seed, chosen.seed + number, CHUNK)
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        played = list(pool.map(play_share, *zip(*work, strict=True)))
    kinds = sum((counted for counted, _ in played), Counter[str]())
    failures = [failure for _, failure in played if failure]
    lines = [f"{number:6} {kind}" for kind, number in sorted(kinds.items())]
    seconds = perf_counter() - begin
    total = sum(number for _, number, _ in shares)
    print(*lines, *failures, sep="\n")  # noqa: T201 - what the program is for
    print(f"{total} schedules in {seconds:.0f} s, {len(failures)} failed")  # noqa: T201
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
