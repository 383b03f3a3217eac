"""One check for every kind of file that this package proves something with; numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chita_opt.certificates import block_proof, pair_bound, path_proof, tree_proof
from chita_opt.certificates.container import read_sealed
from chita_opt.certificates.tree_proof import ProofReport
from chita_opt.certificates.verification import Verification, verify_file

_CHECKS: dict[str, Callable[..., Verification | ProofReport]] = {
    tree_proof.KIND: tree_proof.verify_proof,
    path_proof.KIND: path_proof.verify_path,
    block_proof.KIND: block_proof.verify_blocks,
    pair_bound.KIND: pair_bound.verify_pairs,
}


def verify(path: str | Path, problem_path: str | Path | None = None) -> Verification | ProofReport:
    """Recompute what a file claims: a certificate, a bound's witness, or the logs of searches.

    Parameters
    ----------
    path : str or Path
        Written by ``Certificate.save`` or ``save_proof``.
    problem_path : str or Path, optional
        The problem's own file; needed if the problem was left out of ``path``.

    Returns
    -------
    Verification or ProofReport
        Both have ``upper``, ``lower``, ``gap``, ``relative_gap``, ``nnz`` and ``p``; that of a
        path over counts has all its values and bounds too.

    Raises
    ------
    CertificateError
        If anything was changed, is malformed or does not follow.
    """
    _, claims = read_sealed(path)
    kind = claims.get("kind")
    return (_CHECKS.get(kind, verify_file) if isinstance(kind, str) else verify_file)(
        path, problem_path
    )


__all__ = ["verify"]
