"""Support families: which sets of weights may be kept."""

from chita_opt.supports.base import SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.linear_rows import LinearRows
from chita_opt.supports.sparsity import KeepCount, keep_count
from chita_opt.supports.specification import family_from_text
from chita_opt.supports.whole_groups import WholeGroups

__all__ = [
    "Budget",
    "KeepCount",
    "LinearRows",
    "SupportFamily",
    "WholeGroups",
    "family_from_text",
    "keep_count",
]
