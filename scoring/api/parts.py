"""The parts of the system, as requests need them."""

from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from scoring import bootstrap
from scoring.handlers.fleets import FleetShelf
from scoring.handlers.hub import HubProgress
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
    """Gives parts of an app to requests."""

    def __init__(self, app: bootstrap.App) -> None:
        self._app = app

    @property
    def queries(self) -> Queries:
        """Reads for people."""
        return self._app.queries

    @property
    def submit(self) -> SubmitRun:
        """The submit handler."""
        return self._app.submit

    @property
    def hub_progress(self) -> HubProgress:
        """How far ingest is behind the event hub."""
        return self._app.hub_progress

    @property
    def watch(self) -> WatchRuns:
        """The watch handler."""
        return self._app.watch

    @property
    def replay_rejects(self) -> ReplayRejects:
        """The replay handler."""
        return self._app.replay_rejects

    @property
    def check_fleet(self) -> CheckFleet:
        """The fleet check handler."""
        return self._app.check_fleet

    @property
    def shelf(self) -> FleetShelf:
        """The published fleets."""
        return self._app.shelf

    @property
    def blobs(self) -> Blobs:
        """Where files are."""
        return self._app.blobs

    @property
    def has_hub(self) -> bool:
        """Whether the settings name an event hub."""
        return bool(self._app.settings.event_hub)

    def check_hub(self) -> None:
        """Raise what is wrong with the event hub."""
        self._app.hub.check()

    @property
    def engine(self) -> Engine:
        """What scores."""
        return self._app.engine

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
