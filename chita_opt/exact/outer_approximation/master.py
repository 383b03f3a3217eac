"""The master problem of the outer approximation: a Pyomo model kept in HiGHS between rounds.

HiGHS has neither lazy constraints nor user cuts, so the master is solved again after cuts were
added, from the best mask known (a MIP start has to be set every time). Times, bounds and incumbents
come from its logging callback, which fires only while its output is on; the output itself is
captured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from chita_opt.exact.quadratic import IN, OUT
from chita_opt.formulations.dual_cuts import DualCut, add_dual_cut, dual_cuts_milp
from chita_opt.formulations.model_parts import SideConstraint, add_side_constraints
from chita_opt.problem import Problem
from chita_opt.supports.base import Array

_OPTIONS = {
    # a start is always given, the cuts are dense and few: what pays for large sparse models costs
    # more here than it brings
    "mip_heuristic_effort": 0.0,
    "mip_detect_symmetry": False,
    "presolve": "off",
    "mip_feasibility_tolerance": 1e-9,
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
    "mip_rel_gap": 0.0,
    "mip_min_logging_interval": 0.0,
}
_NAMES = {"kOptimal": "optimal", "kInfeasible": "infeasible", "kInterrupt": "interrupted",
          "kTimeLimit": "time_limit"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Round:
    """What one solve of the master brought.

    Attributes
    ----------
    status : str
        "optimal" (to the tolerance asked for), "infeasible", "time_limit", "interrupted", or
        HiGHS's own word.
    lower : float
        Its bound on t; -inf if it gave none.
    masks : list of ndarray
        (p,) bool, the masks it found, the best last.
    nodes : int
        Nodes of its tree.
    trace : list of tuple
        (seconds since the round began, bound on t).
    """

    status: str
    lower: float
    masks: list[Array]
    nodes: int
    trace: list[tuple[float, float]]


class Master:
    """The model ``t >= cuts``, rows of the family and of the user, in units of ``scale``.

    Parameters
    ----------
    problem : Problem
        Gives the family.
    side_constraints : sequence of callables
        Each adds constraints on ``model.z``.
    """

    def __init__(self, problem: Problem, side_constraints: Sequence[SideConstraint]) -> None:
        from pyomo.contrib.appsi.solvers.highs import Highs

        self.model = dual_cuts_milp(problem)
        add_side_constraints(self.model, side_constraints)
        self.p, self.cuts = problem.p, 0
        self.highs = Highs()
        self.highs.config.load_solution = False
        self.highs.config.warmstart = True
        self.highs.highs_options = dict(_OPTIONS)
        for name in list(self.highs.update_config):  # every change is told, none is looked for
            setattr(self.highs.update_config, name, False)
        self.highs.set_instance(self.model)
        self.has_others = len(self.highs._vars) > self.p + 1  # variables of side constraints
        self.columns: dict[bytes, Array] = {}  # all variables of masks that HiGHS found
        self.found: list[Array] = []
        self.rows: list[tuple[float, float]] = []
        self.begin = 0.0
        self._listen()

    def add(self, cut: DualCut) -> None:
        """Add a cut, in units of t."""
        self.highs.add_constraints([add_dual_cut(self.model, cut)])
        self.cuts += 1

    def forbid(self, mask: Array) -> None:
        """Exclude all masks that keep at least the weights of ``mask``."""
        kept = np.flatnonzero(mask).tolist()
        rule = sum(self.model.z[j] for j in kept) <= len(kept) - 1
        self.highs.add_constraints([self.model.cuts.add(rule)])

    def fix(self, state: Array) -> None:
        """Bound the indicators by a state in {FREE, OUT, IN}^p."""
        changed = []
        for j in range(self.p):
            low, high = float(state[j] == IN), float(state[j] != OUT)
            z = self.model.z[j]
            if (z.lb, z.ub) != (low, high):
                z.setlb(low)
                z.setub(high)
                changed.append(z)
        if changed:
            self.highs.update_variables(changed)

    def cut_off(self, value: float | None) -> None:
        """Ask for t <= ``value`` only; None for any t."""
        self.model.t.setub(value)
        self.highs.update_variables([self.model.t])

    def admits(self, mask: Array) -> bool:
        """Whether rows and side constraints allow ``mask``; other variables are free to help."""
        state = np.where(mask, IN, OUT)
        held = np.array([(z.lb, z.ub) for z in self.model.z.values()])
        cutoff = self.model.t.ub
        self.fix(state)
        self.cut_off(None)
        try:
            return self.solve(None, np.inf).status == "optimal"
        finally:
            self.fix(np.where(held[:, 0] > 0.5, IN, np.where(held[:, 1] < 0.5, OUT, -1)))
            self.cut_off(cutoff)

    def solve(
        self, start: tuple[Array, float] | None, seconds: float, *, gap: float = 0.0
    ) -> Round:
        """Minimise t from a mask and its t, for at most ``seconds``, to an absolute ``gap``."""
        self._set_start(start)
        self.found, self.rows, self.begin = [], [], time.perf_counter()
        self.highs.config.time_limit = min(max(seconds, 0.01), 1e7)
        self.highs.highs_options["mip_abs_gap"] = max(gap, 0.0)
        with _quiet():
            result = self.highs.solve(self.model)
        core = self.highs._solver_model
        word = core.getModelStatus().name
        status = _NAMES.get(word, word)
        bound = result.best_objective_bound
        lower = -np.inf if bound is None or not np.isfinite(bound) else float(bound)
        solution = core.getSolution()
        if status != "infeasible" and solution.value_valid:
            self._take(solution.col_value)
        return Round(status, lower, self.found, max(core.getInfo().mip_node_count, 0), self.rows)

    def _set_start(self, start: tuple[Array, float] | None) -> None:
        self.highs.config.warmstart = start is not None
        if start is None:
            return
        mask, t = start
        others = self.columns.get(mask.tobytes())
        if others is not None:
            column = self.highs._pyomo_var_to_solver_var_map
            for key, (variable, *_) in self.highs._vars.items():
                variable.set_value(float(others[column[key]]), skip_validation=True)
        for j, kept in enumerate(mask.tolist()):
            self.model.z[j].set_value(float(kept))
        self.model.t.set_value(t, skip_validation=True)

    def _listen(self) -> None:
        core = self.highs._solver_model
        core.cbMipLogging += self._log
        core.cbMipImprovingSolution += self._improve

    def _log(self, event: Any) -> None:
        bound = float(event.data_out.mip_dual_bound)
        if np.isfinite(bound):
            self.rows.append((time.perf_counter() - self.begin, bound))

    def _improve(self, event: Any) -> None:
        self._take(event.data_out.mip_solution)

    def _take(self, values: Any) -> None:
        column = self.highs._pyomo_var_to_solver_var_map
        z = np.asarray(values)[[column[id(v)] for v in self.model.z.values()]]
        mask = z > 0.5
        self.found.append(mask)
        if self.has_others:
            self.columns[mask.tobytes()] = np.array(values)


@contextmanager
def _quiet() -> Iterator[None]:
    """Pyomo warns about HiGHS's word for an interrupt, which is read here."""
    logger = logging.getLogger("pyomo.contrib.appsi.solvers.highs")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
