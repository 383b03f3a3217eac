"""Write the log of a branch and bound to a file that anyone can replay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from chita_opt import __version__
from chita_opt.certificates.certificate import (
    dense_arrays,
    problem_arrays,
    problem_specification,
)
from chita_opt.certificates.container import array_hash, write_sealed
from chita_opt.certificates.tree_proof import KIND, ProofReport, replay
from chita_opt.certificates.verification import SCOPE
from chita_opt.errors import CertificateError
from chita_opt.exact import TreeProof
from chita_opt.solution import Solution

_MACHINES = 1e-12  # by how much, relative, other machines' rounding may lower a bound
_SHORT = 1e-6  # relative loss of the cutoff to rounding that is no longer rounding
_TYPES = {
    "parent": np.int32, "side": np.int8, "branch": np.int32, "witness_row": np.int32,
    "fix_step": np.int32, "fix_index": np.int32, "fix_value": np.int8,
    "witnesses": np.float64, "splits": np.float64,
}  # fmt: skip


class Searched(Protocol):
    """What a tree search returns: weights, and on request its log."""

    @property
    def solution(self) -> Solution:
        """The incumbent."""

    @property
    def proof(self) -> TreeProof | None:
        """The log."""


def save_proof(result: Searched, path: str | Path) -> ProofReport:
    """Replay the log of a search, and write it with the problem, the incumbent and the cutoff.

    The cutoff that is written is the least bound of the replay, whose arithmetic has an allowance
    for every rounding error: it may lie below the search's own in the last digits, and above it
    where an open leaf's state makes its witness stronger than the search had noticed.

    Parameters
    ----------
    result : TreeResult
        Of :func:`chita_opt.exact.branch_and_bound` with ``TreeOptions(proof=True)``.
    path : str or Path
        File to write or replace.

    Returns
    -------
    ProofReport
        What the file proves.

    Raises
    ------
    CertificateError
        If there is no log, or it does not prove what the search claims; nothing is written then.
    """
    proof, problem = result.proof, result.solution.problem
    if proof is None:
        raise CertificateError("the search left no log; ask for one with TreeOptions(proof=True)")
    arrays = problem_arrays(problem)
    described = problem_specification(problem)
    digest = array_hash(arrays, described)
    arrays["solution.w"] = result.solution.w.detach().cpu().numpy()
    arrays |= dense_arrays(problem)
    for name, dtype in _TYPES.items():
        arrays[f"tree.{name}"] = np.asarray(getattr(proof, name), dtype=dtype)
    found = replay(arrays, described, -np.inf)
    weakest = min(found.weakest, found.upper)
    cutoff = weakest - _MACHINES * (abs(weakest) + abs(found.at_zero))
    if not cutoff >= proof.cutoff - _SHORT * (abs(proof.cutoff) + abs(found.at_zero)):
        raise CertificateError(
            f"the log proves a cutoff of {found.weakest:.9g} only, the search claims "
            f"{proof.cutoff:.9g}. The rows of {problem.supports.name} may be weaker than its "
            "oracle, which a replay cannot ask; for budgets please report this"
        )
    lower = min(cutoff, found.upper)
    claims: dict[str, Any] = {
        "kind": KIND, "scope": SCOPE, "version": __version__, "problem": described,
        "problem_hash": digest, "cutoff": cutoff, "lower": lower, "upper": found.upper,
        "steps": found.steps, "method": result.solution.method,
    }  # fmt: skip
    write_sealed(path, arrays, claims)
    return replace(found, lower=lower)


__all__ = ["save_proof"]
