r"""Check a bound in two levels, with numpy alone: proven fates, and a tree over what they leave.

A file holds a cutoff c, a fate for some of the weights, and the log of a tree over the others.
With the gains s of the file's dual witness, its multipliers y and its bound LB, forcing weight j
against the sign of :math:`s_j-(G^\top y)_j` costs at least
:math:`\mathrm{LB}+|s_j-(G^\top y)_j|`. Where that reaches c for every fate, masks against a fate
cost at least c.

All other masks keep the weights K and prune those out. With *any* Y and y near
:math:`H_{KK}^{-1}H_{KU}` and :math:`H_{KK}^{-1}b_K`, put :math:`w_K=y-Yw_U+t`; then

.. math::
    f=\text{const}+\tfrac12w_U^\top Sw_U-b_S^\top w_U+\tfrac12t^\top H_{KK}t+t^\top(Rw_U+e),

:math:`R=H_{KU}-H_{KK}Y` and :math:`e=H_{KK}y-b_K` nearly zero,
:math:`S=H_{UU}-H_{UK}Y-Y^\top R`, :math:`b_S=b_U-H_{UK}y+Y^\top e`. If :math:`H_{KK}\succeq\tau I`,
the terms in t are at least :math:`-(|R|_F^2|w_U|^2+|e|^2)/\tau`. That leaves a quadratic in
:math:`w_U`, over which the log is replayed as over any problem.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chita_opt.certificates.arithmetic import (
    Enclosed,
    dual_gains,
    gamma,
    objective,
    prove_semidefinite,
)
from chita_opt.certificates.hessian_parts import hessian_part, hessian_product
from chita_opt.certificates.node_bound import FREE, IN, Family, NodeBounds
from chita_opt.certificates.problem_data import StoredProblem, integers, vector
from chita_opt.certificates.stored_rows import StoredRows
from chita_opt.certificates.tree_proof import TREE_ARRAYS, Tree, read_tree, walk
from chita_opt.errors import CertificateError

Array = np.ndarray
_U = 2.0**-53
FATES, CUTOFF, PREFIX = "reduction.fates", "reduction.cutoff", "reduction."


def reduced_lower(arrays: Mapping[str, Array], problem: StoredProblem) -> float:
    """The cutoff of a file with a reduction, once everything that it rests on is proven.

    Raises
    ------
    CertificateError
        If a fate, a fixing or a leaf does not follow from its witness.
    """
    cutoff = float(vector(arrays, CUTOFF, 1)[0])
    fates = read_fates(arrays, problem)
    check_fates(arrays, problem, fates, cutoff)
    walk(read_reduced_tree(arrays, fates), reduced_bounds(problem, fates), cutoff)
    return cutoff


def replayed_cutoff(arrays: Mapping[str, Array], problem: StoredProblem) -> float:
    """What the log over the undecided weights proves, whatever cutoff the file names."""
    fates = read_fates(arrays, problem)
    return walk(read_reduced_tree(arrays, fates), reduced_bounds(problem, fates), -np.inf)[1]


def read_fates(arrays: Mapping[str, Array], problem: StoredProblem) -> Array:
    """(p,) of FREE, OUT, IN; at least one weight is free."""
    fates = integers(arrays, FATES, FREE, IN + 1)
    if len(fates) != problem.p or not bool((fates == FREE).any()):
        raise CertificateError(
            f"{FATES} has {len(fates)} entries for {problem.p} weights, or leaves none undecided"
        )
    return fates


def read_reduced_tree(arrays: Mapping[str, Array], fates: Array) -> Tree:
    """The log over the undecided weights."""
    own = {k[len(PREFIX) :]: a for k, a in arrays.items() if k.startswith(PREFIX + "tree.")}
    for name in TREE_ARRAYS:
        if f"tree.{name}" not in own:
            raise CertificateError(f"the file lacks {PREFIX}tree.{name}")
    return read_tree(own, int((fates == FREE).sum()))


def check_fates(
    arrays: Mapping[str, Array], problem: StoredProblem, fates: Array, cutoff: float
) -> None:
    """Refuse a fate whose opposite is not proven to cost at least the cutoff."""
    p, rows = problem.p, problem.rows
    split = vector(arrays, "bound.split", p) if "bound.split" in arrays else None
    y = vector(arrays, "bound.multipliers", len(rows.h))
    if not bool((y >= 0).all()):
        raise CertificateError("a multiplier of the witness is negative: it proves nothing")
    base, gains = dual_gains(problem.data, vector(arrays, "bound.witness"), split)
    best, best_error = rows.maximum(gains, y)
    price = rows.price(y, p)
    excess = gains - price
    slack = base.allowance + best_error + 16 * _U * (abs(base.value) + best)
    own = gamma(len(rows.h) + 4) * (gains + price)
    value = (base.value - best - slack) + np.abs(excess) - own
    right = np.where(fates == IN, excess > 0.0, excess < 0.0)
    wrong = (fates != FREE) & ~(right & (value - 4 * _U * np.abs(value) >= cutoff))
    if bool(wrong.any()):
        j = int(np.argmax(wrong))
        raise CertificateError(
            f"the fate of weight {j} is not proven: against it the bound is {value[j]:.12g}, the "
            f"cutoff {cutoff:.12g}"
        )


def reduced_bounds(problem: StoredProblem, fates: Array) -> NodeBounds:
    """Bounds over the undecided weights, the kept ones eliminated, with all rounding errors."""
    data = problem.data
    kept, free = np.flatnonzero(fates == IN), np.flatnonzero(fates == FREE)
    n, m = len(kept), len(free)
    H, eps = hessian_part(data, np.concatenate([kept, free]))
    product, product_error = hessian_product(data, data.w_bar)
    b, b_error = product - data.g, product_error + 2 * _U * (np.abs(product) + np.abs(data.g))
    at_zero, family = objective(data, np.zeros(problem.p)), restricted_family(problem, fates)
    if not n:
        return NodeBounds.of_parts(family, (H, eps), (b[free], b_error[free]), at_zero)
    K, U = slice(0, n), slice(n, n + m)
    Y, y, tau = _elimination(H[K, K], H[K, U], b[kept], data.rho[kept], eps)
    R, e = H[K, U] - H[K, K] @ Y, H[K, K] @ y - b[kept]
    g, size = gamma(n + 4), float(np.linalg.norm(H[K, K]))
    norms, ones = np.linalg.norm(Y, axis=0), np.abs(Y).sum(0)
    R_error = g * (np.linalg.norm(H[K, U]) + size * np.linalg.norm(Y))
    R_error += eps * np.sqrt(n) * np.linalg.norm(1.0 + ones)
    e_error = g * (size * np.linalg.norm(y) + np.linalg.norm(b[kept]))
    e_error += eps * np.sqrt(n) * np.abs(y).sum() + np.linalg.norm(b_error[kept])
    S = H[U, U] - H[U, K] @ Y - Y.T @ R
    S = 0.5 * (S + S.T)
    sides, R_size = np.linalg.norm(H[K, U], axis=0), np.linalg.norm(R) + R_error
    wide = float(norms.max())
    S_error = g * (float(np.abs(H[U, U]).max()) + float(sides.max()) * wide + wide * R_size)
    S_error = 2.0 * (S_error + eps * (1.0 + float(ones.max())) + wide * R_error)
    c = b[free] - H[U, K] @ y + Y.T @ e
    length, e_size = float(np.linalg.norm(y)), float(np.linalg.norm(e)) + e_error
    c_error = g * (np.abs(b[free]) + sides * length + norms * e_size) + b_error[free]
    c_error = 2.0 * (c_error + eps * float(np.abs(y).sum()) + norms * e_error)
    value = at_zero.value - 0.5 * float(b[kept] @ y) + 0.5 * float(y @ e)
    error = g * (abs(at_zero.value) + np.abs(b[kept]) @ np.abs(y) + length * e_size)
    error += np.linalg.norm(b_error[kept]) * length + length * e_error + e_size**2 / tau
    S[np.diag_indices(m)] -= 2.0 * R_size**2 / tau
    constant = Enclosed(value, 2.0 * float(error) + at_zero.allowance)
    return NodeBounds.of_parts(family, (S, float(S_error)), (c, c_error), constant)


def _elimination(
    A: Array, B: Array, b: Array, rho: Array, eps: float
) -> tuple[Array, Array, float]:
    """Nearly A^-1 B and A^-1 b, and a tau with A - tau I proven positive semidefinite."""
    tau = 0.5 * float(rho.min())
    if not tau > 0.0:
        raise CertificateError("a weight without a ridge is kept by its fate: nothing bounds it")
    prove_semidefinite(A, np.full(len(A), tau), eps)
    solved = np.linalg.solve(A, np.column_stack([B, b]))
    return solved[:, :-1], solved[:, -1], tau


def restricted_family(problem: StoredProblem, fates: Array) -> Family:
    """The rows on the undecided weights, less what the kept ones take."""
    rows = problem.rows
    row, column, value = rows.G
    held = np.where(fates[column] == IN, value, 0.0)
    taken = np.bincount(row, weights=held, minlength=len(rows.h))
    slack = gamma(problem.p + 2) * (taken + np.abs(rows.h))
    if bool((value == np.floor(value)).all()) and bool((rows.h == np.floor(rows.h)).all()):
        slack = 0.0 * slack  # sums of whole numbers are exact
    free = fates == FREE
    place, here = np.cumsum(free) - 1, free[column]
    G = (row[here], place[column[here]], value[here])
    left = StoredRows(G, rows.h - taken + slack, rows.E, rows.q)
    return Family.of_rows(left, int(free.sum()))


__all__ = [
    "CUTOFF",
    "FATES",
    "PREFIX",
    "check_fates",
    "read_fates",
    "reduced_bounds",
    "reduced_lower",
    "replayed_cutoff",
]
