"""Batched decision functions against scikit-learn's own, and the laws that they keep."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from scoring.detectors import Array, Kind, Shape, anomaly_scores, decide, is_anomaly
from scoring.fleet.adding import prepare
from scoring.fleet.compiling import Compiled, compile_detector
from scoring.fleet.matching import Columns
from scoring.libsvm import Svm, libsvm_decision

KERNELS = ("rbf", "linear", "poly", "sigmoid")


def rows(seed: int, count: int = 150) -> Any:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 4)) * [1.0, 2.0, 0.1, 5.0] + [84.0, 3.0, 50.0, 0.0]


def detectors() -> Iterator[Any]:
    for kernel in KERNELS:
        svm = OneClassSVM(kernel=kernel, nu=0.1, gamma=0.05, coef0=0.5)
        yield pytest.param(make_pipeline(StandardScaler(), svm), id=f"scaled-{kernel}")
        yield pytest.param(OneClassSVM(kernel=kernel, nu=0.1, gamma="scale"), id=f"bare-{kernel}")
    yield pytest.param(OneClassSVM(gamma=10.0), id="rbf-narrow")
    yield pytest.param(EllipticEnvelope(random_state=0), id="elliptic")
    yield pytest.param(
        make_pipeline(StandardScaler(), EllipticEnvelope(contamination=0.2, random_state=0)),
        id="scaled-elliptic",
    )
    yield pytest.param(IsolationForest(n_estimators=15, random_state=0), id="forest")
    yield pytest.param(
        IsolationForest(
            n_estimators=15, max_features=2, max_samples=20, contamination=0.1, random_state=0
        ),
        id="forest-of-some-features",
    )
    yield pytest.param(
        make_pipeline(StandardScaler(), IsolationForest(n_estimators=15, random_state=0)),
        id="scaled-forest",
    )


def compiled(detector: Any) -> Compiled:
    result = compile_detector(detector)
    assert result is not None
    return result


def decide_rows(model: Any, x: Array) -> Any:
    return decide(model.shape, model.parameters[None], x.T[None])[0]


@pytest.mark.parametrize("detector", list(detectors()))
def test_decisions_and_labels_are_those_of_scikit_learn_in_training_rows_and_others(
    detector: Any,
) -> None:
    train, other = rows(1), np.concatenate([rows(2), rows(3) * 1.5])
    model = compiled(detector.fit(train))
    for x in (train, other):
        expected = detector.decision_function(x)
        decisions = decide_rows(model, x)
        assert np.abs(decisions - expected).max() <= 1e-9 * np.abs(expected).max()
        labels = is_anomaly(model.shape.kind, decisions)
        np.testing.assert_array_equal(labels, detector.predict(x) == -1)


@pytest.mark.parametrize(
    "detector", [OneClassSVM(nu=0.2), IsolationForest(n_estimators=5, random_state=0)]
)
def test_models_of_one_shape_decide_in_one_go_as_each_does_alone(detector: Any) -> None:
    models = [compiled(detector.fit(rows(seed))) for seed in range(40)]
    shape = max({model.shape for model in models}, key=[model.shape for model in models].count)
    same = [model for model in models if model.shape == shape]
    x = np.stack([rows(100 + seed, 7).T for seed in range(len(same))])
    together = decide(shape, np.stack([model.parameters for model in same]), x)
    alone = [decide_rows(model, x[i].T) for i, model in enumerate(same)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_equal_to_support_vectors_get_the_estimators_own_label(kernel: str) -> None:
    # Few digits, few vectors: decisions of exactly 0 and of a rounding error are common here.
    random = np.random.default_rng(4)
    for _ in range(50):
        x = np.round(random.normal(size=(12, 1)), 1)
        svm = OneClassSVM(kernel=kernel, nu=0.1, gamma=0.1, coef0=1.0).fit(x)
        model = compiled(svm)
        decisions = decide_rows(model, x)
        np.testing.assert_array_equal(is_anomaly(model.shape.kind, decisions), svm.predict(x) < 0)


def test_a_training_row_on_a_forests_boundary_itself_is_an_inlier() -> None:
    detector = IsolationForest(n_estimators=15, contamination=0.2, random_state=0)
    # The fifth part of 151 rows ends at the 31st: the boundary is that row's own score.
    for seed in range(10):
        x = rows(seed, 151)
        expected = detector.fit(x).decision_function(x)
        assert (expected == 0).any()
        model = compiled(detector)
        decisions = decide_rows(model, x)
        np.testing.assert_array_equal(decisions == 0, expected == 0)
        np.testing.assert_array_equal(is_anomaly(model.shape.kind, decisions), expected < 0)


def test_a_decision_of_exactly_0_is_an_anomaly_to_a_one_class_svm_only() -> None:
    zero = np.zeros(1)
    assert is_anomaly(Kind.ONE_CLASS_SVM, zero).tolist() == [True]
    assert is_anomaly(Kind.ELLIPTIC_ENVELOPE, zero).tolist() == [False]
    assert is_anomaly(Kind.ISOLATION_FOREST, zero).tolist() == [False]


def test_an_svm_decides_exactly_0_on_its_only_support_vector() -> None:
    x = np.array([[35.13], [35.13]])
    svm = OneClassSVM(nu=0.5, gamma=0.01).fit(x)
    model = compiled(svm)
    assert decide_rows(model, x).tolist() == [0.0, 0.0]
    assert svm.predict(x).tolist() == [-1, -1]


def test_a_score_is_minus_the_decision_and_never_minus_0() -> None:
    scores = anomaly_scores(np.array([2.0, -3.0, 0.0]))
    assert scores.tolist() == [-2.0, 3.0, 0.0]
    assert not np.signbit(scores[2])


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 10.0])
def test_readings_far_away_are_anomalies_without_overflow_or_slow_numbers(gamma: float) -> None:
    svm = OneClassSVM(gamma=gamma).fit(rows(5))
    far = np.array([[1e150] * 4, [-1e300] * 4, [1e4] * 4])
    model = compiled(svm)
    np.testing.assert_array_equal(decide_rows(model, far), np.full(3, svm.intercept_[0]))


def test_an_offset_far_from_0_does_not_cost_digits() -> None:
    x = np.random.default_rng(6).normal(1e6, 0.01, size=(100, 2))
    svm = OneClassSVM(nu=0.1, gamma=1000.0).fit(x)
    model = compiled(svm)
    assert model.shape.kernel == "rbf_wide"
    np.testing.assert_allclose(decide_rows(model, x), svm.decision_function(x), rtol=0, atol=1e-10)


def test_decisions_that_all_but_cancel_are_added_up_as_libsvm_does() -> None:
    # One feature, centred: the sum of the vectors is 0 but for rounding, and so is every decision.
    x = np.random.default_rng(8).normal(size=(20, 1)).round(1)
    detector = make_pipeline(StandardScaler(), OneClassSVM(kernel="linear", nu=0.2)).fit(x)
    model = prepare(detector, Columns(("mean",)))
    assert model.shape.kernel == "linear_exact"
    np.testing.assert_array_equal(decide_rows(model, x), detector.decision_function(x))


def test_other_kinds_have_no_numbers() -> None:
    assert compile_detector(OneClassSVM(kernel=lambda a, b: a @ b.T).fit(rows(7))) is None
    assert compile_detector(make_pipeline(StandardScaler(), StandardScaler())) is None
    assert compile_detector("not an estimator") is None


finite = st.floats(-1e3, 1e3)


@settings(max_examples=60, deadline=None)
@given(
    vectors=arrays(np.float64, (3, 2), elements=finite),
    dual=arrays(np.float64, 3, elements=st.floats(0.01, 1)),
    z=arrays(np.float64, (5, 2), elements=finite),
    gamma=st.floats(1e-6, 1.0),
    kernel=st.sampled_from(KERNELS),
)
def test_a_batched_svm_is_libsvms_sum(
    vectors: Array, dual: Array, z: Array, gamma: float, kernel: str
) -> None:
    svm = Svm(kernel, gamma, 0.5, 3, -0.7, vectors, dual)
    block = np.zeros((3, 8))
    block[:2, :3], block[2, :3] = vectors.T, dual
    wide = kernel == "rbf" and gamma * (vectors**2).sum(axis=1).max() > 1e3
    shape = Shape(Kind.ONE_CLASS_SVM, "rbf_wide" if wide else kernel, 2, 8)
    parameters = np.concatenate([[0, 0, 1, 1], [gamma, 0.5, 3, -0.7], block.ravel()])
    expected = np.array([libsvm_decision(svm, row) for row in z])
    decisions = decide(shape, parameters[None], z.T[None])[0]
    size = np.abs(dual).sum() + np.abs(expected)
    if kernel in ("linear", "poly"):
        size = size + (np.abs(vectors) @ np.abs(z).T + 1).max() ** 3
    assert (np.abs(decisions - expected) <= 1e-10 * size).all()
    np.testing.assert_array_equal(decisions <= 0, expected <= 0)
