"""Outer approximation: cuts of the value function in rounds, solved by HiGHS."""

from chita_opt.exact.outer_approximation.method import outer_approximation
from chita_opt.exact.outer_approximation.result import OuterApproximation

__all__ = ["OuterApproximation", "outer_approximation"]
