"""Model files from outside: what is taken, what is refused, and that nothing of them is run."""

import bz2
import collections
import csv
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import time
import unicodedata
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.covariance import EllipticEnvelope
from sklearn.decomposition import PCA, FactorAnalysis, FastICA, IncrementalPCA, TruncatedSVD
from sklearn.ensemble import IsolationForest
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.linear_model import SGDOneClassSVM
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import OneClassSVM

from scoring.errors import BadInput, ModelRefused
from scoring.fleet import Fleet, Imported, Model, Refused, import_models, score_part, write_fleet
from scoring.fleet.adding import prepare
from scoring.fleet.asking import decide_payload
from scoring.fleet.matching import Columns
from scoring.fleet.modelfile import read_model
from scoring.fleet.naming import Listed, Names, Pattern
from scoring.fleet.pickles import read_pickle
from scoring.fleet.predicting import decide_model
from scoring.predictions import FEATURES, INPUT_SCHEMA

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 22, tzinfo=UTC)
X = np.random.default_rng(1).normal(size=(60, 2)) * [1.0, 5.0] + [30.0, 0.0]
DATA = ROOT.parent / "shared" / "data"

SVM = make_pipeline(StandardScaler(), OneClassSVM(nu=0.1, gamma=0.1)).fit(X)
KNOWN = {
    "svm": SVM,
    "linear": OneClassSVM(kernel="linear", nu=0.2).fit(X),
    "elliptic": EllipticEnvelope(random_state=0).fit(X),
    "forest": IsolationForest(n_estimators=8, random_state=0).fit(X),
    "scaled-forest": make_pipeline(
        StandardScaler(),
        IsolationForest(n_estimators=8, contamination=0.1, random_state=np.random.RandomState(1)),
    ).fit(X),
}


TWO = Columns(("mean", "std"))


def taken(folder: Path, columns: Columns = TWO, *names: Names) -> list[Model]:
    """Import a folder of which nothing may be refused."""
    found = list(import_models(folder, columns, *names))
    assert [one for one in found if isinstance(one, Refused)] == []
    return [one.model for one in found if isinstance(one, Imported)]


def joblib_bytes(model: Any, **options: Any) -> Any:
    sink = io.BytesIO()
    joblib.dump(model, sink, **options)
    return sink.getvalue()


WAYS = {
    **{f"pickle-{n}": lambda m, n=n: pickle.dumps(m, protocol=n) for n in (2, 3, 4, 5)},
    "joblib": joblib_bytes,
    **{
        f"joblib-{name}": lambda m, name=name: joblib_bytes(m, compress=(name, 3))
        for name in ("zlib", "gzip", "bz2", "xz", "lzma")
    },
    "skops": skops.io.dumps,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KNOWN)
