"""The estimators that a model may consist of, and what each of their attributes has to be.

A file describes objects; nothing in it is trusted. `build` makes an estimator of those that are
named here and of nothing else: each attribute is held against its `Check`, which names its type,
its range and, by letters that stand for lengths, its shape. An attribute that has no check here is
left out, and the estimator has the one that its constructor gives it. So what scikit-learn's
compiled code is given holds together by construction.

Where the classes stood in older versions of scikit-learn is from its sources.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NoReturn

import numpy as np

from scoring.errors import ModelRefused
from scoring.fleet.attributes import Captured, Unread, attributes_of
from scoring.fleet.forests import average_path_length, flatten_forest, nodes_of

Sizes = dict[str, int]
"""Lengths by letter; the first array or count that has a letter says what it stands for."""

Check = Callable[[Any, Sizes], Any]
"""Returns a value as it is to be used; raises ValueError, which says what is wrong with it."""

MOST = 10_000
"""Of features, components, quantiles, steps of a pipeline and the like."""

_STEPS = 50

_MISSING = object()


# --- checks -----------------------------------------------------------------------------------


def flag(value: Any, _: Sizes) -> bool:
    """Check a truth value."""
    if type(value) is not bool:
        _wrong("True or False", value)
    return value


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Check a finite number in a range."""

    def check(value: Any, _: Sizes) -> Any:
        if isinstance(value, np.ndarray) and value.shape in {(), (1,)}:
            value = value.reshape(())[()].item()
        if isinstance(value, np.generic):
            value = value.item()
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            _wrong("a number in its range", value)
        return value

    return check


def count(letter: str = "", low: int = 1, high: int = MOST) -> Check:
    """Check a whole number in a range; with a letter, one that is the length of something."""

    def check(value: Any, sizes: Sizes) -> int:
        found = number(low, high)(value, sizes)
        if found != int(found):
            _wrong("a whole number", value)
        if letter and sizes.setdefault(letter, int(found)) != found:
            _wrong(f"{sizes[letter]}", value)
        return int(found)

    return check


def choice(*values: Any) -> Check:
    """Check a text, or None, that is one of a few."""

    def check(value: Any, _: Sizes) -> Any:
        if not (value is None or type(value) is str) or value not in values:
            _wrong(" or ".join(map(str, values)), value)
        return value

    return check


def array(shape: str, *, finite: bool = False, whole: bool = False) -> Check:
    """Check an array of real numbers: of floats, or of whole ones.

    Parameters
    ----------
    shape
        A letter or a digit for each dimension.
    """

    def check(value: Any, sizes: Sizes) -> Any:
        if type(value) is not np.ndarray or value.dtype.kind not in ("iu" if whole else "biuf"):
            _wrong("an array of numbers", value)
        if value.ndim != len(shape):
            _wrong(f"an array of {len(shape)} dimensions", value)
        for letter, length in zip(shape, value.shape, strict=True):
            wanted = int(letter) if letter.isdigit() else sizes.setdefault(letter, length)
            if length != wanted:
                message = f"shape {value.shape}, where {letter} is {wanted}"
                raise ValueError(message)
        found = np.array(value, dtype=np.int64 if whole else np.float64, order="C")
        if finite and not np.isfinite(found).all():
            message = "is not finite"
            raise ValueError(message)
        return found

    return check


def indices(shape: str, below: str) -> Check:
    """Check an array of positions in something whose length has a letter."""

    def check(value: Any, sizes: Sizes) -> Any:
        found = array(shape, whole=True)(value, sizes)
        if found.size and (found.min() < 0 or found.max() >= sizes[below]):
            message = "leads out of bounds"
            raise ValueError(message)
        return found

    return check


def optional(check: Check) -> Check:
    """Let a value be None."""
    return lambda value, sizes: None if value is None else check(value, sizes)


