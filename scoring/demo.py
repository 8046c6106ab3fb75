"""The demonstration: a simulated fleet, or somebody's own readings and models, from end to end.

Everything is a pure function of the plan, and every step may be repeated. So a demo that was
killed is run again from its start: what was done before is recognised and costs little.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, BinaryIO

from scoring import instants
from scoring.adapters.event_log import FolderEventLog
from scoring.adapters.files import ReadingsFile
from scoring.addresses import endpoint_host
from scoring.bootstrap import App, nonce
from scoring.errors import Conflict, EngineFailed, NotFound
from scoring.fleet import FleetReport, Refused, Training, Untrained
from scoring.handlers.ingest import IngestOutcome
from scoring.handlers.models import Naming
from scoring.queries import AnomalyFilter, DeviceCounts, StoreStatus
from scoring.runs import RunState, ScoringRun
from scoring.simulation import (
    AnomalyKind,
    InjectedAnomaly,
    SimulationSettings,
    deliveries,
    ground_truth,
    simulate,
)
from scoring.storage import storage_errors

if TYPE_CHECKING:
    from scoring.adapters.event_hub.sender import EventHubSender, SendOutcome


HUB = "demo"
"""Name of the simulated event hub."""

FEATURES = ("mean", "std", "min", "max")

Progress = Callable[[str, float, float], None]
"""Told the stage, and how much of how much of it is done."""


@dataclass(frozen=True, slots=True)
class Stage:
    """How long one stage took in all, and how much it handled."""

    name: str
    seconds: float
    count: int
    unit: str


@dataclass(frozen=True, slots=True)
class Found:
    """How many injected anomalies of one kind were found: an anomalous window in their time."""

    kind: str
    injected: int
    found: int


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo ends with.

    Attributes
    ----------
    delivered
        What was delivered in this attempt; after a kill, mostly duplicates.
    status
        What the store says, over all attempts.
    false_alarms
        Anomalous windows after the training part that no injected anomaly explains, and how many
        windows were scored there.
    """

    delivered: IngestOutcome
    status: StoreStatus
    runs: int
    predictions: int
    anomalies: int
    devices: list[DeviceCounts]
    fleet: FleetReport
    untrained: list[Untrained]
    refused: list[Refused]
    found: list[Found]
    false_alarms: tuple[int, int]
    stages: list[Stage]


