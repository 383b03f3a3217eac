r"""Solving for bit-widths: by knapsack, or by outer approximation with a bound of our own.

With a split :math:`M=R+\mathrm{diag}(d)`, :math:`R\succeq0`, and any :math:`y^0`,

.. math:: f(y)\ \ge\ -\tfrac12y^{0\top}Ry^0+(Ry^0+q+\tfrac12d)^\top y

for all binary y, whose minimum over the choices is a multiple-choice knapsack. Frank-Wolfe steps
raise this bound; it is evaluated in float64 and rests on no solver. HiGHS minimises over many such
cuts at once; its bound is its own word and reported apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack
from torch import Tensor

from chita_opt.exact.bit_widths import BitWidthProblem
from chita_opt.solution import Clock, Status
from chita_opt.supports.base import Array

_STEPS = 300
_ROUNDS = 200


@dataclass(frozen=True, eq=False)
class BitWidthSolution:
    """Bits for every channel and what is proven of them.

    Attributes
    ----------
    bits : ndarray
        (channels,) bits of each.
    weights : Tensor
        (p,) quantised weights.
    objective : float
        Recomputed from the data.
    lower : float
        Bound evaluated in float64, without a solver's word.
    solver_bound : float or None
        What HiGHS claims beyond that; None where it was not asked.
    status : Status
        OPTIMAL where ``lower`` meets the objective to 1e-9, or where HiGHS says that its bound
        does; else TIME_LIMIT or ITERATION_LIMIT.
    seconds : float
        Wall time.
    """

    bits: Array
    weights: Tensor
    objective: float
    lower: float
    solver_bound: float | None
    status: Status
    seconds: float


def solve_bit_widths(
    problem: BitWidthProblem, *, time_limit: float | None = None, gap: float = 1e-6
) -> BitWidthSolution:
    """Choose bit-widths; exact by dynamic programming where channels are not coupled.

    Parameters
    ----------
    problem : BitWidthProblem
        What to choose.
    time_limit : float, optional
        Seconds for the outer approximation; the incumbent is then returned with its bound.
    gap : float
        Relative gap at which HiGHS's bound ends the search.
    """
    clock = Clock(time_limit)
    M, q = problem.quadratic
    if problem.is_uncoupled:
        option, value = problem.cheapest(0.5 * np.diag(M) + q)
        return _told(problem, option, value, None, Status.OPTIMAL, clock)
    split = _Split(problem)
    option, lower, points = _ascended(problem, split)
    option = improved(problem, option)
    return _outer_approximation(problem, split, option, lower, points, gap, clock)


class _Split:
    """R and d of a problem, and the cuts that they give."""

    def __init__(self, problem: BitWidthProblem) -> None:
        M, q = problem.quadratic
        size = 1.0 / np.sqrt(np.maximum(np.diag(M), 1e-300))
        size[np.diag(M) <= 0.0] = 0.0
        lowest = float(np.linalg.eigvalsh(size[:, None] * M * size + np.diag(size == 0.0))[0])
        d = max(lowest, 0.0) * (1.0 - 1e-9) * np.diag(M)
        self.R, self.linear = M - np.diag(d), q + 0.5 * d
        # what rounding may have left below zero in R, times the largest squared distance
        below = max(-float(np.linalg.eigvalsh(self.R)[0]), 0.0)
        self.margin = 2.0 * below * problem.count

    def cut(self, y: Array) -> tuple[float, Array]:
        """Constant and slope of the cut at y."""
        pull = self.R @ y
        return -0.5 * float(y @ pull) - self.margin, pull + self.linear


def _ascended(problem: BitWidthProblem, split: _Split) -> tuple[Array, float, list[Array]]:
    """Frank-Wolfe on the relaxation: the best choice seen, the best bound, points for cuts."""
    option, _ = problem.cheapest(split.linear)
    best, value, lower = option, problem.objective(option), -np.inf
    y, points = _one_hot(problem, option), []
    for step in range(_STEPS):
        constant, slope = split.cut(y)
        option, least = problem.cheapest(slope)
        lower = max(lower, constant + least)
        found = problem.objective(option) if step < 40 or step % 10 == 0 else np.inf
        if found < value:
            best, value = option, found
        if value - lower <= 1e-9 * abs(value):
            break
        direction = _one_hot(problem, option) - y
        curved = float(direction @ split.R @ direction)
        fall = -float(slope @ direction)
        if fall <= 1e-12 * (abs(value) + 1e-300):
            break
        y = y + direction * (min(1.0, fall / curved) if curved > 0.0 else 1.0)
        if step % 10 == 0:
            points.append(y)
    return best, lower, [*points, y]


def improved(problem: BitWidthProblem, option: Array) -> Array:
    """Change one channel, or two at once, while the objective falls and the budget holds."""
    M, q = problem.quadratic
    choices, costs = len(problem.bits), problem.costs
    place = np.arange(problem.count) * choices
    option = option.copy()
    for _ in range(50 * problem.count):
        now = place + option
        pull = M[:, now].sum(1) + q
        own = pull.reshape(-1, choices) - pull[now][:, None]
        new = np.arange(len(pull)).reshape(-1, choices)
        own = own + 0.5 * (M[new, new] + M[now, now][:, None] - 2.0 * M[new, now[:, None]])
        extra = costs - costs[np.arange(problem.count), option][:, None]
        room = problem.budget - problem.bits_used(option)
        single = np.where(extra <= room, own, np.inf)
        at = int(single.argmin())
        if single.flat[at] < -1e-12 * abs(own).max():
            option[at // choices] = at % choices
            continue
        pair = _best_pair(M, now, own, extra, room)
        if pair is None:
            break
        for move in pair:
            option[move // choices] = move % choices
    return option


def _best_pair(M: Array, now: Array, own: Array, extra: Array, room: int) -> list[int] | None:
    """Two changes that gain together and fit the room."""
    choices = own.shape[1]
    few = np.argsort(own.reshape(-1), kind="stable")[:400]
    channel = few // choices
    before = now[channel]
    joint = own.reshape(-1)[few][:, None] + own.reshape(-1)[few][None, :]
    joint = joint + M[np.ix_(few, few)] - M[np.ix_(few, before)]
    joint = joint - M[np.ix_(before, few)] + M[np.ix_(before, before)]
    spent = extra.reshape(-1)[few][:, None] + extra.reshape(-1)[few][None, :]
    joint[(spent > room) | (channel[:, None] == channel[None, :])] = np.inf
    i, j = np.unravel_index(int(joint.argmin()), joint.shape)
    return [int(few[i]), int(few[j])] if joint[i, j] < -1e-12 * abs(own).max() else None


def _outer_approximation(
    problem: BitWidthProblem,
    split: _Split,
    option: Array,
    lower: float,
    points: list[Array],
    gap: float,
    clock: Clock,
) -> BitWidthSolution:
    """Cuts at HiGHS's answers until its bound meets the incumbent."""
    value, word, status = problem.objective(option), lower, Status.ITERATION_LIMIT
    cuts = [split.cut(y) for y in [*points, _one_hot(problem, option)]]
    try:
        for _ in range(_ROUNDS):
            scale = abs(value) or 1.0
            if value - word <= gap * scale:
                status = Status.OPTIMAL
                break
            if clock.expired:
                status = Status.TIME_LIMIT
                break
            found = _master(problem, cuts, scale, clock)
            if found is None:
                status = Status.TIME_LIMIT
                break
            trial, bound = found
            word = max(word, bound)
            cuts.append(split.cut(_one_hot(problem, trial)))
            trial = improved(problem, trial)
            reached = problem.objective(trial)
            if reached < value:
                option, value = trial, reached
                cuts.append(split.cut(_one_hot(problem, trial)))
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    return _told(problem, option, lower, word, status, clock)


