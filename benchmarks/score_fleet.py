"""Scoring a fleet against the reference: one joblib file a model and a loop over scikit-learn.

Both do the same on the same input in the same run, each with one BLAS thread: open the models,
decide every row, make the prediction table. The reference takes labels from the decision's sign
instead of asking ``predict``, which would double its time. Figures are ratios of the best times.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from scoring.fleet import Fleet, score_part
from scoring.predictions import (
    INPUT_SCHEMA,
    PREDICTION_SCHEMA,
    feature_matrix,
    read_table,
    write_table,
)

FEATURES = ("mean", "std", "min", "max", "last")
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def windows(random: np.random.Generator, count: int) -> np.ndarray:
    """Feature rows of windows of 30 readings of noise, one in a hundred of them wild."""
    wild = np.where(random.random(count) < 0.01, 4.0, 1.0)
    readings = 84.0 + random.normal(0.0, 3.0, size=(count, 30)) * wild[:, None]
    return np.stack(
        [readings.mean(1), readings.std(1), readings.min(1), readings.max(1), readings[:, -1]], 1
    )


def scale_of(model: np.ndarray | int) -> Any:
    """Each sensor has its own unit."""
    return 0.5 + model % 16 / 8.0


def make_models(folder: Path, models: int, training_windows: int) -> None:
    """Train models and write them both ways."""
    import joblib
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import OneClassSVM

    from scoring.fleet import Model, write_fleet

    random = np.random.default_rng(1)
    (folder / "joblib").mkdir(parents=True)

    def trained() -> Iterator[Model]:
        for number in range(models):
            x = windows(random, training_windows) * scale_of(number)
            model = make_pipeline(StandardScaler(), OneClassSVM(nu=0.25, gamma="scale")).fit(x)
            device, sensor = f"device-{number // 5:05d}", f"sensor-{number % 5}"
            joblib.dump(model, folder / "joblib" / f"model_{device}_{sensor}")
            yield Model(device, sensor, model, "benchmark", None)

    write_fleet(trained(), FEATURES, folder / "fleet", datetime(2026, 1, 1, tzinfo=UTC))


def make_part(models: int, rows: int) -> pa.Table:
    """An input part in the agreed order: by device, sensor, window."""
    random = np.random.default_rng(2)
    x = windows(random, models * rows)
    number = np.repeat(np.arange(models), rows)
    x *= scale_of(number)[:, None]
    devices = pa.array([f"device-{i:05d}" for i in range(-(-models // 5))])
    sensors = pa.array([f"sensor-{i}" for i in range(5)])
    start = np.tile(np.arange(rows, dtype=np.int64) * 300_000_000, models)
    columns = {
        "device": pa.DictionaryArray.from_arrays(pa.array(number // 5, pa.int32()), devices),
        "sensor": pa.DictionaryArray.from_arrays(pa.array(number % 5, pa.int32()), sensors),
        "window_start": pa.array(start).cast(pa.timestamp("us", tz="UTC")),
        "count": pa.array(np.full(len(x), 30)),
    }
    columns |= {name: pa.array(x[:, i]) for i, name in enumerate(FEATURES)}
    return pa.table(columns).select(INPUT_SCHEMA.names).cast(INPUT_SCHEMA)


def by_fleet(folder: Path, part: pa.Table) -> pa.Table:
    return score_part(Fleet.open(folder / "fleet"), part)


def by_loop(folder: Path, part: pa.Table) -> pa.Table:
    """The reference. It knows that a sensor's rows stand together; the fleet does not."""
    import joblib

    x = feature_matrix(part, FEATURES)
    devices, sensors = (part[name].combine_chunks() for name in ("device", "sensor"))
    codes = [column.indices.to_numpy() for column in (devices, sensors)]
    names = [column.dictionary.to_pylist() for column in (devices, sensors)]
    changes = (np.diff(codes[0]) != 0) | (np.diff(codes[1]) != 0)
    starts = [0, *(np.flatnonzero(changes) + 1).tolist(), len(x)]
    decisions = np.empty(len(x))
    for start, stop in zip(starts, starts[1:], strict=False):
        device, sensor = names[0][codes[0][start]], names[1][codes[1][start]]
        model = joblib.load(folder / "joblib" / f"model_{device}_{sensor}")
        decisions[start:stop] = model.decision_function(x[start:stop])
    status = pa.DictionaryArray.from_arrays(np.zeros(len(x), dtype=np.int32), pa.array(["scored"]))
    columns = [part[name] for name in ("device", "sensor", "window_start")]
    reason = pa.nulls(len(x), PREDICTION_SCHEMA.field("reason").type)
    columns += [pa.array(-decisions), pa.array(decisions <= 0), status, reason]
    return pa.table(columns, schema=PREDICTION_SCHEMA)


