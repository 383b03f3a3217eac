"""Methods that prove the optimum."""

from chita_opt.exact.branch_and_bound import branch_and_bound
from chita_opt.exact.enumerate import Enumeration, enumerate_optimum, enumerate_supports
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.result import TreeProof, TreeResult

__all__ = [
    "Enumeration",
    "TreeOptions",
    "TreeProof",
    "TreeResult",
    "branch_and_bound",
    "enumerate_optimum",
    "enumerate_supports",
]
