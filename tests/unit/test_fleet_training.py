"""Models trained: one a sensor, the same over any number of processes."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scoring.detectors import Array
from scoring.errors import BadInput
from scoring.fleet import (
    Fleet,
    Model,
    Training,
    Untrained,
    check_fleet,
    train_fleet,
    train_model,
    write_fleet,
)
from scoring.fleet.predicting import decide_model
from scoring.fleet.training import sample

NOW = datetime(2026, 11, 22, tzinfo=UTC)
FEATURES = ("mean", "std")


def windows(seed: int, count: int = 60) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 2)) * [3.0, 0.1] + [20.0, 1.0]


def train(sensors: Any, **options: Any) -> Any:
    training = options.pop("training", Training())
    return list(train_fleet(sensors, FEATURES, training, NOW, **options))


def test_a_trained_model_calls_few_usual_windows_and_any_wild_one_anomalous() -> None:
    model = train_model(windows(1, 300), Training())
    assert (model.predict(windows(2, 1000)) == -1).mean() < 0.08
    assert (model.predict(windows(3) + np.array([30.0, 0.0])) == -1).all()


def test_training_is_the_same_for_any_number_of_processes_and_in_order(tmp_path: Path) -> None:
    sensors = [("d", f"s{number:02d}", windows(number)) for number in range(70)]
    done: list[int] = []
    alone = train(iter(sensors))
    together = train(iter(sensors), processes=2, progress=done.append)
    assert [model.sensor for model in together] == [sensor for _, sensor, _ in sensors]
    versions = {
        write_fleet(models, FEATURES, tmp_path / name, NOW)
        for name, models in (("alone", alone), ("together", together))
    }
    assert len(versions) == 1
    assert done == [32, 64, 70]


def test_a_trained_fleet_scores_as_the_models_do(tmp_path: Path) -> None:
    x = windows(4)
    (model,) = train([("d", "s", x)])
    write_fleet([model], FEATURES, tmp_path, NOW)
    fleet = Fleet.open(tmp_path)
    decisions, labels = decide_model(fleet, 0, x)
    expected = train_model(x, Training())
    assert decisions == pytest.approx(expected.decision_function(x), rel=0, abs=1e-9)
    np.testing.assert_array_equal(labels, expected.predict(x) == -1)
    info = fleet.find("d", "s")
    assert info is not None
    assert info.trained_at == NOW
    assert info.source == "trained on 60 windows, nu 0.01, gamma 0.02"


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (windows(5, 9), "9 windows, fewer than 10"),
        (windows(5, 0), "0 windows, fewer than 10"),
        (windows(5) * [0.0, 0.0], "every feature the same in all 60 windows"),
        (windows(5) * [np.nan, 1.0], "a feature is not a finite number"),
        (windows(5)[:, :1], "feature rows of shape (60, 1)"),
    ],
)
def test_a_sensor_that_nothing_can_be_learned_of_is_reported_and_the_others_go_on(
    x: Array, reason: str
) -> None:
    bad, good = train([("d", "bad", x), ("d", "good", windows(6))])
    assert bad == Untrained("d", "bad", reason)
    assert isinstance(good, Model)


def test_a_feature_that_never_changes_is_left_out_for_that_sensor_and_said(tmp_path: Path) -> None:
    flat, whole = windows(5) * [1.0, 0.0], windows(6)
    models = train([("d", "flat", flat), ("d", "whole", whole)])
    assert all(isinstance(model, Model) for model in models)
    write_fleet([one for one in models if isinstance(one, Model)], FEATURES, tmp_path, NOW)
    fleet = Fleet.open(tmp_path)
    infos = fleet.find("d", "flat"), fleet.find("d", "whole")
    assert [info and info.features for info in infos] == [("mean",), ("mean", "std")]
    assert infos[0] is not None
    assert infos[0].source.endswith("without std: the same in all of them")
    row = next(row for row, key in enumerate(fleet.keys()) if key == ("d", "flat"))

    decisions, _ = decide_model(fleet, row, flat + np.array([0.0, 7.0]))

    expected = train_model(flat[:, :1], Training()).decision_function(flat[:, :1])
    assert decisions == pytest.approx(expected, rel=0, abs=1e-9)
    report = check_fleet(fleet, fleet.keys(), NOW)
    assert [(one.sensor, one.why) for one in report.partial] == [
        ("flat", f"takes mean only: {infos[0].source}")
    ]
    assert report.clean


def test_differences_of_rounding_are_no_variation(tmp_path: Path) -> None:
    x = windows(5)
    x[:, 1] = 0.1 + np.resize([0.0, 1.4e-17, -1.4e-17], len(x))
    (model,) = train([("d", "s", x)])
    assert isinstance(model, Model)
    assert model.detector.shape.columns == (0,)


@pytest.mark.parametrize(("count", "most"), [(9, 10), (10, 10), (11, 10), (1_000, 10), (999, 7)])
def test_a_sample_has_a_row_of_every_stretch_and_is_the_same_again(count: int, most: int) -> None:
    x = np.arange(count, dtype=float)[:, None]
    taken = sample(x, most)[:, 0]
    np.testing.assert_array_equal(taken, sample(x, most)[:, 0])
    assert len(taken) == min(count, most)
    assert (np.diff(taken) > 0).all()
    stretch = count / most
    assert (np.abs(taken - (np.arange(len(taken)) + 0.5) * max(stretch, 1)) <= stretch + 1).all()


def test_a_sample_is_not_evenly_spaced() -> None:
    # A row a minute over ten days, one of each day: an even sample would have the same minute.
    taken = sample(np.arange(14_400.0)[:, None], 10)[:, 0]
    assert len(set((taken % 1_440).tolist())) > 5


def test_of_many_windows_a_sample_is_trained_on_and_said(tmp_path: Path) -> None:
    x = np.concatenate([windows(seed) for seed in range(40)])
    whole, cut = (
        train([("d", "s", x)], training=Training(max_windows=most))[0] for most in (5_000, 200)
    )
    assert isinstance(whole, Model)
    assert isinstance(cut, Model)
    assert whole.source.startswith("trained on 2,400 windows,")
    assert cut.source.startswith("trained on 200 of 2,400 windows,")
    assert cut.detector.support < whole.detector.support / 2


def test_the_least_number_of_windows_can_be_set() -> None:
    (model,) = train([("d", "s", windows(7, 5))], training=Training(min_windows=5))
    assert isinstance(model, Model)


def test_few_windows_do_not_make_a_model_with_a_single_support_vector() -> None:
    for seed in range(20):
        sensor = ("d", "s", windows(seed, 40)[:, :1])
        # As the models of 2018 were trained, four of whose fifteen call everything anomalous.
        (model,) = train_fleet([sensor], ("mean",), Training(nu=1e-4), NOW)
        assert isinstance(model, Model)
        assert model.detector.support > 1


@pytest.mark.parametrize(
    "options", [{"nu": 0.0}, {"nu": 1.5}, {"gamma": 0.0}, {"gamma": "wide"}, {"gamma": -1.0}]
)
def test_settings_that_train_nothing_are_refused_at_once(options: Any) -> None:
    with pytest.raises(BadInput, match=next(iter(options))):
        Training(**options)


def test_windows_that_are_no_good_raise_where_one_model_is_trained() -> None:
    with pytest.raises(BadInput, match="fewer than 10"):
        train_model(windows(8, 3), Training())
