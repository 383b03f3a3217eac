"""The table of methods, and ``solve``, which picks one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chita_opt.curvature import LowRank
from chita_opt.errors import MethodError
from chita_opt.heuristics.chita import chita, coordinate_descent
from chita_opt.heuristics.iht import iht
from chita_opt.heuristics.local_search import local_search
from chita_opt.heuristics.magnitude import backsolve, magnitude
from chita_opt.heuristics.relax_round import relax_round
from chita_opt.problem import Problem
from chita_opt.solution import Solution

_LIGHT = 2000  # weights up to which every relaxation is cheap


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes
    ----------
    name, summary : str
        For the command line.
    function : Callable
        ``function(problem, *, start, time_limit, seed, **options) -> Solution``.
    improves_start : bool
        Whether the answer is never worse than a given start.
    needs_ridge : bool
        Whether rho > 0 is required.
    needs_thresholds : bool
        Whether the family must be laminar.
    """

    name: str
    summary: str
    function: Callable[..., Solution]
    improves_start: bool = True
    needs_ridge: bool = False
    needs_thresholds: bool = False

    def serves(self, problem: Problem) -> bool:
        """Whether the method can be used on this problem."""
        ridge = not self.needs_ridge or float(problem.rho.min()) > 0.0
        return ridge and (not self.needs_thresholds or problem.supports.is_laminar)


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("magnitude", "largest |w|, weights unchanged", magnitude, improves_start=False),
        Method("backsolve", "CHITA-BSO: magnitude support, weights solved exactly", backsolve),
        Method(
            "coordinate_descent", "CHITA-CD: the same support, cyclic descent", coordinate_descent
        ),
        Method("iht", "hard thresholding with exact line search, then backsolve", iht),
        Method("chita", "CHITA single stage: active set, thresholding, backsolve", chita),
        Method("local_search", "best exact swaps from any solution", local_search),
        Method(
            "relax_round",
            "perspective relaxation, rounding, exact swaps (the default)",
            relax_round,
            needs_ridge=True,
            needs_thresholds=True,
        ),
    )
}


def choose_method(problem: Problem) -> str:
    """The default's rule: relax_round where it serves, else the swap search, else chita.

    On large curvatures without a low-rank factor the relaxation's Newton systems (one a row or
    block) cost more than the whole swap search, which is then the default.
    """
    light = isinstance(problem.curvature, LowRank) or problem.p <= _LIGHT
    if METHODS["relax_round"].serves(problem) and light:
        return "relax_round"
    return "local_search" if float(problem.rho.min()) > 0.0 else "chita"


def solve(
    problem: Problem,
    method: str = "auto",
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Solution:
    """Solve ``problem`` by a method of the table; "auto" picks by :func:`choose_method`.

    Raises
    ------
    MethodError
        If the method is unknown or does not serve the problem.
    """
    name = choose_method(problem) if method == "auto" else method
    if name not in METHODS:
        raise MethodError(f"method {method!r} is not known; choose auto, {', '.join(METHODS)}")
    if not METHODS[name].serves(problem):
        raise MethodError(
            f"{name} does not serve this problem (smallest rho {float(problem.rho.min()):.3g}, "
            f"family {problem.supports.name}); choose auto"
        )
    return METHODS[name].function(problem, start=start, time_limit=time_limit, seed=seed, **options)