def test_a_known_kind_scores_as_its_estimator_however_it_was_saved(
    tmp_path: Path, way: str, kind: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model_d_s").write_bytes(WAYS[way](KNOWN[kind]))
    write_fleet(taken(tmp_path / "in"), ("mean", "std"), tmp_path / "f", NOW)
    fleet = Fleet.open(tmp_path / "f")
    assert [str(group.shape.kind) for group in fleet.groups] != ["skops"]
    x = np.concatenate([X, X * 1.3])
    decisions, labels = decide_model(fleet, 0, x)
    expected = KNOWN[kind].decision_function(x)
    assert np.abs(decisions - expected).max() <= 1e-9 * np.abs(expected).max()
    np.testing.assert_array_equal(labels, KNOWN[kind].predict(x) == -1)


@pytest.mark.parametrize("way", ["pickle-3", "joblib", "joblib-zlib"])
def test_a_model_that_was_fitted_on_named_columns_is_taken_too(way: str) -> None:
    frame = pd.DataFrame(X, columns=["mean", "std"])
    model = make_pipeline(StandardScaler(), OneClassSVM()).fit(frame)
    assert read_model(WAYS[way](model), TWO)[0].support == len(model[-1].support_)


@pytest.mark.parametrize("algorithm", ["brute", "kd_tree", "ball_tree"])
def test_another_kind_rides_along_as_a_skops_file(tmp_path: Path, algorithm: str) -> None:
    model = LocalOutlierFactor(novelty=True, algorithm=algorithm).fit(X)
    data = skops.io.dumps(model)
    compiled, source = read_model(data, TWO)
    assert (bool(compiled.payload), source) == (True, "skops file")
    assert read_model(compiled.payload, TWO)[0].payload == compiled.payload
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model_d_s.skops").write_bytes(data)
    write_fleet(taken(tmp_path / "in"), ("mean", "std"), tmp_path, NOW)
    decisions, labels = decide_model(Fleet.open(tmp_path), 0, X)
    np.testing.assert_array_equal(decisions, model.decision_function(X))
    np.testing.assert_array_equal(labels, model.predict(X) == -1)


def test_every_detector_of_scikit_learn_can_come_as_skops() -> None:
    model = make_pipeline(StandardScaler(), SGDOneClassSVM(random_state=0)).fit(X)
    assert read_model(skops.io.dumps(model), TWO)[0].payload


KINDS_BEFORE = (
    *(StandardScaler(), MinMaxScaler((-1, 2), clip=True), MaxAbsScaler(), RobustScaler()),
    *(Normalizer(), Binarizer(threshold=3.0), PowerTransformer(), PowerTransformer("box-cox")),
    *(PowerTransformer(standardize=False), QuantileTransformer(n_quantiles=20)),
    *(QuantileTransformer(n_quantiles=9, output_distribution="normal"), PCA(1), PCA(whiten=True)),
    *(IncrementalPCA(1), TruncatedSVD(1), FastICA(1, random_state=0), FactorAnalysis(1)),
    *(PolynomialFeatures(3, include_bias=False), PolynomialFeatures((1, 2), order="F")),
    *(Nystroem("rbf", n_components=7), Nystroem("poly", degree=2, coef0=1.5, n_components=5)),
    *(RBFSampler(gamma=0.3, n_components=9, random_state=0), RBFSampler(gamma="scale")),
    *(StandardScaler(with_mean=False), StandardScaler(with_std=False)),
)
DETECTORS_AFTER = (
    *(OneClassSVM(nu=0.2), OneClassSVM(kernel="poly", degree=2, gamma=0.3, nu=0.3)),
    *(SGDOneClassSVM(random_state=0), EllipticEnvelope(random_state=0)),
    *(EllipticEnvelope(store_precision=False, random_state=0),),
    *(IsolationForest(n_estimators=7, random_state=0),),
    *(IsolationForest(n_estimators=5, max_features=1, contamination=0.2, random_state=1),),
    *(LocalOutlierFactor(novelty=True), LocalOutlierFactor(5, novelty=True, metric="manhattan")),
    *(LocalOutlierFactor(novelty=True, metric="minkowski", p=3, algorithm="ball_tree"),),
    *(LocalOutlierFactor(novelty=True, algorithm="brute", contamination=0.1),),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["pickle-2", "joblib", "skops"])
@pytest.mark.parametrize(
    ("before", "detector"),
    [*((before, OneClassSVM()) for before in KINDS_BEFORE)]
    + [(MinMaxScaler(), detector) for detector in DETECTORS_AFTER],
    ids=repr,
)
def test_every_accepted_estimator_scores_as_itself_however_it_was_saved(
    way: str, before: Any, detector: Any
) -> None:
    x = np.abs(X) + 0.5
    model = make_pipeline(clone(before), "passthrough", clone(detector)).fit(x)

    compiled, _ = read_model(WAYS[way](model), TWO)

    points = np.concatenate([x, x * 1.4])
    assert compiled.payload or type(before) is StandardScaler
    if compiled.payload:
        decisions, labels = decide_payload(compiled.payload, points)
        np.testing.assert_array_equal(decisions, model.decision_function(points))
        np.testing.assert_array_equal(labels, model.predict(points) == -1)


def test_a_search_for_parameters_comes_as_the_best_that_it_has_found() -> None:
    search = GridSearchCV(OneClassSVM(), {"nu": [0.1, 0.3]}, scoring=lambda *_: 1.0).fit(X)

    for way in ("joblib", "skops"):
        search.scoring = search.scorer_ = None
        compiled, _ = read_model(WAYS[way](search), TWO)
        assert compiled.support == len(search.best_estimator_.support_)


# --- names of files ---------------------------------------------------------------------------


def outcome(folder: Path, columns: Columns = TWO, *names: Names) -> Any:
    return {
        found.file: found.reason if isinstance(found, Refused) else "taken"
        for found in import_models(folder, columns, *names)
    }


def test_device_and_sensor_come_from_the_files_name(tmp_path: Path) -> None:
    for name in ("model_1_2", "model_pump 7_flow in.joblib", "model_a.b_c.pkl"):
        joblib.dump(SVM, tmp_path / name)
    found = {(model.device, model.sensor) for model in taken(tmp_path)}
    assert found == {("1", "2"), ("pump 7", "flow in"), ("a.b", "c")}


def test_another_pattern_can_be_given(tmp_path: Path) -> None:
    joblib.dump(SVM, tmp_path / "flow@pump.pkl")
    (model,) = taken(tmp_path, TWO, Pattern.of("{sensor}@{device}"))
    assert (model.device, model.sensor) == ("pump", "flow")


@pytest.mark.parametrize("pattern", ["model", "{device}", "{device}{sensor}", "{device}_{device}"])
def test_a_pattern_that_does_not_name_both_once_is_refused(pattern: str) -> None:
    with pytest.raises(BadInput, match="pattern"):
        Pattern.of(pattern)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a folder"):
        list(import_models(tmp_path / "nowhere", TWO))


def test_refused_files_are_named_with_reasons_and_the_others_go_on(tmp_path: Path) -> None:
    joblib.dump(SVM, tmp_path / "model_a_1")
    joblib.dump(SVM, tmp_path / "model_a_1.joblib")
    joblib.dump(SVM, tmp_path / "README.joblib")
    joblib.dump(SVM, tmp_path / f"model_{'x' * 129}_1")
    joblib.dump(SVM, tmp_path / "model_a\n_1")
    joblib.dump(OneClassSVM().fit(X[:, :1]), tmp_path / "model_b_1")
    joblib.dump(OneClassSVM(), tmp_path / "model_c_1")
    joblib.dump({"not": "a model"}, tmp_path / "model_d_1")
    joblib.dump(LocalOutlierFactor().fit(X), tmp_path / "model_e_1")
    (tmp_path / "model_f_1").write_bytes(joblib_bytes(SVM)[:-30])
    (tmp_path / "model_g_1").write_bytes(b"")
    (tmp_path / "model_h_1").mkdir()
    (tmp_path / "model_i_1").symlink_to(tmp_path / "model_a_1")
    (tmp_path / "model_j_1.txt").write_text("hello")
    joblib.dump(SVM, tmp_path / "model_z_1")
    found = outcome(tmp_path)
    assert [name for name, reason in found.items() if reason == "taken"] == [
        "model_a_1",
        "model_z_1",
    ]
    assert found["model_a_1.joblib"] == "the same device and sensor as model_a_1"
    assert found["README.joblib"] == "its name does not match model_{device}_{sensor}"
    assert found[f"model_{'x' * 129}_1"] == "its name does not match model_{device}_{sensor}"
    assert found["model_a\n_1"] == "its name does not match model_{device}_{sensor}"
    assert found["model_b_1"] == "1 features where the fleet has 2"
    assert "without usable attributes" in found["model_c_1"]
    assert found["model_d_1"] == "holds a dict, not a model"
    assert found["model_e_1"] == "novelty of LocalOutlierFactor has to be True, and is False"
    assert "truncated" in found["model_f_1"]
    assert "neither a pickle" in found["model_g_1"]
    assert found["model_h_1"] == "not a file"
    assert found["model_i_1"] == "a symbolic link"
    assert "neither a pickle" in found["model_j_1.txt"]


# --- what is made to do harm ------------------------------------------------------------------


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def run_me(*_: Any) -> None:
    """Fail: no import may ever call this."""
    pytest.fail("a model file was run")


def global_(module: str, name: str) -> Any:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


P = b"\x80\x03"
NUMPY = "numpy.core.multiarray"
HOSTILE = {
    "asks for posix.system": pickle.dumps(Calls(os.system, "touch /tmp/owned"), 3),
    "asks for builtins.eval": pickle.dumps(Calls(eval, "1"), 4),
    "asks for builtins.getattr": pickle.dumps(Calls(getattr, 1, "real"), 4),
    "asks for functools.partial": P + global_("functools", "partial") + b".",
    "asks for sklearn.svm._classes.OneClassSVM.fit": (
        b"\x80\x04\x8c\x14sklearn.svm._classes\x8c\x0fOneClassSVM.fit\x93."
    ),
    "asks for numpy.load": P + global_("numpy", "load") + b".",
    "asks for joblib.numpy_pickle.load": P + global_("joblib.numpy_pickle", "load") + b".",
    "calls numpy.ndarray": P + global_("numpy", "ndarray") + b"K\x01\x85R.",
    "calls something that is not a name": P + b"]K\x01\x85R.",
    "calls _codecs.encode in a way": P
    + global_("_codecs", "encode")
    + b"X\x01\0\0\0aX\x04\0\0\0zlib\x86R.",
    "instruction 'BINPERSID'": P + b"X\x01\0\0\0aQ.",
    "instruction 'PERSID'": P + b"Pa\n.",
    "instruction 'EXT1'": P + b"\x82\x01.",
    "instruction 'INST'": P + b"(iposix\nsystem\n.",
    "instruction 'OBJ'": P + b"(" + global_("sklearn.pipeline", "Pipeline") + b"o.",
    "instruction 'NEXT_BUFFER'": b"\x80\x05\x97.",
    "instruction 'EMPTY_SET'": b"\x80\x04\x8f.",
    "instruction 'NEWOBJ_EX'": b"\x80\x04" + global_("sklearn.pipeline", "Pipeline") + b")}\x92.",
    "instruction b'\\xff'": P + b"\xff.",
    "sets the state of something": P + global_("sklearn.pipeline", "Pipeline") + b"}b.",
    "sets items of something": P
    + global_("sklearn.pipeline", "Pipeline")
    + b")\x81X\x01\0\0\0aN\x73.",
    "appends to something": P + global_("sklearn.pipeline", "Pipeline") + b")\x81Na.",
    "dict with a key of type tuple": P + b"})N\x73.",
    "an array of type M8": P + global_("numpy", "dtype") + b"X\x02\0\0\0M8\x85R}b.",
    "truncated: an array": (
        P
        + global_(NUMPY, "_reconstruct")
        + global_("numpy", "ndarray")
        + b"K\0\x85C\x01b\x87R(K\x01J\xff\xff\xff\x7f\x85"
        + global_("numpy", "dtype")
        + b"X\x02\0\0\0f8K\0K\x01\x87R\x89C\x08AAAAAAAAtb."
    ),
    "without a proper shape": (
        P
        + global_(NUMPY, "_reconstruct")
        + global_("numpy", "ndarray")
        + b"K\0\x85C\x01b\x87R(K\x01J\xff\xff\xff\xff\x85"
        + global_("numpy", "dtype")
        + b"X\x02\0\0\0f8K\0K\x01\x87R\x89C\0tb."
    ),
    "it ends before": P + b"]",
    "truncated or damaged": P + b"B\xff\xff\xff\x7fabc.",
    "ValueError": P + b"Nt.",
    "IndexError": P + b".",
    "KeyError": P + b"h\x07.",
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_a_hostile_pickle_is_refused_by_name(reason: str) -> None:
    with pytest.raises(ModelRefused) as refused:
        read_model(HOSTILE[reason], TWO)
    assert reason in str(refused.value)
    assert not Path("/tmp/owned").exists()  # noqa: S108 - what the hostile file would make


@pytest.mark.parametrize("reason", HOSTILE)
def test_a_hostile_pickle_is_refused_in_compressed_form_too(reason: str) -> None:
    with pytest.raises(ModelRefused) as refused:
        read_model(zlib.compress(HOSTILE[reason]), TWO)
    assert reason in str(refused.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_in_a_pickle_is_called(protocol: int) -> None:
    run_me.__module__ = __name__
    with pytest.raises(ModelRefused, match=r"asks for .*run_me"):
        read_pickle(pickle.dumps(Calls(run_me, 1), protocol))


def test_a_call_hidden_in_joblibs_array_of_objects_is_found() -> None:
    hidden = np.array([Calls(run_me, 1)], dtype=object)
    with pytest.raises(ModelRefused, match=r"asks for .*run_me"):
        read_pickle(joblib_bytes({"deep": hidden}))


def test_a_call_hidden_in_a_models_attribute_is_found() -> None:
    svm = OneClassSVM().fit(X)
    svm.extra = Calls(run_me, 1)
    for way in ("pickle-4", "joblib"):
        with pytest.raises(ModelRefused, match=r"asks for .*run_me"):
            read_model(WAYS[way](svm), TWO)


@pytest.mark.parametrize("protocol", [0, 1])
def test_pickles_of_the_oldest_protocols_are_refused(protocol: int) -> None:
    with pytest.raises(ModelRefused, match="neither a pickle of protocol 2"):
        read_pickle(pickle.dumps(SVM, protocol))


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress, bz2.compress, lzma.compress])
def test_a_file_that_unpacks_to_too_much_is_refused_quickly(
    pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoring.fleet.compressed.MAX_UNPACKED", 2**20)
    with pytest.raises(ModelRefused, match="decompresses to more than"):
        read_pickle(pack(b"\x80\x03" + bytes(2**24)))


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_without_its_checksum_is_refused(pack: Any) -> None:
    with pytest.raises(ModelRefused, match=r"truncated|decompressed"):
        read_pickle(pack(pickle.dumps(SVM))[:-4])


def test_a_pickle_of_too_many_instructions_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoring.fleet.pickles.MAX_STEPS", 1000)
    with pytest.raises(ModelRefused, match="instructions"):
        read_pickle(P + b"N0" * 2000 + b"N.")


def test_a_pickle_that_copies_one_text_many_times_is_given_up() -> None:
    text = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"q\x00"
    encode = global_("_codecs", "encode") + b"q\x01X\x06\0\0\0latin1q\x02"
    again = b"h\x01h\x00h\x02\x86R"
    with pytest.raises(ModelRefused, match="makes more than"):
        read_pickle(P + text + encode + again * 300 + b".")


def test_lists_within_lists_that_print_to_any_length_are_no_name_and_no_array() -> None:
    # Fifty lists, each holding the one before twice: a quadrillion if anybody printed them.
    nested = b"]q\x00" + b"".join(
        b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(50)
    )
    start = time.process_time()
    with pytest.raises(ModelRefused, match="no name"):
        read_pickle(b"\x80\x04" + nested + b"h\x32h\x32\x93.")
    state = b"}(X\x06\0\0\0kernelX\x03\0\0\0rbfX\x10\0\0\0support_vectors_h\x32u"
    model = P + nested + global_("sklearn.svm._classes", "OneClassSVM") + b")\x81" + state + b"b."
    with pytest.raises(ModelRefused, match="expected an array, found list"):
        read_model(model, TWO)
    assert time.process_time() - start < 5


def deepen(levels: int) -> Any:
    return P + b"]" * levels + b"a" * (levels - 1) + b"."


def test_a_deeply_nested_pickle_is_no_trouble() -> None:
    with pytest.raises(ModelRefused, match="holds a list"):
        read_model(deepen(200_000), TWO)


def captured_forest(**changes: Any) -> Any:
    """Make a forest whose first tree has other nodes."""
    forest = IsolationForest(n_estimators=3, random_state=0).fit(X)
    data = pickle.dumps(forest, 4)
    model = read_pickle(data)
    nodes = model.state["estimators_"][0].state["tree_"].state["nodes"].copy()
    for name, values in changes.items():
        nodes[name][: len(values)] = values
    model.state["estimators_"][0].state["tree_"].state["nodes"] = nodes
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {"left_child": [0], "right_child": [0]},
        {"left_child": [1], "right_child": [1]},
        {"left_child": [10**9]},
        {"left_child": [-1]},
        {"feature": [17]},
        {"feature": [-2]},
    ],
)
def test_a_tree_whose_indices_lead_astray_is_refused(changes: Any) -> None:
    with pytest.raises(ModelRefused, match=r"tree|out of bounds"):
        prepare(captured_forest(**changes), TWO)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_gamma": -1e9}, "gamma below 0"),
        ({"_gamma": float("nan")}, "not finite"),
        ({"_gamma": "x" * 10**6}, "could not convert"),
        ({"degree": 10**400}, "degree 1000000"),
        ({"support_vectors_": np.empty((0, 2))}, "rows of features"),
        ({"_dual_coef_": np.ones((1, 3))}, "numbers, found shape"),
        ({"_intercept_": np.ones(2)}, "too many values"),
        ({"support_vectors_": None}, "expected an array"),
    ],
)
def test_an_svm_whose_attributes_are_no_good_is_refused_briefly(changes: Any, reason: str) -> None:
    model = read_pickle(pickle.dumps(OneClassSVM().fit(X), 4))
    model.state.update(changes)
    with pytest.raises(ModelRefused) as refused:
        prepare(model, TWO)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 400


