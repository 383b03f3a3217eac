"""CBS: swaps on the cost of zeroing weights, then the exact update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.heuristics.local_search import SearchOptions, both_sides, swap_down
from chita_opt.heuristics.magnitude import one_step_support
from chita_opt.heuristics.starts import start_supports
from chita_opt.heuristics.tableau import cheapest_pairs
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status


def cbs(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    starts: int = 5,
    candidates: int = 600,
    max_rounds: int = 50,
) -> Solution:
    r"""The Combinatorial Brain Surgeon: select without updating, then update exactly.

    Selection minimises the cost of setting a set K of weights to zero while the others stay,
    :math:`\tfrac12\bar w_K^\top H_{KK}\bar w_K-g_K^\top\bar w_K`, by swaps; the update is the
    minimiser on the support that is left (Yu et al., ICML 2022, §3). Swaps are ranked by their
    exact change, weights of either sign alike: the released code's first exchange list holds only
    positive weights, so that large negative ones never leave.

    Parameters
    ----------
    problem, start, time_limit
        As for every method; the search begins at ``start``'s support.
    seed : int
        Of the random starts.
    starts : int
        Magnitude and random stratified supports of which the cheapest begins; with a ``start``
        none is drawn.
    candidates : int
        Weights between which swaps are sought in one round.
    max_rounds : int
        Rounds; each chooses its candidates anew from the exact gradient.
    """
    best = Incumbent(problem, time_limit, start)
    options = SearchOptions(candidates=candidates, max_rounds=max_rounds)
    status, rounds, solver = Status.ITERATION_LIMIT, 0, None
    stats: dict[str, object] = {}
    with best.until_interrupt():
        selection = _first(problem, best, start, starts, seed)
        stats["selection_start"] = selection.value
        while rounds < max_rounds and not best.clock.expired:
            rounds += 1
            moved = _round(selection, options, best)
            if not selection.value - moved.value > options.least(problem, selection.value):
                status = Status.STATIONARY
                break
            selection = moved
            best.offer(selection.w, selection.value)
        stats |= {"rounds": rounds, "selection": selection.value}
        solver = problem.curvature.support_solver(problem.separable, selection.mask)
        best.offer(solver.weights, solver.value)
    return best.finish("cbs", status, stats=stats, solver=solver)


@dataclass(frozen=True, eq=False)
class _Selection:
    """A support with the dense weights on it: their cost and the gradient there."""

    problem: Problem
    mask: Tensor
    w: Tensor
    gradient: Tensor
    value: float

    @classmethod
    def at(cls, problem: Problem, mask: Tensor) -> _Selection:
        """One pass over the data."""
        w = torch.where(mask, problem.w_bar, torch.zeros_like(problem.w_bar))
        x = w - problem.w_bar
        image = problem.curvature.image(x)
        gradient = problem.curvature.pullback(image) + problem.g + problem.rho * x
        value = problem.curvature.energy(image) + problem.separable.value(x)
        return cls(problem, mask, w, gradient, value)

    def candidates(self, count: int) -> Tensor:
        """Kept weights that are cheap to zero and pruned ones that are dear, ``count`` in all."""
        problem, w_bar = self.problem, self.problem.w_bar
        own = 0.5 * w_bar.square() * (problem.curvature.diagonal() + problem.rho)
        worth = own - w_bar * self.gradient * torch.where(self.mask, 1.0, -1.0)
        worth = torch.where(self.mask, worth, -worth)  # cost of leaving, gain of entering
        if problem.p <= count:
            return torch.arange(problem.p, device=problem.device)
        return both_sides(problem.supports.exchange_margins(worth, self.mask), self.mask, count)


class Zeroing:
    r"""Swaps on a small part of the selection problem, all changes exact.

    With :math:`W=\mathrm{diag}(\bar w)H\mathrm{diag}(\bar w)` on the candidates and
    :math:`t=\bar w\circ\nabla`, weight j entering changes the cost by :math:`t_j+W_{jj}/2`,
    leaving by :math:`-t_j+W_{jj}/2`, and a swap of a for b by both less :math:`W_{ab}`.
    """

    def __init__(self, W: Tensor, t: Tensor, inside: Tensor) -> None:
        self.W, self.t, self.inside, self.value = W, t.clone(), inside.clone(), 0.0

    def toggle(self, j: int) -> None:
        """Zero weight j, or give it back."""
        sign = -1.0 if bool(self.inside[j]) else 1.0
        self.value += sign * float(self.t[j]) + 0.5 * float(self.W[j, j])
        self.t += sign * self.W[j]
        self.inside[j] = sign > 0

    def best_exchanges(
        self, allowed: Tensor | None, out: Tensor, into: Tensor, count: int = 1
    ) -> list[tuple[float, int, int]]:
        """The ``count`` best allowed pairs as (change, leaving, entering)."""
        own = 0.5 * self.W.diagonal()
        change = (own - self.t)[out][:, None] + (own + self.t)[into][None, :]
        change -= self.W.index_select(0, out).index_select(1, into)
        return cheapest_pairs(change, allowed, out, into, count)

    def exchange(self, a: int, b: int) -> float:
        """Change of the cost when ``a`` leaves and ``b`` enters."""
        W, t = self.W, self.t
        return float(0.5 * (W[a, a] + W[b, b]) + t[b] - t[a] - W[a, b])


def _first(
    problem: Problem, best: Incumbent, start: Solution | None, starts: int, seed: int
) -> _Selection:
    """The cheapest of the supports to start from."""
    if start is not None:
        return _Selection.at(problem, start.mask)
    first: _Selection | None = None
    for mask in start_supports(problem, one_step_support(problem), starts, seed):
        trial = _Selection.at(problem, mask)
        best.offer(trial.w, trial.value)
        if first is None or trial.value < first.value:
            first = trial
        if best.clock.expired:
            break
    assert first is not None
    return first


def _round(selection: _Selection, options: SearchOptions, best: Incumbent) -> _Selection:
    """Swaps among new candidates until none helps."""
    problem, chosen = selection.problem, selection.candidates(options.candidates)
    w = problem.w_bar[chosen]
    W = problem.curvature.submatrix(chosen)
    W.diagonal().add_(problem.rho[chosen])
    W = w[:, None] * W * w[None, :]
    small = Zeroing(W, w * selection.gradient[chosen], selection.mask[chosen])
    fixed = selection.mask.index_fill(0, chosen, False)
    if not swap_down(problem, small, chosen, fixed, options, best.clock, selection.value):
        return selection
    target = fixed.clone()
    target[chosen] = small.inside
    return _Selection.at(problem, target)