def either(*checks: Check) -> Check:
    """Take a value by the first check that it passes."""

    def check(value: Any, sizes: Sizes) -> Any:
        for one in checks:
            try:
                return one(value, sizes)
            except ValueError as error:
                last = error
        raise last

    return check


def pair(check: Check) -> Check:
    """Check a tuple of two."""

    def both(value: Any, sizes: Sizes) -> tuple[Any, Any]:
        if type(value) not in (tuple, list) or len(value) != 2:  # noqa: PLR2004 - a pair
            _wrong("two numbers", value)
        return check(value[0], sizes), check(value[1], sizes)

    return both


def texts(letter: str) -> Check:
    """Check a list of texts, as arrays of names are read; gives the array."""

    def check(value: Any, sizes: Sizes) -> Any:
        names = value if type(value) is list else []
        if not names or not all(type(name) is str for name in names):
            _wrong("names of columns", value)
        if sizes.setdefault(letter, len(names)) != len(names):
            _wrong(f"{sizes[letter]} names of columns", value)
        return np.array(names, dtype=object)

    return check


def only(value: Any) -> Check:
    """Check that nothing else is asked for than one value."""

    def check(found: Any, _: Sizes) -> Any:
        if found is not value and not (type(found) is type(value) and found == value):
            _wrong(str(value), found)
        return value

    return check


def _wrong(wanted: str, found: Any) -> NoReturn:
    if isinstance(found, Unread):
        message = f"asks for {found.asked}"
        raise ValueError(message)  # noqa: TRY004 - one error for all that is wrong with a value
    shown = repr(found)[:40] if type(found) in {int, float, str, bool} else type(found).__name__
    message = f"has to be {wanted}, and is {shown}"
    raise ValueError(message)


# --- estimators -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Known:
    """A class that may be built.

    Attributes
    ----------
    module
        Where it is today.
    before
        Where it was in older versions.
    fitted
        Attributes that it must have to be used.
    options
        Attributes that it may have.
    finish
        Told the estimator, the attributes as read, and the lengths: sets what needs more than one
        attribute.
    """

    module: str
    before: tuple[str, ...]
    fitted: Mapping[str, Check]
    options: Mapping[str, Check] = field(default_factory=dict)
    finish: Callable[[Any, Mapping[str, Any], Sizes], None] | None = None

    def build(self, name: str, attributes: Mapping[str, Any]) -> Any:
        """Return an estimator of this class with the attributes of a file.

        Raises
        ------
        ModelRefused
            Naming the attribute that is wrong, and how.
        """
        estimator = getattr(import_module(self.module), name)()
        sizes: Sizes = {}
        # In this order: the count of features says how long all the rest has to be.
        for known, is_needed in ((_COMMON, False), (self.fitted, True), (self.options, False)):
            for attribute, check in known.items():
                value = attributes.get(attribute, _MISSING)
                if value is _MISSING:
                    if is_needed:
                        message = f"{name} has no {attribute}: it is not fitted"
                        raise ModelRefused(message)
                    continue
                try:
                    vars(estimator)[attribute] = check(value, sizes)
                except ValueError as error:
                    message = f"{attribute} of {name} {error}"
                    raise ModelRefused(message) from error
        if self.finish:
            try:
                self.finish(estimator, attributes, sizes)
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
                message = f"{name}: {type(error).__name__}: {str(error)[:100]}"
                raise ModelRefused(message) from error
        return estimator


_COMMON: dict[str, Check] = {"n_features_in_": count("f"), "feature_names_in_": texts("f")}

_DATA = "sklearn.preprocessing._data"
_OLD_DATA = ("sklearn.preprocessing.data",)
_SCALED = {"scale_": array("f")}
_KERNELS = choice("rbf", "linear", "poly", "polynomial", "sigmoid", "laplacian", "cosine")
_COMPONENTS = {"components_": array("cf")}


