"""One-shot pruning for high sparsity: layer-wise reconstruction, then one quadratic model there.

Around the dense weights the quadratic model fails where much is removed. The reconstructed network
is near its end already: a quadratic model of the same number of gradient rows, measured at the
reconstruction of a little more weights than asked for, prunes those few and moves the others
together, layers included, within the region where it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chita_opt.errors import ProblemError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.stages.steps import layer_scaled
from chita_opt.nn.trust.budgets import BudgetSearch, Counts, layer_counts, search_budgets
from chita_opt.nn.trust.calibration import HeldOut
from chita_opt.nn.trust.competition import Candidate, entered
from chita_opt.nn.trust.expansion import Expansion
from chita_opt.nn.trust.reconstruction import Reconstruction
from chita_opt.nn.trust.surgeon import solved_after_surgery, surgeon_support
from chita_opt.solution import Clock
from chita_opt.supports import Budget, SupportFamily
from chita_opt.supports.thresholds import largest

_EXTENSIONS = 3

RowsAt = Callable[[Tensor, Tensor], Expansion]
"""From weights (p,) and places (s,) to the expansion on them."""


@dataclass(frozen=True, kw_only=True)
class OneShotOptions:
    """How :func:`one_shot` proceeds.

    Attributes
    ----------
    slack : float
        Weights that the reconstruction keeps beyond those asked for, as a share of them; the
        quadratic model there removes them.
    ridges : tuple of float
        Ridges of that model, in units of the loss's curvature, that compete; larger ones follow
        while the largest is the best.
    rounds : tuple of int
        Rounds of optimal brain surgeon that compete.
    power : float
        First layer budgets: magnitudes over the layer's root mean square to this power.
    search : BudgetSearch
        How layer budgets are searched.
    """

    slack: float = 0.15
    ridges: tuple[float, ...] = (0.001, 0.004, 0.016)
    rounds: tuple[int, ...] = (1, 3)
    power: float = 0.5
    search: BudgetSearch = field(default_factory=BudgetSearch)

    def __post_init__(self) -> None:
        if not self.slack >= 0.0 or not self.ridges or min(self.ridges) <= 0.0:
            raise ProblemError(
                f"slack={self.slack}, ridges={self.ridges}: slack must be >= 0, and there must be "
                "positive ridges"
            )
        if not self.rounds or min(self.rounds) < 1:
            raise ProblemError(f"rounds is {self.rounds}; give whole numbers of at least 1")


def one_shot(
    dense: Tensor,
    reconstruction: Reconstruction,
    supports: SupportFamily,
    held_out: HeldOut,
    *,
    rows_at: RowsAt | None = None,
    start: Tensor | None = None,
    options: OneShotOptions | None = None,
    clock: Clock | None = None,
) -> list[Candidate]:
    """Reconstruct, and improve the reconstruction by one quadratic model measured there.

    Parameters
    ----------
    dense : Tensor
        (p,) dense weights.
    reconstruction : Reconstruction
        Of the network.
    supports : SupportFamily
        One count over all weights: layer budgets are searched. One count a layer: they are those.
        Any other family: the support of ``start`` is refitted.
    held_out : HeldOut
        Samples that choose.
    rows_at : callable, optional
        Measures gradient rows; without it there is the reconstruction alone. Called once.
    start : Tensor, optional
        (p,) bool, an allowed support; the family's best by magnitude without it.
    options : OneShotOptions, optional
        How to proceed.
    clock : Clock, optional
        Nothing further is begun once it has expired.

    Returns
    -------
    list of Candidate
        All that were measured; :func:`chita_opt.nn.trust.lowest` picks.
    """
    options = options or OneShotOptions()
    layer_map = reconstruction.layer_map
    total, counts = _counts(supports, layer_map)
    if total is not None:
        first = largest(layer_scaled(dense.abs(), dense, layer_map, options.power), total)
        found = _searched(reconstruction, layer_counts(first, layer_map), held_out, options)
    elif counts is not None:
        named = dict(zip(layer_map.names, counts, strict=True))
        found = entered("reconstruction", reconstruction.prune(named), held_out)
    else:
        mask = supports.best_support(dense.square()) if start is None else start
        found = entered("reconstruction", reconstruction.refit(mask), held_out)
    clock = clock or Clock(None)
    if rows_at is None or clock.expired:
        return [found]
    wider = found.w
    if total is not None and options.slack:
        room = min(int(total * (1.0 + options.slack)), supports.size)
        wider = _wider(reconstruction, layer_counts(found.w != 0, layer_map), room)
    return [found, *_expanded(wider, supports, held_out, rows_at, options, clock)]


def _searched(
    reconstruction: Reconstruction, first: Counts, held_out: HeldOut, options: OneShotOptions
) -> Candidate:
    return search_budgets(
        lambda counts: entered("reconstruction", reconstruction.prune(counts), held_out),
        first,
        reconstruction.layer_map,
        options.search,
    )


def _wider(reconstruction: Reconstruction, counts: Counts, room: int) -> Tensor:
    """The reconstruction with the same budgets scaled to ``room`` weights."""
    scale, sizes = room / max(1, sum(counts)), reconstruction.layer_map.sizes
    scaled = [min(size, round(scale * c)) for c, size in zip(counts, sizes, strict=True)]
    return reconstruction.prune(dict(zip(reconstruction.layer_map.names, scaled, strict=True)))


def _expanded(
    w: Tensor,
    supports: SupportFamily,
    held_out: HeldOut,
    rows_at: RowsAt,
    options: OneShotOptions,
    clock: Clock,
) -> Iterator[Candidate]:
    """Weights from one quadratic model at w, for all ridges and rounds."""
    index = w.nonzero().squeeze(1)
    if not len(index):
        return
    model = rows_at(w, index)
    exact = supports.contains(w != 0)
    tried: dict[tuple[int, float], Candidate] = {}

    def attempt(rounds: int, ridge: float) -> Candidate:
        support = w != 0 if exact else surgeon_support(model, index, supports, ridge, rounds)
        (solved,) = solved_after_surgery(model, index, support, (ridge,))
        name = f"reconstruction + rows, ridge {ridge:g}, {rounds} rounds"
        tried[rounds, ridge] = entered(name, solved, held_out)
        return tried[rounds, ridge]

    for rounds in options.rounds[:1] if exact else options.rounds:
        for ridge in options.ridges:
            if clock.expired:
                return
            yield attempt(rounds, ridge)
    for _ in range(_EXTENSIONS):  # the best ridge may lie beyond those given
        rounds, ridge = min(tried, key=lambda key: tried[key].loss)
        if ridge < max(known for _, known in tried) or clock.expired:
            return
        yield attempt(rounds, 4.0 * ridge)


def _counts(supports: SupportFamily, layer_map: LayerMap) -> tuple[int | None, Counts | None]:
    """The count over all weights, or the count of each layer, where the family is that."""
    if not isinstance(supports, Budget) or supports.total is not None:
        return None, None
    if len(supports.caps) == 1:
        return int(supports.caps[0]), None
    sizes = torch.tensor(layer_map.sizes, device=supports.labels.device)
    layers = torch.arange(len(sizes), device=supports.labels.device).repeat_interleave(sizes)
    if torch.equal(supports.labels, layers):
        return None, tuple(supports.caps.tolist())
    return None, None


__all__ = ["OneShotOptions", "RowsAt", "one_shot"]
