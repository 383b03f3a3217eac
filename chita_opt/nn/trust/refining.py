"""Better weights and supports at a fixed number of weights, never at a higher held-out loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chita_opt.errors import ProblemError
from chita_opt.nn.trust.calibration import HeldOut
from chita_opt.nn.trust.expansion import Expansion
from chita_opt.nn.trust.loss_rows import LossRows
from chita_opt.nn.trust.surgeon import solved_after_surgery, surgeon_support
from chita_opt.solution import Clock, Status, Trace
from chita_opt.supports import SupportFamily

_LARGEST_RIDGE = 4.0


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """How :func:`refine` proceeds.

    Attributes
    ----------
    ridge : float
        First ridge, in units of the loss's curvature; a quarter and four times are tried as well.
    swap_rows, refit_rows : int
        Gradient rows of a swap (over all weights) and of a refit (over the kept ones).
    swap_share : float
        Share of the kept weights that the first swap offers to exchange.
    cycle : int
        A swap is tried once in so many steps.
    max_steps : int, optional
        Steps at most.
    """

    ridge: float = 0.016
    swap_rows: int = 1000
    refit_rows: int = 2000
    swap_share: float = 0.1
    cycle: int = 3
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if not self.ridge > 0.0 or not 0.0 <= self.swap_share <= 1.0 or self.cycle < 1:
            raise ProblemError(
                f"ridge={self.ridge}, swap_share={self.swap_share}, cycle={self.cycle}: ridge must "
                "be positive, swap_share a share and cycle at least 1"
            )


@dataclass(frozen=True, eq=False)
class Refined:
    """What :func:`refine` reached.

    Attributes
    ----------
    w : Tensor
        (p,) weights.
    loss : float
        Held-out loss, on the samples that accepted the steps.
    status : Status
        Why it stopped.
    steps, accepted, samples : int
        Steps tried and taken, and sample gradients used.
    trace : Trace
        Held-out loss over time.
    """

    w: Tensor = field(repr=False)
    loss: float
    status: Status
    steps: int
    accepted: int
    samples: int
    trace: Trace = field(repr=False)


def refine(
    w: Tensor,
    rows: LossRows,
    supports: SupportFamily,
    held_out: HeldOut,
    *,
    time_limit: float | None = None,
    options: RefineOptions | None = None,
) -> Refined:
    r"""Alternate refits and swaps with fresh gradients, and accept what lowers the held-out loss.

    A refit minimises the quadratic model around the current weights on their support. A swap adds
    the pruned weights of largest :math:`g_j^2/(H_{jj}+\mu)`, solves, and drops as many by optimal
    brain surgeon. Three ridges compete in each step. A rejected swap halves the next one's size, a
    rejected refit raises the ridge fourfold; the mean of the accepted refits of one support is a
    candidate too.

    Parameters
    ----------
    w : Tensor
        (p,) weights of an allowed support.
    rows : LossRows
        Where gradients come from.
    supports : SupportFamily
        The allowed supports.
    held_out : HeldOut
        Samples that accept or reject.
    time_limit : float, optional
        Seconds after which no step is begun; without it ``options.max_steps`` is needed.
    options : RefineOptions, optional
        How to proceed.

    Raises
    ------
    ProblemError
        If there is neither a time limit nor a number of steps, or the support is not allowed.
    """
    options = options or RefineOptions()
    if time_limit is None and options.max_steps is None:
        raise ProblemError("refine has no end: give time_limit, or max_steps in its options")
    if not supports.contains(w != 0):
        raise ProblemError(f"the {int((w != 0).sum())} weights given are not in {supports.name}")
    clock = Clock(time_limit)
    run = _Refinement(w, rows, supports, held_out, options)
    clock.record(run.loss)
    status = Status.ITERATION_LIMIT
    try:
        while options.max_steps is None or run.steps < options.max_steps:
            if clock.expired:
                status = Status.TIME_LIMIT
                break
            if run.step():
                clock.record(run.loss)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    return Refined(run.w, run.loss, status, run.steps, run.accepted, rows.samples, clock.trace)


class _Refinement:
    """Current weights, ridge and swap size."""

    def __init__(
        self,
        w: Tensor,
        rows: LossRows,
        supports: SupportFamily,
        held_out: HeldOut,
        options: RefineOptions,
    ) -> None:
        self.w, self.loss = w, held_out.loss(w)
        self.rows, self.supports, self.held_out, self.options = rows, supports, held_out, options
        self.ridge, self.swap_share = options.ridge, options.swap_share
        self.steps = self.accepted = 0
        self._settled = [w]  # accepted weights on the current support

    def step(self) -> bool:
        """One swap or refit; whether the loss fell."""
        self.steps += 1
        size = int(self.swap_share * int((self.w != 0).sum()))
        swaps = self.steps % self.options.cycle == 1 % self.options.cycle and size > 0
        found = min(
            ((self.held_out.loss(w), ridge, w) for ridge, w in self._tries(size if swaps else 0)),
            key=lambda one: one[0],
        )
        if not found[0] < self.loss:
            if swaps:
                self.swap_share /= 2.0
            else:
                self.ridge = min(4.0 * self.ridge, _LARGEST_RIDGE)
            return False
        self.loss, self.ridge, self.w = found
        self.accepted += 1
        self._settled = [self.w] if swaps else [*self._settled, self.w]
        self._try_mean()
        return True

    def _ridges(self) -> tuple[float, ...]:
        return (0.25 * self.ridge, self.ridge, min(4.0 * self.ridge, _LARGEST_RIDGE))

    def _tries(self, size: int) -> Iterator[tuple[float, Tensor]]:
        return self._swapped(size) if size else self._refitted()

    def _refitted(self) -> Iterator[tuple[float, Tensor]]:
        index = self.w.nonzero().squeeze(1)
        model = self.rows.on(self.w, index, self.options.refit_rows)
        ridges = self._ridges()
        for ridge, weights in zip(ridges, model.solve(ridges), strict=True):
            yield ridge, self._placed(index, weights)

    def _swapped(self, size: int) -> Iterator[tuple[float, Tensor]]:
        model, mask = self.rows.everywhere(self.w, self.options.swap_rows), self.w != 0
        gain = (model.g.square() / (model.diagonal + self.ridge)).masked_fill(mask, -1.0)
        wider = mask.index_fill(0, gain.topk(min(size, len(mask) - int(mask.sum()))).indices, True)
        index = wider.nonzero().squeeze(1)
        union = Expansion(model.columns[index], self.w[index], model.batch_size)
        kept = surgeon_support(union, index, self.supports, self.ridge)
        ridges = self._ridges()
        yield from zip(ridges, solved_after_surgery(union, index, kept, ridges), strict=True)

    def _try_mean(self) -> None:
        if len(self._settled) < 3:
            return
        mean = torch.stack(self._settled).mean(0)
        loss = self.held_out.loss(mean)
        if loss < self.loss:
            self.loss, self.w, self._settled = loss, mean, [mean]

    def _placed(self, index: Tensor, values: Tensor) -> Tensor:
        return torch.zeros_like(self.w).index_copy(0, index, values)


__all__ = ["RefineOptions", "Refined", "refine"]
