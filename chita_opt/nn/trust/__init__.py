"""Trust: what a quadratic model predicts is held against the loss of samples that were held out.

A lower quadratic objective is not always a better network. Here every solve is measured on samples
that no gradient was taken of, supports compete by the actual loss, and where the model fails
layer-wise reconstruction takes its place. The names below are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "BudgetSearch": "budgets",
    "layer_counts": "budgets",
    "search_budgets": "budgets",
    "HeldOut": "calibration",
    "held_out_of": "calibration",
    "hold_out": "calibration",
    "Candidate": "competition",
    "entered": "competition",
    "lowest": "competition",
    "solved_on": "competition",
    "Expansion": "expansion",
    "flipped_shares": "gates",
    "LossRows": "loss_rows",
    "measure_trust": "measuring",
    "predicted_increase": "measuring",
    "LayerInputs": "moments",
    "LayerMoments": "moments",
    "OneShotOptions": "one_stage",
    "one_shot": "one_stage",
    "Reconstruction": "reconstruction",
    "RefineOptions": "refining",
    "Refined": "refining",
    "refine": "refining",
    "COMPETING": "scores",
    "STAGED": "scores",
    "Score": "scores",
    "supports_by": "scores",
    "set_aside": "setting_aside",
    "TrustedStep": "stage_step",
    "StageTrust": "staging",
    "TrustReport": "verdict",
    "TrustThresholds": "verdict",
    "Verdict": "verdict",
    "judge": "verdict",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
