"""Density-adaptive regular blocks (DARB) end to end: training, storage, decoding."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "DarbMatrix": "chita_opt.nn.darb.matrix",
    "widest_widths": "chita_opt.nn.darb.matrix",
    "DarbWeights": "chita_opt.nn.darb.darb_file",
    "load_darb": "chita_opt.nn.darb.darb_file",
    "save_darb": "chita_opt.nn.darb.darb_file",
    "storage_bits": "chita_opt.nn.darb.storage_sizes",
    "DecodingCost": "chita_opt.nn.darb.decoding_cost",
    "decoding_costs": "chita_opt.nn.darb.decoding_cost",
    "DarbProduct": "chita_opt.nn.darb.decoding",
    "TorchDarbProduct": "chita_opt.nn.darb.decoding",
    "darb_family": "chita_opt.nn.darb.patterns",
    "dual_gains": "chita_opt.nn.darb.patterns",
    "solve_with_widths": "chita_opt.nn.darb.joint_widths",
    "DarbRecipe": "chita_opt.nn.darb.training",
    "DarbStage": "chita_opt.nn.darb.training",
    "train_darb_": "chita_opt.nn.darb.training",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'chita_opt.nn.darb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
