"""Fleets written, opened and asked."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler, StandardScaler
from sklearn.svm import OneClassSVM

from scoring.detectors import Kind, Shape
from scoring.errors import InvalidFleet, ModelRefused, StorageUnusable
from scoring.fleet import (
    Fleet,
    Model,
    ModelInfo,
    merge_models,
    read_manifest,
    score_part,
    write_fleet,
)
from scoring.fleet.compiling import Compiled
from scoring.predictions import INPUT_SCHEMA, PREDICTION_SCHEMA, read_predictions, write_table

FEATURES = ("mean", "std", "last")
ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 22, 23, 0, tzinfo=UTC)


def rows(seed: int, count: int = 80) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 3)) * [1.0, 0.2, 3.0] + [20.0, 1.0, 0.0]


ESTIMATORS = {
    "svm": make_pipeline(StandardScaler(), OneClassSVM(nu=0.1, gamma=0.1)).fit(rows(1)),
    "svm2": OneClassSVM(nu=0.3, gamma=0.5).fit(rows(2)),
    "poly": OneClassSVM(kernel="poly", gamma=0.1, nu=0.1).fit(rows(3)),
    "elliptic": EllipticEnvelope(random_state=0).fit(rows(4)),
    "forest": IsolationForest(n_estimators=10, random_state=0).fit(rows(5)),
    "factor": LocalOutlierFactor(novelty=True).fit(rows(6)),
    "tree": LocalOutlierFactor(novelty=True, algorithm="kd_tree").fit(rows(6)),
    "robust": make_pipeline(RobustScaler(), OneClassSVM(nu=0.2)).fit(rows(7)),
}


def models(names: Any = tuple(ESTIMATORS), device: str = "d1") -> Any:
    return [Model(device, name, ESTIMATORS[name], f"made for {name}", NOW) for name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("fleet")
    write_fleet(models(), FEATURES, folder, NOW)
    return folder


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Any:
    return Fleet.open(folder)


def described(fleet: Fleet, sensor: str) -> ModelInfo:
    info = fleet.find("d1", sensor)
    assert info is not None
    return info


def part_of(entries: Any) -> Any:
    """Make an input part of (device, sensor, three features)."""
    entries = list(entries)
    columns = {
        "device": pa.array([device for device, _, _ in entries], pa.string()).dictionary_encode(),
        "sensor": pa.array([sensor for _, sensor, _ in entries], pa.string()).dictionary_encode(),
        "window_start": pa.array(range(len(entries)), pa.timestamp("us", tz="UTC")),
        "count": pa.array([6] * len(entries), pa.int64()),
        "min": pa.array([0.0] * len(entries), pa.float64()),
        "max": pa.array([0.0] * len(entries), pa.float64()),
    }
    for position, feature in enumerate(FEATURES):
        columns[feature] = pa.array([x[position] for _, _, x in entries], pa.float64())
    return pa.table(columns).select(INPUT_SCHEMA.names).cast(INPUT_SCHEMA)


def check_against_estimators(entries: Any, result: pa.Table, estimators: Any = ESTIMATORS) -> None:
    """Hold every scored row against its own estimator."""
    table = result.to_pylist()
    assert len(table) == len(entries)
    for sensor, estimator in estimators.items():
        mine = [i for i, entry in enumerate(entries) if entry[1] == sensor]
        x = np.array([entries[i][2] for i in mine]).reshape(len(mine), 3)
        if not len(x):
            continue
        expected = estimator.decision_function(x)
        scores = np.array([table[i]["anomaly_score"] for i in mine])
        scale = np.abs(estimator.decision_function(rows(1))).max()
        assert np.abs(scores + expected).max() <= 1e-9 * max(scale, np.abs(expected).max())
        labels = [table[i]["is_anomaly"] for i in mine]
        assert labels == (estimator.predict(x) == -1).tolist()


def test_every_kind_scores_as_its_estimator_with_rows_in_any_order(fleet: Fleet) -> None:
    entries = [("d1", name, tuple(x)) for name in ESTIMATORS for x in rows(8, 30)]
    np.random.default_rng(9).shuffle(entries)
    entries = [(device, name, tuple(map(float, x))) for device, name, x in entries]
    result = score_part(fleet, part_of(entries))
    assert result.schema.equals(PREDICTION_SCHEMA)
    assert set(result["status"].to_pylist()) == {"scored"}
    assert result["reason"].null_count == len(entries)
    assert result["window_start"].equals(part_of(entries)["window_start"])
    check_against_estimators(entries, result)


def test_known_kinds_are_numbers_and_the_others_ride_along(fleet: Fleet) -> None:
    kinds = {name: str(described(fleet, name).kind) for name in ESTIMATORS}
    assert kinds == {
        "svm": "one_class_svm",
        "svm2": "one_class_svm",
        "poly": "one_class_svm",
        "elliptic": "elliptic_envelope",
        "forest": "isolation_forest",
        "factor": "skops",
        "tree": "skops",
        "robust": "skops",
    }


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rows_are_scored_alike_whatever_stands_around_them(
    fleet: Fleet, data: st.DataObject
) -> None:
    names = st.sampled_from(["svm", "svm2", "elliptic", "nobody", "factor"])
    known = rows(10, 12)
    drawn = data.draw(st.lists(st.tuples(names, st.integers(0, 11)), max_size=60))
    entries = [("d1", name, tuple(known[row])) for name, row in drawn]
    table = score_part(fleet, part_of(entries)).to_pylist()
    for (device, name, x), row in zip(entries, table, strict=True):
        alone = score_part(fleet, part_of([(device, name, x)])).to_pylist()[0]
        assert row["status"] == alone["status"]
        assert row["is_anomaly"] == alone["is_anomaly"]
        scores = [found["anomaly_score"] for found in (row, alone)]
        # scikit-learn itself scores a payload, and promises no equal digits.
        assert scores[0] == (scores[1] if name != "factor" else pytest.approx(scores[1], rel=1e-9))


def test_sensors_without_a_model_are_said_to_have_none_and_harm_nobody(fleet: Fleet) -> None:
    entries = [
        ("d2", "svm", (20.0, 1.0, 0.0)),
        ("d1", "svm", (20.0, 1.0, 0.0)),
        ("d1", "unheard of", (20.0, 1.0, 0.0)),
        ("svm", "d1", (20.0, 1.0, 0.0)),
    ]
    result = score_part(fleet, part_of(entries))
    assert result["status"].to_pylist() == ["no_model", "scored", "no_model", "no_model"]
    assert result["anomaly_score"].null_count == result["is_anomaly"].null_count == 3
    assert result["reason"].to_pylist()[0] == "the fleet has no model of this sensor"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sensor", ESTIMATORS)
def test_a_feature_that_is_not_finite_sets_only_its_own_row_aside(
    fleet: Fleet, sensor: str, bad: float
) -> None:
    good = (20.0, 1.0, 0.0)
    entries = [("d1", sensor, good), ("d1", sensor, (bad, 1.0, 0.0)), ("d1", sensor, good)]
    result = score_part(fleet, part_of(entries)).to_pylist()
    assert [row["status"] for row in result] == ["scored", "invalid_features", "scored"]
    assert result[1]["reason"] == "a feature is not a finite number"
    assert result[0]["anomaly_score"] == result[2]["anomaly_score"] is not None


def test_the_result_is_a_valid_prediction_part(fleet: Fleet) -> None:
    entries = [
        ("d1", "svm", (20.0, 1.0, 0.0)),
        ("d1", "poly", (1e200,) * 3),
        ("x", "y", (0.0,) * 3),
    ]
    data = write_table(score_part(fleet, part_of(entries)))
    assert read_predictions(data, "part")["status"].to_pylist()[0] == "scored"


def test_a_decision_that_overflows_fails_its_row_only(fleet: Fleet) -> None:
    entries = [("d1", "poly", (1e200,) * 3), ("d1", "poly", (20.0, 1.0, 0.0))]
    result = score_part(fleet, part_of(entries)).to_pylist()
    assert [row["status"] for row in result] == ["model_failed", "scored"]
    assert result[0]["reason"] == "the model's decision is not a finite number"


def test_a_model_that_fails_sets_only_its_own_rows_aside(tmp_path: Path) -> None:
    forest = Model("d", "forest", ESTIMATORS["forest"])
    write_fleet([forest], FEATURES, tmp_path / "sound", NOW)
    sound = Fleet.open(tmp_path / "sound").compiled(0)
    parameters = sound.parameters.copy()
    # Children far outside of the table: what a faulty program might have written.
    parameters[-sound.shape.units :] += 1e6
    broken = Compiled(sound.shape, parameters)
    junk = Compiled(Shape(Kind.PAYLOAD, "", 3, 0), np.empty(0), payload=b"no skops file")
    write_fleet(
        [forest, Model("d", "broken", broken), Model("d", "junk", junk)], FEATURES, tmp_path, NOW
    )
    x = (20.0, 1.0, 0.0)
    entries = [("d", name, x) for name in ("broken", "forest", "junk", "broken")]
    result = score_part(Fleet.open(tmp_path), part_of(entries)).to_pylist()
    assert [row["status"] for row in result] == [
        "model_failed",
        "scored",
        "model_failed",
        "model_failed",
    ]
    assert "IndexError" in result[0]["reason"]
    assert "not a usable skops file" in result[2]["reason"]


def test_a_model_with_many_rows_scores_as_with_few(fleet: Fleet) -> None:
    x = rows(11, 5000)
    entries = [("d1", "svm", tuple(row)) for row in x]
    check_against_estimators(entries, score_part(fleet, part_of(entries)))


def test_models_with_all_sorts_of_row_counts_score_as_one_by_one(tmp_path: Path) -> None:
    svm = ESTIMATORS["svm"]
    names = [f"s{number:02d}" for number in range(30)]
    write_fleet([Model("d1", name, svm) for name in names], FEATURES, tmp_path, NOW)
    entries = [
        ("d1", name, tuple(row))
        for number, name in enumerate(names)
        for row in rows(number, 1 + 7 * number)
    ]
    result = score_part(Fleet.open(tmp_path), part_of(entries))
    check_against_estimators(entries, result, dict.fromkeys(names, svm))


def test_a_part_without_rows_gives_a_result_without_rows(fleet: Fleet) -> None:
    result = score_part(fleet, part_of([]))
    assert result.num_rows == 0
    assert result.schema.equals(PREDICTION_SCHEMA)


def test_a_part_in_chunks_with_dictionaries_of_their_own_is_scored_as_one(fleet: Fleet) -> None:
    entries = [("d1", name, tuple(x)) for name in ("svm", "svm2") for x in rows(12, 4)]
    chunks = pa.concat_tables([part_of(entries[:3]), part_of(entries[3:])])
    assert chunks["device"].num_chunks == 2
    whole = score_part(fleet, part_of(entries))
    assert score_part(fleet, chunks)["anomaly_score"].to_pylist() == (
        whole["anomaly_score"].to_pylist()
    )


def test_an_empty_fleet_has_no_model_for_anybody(tmp_path: Path) -> None:
    write_fleet([], FEATURES, tmp_path, NOW)
    fleet = Fleet.open(tmp_path)
    assert len(fleet) == 0
    result = score_part(fleet, part_of([("d", "s", (1.0, 2.0, 3.0))]))
    assert result["status"].to_pylist() == ["no_model"]
    assert fleet.find("d", "s") is None


def test_opening_and_scoring_known_kinds_imports_neither_scikit_learn_nor_pandas(
    tmp_path: Path,
) -> None:
    write_fleet(models(("svm", "poly", "elliptic", "forest")), FEATURES, tmp_path / "f", NOW)
    sink = tmp_path / "part.arrow"
    part = part_of([("d1", "svm", (20.0, 1.0, 0.0)), ("d1", "forest", (20.0, 1.0, 0.0))])
    with pa.OSFile(str(sink), "wb") as file, pa.ipc.new_file(file, part.schema) as writer:
        writer.write_table(part)
    program = f"""
