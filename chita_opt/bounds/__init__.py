"""Lower bounds with witnesses, and what they fix."""

from chita_opt.bounds.dual import Bound, DualPoint, dual_point, trivial_bound
from chita_opt.bounds.relaxation import RelaxationOptions
from chita_opt.bounds.root_bound import dual_bound
from chita_opt.bounds.screening import Screening, screen
from chita_opt.bounds.splits import candidate_splits, safe_split

__all__ = [
    "Bound",
    "DualPoint",
    "RelaxationOptions",
    "Screening",
    "candidate_splits",
    "dual_bound",
    "dual_point",
    "safe_split",
    "screen",
    "trivial_bound",
]
