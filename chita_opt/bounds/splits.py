r"""Diagonals that may be moved from the curvature to the ridge.

The dual bound grows with the separable part d = rho + e, and e is free as long as
:math:`C-\mathrm{diag}(e)\succeq0`. For a positive shape s the largest multiple is
:math:`t=\lambda_{\min}(S^{-1/2}CS^{-1/2})`. Which shape is best depends on the instance, so several
are offered and the best bound is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chita_opt.curvature import BlockDiagonal, Curvature, Dense, LowRank, SharedRows
from chita_opt.curvature.split_rows import SplitRows
from chita_opt.errors import CurvatureError
from chita_opt.problem import Problem

_EPS = torch.finfo(torch.float64).eps
_LEAST = 1e-200  # a matrix of zeros has no rounding, and no factor without a shift
_MAX_MATRIX = 3000  # largest matrix whose eigenvalues are taken for a split


def rounding_margin(H: Tensor) -> float:
    """What a float64 Cholesky factorisation of H may hide (Rump 2006), with room to spare."""
    return 4.0 * (len(H) + 2) * _EPS * float(H.diagonal().abs().sum())


def proven_semidefinite(H: Tensor) -> bool:
    """Whether H is positive semidefinite beyond float64 rounding: H - margin*I has a factor."""
    shifted = H.clone()
    shifted.diagonal().sub_(rounding_margin(H))
    return int(torch.linalg.cholesky_ex(shifted).info) == 0


def safe_split(curvature: Curvature, e: Tensor | None = None) -> Tensor | None:
    """Lower ``e`` (p,) by a uniform shift until C - diag(e) is proven positive semidefinite.

    Gradients need no proof: for them None stands for no split. Explicit matrices are known only
    to rounding, so even without a split they get a tiny negative one.
    """
    if isinstance(curvature, BlockDiagonal):
        if all(isinstance(b, LowRank) for b in curvature.blocks) and e is None:
            return None
        parts = []
        for block, s in curvature.slices():
            part = safe_split(block, None if e is None else e[s])
            zero = torch.zeros(block.size, dtype=torch.float64, device=block.device)
            parts.append(zero if part is None else part)
        return torch.cat(parts)
    if isinstance(curvature, LowRank) and (e is None or not bool(e.any())):
        return e
    H, rows = _matrix(curvature)
    if e is not None and not _shared(e, rows):
        return torch.cat([own - _shift(H, own) for own in e.reshape(rows, -1)])
    own = torch.zeros(len(H), dtype=torch.float64, device=H.device) if e is None else e[: len(H)]
    return (own - _shift(H, own) - _forming_error(curvature, H)).repeat(rows)


def _shared(e: Tensor, rows: int) -> bool:
    """Whether all rows have the split of the first."""
    return rows == 1 or bool((e.reshape(rows, -1) == e[: len(e) // rows]).all())


def _forming_error(curvature: Curvature, H: Tensor) -> float:
    """What the rounding of A'A may add to an eigenvalue; nothing where H is the data."""
    if not isinstance(curvature, LowRank):
        return 0.0
    n = curvature.A.shape[0]
    return 2.0 * len(H) * (n + 4) * _EPS * float(H.diagonal().max())


def _shift(H: Tensor, own: Tensor) -> float:
    """A multiple of the rounding margin that makes H - diag(own) + shift*I provable."""
    Q = H.clone()
    Q.diagonal().sub_(own)
    shift = max(2.0 * rounding_margin(Q), _LEAST)
    for _ in range(40):
        trial = Q.clone()
        trial.diagonal().add_(shift)
        if proven_semidefinite(trial):
            return shift
        shift *= 4.0
    raise CurvatureError("no shift makes the split curvature positive semidefinite; check H")


def candidate_splits(problem: Problem) -> dict[str, Tensor]:
    """Feasible diagonals e (p,) by name, before the proof shift; empty where none helps."""
    if isinstance(problem.curvature, BlockDiagonal):
        return _block_candidates(problem)
    found = _matrix_candidates(problem.curvature, problem.rho)
    return {name: e for name, e in found.items() if float(e.max()) > 0.0}