@dataclass(slots=True)
class _Stages:
    """Adds up seconds and counts by stage, in order of their first use."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str, unit: str) -> Iterator[None]:
        begin = perf_counter()
        self.units.setdefault(name, unit)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - begin

    def count(self, name: str, count: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + count

    def list(self) -> list[Stage]:
        return [
            Stage(name, self.seconds[name], self.counts.get(name, 0), unit)
            for name, unit in self.units.items()
        ]


class SimulatedDemo:
    """A simulated fleet: delivered, trained on its first part, scored in several runs.

    Parameters
    ----------
    runs
        How many runs are spread over the part that follows the training; one more, before them,
        scores the training part itself.
    """

    def __init__(
        self, app: App, simulation: SimulationSettings, runs: int, progress: Progress
    ) -> None:
        self._app = app
        self._ingest = app.ingest()
        self._hub = FolderEventLog(app.folder / "events")
        self._simulation = simulation
        self._runs = runs
        self._stages = _Stages(progress)
        self._outcome = IngestOutcome()
        self._untrained: list[Untrained] = []

    def __call__(self) -> DemoReport:
        """Run the demo to its end."""
        simulation, end = self._simulation, self._simulation.end
        boundaries = self._boundaries()
        slices = deliveries(simulation, HUB)
        while True:
            with self._stages.timed("simulate", "events"):
                one = next(slices, None)
            if one is None:
                break
            self._stages.count("simulate", len(one.chunk))
            self._deliver(one.sent, one.delivered)
            self._stages.progress(
                "deliver", one.chunk.end - simulation.begin, end - simulation.begin
            )
            while boundaries and one.chunk.end >= boundaries[0]:
                self._score(instants.moment(boundaries.pop(0)))
        self._score(self._after_the_last())
        return self._report()

    def _boundaries(self) -> list[int]:
        """When runs are submitted: at the end of the training, and evenly after it."""
        begin, end = self._simulation.training_end, self._simulation.end
        return [begin + (end - begin) * i // self._runs for i in range(self._runs)]

    def _deliver(self, sent: tuple[Any, ...], delivered: tuple[Any, ...]) -> None:
        with self._stages.timed("retain", "events"):
            for batch in sent:
                self._hub.append(batch)
                self._stages.count("retain", len(batch))
        with self._stages.timed("ingest", "events"):
            for batch in delivered:
                self._outcome += self._ingest(batch)
                self._stages.count("ingest", len(batch))

    def _score(self, now: datetime) -> None:
        """Do what the timers would: repair gaps, train once, submit a run and see it through."""
        with self._stages.timed("repair", "events"):
            repaired = self._app.repair_gaps(instants.of(now))
            self._stages.count("repair", repaired.events)
        version = self._fleet(now)
        _score_pending(self._app, version, now, self._stages)

    def _fleet(self, now: datetime) -> str:
        try:
            return self._app.shelf.current()
        except NotFound:
            pass
        with self._stages.timed("train", "models"):
            trained = self._app.train(
                FEATURES,
                Training(max_windows=self._app.settings.training_windows),
                self._simulation.training_end,
                now,
                lambda done, total: self._stages.progress("train", done, total),
            )
        self._untrained = trained.untrained
        self._stages.count("train", trained.models)
        return trained.version

    def _after_the_last(self) -> datetime:
        """Give an instant when every partition is idle, and so every window final."""
        last = max(p.last_enqueued for p in self._app.queries.status().partitions)
        settings = self._app.settings
        wait = settings.idle_timeout + settings.allowed_lateness + self._app.window
        return instants.moment(last + wait)

    def _report(self) -> DemoReport:
        truth = [a for a in ground_truth(self._simulation) if a.kind != AnomalyKind.DEAD]
        anomalies = self._app.queries.anomalies(
            AnomalyFilter(since=self._simulation.training_end), limit=1_000_000
        )
        starts: dict[tuple[str, str], list[int]] = {}
        for anomaly in anomalies:
            starts.setdefault((anomaly.device, anomaly.sensor), []).append(anomaly.window_start)
        window = self._app.window
        explained = sum(
            any(_overlaps(truth_, start, window) for truth_ in truth if _same(truth_, key))
            for key, own in starts.items()
            for start in own
        )
        found = [
            Found(kind, len(injected), sum(_is_found(a, starts, window) for a in injected))
            for kind in AnomalyKind
            if (injected := [a for a in truth if a.kind == kind])
        ]
        scored = self._app.queries.count_scored(self._simulation.training_end)
        now = instants.moment(self._simulation.end)
        return _report(
            self._app, self._stages, self._outcome, now,
            untrained=self._untrained, found=found,
            false_alarms=(len(anomalies) - explained, scored),
        )  # fmt: skip


def _same(anomaly: InjectedAnomaly, key: tuple[str, str]) -> bool:
    return (anomaly.device, anomaly.sensor) == key


def _overlaps(anomaly: InjectedAnomaly, start: int, window: int) -> bool:
    return start < anomaly.end and start + window > anomaly.start


def _is_found(
    anomaly: InjectedAnomaly, starts: dict[tuple[str, str], list[int]], window: int
) -> bool:
    own = starts.get((anomaly.device, anomaly.sensor), [])
    return any(_overlaps(anomaly, start, window) for start in own)


def demo_of_files(
    app: App, source: ReadingsFile, models: Path, now: datetime, progress: Progress
) -> DemoReport:
    """Do the same on somebody's own readings and models: ingest, import, one run."""
    stages = _Stages(progress)
    with stages.timed("ingest", "events"):
        file = app.ingest_file(source, lambda done, total: progress("ingest", done, total))
        outcome = file.delivered
    stages.count("ingest", outcome.events)
    with stages.timed("import", "models"):
        imported = app.import_models(models, Naming(), None, now)
    stages.count("import", imported.models)
    if not imported.version:
        why = imported.refused[0].reason if imported.refused else "there is no file"
        message = f"no model of {models} could be imported: {why}"
        raise NotFound(message)
    _score_pending(app, imported.version, now, stages)
    return _report(app, stages, outcome, now, refused=imported.refused)


def _score_pending(app: App, version: str, now: datetime, stages: _Stages) -> None:
    """Bring runs to their end that a kill left, then submit one and see it through."""
    with stages.timed("score", "windows"):
        for run in app.interrupted_runs():
            stages.count("score", _see_through(app, run, now, stages.progress))
        if new := app.submit("demo", version, now, nonce()):
            stages.count("score", _see_through(app, new, now, stages.progress))


def _see_through(app: App, run: ScoringRun, now: datetime, progress: Progress) -> int:
    """Drive a run until it is complete; gives the number of its windows.

    Raises
    ------
    EngineFailed
        The run failed, or is incomplete; with the cause.
    """
    run = app.see_through(run, lambda: now, lambda done, total: progress("score", done, total))
    if run.state != RunState.COMPLETED:
        message = f"run {run.run_id} is {run.state}: {run.cause}"
        raise EngineFailed(message)
    return app.queries.run(run.run_id).windows


def _report(  # noqa: PLR0913 - what only one of the two demos has comes by keyword
    app: App,
    stages: _Stages,
    outcome: IngestOutcome,
    now: datetime,
    *,
    untrained: list[Untrained] | None = None,
    refused: list[Refused] | None = None,
    found: list[Found] | None = None,
    false_alarms: tuple[int, int] = (0, 0),
) -> DemoReport:
    with stages.timed("check", "models"):
        report = app.check_fleet(now)
    stages.count("check", len(app.shelf.open()))
    devices = app.queries.counts(None, by_sensor=False, limit=1_000_000)
    return DemoReport(
        delivered=outcome,
        status=app.queries.status(),
        runs=len(app.queries.runs(1_000_000)),
        predictions=sum(one.scored + one.not_scored for one in devices),
        anomalies=sum(one.anomalies for one in devices),
        devices=devices,
        fleet=report,
        untrained=untrained or [],
        refused=refused or [],
        found=found or [],
        false_alarms=false_alarms,
        stages=stages.list(),
    )