# Python's own reader of pickles warns of a damaged escape sequence.
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_taken_but_never_crashes(data: st.DataObject) -> None:
    original = data.draw(st.sampled_from([pickle.dumps(SVM, 3), joblib_bytes(SVM)]))
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(1, len(damaged)))]
    try:
        read_model(bytes(damaged), TWO)
    except ModelRefused as refused:
        assert str(refused)


def changed_skops(data: bytes, change: Any) -> Any:
    """Make a skops file with another schema."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(files["schema.json"])
    change(schema)
    files["schema.json"] = json.dumps(schema).encode()
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return sink.getvalue()


def test_a_skops_file_that_asks_for_another_type_is_refused_by_name() -> None:
    data = changed_skops(
        skops.io.dumps(LocalOutlierFactor(novelty=True).fit(X)),
        lambda schema: schema.update({"__class__": "Popen", "__module__": "subprocess"}),
    )
    with pytest.raises(ModelRefused, match=r"subprocess\.Popen"):
        read_model(data, TWO)


def test_a_skops_file_of_a_function_is_refused() -> None:
    model = make_pipeline(FunctionTransformer(run_me), OneClassSVM())
    with pytest.raises(ModelRefused, match="FunctionTransformer, which is not accepted"):
        read_model(skops.io.dumps(model), TWO)


def test_a_skops_file_of_something_that_is_no_detector_is_refused() -> None:
    with pytest.raises(ModelRefused, match="StandardScaler is no outlier detector"):
        read_model(skops.io.dumps(StandardScaler().fit(X)), TWO)


def test_a_skops_file_that_is_cut_off_or_too_large_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = skops.io.dumps(LocalOutlierFactor(novelty=True).fit(X))
    with pytest.raises(ModelRefused, match="not a usable skops file"):
        read_model(data[:-50], TWO)
    monkeypatch.setattr("scoring.fleet.skopsed.MAX_UNPACKED", 100)
    with pytest.raises(ModelRefused, match="unpacks to"):
        read_model(data, TWO)


def test_a_skops_tree_of_neighbours_is_built_anew_and_not_believed() -> None:
    model = LocalOutlierFactor(novelty=True, algorithm="kd_tree").fit(X)
    expected = model.decision_function(X)
    state = list(model._tree.__getstate__())
    state[1] = np.full_like(state[1], 10**9)
    model._tree.__setstate__(tuple(state))
    compiled, _ = read_model(skops.io.dumps(model), TWO)
    np.testing.assert_array_equal(decide_payload(compiled.payload, X)[0], expected)


# --- the models of 2018 -----------------------------------------------------------------------

needs_data = pytest.mark.skipif(
    not (DATA / "seed_models").is_dir(), reason="../shared/data is not here: no models of 2018"
)

# Decision and label of scikit-learn 0.19.2 (Python 3.6, NumPy 1.19) for the models of 2018, by
# device, sensor and value; 0.0 is exactly 0, and an anomaly.
DECISIONS_OF_2018 = [
    ("1", "1", 10.01, 2.4626108444114614e-10, 1),
    ("1", "1", 12.09, 0.0006470031752371652, 1),
    ("1", "1", 15.0, -0.0005959109780784254, -1),
    ("1", "1", 13.35, 0.00041091921553066194, 1),
    ("2", "3", 61.8, 0.00045953174074832986, 1),
    ("2", "3", 65.0, -0.0009700100301717023, -1),
    ("2", "3", 60.01, -3.9687702430013516e-10, -1),
    ("3", "4", 82.47, 0.0, -1),
    ("3", "4", 84.73, -0.0007588289894765073, -1),
    ("1", "2", 35.13, 0.0, -1),
    ("1", "2", 31.09, -0.0005387887108605979, -1),
]


@pytest.fixture(scope="module")
def seed_fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    folder = tmp_path_factory.mktemp("seed")
    write_fleet(taken(DATA / "seed_models", Columns(("mean",))), ("mean",), folder, NOW)
    return Fleet.open(folder)


def score_values(fleet: Fleet, entries: Any) -> Any:
    devices, sensors, values = zip(*entries, strict=True)
    numbers = pa.array(values, pa.float64())
    columns = dict.fromkeys(("mean", "std", "min", "max", "last"), numbers)
    part = pa.table(
        {
            "device": pa.array(devices).dictionary_encode(),
            "sensor": pa.array(sensors).dictionary_encode(),
            "window_start": pa.array(range(len(values)), pa.timestamp("us", tz="UTC")),
            "count": pa.array([1] * len(values), pa.int64()),
            **columns,
        }
    )
    return score_part(fleet, part.select(INPUT_SCHEMA.names).cast(INPUT_SCHEMA))


@needs_data
def test_the_models_of_2018_decide_as_in_2018(seed_fleet: Fleet) -> None:
    assert len(seed_fleet) == 15
    info = seed_fleet.find("1", "1")
    assert info is not None
    assert info.source == "pickle of scikit-learn 0.19.2 model_1_1"
    assert info.hyper_parameters["nu"] == 0.0001
    result = score_values(seed_fleet, [entry[:3] for entry in DECISIONS_OF_2018]).to_pylist()
    for (device, sensor, _, decision, label), row in zip(DECISIONS_OF_2018, result, strict=True):
        assert row["status"] == "scored"
        assert abs(row["anomaly_score"] + decision) <= 1e-9 * 1e-3, (device, sensor)
        assert row["is_anomaly"] == (label == -1)


@needs_data
def test_the_models_of_2018_follow_the_formula_in_every_reading(seed_fleet: Fleet) -> None:
    with (DATA / "sensor_data.csv").open() as file:
        entries = [(r["Device"], r["Sensor"], float(r["Value"])) for r in csv.DictReader(file)]
    assert len(entries) == 17_768
    formula = {}
    for path in (DATA / "seed_models").iterdir():
        (_, scaler), (_, svm) = read_pickle(path.read_bytes()).state["steps"]
        mean, scale, svm = scaler.state["mean_"][0], scaler.state["scale_"][0], svm.state
        terms = list(zip(svm["_dual_coef_"][0], svm["support_vectors_"][:, 0], strict=True))
        formula[tuple(path.name.split("_")[1:])] = mean, scale, svm, terms
    result = score_values(seed_fleet, entries)
    scores, labels = (result[name].to_pylist() for name in ("anomaly_score", "is_anomaly"))
    for (device, sensor, value), score, label in zip(entries, scores, labels, strict=True):
        mean, scale, svm, terms = formula[device, sensor]
        z = (value - mean) / scale
        total = 0.0
        for dual, vector in terms:
            total += dual * math.exp(-svm["_gamma"] * ((vector - z) * (vector - z)))
        decision = total + svm["_intercept_"][0]
        assert abs(score + decision) <= 1e-9 * 1e-4
        assert label == (not decision > 0)


@needs_data
def test_reading_the_models_of_2018_imports_no_scikit_learn() -> None:
    program = f"""
