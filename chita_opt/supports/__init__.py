"""Support families: which sets of weights may be kept."""

from chita_opt.supports.base import SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.sparsity import KeepCount, keep_count
from chita_opt.supports.specification import family_from_text

__all__ = ["Budget", "KeepCount", "SupportFamily", "family_from_text", "keep_count"]
