"""Logs as arrays for a certificate, made ready for the check's own arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from chita_opt.certificates.arithmetic import prove_semidefinite
from chita_opt.certificates.block_proof import replay_blocks
from chita_opt.certificates.node_bound import NodeBounds
from chita_opt.certificates.problem_data import StoredProblem, read_problem
from chita_opt.certificates.reduction import (
    CUTOFF,
    FATES,
    PREFIX,
    read_reduced_tree,
    reduced_bounds,
)
from chita_opt.certificates.tree_arrays import lowered, path_arrays, tree_arrays
from chita_opt.certificates.tree_proof import walk
from chita_opt.errors import CertificateError

if TYPE_CHECKING:
    from chita_opt.exact.result import BlockProof, ReductionProof

Array = np.ndarray
_LEAST = 1e-7  # split of weights fixed in, as a share of the largest
_SHARES = (1e-9, 1e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 1e-3)  # by which splits are lowered


def log_arrays(
    proof: ReductionProof | BlockProof,
    arrays: Mapping[str, Array],
    specification: Mapping[str, Any],
) -> dict[str, Array]:
    """The arrays of a log, with the bound that a replay of them proves."""
    from chita_opt.exact.result import BlockProof  # the room starts slowly

    if isinstance(proof, BlockProof):
        return _block_arrays(proof, arrays, specification)
    return _reduction_arrays(proof, arrays, read_problem(arrays, specification))


def _block_arrays(
    proof: BlockProof, arrays: Mapping[str, Array], specification: Mapping[str, Any]
) -> dict[str, Array]:
    own: dict[str, Array] = {}
    for n, path in enumerate(proof.paths):
        own |= path_arrays(f"blocks.{n}", path)
    if proof.price is not None:
        own["blocks.price"] = np.array([proof.price])
    found = replay_blocks({**arrays, **own}, specification, proof.price)
    return own | {"blocks.lower": np.array([lowered(found.lower, found.at_zero)])}


def _reduction_arrays(
    proof: ReductionProof, arrays: Mapping[str, Array], problem: StoredProblem
) -> dict[str, Array]:
    """A reduction's arrays with the cutoff that a replay of them proves.

    The check allows for more rounding than the search did, so that splits must be lowered a little,
    and more where that is not enough.

    Raises
    ------
    CertificateError
        If no such step makes the log provable.
    """
    bounds = reduced_bounds(problem, proof.fates)
    for share in _SHARES:
        with suppress(CertificateError):
            own = {FATES: proof.fates, CUTOFF: np.array([proof.cutoff])}
            tree = tree_arrays(f"{PREFIX}tree", [proof.tree])
            _lower(tree[f"{PREFIX}tree.witnesses"], tree[f"{PREFIX}tree.splits"], bounds, share)
            own |= tree
            proven = walk(read_reduced_tree({**arrays, **own}, proof.fates), bounds, -np.inf)[1]
            own[CUTOFF][0] = min(lowered(proven, bounds.at_zero.value), proof.cutoff)
            return own
        bounds = bounds.afresh()
    raise CertificateError(
        "the log of the reduction cannot be proven with the check's allowance for rounding; raise "
        "the ridge"
    )


def _lower(V: Array, D: Array, bounds: NodeBounds, share: float) -> None:
    r"""Lower the splits D in place, and move the points V so that their pulls stay.

    With :math:`Q'v'=Qv` for the lowered split the pulls are the same, and :math:`v'^\top Q'v'` is
    not above what it was: near the best split Q is nearly singular, and keeping v would cost much.
    Weights fixed in have a tiny split and no pull; theirs is raised so far that an error of the
    pull, squared and divided by it, stays small.
    """
    least = _LEAST * float(D.max(initial=0.0))
    for row, (v, d) in enumerate(zip(V, D, strict=True)):
        here = np.flatnonzero(d > 0.0)
        H, own = bounds.H[np.ix_(here, here)], d[here]
        less = np.where(own < least, least, (1.0 - share) * own)
        if not row:  # is the share enough? the others are proven by the replay
            prove_semidefinite(H, less, len(H) * bounds.error)
        image = H @ v[here] + (bounds.lowered - own) * v[here]
        right = np.where(own < least, bounds.b[here], image)
        v[here], d[here] = np.linalg.solve(H - np.diag(less), right), less


__all__ = ["log_arrays"]
