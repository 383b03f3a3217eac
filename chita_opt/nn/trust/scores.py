r"""Saliencies whose supports compete: none is best everywhere, the held-out loss decides.

At high sparsity the choice of the support decides about the network, not the weights on it: the
magnitude support of a perceptron at 98 % keeps 55 of the first layer's 31,360 weights. Dividing a
saliency by its layer's root mean square to a power moves budget to layers of small weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chita_opt.curvature import LowRank
from chita_opt.curvature.sample_system import SampleSystem
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.stages.steps import layer_scaled
from chita_opt.problem import Problem

_COLUMNS = 4096


@dataclass(frozen=True)
class Score:
    r"""A saliency by name.

    Attributes
    ----------
    kind : {"magnitude", "diagonal", "surgeon"}
        :math:`|w|`; :math:`|w|\sqrt{C_{jj}+\rho_j}` (optimal brain damage);
        :math:`|w|/\sqrt{[H^{-1}]_{jj}}` (optimal brain surgeon).
    power : float
        Power of the layer's root mean square that divides the saliency; 0 for none.
    """

    kind: str
    power: float = 0.0

    @property
    def name(self) -> str:
        """How reports call it."""
        return self.kind if not self.power else f"{self.kind}/rms^{self.power:g}"


COMPETING = tuple(
    Score(kind, power) for kind in ("magnitude", "diagonal", "surgeon") for power in (0.0, 0.5, 1.0)
)
"""What competes in one stage."""
STAGED = (Score("magnitude"), Score("magnitude", 0.5), Score("diagonal"))
"""What competes in every stage of many."""


def supports_by(
    problem: Problem, layer_map: LayerMap, scores: Sequence[Score]
) -> dict[str, Tensor]:
    """The family's best support under each score, by name; equal ones only once.

    Weights of zero saliency (pruned by earlier stages) fill a budget in the order of the linear
    term's size.
    """
    found: dict[str, Tensor] = {}
    fill = 1e-12 * problem.g.abs()
    plain = {kind: _KINDS[kind](problem) for kind in dict.fromkeys(s.kind for s in scores)}
    for score in scores:
        own = plain[score.kind]
        values = layer_scaled(own, own, layer_map, score.power) + fill
        mask = problem.supports.best_support(values.square())
        if not any(torch.equal(mask, other) for other in found.values()):
            found[score.name] = mask
    return found


def _magnitude(problem: Problem) -> Tensor:
    return problem.w_bar.abs()


def _diagonal(problem: Problem) -> Tensor:
    C = problem.curvature
    own = C.factor().square_norms() if isinstance(C, LowRank) and C.size >= len(C.A) else None
    return problem.w_bar.abs() * ((C.diagonal() if own is None else own) + problem.rho).sqrt()


def _surgeon(problem: Problem) -> Tensor:
    return problem.w_bar.abs() / inverse_diagonal(problem).sqrt()


def inverse_diagonal(problem: Problem) -> Tensor:
    r""":math:`[(C+\mathrm{diag}\rho)^{-1}]_{jj}` over all weights, (p,).

    For gradients by Woodbury at the data's precision: with :math:`F=\sqrt{scale}A` and
    :math:`M=I+F\,\mathrm{diag}(1/\rho)F^\top=LL^\top` it is
    :math:`(1-\|L^{-1}f_j\|^2/\rho_j)/\rho_j`.
    """
    C, rho = problem.curvature, problem.rho
    if not isinstance(C, LowRank):
        every = torch.ones(problem.p, dtype=torch.bool, device=problem.device)
        solver = C.support_solver(problem.separable, every)
        return solver.inverse_diagonal(torch.arange(problem.p, device=problem.device))
    factor = C.factor()
    M = factor.gram(torch.arange(problem.p, device=problem.device), 1.0 / rho)
    M.diagonal().add_(1.0)
    eye = torch.eye(len(M), dtype=factor.columns.dtype, device=problem.device)
    half = SampleSystem(M).half(eye) * factor.root  # as a matrix: products are faster than solves
    pieces = factor.pieces(None, _COLUMNS)
    norms = [(part @ half.T).square().sum(1).double() for _, part in pieces]
    return (1.0 - torch.cat(norms) / rho).clamp_min(1e-12) / rho


_KINDS: dict[str, Callable[[Problem], Tensor]] = {
    "magnitude": _magnitude,
    "diagonal": _diagonal,
    "surgeon": _surgeon,
}

__all__ = [
    "COMPETING",
    "STAGED",
    "Score",
    "inverse_diagonal",
    "supports_by",
]
