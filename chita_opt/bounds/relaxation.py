r"""The perspective relaxation, solved in its dual by proximal Newton steps.

.. math::
    \max_r\;-\tfrac12|r|^2-r^\top F\bar w+\kappa-\max_{z\in\mathrm{conv}\,\mathcal S}z^\top g(r),
    \qquad g_j(r)=\frac{c_j(r)^2}{2d_j},\quad c(r)=d\circ\bar w-g-F^\top r .

The inner maximum is made smooth by a proximal term :math:`-\tfrac12\sum_j\epsilon_j(z_j-z^0_j)^2`
around the last indicators (proximal point in z, that is, an augmented Lagrangian in the dual). The
smoothed function is piecewise quadratic in z and solved by semismooth Newton steps in the
n-dimensional dual. Because c is affine in the step length, the line search reads the data not at
all. At network scale only about n of the p indicators stay fractional, so each step forms a Gram
matrix of few columns.

All weights are compared in the family's own smoothed oracle, so the same code serves every laminar
family; the Newton system knows the factor's shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from chita_opt.bounds.newton import FreePart, NewtonSystem
from chita_opt.bounds.newton_choice import newton_system
from chita_opt.curvature import SeparablePart
from chita_opt.curvature.factors import Factor
from chita_opt.solution import Clock
from chita_opt.supports import SupportFamily
from chita_opt.supports.base import SmoothedMaximum

# The smoothing shrinks by this at most. Where Newton's steps fail it was too fast: the smoothing
# grows, the centre stays, and from then on the pace is slower.
_WORTH = 600.0  # in units of tol, the share of the gap to a known objective that is left alone
_FASTEST = 0.1
_GROWTH = 3.0
_EASY = 3  # Newton steps of a proximal problem that allow the full pace
# Centres that are half right send the next ones astray: where the first proximal problems do not
# end the ascent, each later one is solved to more digits.
_HASTY = 3
_TIGHTER = 0.3
_TIGHTEST = 0.02
_SHORTER = 0.25  # at least this share of a step that was too long comes next


@dataclass(frozen=True)
class RelaxationOptions:
    """When to stop and how much memory to use.

    Attributes
    ----------
    tol : float
        Stop when the proximal value is within ``tol * scale`` of the best bound.
    target : float
        Stop when the bound reaches this value (an incumbent less an accepted gap).
    max_outer, max_inner : int
        Proximal steps; Newton steps in each.
    memory_limit : float
        Bytes for the Newton system; above it only products are taken.
    smoothing : float
        First proximal weight, as a share of the gain at the family's threshold; less than 1 when
        the start is already close.
    incumbent : float
        A known objective: what is left to gain may also be a small share of the gap to it.
    first, share : float
        An objective to improve on: no more may be left than this share of its distance to the
        bound (or a tenth of ``tol * scale``, if that is more).
    enough : float
        A proximal problem counts as solved when the Newton decrement is this share of what is left
        to gain: more digits there would be lost again when the smoothing shrinks. A smaller share
        after the first few problems.
    slack : float
        The Newton decrement at which ``tol`` counts as reached, in units of ``tol * scale``.
    """

    tol: float = 3e-5
    target: float = float("inf")
    max_outer: int = 80
    max_inner: int = 20
    memory_limit: float = 4e9
    smoothing: float = 1.0
    slack: float = 1.0
    incumbent: float = float("inf")
    first: float = float("inf")
    share: float = float("inf")
    enough: float = 0.5


@dataclass(frozen=True, eq=False)
class StartPoint:
    """Indicators to ascend from, and a dual point where one is known."""

    z: Tensor
    r: Tensor | None = None


@dataclass(eq=False)
class RelaxationState:
    """Where the ascent stands; what :func:`maximise_dual` returns.

    Attributes
    ----------
    r, c, z : Tensor
        Dual point, pull and indicators.
    best_r, best : Tensor, float
        Best bound so far (data's precision; re-evaluate before use) and where it was.
    proximal : float
        Last proximal value, which lies above the relaxation's optimum up to the last decrement.
    steps : int
        Newton steps.
    stopped : str
        "tolerance", "target", "time", "steps" or "interrupt".
    """

    r: Tensor
    c: Tensor
    z: Tensor
    best_r: Tensor
    best: float
    proximal: float = float("inf")
    steps: int = 0
    stopped: str = "steps"
    system: NewtonSystem | None = None
    stats: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Dual:
    """The dual function at the data's precision."""

    factor: Factor
    part: SeparablePart
    supports: SupportFamily
    a: Tensor  # F w_bar
    constant: float

    def pull(self, r: Tensor) -> Tensor:
        return self.part.rho * self.part.w_bar - self.part.g - self.factor.adjoint(r)

    def gains(self, c: Tensor) -> Tensor:
        return c.square() / (2.0 * self.part.rho)

    def concave(self, r: Tensor) -> float:
        return self.constant - 0.5 * float(r @ r) - float(r @ self.a)

    def bound(self, r: Tensor, c: Tensor) -> float:
        return self.concave(r) - self.supports.value_bound(self.gains(c))


@dataclass(eq=False)
class _Proximal:
    """Centre and weights of the proximal term, and the family's warm start."""

    centre: Tensor
    epsilon: Tensor
    warm: Tensor | None = None

    def evaluate(self, dual: _Dual, r: Tensor, c: Tensor) -> tuple[float, SmoothedMaximum]:
        gains = dual.gains(c)
        inner = dual.supports.smoothed_maximum(gains, self.centre, self.epsilon, self.warm)
        distance = (inner.z - self.centre).square()
        value = float(inner.z @ gains) - 0.5 * float((self.epsilon * distance).sum())
        return dual.concave(r) - value, inner


def maximise_dual(
    factor: Factor,
    part: SeparablePart,
    supports: SupportFamily,
    *,
    scale: float,
    options: RelaxationOptions,
    clock: Clock,
    start: StartPoint,
    on_point: Callable[[Tensor, float], object] | None = None,
) -> RelaxationState:
    """Ascend from a start.

    ``scale`` is the size that ``options.tol`` is relative to, or 0 to take the bound itself. The
    returned state holds the best dual point; an interrupt (Ctrl-C) ends the ascent and keeps it.
    If the start is a mask alone, ``on_point(w, objective)`` is told the minimiser on it.
    """
    system = newton_system(factor, options.memory_limit)
    dual = _Dual(factor, part, supports, factor.forward(part.w_bar), _constant(part))
    z, r = start.z, start.r
    if r is None:
        r = _solve_at(dual, system, z)
    c = dual.pull(r)
    if on_point is not None:
        w = z * c / part.rho
        on_point(w, 0.5 * float(r @ r) + part.value(w - part.w_bar))
    state = RelaxationState(r, c, z, r, dual.bound(r, c))
    state.system = system
    state.stats["newton_system"] = type(system).__name__
    clock.record(state.best)
    prox = _Proximal(
        z, options.smoothing * supports.smoothing_scale(dual.gains(c)).clamp_min(1e-300)
    )
    _Ascent(dual, system, prox, state, scale, options, clock).ascend()
    return state


@dataclass(frozen=True, eq=False)
class _Ascent:
    """Proximal steps, and the Newton steps inside each."""

    dual: _Dual
    system: NewtonSystem
    prox: _Proximal
    state: RelaxationState
    scale: float
    options: RelaxationOptions
    clock: Clock

    def ascend(self) -> None:
        """Move the centre and shrink the smoothing until done; Ctrl-C keeps the state."""
        pace = _FASTEST
        try:
            for count in range(self.options.max_outer):
                solved, shortest, steps = self._newton_steps(_enough(self.options.enough, count))
                if self.state.stopped != "steps":
                    return
                if solved:  # a proximal step from a half-solved problem can lose more than it wins
                    self.prox.centre = self.state.z
                    self.prox.epsilon = self.prox.epsilon * _shrink(pace, shortest, steps)
                    pace = max(pace**1.1, _FASTEST) if steps <= _EASY else pace
                else:
                    self.prox.epsilon = self.prox.epsilon * _GROWTH
                    pace = pace**0.6
        except KeyboardInterrupt:
            self.state.stopped = "interrupt"

    def _newton_steps(self, enough: float) -> tuple[bool, float, int]:
        """Damped Newton steps on one proximal problem: whether it is solved, shortest, number."""
        state, shortest, solved, count = self.state, 1.0, False, 0
        value, inner = self.prox.evaluate(self.dual, state.r, state.c)
        while not solved and shortest > 0.0 and count < self.options.max_inner:
            direction, slope = self._direction(inner)
            step, value, inner = self._line_search(direction, slope, value)
            shortest, count = min(shortest, step), count + 1
            self._record(value)
            small = self._small()
            if self._finished(slope, small):
                break
            solved = slope < enough * max(value - state.best, small)
        state.z, self.prox.warm = inner.z, inner.multipliers
        return solved, shortest, count

    def _small(self) -> float:
        """What is not worth another step."""
        small, incumbent = self.options.tol * (self.scale or abs(self.state.best)), 0.0
        if self.options.incumbent < float("inf"):
            share = min(_WORTH * self.options.tol, 0.02)
            incumbent = share * (self.options.incumbent - self.state.best)
        ceiling = float("inf")
        if self.options.share < float("inf"):
            ceiling = max(self.options.share * (self.options.first - self.state.best), 0.1 * small)
        return min(max(small, incumbent), ceiling)

    def _direction(self, inner: SmoothedMaximum) -> tuple[Tensor, float]:
        """Newton direction of the smoothed dual and its slope."""
        state, rho = self.state, self.dual.part.rho
        state.z, self.prox.warm = inner.z, inner.multipliers
        gradient = self.dual.factor.forward(inner.z * state.c / rho) - state.r - self.dual.a
        free = FreePart.of(inner, state.c / rho, self.prox.epsilon)
        self.system.prepare(inner.z / rho, free)
        direction = self.system.solve(gradient)
        return direction, float(gradient @ direction)

    def _line_search(
        self, direction: Tensor, slope: float, value: float
    ) -> tuple[float, float, SmoothedMaximum]:
        """Shorten the step until the smoothed dual rises enough; c is affine: no data are read."""
        state = self.state
        drop = self.dual.factor.adjoint(direction)
        step = 1.0
        for _ in range(14):
            r, c = state.r + step * direction, state.c - step * drop
            trial, inner = self.prox.evaluate(self.dual, r, c)
            if trial >= value + 1e-4 * step * slope:
                state.r, state.c = r, c
                return step, trial, inner
            peak = 0.5 * slope * step / (slope * step - (trial - value))  # of a parabola
            step *= min(max(_SHORTER, peak), 0.5)
        trial, inner = self.prox.evaluate(self.dual, state.r, state.c)
        return 0.0, trial, inner

    def _record(self, value: float) -> None:
        state = self.state
        state.steps += 1
        bound = self.dual.bound(state.r, state.c)
        if bound > state.best:
            state.best, state.best_r = bound, state.r
        state.proximal = value
        self.clock.record(state.best)

    def _finished(self, slope: float, small: float) -> bool:
        state = self.state
        if state.best >= self.options.target:
            state.stopped = "target"
        elif state.proximal - state.best < small and slope < self.options.slack * small:
            state.stopped = "tolerance"
        elif self.clock.expired:
            state.stopped = "time"
        return state.stopped != "steps"


def _enough(share: float, count: int) -> float:
    """The share at which proximal problem number ``count`` is solved."""
    return share if count < _HASTY else max(share * _TIGHTER ** (count + 1 - _HASTY), _TIGHTEST)


def _shrink(pace: float, shortest: float, steps: int) -> float:
    """The pace after an easy problem, its root after a harder one, nothing after a hard one."""
    if shortest >= 0.99 or steps <= _EASY:
        return pace
    return pace**0.5 if shortest >= 0.24 or steps <= 8 else 1.0


def _constant(part: SeparablePart) -> float:
    return float((0.5 * part.rho * part.w_bar - part.g) @ part.w_bar)


def _solve_at(dual: _Dual, system: NewtonSystem, z: Tensor) -> Tensor:
    """The dual point that belongs to fixed indicators."""
    part = dual.part
    system.prepare(z / part.rho, None)
    x = -(z * part.g / part.rho) - (1.0 - z) * part.w_bar
    return system.solve(dual.factor.forward(x))
