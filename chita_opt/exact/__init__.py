"""Methods that prove the optimum."""

from chita_opt.exact.bit_width_search import BitWidthSolution, solve_bit_widths
from chita_opt.exact.bit_widths import BitWidthProblem, quantised
from chita_opt.exact.block_splits import SplitEffort, block_split_bound
from chita_opt.exact.blocks import solve_blocks, split_into_blocks
from chita_opt.exact.budget_split import BudgetSplit, join_curves, split_curves, value_at
from chita_opt.exact.engines import ParallelEngine
from chita_opt.exact.enumerate import Enumeration, enumerate_optimum, enumerate_supports
from chita_opt.exact.hybrid import HybridOptions, hybrid
from chita_opt.exact.mip_solver import SolverResult, solve_with
from chita_opt.exact.neighbourhood import NeighbourhoodOptions, neighbourhood_search
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.outer_approximation import OuterApproximation, outer_approximation
from chita_opt.exact.pair_split import PairWitness
from chita_opt.exact.path import KPath, k_path
from chita_opt.exact.racing import Contender, race
from chita_opt.exact.result import (
    BlockProof,
    HistoryRow,
    PathProof,
    ReductionProof,
    TreeProof,
    TreeResult,
)
from chita_opt.exact.strengths import ProvenBound, lower_bound
from chita_opt.exact.tree_search.branch_and_bound import branch_and_bound
from chita_opt.exact.value_curves import CurveOptions, ValueCurve, value_curve, value_curves

__all__ = [
    "BitWidthProblem",
    "BitWidthSolution",
    "BlockProof",
    "BudgetSplit",
    "Contender",
    "CurveOptions",
    "Enumeration",
    "HistoryRow",
    "HybridOptions",
    "KPath",
    "NeighbourhoodOptions",
    "OuterApproximation",
    "PairWitness",
    "ParallelEngine",
    "PathProof",
    "ProvenBound",
    "ReductionProof",
    "SolverResult",
    "SplitEffort",
    "TreeOptions",
    "TreeProof",
    "TreeResult",
    "ValueCurve",
    "block_split_bound",
    "branch_and_bound",
    "enumerate_optimum",
    "enumerate_supports",
    "hybrid",
    "join_curves",
    "k_path",
    "lower_bound",
    "neighbourhood_search",
    "outer_approximation",
    "quantised",
    "race",
    "solve_bit_widths",
    "solve_blocks",
    "solve_with",
    "split_curves",
    "split_into_blocks",
    "value_at",
    "value_curve",
    "value_curves",
]
