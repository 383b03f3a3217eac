"""Write what proves a bound to a file that anyone can check: ``save_proof``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from chita_opt import __version__
from chita_opt.bounds import Bound
from chita_opt.certificates import block_proof, pair_bound, path_proof, tree_proof
from chita_opt.certificates.certificate import (
    certify,
    dense_arrays,
    problem_arrays,
    problem_specification,
    solution_arrays,
)
from chita_opt.certificates.container import array_hash, write_sealed
from chita_opt.certificates.tree_arrays import lowered, path_arrays, tree_arrays
from chita_opt.certificates.tree_proof import ProofReport
from chita_opt.certificates.verification import SCOPE, Verification
from chita_opt.errors import CertificateError
from chita_opt.exact import (
    BlockProof,
    KPath,
    PairWitness,
    ProvenBound,
    ReductionProof,
    TreeProof,
)
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status

Arrays = dict[str, np.ndarray]
_SHORT = 1e-6  # relative loss of the cutoff to rounding that is no longer rounding
_NO_LOG = "the search left no log; ask for one with TreeOptions(proof=True)"


class Searched(Protocol):
    """What a tree search returns: weights, and on request its log."""

    @property
    def solution(self) -> Solution:
        """The incumbent."""

    @property
    def proof(self) -> TreeProof | BlockProof | ReductionProof | None:
        """The log."""


def save_proof(
    result: Searched | KPath | ProvenBound, path: str | Path
) -> ProofReport | Verification:
    """Check what proves a result, and write it with the problem and the weights to one file.

    The check's arithmetic has an allowance for every rounding error, so the bound that is written
    is the check's own: it may lie below the search's in the last digits, and above it where an open
    leaf's state makes its witness stronger than the search had noticed.

    Parameters
    ----------
    result : TreeResult, KPath or ProvenBound
        Of :func:`chita_opt.exact.hybrid`; of :func:`chita_opt.exact.branch_and_bound`,
        :func:`chita_opt.exact.solve_blocks` or :func:`chita_opt.exact.k_path` with
        ``TreeOptions(proof=True)``, finished or not; or of :func:`chita_opt.exact.lower_bound`.
    path : str or Path
        File to write or replace.

    Returns
    -------
    ProofReport or Verification
        What the file proves; :func:`chita_opt.certificates.verify` gives the same.

    Raises
    ------
    CertificateError
        If there is no log, or it does not prove what the search claims; nothing is written then.
    """
    if isinstance(result, KPath):
        return _save_path(result, path)
    if isinstance(result, ProvenBound):
        return _save_bound(result, path)
    if result.proof is None:
        raise CertificateError(_NO_LOG)
    if isinstance(result.proof, ReductionProof):
        certificate = certify(result.solution, log=result.proof)
        certificate.save(path)
        return certificate.values
    if isinstance(result.proof, BlockProof):
        return _save_blocks(result.solution, result.proof, path)
    return _save_tree(result.solution, result.proof, path)


def _save_tree(solution: Solution, proof: TreeProof, path: str | Path) -> ProofReport:
    problem = solution.problem
    arrays = _solution_arrays(solution) | tree_arrays("tree", [proof])
    found = tree_proof.replay(arrays, problem_specification(problem), -np.inf)
    cutoff = lowered(min(found.weakest, found.upper), found.at_zero)
    _compare(cutoff, float(proof.cutoff), found.at_zero, problem)
    found = replace(found, lower=cutoff)
    claims = {"cutoff": cutoff, "steps": found.steps, "method": solution.method}
    return _write(path, tree_proof.KIND, arrays, problem, found, claims)


def _save_blocks(solution: Solution, proof: BlockProof, path: str | Path) -> ProofReport:
    problem = solution.problem
    arrays = _solution_arrays(solution)
    for n, own in enumerate(proof.paths):
        arrays |= path_arrays(f"blocks.{n}", own)
    found = block_proof.replay_blocks(arrays, problem_specification(problem), proof.price)
    found = replace(found, lower=lowered(found.lower, found.at_zero))
    claims = {"price": proof.price, "steps": found.steps, "method": solution.method}
    return _write(path, block_proof.KIND, arrays, problem, found, claims)


def _save_path(result: KPath, path: str | Path) -> ProofReport:
    if result.proof is None:
        raise CertificateError(_NO_LOG)
    problem = result.problem
    arrays = problem_arrays(problem) | dense_arrays(problem) | path_arrays("path", result.proof)
    arrays |= {"path.ks": np.asarray(result.ks, dtype=np.int64), "path.weights": result.w}
    found = path_proof.replay_path(arrays, problem_specification(problem))
    lowers = tuple(lowered(value, found.at_zero) for value in found.lowers)
    found = replace(found, lower=lowers[-1], lowers=lowers)
    arrays["path.lower"] = np.array(lowers)
    return _write(path, path_proof.KIND, arrays, problem, found, {"steps": found.steps})


def _save_bound(result: ProvenBound, path: str | Path) -> ProofReport | Verification:
    witness, problem = result.witness, result.problem
    solution = result.solution or Solution(
        problem, torch.zeros_like(problem.w_bar), "prune_all", Status.FEASIBLE
    )
    if isinstance(witness, Bound):
        certificate = certify(solution, bound=witness)
        certificate.save(path)
        return certificate.values
    if isinstance(witness, PairWitness):
        return _save_pairs(solution, witness, path)
    return save_proof(witness, path)


def _save_pairs(solution: Solution, witness: PairWitness, path: str | Path) -> Verification:
    problem = solution.problem
    arrays = _solution_arrays(solution)
    arrays |= {f"bound.{name}": np.asarray(a) for name, a in vars(witness).items()}
    found = pair_bound.evaluate_pairs(arrays, problem_specification(problem))
    claims = asdict(found) | {"lower": lowered(found.lower, problem.prune_all)}
    _write(path, pair_bound.KIND, arrays, problem, found, claims)
    return found


def _write(
    path: str | Path,
    kind: str,
    arrays: Arrays,
    problem: Problem,
    found: Any,
    claims: Mapping[str, Any],
) -> Any:
    """One sealed file; what is written about the bound is what ``found`` says."""
    described = problem_specification(problem)
    own = {name: a for name, a in arrays.items() if name.startswith("problem.")}
    every = {
        "kind": kind, "scope": SCOPE, "version": __version__, "problem": described,
        "problem_hash": array_hash(own, described), "lower": found.lower, "upper": found.upper,
    }  # fmt: skip
    write_sealed(path, arrays, every | dict(claims))
    return found


def _solution_arrays(solution: Solution) -> Arrays:
    """A problem, its weights, and the minimiser that relative gaps refer to."""
    arrays = problem_arrays(solution.problem) | dense_arrays(solution.problem)
    return arrays | solution_arrays(solution)


def _compare(proven: float, claimed: float, at_zero: float, problem: Problem) -> None:
    """Refuse a log that falls short of its claim by more than rounding."""
    if not proven >= claimed - _SHORT * (abs(claimed) + abs(at_zero)):
        raise CertificateError(
            f"the log proves a cutoff of {proven:.9g} only, the search claims {claimed:.9g}. The "
            f"rows of {problem.supports.name} may be weaker than its oracle, which a replay "
            "cannot ask; for budgets please report this"
        )


__all__ = ["save_proof"]