def _master(
    problem: BitWidthProblem, cuts: list[tuple[float, Array]], scale: float, clock: Clock
) -> tuple[Array, float] | None:
    """HiGHS's best choices under all cuts, and its bound."""
    count, choices = problem.count, len(problem.bits)
    N = count * choices
    slopes = np.stack([np.append(slope, -scale) for _, slope in cuts]) / scale
    right = np.array([-constant for constant, _ in cuts]) / scale
    each = np.repeat(np.arange(count), choices)
    once = csr_array((np.ones(N), (each, np.arange(N))), shape=(count, N + 1))
    size = csr_array(np.append(problem.costs.reshape(-1), 0.0)[None, :])
    rows = [
        LinearConstraint(slopes, ub=right),
        LinearConstraint(vstack([once, size]), np.append(np.ones(count), -np.inf),
                         np.append(np.ones(count), problem.budget)),
    ]  # fmt: skip
    options: dict[str, float] = {"mip_rel_gap": 1e-9}
    if clock.remaining is not None:
        options["time_limit"] = max(clock.remaining, 0.01)
    found = milp(
        np.append(np.zeros(N), 1.0),
        constraints=rows,
        integrality=np.append(np.ones(N), 0),
        bounds=Bounds(np.append(np.zeros(N), -np.inf), np.append(np.ones(N), np.inf)),
        options=options,
    )
    if found.x is None:
        return None
    option = found.x[:N].reshape(count, choices).argmax(1)
    return (option, scale * float(found.mip_dual_bound)) if (
        problem.bits_used(option) <= problem.budget
    ) else None  # fmt: skip


def _one_hot(problem: BitWidthProblem, option: Array) -> Array:
    y = np.zeros(problem.count * len(problem.bits))
    y[np.arange(problem.count) * len(problem.bits) + option] = 1.0
    return y


def _told(
    problem: BitWidthProblem,
    option: Array,
    lower: float,
    word: float | None,
    status: Status,
    clock: Clock,
) -> BitWidthSolution:
    objective = problem.objective(option)
    bits = np.asarray(problem.bits)[option]
    lower = min(lower, objective)
    return BitWidthSolution(
        bits, problem.weights(option), objective, lower, word, status, clock.elapsed
    )
