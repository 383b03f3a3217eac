"""The logs of trees as arrays for a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from chita_opt.certificates.tree_proof import TREE_ARRAYS

if TYPE_CHECKING:
    from chita_opt.exact.result import PathProof, TreeProof

_MACHINES = 1e-12  # by how much, relative, other machines' rounding may lower a bound
_TYPES = {
    "parent": np.int32, "side": np.int8, "branch": np.int32, "witness_row": np.int32,
    "fix_step": np.int32, "fix_index": np.int32, "fix_value": np.int8,
    "witnesses": np.float64, "splits": np.float64,
}  # fmt: skip


def tree_arrays(prefix: str, trees: Sequence[TreeProof]) -> dict[str, np.ndarray]:
    """The arrays of logs, one log after the other."""
    return {
        f"{prefix}.{name}": np.concatenate(
            [np.asarray(getattr(tree, name), dtype=_TYPES[name]) for tree in trees]
        )
        for name in TREE_ARRAYS
        if trees
    }


def path_arrays(prefix: str, proof: PathProof) -> dict[str, np.ndarray]:
    """The logs of all counts, one after the other, and where each begins."""
    sizes = {"steps": "parent", "rows": "witnesses", "fixings": "fix_step"}
    lengths = {
        f"{prefix}.{size}": np.array([len(getattr(t, name)) for t in proof.trees], dtype=np.int64)
        for size, name in sizes.items()
    }
    counts = {f"{prefix}.counts": np.array(proof.counts, dtype=np.int64)}
    return counts | lengths | tree_arrays(prefix, proof.trees)


def lowered(value: float, at_zero: float) -> float:
    """A bound less what another machine's rounding may take from it."""
    return value - _MACHINES * (abs(value) + abs(at_zero))
