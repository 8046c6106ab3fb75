"""The composition root: settings to adapters to handlers, built once, on first use."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from os import cpu_count
from pathlib import Path
from threading import Event, RLock
from typing import TYPE_CHECKING, Generic, Self, TypeVar, overload

from scoring import instants
from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.environment import environment
from scoring.adapters.event_log import FolderEventLog
from scoring.adapters.files import ReadingsFile
from scoring.adapters.local_engine import LocalEngine, ParallelSettings
from scoring.adapters.sql import isolation
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.engines import Pool
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.migrations import migrate
from scoring.adapters.sql.queries import SqlQueries
from scoring.adapters.sql.rebuild import SqlRebuildStore, settle_window
from scoring.adapters.sql.runs import SqlRunStore
from scoring.errors import Misconfigured, ScoringError
from scoring.handlers.ending import EndRuns
from scoring.handlers.fleets import FleetShelf
from scoring.handlers.hub import HubProgress
from scoring.handlers.index import IndexPredictions
from scoring.handlers.ingest import Ingest, IngestOutcome
from scoring.handlers.logs import RunLogs
from scoring.handlers.models import CheckFleet, ImportModels, TrainFleet
from scoring.handlers.repair import RebuildWindows, RepairGaps, ReplayRejects
from scoring.handlers.submit import SubmitRun
from scoring.handlers.watch import WatchRuns
from scoring.horizon import HorizonRules
from scoring.ports import Blobs, Engine, EventLog
from scoring.readings import EventBatch, FieldNames, Partition, ReadingDecoder
from scoring.runs import RunLimits, ScoringRun, Tolerance
from scoring.settings import DEFAULT_WINDOW, PREFIX, Settings, too_young
from scoring.storage import storage_errors
from scoring.windows import Windowing

POLL = 0.05
"""Seconds between two looks at a run of this process."""

if TYPE_CHECKING:
    from scoring.adapters.azure_ml.publishing import Published
    from scoring.adapters.azure_ml.resources import Cluster
    from scoring.adapters.azure_ml.workspace import Workspace
    from scoring.adapters.event_hub.connection import EventHub


def settings_from_environment(**overrides: str) -> Settings:
    """Load the settings from the environment; `overrides` are by variable and win."""
    return Settings.load(environment() | overrides)


def now() -> datetime:
    """Read the clock: here and nowhere further in."""
    return datetime.now(UTC)


def nonce() -> str:
    """Six hexadecimal digits that keep two runs of one second apart."""
    return secrets.token_hex(3)


T = TypeVar("T")


class Part(Generic[T]):
    """A part of an app, built when it is first asked for: once, however many threads ask at once.

    Each part of each app has a lock of its own, so that one that hangs in being built holds up
    only what needs it. Parts need one another in one direction: their locks are always taken in the
    same order. What could not be built is tried again by whoever asks next.
    """

    def __init__(self, build: Callable[["App"], T]) -> None:
        self._build = build
        self._name = build.__name__
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, app: None, owner: type["App"]) -> Self: ...

    @overload
    def __get__(self, app: "App", owner: type["App"]) -> T: ...

    def __get__(self, app: "App | None", owner: type["App"]) -> Self | T:
        if app is None:
            return self
        # Once it is there it is found without asking here.
        built = vars(app)
        with app._locks.setdefault(self._name, RLock()):
            if self._name in built:
                found: T = built[self._name]
            else:
                found = built[self._name] = self._build(app)
            return found


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """The outcome of ingesting a file.

    Attributes
    ----------
    is_known
        It was ingested before, or what it has grown from.
    replayed, stay
        What was rejected before: how many rejects could be read now, and how many could not.
    """

    delivered: IngestOutcome
    is_known: bool
    replayed: int = 0
    stay: int = 0


class App:
    """The embedded system: SQLite, a folder, a process pool.

    Its parts are built when they are first asked for, from any thread. A context manager: it stops
    the engine's processes and closes the database.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.data
        self._locks: dict[str, RLock] = {}

    @Part
    def database(self) -> Database:
        """The database, brought to the newest schema."""
        if url := self.settings.database:
            size, overflow = self.settings.database_pool_size, self.settings.database_max_overflow
            database = Database(url, Pool(size, overflow, self.settings.database_pooler))
        else:
            with storage_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            database = Database.file(self.folder / "store.db")
        try:
            migrate(database)
            isolation.check(database)
        except ScoringError:
            database.close()
            raise
        return database

    @Part
    def window(self) -> int:
        """Size of the store's windows, microseconds."""
        size = settle_window(self.database, self.settings.window, DEFAULT_WINDOW)
        if problems := too_young(self.settings, size):
            raise Misconfigured(problems)
        return size

    @Part
    def blobs(self) -> Blobs:
        """Raw segments, runs, predictions and fleets."""
        if not self.settings.storage:
            return FolderBlobs(self.folder / "blobs")
        from scoring.adapters.azure_blobs import AzureBlobs  # noqa: PLC0415 - heavy

        return AzureBlobs.connect(self.settings.storage, self.settings.container)

    @Part
    def hub(self) -> "EventHub":
        """The event hub; raises `Misconfigured` where the settings name none."""
        from scoring.adapters.event_hub.connection import EventHub  # noqa: PLC0415 - heavy

        settings = self.settings
        return EventHub(
            name=settings.event_hub,
            connection_string=settings.event_hub_connection,
            namespace=settings.event_hub_namespace,
        )

    @Part
    def event_log(self) -> EventLog:
        """What the hub retains, the embedded one where the settings name no other."""
        if not self.settings.event_hub:
            return FolderEventLog(self.folder / "events")
        from scoring.adapters.event_hub.log import EventHubLog  # noqa: PLC0415 - heavy

        return EventHubLog(self.hub, self.settings.event_hub_repair_group)

    def consume(self, stop: Event) -> None:
        """Ingest what the event hub delivers, outside Functions, until `stop` is set."""
        from scoring.adapters.event_hub import consumer  # noqa: PLC0415 - heavy

        settings = self.settings
        checkpoints = None
        if settings.storage:
            from scoring.adapters.azure_blobs import AzureBlobs, spelled_out  # noqa: PLC0415 - heavy

            if isinstance(self.blobs, AzureBlobs):
                # The SDK's checkpoints need it, and do not create it.
                self.blobs.make_container()
            account = spelled_out(settings.storage)
            checkpoints = consumer.blob_checkpoints(account, settings.container)
        consumer.EventHubConsumer(
            hub=self.hub,
            ingest=self.ingest_events,
            position=partial(consumer.high_water_mark, self.ingest_store),
            group=settings.event_hub_consumer_group,
            checkpoints=checkpoints,
        )(stop)

    @Part
    def workspace(self) -> "Workspace":
        """The Azure ML workspace; raises `Misconfigured` where the settings name none."""
        from scoring.adapters.azure_ml.workspace import Workspace  # noqa: PLC0415 - heavy

        needed = ("azure_ml_workspace", "storage")
        if missing := [name for name in needed if not getattr(self.settings, name)]:
            raise Misconfigured([f"{PREFIX}{name.upper()} is missing" for name in missing])
        return Workspace(self.settings.azure_ml_workspace)

    @Part
    def engine(self) -> Engine:
        """What scores: Azure ML, or the process pool."""
        settings = self.settings
        if settings.engine == "azure-ml":
            from scoring.adapters.azure_ml.engine import AzureMLEngine  # noqa: PLC0415 - heavy

            return AzureMLEngine(self.workspace, self.blobs)
        parallel = ParallelSettings(
            processes=self.processes,
            mini_batch_size=settings.mini_batch_size,
            max_retries=settings.max_retries,
            timeout=settings.mini_batch_timeout / 1e6,
            error_threshold=settings.error_threshold,
            mini_batch_error_threshold=settings.mini_batch_error_threshold,
        )
        return LocalEngine(self.blobs, self.folder / "work", parallel)

    def publish(
        self, cluster: "Cluster", nodes: int, image: str, endpoint: str, *, dry_run: bool
    ) -> Iterator["Published"]:
        """Publish the pipeline to Azure ML, with the current fleet if there is one.

        Parameters
        ----------
        nodes
            Nodes a run takes.
        image
            Of the environment, in a registry; empty builds it.
        endpoint
            Name of a batch endpoint in front of the pipeline; empty for none.
        """
        from scoring.adapters.azure_ml.components import JobRules  # noqa: PLC0415 - heavy
        from scoring.adapters.azure_ml.publishing import Plan, publish  # noqa: PLC0415 - heavy
        from scoring.adapters.azure_ml.resources import StorageAccount  # noqa: PLC0415 - heavy

        settings, workspace = self.settings, self.workspace
        rules = JobRules(
            nodes=nodes,
            mini_batch_size=settings.mini_batch_size,
            max_retries=settings.max_retries,
            timeout=max(1, settings.mini_batch_timeout // instants.SECOND),
            error_threshold=settings.error_threshold,
            mini_batch_error_threshold=settings.mini_batch_error_threshold,
            image=image,
        )
        plan = Plan(
            storage=StorageAccount.of(settings.storage, settings.container),
            cluster=cluster,
            rules=rules,
            endpoint=endpoint,
        )
        return publish(workspace, self.blobs, plan, dry_run=dry_run)

    @property
    def processes(self) -> int:
        """Worker processes of scoring and training."""
        return self.settings.processes or cpu_count() or 1

    @Part
    def shelf(self) -> FleetShelf:
        """The published fleets."""
        return FleetShelf(self.blobs, self.folder / "work" / "fleets")

    @Part
    def queries(self) -> SqlQueries:
        """Reads for people."""
        return SqlQueries(self.database)

    @Part
    def ingest_store(self) -> SqlIngestStore:
        """The ledger, the window partials and the rejects."""
        return SqlIngestStore(self.database)

    def ingest(self, fields: FieldNames | None = None) -> Ingest:
        """Build the ingest handler, for other field names than the settings' if given."""
        settings = self.settings
        return Ingest(
            store=self.ingest_store,
            blobs=self.blobs,
            decoder=ReadingDecoder(fields or settings.field_names, settings.plausible),
            windowing=Windowing(self.window, settings.allowed_lateness, settings.watermark_lag),
            raw_segments=settings.raw_segments,
            log=self.event_log,
        )

    @Part
    def hub_progress(self) -> HubProgress:
        """How far ingest is behind the event hub."""
        rules = HorizonRules(self.settings.idle_timeout, self.settings.stall_timeout)
        return HubProgress(self.ingest_store, self.event_log, rules)

    def ingest_events(self, batch: EventBatch) -> IngestOutcome:
        """Apply an event batch."""
        return self.ingest()(batch)

    def ingest_file(
        self,
        source: ReadingsFile,
        progress: Callable[[float, float], None],
        batch_size: int = 1000,
        order: Sequence[str] | None = None,
    ) -> FileOutcome:
        """Ingest a file to its end; the same content again counts nothing twice.

        What was rejected of a file that is known is read again, with the options of this time.

        Parameters
        ----------
        progress
            Told how many of how many bytes are read.
        order
            Deliver partitions one after the other, in this order.
        """
        store = self.ingest_store
        is_known = source.recognise(store.files(), self.settings.field_names)
        source.deal_as(store.note_file(source.hub, source.note))
        source.applied = store.applied(source.hub)
        handle, outcome = self.ingest(source.field_names), IngestOutcome()
        again, replayed, stay = ReplayRejects(store, handle), 0, 0
        for batch in source.batches(batch_size, order=order):
            if is_known:
                # Before its events are delivered: what is new in it needs no replay.
                done, left = again.of_events(batch, by_stored_bodies=source.has_elements)
                replayed, stay = replayed + done, stay + left
            outcome += handle(batch)
            progress(source.progress.read, source.progress.total)
        for partition in source.partitions:
            store.end_partition(Partition(source.hub, partition))
        return FileOutcome(outcome, is_known, replayed, stay)

    @Part
    def train(self) -> TrainFleet:
        """The training handler."""
        return TrainFleet(self.queries, self.shelf, self.processes)

    @Part
    def import_models(self) -> ImportModels:
        """The import handler."""
        return ImportModels(self.queries, self.shelf)

    @Part
    def check_fleet(self) -> CheckFleet:
        """The fleet check handler."""
        return CheckFleet(self.queries, self.shelf)

    @Part
    def submit(self) -> SubmitRun:
        """The submit handler."""
        # The size of the windows is settled before any is claimed.
        _ = self.window
        return SubmitRun(
            store=SqlRunStore(self.database),
            blobs=self.blobs,
            engine=self.engine,
            hub=self.hub_progress,
            allowed_lateness=self.settings.allowed_lateness,
            part_rows=self.settings.part_rows,
            limits=RunLimits(self.settings.max_active_runs, self.settings.max_run_windows),
        )

    @Part
    def watch(self) -> WatchRuns:
        """The watch handler."""
        return self.watcher()

    def watcher(self) -> WatchRuns:
        """Build the watch handler."""
        settings = self.settings
        return WatchRuns(
            store=self.submit.store,
            blobs=self.blobs,
            engine=self.engine,
            submit=self.submit,
            ending=self.ender(),
            deadline=settings.run_deadline,
            queue_limit=settings.queue_limit,
        )

    def ender(self) -> EndRuns:
        """Build what ends runs."""
        settings, store = self.settings, self.submit.store
        return EndRuns(
            store=store,
            blobs=self.blobs,
            engine=self.engine,
            index=IndexPredictions(store, self.blobs),
            tolerance=Tolerance(
                parts=settings.error_threshold,
                mini_batches=settings.mini_batch_error_threshold,
                mini_batch_size=settings.mini_batch_size,
            ),
        )

    @property
    def logs(self) -> RunLogs:
        """Logs of runs that failed."""
        return RunLogs(self.blobs)

    def interrupted_runs(self) -> Iterator[ScoringRun]:
        """Return the active runs that nobody is at work on: neither this engine nor another's."""
        for run in self.submit.store.active_runs():
            report = self.engine.poll(run.run_id)
            if report is None or report.has_ended:
                yield run

    def see_through(
        self,
        run: ScoringRun,
        clock: Callable[[], datetime],
        progress: Callable[[float, float], None],
    ) -> ScoringRun:
        """Drive a run, with the engine of this process, until it can come no further by itself.

        Parameters
        ----------
        progress
            Told how many of how many prediction parts are indexed.

        Returns
        -------
        ScoringRun
            As it ended.
        """
        while not run.state.is_terminal:
            run = self.watch.watch(run, clock(), nonce())
            summary = self.queries.run(run.run_id)
            progress(summary.indexed_parts, summary.parts or 1)
            if not run.state.is_terminal:
                self.engine.wait(run.run_id, timeout=POLL)
        return run

    @Part
    def repair_gaps(self) -> RepairGaps:
        """The repair handler."""
        return RepairGaps(self.ingest_store, self.event_log, self.ingest(), self.hub_progress)

    @Part
    def replay_rejects(self) -> ReplayRejects:
        """The replay handler."""
        return ReplayRejects(self.ingest_store, self.ingest())

    @Part
    def rebuild_windows(self) -> RebuildWindows:
        """The rebuild handler."""
        return RebuildWindows(SqlRebuildStore(self.database), self.blobs)

    def __enter__(self) -> "App":
        """Give the app itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was opened."""
        if isinstance(engine := self.__dict__.get("engine"), LocalEngine):
            engine.close()
        if "database" in self.__dict__:
            self.database.close()


def open_app(data: Path | None = None, **overrides: str) -> App:
    """Build an app from the environment, for another data folder or setting if given."""
    if data is not None:
        overrides["SCORING_DATA"] = str(data)
    return App(settings_from_environment(**overrides))