def _finish_power(transformer: Any, attributes: Mapping[str, Any], _: Sizes) -> None:
    if transformer.standardize:
        transformer._scaler = build(attributes["_scaler"], ("StandardScaler",))


def _finish_polynomial(features: Any, _: Mapping[str, Any], sizes: Sizes) -> None:
    low, high = features._min_degree, features._max_degree
    if low > high or math.comb(sizes["f"] + high, high) > MOST:
        message = f"more than {MOST} columns"
        raise ValueError(message)


def _finish_svm(svm: Any, _: Mapping[str, Any], sizes: Sizes) -> None:
    if svm.kernel not in {"rbf", "linear", "poly", "sigmoid"}:
        message = f"kernel {svm.kernel}"
        raise ValueError(message)
    svm.dual_coef_, svm.intercept_ = svm._dual_coef_, svm._intercept_
    svm.offset_ = -svm._intercept_
    svm._n_support = np.array([sizes["n"], sizes["n"]], dtype=np.int32)
    svm.support_ = svm.support_.astype(np.int32)
    svm._probA = svm._probB = np.empty(0)
    svm._sparse, svm.fit_status_ = False, 0
    # Asked for with a precomputed kernel only.
    svm.shape_fit_ = (sizes["n"], sizes["f"])


def _finish_factor(factor: Any, attributes: Mapping[str, Any], sizes: Sizes) -> None:
    """Build the neighbours' tree anew from the training rows."""
    from sklearn.neighbors import BallTree, KDTree  # noqa: PLC0415 - seconds

    given = dict(attributes.get("effective_metric_params_") or {})
    if given.get("w", 0) is None:
        # No weights, as scikit-learn notes for some metrics.
        del given["w"]
    powers = {"p": number(1, 100)(given["p"], sizes)} if "p" in given else {}
    metric = factor.effective_metric_
    if set(given) - {"p"} or (powers and metric != "minkowski"):
        message = "parameters of its metric"
        raise ValueError(message)
    factor.effective_metric_params_ = powers
    kinds = {"kd_tree": KDTree, "ball_tree": BallTree}
    kind = kinds.get(factor._fit_method)
    factor._tree = kind and kind(factor._fit_X, factor.leaf_size, metric=metric, **powers)
    if factor.n_neighbors_ > min(sizes["k"], sizes["n"] - 1):
        message = f"{factor.n_neighbors_} neighbours of {sizes['n']} rows"
        raise ValueError(message)


def _finish_forest(forest: Any, attributes: Mapping[str, Any], sizes: Sizes) -> None:
    """Lay its trees out anew, after they were followed from end to end."""
    flatten_forest(attributes, sizes["f"])
    trees, picked = attributes["estimators_"], attributes["estimators_features_"]
    columns = [array("c", whole=True)(one, {}) for one in picked]
    taken = {len(one) for one in columns}
    if taken != {forest._max_features}:
        message = "trees of different numbers of features"
        raise ValueError(message)
    if forest._max_features == sizes["f"]:
        # scikit-learn does not pick columns then, but takes them in their order.
        in_order = np.arange(sizes["f"])
        if any((one != in_order).any() for one in columns):
            message = "trees with all features in another order"
            raise ValueError(message)
    nodes = [nodes_of(tree) for tree in trees]
    forest.estimators_features_ = columns
    forest.estimators_ = [_tree(one, forest._max_features) for one in nodes]
    forest.n_estimators, forest.max_samples_ = len(nodes), forest._max_samples
    forest.estimator_ = forest.estimators_[0]
    forest._average_path_length_per_tree = tuple(
        average_path_length(one["n_node_samples"]) for one in nodes
    )
    forest._decision_path_lengths = tuple(
        tree.tree_.compute_node_depths() for tree in forest.estimators_
    )