@contextmanager
def demo_folder(folder: Path, plan: dict[str, Any], *, fresh: bool) -> Iterator[None]:
    """Hold a folder for one demo of one plan.

    Raises
    ------
    Conflict
        Another demo holds it, or it has data of something else.
    StorageUnusable
        It cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "demo.lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"another demo is at work in {folder}: wait for it, or choose another --data"
            raise Conflict(message) from error
        _settle_plan(folder, plan, fresh=fresh)
        yield


def _settle_plan(folder: Path, plan: dict[str, Any], *, fresh: bool) -> None:
    """Note whose data the folder has; refuse that of another plan."""
    marker = folder / "demo.json"
    wanted = json.dumps(plan, indent=2, sort_keys=True, default=str).encode()
    if fresh and marker.exists():
        _empty(folder)
    if marker.exists():
        if marker.read_bytes() != wanted:
            message = f"{folder} has the data of a demo with other options: --fresh begins anew"
            raise Conflict(message)
        return
    if (folder / "store.db").exists():
        message = f"{folder} has data that is not a demo's: choose another --data"
        raise Conflict(message)
    with _placed(marker) as file:
        file.write(wanted)


def _empty(folder: Path) -> None:
    """Remove what a demo leaves; the marker goes last, so that this can be repeated."""
    with storage_errors(folder):
        for path in folder.glob("store.db*"):
            path.unlink()
        for name in ("blobs", "work", "events"):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        (folder / "demo.json").unlink()


@contextmanager
def _placed(path: Path) -> Iterator[BinaryIO]:
    """Write a file that is put in place when it is whole; nothing is left of one that fails."""
    writing = path.with_name(f"{path.name}.writing")
    with storage_errors(path):
        try:
            with writing.open("wb") as file:
                yield file
            writing.replace(path)
        except BaseException:
            writing.unlink(missing_ok=True)
            raise


def plan_of(simulation: SimulationSettings, runs: int, window: str | None) -> dict[str, Any]:
    """Give the options that decide what a simulated demo's data are."""
    return asdict(simulation) | {"runs": runs, "window": window}


def write_simulation(simulation: SimulationSettings, folder: Path, progress: Progress) -> int:
    """Write a simulation as ``events.ndjson``, a line an event, and ``anomalies.json``.

    Returns
    -------
    int
        How many events. Both files are put in place when they are whole.
    """
    events = 0
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _placed(folder / "events.ndjson") as file:
        for chunk in simulate(simulation):
            # A damaged body may hold anything but a line's end.
            file.writelines(body + b"\n" for body in chunk.bodies)
            events += len(chunk)
            progress("simulate", chunk.index + 1, simulation.chunks)
    truth = [asdict(anomaly) for anomaly in ground_truth(simulation)]
    with _placed(folder / "anomalies.json") as file:
        file.write(json.dumps(truth, indent=2).encode())
    return events


def send_simulation(
    app: App,
    simulation: SimulationSettings,
    now: datetime,
    progress: Progress,
    *,
    restart: bool = False,
) -> "SendOutcome":
    """Send a simulation to the event hub; what was sent before a kill is not sent again.

    Parameters
    ----------
    now
        Where the simulation ends, unless it goes on with what was sent before.
    restart
        Forget what was sent before.

    Raises
    ------
    Conflict
        What was sent before is another simulation, or went to another hub.
    """
    from scoring.adapters.event_hub.sender import EventHubSender, SendProgress  # noqa: PLC0415

    noted = app.folder / "sent.json"
    with storage_errors(noted):
        app.folder.mkdir(parents=True, exist_ok=True)
        if restart:
            noted.unlink(missing_ok=True)
    start = SendProgress.plan_in(noted).get("start")
    begun = now.replace(microsecond=0) - simulation.duration
    with suppress(ValueError):
        begun = datetime.fromisoformat(start) if start else begun
    simulation = replace(simulation, start=begun)
    total = simulation.devices * simulation.sensors * (simulation.duration / simulation.interval)
    with EventHubSender(app.hub) as sender:
        plan = {name: str(value) for name, value in asdict(simulation).items()}
        plan |= _destination(app, sender)
        sent = SendProgress(noted, plan)
        # Before the first event is: who goes on sends the same events.
        sent.write()
        return sender.send(
            (zip(c.device.tolist(), c.bodies, strict=True) for c in simulate(simulation)),
            sent,
            lambda sent: progress("send", sent, total),
        )


def _destination(app: App, sender: "EventHubSender") -> dict[str, str]:
    """Say which hub it is; one that was made anew is another one."""
    settings, facts = app.settings, sender.facts
    endpoint = settings.event_hub_namespace or endpoint_host(settings.event_hub_connection)
    return {
        "event hub": settings.event_hub,
        "endpoint": endpoint,
        "created": facts.created_at,
        "hub's partitions": " ".join(facts.partitions),
    }
