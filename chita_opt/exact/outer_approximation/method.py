"""``outer_approximation``: HiGHS proves the optimum over the indicators, by dual cuts in rounds."""

from __future__ import annotations

from collections.abc import Sequence

from threadpoolctl import threadpool_limits

from chita_opt.errors import ProblemError
from chita_opt.exact.interrupts import noticing_interrupts
from chita_opt.exact.outer_approximation.result import OuterApproximation
from chita_opt.exact.outer_approximation.search import Search
from chita_opt.formulations.model_parts import SideConstraint
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status

MAX_SIZE = 1000  # weights up to which dense cuts and matrices are sensible


def outer_approximation(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    gap: float = 1e-4,
    side_constraints: Sequence[SideConstraint] = (),
    round_limit: int = 10_000,
) -> OuterApproximation:
    r"""Minimise over the supports of ``problem`` and any linear side constraints with HiGHS.

    Rounds of a mixed-integer linear program in the indicators
    (:func:`chita_opt.formulations.dual_cuts_milp`), solved through Pyomo, each followed by cuts at
    the masks that it found: tight at the mask, with the split that is best at a point between the
    mask and the optimum of the relaxation with the best split (:mod:`.split`).
    Before the first round and after each better incumbent, weights whose other value is proven
    worse are fixed, those kept are eliminated by a Schur complement and those pruned dropped, which
    makes every later split stronger.

    Parameters
    ----------
    problem : Problem
        Any family with an oracle; H = C + diag(rho) must be positive definite, and is formed as a
        dense matrix.
    start : Solution, optional
        First incumbent; otherwise the default heuristic finds one.
    time_limit : float, optional
        Seconds over the whole call.
    gap : float
        Relative gap at which to stop, on the increase over the dense minimum.
    side_constraints : sequence of callables
        Each receives the Pyomo model and adds linear constraints on ``model.z`` (1 keeps), with
        variables of its own if it likes: :func:`chita_opt.formulations.cost_budget`,
        :func:`chita_opt.formulations.block_widths`, or the user's.
    round_limit : int
        Rounds.

    Returns
    -------
    OuterApproximation
        On Ctrl-C too: the incumbent and a valid bound.

    Raises
    ------
    ProblemError
        If there are more than 1,000 weights, or an option is out of range.
    CurvatureError
        If H is not positive definite.
    MethodError
        If no mask satisfies family and side constraints, or ``start`` does not.

    References
    ----------
    Bertsimas & Van Parys, "Sparse high-dimensional regression: exact scalable algorithms and phase
    transitions", Annals of Statistics 48 (2020); Ben-Ameur & Neto, "Acceleration of cutting-plane
    and column generation algorithms", Networks 49 (2007).
    """
    if problem.p > MAX_SIZE:
        raise ProblemError(
            f"the problem has {problem.p} weights; the outer approximation forms dense cuts and "
            f"stops at {MAX_SIZE}. Use branch_and_bound or dual_bound"
        )
    if not 0.0 <= gap < 1.0:
        raise ProblemError(f"gap is {gap}; give a relative gap in [0, 1)")
    # hundreds of small factorisations: threads cost more than they bring
    with threadpool_limits(limits=1, user_api="blas"), noticing_interrupts() as interrupted:
        search = Search(problem, Clock(time_limit), gap, side_constraints)
        search.interrupted = interrupted
        status = Status.ITERATION_LIMIT
        try:
            search.prepare(start)
            status = search.run(round_limit)
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        return search.result(status)


__all__ = ["OuterApproximation", "outer_approximation"]
