"""Check a certificate with numpy alone: no solver, no PyTorch, no trust in who wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chita_opt.certificates.arithmetic import Enclosed, dual_value, objective
from chita_opt.certificates.container import array_hash, read_sealed
from chita_opt.certificates.problem_data import (
    StoredProblem,
    allowed_weights,
    read_problem,
    vector,
)
from chita_opt.errors import CertificateError

Array = np.ndarray
_NUMBERS = ("lower", "upper", "gap", "relative_gap", "share_of_all", "nnz", "p")
Evaluation = Callable[[Mapping[str, Array], Mapping[str, Any]], "Verification"]
SCOPE = "about the quadratic model of the loss, not about the network's accuracy"


@dataclass(frozen=True)
class Verification:
    """What the check recomputed.

    Attributes
    ----------
    upper, lower : float
        Objective of the weights and proven bound, both on the safe side of rounding.
    gap, relative_gap : float
        upper - lower, and that over the modelled loss increase (over the dense minimum where a
        linear term is present).
    share_of_all : float
        Gap over the cost of pruning everything.
    nnz, p : int
        Weights kept, and in all.
    allowance : float
        Rounding allowance contained in the bound.
    """

    upper: float
    lower: float
    gap: float
    relative_gap: float
    share_of_all: float
    nnz: int
    p: int
    allowance: float


def verify_file(path: str | Path, problem_path: str | Path | None = None) -> Verification:
    """Recompute everything that a certificate file claims.

    Parameters
    ----------
    path : str or Path
        A certificate written by ``Certificate.save``.
    problem_path : str or Path, optional
        The problem's own file, if the certificate was saved without its problem.

    Returns
    -------
    Verification
        The recomputed values.

    Raises
    ------
    CertificateError
        If a byte was changed, an array or a claim is missing or malformed (the message names it),
        the problem is missing or another one, the weights are not allowed, or a claim is better
        than what the data give.
    """
    return check_file(path, problem_path, evaluate)


def check_file(
    path: str | Path, problem_path: str | Path | None, evaluated: Evaluation
) -> Verification:
    """Read a file, let ``evaluated`` recompute its values, and compare them with the claims."""
    arrays, claims = read_sealed(path)
    if problem_path is not None:
        more, _ = read_sealed(problem_path)
        arrays |= {k: a for k, a in more.items() if k.startswith("problem.")}
    problem = {k: a for k, a in arrays.items() if k.startswith("problem.")}
    if not problem:
        raise CertificateError(f"{path} was saved without its problem; name the problem's file too")
    described = _claim(claims, "problem", dict)
    if array_hash(problem, described) != _claim(claims, "problem_hash", str):
        raise CertificateError(f"{path} was made for another problem: the data's hash differs")
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and inf are refused below
            result = evaluated(arrays, described)
    except (ValueError, IndexError, ArithmeticError) as error:
        if isinstance(error, CertificateError):
            raise
        raise CertificateError(f"{path} is malformed: {error!r}") from error
    _check_claims(claims, result)
    return result


def evaluate(arrays: Mapping[str, Array], specification: Mapping[str, Any]) -> Verification:
    """Upper and lower value from the arrays of a certificate; refuses weights that don't fit."""
    problem = read_problem(arrays, specification)
    data, w = problem.data, allowed_weights(arrays, problem)
    split = vector(arrays, "bound.split", problem.p) if "bound.split" in arrays else None
    y = vector(arrays, "bound.multipliers", len(problem.rows.h))
    lower = dual_value(data, vector(arrays, "bound.witness"), split, problem.rows, y)
    logged = logged_lower(arrays, specification, problem)
    lower = max(lower, Enclosed(logged, 0.0), key=lambda e: e.below)
    upper = objective(data, w)
    everything = objective(data, np.zeros_like(w))
    dense = dense_minimum(arrays, problem)
    return summarise(upper, lower, everything, dense, int(np.count_nonzero(w)), len(w))


