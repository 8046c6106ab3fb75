"""Model files made to do harm, opened by the thousand in one process that is watched.

``python -m tests.security.attack SEED COUNT`` prints a JSON object: how many were taken and
refused, and what was seen that must not be. Half of the files change one thing of a valid model
into another valid thing, so that they pass everything that only looks at their form.
"""

import copy
import io
import json
import pickle
import random
import resource
import signal
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import joblib
import numpy as np
import skops.io
from sklearn.covariance import EllipticEnvelope
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import SGDOneClassSVM
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MinMaxScaler,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)
from sklearn.svm import OneClassSVM

from scoring.detectors import Kind, decide
from scoring.errors import ModelRefused
from scoring.fleet import child
from scoring.fleet.matching import Columns
from scoring.fleet.modelfile import read_model
from scoring.fleet.payloads import decide_estimator, load_payload

SECONDS = 20
"""Processor time that one file may take here."""

MEMORY = 3 * 2**30
"""Bytes that the process may take besides what it has loaded."""

LONGEST = 300
"""Characters of a reason."""

_HARMLESS = frozenset(
    {
        *("object.__getattr__", "object.__setattr__", "object.__delattr__", "object.__new__"),
        *("code.__new__", "compile", "marshal.loads", "marshal.load", "sys._getframe"),
        *("gc.get_objects", "gc.get_referrers", "function.__new__", "array.__new__"),
        *("sys.excepthook", "sys.unraisablehook", "builtins.id", "signal.setitimer"),
        *("ctypes.addressof", "ctypes.cdata", "ctypes.cdata/buffer", "cpython.run_stdin"),
        *("signal.pthread_sigmask", "warnings.warn"),
    }
)
"""Audit events that reading numbers may raise."""

Rng = random.Random


def models() -> list[Any]:
    """Fit a model of every accepted kind."""
    x = np.abs(np.random.default_rng(3).normal(4, 2, (40, 2))) + 0.1
    first = (
        *(StandardScaler(), MinMaxScaler(), QuantileTransformer(n_quantiles=8), PCA(2)),
        *(PowerTransformer(), Nystroem(n_components=4), PolynomialFeatures(2)),
    )
    last = (
        *(OneClassSVM(), OneClassSVM(kernel="poly"), SGDOneClassSVM(), EllipticEnvelope()),
        *(IsolationForest(n_estimators=3), IsolationForest(n_estimators=2, max_features=1)),
        *(LocalOutlierFactor(5, novelty=True), LocalOutlierFactor(5, novelty=True, p=1)),
        LocalOutlierFactor(4, novelty=True, algorithm="ball_tree"),
    )
    alone = [copy.deepcopy(one).fit(x) for one in last]
    piped = [
        make_pipeline(copy.deepcopy(step), copy.deepcopy(last[n % len(last)])).fit(x)
        for n, step in enumerate(first)
    ]
    return alone + piped


# --- one thing of a valid model changed into another ------------------------------------------


