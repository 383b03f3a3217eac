"""The table of methods, and ``solve``, which picks one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from chita_opt.errors import MethodError
from chita_opt.heuristics.alps import alps
from chita_opt.heuristics.alternating import alternating
from chita_opt.heuristics.blockwise import blockwise
from chita_opt.heuristics.cbs import cbs
from chita_opt.heuristics.chita import chita
from chita_opt.heuristics.coordinate_descent import coordinate_descent
from chita_opt.heuristics.iht import iht
from chita_opt.heuristics.iobs import iobs
from chita_opt.heuristics.layerwise import layerwise, suits_layers
from chita_opt.heuristics.local_search import local_search
from chita_opt.heuristics.magnitude import backsolve, magnitude
from chita_opt.heuristics.mfac import mfac
from chita_opt.heuristics.obc import obc
from chita_opt.heuristics.portfolio import best
from chita_opt.heuristics.relax_round import relax_round, relaxes_cheaply
from chita_opt.heuristics.row_systems import WIDEST, widest_row
from chita_opt.heuristics.wanda import wanda
from chita_opt.heuristics.woodfisher import woodfisher
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status
from chita_opt.supports import Budget


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
    needs_budget : bool
        Whether the family must be a :class:`~chita_opt.supports.Budget`: groups with caps.
    needs_smoothing : bool
        Whether the family must have a smoothed maximum.
    needs_rows : bool
        Whether the matrix of every row of the curvature must be formed.
    """

    name: str
    summary: str
    function: Callable[..., Solution]
    improves_start: bool = True
    needs_ridge: bool = False
    needs_budget: bool = False
    needs_smoothing: bool = False
    needs_rows: bool = False

    def serves(self, problem: Problem) -> bool:
        """Whether the method can be used on this problem."""
        ridge = not self.needs_ridge or float(problem.rho.min()) > 0.0
        family = not self.needs_budget or isinstance(problem.supports, Budget)
        family &= not self.needs_smoothing or problem.supports.is_smooth
        return ridge and family and (not self.needs_rows or widest_row(problem.curvature) <= WIDEST)


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
        Method("wanda", "largest |w| sqrt(H_jj), weights unchanged", wanda, improves_start=False),
        Method("woodfisher", "one inverse, one removal statistic, exact update", woodfisher),
        Method("mfac", "the removal statistic anew along a path of supports", mfac),
        Method("cbs", "swaps on the cost of zeroing weights, then the exact update", cbs),
        Method("iobs", "thresholding after steps with an inverse curvature", iobs),
        Method("blockwise", "block after block without its coupling, then sweeps", blockwise),
        Method(
            "obc",
            "OBC: greedy removal row by row, traces merged",
            obc,
            needs_ridge=True,
            needs_rows=True,
        ),
        Method(
            "alps",
            "ALPS: operator splitting, then conjugate gradients",
            alps,
            needs_ridge=True,
            needs_rows=True,
        ),
        Method(
            "layerwise",
            "slow splitting, then exact walks and swaps in rows (the default of layers)",
            layerwise,
            needs_ridge=True,
            needs_budget=True,
            needs_rows=True,
        ),
        Method(
            "alternating",
            "decide (block widths, live groups), swap inside, decide again",
            alternating,
            needs_ridge=True,
        ),
        Method("local_search", "best exact swaps from any solution", local_search),
        Method(
            "relax_round",
            "perspective relaxation, rounding, exact swaps (the default)",
            relax_round,
            needs_ridge=True,
            needs_smoothing=True,
        ),
        Method("best", "several of them in turn, swaps and kicks, within a time limit", best),
    )
}


def choose_method(problem: Problem) -> str:
    """The default's rule: layerwise for layers, else relax_round where it serves cheaply.

    Where neither serves, the swaps; families with a decision alternate. Without a ridge chita.
    """
    if suits_layers(problem):
        return "layerwise"
    if relaxes_cheaply(problem):
        return "relax_round"
    if not float(problem.rho.min()) > 0.0:
        return "chita"
    nothing = torch.zeros(problem.p, dtype=torch.bool, device=problem.device)
    decides = problem.supports.laminar_part(nothing) is not None
    return "alternating" if decides else "local_search"


def solve(
    problem: Problem,
    method: str = "auto",
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    polish: bool = False,
    **options: Any,
) -> Solution:
    """Solve ``problem`` by a method of the table; "auto" picks by :func:`choose_method`.

    With ``polish`` the exchange search goes on from the method's answer for the seconds that are
    left of ``time_limit``, whatever the method.

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
    function = METHODS[name].function
    found = function(problem, start=start, time_limit=time_limit, seed=seed, **options)
    return polished(found, time_limit) if polish else found


def polished(found: Solution, time_limit: float | None = None) -> Solution:
    """``found`` improved by the exchange search within what it left of ``time_limit``.

    The name becomes "METHOD+swaps", the seconds are both together, and ``stats["before_swaps"]``
    is the objective before. After Ctrl-C ``found`` is returned as it is.
    """
    left = None if time_limit is None else time_limit - found.seconds
    if found.status is Status.INTERRUPTED or (left is not None and left <= 0.0):
        return found
    after = local_search(found.problem, start=found, time_limit=left)
    return replace(
        after,
        method=f"{found.method}+swaps",
        seconds=found.seconds + after.seconds,
        trace=found.trace.then(after.trace, found.seconds),
        stats={**found.stats, **after.stats, "before_swaps": found.objective},
        warm=found.warm,
    )
