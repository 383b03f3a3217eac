"""Support families: which sets of weights may be kept."""

from chita_opt.supports.base import SupportFamily
from chita_opt.supports.block_widths import BlockWidths
from chita_opt.supports.budget import Budget
from chita_opt.supports.budget_splits import split_budget
from chita_opt.supports.intersections import Intersection, intersection
from chita_opt.supports.laminar_budget import LaminarBudget
from chita_opt.supports.latency_table import LatencyTable
from chita_opt.supports.layer_families import LayerFamilies, join_layers
from chita_opt.supports.linear_rows import LinearRows
from chita_opt.supports.minimum_keeps import MinimumKeeps
from chita_opt.supports.nested_groups import NestedGroups, TreePrices
from chita_opt.supports.neuron_gates import NeuronGates
from chita_opt.supports.permutations import permutation_search
from chita_opt.supports.processor_partition import ProcessorPartition, given_partition
from chita_opt.supports.regular_blocks import (
    block_max,
    fixed_widths,
    kept_by,
    n_of_m_along,
    published_widths,
)
from chita_opt.supports.restriction import RestrictedFamily, restrict
from chita_opt.supports.sparsity import KeepCount, keep_count
from chita_opt.supports.specification import family_from_text, needs_count
from chita_opt.supports.two_budgets import TwoBudgets
from chita_opt.supports.whole_groups import WholeGroups

__all__ = [
    "BlockWidths",
    "Budget",
    "Intersection",
    "KeepCount",
    "LaminarBudget",
    "LatencyTable",
    "LayerFamilies",
    "LinearRows",
    "MinimumKeeps",
    "NestedGroups",
    "NeuronGates",
    "ProcessorPartition",
    "RestrictedFamily",
    "SupportFamily",
    "TreePrices",
    "TwoBudgets",
    "WholeGroups",
    "block_max",
    "family_from_text",
    "fixed_widths",
    "given_partition",
    "intersection",
    "join_layers",
    "keep_count",
    "kept_by",
    "n_of_m_along",
    "needs_count",
    "permutation_search",
    "published_widths",
    "restrict",
    "split_budget",
]