def logged_lower(
    arrays: Mapping[str, Array], specification: Mapping[str, Any], problem: StoredProblem
) -> float:
    """What a file's logs prove beyond its one witness: a reduction, or trees of the blocks."""
    from chita_opt.certificates.block_proof import replay_blocks  # both build on this module
    from chita_opt.certificates.reduction import reduced_lower

    if any(name.startswith("reduction.") for name in arrays):
        return reduced_lower(arrays, problem)
    if not any(name.startswith("blocks.") for name in arrays):
        return -float("inf")
    price = float(vector(arrays, "blocks.price", 1)[0]) if "blocks.price" in arrays else None
    claimed = float(vector(arrays, "blocks.lower", 1)[0])
    proven = replay_blocks(arrays, specification, price).lower
    if not claimed <= proven:
        raise CertificateError(f"the blocks prove {proven:.12g} only, {claimed:.12g} is claimed")
    return claimed


def dense_minimum(arrays: Mapping[str, Array], problem: StoredProblem) -> Enclosed:
    """Objective at the stored minimiser over all weights; zero without a linear term."""
    if not problem.data.g.any():
        return Enclosed(0.0, 0.0)
    return objective(problem.data, vector(arrays, "solution.dense", problem.p))


def increase(upper: Enclosed, dense: Enclosed) -> float:
    """What relative gaps divide by: the modelled loss increase, over the dense minimum if lower."""
    return abs(upper.above) if dense.value == 0.0 else upper.above - dense.above


def summarise(
    upper: Enclosed, lower: Enclosed, everything: Enclosed, dense: Enclosed, nnz: int, p: int
) -> Verification:
    """Gaps from enclosed values, each rounded against the claim."""
    gap = max(upper.above - lower.below, 0.0)
    return Verification(
        upper.above, lower.below, gap, ratio(gap, increase(upper, dense)),
        ratio(gap, abs(everything.value)), nnz, p, lower.allowance,
    )  # fmt: skip


def ratio(part: float, whole: float) -> float:
    """``part / whole``; 0 if both vanish, infinite if only the whole does."""
    if whole > 0.0:
        return part / whole
    return 0.0 if part <= 0.0 else float("inf")


def _check_claims(claims: Mapping[str, Any], found: Verification) -> None:
    """Refuse claims that are better than the recomputed values by more than rounding.

    Written so that NaN, which compares false with everything, is refused.
    """
    values = {name: _number(claims, name) for name in _NUMBERS}
    slack = 2.0 * found.allowance + 1e-15 * (abs(found.upper) + abs(found.lower))
    if not values["lower"] <= found.lower + slack:
        raise CertificateError(
            f"the claimed bound {claims['lower']:.12g} exceeds the recomputed {found.lower:.12g}"
        )
    if not values["upper"] >= found.upper - slack - 1e-12 * abs(found.upper):
        raise CertificateError(
            f"the claimed objective {claims['upper']:.12g} is below the recomputed "
            f"{found.upper:.12g}"
        )
    floor = 2.0 * slack + 1e-12 * abs(found.upper)
    for name, least in (("gap", floor), ("relative_gap", 1e-12), ("share_of_all", 1e-12)):
        own = getattr(found, name)
        if not values[name] >= own * (1.0 - 1e-6) - least:
            raise CertificateError(
                f"the claimed {name} {values[name]:.6g} is below the recomputed {own:.6g}"
            )
    for name, what in (("nnz", "kept weights"), ("p", "weights")):
        if values[name] != getattr(found, name):
            raise CertificateError(
                f"{values[name]} {what} are claimed, {getattr(found, name)} found"
            )


def _number(claims: Mapping[str, Any], name: str) -> float:
    """A claimed number; a whole one must not exceed what float64 holds exactly."""
    value = claims.get(name)
    if type(value) is float or (type(value) is int and abs(value) <= 2**53):
        return float(value)
    raise CertificateError(f"the claim {name!r} is missing or no number")


def _claim(claims: Mapping[str, Any], name: str, kind: type) -> Any:
    """One claim, of the type that it must have."""
    value = claims.get(name)
    if type(value) is not kind:
        raise CertificateError(f"the claim {name!r} is missing or no {kind.__name__}")
    return value