def split_problem(problem: Problem, e: Tensor) -> Problem:
    """The same problem with diag(e) moved to the ridge; for matrices, rows and small gradients."""
    curvature = less_diagonal(problem.curvature, e)
    return Problem(curvature, problem.w_bar, problem.rho + e, problem.supports, problem.g)


def less_diagonal(curvature: Curvature, e: Tensor) -> Curvature:
    """C - diag(e): gradients stay gradients where e is zero, and become a matrix elsewhere.

    Rows that share a matrix and differ in their splits share it still.
    """
    if isinstance(curvature, BlockDiagonal):
        return BlockDiagonal([less_diagonal(b, e[s]) for b, s in curvature.slices()])
    if isinstance(curvature, LowRank) and not bool(e.any()):
        return curvature
    H, rows = _matrix(curvature)
    if isinstance(curvature, SharedRows) and not _shared(e, rows):
        return SplitRows(curvature, e.reshape(rows, -1))
    Q = H - torch.diag(e[: len(H)])
    return SharedRows(Q, rows) if isinstance(curvature, SharedRows) else Dense(Q)


def _matrix(curvature: Curvature) -> tuple[Tensor, int]:
    """The explicit matrix and how many rows share it."""
    if isinstance(curvature, SharedRows):
        return curvature.H, curvature.rows
    return (curvature.H if isinstance(curvature, Dense) else curvature.dense()), 1


def _matrix_candidates(curvature: Curvature, rho: Tensor) -> dict[str, Tensor]:
    """Multiples of the identity, of diag(H) and of 1/diag(H^-1), and one for weak directions.

    Where H is singular or nearly so (inputs that never vary, or always together), no multiple is
    positive. Half of the ridge is then left in the curvature: of H + diag(rho / 2) the multiple of
    1/diag(inverse) is small only where H is weak.
    """
    if curvature.size > _MAX_MATRIX and not isinstance(curvature, SharedRows):
        return {}
    if isinstance(curvature, LowRank) and curvature.A.shape[0] < curvature.size:
        return {}  # rank-deficient by construction: only the zero split is uniform
    H, rows = _matrix(curvature)
    values, vectors = torch.linalg.eigh(H)
    half, found = 0.5 * rho.reshape(rows, -1).amin(0), {}
    if float(values[0]) > 2.0 * len(H) * _EPS * float(values[-1]):
        shapes = {
            "uniform": torch.ones_like(values),
            "diagonal": H.diagonal(),
            "conditional": 1.0 / (vectors.square() / values).sum(1),
        }
        found = {name: _largest_multiple(H, s) for name, s in shapes.items()}
    if float(half.min()) > max(float(values[0]), 2.0 * len(H) * _EPS * float(values[-1])):
        M = H + torch.diag(half)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(M))
        found["half_ridge"] = _largest_multiple(M, 1.0 / inverse.diagonal()) - half
    return {name: e.repeat(rows) for name, e in found.items()}


def _largest_multiple(H: Tensor, shape: Tensor) -> Tensor:
    root = shape.sqrt()
    lowest = torch.linalg.eigvalsh(H / root[:, None] / root[None, :])[0]
    return shape * (0.9999 * float(lowest))


def _block_candidates(problem: Problem) -> dict[str, Tensor]:
    curvature = problem.curvature
    assert isinstance(curvature, BlockDiagonal)
    found = [_matrix_candidates(b, problem.rho[s]) for b, s in curvature.slices()]
    names = dict.fromkeys(name for f in found for name in f)
    zeros = [torch.zeros(b.size, dtype=torch.float64, device=b.device) for b in curvature.blocks]
    pairs = list(zip(found, zeros, strict=True))
    joined = {name: torch.cat([_nearest(f, name, zero) for f, zero in pairs]) for name in names}
    if {"conditional", "half_ridge"} <= set(joined):
        if torch.equal(joined["conditional"], joined["half_ridge"]):
            del joined["half_ridge"]
    return joined


def _nearest(found: dict[str, Tensor], name: str, zero: Tensor) -> Tensor:
    """A block's candidate of that name, else the one made in like manner, else none."""
    other = {"half_ridge": "conditional", "conditional": "half_ridge"}.get(name, name)
    return found.get(name, found.get(other, zero))
