"""Play schedules: who meets whom, on which database, by a seed that plays the same one again."""

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from unittest.mock import patch

import psycopg
import stamina
from sqlalchemy import event

from scoring.adapters.sql.database import Database
from scoring.adapters.sql.facts import CLAIMS
from scoring.adapters.sql.migrations import migrate
from scoring.adapters.sql.schema import facts, metadata
from scoring.handlers import ending, submit
from tests.interleaving.incoming import Incoming
from tests.interleaving.scheduler import Scheduler, stop_at_statements
from tests.interleaving.world import World
from tests.servers import PostgreSql, postgresql
from tests.simulated.stream import hurry

ACTORS: dict[str, Callable[[World], object]] = {
    "submit": World.submit,
    "watch": World.watch,
    "cancel": World.cancel,
    "index": World.index,
    "late": World.late,
    "rescore": World.rescore,
    "rebuild": World.rebuild,
}
INCOMING: dict[str, Callable[[Incoming], object]] = {
    "host": Incoming.host,
    "repair": Incoming.repair,
    "submit": Incoming.submit,
    "recreate": Incoming.recreate,
    "expire": Incoming.expire,
    "rebuild": Incoming.rebuild,
}
INCOMING_MIXES = (
    *(("host", "host"), ("host", "host", "repair"), ("host", "host", "submit")),
    *(("host", "repair", "submit"), ("host", "recreate"), ("host", "host", "recreate")),
    *(("host", "recreate", "repair"), ("host", "recreate", "submit"), ("repair", "recreate")),
    *(("host", "expire", "repair"), ("host", "expire", "recreate"), ("submit", "repair")),
    *(("host", "rebuild"), ("host", "host", "rebuild"), ("host", "rebuild", "submit")),
    *(("rebuild", "rebuild", "host"), ("rebuild", "recreate", "host")),
    *(("rebuild", "repair", "host"), ("recreate", "recreate", "host")),
)
MIXES = (
    *(("submit", "cancel"), ("submit", "cancel", "watch"), ("submit", "submit", "cancel")),
    *(("watch", "cancel"), ("watch", "cancel", "index"), ("watch", "watch", "cancel")),
    *(("submit", "late"), ("submit", "late", "watch"), ("watch", "late", "submit")),
    *(("submit", "late", "late"), ("late", "submit", "late")),
    *(("submit", "submit"), ("submit", "watch"), ("watch", "watch"), ("watch", "index")),
    *(("submit", "rescore", "watch"), ("rescore", "cancel", "watch")),
    *(("submit", "rebuild"), ("submit", "rebuild", "cancel"), ("late", "rebuild")),
)
"""Who meets whom."""


@dataclass
class Arena:
    """A database whose statements stop at the scheduler of the moment.

    Attributes
    ----------
    monitor
        As of `Scheduler`.
    """

    database: Database
    monitor: psycopg.Connection[Any] | None = None
    scheduler: Scheduler | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        stop_at_statements(self.database.engine, lambda: self.scheduler)

    def touched(self, what: str) -> None:
        """Stop the calling actor at what is not the database."""
        if self.scheduler:
            self.scheduler.point(what)


def play(arena: Arena, seed: int) -> list[str]:
    """Play one schedule; gives what it was made of. A failure's notes tell all of its steps."""
    random = Random(seed)
    mix = random.choice(MIXES)
    world = World(arena.database, random, arena.touched)
    kill = random.choice([0.0, 0.0, 0.02])
    scheduler = Scheduler(random.randrange(2**32), kill, world.check_step, arena.monitor)
    with (
        patch.object(submit, "CLAIM_LIMIT", world.chunk),
        patch.object(ending, "CLAIM_LIMIT", world.chunk),
    ):
        _play(arena, world, scheduler, mix, seed)
    kinds = [" + ".join(sorted(mix)), f"fault: {world.fault}"]
    return kinds + ["an actor killed"] * bool(scheduler.kills)


def play_incoming(arena: Arena, seed: int) -> list[str]:
    """Play one schedule of what comes in, as `play` does one of runs."""
    random = Random(seed)
    mix = random.choice(INCOMING_MIXES)
    world = Incoming(arena.database, random, arena.touched)
    kill = random.choice([0.0, 0.0, 0.01])
    scheduler = Scheduler(random.randrange(2**32), kill, world.check_step, arena.monitor)
    limits = {"REBUILD_WINDOWS": random.choice([1, 50]), "REBUILD_SEGMENTS": random.choice([1, 9])}
    with (
        patch.multiple("scoring.handlers.repair", **limits),  # type: ignore[call-overload]
        _told(arena, world, scheduler, mix, seed),
    ):
        before = (Incoming.tick, Incoming.tick, Incoming.host, Incoming.repair, Incoming.submit)
        for step in random.choices(before, k=random.randrange(8)):
            step(world)
        _meet(arena, world, scheduler, {f"{n}{i}": INCOMING[n] for i, n in enumerate(mix)})
    kinds = [f"incoming: {' + '.join(sorted(mix))}", f"fault: {world.fault}"]
    return kinds + ["an actor killed"] * bool(scheduler.kills)