def _tree(nodes: np.ndarray[Any, Any], features: int) -> Any:
    """Build a tree of nodes whose children were checked; `features` is how many it may split on."""
    from sklearn.tree import ExtraTreeRegressor  # noqa: PLC0415 - seconds
    from sklearn.tree._tree import Tree  # noqa: PLC0415

    inner = nodes["left_child"] >= 0
    if (nodes["feature"][inner] >= features).any():
        message = "a tree that splits on a feature that is not there"
        raise ValueError(message)
    inside = Tree(features, np.array([1], dtype=np.intp), 1)
    made = np.zeros(len(nodes), dtype=inside.__getstate__()["nodes"].dtype)
    for name in {*made.dtype.names} & {*nodes.dtype.names}:
        made[name] = nodes[name]
    # scikit-learn follows what has a left child of -1 no further.
    made["left_child"][~inner] = made["right_child"][~inner] = -1
    made["feature"][~inner] = -2
    state = {"max_depth": 0, "node_count": len(made), "nodes": made}
    inside.__setstate__(state | {"values": np.zeros((len(made), 1, 1))})
    tree = ExtraTreeRegressor()
    tree.tree_, tree.n_features_in_, tree.n_outputs_ = inside, features, 1
    return tree


KINDS: dict[str, Known] = {
    "StandardScaler": Known(
        _DATA,
        _OLD_DATA,
        {"scale_": optional(array("f")), "mean_": optional(array("f"))},
        {"with_mean": flag, "with_std": flag, "var_": optional(array("f"))},
    ),
    "MinMaxScaler": Known(
        _DATA,
        _OLD_DATA,
        _SCALED | {"min_": array("f")},
        {"feature_range": pair(number()), "clip": flag},
    ),
    "MaxAbsScaler": Known(_DATA, _OLD_DATA, _SCALED, {"clip": flag}),
    "RobustScaler": Known(
        _DATA,
        _OLD_DATA,
        {"scale_": optional(array("f")), "center_": optional(array("f"))},
        {"with_centering": flag, "with_scaling": flag},
    ),
    "Normalizer": Known(_DATA, _OLD_DATA, {}, {"norm": choice("l1", "l2", "max")}),
    "Binarizer": Known(_DATA, _OLD_DATA, {}, {"threshold": number()}),
    "PowerTransformer": Known(
        _DATA,
        _OLD_DATA,
        {"lambdas_": array("f")},
        {"method": choice("yeo-johnson", "box-cox"), "standardize": flag},
        _finish_power,
    ),
    "QuantileTransformer": Known(
        _DATA,
        _OLD_DATA,
        {"references_": array("q", finite=True), "quantiles_": array("qf")},
        {"output_distribution": choice("uniform", "normal"), "n_quantiles_": count("q")},
    ),
    "PolynomialFeatures": Known(
        "sklearn.preprocessing._polynomial",
        (_DATA, *_OLD_DATA),
        {"_min_degree": count(low=0), "_max_degree": count(low=0)},
        {
            "n_output_features_": count(),
            "_n_out_full": count(),
            "interaction_only": flag,
            "include_bias": flag,
            "order": choice("C", "F"),
            "degree": either(count(low=0), pair(count(low=0))),
        },
        _finish_polynomial,
    ),
    "PCA": Known(
        "sklearn.decomposition._pca",
        ("sklearn.decomposition.pca",),
        _COMPONENTS | {"mean_": optional(array("f")), "explained_variance_": array("c")},
        {"whiten": flag, "n_components_": count("c")},
    ),
    "IncrementalPCA": Known(
        "sklearn.decomposition._incremental_pca",
        ("sklearn.decomposition.incremental_pca",),
        _COMPONENTS | {"mean_": optional(array("f")), "explained_variance_": array("c")},
        {"whiten": flag, "n_components_": count("c")},
    ),
    "TruncatedSVD": Known(
        "sklearn.decomposition._truncated_svd",
        ("sklearn.decomposition.truncated_svd",),
        _COMPONENTS,
    ),
    "FastICA": Known(
        "sklearn.decomposition._fastica",
        ("sklearn.decomposition.fastica_",),
        _COMPONENTS,
        {
            "mean_": optional(array("f")),
            "whiten": either(flag, choice("arbitrary-variance", "unit-variance")),
        },
    ),
    "FactorAnalysis": Known(
        "sklearn.decomposition._factor_analysis",
        ("sklearn.decomposition.factor_analysis",),
        _COMPONENTS | {"mean_": array("f"), "noise_variance_": array("f", finite=True)},
    ),
    "Nystroem": Known(
        "sklearn.kernel_approximation",
        (),
        _COMPONENTS | {"normalization_": array("cc")},
        {
            "kernel": _KERNELS,
            "gamma": optional(number()),
            "coef0": optional(number()),
            "degree": optional(number(0, 100)),
            "kernel_params": only(None),
            "component_indices_": array("c", whole=True),
        },
    ),
    "RBFSampler": Known(
        "sklearn.kernel_approximation",
        (),
        {"random_weights_": array("fc"), "random_offset_": array("c")},
        {"n_components": count("c"), "gamma": either(number(), choice("scale"))},
    ),
    "OneClassSVM": Known(
        "sklearn.svm._classes",
        ("sklearn.svm.classes",),
        {
            "support_": array("n", whole=True),
            "support_vectors_": array("nf", finite=True),
            "_dual_coef_": array("1n", finite=True),
            "_intercept_": array("1", finite=True),
            "_gamma": number(),
            "kernel": choice("rbf", "linear", "poly", "sigmoid"),
        },
        {"degree": count(low=0), "coef0": number(), "nu": number(0, 1), "_sparse": only(False)},
        _finish_svm,
    ),
    "SGDOneClassSVM": Known(
        "sklearn.linear_model._stochastic_gradient",
        (),
        {"coef_": array("f"), "offset_": array("1")},
        {"nu": number(0, 1)},
    ),
    "EllipticEnvelope": Known(
        "sklearn.covariance._elliptic_envelope",
        ("sklearn.covariance.elliptic_envelope",),
        {
            "location_": array("f", finite=True),
            "covariance_": array("ff", finite=True),
            "precision_": optional(array("ff")),
            "offset_": number(),
        },
        {"store_precision": flag, "assume_centered": flag},
    ),
    "IsolationForest": Known(
        "sklearn.ensemble._iforest",
        ("sklearn.ensemble.iforest",),
        {
            "_max_features": count(),
            "_max_samples": count(high=2**53),
            "offset_": number(),
        },
        {},
        _finish_forest,
    ),
    "LocalOutlierFactor": Known(
        "sklearn.neighbors._lof",
        ("sklearn.neighbors.lof",),
        {
            "novelty": only(True),
            "_fit_X": array("nf", finite=True),
            "_lrd": array("n"),
            "_distances_fit_X_": array("nk"),
            "offset_": number(),
            "n_neighbors_": count(),
            "_fit_method": choice("brute", "kd_tree", "ball_tree"),
            "effective_metric_": choice("euclidean", "manhattan", "chebyshev", "minkowski"),
        },
        {
            "n_neighbors": count(),
            "n_samples_fit_": count("n", high=2**53),
            "leaf_size": count(),
            "negative_outlier_factor_": array("n"),
            "metric": choice("minkowski", "euclidean", "manhattan", "chebyshev", "l1", "l2"),
            "p": optional(number(1, 100)),
        },
        _finish_factor,
    ),
}
"""What may be built, by class."""