import sys, pathlib
from scoring.fleet import Imported, import_models
from scoring.fleet.matching import Columns
found = list(import_models(pathlib.Path({str(DATA / "seed_models")!r}), Columns(("mean",))))
print(len(found), all(isinstance(one, Imported) for one in found), "sklearn" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "15 True False\n"


def test_the_table_of_hostile_pickles_would_do_harm_elsewhere() -> None:
    """The test above could not fail if these pickles were harmless."""
    calls: collections.Counter[tuple[str, str]] = collections.Counter()

    class Loader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            calls[module, name] += 1
            return lambda *_: None

    Loader(io.BytesIO(HOSTILE["asks for posix.system"])).load()
    assert calls == {("posix", "system"): 1}


# --- names that can be read in several ways, folders, lists -----------------------------------


def sensors_in(folder: Path, names: Names) -> set[tuple[str, str]]:
    return {(model.device, model.sensor) for model in taken(folder, TWO, names)}


def test_of_several_ways_to_read_a_name_the_one_of_a_known_sensor_holds(tmp_path: Path) -> None:
    joblib.dump(SVM, tmp_path / "model_device_01_temp.pkl")

    known = Pattern.of(known=[("device_01", "temp"), ("device_02", "temp")])

    assert sensors_in(tmp_path, known) == {("device_01", "temp")}


@pytest.mark.parametrize("known", [[], [("device_01", "temp"), ("device", "01_temp")]])
def test_a_name_that_can_be_read_in_several_ways_is_refused_with_patterns_that_decide(
    tmp_path: Path, known: list[tuple[str, str]]
) -> None:
    joblib.dump(SVM, tmp_path / "model_device_01_temp.pkl")

    reason = outcome(tmp_path, TWO, Pattern.of(known=known))["model_device_01_temp.pkl"]

    assert "device device, sensor 01_temp or device device_01, sensor temp" in reason
    short, long = re.findall(r"--pattern '([^']+)'", reason)
    assert sensors_in(tmp_path, Pattern.of(short)) == {("device", "01_temp")}
    assert sensors_in(tmp_path, Pattern.of(long)) == {("device_01", "temp")}
    assert "--map" in reason


@pytest.mark.parametrize("pattern", ["{sensor}-of-{device}", "{device}--{sensor}"])
def test_the_patterns_that_decide_do_so_whatever_stands_between(
    tmp_path: Path, pattern: str
) -> None:
    between = pattern.replace("{device}", "").replace("{sensor}", "")
    name = between.join("abc")
    joblib.dump(SVM, tmp_path / f"{name}.pkl")

    reason = outcome(tmp_path, TWO, Pattern.of(pattern))[f"{name}.pkl"]

    found = [sensors_in(tmp_path, Pattern.of(one)) for one in re.findall(r"'([^']+)'", reason)]
    assert len(found) == 2
    assert found[0] != found[1]


EXTENDED = ("", ".pkl", ".sav", ".PKL", ".pkl.gz", ".Joblib", ".pickle.xz", ".skops")


@pytest.mark.parametrize("extension", EXTENDED)
def test_no_extension_becomes_part_of_a_name(tmp_path: Path, extension: str) -> None:
    joblib.dump(SVM, tmp_path / f"model_pump1_temp{extension}")
    assert sensors_in(tmp_path, Pattern.of()) == {("pump1", "temp")}


def test_a_name_in_decomposed_unicode_meets_its_sensor(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Kühler") for form in ("NFC", "NFD"))
    joblib.dump(SVM, tmp_path / f"model_{decomposed}_temp.pkl")

    assert sensors_in(tmp_path, Pattern.of()) == {(composed, "temp")}
    known = Pattern.of(known=[(decomposed, "temp")])
    assert sensors_in(tmp_path, known) == {(decomposed, "temp")}


@pytest.mark.parametrize("known", ["NFC", "NFD"])
@pytest.mark.parametrize("sent", ["NFC", "NFD"])
def test_readings_meet_their_model_in_either_form_of_unicode(
    tmp_path: Path, known: str, sent: str
) -> None:
    device = unicodedata.normalize(known, "Kühler")  # type: ignore[arg-type]
    write_fleet([Model(device, "t", SVM)], TWO.features, tmp_path, NOW)

    wanted = unicodedata.normalize(sent, "Kühler")  # type: ignore[arg-type]

    assert Fleet.open(tmp_path).find(wanted, "t") is not None


def test_folders_can_be_part_of_a_pattern(tmp_path: Path) -> None:
    for name in ("plant/pump_1/model_temp.pkl", "plant/pump_2/model_flow_in.pkl"):
        (tmp_path / name).parent.mkdir(parents=True)
        joblib.dump(SVM, tmp_path / name)

    found = sensors_in(tmp_path, Pattern.of("*/{device}/model_{sensor}"))

    assert found == {("pump_1", "temp"), ("pump_2", "flow_in")}


def test_a_field_can_be_bound_to_an_expression(tmp_path: Path) -> None:
    for name in ("a_7_x.pkl", "a_b_7_x_y.pkl"):
        joblib.dump(SVM, tmp_path / name)

    found = sensors_in(tmp_path, Pattern.of(r"{device:.*_\d{1,3}}_{sensor}"))

    assert found == {("a_7", "x"), ("a_b_7", "x_y")}


def test_an_expression_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match="no regular expression"):
        Pattern.of("{device:[}_{sensor}")


def test_a_list_names_the_sensors_of_files(tmp_path: Path) -> None:
    (tmp_path / "models" / "deep").mkdir(parents=True)
    for name in ("one.pkl", "deep/two.bin", "unlisted.pkl"):
        joblib.dump(SVM, tmp_path / "models" / name)
    path = tmp_path / "list.csv"
    rows = ["sensor,file,device", "t,one.pkl,a_1", 's,deep\\two.bin,"b,2"', "s,gone.pkl,c"]
    path.write_text("\n".join(rows), encoding="utf-8-sig")

    names = Listed.of(path)
    found = list(import_models(tmp_path / "models", TWO, names))

    models = [one.model for one in found if isinstance(one, Imported)]
    assert {(model.device, model.sensor) for model in models} == {("a_1", "t"), ("b,2", "s")}
    assert {one.file: one.reason for one in found if isinstance(one, Refused)} == {
        "unlisted.pkl": "list.csv does not list it",
        "gone.pkl": "is listed, and not there",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,device\na,b", "no column sensor"),
        ("file,device,sensor\na,b", "line 2"),
        ("file,device,sensor\na,b,c\na,d,e", "twice"),
        ("", "no column file, device, sensor"),
    ],
)
def test_a_list_that_is_not_whole_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=reason):
        Listed.of(path)


