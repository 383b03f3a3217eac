"""WoodFisher: one removal statistic from the inverse curvature, one joint update."""

from __future__ import annotations

from collections.abc import Sequence

from chita_opt.curvature import without_coupling
from chita_opt.errors import MethodError
from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.heuristics.saliency import DenseMinimum, removed_one_by_one
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status

UPDATES = ("kkt", "published")


def woodfisher(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    block: int | Sequence[int] | None = None,
    update: str = "kkt",
) -> Solution:
    r"""Remove the weights of smallest :math:`w_q^2/2[H^{-1}]_{qq}` at once, then update the rest.

    Singh and Alistarh (NeurIPS 2020, §3-4; with a linear term its WoodTaylor form). The released
    code inverts by a recursion over the gradients; here the same numbers come from one factored
    system, whose size is the smaller of gradients and weights.

    Parameters
    ----------
    problem, start, time_limit, seed
        As for every method; ``start`` is what the answer is compared with.
    block : int, sequence of int or None
        Weights in a diagonal block of the inverse; None couples all weights.
    update : {"kkt", "published"}
        How the kept weights move: to the exact minimiser of the whole problem on the support, or
        by the released code's sum of single updates, which is not that minimiser, inside the
        blocks.

    Raises
    ------
    MethodError
        If ``update`` is unknown.
    CurvatureError
        If C is singular and the ridge is zero, so that there is no inverse.
    """
    check_update(update)
    best = Incumbent(problem, time_limit, start)
    solver = None
    with best.until_interrupt():
        model = problem.curvature
        model = model if block is None else without_coupling(model, block)
        scores = DenseMinimum.of(model, problem.separable).costs
        mask = problem.supports.best_support(scores)
        if update == "kkt":
            solver = problem.curvature.support_solver(problem.separable, mask)
            best.offer(solver.weights, solver.value)
        else:
            w = removed_one_by_one(model, problem.separable, mask)
            best.offer(w, problem.objective(w))
    return best.finish("woodfisher", Status.FEASIBLE, solver=solver, backsolve=solver is not None)


def check_update(update: str) -> None:
    """Refuse an unknown update rule."""
    if update not in UPDATES:
        raise MethodError(f"update is {update!r}; give {' or '.join(UPDATES)}")