DETECTORS = (
    *("OneClassSVM", "SGDOneClassSVM", "EllipticEnvelope", "IsolationForest"),
    "LocalOutlierFactor",
)
"""Those that decide; the others stand before them."""

_PARTS = {
    "Pipeline": ("sklearn.pipeline",),
    "GridSearchCV": ("sklearn.model_selection._search", "sklearn.grid_search"),
    "RandomizedSearchCV": ("sklearn.model_selection._search", "sklearn.grid_search"),
    "ExtraTreeRegressor": ("sklearn.tree._classes", "sklearn.tree.tree"),
    "Tree": ("sklearn.tree._tree",),
}
"""Classes of which attributes are read, and that are not built as they are."""

CLASSES: dict[str, tuple[str, ...]] = _PARTS | {
    name: (known.module, *known.before) for name, known in KINDS.items()
}
"""All classes of which attributes are read, and where their libraries have kept them."""


def is_known(module: Any, name: Any) -> bool:
    """Return whether attributes of a class are read."""
    return isinstance(name, str) and module in CLASSES.get(name, ())


def chosen(detector: Any) -> Any:
    """Return what a search for parameters has found to be the best; any other detector as it is."""
    name, attributes = attributes_of(detector)
    if isinstance(detector, Captured) and name in {"GridSearchCV", "RandomizedSearchCV"}:
        if not isinstance(best := attributes.get("best_estimator_"), Captured):
            message = f"{name} without its best estimator: fit it with refit=True"
            raise ModelRefused(message)
        return best
    return detector


