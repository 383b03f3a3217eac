r"""``lower_bound``: bounds of several strengths by one call, each with a witness.

==========  ==========================================================  =======================
strength    what it is                                                  reach
==========  ==========================================================  =======================
dual        perspective relaxation, three simple splits, products only  any p
diagonal    the best diagonal split: the semidefinite relaxation of     dense H, p up to 4,000;
            Dong, Chen & Linderoth (2015), by barrier Newton steps;     blocks of up to 1,500
            of large problems that fall into blocks each block's own    weights
pairs       the best split into a diagonal and pairs of weights:        p up to 60
            rank-one convexification, by a conic solver
lagrangian  root bounds of the blocks for the counts that matter, and   block-diagonal or
            one price for a kept weight in all of them                  shared-row curvature
tree        branch and bound until a node or time limit; where few      dense H, p up to 4,000
            weights are left to choose, every choice
==========  ==========================================================  =======================

Each of dual, diagonal, pairs is at least as high as the one before it, for more time; lagrangian
lets every block have its own best split and leaves only the total relaxed. ``save_proof`` writes
each with its witness: a point and a diagonal, the same with pairs, logs of trees and a price, or
the log of the tree.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from chita_opt.bounds import Bound, dual_bound, dual_point
from chita_opt.bounds.splits import less_diagonal, safe_split
from chita_opt.errors import ProblemError
from chita_opt.exact.block_splits import SplitEffort, block_split_bound, falls_into_blocks
from chita_opt.exact.lagrangian import block_lagrangian
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.pair_split import PairWitness, check_size, pair_bound
from chita_opt.exact.quadratic import FREE, Quadratic
from chita_opt.exact.result import TreeResult
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.bounding import AscentOptions, NodeBound
from chita_opt.exact.tree_search.branch_and_bound import MAX_SIZE, branch_and_bound
from chita_opt.exact.tree_search.node import root_node
from chita_opt.heuristics import solve
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution
from chita_opt.supports.base import Array

STRENGTHS = ("dual", "diagonal", "pairs", "lagrangian", "tree")
_WHOLE = 400  # weights up to which one program is solved for all, blocks or not
_CLOSE = AscentOptions(enough=2e-4, shrink=0.5, inside=0.7, most_steps=150)


@dataclass(frozen=True, eq=False)
class ProvenBound:
    """A lower bound and what proves it.

    Attributes
    ----------
    value : float
        No allowed solution has an objective below it.
    strength : str
        One of the table above.
    problem : Problem
        What is bounded.
    witness : Bound, PairWitness or TreeResult
        What proves ``value``: a point with a split, for "pairs" one with pairs where they gain
        something, for "lagrangian" and "tree" a result with its logs (a tree has none for families
        whose rows need binary auxiliary variables).
    solution : Solution or None
        The best weights met on the way.
    seconds : float
        Wall time.
    """

    value: float
    strength: str
    problem: Problem
    witness: Bound | PairWitness | TreeResult
    solution: Solution | None
    seconds: float


def lower_bound(
    problem: Problem,
    *,
    strength: str = "dual",
    start: Solution | None = None,
    time_limit: float | None = None,
    node_limit: int | None = None,
) -> ProvenBound:
    """Bound the optimum of ``problem`` from below, as strongly as asked.

    Parameters
    ----------
    problem : Problem
        Any family with an oracle, any curvature form.
    strength : {"dual", "diagonal", "pairs", "lagrangian", "tree"}
        See the table above.
    start : Solution, optional
        Incumbent; the stronger bounds stop where it is proven optimal.
    time_limit : float, optional
        Seconds over the whole call.
    node_limit : int, optional
        Of the tree; for "lagrangian" of every tree, 1 if absent.

    Raises
    ------
    ProblemError
        If the strength is unknown, the problem is too large for it, or does not fall into blocks
        for "lagrangian".
    """
    if strength not in STRENGTHS:
        raise ProblemError(f"strength is {strength!r}; give one of {', '.join(STRENGTHS)}")
    in_blocks = strength == "diagonal" and falls_into_blocks(problem.curvature)
    if strength in ("diagonal", "tree") and problem.p > MAX_SIZE and not in_blocks:
        raise ProblemError(
            f"the problem has {problem.p} weights; the bound {strength!r} forms dense matrices and "
            f"stops at {MAX_SIZE}. Use strength='dual'"
        )
    if strength == "pairs":
        check_size(problem)
    clock = Clock(time_limit)
    if strength in ("lagrangian", "tree"):
        if strength == "lagrangian":
            tree = block_lagrangian(problem, time_limit=time_limit, node_limit=node_limit)
        else:
            logged = not problem.supports.binary_auxiliary  # a replay could not follow
            options = TreeOptions(time_limit=time_limit, node_limit=node_limit, proof=logged)
            tree = branch_and_bound(problem, options=options, start=start)
        return ProvenBound(tree.lower, strength, problem, tree, tree.solution, clock.elapsed)
    value, witness, start = _by_one_point(problem, strength, start, clock)
    return ProvenBound(value, strength, problem, witness, start, clock.elapsed)


def _by_one_point(
    problem: Problem, strength: str, start: Solution | None, clock: Clock
) -> tuple[float, Bound | PairWitness, Solution | None]:
    """Value and witness of the strengths without a tree, and the weights used."""
    if strength == "dual":
        bound = dual_bound(problem, start=start, time_limit=clock.remaining)
        return bound.value, bound, start
    start = start or solve(problem, time_limit=clock.remaining)
    bound = best_split_bound(problem, start, time_limit=clock.remaining)
    if strength == "pairs" and not clock.expired:
        with suppress(KeyboardInterrupt):  # the diagonal's bound is at hand
            paired = pair_bound(problem, time_limit=clock.remaining)
            if paired is not None and paired[0] > bound.value:
                return *paired, start
    return bound.value, bound, start


def best_split_bound(
    problem: Problem, start: Solution, *, time_limit: float | None = None
) -> Bound:
    """The bound with the best diagonal split, re-evaluated from the data; at least the dual one.

    Large problems that fall into blocks get the best split of each block for itself.
    """
    begin = time.perf_counter()
    fallback = dual_bound(problem, start=start, time_limit=time_limit)
    if problem.p > _WHOLE and falls_into_blocks(problem.curvature):
        left = None if time_limit is None else max(time_limit - fallback.seconds, 1e-3)
        return block_split_bound(
            problem, start, fallback, SplitEffort(time_limit=left, enough=0.01, tol=3e-5)
        )
    quadratic, family = Quadratic.of(problem), allowed(problem.supports)
    node = root_node(problem.p, family.row_count)
    if not bool((quadratic.H.diagonal() > 0.0).all()) or not family.propagate(node.state):
        return fallback
    free = np.flatnonzero(node.state == FREE)
    if len(free) < problem.p:  # the counts alone decide some weights: nothing is gained here
        return fallback
    node_bound = NodeBound(quadratic, node, family.restrict(node.state, free), free, _CLOSE)
    if node_bound.ascent is None:
        return fallback
    if time_limit is not None:
        node_bound.stop = lambda: time.perf_counter() - begin >= time_limit
    scale = max(start.objective - problem.dense_minimum, 1e-300)
    try:
        d, v = node_bound.ascend(start.objective, scale)
    except KeyboardInterrupt:
        return fallback
    bound = _from_split(problem, d, v, time.perf_counter() - begin)
    return bound if bound.value > fallback.value else fallback


def _from_split(problem: Problem, d: Array, v: Array, seconds: float) -> Bound:
    """The ascent's end as a certificate's witness: displacement and proven split."""
    C = problem.curvature
    e = torch.from_numpy(d).to(problem.device) - problem.rho
    split = safe_split(C, e)
    assert split is not None  # None stands for no split only where none was asked for
    Q, stats = less_diagonal(C, split), {"split": "best diagonal"}
    witness = Q.image(torch.from_numpy(v).to(problem.device) - problem.w_bar)
    if not float((problem.rho + split).min()) > 0.0:
        return Bound(-float("inf"), witness, split, "dual")
    value = dual_point(problem, witness, split).value
    return Bound(value, witness, split, "dual", seconds=seconds, stats=stats)


__all__ = ["STRENGTHS", "ProvenBound", "best_split_bound", "lower_bound"]