# --- columns by name --------------------------------------------------------------------------

FLEET = ("mean", "std", "min", "max")
NAMED = pd.DataFrame(np.random.default_rng(3).normal((5, 1, 3, 8), 1, (80, 4)), columns=FLEET)
ORDERS = (("max", "mean", "min", "std"), ("std", "mean"), ("max",), FLEET)

FITTED = {
    "rbf": lambda: make_pipeline(StandardScaler(), OneClassSVM(nu=0.1)),
    "bare rbf": lambda: OneClassSVM(nu=0.1, gamma="scale"),
    "linear": lambda: OneClassSVM(kernel="linear", nu=0.2),
    "elliptic": lambda: EllipticEnvelope(random_state=0),
    "forest": lambda: IsolationForest(n_estimators=8, random_state=0),
    "factor": lambda: LocalOutlierFactor(novelty=True),
}


# scikit-learn's own LocalOutlierFactor takes the names off and then misses them.
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("way", ["joblib", "skops"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", FITTED)
def test_a_model_takes_its_columns_by_their_names(
    tmp_path: Path, kind: str, order: tuple[str, ...], way: str
) -> None:
    if (kind, way) == ("factor", "joblib"):
        return  # refused, whatever its columns
    model = FITTED[kind]().fit(NAMED[list(order)])
    data = joblib_bytes(model) if way == "joblib" else skops.io.dumps(model)
    compiled, _ = read_model(data, Columns(FLEET))
    other = prepare(OneClassSVM().fit(NAMED.to_numpy()), Columns(FLEET))
    write_fleet([Model("d", "s", compiled), Model("d", "t", other)], FLEET, tmp_path, NOW)
    fleet = Fleet.open(tmp_path)
    info = fleet.find("d", "s")
    assert info is not None
    assert info.features == order
    x = NAMED.to_numpy() + np.random.default_rng(4).normal(0, 2, NAMED.shape)
    frame = pd.DataFrame(x, columns=FLEET)

    found = scored(fleet, "s", frame)

    np.testing.assert_allclose(
        found["anomaly_score"], -model.decision_function(frame[list(order)]), rtol=0, atol=1e-9
    )
    assert (found["is_anomaly"] == (model.predict(frame[list(order)]) == -1)).all()


def scored(fleet: Fleet, sensor: str, x: pd.DataFrame) -> pd.DataFrame:
    """Score the rows as a part of one sensor's windows, through the whole way."""
    columns = {
        "device": ["d"] * len(x),
        "sensor": [sensor] * len(x),
        "window_start": pd.date_range("2020-01-01", periods=len(x), freq="min", tz="UTC"),
    } | {name: x[name] if name in x else np.ones(len(x)) for name in FEATURES}
    part = pa.Table.from_pandas(
        pd.DataFrame(columns).astype({"count": "int64"}), schema=INPUT_SCHEMA, preserve_index=False
    )
    frame: pd.DataFrame = score_part(fleet, part).to_pandas()
    return frame


@pytest.mark.parametrize("way", ["joblib", "skops"])
def test_columns_that_are_no_features_are_refused_and_the_way_out_named(way: str) -> None:
    frame = NAMED[["mean", "std"]].set_axis(["temp", "std"], axis=1)
    model = OneClassSVM(nu=0.1).fit(frame)
    data = joblib_bytes(model) if way == "joblib" else skops.io.dumps(model)

    with pytest.raises(ModelRefused, match=r"temp is no feature.*--columns temp=.*--by-position"):
        read_model(data, TWO)

    by_name, _ = read_model(data, Columns(("std", "mean"), {"temp": "mean"}))
    by_place, _ = read_model(data, Columns(("std", "mean"), by_position=True))
    assert (by_name.shape.columns, by_place.shape.columns) == ((1, 0), ())


def test_columns_that_the_fleet_lacks_are_refused_and_the_features_named() -> None:
    model = OneClassSVM(nu=0.1).fit(NAMED[["max", "std"]])
    with pytest.raises(ModelRefused, match=r"takes max, .* --features mean,std,max --fresh"):
        read_model(joblib_bytes(model), TWO)


def test_two_columns_of_one_feature_are_refused() -> None:
    model = OneClassSVM(nu=0.1).fit(NAMED[["max", "std"]])
    with pytest.raises(ModelRefused, match="twice"):
        read_model(joblib_bytes(model), Columns(FLEET, {"max": "std"}))


def test_a_fleet_of_the_format_before_is_read(tmp_path: Path) -> None:
    models = [Model("d", "s", SVM), Model("d", "t", SVM)]
    write_fleet(models, TWO.features, tmp_path / "now", NOW)
    now = Fleet.open(tmp_path / "now")
    old = tmp_path / "old"
    old.mkdir()
    path = old / "models.arrow"
    with pa.OSFile(str(tmp_path / "now" / "models.arrow")) as source:
        table = pa.ipc.open_file(source).read_all().drop_columns(["features"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    manifest = json.loads((tmp_path / "now" / "manifest.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest |= {"format": 1, "sha256": digest, "version": "f" + digest[:12]}
    manifest["size"] = path.stat().st_size
    (old / "manifest.json").write_text(json.dumps(manifest))

    before = Fleet.open(old)

    assert [before.describe(row) for row in range(2)] == [now.describe(row) for row in range(2)]
    x = NAMED[["mean", "std"]]
    assert scored(before, "t", x).equals(scored(now, "t", x))
