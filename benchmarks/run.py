"""A whole run: pending windows to input parts, the local engine, and indexed anomalies.

``python -m scoring run`` is timed as a process of its own, on a store filled with windows. The
reference scores a sample of the same windows the plain way, a joblib file a model and a loop over
scikit-learn, on one core and without any store; its time is scaled to all of the windows.

Run: ``python benchmarks/run.py [--models 11973] [--windows 24]``; a million windows:
``--models 41667``.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from scoring import instants
from scoring.adapters.sql import bulk
from scoring.aggregates import Partials
from scoring.bootstrap import open_app
from scoring.fleet import Model, Training, train_model
from scoring.readings import EventBatch, Partition

FEATURES = ("mean", "std", "min", "max", "last")
START = datetime(2026, 1, 5, tzinfo=UTC)
DISTINCT = 50
"""Models that are really trained; the fleet repeats them under other names."""


def sensor_name(number: int) -> tuple[str, str]:
    """Five sensors a device."""
    return f"device-{number // 5:06}", f"sensor-{number % 5}"


def draw(random: np.random.Generator, windows: int) -> np.ndarray:
    """Feature rows of windows of 30 readings."""
    readings = random.normal(80, 3, (windows, 30))
    return np.stack(
        [readings.mean(1), readings.std(1), readings.min(1), readings.max(1), readings[:, -1]], 1
    )


def fill(folder: Path, models: int, windows: int, detectors: list[Any]) -> None:
    """Make a store with pending windows, and a fleet."""
    random = np.random.default_rng(1)
    with open_app(folder, SCORING_WINDOW="5min") as app:
        for first in range(0, models, 2_000):
            last = min(first + 2_000, models)
            partials = _windows(random, range(first, last), windows, app.window)
            with app.database.write() as connection:
                bulk.merge_partials(connection, "hub/0", partials)
        # One reading through the front door, so that the partition has a watermark.
        body = b'{"device":"other","sensor":"other","ts":"2026-01-05T00:00:00Z","value":1}'
        enqueued = np.array([instants.of(START)])
        app.ingest()(EventBatch(Partition("hub", "0"), np.array([0]), enqueued, [body]))
        app.shelf.publish(_models(models, detectors), FEATURES, START)


def _windows(random: np.random.Generator, sensors: range, windows: int, size: int) -> Partials:
    rows = len(sensors) * windows
    mean, std, low, high, last = draw(random, rows).T
    starts = [instants.of(START) + i * size for i in range(windows)]
    keys = [(*sensor_name(number), start) for number in sensors for start in starts]
    count = np.full(rows, 30)
    times, late = np.array([key[2] for key in keys]), np.zeros(rows, dtype=np.int64)
    return Partials(keys, count, mean, std**2 * 30, low, high, last, times, late)


def _models(models: int, detectors: list[Any]) -> Iterator[Model]:
    for number in range(models):
        yield Model(*sensor_name(number), detectors[number % DISTINCT], "benchmark", START)


def reference(detectors: list[Any], windows: int, sample: int, folder: Path) -> float:
    """Seconds a window of the plain way."""
    import joblib

    random = np.random.default_rng(2)
    rows = draw(random, sample * windows).reshape(sample, windows, -1)
    for number in range(sample):
        joblib.dump(detectors[number % DISTINCT], folder / str(number))
    begin = time.perf_counter()
    for number in range(sample):
        model = joblib.load(folder / str(number))
        decision = model.decision_function(rows[number])
        assert len(decision > 0) == windows
    return (time.perf_counter() - begin) / (sample * windows)


def main() -> None:
    """Fill, run, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=11_973)
    parser.add_argument("--windows", type=int, default=24)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    detectors = [train_model(draw(random, 200), Training()) for _ in range(DISTINCT)]
    total = options.models * options.windows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder / "data", options.models, options.windows, detectors)
        (folder / "joblib").mkdir()
        plain = reference(detectors, options.windows, 500, folder / "joblib") * total
        command = [sys.executable, "-m", "scoring", "--data", str(folder / "data"), "run", "--json"]
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)
        seconds = time.perf_counter() - begin
        with open_app(folder / "data") as app:
            run = app.queries.runs(1)[0]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{options.models:,} models x {options.windows} windows: {run.state}, {run.parts} parts,")
    print(
        f"  {run.indexed:,} predictions, {run.anomalies:,} anomalies, {run.not_scored} not scored"
    )
    print(f"  whole run    {seconds:8.1f} s   {total / seconds:,.0f} windows/s")
    print(f"  largest process {peak:5,.0f} MB")
    print(
        f"  scikit-learn {plain:8.1f} s   scoring alone; the whole run is {plain / seconds:.1f} x"
    )


if __name__ == "__main__":
    main()
