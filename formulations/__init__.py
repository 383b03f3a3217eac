"""The optimisation models, as pure builders: a problem in, a model out; nothing is solved here.

cvxpy and Pyomo are imported when a builder is called.
"""

from chita_opt.formulations.big_m import big_m_miqp, proven_big_m
from chita_opt.formulations.perspective import PerspectiveModel, perspective_relaxation

__all__ = ["PerspectiveModel", "big_m_miqp", "perspective_relaxation", "proven_big_m"]
