"""How quickly this machine scores: the cluster's entry script, timed in one process a core.

The fleet is synthetic: one-class SVMs over standardised windows of noise. It stands in a temporary
folder, as do the parts and predictions; the processes work at the same time, as they do on a node.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from scoring.fleet import Model

FEATURES = ("mean", "std", "min", "max")
"""What `fleet train` takes by default."""

TRAINING_WINDOWS = 300
"""Of each model; with `NU` they give it some 30 support vectors."""

NU = 0.05

_DISTINCT = 20
"""Models that are really trained; the fleet repeats them under other names."""

_MOST_MODELS = 20_000
_MOST_WINDOWS = 2_000
"""Of a model in a part; with more of them, rows cost the same."""

_PARTS = 4
_PATIENCE = 120.0
"""Seconds that a process may take to start."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured.

    Attributes
    ----------
    rows_per_second
        Of one process, while one works on each core; the mean over them.
    processes
        Which worked at the same time.
    models, support_vectors
        Of the synthetic fleet; support vectors of a model on average.
    windows_per_model
        Rows that a model has in a part.
    fixed_seconds_per_part
        What a part of one sensor takes.
    opening_seconds
        From a process's start to its first part; the slowest one.
    """

    rows_per_second: float
    processes: int
    models: int
    support_vectors: float
    windows_per_model: int
    fixed_seconds_per_part: float
    opening_seconds: float


def measure(processes: int, windows: int, part_rows: int, seconds: float = 3.0) -> Measured:
    """Time the scoring of parts on this machine.

    Parameters
    ----------
    windows
        Rows of each sensor in a run.
    part_rows
        Rows a part.
    seconds
        How long each process scores.

    Raises
    ------
    EngineFailed
        A process ended, or did not start in time.
    """
    with TemporaryDirectory(prefix="scoring-measure-") as name:
        folder = Path(name)
        windows = min(windows, _MOST_WINDOWS)
        sensors = min(max(1, part_rows // windows), _MOST_MODELS // _PARTS)
        vectors = _write_fleet(folder / "fleet", sensors * _PARTS)
        _write_parts(folder / "parts", sensors, windows)
        rates, small, opening = zip(*_in_processes(folder, processes, seconds), strict=True)
    return Measured(
        rows_per_second=sum(rates) / processes,
        processes=processes,
        models=sensors * _PARTS,
        support_vectors=vectors,
        windows_per_model=windows,
        fixed_seconds_per_part=sum(small) / processes,
        opening_seconds=max(opening),
    )


def _write_fleet(folder: Path, models: int) -> float:
    import numpy as np

    from scoring.fleet import Fleet, Training, train_model, write_fleet
    from scoring.fleet.adding import prepare
    from scoring.fleet.matching import Columns

    random = np.random.default_rng(1)
    training = Training(nu=NU, gamma="scale")
    trained = [
        prepare(train_model(_windows(random, TRAINING_WINDOWS), training), Columns(FEATURES))
        for _ in range(min(_DISTINCT, models))
    ]
    write_fleet(_models(trained, models), FEATURES, folder, _EPOCH)
    fleet = Fleet.open(folder)
    return sum(fleet.describe(row).support or 0 for row in range(len(trained))) / len(trained)


def _models(trained: list[Any], models: int) -> "Iterator[Model]":
    from scoring.fleet import Model

    for number in range(models):
        yield Model(f"device-{number:06}", "s", trained[number % len(trained)], "measured", None)


def _windows(random: "np.random.Generator", count: int) -> "np.ndarray":
    import numpy as np

    readings = random.normal(80.0, 3.0, (count, 30))
    return np.stack([readings.mean(1), readings.std(1), readings.min(1), readings.max(1)], 1)


def _write_parts(folder: Path, sensors: int, windows: int) -> None:
    import numpy as np

    from scoring.predictions import write_table

    random = np.random.default_rng(2)
    folder.mkdir()
    for number in range(_PARTS):
        part = _part(random, range(number * sensors, (number + 1) * sensors), windows)
        (folder / f"part-{number}.parquet").write_bytes(write_table(part))
    (folder / "small.parquet").write_bytes(write_table(_part(random, range(1), windows)))


def _part(random: "np.random.Generator", sensors: range, windows: int) -> "pa.Table":
    import numpy as np
    import pyarrow as pa

    from scoring.predictions import INPUT_SCHEMA

    x = _windows(random, len(sensors) * windows)
    number = np.repeat(np.arange(len(sensors)), windows)
    names = pa.array([f"device-{sensor:06}" for sensor in sensors])
    start = np.tile(np.arange(windows, dtype=np.int64) * 300_000_000, len(sensors))
    columns = {
        "device": pa.DictionaryArray.from_arrays(pa.array(number, pa.int32()), names),
        "sensor": pa.array(["s"] * len(x)).dictionary_encode(),
        "window_start": pa.array(start).cast(pa.timestamp("us", tz="UTC")),
        "count": pa.array(np.full(len(x), 30)),
        "last": pa.array(x[:, 0]),
    }
    columns |= {name: pa.array(x[:, i]) for i, name in enumerate(FEATURES)}
    return pa.table(columns).select(INPUT_SCHEMA.names).cast(INPUT_SCHEMA)


def _in_processes(folder: Path, processes: int, seconds: float) -> list[tuple[float, float, float]]:
    """Give rows a second, seconds of the small part and seconds to open, of every process."""
    # Not forked: a node's processes start from nothing, and so must their time to open.
    context = get_context("spawn")
    with ExitStack() as stack:
        pipes, running = [], []
        for number in range(processes):
            ours, theirs = context.Pipe()
            stack.enter_context(closing(ours))
            process = context.Process(
                target=_score, args=(theirs, folder, number, seconds), daemon=True
            )
            process.start()
            stack.callback(process.kill)
            theirs.close()
            pipes.append(ours)
            running.append(process)
        for pipe in pipes:
            _answer(pipe, _PATIENCE)
        for pipe in pipes:
            pipe.send("begin")
        answers = [_answer(pipe, _PATIENCE + seconds) for pipe in pipes]
        _wait(running)
    return answers


def _answer(pipe: Connection, patience: float) -> Any:
    from scoring.errors import EngineFailed

    try:
        if pipe.poll(patience):
            return pipe.recv()
    except (EOFError, OSError) as error:
        message = "a process that was to be timed ended unexpectedly"
        raise EngineFailed(message) from error
    message = f"a process that was to be timed did not answer within {patience:g} s"
    raise EngineFailed(message)


def _wait(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.join(_PATIENCE)


def _score(pipe: Connection, folder: Path, number: int, seconds: float) -> None:
    """Do what a process of the job does, in a process of its own."""
    from time import perf_counter

    begin = perf_counter()
    from scoring.job import score

    sys.argv[1:] = [
        *("--fleet", str(folder / "fleet"), "--run-id", "measured"),
        *("--predictions", str(folder / f"predictions-{number}")),
    ]
    score.init()
    parts = sorted(str(path) for path in (folder / "parts").glob("part-*"))
    small = str(folder / "parts" / "small.parquet")
    opening = perf_counter() - begin
    score.run([*parts, small])
    pipe.send("ready")
    pipe.recv()
    rate = _rate(score.run, parts, seconds)
    begin = perf_counter()
    score.run([small] * 20)
    pipe.send((rate, (perf_counter() - begin) / 20, opening))


def _rate(run: Any, parts: list[str], seconds: float) -> float:
    import json
    from time import perf_counter

    begin, rows, turn = perf_counter(), 0, 0
    while (passed := perf_counter() - begin) < seconds or turn == 0:
        # One part a mini-batch, as the job has it by default.
        (summary,) = run([parts[turn % len(parts)]])
        rows += json.loads(summary)["rows"]
        turn += 1
    return rows / passed
