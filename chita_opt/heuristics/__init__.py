"""Fast methods, one signature, one table."""

from chita_opt.heuristics.chita import chita, coordinate_descent
from chita_opt.heuristics.iht import iht
from chita_opt.heuristics.local_search import local_search
from chita_opt.heuristics.magnitude import backsolve, magnitude
from chita_opt.heuristics.methods import METHODS, Method, choose_method, solve
from chita_opt.heuristics.relax_round import FAST, THOROUGH, RoundingOptions, relax_round

__all__ = [
    "FAST",
    "METHODS",
    "THOROUGH",
    "Method",
    "RoundingOptions",
    "backsolve",
    "chita",
    "choose_method",
    "coordinate_descent",
    "iht",
    "local_search",
    "magnitude",
    "relax_round",
    "solve",
]
