r"""Replay the logs of a problem's blocks, and join their bounds, with numpy alone.

Where the curvature does not couple blocks the objective is a sum over them. With
:math:`\phi_B(\kappa)` the proven bound of block B for at most :math:`\kappa` weights and a row of
the family that holds every weight once, :math:`\sum_jz_j\le k`, the whole is bounded by the
knapsack :math:`\min\sum_B\phi_B(\kappa_B)` over :math:`\sum_B\kappa_B\le k`, and for a price
:math:`y\ge0` by :math:`\sum_B\min_\kappa(\phi_B(\kappa)+y\kappa)-yk`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chita_opt.certificates.arithmetic import gamma, objective, separate
from chita_opt.certificates.path_proof import (
    ProvenCounts,
    on_block,
    prove_counts,
    with_count,
)
from chita_opt.certificates.problem_data import allowed_weights, read_problem
from chita_opt.certificates.tree_proof import (
    ProofReport,
    check_claims,
    guarded,
    number,
    read_log,
)
from chita_opt.certificates.verification import dense_minimum, increase
from chita_opt.errors import CertificateError

Array = np.ndarray
KIND = "block_proof"


def verify_blocks(path: str | Path, problem_path: str | Path | None = None) -> ProofReport:
    """Recompute everything that a saved solution of a problem of blocks claims.

    Raises
    ------
    CertificateError
        As for a tree's log; and if a block has none, or the bounds do not add up.
    """
    arrays, claims = read_log(path, problem_path, KIND)
    price = None if claims.get("price") is None else number(claims, "price")
    with guarded(path):
        found = replay_blocks(arrays, claims["problem"], price)
    check_claims(claims, found)
    return found


def replay_blocks(
    arrays: Mapping[str, Array], specification: Mapping[str, Any], price: float | None
) -> ProofReport:
    """Check the arrays of a file; the arithmetic behind :func:`verify_blocks`."""
    problem = read_problem(arrays, specification)
    w = allowed_weights(arrays, problem)
    blocks = [on_block(problem, s, data) for s, data in separate(problem.data)]
    proven = [prove_counts(arrays, f"blocks.{n}", block) for n, block in enumerate(blocks)]
    total = int(with_count(problem, problem.p).rows.h[-1])
    values = [found.lower for found in proven]
    lower = knapsack(values, total) if price is None else priced(values, price, total)
    upper = objective(problem.data, w)
    at_zero = objective(problem.data, np.zeros(problem.p)).value
    return ProofReport(
        upper.above, min(lower, upper.above), increase(upper, dense_minimum(arrays, problem)),
        _sum(proven, "steps"), _sum(proven, "leaves"), _sum(proven, "fixings"),
        int(np.count_nonzero(w)), problem.p, lower, at_zero, _sum(proven, "trees"),
    )  # fmt: skip


def _sum(proven: list[ProvenCounts], name: str) -> int:
    return int(sum(getattr(found, name) for found in proven))


def knapsack(values: list[Array], total: int) -> float:
    """Not above the least sum of one value a block with counts that sum to at most ``total``."""
    _check(values)
    best = np.zeros(total + 1)
    for value in values:
        room = min(len(value), total + 1)
        joined = np.full(total + 1, np.inf)
        for count in range(room):
            own = value[count] + best[: total + 1 - count]
            joined[count:] = np.minimum(joined[count:], own)
        best = joined
    return _below(float(best[total]), sum(_size(value) for value in values), len(values))


def priced(values: list[Array], price: float, total: int) -> float:
    """Not above the Lagrangian of the total at a price."""
    _check(values)
    if not price >= 0.0:
        raise CertificateError(f"the price of a weight is {price}; it must be >= 0")
    parts = [float(np.min(value + price * np.arange(len(value)))) for value in values]
    size = sum(_size(value) + price * len(value) for value in values) + price * total
    return _below(sum(parts) - price * total, size, len(values))


def _check(values: list[Array]) -> None:
    """Refuse a block without a proof for every count."""
    for n, value in enumerate(values):
        if not bool((value > -np.inf).all()):
            raise CertificateError(f"nothing is proven of block {n} with all its weights kept")


def _size(value: Array) -> float:
    return float(np.abs(value[np.isfinite(value)]).max(initial=0.0))


def _below(value: float, size: float, terms: int) -> float:
    return float(np.nextafter(value - gamma(terms + 8) * size, -np.inf))


__all__ = ["knapsack", "priced", "replay_blocks", "verify_blocks"]