import sys, pathlib, pyarrow as pa
from scoring.fleet import Fleet, score_part
part = pa.ipc.open_file({str(sink)!r}).read_all()
result = score_part(Fleet.open(pathlib.Path({str(tmp_path / "f")!r})), part)
assert result["status"].combine_chunks().dictionary[0].as_py() == "scored"
print(sorted({{"sklearn", "scipy", "skops", "pandas"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_same_models_in_any_order_give_the_same_version_and_bytes(
    tmp_path: Path, folder: Path
) -> None:
    turned = write_fleet(reversed(models()), FEATURES, tmp_path, datetime(2030, 1, 1, tzinfo=UTC))
    assert turned == Fleet.open(folder).version
    assert (tmp_path / "models.arrow").read_bytes() == (folder / "models.arrow").read_bytes()
    assert turned[0] == "f"
    assert len(turned) == 13


def test_a_model_more_gives_another_version(tmp_path: Path, fleet: Fleet) -> None:
    assert write_fleet(models(("svm",)), FEATURES, tmp_path, NOW) != fleet.version


def test_a_fleet_describes_its_models(fleet: Fleet) -> None:
    info = described(fleet, "svm")
    assert info.kernel == "rbf"
    assert info.support == len(ESTIMATORS["svm"][-1].support_)
    assert info.hyper_parameters["nu"] == 0.1
    assert info.source == "made for svm"
    assert info.trained_at == NOW
    assert info.features == FEATURES
    assert set(fleet.keys()) == {("d1", name) for name in ESTIMATORS}
    assert fleet.find("d1", "nobody") is None
    assert fleet.find("nobody", "svm") is None


def test_the_manifest_says_what_is_in_the_fleet(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest["models"] == len(ESTIMATORS)
    assert manifest["kinds"] == {
        "elliptic_envelope": 1,
        "isolation_forest": 1,
        "one_class_svm": 3,
        "skops": 3,
    }
    assert manifest["created_at"] == "2026-11-22T23:00:00+00:00"
    assert manifest["libraries"].keys() == {"numpy", "pyarrow", "scikit-learn", "skops"}


def test_merging_replaces_the_same_sensors_and_keeps_the_others(
    tmp_path: Path, fleet: Fleet
) -> None:
    changed = [Model("d1", "svm", ESTIMATORS["svm2"], "newer"), Model("d9", "s", ESTIMATORS["svm"])]
    write_fleet(merge_models(fleet, changed)[0], FEATURES, tmp_path, NOW)
    merged = Fleet.open(tmp_path)
    assert set(merged.keys()) == {*fleet.keys(), ("d9", "s")}
    assert described(merged, "svm").source == "newer"
    assert merged.find("d1", "factor") == fleet.find("d1", "factor")
    entries = [("d1", name, tuple(x)) for name in ESTIMATORS for x in rows(13, 5)]
    check_against_estimators(
        entries,
        score_part(merged, part_of(entries)),
        ESTIMATORS | {"svm": ESTIMATORS["svm2"]},
    )


def test_merging_nothing_gives_the_same_fleet(tmp_path: Path, fleet: Fleet) -> None:
    assert write_fleet(merge_models(fleet, [])[0], FEATURES, tmp_path, NOW) == fleet.version


def test_a_fleet_can_be_written_over_while_it_is_open(tmp_path: Path) -> None:
    write_fleet(models(("svm",)), FEATURES, tmp_path, NOW)
    before = Fleet.open(tmp_path)
    write_fleet(models(("svm2",)), FEATURES, tmp_path, NOW)
    entries = [("d1", "svm", (20.0, 1.0, 0.0)), ("d1", "svm2", (20.0, 1.0, 0.0))]
    old, new = (score_part(fleet, part_of(entries)) for fleet in (before, Fleet.open(tmp_path)))
    assert old["status"].to_pylist() == ["scored", "no_model"]
    assert new["status"].to_pylist() == ["no_model", "scored"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "models.arrow"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Model("d", "s", OneClassSVM().fit(rows(1)[:, :2])), "2 features where the fleet has 3"),
        (Model("d", "s", OneClassSVM()), "device d sensor s"),
        (
            Model("d", "s", LocalOutlierFactor().fit(rows(1))),
            "novelty of LocalOutlierFactor has to",
        ),
        (Model("d", "s", object()), "asks for builtins.object"),
        (Model("d", "s", StandardScaler().fit(rows(1))), "no outlier detector"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, model: Any, reason: str
) -> None:
    with pytest.raises(ModelRefused, match=r"device d sensor s: ") as refused:
        write_fleet([*models(("svm",)), model], FEATURES, tmp_path / "new", NOW)
    assert reason in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_two_models_of_one_sensor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="more than one model of device d1 sensor svm"):
        write_fleet(models(("svm", "svm")), FEATURES, tmp_path, NOW)


@pytest.mark.parametrize("features", [(), ("mean", "mean"), ("mean", "median")])
def test_features_that_no_part_has_are_refused(tmp_path: Path, features: Any) -> None:
    with pytest.raises(InvalidFleet, match="feature"):
        write_fleet([], features, tmp_path, NOW)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageUnusable, match="file"):
        write_fleet([], FEATURES, tmp_path / "file", NOW)


def damage_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))


def flip_byte(folder: Path) -> None:
    data = bytearray((folder / "models.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "models.arrow").write_bytes(data)


def forge(folder: Path) -> None:
    """Another file, with a manifest to match."""
    data = b"ARROW1 but not really" * 10
    (folder / "models.arrow").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    damage_manifest(folder, sha256=digest, size=len(data), version="f" + digest[:12])


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "manifest.json is missing": lambda f: (f / "manifest.json").unlink(),
    "is not JSON": lambda f: (f / "manifest.json").write_text("{"),
    "has format None": lambda f: (f / "manifest.json").write_text("[]"),
    "has format 99": lambda f: damage_manifest(f, format=99),
    "no usable entry 'sha256'": lambda f: damage_manifest(f, sha256=None),
    "no usable entry 'size'": lambda f: damage_manifest(f, size="big"),
    "models.arrow is missing": lambda f: (f / "models.arrow").unlink(),
    "bytes where manifest.json says": lambda f: (f / "models.arrow").write_bytes(
        (f / "models.arrow").read_bytes()[:-9]
    ),
    "models.arrow was changed": flip_byte,
    "does not belong to its SHA-256": lambda f: damage_manifest(f, version="f000000000000"),
    "are not usable": lambda f: damage_manifest(f, features=["mean", "std", "max"]),
    "cannot be read": forge,
    "has 0 bytes": lambda f: (f / "models.arrow").write_bytes(b""),
}


@pytest.mark.parametrize("cause", DAMAGE)
def test_a_damaged_fleet_does_not_open_and_says_why(tmp_path: Path, cause: str) -> None:
    write_fleet(models(("svm", "elliptic")), FEATURES, tmp_path, NOW)
    DAMAGE[cause](tmp_path)
    with pytest.raises(InvalidFleet) as invalid:
        Fleet.open(tmp_path)
    assert cause in str(invalid.value)
    assert str(tmp_path) in str(invalid.value)


def test_a_folder_that_is_not_there_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(InvalidFleet, match="missing"):
        Fleet.open(tmp_path / "nowhere")
