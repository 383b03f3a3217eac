"""Trust: what a quadratic model predicts is held against the loss of samples that were held out.

A lower quadratic objective is not always a better network. Here every solve is measured on samples
that no gradient was taken of, supports compete by the actual loss, and where the model fails
layer-wise reconstruction takes its place.
"""

from chita_opt.nn.trust.budgets import BudgetSearch, layer_counts, search_budgets
from chita_opt.nn.trust.calibration import HeldOut, held_out_of, hold_out
from chita_opt.nn.trust.competition import Candidate, entered, lowest, solved_on
from chita_opt.nn.trust.gates import flipped_shares
from chita_opt.nn.trust.measuring import measure_trust, predicted_increase
from chita_opt.nn.trust.moments import LayerInputs, LayerMoments
from chita_opt.nn.trust.reconstruction import Reconstruction
from chita_opt.nn.trust.scores import COMPETING, STAGED, Score, supports_by
from chita_opt.nn.trust.stage_step import TrustedStep
from chita_opt.nn.trust.verdict import TrustReport, TrustThresholds, Verdict, judge

__all__ = [
    "COMPETING",
    "STAGED",
    "BudgetSearch",
    "Candidate",
    "HeldOut",
    "LayerInputs",
    "LayerMoments",
    "Reconstruction",
    "Score",
    "TrustReport",
    "TrustThresholds",
    "TrustedStep",
    "Verdict",
    "entered",
    "flipped_shares",
    "held_out_of",
    "hold_out",
    "judge",
    "layer_counts",
    "lowest",
    "measure_trust",
    "predicted_increase",
    "search_budgets",
    "solved_on",
    "supports_by",
]
