"""Fast methods, one signature, one table."""

from chita_opt.heuristics.alps import PAPER, PenaltySchedule, alps
from chita_opt.heuristics.alternating import alternating
from chita_opt.heuristics.blockwise import blockwise
from chita_opt.heuristics.cbs import cbs
from chita_opt.heuristics.chita import chita
from chita_opt.heuristics.coordinate_descent import coordinate_descent
from chita_opt.heuristics.iht import Descent, iht
from chita_opt.heuristics.iobs import iobs
from chita_opt.heuristics.layerwise import RowSearch, layerwise
from chita_opt.heuristics.local_search import local_search
from chita_opt.heuristics.magnitude import backsolve, magnitude
from chita_opt.heuristics.methods import METHODS, Method, choose_method, polished, solve
from chita_opt.heuristics.mfac import mfac
from chita_opt.heuristics.obc import obc
from chita_opt.heuristics.portfolio import best
from chita_opt.heuristics.relax_round import FAST, THOROUGH, RoundingOptions, relax_round
from chita_opt.heuristics.wanda import wanda
from chita_opt.heuristics.woodfisher import woodfisher

__all__ = [
    "FAST",
    "METHODS",
    "PAPER",
    "THOROUGH",
    "Descent",
    "Method",
    "PenaltySchedule",
    "RoundingOptions",
    "RowSearch",
    "alps",
    "alternating",
    "backsolve",
    "best",
    "blockwise",
    "cbs",
    "chita",
    "choose_method",
    "coordinate_descent",
    "iht",
    "iobs",
    "layerwise",
    "local_search",
    "magnitude",
    "mfac",
    "obc",
    "polished",
    "relax_round",
    "solve",
    "wanda",
    "woodfisher",
]
