"""Pruning in stages: remove a little, measure the gradients again, remove more (CHITA++)."""

from chita_opt.nn.stages.state import StageAnswer, StageState, Step

__all__ = ["StageAnswer", "StageState", "Step"]
