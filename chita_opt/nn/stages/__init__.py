"""Pruning in stages: remove a little, measure the gradients again, remove more (CHITA++)."""

from chita_opt.nn.stages.block_rounds import BlockRounds
from chita_opt.nn.stages.multi_stage import prune_in_stages
from chita_opt.nn.stages.options import StageOptions
from chita_opt.nn.stages.result import StagedResult, StageRow
from chita_opt.nn.stages.schedules import SCHEDULES, stage_counts, stage_sparsities
from chita_opt.nn.stages.state import StageAnswer, StageState, Step
from chita_opt.nn.stages.steps import Refit, Solve

__all__ = [
    "SCHEDULES",
    "BlockRounds",
    "Refit",
    "Solve",
    "StageAnswer",
    "StageOptions",
    "StageRow",
    "StageState",
    "StagedResult",
    "Step",
    "prune_in_stages",
    "stage_counts",
    "stage_sparsities",
]
