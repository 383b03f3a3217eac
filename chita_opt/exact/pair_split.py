r"""The bound with the best split into a diagonal and pairs of weights, by one witness.

With :math:`H=C+\mathrm{diag}(\rho)`, :math:`b=H\bar w-g` let

.. math:: H=Q+\mathrm{diag}(d)+\sum_T\ell_T\ell_T^\top,\qquad Q\succeq0,\ d>0,

every :math:`\ell_T` with entries on a pair T = {i, j} alone (a matrix on T that is positive
semidefinite is such a product and a diagonal, so nothing is lost). For any point v, any pulls t
and prices :math:`0\le\alpha_T\le t_T^2/2`, with :math:`r=b-Qv-\sum_Tt_T\ell_T`,

.. math::
    f(w)\ge f(0)-\tfrac12v^\top Qv-\sum_T\big(\tfrac12t_T^2-\alpha_T\big)
        -\max_{z\in\mathcal S}\sum_jz_j\Big(\frac{r_j^2}{2d_j}+\sum_{T\ni j}\alpha_T\Big),

because :math:`t\,\ell^\top w-\tfrac12(\ell^\top w)^2\le\tfrac12t^2\max(z_i,z_j)
\le\tfrac12t^2-\alpha+\alpha(z_i+z_j)`. The semidefinite relaxation of
:mod:`chita_opt.formulations.pairs` says which d, l, v and t are best; a linear program the prices.

Source: Atamtürk & Gómez, *Journal of Machine Learning Research* 26 (2025), rank-one
convexification.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import linprog
from scipy.sparse import coo_array, hstack, identity

from chita_opt.errors import ProblemError
from chita_opt.exact.quadratic import FREE, Quadratic
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.node import root_node
from chita_opt.problem import Problem
from chita_opt.supports.base import Array

MAX_PAIR_SIZE = 60  # weights: building and solving its program takes ten seconds there
_PAIRS = 190  # all pairs of 20 weights; of more weights those with the largest correlation
_SMALL = 1e-9  # relative to the diagonal of H: entries below are none, diagonals above it
_ROOM = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # shares of the split given up for its proof


@dataclass(frozen=True, eq=False)
class PairWitness:
    """A split into a diagonal and pairs with a dual point; symbols as in the module's text.

    Attributes
    ----------
    point : ndarray
        v (p,).
    split : ndarray
        d (p,), positive.
    first, second : ndarray
        (m,) weights i < j of every pair.
    entries : ndarray
        (m, 2) the two entries of every l.
    pulls, prices : ndarray
        t and alpha (m,).
    """

    point: Array
    split: Array
    first: Array
    second: Array
    entries: Array
    pulls: Array
    prices: Array

    @property
    def factors(self) -> coo_array:
        """The l as columns (p, m)."""
        m = len(self.first)
        index = np.concatenate([self.first, self.second]), np.tile(np.arange(m), 2)
        return coo_array((self.entries.T.ravel(), index), shape=(len(self.point), m))


def check_size(problem: Problem) -> None:
    """Refuse more weights than the semidefinite program can take.

    Raises
    ------
    ProblemError
        Naming the limit.
    """
    if problem.p > MAX_PAIR_SIZE:
        raise ProblemError(
            f"the problem has {problem.p} weights; the bound 'pairs' solves a semidefinite program "
            f"and stops at {MAX_PAIR_SIZE}. Use strength='diagonal' or 'tree'"
        )


def pair_bound(
    problem: Problem, *, time_limit: float | None = None
) -> tuple[float, PairWitness] | None:
    """The bound and its witness; None where the conic solver or the proof of the split fails.

    Parameters
    ----------
    problem : Problem
        Of at most ``MAX_PAIR_SIZE`` weights.
    time_limit : float, optional
        Seconds for the conic solver; building its model comes on top.

    Raises
    ------
    ProblemError
        If there are more weights than the semidefinite program can take.
    """
    check_size(problem)
    quadratic = Quadratic.of(problem)
    if not bool((quadratic.H.diagonal() > 0.0).all()) or problem.p < 2:
        return None
    solved = _solve_relaxation(problem, time_limit)
    if solved is None:
        return None
    d, D, pairs, z = solved
    split = _proven(quadratic, *_rank_one(quadratic.H, d, D, pairs), pairs)
    if split is None:
        return None
    witness = _dual_point(problem, quadratic, split, z)
    return _value(problem, quadratic, witness), witness


def _solve_relaxation(
    problem: Problem, time_limit: float | None
) -> tuple[Array, Array, list[tuple[int, int]], Array] | None:
    """Split d, matrices D_T, their pairs and indicators z of the semidefinite program."""
    import cvxpy as cp

    from chita_opt.formulations.pairs import pair_relaxation, strongest_pairs

    relaxation = pair_relaxation(problem, strongest_pairs(problem, _PAIRS))
    limit = {} if time_limit is None else {"time_limit": time_limit}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an inaccurate solution is repaired, then proven
            relaxation.model.solve(solver="CLARABEL", **limit)
    except cp.SolverError:
        return None
    z = relaxation.z.value
    if z is None or relaxation.cones.dual_value is None:
        return None
    pairs = [(min(pair), max(pair)) for pair in relaxation.pairs]
    return relaxation.separable_curvature(), relaxation.pair_curvature(), pairs, np.asarray(z)


def _rank_one(H: Array, d: Array, D: Array, pairs: list[tuple[int, int]]) -> tuple[Array, Array]:
    """D_T as one product each; what is left of its diagonal goes to d."""
    d = np.maximum(d, _SMALL * H.diagonal())
    entries = np.zeros((len(pairs), 2))
    for own, matrix, pair in zip(entries, D, pairs, strict=True):
        a, c, b = matrix[0, 0], matrix[1, 1], matrix[0, 1]
        big = int(c > a)
        scale = float(np.sqrt(H[pair[0], pair[0]] * H[pair[1], pair[1]]))
        if abs(b) <= _SMALL * scale or not matrix[big, big] > 0.0:
            continue
        own[big] = np.sqrt(matrix[big, big])
        own[1 - big] = b / own[big]
        d[pair[1 - big]] += max(matrix[1 - big, 1 - big] - own[1 - big] ** 2, 0.0)
    return d, entries


def _proven(
    quadratic: Quadratic, d: Array, entries: Array, pairs: list[tuple[int, int]]
) -> PairWitness | None:
    """The largest multiple of a split that a Cholesky factorisation proves; no dual point yet."""
    used = np.flatnonzero(entries.any(axis=1))
    index = np.array(pairs, dtype=np.int64).reshape(-1, 2)[used]
    nothing = np.zeros(len(used))
    full = PairWitness(
        np.zeros(len(d)), d, index[:, 0], index[:, 1], entries[used], nothing, nothing
    )
    taken = np.diag(d) + (full.factors @ full.factors.T).toarray()
    most = float(eigh(taken, quadratic.H, eigvals_only=True)[-1])
    margin = 4.0 * quadratic.margin(np.ones(len(d), dtype=bool))
    for room in _ROOM:
        share = (1.0 - room) / most
        Q = quadratic.H - share * taken
        Q[np.diag_indices_from(Q)] -= margin
        try:
            np.linalg.cholesky(Q)
        except np.linalg.LinAlgError:
            continue
        root = float(np.sqrt(share))
        return PairWitness(
            full.point, share * d, full.first, full.second, root * full.entries, nothing, nothing
        )
    return None


def _dual_point(
    problem: Problem, quadratic: Quadratic, split: PairWitness, z: Array
) -> PairWitness:
    """The best point and pulls for indicators z, and the best prices for them."""
    z, d, L = np.clip(z, 1e-6, 1.0), split.split, split.factors.tocsr()
    y = np.minimum(z[split.first] + z[split.second], 1.0)
    Q = quadratic.H - np.diag(d) - (L @ L.T).toarray()
    K = Q + np.diag(d / z) + (L @ coo_array((1.0 / y, (np.arange(len(y)),) * 2)) @ L.T).toarray()
    v = np.linalg.solve(K, quadratic.b)
    pulls = (L.T @ v) / y
    r = quadratic.b - Q @ v - L @ pulls
    prices = _prices(problem, split, 0.5 * r * r / d, 0.5 * pulls**2)
    return PairWitness(v, d, split.first, split.second, split.entries, pulls, prices)


def _prices(problem: Problem, split: PairWitness, gains: Array, most: Array) -> Array:
    """Minimise sum(most - alpha) + max_z z'(gains + alpha's) over 0 <= alpha <= most."""
    m, p, scale = len(most), problem.p, float(gains.max(initial=0.0) + most.max(initial=0.0))
    if not m or not scale > 0.0:
        return np.zeros(m)
    rows = problem.supports.rows()
    size = p + rows.q
    index = np.concatenate([split.first, split.second]), np.tile(np.arange(m), 2)
    touching = coo_array((np.ones(2 * m), index), shape=(size, m))
    dual = hstack([touching, -rows.joint.T, -identity(size)], format="csr")
    cost = np.concatenate([-np.ones(m), rows.h, np.ones(size)])
    right = np.concatenate([-gains / scale, np.zeros(rows.q)])
    bounds = [(0.0, value) for value in most / scale] + [(0.0, None)] * (len(rows.h) + size)
    found = linprog(cost, A_ub=dual, b_ub=right, bounds=bounds, method="highs")
    if found.x is None:
        return np.zeros(m)
    return np.clip(scale * found.x[:m], 0.0, most)


def _value(problem: Problem, quadratic: Quadratic, witness: PairWitness) -> float:
    """The bound by the formula above, less an allowance for rounding."""
    L, v, d = witness.factors.tocsr(), witness.point, witness.split
    image = quadratic.H @ v - d * v - L @ (L.T @ v)
    r = quadratic.b - image - L @ witness.pulls
    touching = abs(L).sign()
    gains = 0.5 * r * r / d + touching @ witness.prices
    family = allowed(problem.supports)
    state = root_node(problem.p, family.row_count).state
    value = family.restrict(state, np.flatnonzero(state == FREE)).best(gains)[1]
    value += float((0.5 * witness.pulls**2 - witness.prices).sum())
    lower = quadratic.const - 0.5 * float(v @ image) - value
    return lower - quadratic.rounding(value)


__all__ = ["MAX_PAIR_SIZE", "PairWitness", "check_size", "pair_bound"]
