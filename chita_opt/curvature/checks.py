"""Checks of curvature data, with errors that say what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from chita_opt.errors import CurvatureError

# A float32 Gram matrix of a rank-deficient set has eigenvalues down to about -1e-7 of the largest.
_ROUNDING = 1e-6


def finite(values: Tensor, what: str) -> Tensor:
    """Refuse NaN and infinity, naming the first offender."""
    if not values.is_floating_point():
        raise CurvatureError(f"{what} has type {values.dtype}; give float32 or float64")
    # cheap first test; a finite sum can't hide one, and flattening a transposed view copies it
    if not bool(torch.isfinite(values.sum())):
        flat = values.reshape(-1)
        bad = (~torch.isfinite(flat)).nonzero()
        if len(bad):
            position = int(bad[0])
            raise CurvatureError(
                f"{what} holds {float(flat[position])} at flat position {position}; "
                "drop that sample or lower the loss scale"
            )
    return values


def positive_semidefinite(H: Tensor, what: str) -> Tensor:
    """Return H as symmetric float64, refusing what is not positive semidefinite to rounding."""
    if H.ndim != 2 or H.shape[0] != H.shape[1]:
        raise CurvatureError(f"{what} has shape {tuple(H.shape)}; it must be square")
    finite(H, what)
    matrix = H.double()
    scale = float(matrix.diagonal().abs().max()) if len(matrix) else 0.0
    skew = float((matrix - matrix.T).abs().max()) if len(matrix) else 0.0
    if skew > _ROUNDING * max(scale, 1e-300):
        raise CurvatureError(
            f"{what} is not symmetric: |H - H'| reaches {skew:.3g}; pass (H + H') / 2"
        )
    matrix = matrix if skew == 0.0 else 0.5 * (matrix + matrix.T)
    shift = _ROUNDING * max(float(matrix.diagonal().abs().sum()), 1e-300)
    eye = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    if int(torch.linalg.cholesky_ex(matrix + shift * eye).info) != 0:
        lowest = float(torch.linalg.eigvalsh(matrix)[0])
        raise CurvatureError(
            f"{what} is indefinite: its smallest eigenvalue is {lowest:.6g}. Use a Gauss-Newton or "
            f"Fisher matrix, or add {-lowest:.3g} to the diagonal"
        )
    return matrix
