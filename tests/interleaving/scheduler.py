"""Interleaves actors, each a thread, statement by statement, in an order that a seed decides.

An actor stops before each statement, commit, blob operation and question to the engine, until it
is its turn: only one goes on at a time. One that waits for another's lock in the database is known
by the database's own word, and passed over until it has the lock. An actor may be killed where it
stops, as a process would be: before or after a commit, too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from threading import Condition, Thread, current_thread, local
from typing import Any

import psycopg
from sqlalchemy import Engine, event

from scoring.errors import ScoringError

STUCK = 20.0
"""Seconds after which a schedule that makes no progress is a failure; none is ever waited out."""


class Killed(BaseException):
    """The process is gone: nothing in the code under test may catch this."""


class Actor(Thread):
    """One process that does one thing and ends."""

    def __init__(self, name: str, work: Callable[[], object], scheduler: "Scheduler") -> None:
        super().__init__(name=name, daemon=True)
        self.waits_at: str | None = None
        self.has_ended = False
        self.is_killed = False
        self.may_go = False
        self.backend: int | None = None
        self.error: BaseException | None = None
        self._work = work
        self._scheduler = scheduler

    def run(self) -> None:
        try:
            self._scheduler.point("begin")
            self._work()
        except (Killed, ScoringError) as error:
            self.error = error
        except BaseException as error:  # noqa: BLE001 - told by the scheduler
            self.error = error
            self._scheduler.defects.append(error)
        finally:
            self._scheduler.end(self)


class Scheduler:
    """Runs actors to their ends.

    Parameters
    ----------
    kill
        How likely an actor is killed at a step.
    check
        Called after each commit, while every actor stands still.
    monitor
        A connection that tells who waits for a lock; None for SQLite, which has one writer.
    """

    def __init__(
        self,
        seed: int,
        kill: float,
        check: Callable[[], None],
        monitor: psycopg.Connection[Any] | None,
    ) -> None:
        self.trace: list[str] = []
        self.kills = 0
        self.defects: list[BaseException] = []
        self._random = Random(seed)
        self._kill = kill
        self._check = check
        self._monitor = monitor
        self._changed = Condition()
        self._actors: list[Actor] = []
        self._writer: Actor | None = None

    def run(self, works: dict[str, Callable[[], object]]) -> None:
        """Run one actor for each name until all have ended."""
        self._actors = [Actor(name, work, self) for name, work in works.items()]
        for actor in self._actors:
            actor.start()
        while self._settled():
            ready = [actor for actor in self._actors if self._is_ready(actor)]
            if not ready:
                # All wait for locks: the database ends one of them.
                self._await_victim()
                continue
            self._step(self._random.choice(ready))
            if self.defects:
                break
        for actor in self._actors:
            self._abandon(actor)
        if self.defects:
            raise self.defects[0]

    def point(self, what: str) -> None:
        """Stop the calling actor until it is its turn; other threads pass."""
        actor = current_thread()
        if not isinstance(actor, Actor) or actor not in self._actors:
            return
        with self._changed:
            actor.waits_at = what
            self._changed.notify_all()
            self._changed.wait_for(lambda: actor.may_go)
            actor.may_go = False
            if actor.is_killed:
                raise Killed

    def end(self, actor: Actor) -> None:
        """Note that an actor has ended."""
        with self._changed:
            actor.has_ended, actor.waits_at = True, None
            if self._writer is actor:
                self._writer = None
            self._changed.notify_all()

    def free_writer(self) -> None:
        """Note that the calling actor's transaction has ended."""
        if self._writer is current_thread():
            self._writer = None

    def note_backend(self, process: int) -> None:
        """Note which process of the server works for the calling actor."""
        actor = current_thread()
        if isinstance(actor, Actor):
            actor.backend = process

    def _settled(self) -> bool:
        """Wait until every actor stands still; False once all have ended."""
        with self._changed:
            wait, waited = 0.0005, 0.0
            while running := [a for a in self._actors if not a.has_ended and a.waits_at is None]:
                if self._changed.wait_for(lambda: not self._running(), timeout=wait):
                    break
                if all(self._is_blocked(actor) for actor in running):
                    return True
                waited += wait
                assert waited < STUCK, f"stuck: {self.trace[-20:]}"
            return not all(actor.has_ended for actor in self._actors)

    def _running(self) -> list[Actor]:
        return [a for a in self._actors if not a.has_ended and a.waits_at is None]

    def _is_blocked(self, actor: Actor) -> bool:
        if self._monitor is None or actor.backend is None:
            return False
        statement = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
        row = self._monitor.execute(statement, (actor.backend,)).fetchone()
        return bool(row and row[0])

    def _await_victim(self) -> None:
        before = self._running()
        with self._changed:
            assert self._changed.wait_for(lambda: self._running() != before, timeout=STUCK), "stuck"

    def _is_ready(self, actor: Actor) -> bool:
        if actor.waits_at is None:
            return False
        wants_to_write = actor.waits_at == "BEGIN IMMEDIATE"
        return not wants_to_write or self._writer in {None, actor}

    def _step(self, actor: Actor) -> None:
        what = actor.waits_at
        if what != "begin" and self._random.random() < self._kill:
            actor.is_killed = True
            self.kills += 1
        elif what == "BEGIN IMMEDIATE":
            self._writer = actor
        self.trace.append(f"{actor.name}: {'KILLED at ' * actor.is_killed}{what}"[:160])
        self._go(actor)
        self._settled()
        # Nothing else changes what others see.
        if what == "commit":
            try:
                self._check()
            except AssertionError as error:
                self.defects.append(error)

    def _go(self, actor: Actor) -> None:
        with self._changed:
            actor.waits_at, actor.may_go = None, True
            self._changed.notify_all()

    def _abandon(self, actor: Actor) -> None:
        """Let an actor end that the schedule left in its middle."""
        while not actor.has_ended:
            actor.is_killed = True
            self._go(actor)
            actor.join(0.05)
        actor.join()


_committed = local()


@contextmanager
def on_commit(note: Callable[[], object]) -> Iterator[None]:
    """Call `note` with each commit of the calling thread in the block, once it is carried out.

    The account of what was stored is then exact, also where an actor is killed right behind it.
    """
    _committed.note = note
    try:
        yield
    finally:
        _committed.note = None


def stop_at_statements(engine: Engine, scheduler: Callable[[], Scheduler | None]) -> None:
    """Have a database's statements, commits and rollbacks stop at the scheduler of the moment."""
    dialect = engine.dialect
    is_sqlite = dialect.name == "sqlite"
    commit, rollback = dialect.do_commit, dialect.do_rollback

    def before(connection: Any, _: object, statement: str, *__: object) -> None:
        if now := scheduler():
            if not is_sqlite:
                driver = connection.connection.dbapi_connection
                now.note_backend(driver.info.backend_pid)
            now.point(" ".join(statement.split()))

    def do_commit(connection: Any) -> None:
        now = scheduler()
        if now:
            now.point("commit")
        commit(connection)
        if note := getattr(_committed, "note", None):
            note()
        if now:
            now.free_writer()
            now.point("committed")

    def do_rollback(connection: Any) -> None:
        rollback(connection)
        if now := scheduler():
            now.free_writer()

    event.listen(engine, "before_cursor_execute", before)
    dialect.do_commit = do_commit  # type: ignore[assignment, method-assign]
    dialect.do_rollback = do_rollback  # type: ignore[assignment, method-assign]
