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
    H, sizes = hessian_part(data, np.concatenate([kept, free]))
    product, product_error = hessian_product(data, data.w_bar)
    b, b_error = product - data.g, product_error + 2 * _U * (np.abs(product) + np.abs(data.g))
    at_zero, family = objective(data, np.zeros(problem.p)), restricted_family(problem, fates)
    if not len(kept):
        error = float(sizes.max()) ** 2 * (1.0 + 4 * _U)
        return NodeBounds.of_parts(family, (H, error), (b[free], b_error[free]), at_zero)
    tau = 0.5 * float(data.rho[kept].min())
    if not tau > 0.0:
        raise CertificateError("a weight without a ridge is kept by its fate: nothing bounds it")
    rest = _Elimination(H, sizes, len(kept), tau)
    S, R_size, lowered = rest.schur()
    sides = (b[kept], b_error[kept]), (b[free], b_error[free])
    c, constant = rest.linear(*sides, at_zero)
    S[np.diag_indices(len(free))] -= 2.0 * R_size**2 / tau
    lowered += 2.0 * R_size**2 / tau
    S_error = 4 * _U * float(np.abs(S).max())
    return NodeBounds.of_parts(family, (S, S_error), c, constant, lowered)


class _Elimination:
    r"""The change of variables of this module's formulas, of an H with :math:`|E_{ij}|\le a_ia_j`.

    With W = [-Y; I] the errors of H change S by W'EW, of norm at most :math:`|c|^2` for
    :math:`c=a_U+|Y|^\top a_K`, and R by :math:`E_{KU}-E_{KK}Y`, at most :math:`|a_K||c|`.
    """

    def __init__(self, H: Array, sizes: Array, n: int, tau: float) -> None:
        self.A, self.B, self.C = H[:n, :n], H[:n, n:], H[n:, n:]
        self.kept, self.free = sizes[:n], sizes[n:]
        self.tau, self.g = tau, gamma(n + 4)
        prove_semidefinite(self.A, np.full(n, tau), float(self.kept @ self.kept))
        self.Y = np.linalg.solve(self.A, self.B)
        self.spread = (self.free + np.abs(self.Y).T @ self.kept) * (1.0 + self.g)  # c above

    def schur(self) -> tuple[Array, float, float]:
        """Not above the exact S, as matrices go; a bound on |R|; what S was lowered by."""
        A, B, C, Y, g = self.A, self.B, self.C, self.Y, self.g
        R = B - A @ Y
        a, b, y = (float(np.linalg.norm(M)) for M in (A, B, Y))
        R_error = g * (b + a * y)
        c = float(np.linalg.norm(self.spread))
        R_size = float(np.linalg.norm(R)) + R_error + float(np.linalg.norm(self.kept)) * c
        S = C - B.T @ Y - Y.T @ R
        S = 0.5 * (S + S.T)
        error = g * (float(np.linalg.norm(C)) + b * y + y * R_size) + y * R_error
        error += c**2
        S[np.diag_indices(len(S))] -= 2.0 * error
        return S, R_size * (1.0 + g), 2.0 * error

    def linear(
        self, kept: tuple[Array, Array], free: tuple[Array, Array], at_zero: Enclosed
    ) -> tuple[tuple[Array, Array], Enclosed]:
        """b_S with its errors, and the constant less what the terms in t may take."""
        (b, b_error), (c, c_error), g = kept, free, self.g
        y = np.linalg.solve(self.A, b)
        length, size = float(self.kept @ np.abs(y)), np.abs(self.A) @ np.abs(y)
        e = self.A @ y - b
        e_error = g * (size + np.abs(b)) + b_error + self.kept * length
        linear = c - self.B.T @ y + self.Y.T @ e
        error = g * (np.abs(c) + np.abs(self.B.T) @ np.abs(y) + np.abs(self.Y.T) @ np.abs(e))
        error += c_error + self.free * length + np.abs(self.Y.T) @ e_error
        value = at_zero.value - 0.5 * float(b @ y) + 0.5 * float(y @ e)
        slack = float(np.abs(y) @ (g * (np.abs(b) + np.abs(e)) + b_error + e_error))
        slack += (float(np.linalg.norm(e)) + float(np.linalg.norm(e_error))) ** 2 / self.tau
        slack += g * abs(at_zero.value)
        return (linear, 2.0 * error), Enclosed(value, 2.0 * slack + at_zero.allowance)


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
    "read_reduced_tree",
    "reduced_bounds",
    "reduced_lower",
]
