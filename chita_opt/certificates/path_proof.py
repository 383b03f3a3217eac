r"""Replay the logs of a path over counts with numpy alone.

A log for a count :math:`\kappa` proves a bound for all allowed weights of which at most
:math:`\kappa` are kept: the family's rows and one row more, the count. It also bounds every smaller
count. The same holds on a block of a problem whose curvature does not couple blocks, with the rows
cut to the block's columns: their entries are not negative, so a mask of the whole keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chita_opt.certificates.arithmetic import QuadraticData, objective
from chita_opt.certificates.node_bound import NodeBounds
from chita_opt.certificates.problem_data import (
    StoredProblem,
    check_support,
    integers,
    matrix,
    read_problem,
    vector,
)
from chita_opt.certificates.stored_rows import StoredRows
from chita_opt.certificates.tree_proof import (
    TREE_ARRAYS,
    ProofReport,
    check_claims,
    guarded,
    read_log,
    read_tree,
    walk,
)
from chita_opt.certificates.verification import dense_minimum, increase
from chita_opt.errors import CertificateError

Array = np.ndarray
KIND = "path_proof"
_SIZES = ("steps", "rows", "fixings")


@dataclass(frozen=True)
class PathReport(ProofReport):
    """What the replay of a path established; ``upper`` and ``lower`` are of the largest count.

    Attributes
    ----------
    ks : tuple of int
        Counts.
    uppers, lowers : tuple of float
        For each the objective of its weights, recomputed, and the proven bound.
    """

    ks: tuple[int, ...] = ()
    uppers: tuple[float, ...] = ()
    lowers: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class ProvenCounts:
    """What the logs of one problem or block prove.

    Attributes
    ----------
    lower : Array
        (p + 1,) bound for at most 0 ... p kept weights; minus infinity where nothing is proven.
    trees, steps, leaves, fixings : int
        Their size.
    """

    lower: Array
    trees: int
    steps: int
    leaves: int
    fixings: int


def verify_path(path: str | Path, problem_path: str | Path | None = None) -> PathReport:
    """Recompute everything that a saved path over counts claims.

    Raises
    ------
    CertificateError
        As for a tree's log; and if the weights of a count keep more than that.
    """
    arrays, claims = read_log(path, problem_path, KIND)
    with guarded(path):
        found = replay_path(arrays, claims["problem"])
    check_claims(claims, found)
    lower = vector(arrays, "path.lower", len(found.ks))
    if bool((lower > np.array(found.lowers)).any()):
        worst = int(np.argmax(lower - np.array(found.lowers)))
        raise CertificateError(
            f"the claimed bound {lower[worst]!r} for {found.ks[worst]} weights exceeds the proven "
            f"{found.lowers[worst]!r}"
        )
    return found


def replay_path(arrays: Mapping[str, Array], specification: Mapping[str, Any]) -> PathReport:
    """Check a path's arrays; the arithmetic behind :func:`verify_path`."""
    problem = read_problem(arrays, specification)
    ks = integers(arrays, "path.ks", 0, problem.p + 1)
    if not len(ks) or bool((np.diff(ks) <= 0).any()):
        raise CertificateError("path.ks is not an increasing list of counts")
    weights = matrix(arrays, "path.weights", (len(ks), problem.p)).astype(np.float64)
    proven = prove_counts(arrays, "path", problem)
    uppers = [_objective(problem, int(k), w) for k, w in zip(ks, weights, strict=True)]
    lowers = np.minimum(proven.lower[ks], uppers)
    upper = objective(problem.data, weights[-1])
    at_zero = objective(problem.data, np.zeros(problem.p)).value
    return PathReport(
        upper.above, float(lowers[-1]), increase(upper, dense_minimum(arrays, problem)),
        proven.steps, proven.leaves, proven.fixings, int(np.count_nonzero(weights[-1])), problem.p,
        float(lowers[-1]), at_zero, proven.trees, tuple(ks.tolist()), tuple(uppers),
        tuple(lowers.tolist()),
    )  # fmt: skip


def _objective(problem: StoredProblem, k: int, w: Array) -> float:
    check_support(w, problem.rows, np.empty(0))
    if np.count_nonzero(w) > k:
        raise CertificateError(
            f"the weights for a count of {k} keep {np.count_nonzero(w)}; they must keep no more"
        )
    return objective(problem.data, w).above


def prove_counts(arrays: Mapping[str, Array], prefix: str, problem: StoredProblem) -> ProvenCounts:
    """Replay the logs under a prefix, each with its count as a further row."""
    p, bounds = problem.p, NodeBounds(problem)
    counts = integers(arrays, f"{prefix}.counts", 0, p + 1)
    lower, leaves, steps, fixings = np.full(p + 1, -np.inf), 0, 0, 0
    for count, own in zip(counts.tolist(), _trees(arrays, prefix, len(counts)), strict=True):
        tree = read_tree(own, p)
        found, weakest = walk(tree, bounds.under(with_count(problem, count)), -np.inf)
        lower[: count + 1] = np.maximum(lower[: count + 1], weakest)
        leaves, steps = leaves + found, steps + len(tree.parent)
        fixings += len(tree.fix_step)
    return ProvenCounts(lower, len(counts), steps, leaves, fixings)


def _trees(arrays: Mapping[str, Array], prefix: str, count: int) -> list[dict[str, Array]]:
    """The arrays of every tree, cut from those of all."""
    found: list[dict[str, Array]] = [{} for _ in range(count)]
    sizes = {name: integers(arrays, f"{prefix}.{name}", 0, 2**31) for name in _SIZES}
    for name, per in TREE_ARRAYS.items():
        whole = arrays.get(f"{prefix}.{name}")
        own = sizes[per]
        if whole is None or len(own) != count or whole.ndim < 1 or own.sum() != len(whole):
            raise CertificateError(f"{prefix}.{name} is missing, or not as long as its trees")
        for tree, part in zip(found, np.split(whole, np.cumsum(own)[:-1]), strict=True):
            tree[f"tree.{name}"] = part
    return found


def with_count(problem: StoredProblem, count: int) -> StoredProblem:
    """The problem with at most ``count`` kept weights; rows over all weights that say less go."""
    (row, column, value), h = problem.rows.G, problem.rows.h
    p = problem.p
    ones = np.bincount(row, weights=value == 1.0, minlength=len(h))
    whole = (ones == p) & (np.bincount(row, minlength=len(h)) == p) & _distinct(row, column, h, p)
    tightest = min([count, *np.floor(h[whole]).tolist()])
    kept = ~whole[row]
    number = np.cumsum(~whole) - 1
    last = int((~whole).sum())
    G = (
        np.append(number[row[kept]], np.full(p, last)),
        np.append(column[kept], np.arange(p)),
        np.append(value[kept], np.ones(p)),
    )
    rows = StoredRows(G, np.append(h[~whole], float(tightest)))
    return StoredProblem(problem.data, rows)


def _distinct(row: Array, column: Array, h: Array, p: int) -> Array:
    """Rows that name no column twice."""
    pairs, counts = np.unique(row * p + column, return_counts=True)
    return np.bincount(pairs[counts > 1] // p, minlength=len(h)) == 0


def on_block(problem: StoredProblem, s: slice, data: QuadraticData) -> StoredProblem:
    """A block with the family's rows cut to its columns."""
    row, column, value = problem.rows.G
    inside = (column >= s.start) & (column < s.stop)
    names, number = np.unique(row[inside], return_inverse=True)
    G = (number, column[inside] - s.start, value[inside])
    return StoredProblem(data, StoredRows(G, problem.rows.h[names]))
