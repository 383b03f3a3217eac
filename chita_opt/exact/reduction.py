r"""Reduction by proven fates: most weights decided by one witness, the rest by a tree.

At a dual witness every weight has a reduced cost: its gain :math:`s_j` less its price
:math:`(G^\top y)_j` in the rows of the family. For every allowed mask z

.. math:: f(w)\ge\mathrm{LB}+\sum_{j\ \text{against}}|s_j-(G^\top y)_j|,

summed over the weights that z decides against the sign of the reduced cost. Hence masks with a
single such weight of reduced cost :math:`\ge c-\mathrm{LB}` cost at least c. For a cutoff c all
these weights are decided; the kept ones are eliminated exactly, the pruned ones dropped, and the
undecided ones are left to the tree, whose bounds use the best diagonal split. The lower c, the
fewer are undecided; the claim is the smaller of c and the tree's bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from chita_opt.bounds import Bound, dual_point
from chita_opt.curvature import Dense
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.quadratic import FREE, IN, OUT, Quadratic
from chita_opt.exact.result import ReductionProof, TreeProof, TreeResult
from chita_opt.exact.tree_search.bounding import AscentOptions
from chita_opt.exact.tree_search.branch_and_bound import Tree
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports import SupportFamily, restrict
from chita_opt.supports.base import Array

_SAFE = 1e-10  # relative room that a verifier's own arithmetic finds
_KICKED = 0.005, 0.06  # shares of the kept weights that a kick drops
_CLOSE = AscentOptions(enough=0.1, shrink=0.5, inside=0.7, most_steps=100)


@dataclass(frozen=True, eq=False)
class ReducedCosts:
    """What a witness says about every weight.

    Attributes
    ----------
    lower : float
        The witness's bound, by the family's rows.
    excess : ndarray
        (p,) gain less price: positive where the witness keeps the weight.
    room : float
        Allowance for rounding, in units of the objective.
    """

    lower: float
    excess: Array
    room: float

    @classmethod
    def of(cls, problem: Problem, bound: Bound) -> ReducedCosts:
        """Evaluate a bound's witness and the multipliers of the family's rows there."""
        point = dual_point(problem, bound.witness, bound.split)
        gains, rows = point.gains.cpu().numpy(), problem.supports.rows()
        y = problem.supports.multipliers(point.gains)
        base = point.value + problem.supports.bound_at(point.gains, point.mask)
        lower = base - rows.bound(gains, y)
        size = abs(base) + abs(lower) + float(gains.sum())
        return cls(lower, gains - rows.G.T @ y, _SAFE * size)

    def fates(self, cutoff: float) -> Array:
        """(p,) int8: weights whose other value costs at least ``cutoff``."""
        decided = self.lower + np.abs(self.excess) >= cutoff + self.room
        value = np.where(self.excess > 0.0, IN, OUT)
        return np.where(decided, value, FREE).astype(np.int8)

    def cutoff_for(self, undecided: int, highest: float) -> float:
        """The largest cutoff, at most ``highest``, with at most so many undecided weights."""
        if undecided >= len(self.excess):
            return highest
        costs = np.sort(np.abs(self.excess))
        return min(highest, self.lower + float(costs[undecided]) - 2.0 * self.room)


@dataclass(frozen=True, eq=False)
class Rest:
    """The problem of some weights, the others eliminated or dropped.

    Attributes
    ----------
    problem : Problem
        Over the m weights of ``index``; its objective is that of the whole less ``offset``.
    offset : float
        Objective of the whole where the rest has none.
    kept : Tensor
        (p,) bool, weights eliminated.
    index : Tensor
        (m,) int64, sorted.
    """

    problem: Problem
    offset: float
    kept: Tensor
    index: Tensor

    @classmethod
    def of(cls, whole: Problem, kept: Tensor, index: Tensor, quadratic: Quadratic) -> Rest:
        """From the quadratic on ``index`` with the kept weights eliminated."""
        family: SupportFamily = restrict(whole.supports, kept, index)
        rho = whole.rho[index].cpu()
        H = torch.from_numpy(np.ascontiguousarray(0.5 * (quadratic.H + quadratic.H.T)))
        b = torch.from_numpy(quadratic.b)
        w_bar = torch.cholesky_solve(b[:, None], torch.linalg.cholesky(H))[:, 0]
        C = H - torch.diag(rho)
        offset = quadratic.const - 0.5 * float(b @ w_bar)
        return cls(Problem(Dense(C), w_bar, rho, family), offset, kept, index)

    def start(self, solution: Solution) -> Solution | None:
        """A solution of the whole as one of the rest, solved anew; None where it does not fit."""
        outside = solution.mask.clone()
        outside[self.index] = False
        mask = solution.mask[self.index].cpu()
        if not torch.equal(outside, self.kept) or not self.problem.supports.contains(mask):
            return None
        solver = self.problem.curvature.support_solver(self.problem.separable, mask)
        return Solution(self.problem, solver.weights, solution.method, Status.FEASIBLE)

    def lift(self, whole: Problem, mask: Tensor, method: str) -> Solution:
        """Weights of the whole for a mask of the rest, solved exactly in float64."""
        every = self.kept.clone()
        every[self.index] = mask.to(every.device)
        solver = whole.curvature.support_solver(whole.separable, every)
        return Solution(whole, solver.weights, method, Status.FEASIBLE)


@dataclass(frozen=True, eq=False)
class Reduced:
    """What one reduction found.

    Attributes
    ----------
    solution : Solution
        The better of the incumbent and the tree's weights.
    proof : ReductionProof
        The bound.
    tree : TreeResult
        The search over the undecided weights, in units of its own problem.
    seconds : float
        Of elimination and search, without the kicks.
    """

    solution: Solution
    proof: ReductionProof
    tree: TreeResult
    seconds: float


def reduce_and_search(
    problem: Problem,
    bound: Bound,
    incumbent: Solution,
    cutoff: float,
    *,
    options: TreeOptions | None = None,
    kicks: float = 0.0,
    seed: int = 0,
) -> Reduced | None:
    """Decide what ``bound`` proves against ``cutoff`` and search a tree over the rest.

    In the whole problem a swap reads all weights, in the rest thousands of times fewer: kicks and
    swaps there, before the tree, often find better weights.

    Parameters
    ----------
    problem, bound, incumbent : Problem, Bound, Solution
        What is bounded, the witness, and weights at hand.
    cutoff : float
        At most the incumbent's objective.
    options : TreeOptions, optional
        Limits of the tree; a proof is always kept.
    kicks : float
        Seconds of the tree's limit for kicks; none without weights to start from.
    seed : int
        Of the kicks.

    Returns
    -------
    Reduced or None
        None where the kept weights alone break the family's rows, or the tree left no proof.
    """
    options, clock = replace(options or TreeOptions(), proof=True), Clock()
    costs = ReducedCosts.of(problem, bound)
    fates = _with_something_free(costs, cutoff, bool((problem.rho > 0.0).all()))
    rest = undecided(problem, fates)
    start = rest.start(incumbent)
    with threadpool_limits(limits=torch.get_num_threads(), user_api="blas"):
        tree = Tree(rest.problem, options, start, ascent=_CLOSE, target=cutoff - rest.offset)
        formed = clock.elapsed
        if kicks > 0.0:
            tree.best.kick(kicks, shares=_KICKED, seed=seed)
        spent = clock.elapsed - formed
        result = tree.run()
    if not isinstance(result.proof, TreeProof):
        return None
    solution = incumbent
    found = rest.lift(problem, result.solution.mask, "hybrid")
    if found.is_feasible and found.objective < incumbent.objective:
        solution = found
    log = replace(result.proof, cutoff=result.proof.cutoff + rest.offset)
    seconds = clock.elapsed - spent
    return Reduced(solution, ReductionProof(bound, cutoff, fates, log), result, seconds)


def undecided(problem: Problem, fates: Array) -> Rest:
    """The rest of a problem, formed in float64 from the data."""
    kept, index = np.flatnonzero(fates == IN), np.flatnonzero(fates == FREE)
    every = np.concatenate([kept, index])
    here = torch.from_numpy(every).to(problem.device)
    H = problem.curvature.cross(here, here)
    H.diagonal().add_(problem.rho[here])
    b = problem.curvature.product(problem.w_bar) + problem.rho * problem.w_bar - problem.g
    whole = Quadratic(np.asfortranarray(H.cpu().numpy()), b[here].cpu().numpy(), problem.prune_all)
    inner = np.arange(len(kept), len(every))
    reduced = Quadratic(*whole.reduce(inner, np.arange(len(kept))))
    mask = torch.from_numpy(fates == IN).to(problem.device)
    return Rest.of(problem, mask, torch.from_numpy(index).to(problem.device), reduced)


def _with_something_free(costs: ReducedCosts, cutoff: float, may_keep: bool) -> Array:
    """The fates, but for the least certain weight where all are decided.

    Without a ridge no weight is eliminated.
    """
    fates = costs.fates(cutoff)
    if not may_keep:
        fates[fates == IN] = FREE
    if not bool((fates == FREE).any()):
        fates[int(np.argmin(np.abs(costs.excess)))] = FREE
    return fates


__all__ = ["Reduced", "ReducedCosts", "Rest", "reduce_and_search", "undecided"]
