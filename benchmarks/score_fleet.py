"""Scoring a fleet against the reference: one joblib file a model and a loop over scikit-learn.

Both do the same on the same input in the same run, each with one BLAS thread: open the models,
decide and label every row, make the prediction table. As whole processes, the fleet's is the entry
script of the cluster's job, and the reference reads and writes its files in the same way.

Figures are ratios: the reference's time over ours, the best of several for ours. The reference
asks each estimator for ``decision_function`` and ``predict``; the second figure is against a loop
that asks for the first only and takes the label from its sign.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scoring.fleet import Fleet, score_part
from scoring.predictions import INPUT_SCHEMA, PREDICTION_SCHEMA, read_table, write_table

FEATURES = ("mean", "std", "min", "max", "last")
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PART = "part-00000.parquet"

Array = npt.NDArray[np.float64]
Labels = str
"""How the reference comes by labels: ``predict`` or ``sign``."""


def windows(random: np.random.Generator, count: int) -> Array:
    """Make feature rows of windows of 30 readings of noise, one in a hundred of them wild."""
    wild = np.where(random.random(count) < 0.01, 4.0, 1.0)
    readings = 84.0 + random.normal(0.0, 3.0, size=(count, 30)) * wild[:, None]
    return np.stack(
        [readings.mean(1), readings.std(1), readings.min(1), readings.max(1), readings[:, -1]], 1
    )


def scale_of(model: Any) -> Any:
    """Give each sensor its own unit."""
    return 0.5 + model % 16 / 8.0


def make_models(folder: Path, models: int, training_windows: int, nu: float) -> None:
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
            model = make_pipeline(StandardScaler(), OneClassSVM(nu=nu, gamma="scale")).fit(x)
            device, sensor = f"device-{number // 5:05d}", f"sensor-{number % 5}"
            joblib.dump(model, folder / "joblib" / f"model_{device}_{sensor}")
            yield Model(device, sensor, model, "benchmark", None)

    write_fleet(trained(), FEATURES, folder / "fleet", datetime(2026, 1, 1, tzinfo=UTC))


def make_part(models: int, rows: int) -> pa.Table:
    """Make an input part in the agreed order: by device, sensor, window."""
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


def by_loop(folder: Path, part: pa.Table, labels: Labels) -> pa.Table:
    """Score by the reference, which knows that a sensor's rows stand together."""
    import joblib

    x = np.stack([part[name].to_numpy() for name in FEATURES], axis=1)
    devices, sensors = (part[name].combine_chunks() for name in ("device", "sensor"))
    codes = [column.indices.to_numpy() for column in (devices, sensors)]
    names = [column.dictionary.to_pylist() for column in (devices, sensors)]
    changes = (np.diff(codes[0]) != 0) | (np.diff(codes[1]) != 0)
    decisions, anomaly = np.empty(len(x)), np.empty(len(x), dtype=bool)
    for start, stop in pairwise([0, *(np.flatnonzero(changes) + 1).tolist(), len(x)]):
        device, sensor = names[0][codes[0][start]], names[1][codes[1][start]]
        model = joblib.load(folder / "joblib" / f"model_{device}_{sensor}")
        rows = x[start:stop]
        decisions[start:stop] = model.decision_function(rows)
        if labels == "predict":
            anomaly[start:stop] = model.predict(rows) == -1
        else:
            anomaly[start:stop] = decisions[start:stop] <= 0
    status = pa.DictionaryArray.from_arrays(np.zeros(len(x), dtype=np.int32), pa.array(["scored"]))
    columns = [part[name] for name in ("device", "sensor", "window_start")]
    reason = pa.nulls(len(x), PREDICTION_SCHEMA.field("reason").type)
    columns += [pa.array(-decisions), pa.array(anomaly), status, reason]
    return pa.table(columns, schema=PREDICTION_SCHEMA)


def fleet_process(folder: Path, _: Labels) -> None:
    """Do what a process of the cluster's job does."""
    from scoring.job import score

    predictions = str(folder / "fleet-out")
    sys.argv[1:] = ["--fleet", str(folder / "fleet"), "--predictions", predictions, "--run-id", "b"]
    score.init()
    score.run([str(folder / PART)])


