"""Rounds of pruning inside one stage, output unit by output unit: for wide and deep networks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chita_opt.curvature import without_coupling
from chita_opt.errors import MethodError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.stages.schedules import stage_counts
from chita_opt.nn.stages.state import StageAnswer, StageState
from chita_opt.nn.stages.steps import layer_scaled
from chita_opt.problem import Problem
from chita_opt.supports import MinimumKeeps, SupportFamily, TwoBudgets
from chita_opt.supports.thresholds import largest


@dataclass(frozen=True)
class BlockRounds:
    r"""Prune in rounds on one quadratic problem; the weights of each output unit are solved alone.

    A round keeps the largest solved weights, each over its layer's root mean square to a power, and
    solves them again around the dense weights. The blocks are the rows of a linear layer and the
    filters of a convolution. Dropping the curvature between units keeps the model from promising
    that other layers repair what a small change would not; a few hundred gradients do not tell such
    promises from noise. Choosing the support from solved weights rather than from the dense ones is
    what iterated optimal brain surgeon does, at the price of its first round.

    No gradients are measured between the rounds: with one stage this is a one-shot method. It is
    the block-wise approximation of CHITA (ICML 2023, §3.3) but for the rounds, the blocks and the
    scores.

    Attributes
    ----------
    rounds : int
        Number of rounds; the kept share falls by the same factor in each.
    layer_power : float
        As for :class:`~chita_opt.nn.stages.Refit`.
    base : float
        Sparsity from which the rounds start.
    """

    rounds: int = 6
    layer_power: float = 0.5
    base: float = 0.3

    def __call__(self, state: StageState) -> StageAnswer:
        """Solve one stage.

        Raises
        ------
        MethodError
            If the problem has a linear term.
        """
        w = self.solve(state.problem, state.layer_map)
        return StageAnswer(w, {"objective": state.problem.objective(w)})

    def solve(self, problem: Problem, layers: LayerMap) -> Tensor:
        """Weights (p,) for a problem over all weights of a layer map.

        Raises
        ------
        MethodError
            If the problem has a linear term, which every block would take for itself alone.
        """
        if bool(problem.g.any()):
            raise MethodError(
                "blocks that are solved alone would each take the whole linear term; give "
                "first_order=0"
            )
        model = self.uncoupled(problem, layers).curvature
        w, supports = problem.w_bar, problem.supports
        scores = self._scores(w, layers)
        kept = int(supports.best_support(scores).sum())
        for count in dict.fromkeys(
            stage_counts("mfac", problem.p, kept, self.rounds, base=self.base)
        ):
            mask = self._mask(supports, scores, count, kept)
            w = model.support_solver(problem.separable, mask).weights
            scores = self._scores(w, layers)
        return w

    @staticmethod
    def uncoupled(problem: Problem, layers: LayerMap) -> Problem:
        """The problem that is solved: without curvature between output units."""
        units = [item.rows_cols[1] for item in layers for _ in range(item.rows_cols[0])]
        return replace(problem, curvature=without_coupling(problem.curvature, units))

    def _scores(self, w: Tensor, layers: LayerMap) -> Tensor:
        return layer_scaled(w.abs(), w, layers, self.layer_power).square()

    def _mask(self, supports: SupportFamily, scores: Tensor, count: int, kept: int) -> Tensor:
        """About ``count`` weights: of looser budgets, or with what the family would keep."""
        if count <= kept:
            return supports.best_support(scores)
        if isinstance(supports, TwoBudgets | MinimumKeeps):
            share = (supports.size - count) / (supports.size - kept)
            return supports.loosened(share).best_support(scores)
        mask = supports.best_support(scores)
        return largest(torch.where(mask, scores + scores.max(), scores), count)


__all__ = ["BlockRounds"]
