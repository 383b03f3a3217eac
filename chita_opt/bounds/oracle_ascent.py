r"""The dual bound from a family's oracle alone.

A family that answers nothing but ``best_support`` still gets the bound of its convex hull. The
relaxation's value :math:`\phi(z)`, the inner minimum over w, is convex in z with gradient
:math:`-c^2/2d`, and the oracle minimises that gradient over the masks: pairwise Frank-Wolfe steps
(Lacoste-Julien & Jaggi 2015) over the masks seen so far. Every iterate's dual point is a witness.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chita_opt.bounds.newton import NewtonSystem
from chita_opt.bounds.newton_choice import newton_system
from chita_opt.bounds.relaxation import RelaxationOptions, RelaxationState
from chita_opt.curvature import SeparablePart
from chita_opt.curvature.factors import Factor
from chita_opt.solution import Clock
from chita_opt.supports import SupportFamily

_LINE_STEPS = 12


class _Relaxed:
    """phi and its gradient at indicators z."""

    def __init__(self, factor: Factor, part: SeparablePart, system: NewtonSystem) -> None:
        self.factor, self.part, self.system = factor, part, system
        self.a = factor.forward(part.w_bar, exact=True)
        self.constant = float((0.5 * part.rho * part.w_bar - part.g) @ part.w_bar)

    def at(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Dual point r, pull c and gains at z."""
        part = self.part
        self.system.prepare(z / part.rho, None)
        x = -(z * part.g / part.rho) - (1.0 - z) * part.w_bar
        r = self.system.solve(self.factor.forward(x))
        c = part.rho * part.w_bar - part.g - self.factor.adjoint(r)
        return r, c, c.square() / (2.0 * part.rho)

    def bound(self, r: Tensor, best_value: float) -> float:
        """Dual value with the oracle's maximum."""
        return self.constant - 0.5 * float(r @ r) - float(r @ self.a) - best_value


def oracle_ascent(
    factor: Factor,
    part: SeparablePart,
    supports: SupportFamily,
    *,
    scale: float,
    options: RelaxationOptions,
    clock: Clock,
    z: Tensor,
) -> RelaxationState:
    """Pairwise Frank-Wolfe from the mask ``z``; arguments as in ``maximise_dual``."""
    relaxed = _Relaxed(factor, part, newton_system(factor, options.memory_limit))
    r, c, gains = relaxed.at(z)
    state = RelaxationState(r, c, z, r, -float("inf"))
    state.stats["newton_system"] = "oracle"
    try:
        _ascend(relaxed, supports, state, gains, scale, options, clock)
    except KeyboardInterrupt:
        if state.best == -float("inf"):
            raise  # there is no bound yet
        state.stopped = "interrupt"
    return state


def _ascend(
    relaxed: _Relaxed,
    supports: SupportFamily,
    state: RelaxationState,
    gains: Tensor,
    scale: float,
    options: RelaxationOptions,
    clock: Clock,
) -> None:
    """Steps until done; ``state`` is whole after each."""
    atoms, shares = [state.z.clone()], [1.0]
    for _ in range(options.max_outer * options.max_inner):
        mask = supports.best_support(gains)
        target = mask.double()
        bound = relaxed.bound(state.r, supports.bound_at(gains, mask))
        if bound > state.best:
            state.best, state.best_r = bound, state.r
        clock.record(state.best)
        gap = float(gains @ (target - state.z))
        state.proximal = bound + gap
        if state.best >= options.target or gap < options.tol * (scale or abs(state.best)):
            state.stopped = "target" if state.best >= options.target else "tolerance"
            return
        if clock.expired:
            state.stopped = "time"
            return
        step = _pairwise_step(relaxed, atoms, shares, target, state.z, gains)
        state.z, state.r, state.c, gains = step
        state.steps += 1


def _pairwise_step(
    relaxed: _Relaxed,
    atoms: list[Tensor],
    shares: list[float],
    target: Tensor,
    z: Tensor,
    gains: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Move weight from the worst atom to the target, with an exact line search on phi."""
    worst = min(range(len(atoms)), key=lambda i: float(gains @ atoms[i]))
    direction = target - atoms[worst]
    step = _line_search(relaxed, z, direction, shares[worst], float(gains @ direction))
    shares[worst] -= step
    known = next((i for i, a in enumerate(atoms) if torch.equal(a, target)), None)
    if known is None:
        atoms.append(target)
        shares.append(step)
    else:
        shares[known] += step
    keep = [i for i, share in enumerate(shares) if share > 1e-12]
    atoms[:], shares[:] = [atoms[i] for i in keep], [shares[i] for i in keep]
    total = sum(shares)
    shares[:] = [share / total for share in shares]
    z = torch.stack([s * a for s, a in zip(shares, atoms, strict=True)]).sum(0)
    return (z, *relaxed.at(z))


def _line_search(
    relaxed: _Relaxed, z: Tensor, direction: Tensor, longest: float, rise: float
) -> float:
    """Root of the derivative of phi along the direction, by regula falsi on [0, longest]."""
    low, high, at_low = 0.0, longest, rise
    at_high = float(relaxed.at(z + longest * direction)[2] @ direction)
    if at_high >= 0.0:
        return longest
    for _ in range(_LINE_STEPS):
        step = low + (high - low) * at_low / (at_low - at_high)
        step = min(max(step, low + 0.05 * (high - low)), high - 0.05 * (high - low))
        slope = float(relaxed.at(z + step * direction)[2] @ direction)
        if abs(slope) < 1e-3 * rise:
            return step
        if slope > 0:
            low, at_low = step, slope
        else:
            high, at_high = step, slope
    return 0.5 * (low + high)
