"""Model files that are made to do harm: refused by name or harmless, in bounded time and memory."""

import copy
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import skops.io
from sklearn.ensemble import IsolationForest, StackingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import OneClassSVM

from scoring.fleet import Imported, import_models
from scoring.fleet.matching import Columns
from tests.security.attack import changed_schema

TWO = Columns(("mean", "std"))
X = np.abs(np.random.default_rng(5).normal(4, 2, (40, 2)))
FACTOR = LocalOutlierFactor(5, novelty=True).fit(X)
PIPED = make_pipeline(MinMaxScaler(), OneClassSVM()).fit(X)
FOREST = IsolationForest(n_estimators=2, random_state=0).fit(X)


def outcome(folder: Path, data: bytes) -> str:
    """Import one file and an ordinary one after it; return why the first was refused."""
    (folder / "model_a_1").write_bytes(data)
    joblib.dump(PIPED, folder / "model_b_1")

    first, second = import_models(folder, TWO)

    assert isinstance(second, Imported)
    if isinstance(first, Imported):
        return ""
    assert len(first.reason) < 300
    assert first.file == "model_a_1"
    return first.reason


# --- code, files --------------------------------------------------------------------------------


class Touches:
    """Unpickled, it leaves a canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def test_a_pipeline_with_a_memory_opens_no_cache(tmp_path: Path) -> None:
    cache, canary = tmp_path / "cache", tmp_path / "canary"
    for entry in cache.rglob("output.pkl"):
        entry.write_bytes(pickle.dumps(Touches(canary)))
    model = Pipeline(PIPED.steps, memory=str(cache))

    assert "memory" in outcome(tmp_path, skops.io.dumps(model))
    assert "memory" in outcome(tmp_path, pickle.dumps(model))
    assert not canary.exists()


def test_a_stacked_classifier_with_steps_is_no_pipeline(tmp_path: Path) -> None:
    model = StackingClassifier([("a", LogisticRegression())])
    model.steps = [("a", MinMaxScaler()), ("b", FACTOR)]
    model.stack_method_ = ["__init__"]

    reason = outcome(tmp_path, skops.io.dumps(model))

    assert "sklearn.ensemble._stacking.StackingClassifier" in reason


def test_a_vectoriser_of_files_reads_none(tmp_path: Path) -> None:
    model = make_pipeline(CountVectorizer(input="filename"), FACTOR)

    for data in (skops.io.dumps(model), pickle.dumps(model)):
        assert "CountVectorizer, which is not accepted" in outcome(tmp_path, data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metric", np.load),
        ("effective_metric_", "precomputed"),
        ("effective_metric_params_", {"func": print}),
        ("_fit_method", "auto"),
        ("novelty", False),
        ("n_neighbors_", 10**9),
        ("_fit_X", np.full((40, 2), np.nan)),
        ("_fit_X", X[:3]),
        ("_lrd", np.zeros((40, 40))),
        ("leaf_size", 0),
    ],
)
def test_an_attribute_that_is_not_what_it_has_to_be_is_named(
    tmp_path: Path, name: str, value: Any
) -> None:
    model = LocalOutlierFactor(5, novelty=True).fit(X)
    setattr(model, name, value)

    reason = outcome(tmp_path, pickle.dumps(model))

    assert any(word in reason for word in (name, "LocalOutlierFactor", "numpy", "builtins.print"))


def test_attributes_that_no_schema_knows_are_left_out() -> None:
    from scoring.fleet.modelfile import read_model  # noqa: PLC0415 - here, not in a child
    from scoring.fleet.payloads import load_payload  # noqa: PLC0415

    model = LocalOutlierFactor(5, novelty=True, n_jobs=64).fit(X)
    model.score_samples = "mine"

    compiled, _ = read_model(skops.io.dumps(model), TWO)

    built = load_payload(compiled.payload)
    assert "score_samples" not in vars(built)
    assert built.n_jobs is None


# --- memory, time -------------------------------------------------------------------------------


def repeated_tree(schema: Any) -> None:
    trees = schema["content"]["content"]["estimators_"]["content"]
    # Known by its id, it is not described again.
    trees += [{"__loader__": "ObjectNode", "__id__": trees[0]["__id__"]}] * 300_000


def deep(schema: Any) -> None:
    inner: Any = {"__loader__": "ListNode", "content": []}
    for _ in range(400):
        inner = {"__loader__": "ListNode", "content": [inner]}
    schema["content"]["content"]["offset_"] = inner


def many_features(schema: Any) -> None:
    count = {"__loader__": "JsonNode", "content": str(10**9)}
    schema["content"]["content"]["n_features_in_"] = count


@pytest.mark.parametrize(
    ("model", "change"), [(FOREST, repeated_tree), (FACTOR, deep), (FOREST, many_features)]
)
def test_a_small_file_of_something_huge_is_refused(
    tmp_path: Path, model: Any, change: Callable[[Any], None]
) -> None:
    assert outcome(tmp_path, changed_schema(skops.io.dumps(model), change))


def test_a_pickle_that_repeats_one_tree_is_refused(tmp_path: Path) -> None:
    model = copy.deepcopy(FOREST)
    model.estimators_ *= 300_000
    model.estimators_features_ *= 300_000

    assert "over 10000" in outcome(tmp_path, pickle.dumps(model))


def packed(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return sink.getvalue()


NPY = b"\x93NUMPY\x01\x00"


def array_file(header: str) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return NPY + len(text).to_bytes(2, "little") + text


def of_array(content: bytes) -> bytes:
    schema = {
        "__class__": "ndarray",
        "__module__": "numpy",
        "__loader__": "NdArrayNode",
        "type": "numpy",
        "file": "1.npy",
        "__id__": 1,
    }
    return packed({"schema.json": json.dumps(schema).encode(), "1.npy": content})


BOMBS = {
    "a schema of a gigabyte": packed({"schema.json": b" " * 2**30}),
    "an array of a gigabyte": packed({"schema.json": b"{}", "1.npy": b"\0" * 2**30}),
    "a shape of 8 TB": of_array(
        array_file("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}")
    ),
    "a type of 8 TB": of_array(
        array_file("{'descr': [('a', '<f8', (1099511627776,))], 'fortran_order': False,"
                   " 'shape': (0,)}")
    ),
    "a header that nests": of_array(NPY + (9000).to_bytes(2, "little") + b"(" * 9000),
    "no schema": packed({"other.json": b"{}"}),
    "a schema that nests": packed({"schema.json": b"[" * 10**6}),
    "a huge number": packed({"schema.json": b"9" * 10**6}),
    "lzma": packed({"schema.json": b"{}"}, zipfile.ZIP_LZMA),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(tmp_path: Path, name: str) -> None:
    assert outcome(tmp_path, BOMBS[name])


# --- thousands ----------------------------------------------------------------------------------


def attacked(seed: int, count: int) -> Any:
    command = [sys.executable, "-W", "ignore", "-m", "tests.security.attack", str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("seed", "count"),
    [
        (1, 300),
        *(pytest.param(seed, 2500, marks=pytest.mark.exhaustive) for seed in range(2, 7)),
    ],
)
@pytest.mark.timeout(400)
def test_changed_files_do_nothing_but_compute(seed: int, count: int) -> None:
    found = attacked(seed, count)

    assert found["seen"] == []
    assert found["problems"] == []
    assert min(found["outcomes"]["taken"], found["outcomes"]["refused"]) > count // 10


def test_the_watch_hears_what_an_attack_would_do() -> None:
    look = (
        "from tests.security.attack import Watch\n"
        "watch = Watch()\n"
        "watch.is_on = True\n"
        "import os, socket\n"
        "open('/etc/passwd'), socket.socket(), os.system('true'), __import__('this')\n"
        "watch.is_on = False\n"
        "print(sorted({seen.split()[0] for seen in watch.seen}))\n"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)

    heard = done.stdout.splitlines()[-1]
    for event in ("open", "socket.__new__", "os.system", "import"):
        assert f"'{event}'" in heard
