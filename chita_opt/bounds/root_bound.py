"""``dual_bound``: one call for the best root bound of a problem."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from chita_opt.bounds.dual import Bound, check_ridge, dual_point, trivial_bound
from chita_opt.bounds.oracle_ascent import oracle_ascent
from chita_opt.bounds.relaxation import (
    RelaxationOptions,
    RelaxationState,
    StartPoint,
    maximise_dual,
)
from chita_opt.bounds.splits import candidate_splits, less_diagonal, safe_split, split_problem
from chita_opt.errors import ProblemError
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution

_WARM = 0.05  # smoothing when the indicators come from an earlier relaxation
_SOLVE_EVERY_SPLIT = 1500  # weights up to which all splits are solved, not only the best guess


def dual_bound(
    problem: Problem,
    *,
    start: Solution | Bound | None = None,
    tol: float = 3e-5,
    target_gap: float | None = None,
    time_limit: float | None = None,
    splits: str = "auto",
    memory_limit: float = 4e9,
) -> Bound:
    r"""Maximise the dual bound of ``problem`` (the perspective relaxation's value).

    Parameters
    ----------
    problem : Problem
        Any family, any curvature form.
    start : Solution or Bound, optional
        Warm start; any solution of the problem, or an earlier bound.
    tol : float
        Stop when the proximal value is within ``tol`` of the bound, relative to the objective of
        ``start`` if that is a Solution, else to the bound (to the magnitude tail where a linear
        term is present). With a Solution, also when a share ``600 tol`` of the gap to it
        (at most a fiftieth) is left to gain.
    target_gap : float, optional
        Stop as soon as the relative gap to ``start``'s objective is this small.
    time_limit : float, optional
        Seconds over the whole call; the best bound so far is returned.
    splits : {"auto", "none"}
        Whether diagonal strength beyond rho may be used where C is positive definite.
    memory_limit : float
        Bytes for the Newton system; above it conjugate gradients with products alone are used.

    Returns
    -------
    Bound
        Re-evaluated in float64 from the data. ``relaxation_upper - value`` is what a longer run
        could still gain on this split.

    Raises
    ------
    ProblemError
        If rho is not positive and no split makes up for it, or an option is out of range.
    """
    if splits not in ("auto", "none"):
        raise ProblemError(f"splits is {splits!r}; give 'auto' or 'none'")
    if not tol > 0:
        raise ProblemError(f"tol is {tol}; it must be positive")
    clock = Clock(time_limit)
    target = _target(problem, start, target_gap)
    options = RelaxationOptions(
        tol=tol,
        target=target,
        memory_limit=memory_limit,
        incumbent=start.objective if isinstance(start, Solution) else float("inf"),
    )
    candidates = candidate_splits(problem) if splits == "auto" else {}
    has_ridge = float(problem.rho.min()) > 0.0
    if has_ridge and not _dominated(candidates):
        candidates = {"none": torch.zeros_like(problem.rho)} | candidates
    if not candidates:
        check_ridge(problem.rho)
    name = "none" if has_ridge else next(iter(candidates))
    floor = trivial_bound(problem, _split(problem, candidates, name))
    best = _best_split(problem, candidates, start, options, clock)
    if best is None:
        best = replace(floor, stats={"stopped": "interrupt", "split": name})
    elif floor.value > best.value:  # an ascent cut short can lie below the zero witness
        best = replace(
            best, value=floor.value, witness=floor.witness, split=floor.split, proof="trivial"
        )
    return replace(best, seconds=clock.elapsed, trace=clock.trace)


def _best_split(
    problem: Problem,
    candidates: dict[str, Tensor],
    start: Solution | Bound | None,
    options: RelaxationOptions,
    clock: Clock,
) -> Bound | None:
    """The best bound of the splits; Ctrl-C keeps the best so far, None if there is none yet."""
    best: Bound | None = None
    interrupted = False
    try:
        for name in _order(problem, start, candidates):
            if best is not None and (clock.expired or interrupted or best.value >= options.target):
                break
            e = _split(problem, candidates, name)
            if e is None or float((problem.rho + e).min()) > 0.0:
                trial = bound_with_split(problem, e, name, best or start, options, clock)
                interrupted = trial.stats["stopped"] == "interrupt"
                best = trial if best is None or trial.value > best.value else best
    except KeyboardInterrupt:  # between two ascents
        interrupted = True
    if best is not None and interrupted:
        best = replace(best, stats={**best.stats, "stopped": "interrupt"})
    return best


def _target(problem: Problem, start: Solution | Bound | None, gap: float | None) -> float:
    if gap is None:
        return float("inf")
    if not isinstance(start, Solution):
        raise ProblemError("target_gap needs start=a Solution to measure the gap against")
    if not gap >= 0:
        raise ProblemError(f"target_gap is {gap}; it must be >= 0")
    increase = start.objective - problem.dense_minimum
    return start.objective - gap * increase


def _dominated(candidates: dict[str, Tensor]) -> bool:
    """Whether some candidate takes from no weight: its bound is then at least that of none."""
    return any(float(e.min()) >= 0.0 for e in candidates.values())


def _order(
    problem: Problem, start: Solution | Bound | None, candidates: dict[str, Tensor]
) -> list[str]:
    """By what they prove at one displacement; of large problems only the first is worth its time.

    Any displacement tells the splits apart; the start's is used, or that of magnitude pruning.
    """
    if len(candidates) < 2:
        return list(candidates)
    if isinstance(start, Solution):
        v = start.w - problem.w_bar
    else:
        mask = problem.supports.best_support(problem.scores).double()
        z = mask if start is None or start.z is None else start.z
        v = (z - 1.0) * problem.w_bar
    values = {}
    for name, e in candidates.items():
        Q = less_diagonal(problem.curvature, e)
        values[name] = dual_point(problem, Q.image(v), e).value
    names = sorted(candidates, key=lambda name: -values[name])
    if problem.p > _SOLVE_EVERY_SPLIT:
        return names[:1]
    return [name for name in names if name != "none" or name == names[0]]


def _split(problem: Problem, candidates: dict[str, Tensor], name: str) -> Tensor | None:
    """The candidate as far as it can be proven."""
    return safe_split(problem.curvature, None if name == "none" else candidates[name])


def bound_with_split(
    problem: Problem,
    e: Tensor | None,
    name: str,
    start: Solution | Bound | None,
    options: RelaxationOptions,
    clock: Clock,
) -> Bound:
    """Ascend for one split that is proven (see ``safe_split``) and re-evaluate what was found."""
    base = problem if e is None else split_problem(problem, e)
    if name != "none" and isinstance(start, Solution):
        start = replace(start, warm={})  # its relaxation was of another split
    state = ascend(base, start, options, clock)
    witness = base.curvature.image_of_dual(state.best_r)
    value = dual_point(problem, witness, e).value
    stats: dict[str, float | str] = {
        "newton_steps": float(state.steps),
        "stopped": state.stopped,
        "split": name,
        **state.stats,
    }
    upper = relaxed_objective(base, state.z, state.c)
    return Bound(value, witness, e, "dual", upper, state.z, clock.elapsed, clock.trace, stats)


def ascend(
    problem: Problem,
    start: Solution | Bound | None,
    options: RelaxationOptions,
    clock: Clock,
) -> RelaxationState:
    """Run the ascent that fits the family, from a warm start where one is given."""
    factor, part, supports = problem.curvature.factor(), problem.separable, problem.supports
    tail = float((0.5 * problem.rho * problem.scores)[~supports.best_support(
        0.5 * problem.rho * problem.scores)].sum())  # fmt: skip
    scale = tail if bool(problem.g.any()) else 0.0
    if isinstance(start, Solution) and not scale:
        scale = start.objective  # what the gap will be relative to
    z = supports.best_support((part.rho * part.w_bar - part.g).square() / part.rho).double()
    r = None
    if isinstance(start, Solution) and "z" in start.warm:
        z = start.warm["z"]
        options = replace(options, smoothing=_WARM)
        r = problem.curvature.dual_of_image(start.warm["image"])
    elif isinstance(start, Solution):
        z = start.mask.double()
        r = problem.curvature.dual_of_image(problem.curvature.image(start.w - problem.w_bar))
    elif isinstance(start, Bound) and start.z is not None:
        z = start.z
    if not supports.is_smooth:
        mask = supports.best_support(z)
        return oracle_ascent(factor, part, supports, scale=scale, options=options, clock=clock,
                             z=mask.double())  # fmt: skip
    begin = StartPoint(z, r)
    return maximise_dual(
        factor, part, supports, scale=scale, options=options, clock=clock, start=begin
    )


def relaxed_objective(problem: Problem, z: Tensor, c: Tensor) -> float:
    r"""Primal value of the relaxation at z and :math:`w=z\circ c/d`: above its optimum, always."""
    w = z * c / problem.rho
    x = w - problem.w_bar
    perspective = 0.5 * problem.rho * (z * (c / problem.rho).square() - w.square())
    return problem.curvature.quadratic(x) + problem.separable.value(x) + float(perspective.sum())