def loop_process(folder: Path, labels: Labels) -> None:
    """Do the same by the reference."""
    from scoring.job import score

    score._keep_pandas_out()  # or the reference would pay for pandas, and we not
    part = read_table((folder / PART).read_bytes(), INPUT_SCHEMA, PART)
    (folder / "loop-out").mkdir(exist_ok=True)
    (folder / "loop-out" / PART).write_bytes(write_table(by_loop(folder, part, labels)))


CHILDREN = {"fleet": fleet_process, "loop": loop_process}


def best(repeat: int, work: Callable[[], Any]) -> tuple[float, Any]:
    """Give the shortest of several times, in seconds, and the last result."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result


def run_child(way: str, folder: Path, labels: Labels = "") -> pa.Table:
    command = [sys.executable, __file__, "--child", way, "--labels", labels]
    subprocess.run([*command, "--folder", str(folder)], check=True)
    data = (folder / f"{way}-out" / PART).read_bytes()
    return read_table(data, PREDICTION_SCHEMA, way)


def compare(
    name: str, fleet: tuple[float, Any], loop: tuple[float, Any], sign: tuple[float, Any]
) -> None:
    """Print one line: rates, the ratios, and whether the results are the same."""
    ours, theirs = fleet[1], loop[1]
    scores = [table["anomaly_score"].to_numpy() for table in (ours, theirs)]
    difference = np.abs(scores[0] - scores[1]).max() / np.abs(scores[1]).max()
    labels = [table["is_anomaly"].to_numpy() for table in (ours, theirs)]
    print(
        f"{name:<36} {loop[0] / fleet[0]:6.1f} x (sign only {sign[0] / fleet[0]:6.1f} x)"
        f"   fleet {fleet[0] * 1e3:6.0f} ms, {ours.num_rows / fleet[0] / 1e6:5.2f} M rows/s"
        f"   loop {loop[0]:6.2f} s   difference {difference:.0e}"
        f"   labels flipped {(labels[0] != labels[1]).sum()}"
    )


def in_process(folder: Path, models: int, rows: int, repeat: int) -> None:
    part = make_part(models, rows)
    fleet = best(repeat, lambda: by_fleet(folder, part))
    loops = [best(1, lambda way=way: by_loop(folder, part, way)) for way in ("predict", "sign")]  # type: ignore[misc]
    compare(f"{models} models x {rows} rows, in process", fleet, *loops)


def whole_process(folder: Path, models: int, rows: int, repeat: int) -> None:
    (folder / PART).write_bytes(write_table(make_part(models, rows)))
    fleet = best(repeat, lambda: run_child("fleet", folder))
    loops = [best(1, lambda way=way: run_child("loop", folder, way)) for way in ("predict", "sign")]  # type: ignore[misc]
    compare(f"{models} models x {rows} rows, as process", fleet, *loops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10_000, help="with few rows each")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--few-models", type=int, default=60, help="with many rows each")
    parser.add_argument("--many-rows", type=int, default=10_000)
    parser.add_argument("--training-windows", type=int, default=300)
    parser.add_argument("--nu", type=float, default=0.25, help="more of it, more support vectors")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep models here, and use what is here")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--labels", default="predict", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        CHILDREN[options.child](options.folder, options.labels)
        return
    with TemporaryDirectory() as temporary:
        benchmark(options, options.folder or Path(temporary))


def benchmark(options: argparse.Namespace, folder: Path) -> None:
    many, few = folder / "many", folder / "few"
    for place, models in ((many, options.models), (few, options.few_models)):
        if not place.exists():
            make_models(place, models, options.training_windows, options.nu)
    fleet = Fleet.open(many / "fleet")
    vectors = [fleet.describe(row).support or 0 for row in range(min(100, len(fleet)))]
    print(f"{len(FEATURES)} features, {np.mean(vectors):.0f} support vectors a model", flush=True)
    in_process(many, options.models, options.rows, options.repeat)
    whole_process(many, options.models, options.rows, options.repeat)
    in_process(few, options.few_models, options.many_rows, options.repeat)


if __name__ == "__main__":
    if ONE_THREAD.items() <= dict(os.environ).items():
        main()
    else:
        # BLAS reads its number of threads when it is loaded: start again with it set.
        environment = dict(os.environ) | ONE_THREAD
        sys.exit(subprocess.call([sys.executable, *sys.argv], env=environment))
