"""A fleet held against the sensors that were seen."""

import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from scoring.fleet import Finding, Fleet, Model, check_fleet, write_fleet

NOW = datetime(2026, 11, 22, tzinfo=UTC)
X = np.random.default_rng(1).normal(size=(50, 2))
GOOD = OneClassSVM(nu=0.1, gamma=0.1).fit(X)
LONELY = OneClassSVM(nu=1e-4, gamma=0.1).fit(np.array([[1.0, 1.0]] * 3))
FACTOR = LocalOutlierFactor(novelty=True).fit(X)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    models = [
        Model("d", "good", GOOD, trained_at=NOW - timedelta(days=1)),
        Model("d", "old", GOOD, trained_at=NOW - timedelta(days=91)),
        Model("d", "lonely", LONELY),
        Model("d", "factor", FACTOR),
    ]
    write_fleet(models, ("mean", "std"), tmp_path, NOW)
    return Fleet.open(tmp_path)


SEEN = [("d", name) for name in ("good", "old", "lonely", "factor")]


def named(findings: Iterable[Finding]) -> list[str]:
    return [finding.sensor for finding in findings]


def test_a_sound_fleet_has_nothing_to_report(tmp_path: Path) -> None:
    write_fleet([Model("d", "good", GOOD)], ("mean", "std"), tmp_path, NOW)
    report = check_fleet(Fleet.open(tmp_path), [("d", "good")], NOW, sample=[("d", "good", X)])
    assert report.clean


def test_sensors_without_a_model_are_missing_and_models_without_a_sensor_are_orphans(
    fleet: Fleet,
) -> None:
    report = check_fleet(fleet, [*SEEN[:2], ("d", "new"), ("e", "good")], NOW)
    assert report.missing == (
        Finding("d", "new", "was seen, but the fleet has no model of it"),
        Finding("e", "good", "was seen, but the fleet has no model of it"),
    )
    assert named(report.orphans) == ["factor", "lonely"]
    assert not report.clean


def test_models_older_than_the_limit_are_stale(fleet: Fleet) -> None:
    assert check_fleet(fleet, SEEN, NOW).stale == (Finding("d", "old", "trained 91 days ago"),)
    assert check_fleet(fleet, SEEN, NOW, stale_after=timedelta(days=91)).stale == ()
    assert named(check_fleet(fleet, SEEN, NOW, stale_after=timedelta(hours=23)).stale) == [
        "good",
        "old",
    ]


def test_a_single_support_vector_is_degenerate_without_any_windows(fleet: Fleet) -> None:
    (finding,) = check_fleet(fleet, SEEN, NOW).degenerate
    assert finding.sensor == "lonely"
    assert "single support vector" in finding.why


def test_a_model_that_calls_all_its_windows_anomalous_is_degenerate(fleet: Fleet) -> None:
    far = X + 100.0
    sample = [("d", "good", far), ("d", "factor", far), ("d", "old", X), ("x", "unknown", far)]
    report = check_fleet(fleet, SEEN, NOW, sample=sample)
    assert named(report.degenerate) == ["factor", "good", "lonely"]
    assert report.degenerate[0].why == "calls all 50 windows that it was tried on anomalous"


def test_a_few_anomalous_windows_prove_nothing(fleet: Fleet) -> None:
    few = np.full((9, 2), 100.0)
    nan = np.full((50, 2), np.nan)
    report = check_fleet(fleet, SEEN, NOW, sample=[("d", "good", few), ("d", "old", nan)])
    assert named(report.degenerate) == ["lonely"]


def test_a_sensor_is_found_in_either_form_of_unicode(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Kühler") for form in ("NFC", "NFD"))
    models = [Model(composed, "s", GOOD), Model(decomposed, "t", LONELY)]
    write_fleet(models, ("mean", "std"), tmp_path, NOW)
    seen = [(decomposed, "s"), (composed, "t")]
    sample = [(device, sensor, X + 100.0) for device, sensor in seen]
    report = check_fleet(Fleet.open(tmp_path), seen, NOW, sample=sample)
    assert (report.missing, report.orphans) == ((), ())
    assert sorted(named(report.degenerate)) == ["s", "t"]
