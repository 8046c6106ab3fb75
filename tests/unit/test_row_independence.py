"""A row's score depends on the row and its model only, bit for bit.

`make processors` runs this file with other instructions and other BLAS kernels too.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from scoring import kernels
from scoring.detectors import Array, decide
from scoring.fleet import Fleet, Model, score_part, write_fleet
from scoring.fleet.adding import prepare
from scoring.fleet.compiling import Compiled
from scoring.fleet.matching import Columns
from scoring.instants import moment
from scoring.predictions import INPUT_SCHEMA

FEATURES = ("mean", "std", "min", "max", "last")
ROWS = 400
SEEDS = (1, 2, 3)
"""Of the models of each kind."""


def rows(seed: int, count: int = ROWS) -> Array:
    """Make windows, one in twenty of them wild."""
    random = np.random.default_rng(seed)
    wild = np.where(random.random(count) < 0.05, 6.0, 1.0)
    x: Array = random.normal(size=(count, 5)) * wild[:, None]
    return x * [1.0, 0.2, 2.0, 2.0, 3.0] + [20.0, 1.0, 15.0, 25.0, 0.0]


def scaled(detector: Any) -> Any:
    return make_pipeline(StandardScaler(), detector)


KINDS: dict[str, Callable[[], Any]] = {
    "rbf": lambda: scaled(OneClassSVM(nu=0.3)),
    "smooth rbf": lambda: scaled(OneClassSVM(nu=0.05, gamma=0.02)),
    "all but constant rbf": lambda: scaled(OneClassSVM(nu=0.2, gamma=1e-4)),
    "rbf of bare features": lambda: OneClassSVM(nu=0.3, gamma=0.2),
    "wide rbf": lambda: OneClassSVM(nu=0.3, gamma=20.0),
    "linear": lambda: OneClassSVM(kernel="linear", nu=0.2),
    "rbf of both signs": lambda: scaled(OneClassSVM(nu=0.3)),
    "exact rbf": lambda: scaled(OneClassSVM(nu=0.05, gamma=0.1)),
    "quadratic": lambda: scaled(OneClassSVM(kernel="poly", degree=2, nu=0.2, coef0=1.0)),
    "cubic": lambda: scaled(OneClassSVM(kernel="poly", nu=0.2, coef0=1.0)),
    "sigmoid": lambda: scaled(OneClassSVM(kernel="sigmoid", nu=0.2, gamma=0.1, coef0=0.5)),
    "elliptic": lambda: EllipticEnvelope(random_state=0),
    "forest": lambda: scaled(IsolationForest(n_estimators=20, max_samples=40, random_state=0)),
}


@cache
def compiled(kind: str, seed: int) -> Compiled:
    model = prepare(KINDS[kind]().fit(rows(seed, 150)), Columns(FEATURES))
    assert not model.payload
    if kind == "rbf of both signs":
        parameters = model.parameters.copy()
        parameters[-model.shape.units :: 2] *= -1.0
        return replace(model, parameters=parameters)
    if kind == "exact rbf":
        return replace(model, shape=replace(model.shape, kernel=f"{model.shape.kernel}_exact"))
    return model


@cache
def alone(kind: str, seed: int) -> Array:
    """Decide every row of `rows(seed)` in a call of its own."""
    model = compiled(kind, seed)
    return np.concatenate([decide_rows(model, row[None]) for row in rows(seed)])


def decide_rows(model: Compiled, x: Array) -> Array:
    decisions: Array = decide(model.shape, model.parameters[None], x.T[None])[0]
    return decisions


def assert_same_bits(found: Array, expected: Array) -> None:
    different = found.view(np.int64) != expected.view(np.int64)
    assert not different.any(), f"{different.sum()} of {found.size} differ"


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_any_size_decides_every_row_as_alone(kind: str) -> None:
    x, model = rows(1), compiled(kind, 1)
    for size in (*range(2, 35), 61, 64, 100, 128, 257, ROWS):
        batches = [decide_rows(model, x[i : i + size]) for i in range(0, ROWS, size)]
        assert_same_bits(np.concatenate(batches), alone(kind, 1))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_subset_order_and_batching_of_rows_gives_the_same_bits(
    kind: str, data: st.DataObject
) -> None:
    picked = data.draw(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=200))
    cuts = data.draw(st.lists(st.integers(1, len(picked)), max_size=4))
    x, model = rows(1)[picked], compiled(kind, 1)
    if data.draw(st.booleans()):
        x = np.asfortranarray(x)
    bounds = sorted({0, *cuts, len(picked)})
    batches = [decide_rows(model, x[start:stop]) for start, stop in pairwise(bounds)]
    assert_same_bits(np.concatenate(batches), alone(kind, 1)[picked])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_models_beside_a_model_leave_its_decisions_the_same(
    kind: str, data: st.DataObject
) -> None:
    shapes = {compiled(kind, seed).shape for seed in SEEDS}
    shape = data.draw(st.sampled_from(sorted(shapes)))
    same = [seed for seed in SEEDS if compiled(kind, seed).shape == shape]
    seeds = data.draw(st.lists(st.sampled_from(same), min_size=1, max_size=12))
    picked = data.draw(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=30))
    parameters = np.stack([compiled(kind, seed).parameters for seed in seeds])
    x = np.stack([rows(seed)[picked].T for seed in seeds])
    expected = np.stack([alone(kind, seed)[picked] for seed in seeds])
    assert_same_bits(decide(shape, parameters, x), expected)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    folder: Path = tmp_path_factory.mktemp("fleet")
    models = [Model(kind, str(seed), compiled(kind, seed)) for kind in KINDS for seed in SEEDS]
    write_fleet(models, FEATURES, folder, moment(0))
    return Fleet.open(folder)


def part_of(sensors: list[tuple[str, int, int]]) -> pa.Table:
    """Make an input part of (kind, seed of the model, row)."""
    x = np.array([rows(seed)[row] for _, seed, row in sensors])
    columns = {
        "device": pa.array([kind for kind, _, _ in sensors]).dictionary_encode(),
        "sensor": pa.array([str(seed) for _, seed, _ in sensors]).dictionary_encode(),
        "window_start": pa.array(range(len(sensors)), pa.timestamp("us", tz="UTC")),
        "count": pa.array([6] * len(sensors), pa.int64()),
    }
    columns |= {name: pa.array(x[:, i]) for i, name in enumerate(FEATURES)}
    return pa.table(columns).select(INPUT_SCHEMA.names).cast(INPUT_SCHEMA)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_rows_of_any_models_in_a_part_leave_a_rows_score_the_same(
    fleet: Fleet, data: st.DataObject
) -> None:
    # Runs of rows, as parts have them, and rows of one sensor apart from each other.
    run = st.tuples(
        st.sampled_from(list(KINDS)),
        st.sampled_from(SEEDS),
        st.integers(0, ROWS - 1),
        st.integers(1, 60),
    )
    sensors = [
        (kind, seed, row % ROWS)
        for kind, seed, first, count in data.draw(st.lists(run, min_size=1, max_size=12))
        for row in range(first, first + count)
    ]
    scores = score_part(fleet, part_of(sensors))["anomaly_score"].to_numpy()
    expected = np.array([-alone(kind, seed)[row] + 0.0 for kind, seed, row in sensors])
    assert_same_bits(scores, expected)


def test_matrix_products_decide_no_digit_of_an_rbf_decision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = np.concatenate([rows(seed, 2_000) for seed in SEEDS])
    found = {}
    for gamma in (1e-3, 0.02, 0.2, 2.0):
        for width in (1, 2, 5):
            detector = scaled(OneClassSVM(nu=0.3, gamma=gamma)).fit(rows(4, 200)[:, :width])
            model = prepare(detector, Columns(FEATURES[:width]))
            assert model.shape.kernel == "rbf"
            found[gamma, width] = model, decide_rows(model, x[:, :width])
    # Now every row is computed again without them.
    monkeypatch.setattr(kernels, "_disagreement", lambda *_: np.inf)
    for (_, width), (model, decisions) in found.items():
        assert_same_bits(decide_rows(model, x[:, :width]), decisions)


def test_another_blas_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x, model = rows(5, 20_000), compiled("rbf", 1)
    decisions = decide_rows(model, x)
    random, expanded_sums = np.random.default_rng(0), kernels._expanded_sums

    def other_digits(*arguments: Any) -> Any:
        sums, *others = expanded_sums(*arguments)
        return sums * (1.0 + random.uniform(-6e-15, 6e-15, size=sums.shape)), *others

    monkeypatch.setattr(kernels, "_expanded_sums", other_digits)
    for _ in range(5):
        assert_same_bits(decide_rows(model, x), decisions)


@pytest.mark.parametrize("function", [np.exp, np.tanh, lambda x: 2.0**x])
def test_numpy_gives_a_value_the_same_bits_at_every_position(
    function: Callable[[Array], Array],
) -> None:
    random = np.random.default_rng(0)
    values = -np.concatenate([random.exponential(5.0, 1_000), random.uniform(0, 700, 200), [0, 1]])
    expected = function(values)
    for _ in range(500):
        picked = random.integers(len(values), size=random.integers(2, 70))
        offset, stride = int(random.integers(16)), int(random.choice([1, 1, 1, 2, 3]))
        memory = np.ones(offset + stride * len(picked))
        view = memory[offset::stride]
        view[:] = values[picked]
        assert_same_bits(function(view), expected[picked])
