"""Isolation forests laid out as tables of nodes, for `scoring.detectors`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scoring.detectors import DEEPEST, Array
from scoring.fleet.attributes import Attributes, Captured, attributes_of

_MOST_TREES, _MOST_NODES = 10_000, 8_000_000
"""Of a forest: one tree can stand in a file once and be named any number of times."""

_PAIR = 2.0


@dataclass(frozen=True, slots=True)
class Forest:
    """All trees of a forest in one table.

    Attributes
    ----------
    roots
        Where each tree begins, shape (trees,).
    nodes
        Shape (3, nodes): feature (-1 in a leaf), threshold (in a leaf: path length), left child.
    depth
        Of the deepest tree.
    """

    roots: Array
    nodes: Array
    depth: int


def flatten_forest(forest: Attributes, features: int) -> Forest:
    """Lay out a fitted IsolationForest.

    Raises
    ------
    ValueError
        Its trees are none, or do not hold together.
    """
    picked, trees = forest["estimators_features_"], forest["estimators_"]
    if type(trees) is not list or not 0 < len(trees) <= _MOST_TREES or len(picked) != len(trees):
        message = f"its trees and their features do not match, or are over {_MOST_TREES}"
        raise ValueError(message)
    roots, tables, depths = [], [], []
    first = 0
    for tree, columns in zip(trees, picked, strict=True):
        table, depth = _flatten_tree(nodes_of(tree), np.asarray(columns), first, features)
        roots.append(first)
        tables.append(table)
        depths.append(depth)
        first += table.shape[1]
        if first > _MOST_NODES:
            message = f"more than {_MOST_NODES} nodes"
            raise ValueError(message)
    return Forest(np.array(roots, float), np.concatenate(tables, axis=1), max(depths))


def normaliser_of(forest: Attributes) -> float:
    """Mean path length over the samples that each tree was grown on."""
    return float(average_path_length(np.array([int(forest["_max_samples"])]))[0])


def nodes_of(tree: object) -> npt.NDArray[Any]:
    """Give the node table of a fitted tree: one record a node, children by index."""
    inner = attributes_of(tree)[1]["tree_"]
    state = inner.state if isinstance(inner, Captured) else inner.__getstate__()
    nodes: npt.NDArray[Any] = state["nodes"]
    if not isinstance(nodes, np.ndarray) or nodes.ndim != 1 or not len(nodes):
        message = "a tree without nodes"
        raise ValueError(message)
    return nodes


def _flatten_tree(
    nodes: npt.NDArray[Any], columns: npt.NDArray[Any], first: int, features: int
) -> tuple[Array, int]:
    """Lay out a tree's nodes breadth first, so that a right child follows its left sibling.

    Gives shape (3, nodes), and the tree's depth. A node that is reached twice or not at all makes
    no tree: it is refused, and no index leaves its table.
    """
    levels = _levels(nodes["left_child"].astype(np.intp), nodes["right_child"].astype(np.intp))
    index = np.concatenate(levels)
    if not np.array_equal(np.sort(index), np.arange(len(nodes))):
        message = "a tree whose nodes are not each reached once"
        raise ValueError(message)
    nodes = nodes[index]
    leaf = nodes["left_child"] < 0
    depth = np.repeat(np.arange(len(levels)), [len(level) for level in levels])
    # scikit-learn counts the root as 1 and takes that 1 off again; the digits are to be the same.
    path = (depth + 1.0) + average_path_length(nodes["n_node_samples"]) - 1.0
    picked = np.where(leaf, 0, nodes["feature"])
    # Both tables of indices are looked at: NumPy would take a negative one for one from the end.
    feature = np.where(leaf, 0, columns.astype(np.intp)[picked])
    if min(picked.min(), feature.min()) < 0 or feature.max() >= features:
        message = "a tree that splits on a feature that is not there"
        raise ValueError(message)
    flat = np.empty((3, len(index)))
    flat[0] = np.where(leaf, -1, feature)
    flat[1] = np.where(leaf, path, nodes["threshold"])
    flat[2] = np.where(leaf, 0, first + 2 * np.cumsum(~leaf) - 1)
    return flat, len(levels) - 1


def _levels(left: npt.NDArray[np.intp], right: npt.NDArray[np.intp]) -> list[npt.NDArray[np.intp]]:
    """Nodes of a tree by their distance from the root, siblings next to each other."""
    levels, level, reached = [], np.zeros(1, dtype=np.intp), 1
    while len(level):
        levels.append(level)
        inner = level[left[level] >= 0]
        level = np.stack([left[inner], right[inner]], axis=1).ravel()
        reached += len(level)
        if reached > len(left) or len(levels) > DEEPEST:
            message = "a tree that does not end"
            raise ValueError(message)
    return levels


def average_path_length(samples: np.ndarray) -> Array:
    """Mean path length of an unsuccessful search in a binary tree over so many samples.

    ``2 (ln(n - 1) + Euler's gamma) - 2 (n - 1) / n`` (Liu, Ting and Zhou, *Isolation Forest*,
    2008); 1 for two samples and 0 for one, as scikit-learn has it.
    """
    n = np.maximum(samples.astype(np.float64), 2.0)
    length = 2.0 * (np.log(np.maximum(n - 1.0, 1.0)) + np.euler_gamma) - 2.0 * (n - 1.0) / n
    return np.where(samples <= 1, 0.0, np.where(n > _PAIR, length, 1.0))
