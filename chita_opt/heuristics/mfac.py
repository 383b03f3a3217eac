"""M-FAC: the removal statistic along a path of shrinking supports, without forming an inverse."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.heuristics.saliency import cheapest_removed, removed_one_by_one
from chita_opt.heuristics.woodfisher import check_update
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status


def mfac(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    rounds: int = 16,
    update: str = "kkt",
) -> Solution:
    r"""Remove weights in rounds, the statistic :math:`w_q^2/2[H_{SS}^{-1}]_{qq}` anew in each.

    Frantar, Kurtic and Alistarh (M-FAC, NeurIPS 2021, §4). For n gradients nothing larger than n
    by n and n by p is formed: :math:`[H_{SS}^{-1}]_{qq}=(1-h_q)/\rho_q` with the leverage
    :math:`h_q=f_q^\top(I+F_S\,\mathrm{diag}(1/\rho)F_S^\top)^{-1}f_q/\rho_q`, in which all n
    gradients take part; the released recursion stops before the last one. The support shrinks
    geometrically. With one round this is WoodFisher without blocks.

    Parameters
    ----------
    problem, start, time_limit, seed
        As for every method; ``start`` is what the answer is compared with.
    rounds : int
        Supports on the path, >= 1.
    update : {"kkt", "published"}
        Whether the weights after the last round are the exact minimiser on the support, or the
        dense ones moved by the released code's sum of single updates.

    Raises
    ------
    MethodError
        If ``update`` is unknown.
    CurvatureError
        If C is singular and the ridge is zero.
    """
    check_update(update)
    best = Incumbent(problem, time_limit, start)
    solver, status, done = None, Status.ITERATION_LIMIT, 0
    with best.until_interrupt():
        every = torch.ones(problem.p, dtype=torch.bool, device=problem.device)
        solver = problem.curvature.support_solver(problem.separable, every, exact=False)
        for last, count in _path(problem, rounds):
            last = last or best.clock.expired
            keep = partial(_kept, problem, 0 if last else count)
            solver = solver.moved(cheapest_removed(solver, problem.rho, keep))
            done += 1
            if last:
                break
        status = Status.STATIONARY if done == rounds else status
        if update == "kkt":
            best.offer(solver.weights, solver.value)
        else:
            w = removed_one_by_one(problem.curvature, problem.separable, solver.mask)
            best.offer(w, problem.objective(w))
    return best.finish("mfac", status, stats={"rounds": done}, backsolve=update == "kkt")


def _path(problem: Problem, rounds: int) -> Iterator[tuple[bool, int]]:
    """Whether a round is the last, and how many weights it leaves: a geometric path."""
    p, k = problem.p, max(problem.supports.max_count, 1)
    for t in range(1, rounds + 1):
        yield t == rounds, round(p * (k / p) ** (t / rounds))


def _kept(problem: Problem, count: int, costs: Tensor) -> Tensor:
    """The family's support of largest costs and the most costly others, ``count`` in all."""
    mask = problem.supports.best_support(costs)
    more = count - int(mask.sum())
    if more <= 0:
        return mask
    rest = costs.masked_fill(mask, -1.0)
    return mask.index_fill(0, rest.topk(more).indices, True)
