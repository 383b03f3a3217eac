"""Pruning step by step while a network trains, stopped and continued from disk at any moment."""

from chita_opt.nn.gradual_training.options import Distillation, GradualOptions
from chita_opt.nn.gradual_training.recording import HistoryRow
from chita_opt.nn.gradual_training.result import GradualResult
from chita_opt.nn.gradual_training.training import prune_and_train

__all__ = ["Distillation", "GradualOptions", "GradualResult", "HistoryRow", "prune_and_train"]