def holders(thing: Any, seen: set[int]) -> Iterator[Any]:
    """Yield all dicts, lists and attribute dicts that are in a model."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if hasattr(thing, "__dict__") and type(thing).__module__.startswith("sklearn."):
        thing = vars(thing)
    if isinstance(thing, dict):
        yield thing
        for value in thing.values():
            yield from holders(value, seen)
    elif isinstance(thing, list):
        yield thing
        for value in thing:
            yield from holders(value, seen)
    elif isinstance(thing, tuple):
        for value in thing:
            yield from holders(value, seen)


NUMBERS = (0, 1, -1, 2, 3, 7, 2**31, 2**53, -(2**63), 10**18, 0.0, -0.0, 0.5, 1e300, np.nan, np.inf)


def other_array(rng: Rng, array: np.ndarray[Any, Any]) -> Any:  # noqa: PLR0911 - a list of ways
    """Change one thing of an array: a value, the type, the shape."""
    match rng.randrange(8):
        case 0 if array.size and array.dtype.names is None:
            found = array.copy()
            found.flat[rng.randrange(array.size)] = rng.choice((0, 1, -1, 10**6, -(10**6)))
            return found
        case 1 if array.dtype.names is None:
            return array.astype(rng.choice(("f4", "f8", "i4", "i8", "u1", "?", "c16", "O", "U5")))
        case 2:
            return array[: rng.randrange(len(array) + 1)] if array.ndim else array
        case 3:
            return np.concatenate([array, array]) if array.ndim else array
        case 4:
            return array.T if array.ndim > 1 else array.reshape(1, -1)
        case 5:
            return array.ravel()
        case 6:
            return np.asfortranarray(array[::-1]) if array.ndim else array
        case _:
            return np.zeros((0, *array.shape[1:]), array.dtype)


def other_value(  # noqa: PLR0911 - a list of ways
    rng: Rng, value: Any, all_values: list[Any]
) -> Any:
    """Return another valid value in the place of one."""
    if rng.random() < 0.3:
        return rng.choice(all_values)
    if isinstance(value, np.ndarray):
        return other_array(rng, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float, np.generic)):
        return rng.choice(NUMBERS)
    if isinstance(value, str):
        texts = ("precomputed", "rbf", "linear", "sparse", "brute", "cosine", "haversine", "auto")
        return rng.choice((*texts, "passthrough", "/etc/passwd", "x" * 10_000))
    if isinstance(value, (list, tuple)) and value:
        kind = type(value)
        return rng.choice((kind(value * 2), kind(value[:1]), kind(), kind(reversed(value))))
    return rng.choice(all_values)


def changed_model(rng: Rng, originals: list[Any]) -> Any:
    """Return a valid model of which one attribute is another valid thing."""
    model = copy.deepcopy(rng.choice(originals))
    found = [one for one in holders(model, set()) if one]
    pool = [one for one in holders(rng.choice(originals), set()) if one]
    values = [v for one in pool for v in (one.values() if isinstance(one, dict) else one)]
    holder = rng.choice(found)
    if isinstance(holder, dict):
        key = rng.choice(list(holder))
        if rng.random() < 0.1:
            del holder[key]
        else:
            holder[key] = other_value(rng, holder[key], values)
    else:
        place = rng.randrange(len(holder))
        holder[place] = other_value(rng, holder[place], values)
    return model


def saved(rng: Rng, model: Any) -> bytes:
    """Save a model in one of the forms."""
    match rng.randrange(4):
        case 0:
            return pickle.dumps(model, rng.choice((2, 4, 5)))
        case 1:
            sink = io.BytesIO()
            joblib.dump(model, sink)
            return sink.getvalue()
        case _:
            data: bytes = skops.io.dumps(model)
            return data


# --- one node of a skops file -----------------------------------------------------------------


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield all nodes of a skops schema."""
    if isinstance(tree, dict):
        if "__loader__" in tree:
            yield tree
        for value in tree.values():
            yield from nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from nodes(value)


FORGED = (
    *(("sklearn.ensemble._stacking", "StackingClassifier"), ("os", "system"), ("builtins", "eval")),
    *(("sklearn.feature_extraction.text", "CountVectorizer"), ("numpy", "load")),
    *(("sklearn.pipeline", "Pipeline"), ("sklearn.svm._classes", "OneClassSVM")),
    *(("sklearn.neighbors._kd_tree", "KDTree"), ("sklearn.tree._tree", "Tree")),
    *(("sklearn.preprocessing._function_transformer", "FunctionTransformer"),),
)
LOADERS = (
    *("ObjectNode", "DictNode", "ListNode", "TupleNode", "JsonNode", "NdArrayNode", "TypeNode"),
    *("FunctionNode", "MethodNode", "PartialNode", "TreeNode", "SetNode", "CachedNode"),
    *("OperatorFuncNode", "ConstructorFromReduceNode", "RandomStateNode", "SparseMatrixNode"),
)


