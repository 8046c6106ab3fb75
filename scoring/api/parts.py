"""The parts of the system, built once although requests come in many threads."""

from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from threading import Lock
from typing import Any, Protocol, runtime_checkable

from scoring import bootstrap
from scoring.handlers.fleets import FleetShelf
from scoring.handlers.logs import RunLogs
from scoring.handlers.models import CheckFleet
from scoring.handlers.repair import ReplayRejects
from scoring.handlers.submit import SubmitRun
from scoring.handlers.watch import WatchRuns
from scoring.ports import Blobs, Engine
from scoring.queries import Queries


@runtime_checkable
class Observed(Protocol):
    """An app that notes what requests change, as that of the Functions host does."""

    def request(self, event: str, **facts: Any) -> AbstractContextManager[dict[str, Any]]:
        """Note a request when it has ended, with the facts that it adds."""


class Parts:
    """Gives parts of an app to requests.

    The app builds a part when it is first asked for, and two threads that ask at once would build
    two: two engines, two pools of connections. A part that could not be built is tried again.
    """

    def __init__(self, app: bootstrap.App) -> None:
        self._app = app
        self._lock = Lock()

    def _part(self, name: str) -> Any:
        with self._lock:
            return getattr(self._app, name)

    @property
    def queries(self) -> Queries:
        """Reads for people."""
        queries: Queries = self._part("queries")
        return queries

    @property
    def submit(self) -> SubmitRun:
        """The submit handler."""
        submit: SubmitRun = self._part("submit")
        return submit

    @property
    def watch(self) -> WatchRuns:
        """The watch handler."""
        watch: WatchRuns = self._part("watch")
        return watch

    @property
    def replay_rejects(self) -> ReplayRejects:
        """The replay handler."""
        replay: ReplayRejects = self._part("replay_rejects")
        return replay

    @property
    def check_fleet(self) -> CheckFleet:
        """The fleet check handler."""
        check: CheckFleet = self._part("check_fleet")
        return check

    @property
    def shelf(self) -> FleetShelf:
        """The published fleets."""
        shelf: FleetShelf = self._part("shelf")
        return shelf

    @property
    def blobs(self) -> Blobs:
        """Where files are."""
        blobs: Blobs = self._part("blobs")
        return blobs

    @property
    def engine(self) -> Engine:
        """What scores."""
        engine: Engine = self._part("engine")
        return engine

    def request(self, event: str, **facts: Any) -> AbstractContextManager[dict[str, Any]]:
        """Note a request that changes something, where the app notes such."""
        app = self._app
        return app.request(event, **facts) if isinstance(app, Observed) else nullcontext(facts)

    @property
    def logs(self) -> RunLogs:
        """Logs of runs that failed."""
        return RunLogs(self.blobs)

    def now(self) -> datetime:
        """Read the clock."""
        return bootstrap.now()

    def nonce(self) -> str:
        """Six hexadecimal digits for a run's id."""
        return bootstrap.nonce()
