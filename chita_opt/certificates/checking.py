"""One check for every kind of file that this package proves something with; numpy alone."""

from __future__ import annotations

from pathlib import Path

from chita_opt.certificates.container import read_sealed
from chita_opt.certificates.tree_proof import KIND, ProofReport, verify_proof
from chita_opt.certificates.verification import Verification, verify_file


def verify(path: str | Path, problem_path: str | Path | None = None) -> Verification | ProofReport:
    """Recompute what a certificate or the log of a branch and bound claims.

    Parameters
    ----------
    path : str or Path
        Written by ``Certificate.save`` or ``save_proof``.
    problem_path : str or Path, optional
        The problem's own file; needed if the problem was left out of ``path``.

    Returns
    -------
    Verification or ProofReport
        Both have ``upper``, ``lower``, ``gap``, ``nnz`` and ``p``.

    Raises
    ------
    CertificateError
        If anything was changed, is malformed or does not follow.
    """
    _, claims = read_sealed(path)
    if claims.get("kind") == KIND:
        return verify_proof(path, problem_path)
    return verify_file(path, problem_path)


__all__ = ["verify"]