def changed_schema(data: bytes, change: Callable[[Any], None]) -> bytes:
    """Return a skops file whose schema was changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(files.pop("schema.json"))
    change(schema)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr("schema.json", json.dumps(schema))
    return sink.getvalue()


def changed_skops(rng: Rng, originals: list[bytes]) -> bytes:
    """Change one node of a skops file into another one."""
    return changed_schema(rng.choice(originals), lambda schema: change_node(rng, schema))


def change_node(rng: Rng, schema: Any) -> None:
    """Make one node of a schema another one."""
    found = list(nodes(schema))
    node, other = rng.choice(found), rng.choice(found)
    match rng.randrange(6):
        case 0:
            node["__module__"], node["__class__"] = rng.choice(FORGED)
        case 1:
            node["__loader__"] = rng.choice(LOADERS)
        case 2:
            node["__id__"] = other.get("__id__")
        case 3:
            taken = copy.deepcopy(other)
            node.clear()
            node.update(taken)
        case 4:
            node["content"] = rng.choice((other.get("content"), "1e400", "[[]]", 10**400, None))
        case _:
            arrays = [one for one in found if one.get("type") == "numpy"]
            if len(arrays) > 1:
                rng.choice(arrays)["file"] = rng.choice(arrays)["file"]


def changed_bytes(rng: Rng, originals: list[bytes]) -> bytes:
    """Change some bytes of a file."""
    data = bytearray(rng.choice(originals))
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randint(len(data) // 2, len(data))])


# --- the process that is watched --------------------------------------------------------------


class Watch:
    """What a process does besides computing, while it is watched."""

    def __init__(self) -> None:
        self.is_on = False
        self.seen: Counter[str] = Counter()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event not in _HARMLESS:
            self.seen[f"{event} {str(arguments)[:100]}"] += 1


def opened(data: bytes) -> str:
    """Open a file as a model and ask it; return the reason if it is refused."""
    columns = Columns(("mean", "std"))
    try:
        compiled, _ = read_model(data, columns)
    except ModelRefused as error:
        return str(error)
    x = np.array([[3.0, 4.0], [1e6, -1e6]])
    if compiled.shape.kind is Kind.PAYLOAD:
        decide_estimator(load_payload(compiled.payload), x)
    else:
        decide(compiled.shape, compiled.parameters[None], x.T[None])
    return ""


def attack(seed: int, count: int) -> dict[str, Any]:
    """Open `count` files; return what was seen."""
    rng = random.Random(seed)
    originals = models()
    files = [saved(rng, model) for model in originals for _ in range(2)]
    skopsed = [data for data in files if data[:2] == b"PK"]
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: saved(rng, changed_model(rng, originals)),
        lambda: saved(rng, changed_model(rng, originals)),
        lambda: changed_skops(rng, skopsed),
        lambda: changed_bytes(rng, files),
    )
    child.load("estimators")
    watch, outcomes, problems = Watch(), Counter[str](), list[str]()
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    slowest = 0.0
    for number in range(count):
        try:
            data = makers[number % len(makers)]()
        except Exception:  # noqa: BLE001 - not every change can be saved
            outcomes["not made"] += 1
            continue
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        begin, watch.is_on = time.process_time(), True
        try:
            reason = opened(data)
        except Exception as error:  # noqa: BLE001 - as a child answers it
            reason = f"{type(error).__name__}: {error}"[:250]
            outcomes["raised"] += 1
        finally:
            watch.is_on = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - begin)
        outcomes["refused" if reason else "taken"] += 1
        if len(reason) > LONGEST:
            problems.append(f"{number}: a reason of {len(reason)}: {reason[:200]}")
    return {
        "outcomes": outcomes,
        "seen": watch.seen.most_common(20),
        "problems": problems[:20],
        "slowest": round(slowest, 2),
    }


if __name__ == "__main__":
    print(json.dumps(attack(int(sys.argv[1]), int(sys.argv[2]))))  # noqa: T201
