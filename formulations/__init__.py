"""The optimisation models, as pure builders: a problem in, a model out; nothing is solved here.

cvxpy and Pyomo are imported when a builder is called.
"""

from chita_opt.formulations.best_mask import best_mask_milp
from chita_opt.formulations.big_m import big_m_miqp, proven_big_m
from chita_opt.formulations.budgets import block_widths, cost_budget
from chita_opt.formulations.dual_cuts import (
    DualCut,
    add_dual_cut,
    cleaned,
    dual_cut,
    dual_cuts_milp,
)
from chita_opt.formulations.indicator import indicator_gdp
from chita_opt.formulations.lagrangian import LagrangianModel, lagrangian_relaxation
from chita_opt.formulations.model_files import read_solution, write_model
from chita_opt.formulations.model_parts import SideConstraint, add_side_constraints
from chita_opt.formulations.multiple_choice import multiple_choice_milp
from chita_opt.formulations.optimal_diagonal import LiftedModel, optimal_diagonal_relaxation
from chita_opt.formulations.pairs import pair_relaxation, strongest_pairs
from chita_opt.formulations.perspective import PerspectiveModel, perspective_relaxation
from chita_opt.formulations.perspective_conic import perspective_miqcp
from chita_opt.formulations.removal import removal_costs, removal_miqcp
from chita_opt.formulations.sos1 import sos1_miqp
from chita_opt.formulations.weight_cuts import add_weight_cuts, weight_cuts_milp

__all__ = [
    "DualCut",
    "LagrangianModel",
    "LiftedModel",
    "PerspectiveModel",
    "SideConstraint",
    "add_dual_cut",
    "add_side_constraints",
    "add_weight_cuts",
    "best_mask_milp",
    "big_m_miqp",
    "block_widths",
    "cleaned",
    "cost_budget",
    "dual_cut",
    "dual_cuts_milp",
    "indicator_gdp",
    "lagrangian_relaxation",
    "multiple_choice_milp",
    "optimal_diagonal_relaxation",
    "pair_relaxation",
    "perspective_miqcp",
    "perspective_relaxation",
    "proven_big_m",
    "read_solution",
    "removal_costs",
    "removal_miqcp",
    "sos1_miqp",
    "strongest_pairs",
    "weight_cuts_milp",
    "write_model",
]
