"""From a solution to a claim that anyone can check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from chita_opt import __version__
from chita_opt.bounds import Bound, Screening, dual_bound, dual_point, screen
from chita_opt.certificates.container import array_hash, write_sealed
from chita_opt.certificates.log_arrays import log_arrays
from chita_opt.certificates.verification import SCOPE, Verification, evaluate
from chita_opt.errors import CertificateError
from chita_opt.problem import Problem
from chita_opt.solution import Solution
from chita_opt.supports import LinearRows

if TYPE_CHECKING:
    from chita_opt.exact.result import BlockProof, ReductionProof


@dataclass(frozen=True, eq=False)
class Certificate:
    """A solution, a lower bound with its witness, and the gap between them.

    All numbers are recomputed in float64 by numpy code that shares nothing with the solvers, with
    rounding on the safe side. They are about the quadratic model of the loss, not about the
    network's accuracy.

    Attributes
    ----------
    solution : Solution
        What is certified.
    bound : Bound
        The bound and its witness.
    values : Verification
        Upper, lower, gaps, counts.
    screening : Screening
        Weights whose fate is proven.
    arrays : Mapping
        Everything that goes into the file, by name.
    log : ReductionProof, BlockProof or None
        What raises the bound above that of its one witness, as far as it does.
    """

    solution: Solution
    bound: Bound
    values: Verification
    screening: Screening
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    log: ReductionProof | BlockProof | None = field(default=None, repr=False)

    @property
    def upper(self) -> float:
        """Modelled loss increase of the solution."""
        return self.values.upper

    @property
    def lower(self) -> float:
        """Proven lower bound on the modelled loss increase of every allowed solution."""
        return self.values.lower

    @property
    def gap(self) -> float:
        """Upper - lower."""
        return self.values.gap

    @property
    def relative_gap(self) -> float:
        """Gap over the modelled loss increase (over the dense minimum with a linear term)."""
        return self.values.relative_gap

    @property
    def share_of_all(self) -> float:
        """Gap over the cost of pruning everything."""
        return self.values.share_of_all

    @property
    def proof(self) -> str:
        """What proves the bound."""
        return self.bound.proof if self.log is None else self.log.name

    @property
    def history(self) -> dict[str, list[list[float]]]:
        """Rows (seconds, value) of the incumbent and of the bound, which begins after it."""
        begin, bound = self.solution.seconds, self.bound
        rows = [[begin + t, value] for t, value in bound.trace.spread()]
        return {
            "incumbent": self.solution.history,
            "bound": [*rows, [begin + bound.seconds, self.lower]],
        }

    def claims(self) -> dict[str, Any]:
        """All claims as JSON-able values."""
        return {
            **asdict(self.values),
            "scope": SCOPE,
            "bound_proof": self.proof,
            "relaxation_upper": _finite(self.bound.relaxation_upper),
            "screening": self.screening.counts,
            "gap_in_gains": _finite(self.screening.gap_in_gains),
            "method": self.solution.method,
            "status": str(self.solution.status),
            "seconds": self.solution.seconds,
            "bound_seconds": self.bound.seconds,
            "history": self.history,
            "version": __version__,
            "problem": problem_specification(self.solution.problem),
        }

    def save(self, path: str | Path, *, include_problem: bool = True) -> None:
        """Write one sealed file.

        With ``include_problem=False`` the data are left to :func:`save_problem`.
        """
        claims = self.claims()
        problem = {k: a for k, a in self.arrays.items() if k.startswith("problem.")}
        claims["problem_hash"] = array_hash(problem, claims["problem"])
        kept = dict(self.arrays)
        if not include_problem:
            kept = {k: a for k, a in kept.items() if k not in problem}
        write_sealed(path, kept, claims)

    def __str__(self) -> str:
        v = self.values
        return (
            f"objective {v.upper:.6g}, bound {v.lower:.6g} ({self.proof}), "
            f"gap {100 * v.relative_gap:.4g} %, {v.nnz} of {v.p} weights kept, "
            f"{self.screening.counts['kept']} proven kept and "
            f"{self.screening.counts['pruned']} proven pruned ({SCOPE})"
        )


def certify(
    solution: Solution,
    *,
    bound: Bound | None = None,
    tol: float = 3e-5,
    target_gap: float | None = None,
    time_limit: float | None = None,
    log: ReductionProof | BlockProof | None = None,
) -> Certificate:
    """Prove how far a solution is from the best possible one of its problem.

    Parameters
    ----------
    solution : Solution
        A feasible solution.
    bound : Bound, optional
        A bound already at hand; otherwise the solution's own evidence, or where it brings none
        ``dual_bound``, starting from the solution.
    tol, target_gap, time_limit
        Passed to ``dual_bound``.
    log : ReductionProof or BlockProof, optional
        Of :func:`chita_opt.exact.hybrid` for the same problem; its own witness is the bound. It is
        replayed here, and what the replay proves is claimed.

    Raises
    ------
    CertificateError
        If the solution is not allowed, or lies below the bound by more than rounding (which would
        be a bug, and is never clipped).
    """
    problem = solution.problem
    if not solution.is_feasible:
        raise CertificateError(
            f"the weights of {solution.method} keep {solution.nnz} weights in a pattern outside "
            f"{problem.supports.name}; only allowed solutions are certified"
        )
    if bound is None and log is None and solution.evidence is not None:
        bound, log = _read_evidence(solution.evidence)
    if log is not None:
        bound = log.bound
    if bound is None:
        bound = dual_bound(
            problem, start=solution, tol=tol, target_gap=target_gap, time_limit=time_limit
        )
    arrays = certificate_arrays(solution, bound)
    if log is not None:
        arrays |= log_arrays(log, arrays, problem_specification(problem))
    values = evaluate(arrays, problem_specification(problem))
    if values.lower > values.upper:
        raise CertificateError(
            f"bound {values.lower!r} exceeds objective {values.upper!r}: please report this"
        )
    screening = screen(problem, bound, values.upper)
    return Certificate(solution, bound, values, screening, arrays, log)


def _read_evidence(evidence: object) -> tuple[Bound | None, ReductionProof | BlockProof | None]:
    """A bound, or logs that bring one."""
    from chita_opt.exact.result import BlockProof, ReductionProof  # the room starts slowly

    if isinstance(evidence, Bound):
        return evidence, None
    if isinstance(evidence, ReductionProof | BlockProof):
        return evidence.bound, evidence
    raise CertificateError(f"{type(evidence).__name__} is no evidence that a certificate can hold")


def certificate_arrays(solution: Solution, bound: Bound) -> dict[str, np.ndarray]:
    """The arrays of a certificate file."""
    problem = solution.problem
    point = dual_point(problem, bound.witness, bound.split)
    arrays = problem_arrays(problem)
    arrays |= solution_arrays(solution)
    arrays["bound.witness"] = _numpy(bound.witness)
    arrays["bound.multipliers"] = problem.supports.multipliers(point.gains)
    if bound.split is not None:
        arrays["bound.split"] = _numpy(bound.split)
    return arrays | dense_arrays(problem)


def dense_arrays(problem: Problem) -> dict[str, np.ndarray]:
    """The minimiser over all weights, which relative gaps refer to; none without a linear term."""
    if not bool(problem.g.any()):
        return {}
    every = torch.ones(problem.p, dtype=torch.bool, device=problem.device)
    dense = problem.curvature.support_solver(problem.separable, every)
    return {"solution.dense": _numpy(dense.weights)}


def problem_arrays(problem: Problem) -> dict[str, np.ndarray]:
    """The data of a problem by their names in a file."""
    rows = problem.supports.rows()
    arrays = {f"problem.curvature.{k}": _numpy(a) for k, a in problem.curvature.arrays().items()}
    return arrays | {
        "problem.w_bar": _numpy(problem.w_bar),
        "problem.g": _numpy(problem.g),
        "problem.rho": _numpy(problem.rho),
        "problem.rows.h": rows.h,
        **_entries("problem.rows", rows.G),
        **(_auxiliary_rows(rows) if rows.q else {}),
    }


def _entries(name: str, matrix: csr_array) -> dict[str, np.ndarray]:
    found = matrix.tocoo()
    return {
        f"{name}.row": found.row.astype(np.int64),
        f"{name}.column": found.col.astype(np.int64),
        f"{name}.value": found.data.astype(np.float64),
    }


def _auxiliary_rows(rows: LinearRows) -> dict[str, np.ndarray]:
    name = "problem.rows.auxiliary"
    return {f"{name}.size": np.array([rows.q], dtype=np.int64), **_entries(name, rows.E)}


def solution_arrays(solution: Solution) -> dict[str, np.ndarray]:
    """The weights of a solution, and the family's auxiliary values for them."""
    arrays = {"solution.w": _numpy(solution.w)}
    u = solution.problem.supports.auxiliary(solution.mask)
    return arrays | ({"solution.auxiliary": u.astype(np.float64)} if len(u) else {})


def problem_specification(problem: Problem) -> dict[str, Any]:
    """JSON-able description of curvature and family."""
    described = {
        "curvature": dict(problem.curvature.specification),
        "supports": dict(problem.supports.specification),
    }
    return dict(json.loads(json.dumps(described)))


def save_problem(problem: Problem, path: str | Path) -> None:
    """Write a problem's data to a sealed file of its own, for certificates saved without it."""
    write_sealed(path, problem_arrays(problem), {"problem": problem_specification(problem)})


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