WAYS: dict[str, Callable[[Path, pa.Table], pa.Table]] = {"fleet": by_fleet, "loop": by_loop}


def as_process(way: str, folder: Path) -> None:
    """What a child process does: read a part, score it, write the predictions."""
    part = read_table((folder / "part.parquet").read_bytes(), INPUT_SCHEMA, "part")
    (folder / f"{way}.parquet").write_bytes(write_table(WAYS[way](folder, part)))


def best(repeat: int, work: Callable[[], Any]) -> tuple[float, Any]:
    """The shortest of several times, in seconds, and the last result."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result


def run_child(way: str, folder: Path) -> None:
    command = [sys.executable, __file__, "--child", way, "--folder", str(folder)]
    subprocess.run(command, check=True)  # noqa: S603 - this file


def compare(name: str, rows: int, fleet: tuple[float, Any], loop: tuple[float, Any]) -> None:
    """Print one line: rates, the ratio, and whether the results are the same."""
    ours, theirs = fleet[1], loop[1]
    scores = [table["anomaly_score"].to_numpy() for table in (ours, theirs)]
    difference = np.abs(scores[0] - scores[1]).max() / np.abs(scores[1]).max()
    labels = [table["is_anomaly"].to_numpy(zero_copy_only=False) for table in (ours, theirs)]
    print(
        f"{name:<34} {loop[0] / fleet[0]:7.1f} x   fleet {fleet[0]:7.3f} s"
        f" ({rows / fleet[0] / 1e6:6.2f} M rows/s)   loop {loop[0]:7.2f} s"
        f"   difference {difference:.1e}   labels flipped {(labels[0] != labels[1]).sum()}"
    )


def in_process(folder: Path, models: int, rows: int, *, repeat: int) -> None:
    part = make_part(models, rows)
    fleet = best(repeat, lambda: by_fleet(folder, part))
    loop = best(1, lambda: by_loop(folder, part))
    compare(f"{models} models x {rows} rows, in process", part.num_rows, fleet, loop)


def whole_process(folder: Path, models: int, rows: int, *, repeat: int) -> None:
    part = make_part(models, rows)
    (folder / "part.parquet").write_bytes(write_table(part))
    results = {}
    for way, times in {"fleet": repeat, "loop": 1}.items():
        seconds, _ = best(times, lambda way=way: run_child(way, folder))  # type: ignore[misc]
        data = (folder / f"{way}.parquet").read_bytes()
        results[way] = seconds, read_table(data, PREDICTION_SCHEMA, way)
    name = f"{models} models x {rows} rows, as process"
    compare(name, part.num_rows, results["fleet"], results["loop"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--few-models", type=int, default=60)
    parser.add_argument("--many-rows", type=int, default=10_000)
    parser.add_argument("--training-windows", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep models here, and use what is here")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        as_process(options.child, options.folder)
        return
    with TemporaryDirectory() as temporary:
        benchmark(options, options.folder or Path(temporary))


def benchmark(options: argparse.Namespace, folder: Path) -> None:
    many, few = folder / "many", folder / "few"
    for place, models in ((many, options.models), (few, options.few_models)):
        if not place.exists():
            make_models(place, models, options.training_windows)
    fleet = Fleet.open(many / "fleet")
    vectors = [info.support or 0 for info in map(fleet.describe, range(min(100, len(fleet))))]
    print(
        f"{len(FEATURES)} features, {np.mean(vectors):.0f} support vectors a model; best of",
        end=" ",
    )
    print(json.dumps({"fleet": options.repeat, "loop": 1}))
    in_process(many, options.models, options.rows, repeat=options.repeat)
    whole_process(many, options.models, options.rows, repeat=options.repeat)
    in_process(few, options.few_models, options.many_rows, repeat=options.repeat)


if __name__ == "__main__":
    if "--child" in sys.argv or ONE_THREAD.items() <= dict(os.environ).items():
        main()
    else:
        # BLAS reads its number of threads when it is loaded: start again with it set.
        environment = dict(os.environ) | ONE_THREAD
        sys.exit(subprocess.call([sys.executable, *sys.argv], env=environment))  # noqa: S603