def steps_of(detector: Captured) -> list[Captured]:
    """Return the steps of a pipeline, or the detector itself as the only one.

    Raises
    ------
    ModelRefused
        A step is nothing that is known, or the pipeline keeps results in a folder.
    """
    if detector.name != "Pipeline":
        return [detector]
    _, attributes = attributes_of(detector)
    steps = attributes.get("steps")
    if type(steps) is not list or not 0 < len(steps) <= _STEPS:
        message = "a pipeline without steps"
        raise ModelRefused(message)
    if attributes.get("memory") is not None:
        message = "a pipeline with a memory: set memory=None and save it again"
        raise ModelRefused(message)
    found = []
    for step in steps:
        if type(step) not in (tuple, list) or len(step) != 2:  # noqa: PLR2004 - name and step
            message = "a pipeline whose steps are none"
            raise ModelRefused(message)
        if step[1] is None or (type(step[1]) is str and step[1] == "passthrough"):
            continue
        if not isinstance(step[1], Captured):
            asked = step[1].asked if isinstance(step[1], Unread) else type(step[1]).__name__
            message = f"asks for {asked}, which is not accepted (`fleet import --help` has what is)"
            raise ModelRefused(message)
        found.append(step[1])
    return found


def build_detector(captured: Any) -> Any:
    """Return a live detector, or a pipeline that ends in one, of what was read of a file.

    Raises
    ------
    ModelRefused
        Naming the class that is not accepted, or the attribute that is wrong.
    """
    if isinstance(captured, Unread):
        message = f"asks for {captured.asked}"
        raise ModelRefused(message)
    if not isinstance(captured, Captured):
        message = f"holds a {type(captured).__name__}, not a model"
        raise ModelRefused(message)
    steps = steps_of(chosen(captured))
    before = tuple(name for name in KINDS if name not in DETECTORS)
    if not steps or steps[-1].name not in DETECTORS:
        name = steps[-1].name if steps else "a pipeline of no steps"
        message = f"{name} is no outlier detector of scikit-learn"
        raise ModelRefused(message)
    built = [build(step, before) for step in steps[:-1]] + [build(steps[-1], DETECTORS)]
    if len(built) == 1:
        return built[0]
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415 - seconds

    return make_pipeline(*built)


def build(captured: Any, accepted: tuple[str, ...]) -> Any:
    """Return a live estimator of what was read of a file, if it is of an accepted class.

    Raises
    ------
    ModelRefused
        As `build_detector`.
    """
    if not isinstance(captured, Captured) or captured.name not in accepted:
        name = captured.name if isinstance(captured, Captured) else "something"
        message = f"{name} before the detector"
        raise ModelRefused(message)
    return KINDS[captured.name].build(captured.name, attributes_of(captured)[1])
