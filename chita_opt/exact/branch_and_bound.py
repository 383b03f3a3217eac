"""``branch_and_bound``: the optimum, or the best weights found and a proven gap."""

from __future__ import annotations

import numpy as np
import torch

from chita_opt.errors import ProblemError
from chita_opt.exact.allowed import allowed
from chita_opt.exact.incumbents import Incumbents
from chita_opt.exact.node import NodeSolver
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.quadratic import OUT, Quadratic
from chita_opt.exact.result import TreeResult
from chita_opt.exact.tree import Search
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status

MAX_SIZE = 4000  # weights up to which a dense matrix and its factorisations are sensible


def branch_and_bound(
    problem: Problem,
    *,
    options: TreeOptions | None = None,
    start: Solution | None = None,
) -> TreeResult:
    r"""Minimise over the supports of ``problem`` with proof.

    Every node's bound is the semidefinite relaxation with the best diagonal split
    (:mod:`chita_opt.exact.split_ascent`), on the weights still free: those fixed in are eliminated
    by a Schur complement, those fixed out dropped. Weights whose other value has a bound at or
    above the cutoff are fixed. A bound is believed once its split is proven by a Cholesky
    factorisation with room for rounding.

    Parameters
    ----------
    problem : Problem
        Any family with an oracle; budgets have a fast path. H = C + diag(rho) must be positive
        definite, and is formed as a dense matrix.
    options : TreeOptions, optional
        Gap, limits, workers, log, checkpoint, proof.
    start : Solution, optional
        First incumbent; otherwise the default heuristic and the swap search find one.

    Returns
    -------
    TreeResult
        On Ctrl-C too: the incumbent and a valid bound.

    Raises
    ------
    ProblemError
        If there are more than 4,000 weights.
    CurvatureError
        If H is singular on weights that would be kept.

    References
    ----------
    Dong, Chen, Linderoth (2015), "Regularization vs. relaxation: a conic optimization perspective
    of statistical variable selection"; Zheng, Sun, Li (2014), "Improving the performance of MIQP
    solvers for quadratic programs with cardinality and minimum threshold constraints".
    """
    options = options or TreeOptions()
    if problem.p > MAX_SIZE:
        raise ProblemError(
            f"the problem has {problem.p} weights; the tree search forms dense matrices and stops "
            f"at {MAX_SIZE}. Split the layer into blocks, or use dual_bound"
        )
    clock = Clock(options.time_limit)
    quadratic = Quadratic.of(problem)
    best = Incumbents(problem, quadratic, start)
    solver = NodeSolver(quadratic, allowed(problem.supports))
    search = Search(solver, best.offer, np.inf, options.gap, problem.dense_minimum)
    root = solver.root()
    root.state[quadratic.H.diagonal() <= 0.0] = OUT  # nothing depends on them
    if not bool(problem.g.any()):
        root.lower = 0.0
    search.push(root)
    finished, interrupted = False, False
    try:
        best.find(clock)
        search.upper = best.value
        finished = search.run(
            lambda: (
                clock.expired
                or (options.node_limit is not None and search.nodes >= options.node_limit)
            )
        )
    except KeyboardInterrupt:
        interrupted = True
    status = _status(finished, interrupted, clock)
    solution = Solution(
        problem, torch.from_numpy(best.w), "branch_and_bound", status, clock.elapsed, clock.trace
    )
    lower = min(search.lower, solution.objective)
    return TreeResult(solution, lower, status, search.nodes, clock.elapsed, search.root)


def _status(finished: bool, interrupted: bool, clock: Clock) -> Status:
    if interrupted:
        return Status.INTERRUPTED
    if finished:
        return Status.OPTIMAL
    return Status.TIME_LIMIT if clock.expired else Status.ITERATION_LIMIT


__all__ = ["branch_and_bound"]
