"""Methods that prove the optimum."""

from chita_opt.exact.enumerate import Enumeration, enumerate_optimum, enumerate_supports

__all__ = ["Enumeration", "enumerate_optimum", "enumerate_supports"]
