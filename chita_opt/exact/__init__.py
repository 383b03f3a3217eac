"""Methods that prove the optimum."""

from chita_opt.exact.bit_width_search import BitWidthSolution, solve_bit_widths
from chita_opt.exact.bit_widths import BitWidthProblem, quantised
from chita_opt.exact.blocks import solve_blocks, split_into_blocks
from chita_opt.exact.branch_and_bound import branch_and_bound
from chita_opt.exact.enumerate import Enumeration, enumerate_optimum, enumerate_supports
from chita_opt.exact.mip_solver import SolverResult, solve_with
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.outer_approximation import OuterApproximation, outer_approximation
from chita_opt.exact.pair_split import PairWitness
from chita_opt.exact.path import KPath, k_path
from chita_opt.exact.result import BlockProof, HistoryRow, PathProof, TreeProof, TreeResult
from chita_opt.exact.strengths import ProvenBound, lower_bound

__all__ = [
    "BitWidthProblem",
    "BitWidthSolution",
    "BlockProof",
    "Enumeration",
    "HistoryRow",
    "KPath",
    "OuterApproximation",
    "PairWitness",
    "PathProof",
    "ProvenBound",
    "SolverResult",
    "TreeOptions",
    "TreeProof",
    "TreeResult",
    "branch_and_bound",
    "enumerate_optimum",
    "enumerate_supports",
    "k_path",
    "lower_bound",
    "outer_approximation",
    "quantised",
    "solve_bit_widths",
    "solve_blocks",
    "solve_with",
    "split_into_blocks",
]
