"""Neural-network pruning by mathematical optimisation, with a proof of how good the result is.

The names below are loaded on first use, so that ``import chita_opt`` and the command line start
without importing PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("chita-opt")
except PackageNotFoundError:  # a bare checkout that was never installed
    __version__ = "0.0.0+unknown"

_EXPORTS = {
    "Budget": "chita_opt.supports",
    "KeepCount": "chita_opt.supports",
    "SupportFamily": "chita_opt.supports",
    "keep_count": "chita_opt.supports",
    "BlockDiagonal": "chita_opt.curvature",
    "Dense": "chita_opt.curvature",
    "LowRank": "chita_opt.curvature",
    "SharedRows": "chita_opt.curvature",
    "open_gradients": "chita_opt.curvature",
    "Problem": "chita_opt.problem",
    "from_gradients": "chita_opt.problem",
    "from_hessian": "chita_opt.problem",
    "from_layer_inputs": "chita_opt.problem",
    "Solution": "chita_opt.solution",
    "Status": "chita_opt.solution",
    "Bound": "chita_opt.bounds",
    "dual_bound": "chita_opt.bounds",
    "METHODS": "chita_opt.heuristics",
    "solve": "chita_opt.heuristics",
    "load_instance": "chita_opt.instances",
    "TreeOptions": "chita_opt.exact",
    "branch_and_bound": "chita_opt.exact",
    "k_path": "chita_opt.exact",
    "lower_bound": "chita_opt.exact",
    "outer_approximation": "chita_opt.exact",
    "solve_blocks": "chita_opt.exact",
    "Certificate": "chita_opt.certificates",
    "certify": "chita_opt.certificates",
    "save_proof": "chita_opt.certificates",
    "verify": "chita_opt.certificates",
    "verify_file": "chita_opt.certificates",
    "PruneOptions": "chita_opt.nn",
    "PruningResult": "chita_opt.nn",
    "prune": "chita_opt.nn",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'chita_opt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
