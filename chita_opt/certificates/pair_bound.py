r"""Check a bound whose split holds pairs of weights, with numpy alone.

The file holds a diagonal d > 0, vectors :math:`\ell_T` with entries on a pair T of weights, a
point v, pulls t and prices :math:`\alpha\ge0`. If
:math:`Q=H-\mathrm{diag}(d)-\sum_T\ell_T\ell_T^\top\succeq0` then, with
:math:`r=b-Qv-\sum_Tt_T\ell_T`,

.. math::
    f(w)\ge f(0)-\tfrac12v^\top Qv-\sum_T\big(\tfrac12t_T^2-\alpha_T\big)^+
        -\max_{z\in\mathcal S}\sum_jz_j\Big(\frac{r_j^2}{2d_j}+\sum_{T\ni j}\alpha_T\Big).

For :math:`t\,\ell^\top w-\tfrac12(\ell^\top w)^2` is at most :math:`t^2/2`, and zero unless a
weight of the pair is kept. All rounding errors have an allowance, as in
:mod:`chita_opt.certificates.node_bound`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chita_opt.certificates.arithmetic import Enclosed, gamma, objective, prove_semidefinite
from chita_opt.certificates.node_bound import FREE, Gains, NodeBounds
from chita_opt.certificates.problem_data import (
    StoredProblem,
    allowed_weights,
    integers,
    matrix,
    read_problem,
    vector,
)
from chita_opt.certificates.verification import (
    Verification,
    check_file,
    dense_minimum,
    summarise,
)
from chita_opt.errors import CertificateError

Array = np.ndarray
KIND = "pair_bound"
_U = 2.0**-53


@dataclass(frozen=True, eq=False)
class PairSplit:
    """The witness's arrays; symbols as above."""

    point: Array
    split: Array
    first: Array
    second: Array
    entries: Array
    pulls: Array
    prices: Array

    @property
    def factors(self) -> Array:
        """The l as rows (m, p)."""
        L, row = np.zeros((len(self.first), len(self.point))), np.arange(len(self.first))
        L[row, self.first], L[row, self.second] = self.entries[:, 0], self.entries[:, 1]
        return L


def verify_pairs(path: str | Path, problem_path: str | Path | None = None) -> Verification:
    """Recompute everything that a file with a pair bound claims; refusals as ``verify_file``."""
    return check_file(path, problem_path, evaluate_pairs)


def evaluate_pairs(arrays: Mapping[str, Array], specification: Mapping[str, Any]) -> Verification:
    """Upper and lower value from the arrays of a file."""
    problem = read_problem(arrays, specification)
    w = allowed_weights(arrays, problem)
    bounds = NodeBounds(problem)
    gains = pair_gains(bounds, read_split(arrays, problem))
    lower = bounds.bound(gains, np.full(problem.p, FREE, dtype=np.int8))
    if not np.isfinite(lower):
        raise CertificateError("the witness proves nothing: its bound is not finite")
    return summarise(
        objective(problem.data, w), Enclosed(lower, 0.0), bounds.at_zero,
        dense_minimum(arrays, problem), int(np.count_nonzero(w)), problem.p,
    )  # fmt: skip


def read_split(arrays: Mapping[str, Array], problem: StoredProblem) -> PairSplit:
    """The witness by its names; shapes, types, ranges and signs checked."""
    p = problem.p
    first = integers(arrays, "bound.first", 0, p)
    second = integers(arrays, "bound.second", 0, p)
    m = len(first)
    if len(second) != m or bool((first == second).any()):
        raise CertificateError("bound.first and bound.second do not name pairs of two weights")
    found = PairSplit(
        vector(arrays, "bound.point", p),
        vector(arrays, "bound.split", p),
        first,
        second,
        matrix(arrays, "bound.entries", (m, 2)).astype(np.float64),
        vector(arrays, "bound.pulls", m),
        vector(arrays, "bound.prices", m),
    )
    if not bool((found.split > 0.0).all()) or not bool((found.prices >= 0.0).all()):
        raise CertificateError("the split of the witness is not positive, or a price is negative")
    return found


def pair_gains(bounds: NodeBounds, witness: PairSplit) -> Gains:
    """What the witness proves at the root.

    Raises
    ------
    CertificateError
        If the rest of the split is not provably positive semidefinite.
    """
    p, m, L = bounds.p, len(witness.first), witness.factors
    v, d, t, prices = witness.point, witness.split, witness.pulls, witness.prices
    R, error = _rest(bounds, L)
    prove_semidefinite(R, d, len(R) * error)
    image, size = R @ v - d * v, np.abs(R) @ np.abs(v) + d * np.abs(v)
    image_error = gamma(p + 3) * size + error * float(np.abs(v).sum())
    energy = 0.5 * float(v @ image)
    energy_error = 0.5 * float(np.abs(v) @ (image_error + gamma(p + 2) * np.abs(image)))
    r = np.abs(bounds.b - image - t @ L)
    size = np.abs(bounds.b) + np.abs(image) + np.abs(t) @ np.abs(L)
    r_error = bounds.b_error + image_error + gamma(m + 4) * size
    price = prices @ (L != 0.0)
    gain = (r + r_error) ** 2 / (2.0 * d) + price
    free = float(np.maximum(0.5 * t * t - prices, 0.0).sum())
    free_error = gamma(m + 8) * float((0.5 * t * t + prices).sum())
    base = bounds.at_zero.below - energy - free
    base -= (energy_error + free_error) * (1.0 + gamma(p + 8))
    base -= 8 * _U * (abs(bounds.at_zero.below) + abs(energy) + free)
    return Gains(base, gain * (1.0 + gamma(m + 16)))


def _rest(bounds: NodeBounds, L: Array) -> tuple[Array, float]:
    """H less the pairs' products, and a bound on the error of its entries."""
    taken, size = L.T @ L, np.abs(L).T @ np.abs(L)
    rest = bounds.H - taken
    error = gamma(len(L) + 2) * float(size.max(initial=0.0))
    return rest, bounds.error + error + 2 * _U * float(np.abs(rest).max())