def _play(
    arena: Arena, world: World, scheduler: Scheduler, mix: tuple[str, ...], seed: int
) -> None:
    random = world.random
    with _told(arena, world, scheduler, mix, seed):
        # Some begin in the middle: with a run that the engine has already.
        if mix[0] != "submit" or random.random() < 0.3:
            world.submit()
            for _ in range(random.randrange(4)):
                world.watch(1)
        _meet(arena, world, scheduler, {f"{n}{i}": ACTORS[n] for i, n in enumerate(mix)})


AnyWorld = TypeVar("AnyWorld", World, Incoming)


def _meet(
    arena: Arena,
    world: AnyWorld,
    scheduler: Scheduler,
    actors: dict[str, Callable[[AnyWorld], object]],
) -> None:
    """Let actors meet, and hold afterwards what must hold."""
    arena.scheduler = scheduler
    scheduler.run({name: partial(work, world) for name, work in actors.items()})
    arena.scheduler = None
    world.check_step()
    world.drain()
    world.check_end()


@contextmanager
def _told(
    arena: Arena,
    world: World | Incoming,
    scheduler: Scheduler,
    mix: tuple[str, ...],
    seed: int,
) -> Iterator[None]:
    """Add to a failure what the schedule was made of, and all of its steps."""
    try:
        yield
    except BaseException as error:
        about = f"{' + '.join(mix)}; fault: {world.fault}; {scheduler.kills} kills"
        error.add_note("\n".join([f"seed {seed}: {about}", *scheduler.trace]))
        raise
    finally:
        arena.scheduler = None


Player = Callable[[Arena, int], list[str]]


def play_on_sqlite(folder: Path, seeds: range, player: Player = play) -> Counter[str]:
    """Play one schedule for each seed, each on a database of its own."""
    kinds: Counter[str] = Counter()
    folder.mkdir(exist_ok=True)
    empty = folder / "empty.db"
    database = Database.file(empty)
    migrate(database)
    # The last connection that closes empties the write-ahead log.
    database.close()
    with _at_once():
        for seed in seeds:
            path = folder / f"{seed}.db"
            shutil.copy(empty, path)
            database = Database.file(path)
            event.listen(database.engine, "connect", hurry)
            try:
                kinds.update(player(Arena(database), seed))
            finally:
                database.close()
            path.unlink()
    return kinds


def play_on_postgresql(
    server: PostgreSql, name: str, seeds: range, player: Player = play
) -> Counter[str]:
    """Play one schedule for each seed, all on one database, which is emptied before each."""
    kinds: Counter[str] = Counter()
    server.execute(f"CREATE DATABASE {name}")
    # Of those that wait for each other in a ring one is ended at once.
    server.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '10ms'")
    database = Database(server.url(name))
    migrate(database)
    with _at_once(), psycopg.connect(server.url(name), autocommit=True) as monitor:
        arena = Arena(database, monitor)
        for seed in seeds:
            _empty(database)
            kinds.update(player(arena, seed))
    database.close()
    return kinds


def play_share(engine: str, seeds: range, player: Player = play) -> tuple[Counter[str], str]:
    """Play schedules; gives how many there were of each kind, and what failed."""
    logging.disable(logging.CRITICAL)
    try:
        if engine == "sqlite":
            with tempfile.TemporaryDirectory() as folder:
                return play_on_sqlite(Path(folder), seeds, player), ""
        with postgresql() as server:
            return play_on_postgresql(server, "schedules", seeds, player), ""
    except BaseException as error:  # noqa: BLE001 - told by the caller
        notes = "\n".join(getattr(error, "__notes__", []))
        return Counter(), f"on {engine}: {type(error).__name__}: {error}\n{notes}"


@contextmanager
def _at_once() -> Iterator[None]:
    """Retry without pauses: time does not pass in a schedule."""
    with stamina.set_testing(True, attempts=5):
        yield


def _empty(database: Database) -> None:
    names = ", ".join(table.name for table in metadata.sorted_tables)
    with database.write() as connection:
        connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY")
        connection.execute(facts.insert().values(name=CLAIMS, value=""))
