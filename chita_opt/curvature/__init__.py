"""Curvature forms: one operator interface over per-sample gradients, dense, shared and block H."""

from chita_opt.curvature.base import Curvature, SeparablePart, SupportSolver
from chita_opt.curvature.block_diagonal import BlockDiagonal
from chita_opt.curvature.dense import Dense
from chita_opt.curvature.low_rank import LowRank
from chita_opt.curvature.mapped_low_rank import MappedLowRank, open_gradients
from chita_opt.curvature.shared_rows import SharedRows
from chita_opt.curvature.uncoupled import without_coupling

__all__ = [
    "BlockDiagonal",
    "Curvature",
    "Dense",
    "LowRank",
    "MappedLowRank",
    "SeparablePart",
    "SharedRows",
    "SupportSolver",
    "open_gradients",
    "without_coupling",
]
