"""The curvature as explicit sparse rows, the form in which modelling languages take it."""

from __future__ import annotations

import numpy as np
from scipy.sparse import block_diag, csr_array, kron

from chita_opt.curvature.factors import BlockFactor, ColumnFactor, Factor, RowFactor
from chita_opt.errors import CurvatureError


def factor_matrix(factor: Factor) -> csr_array:
    """F (m, p) with C = F'F, as a sparse float64 matrix.

    n gradients give min(n, p) rows (more gradients than weights are condensed by a QR
    factorisation); a matrix gives as many rows as its rank.
    """
    if isinstance(factor, ColumnFactor):
        F = factor.columns.T.double().cpu().numpy() * factor.root
        return csr_array(F if F.shape[0] <= F.shape[1] else np.linalg.qr(F, mode="r"))
    if isinstance(factor, RowFactor):
        F = factor.F.double().cpu().numpy()
        return csr_array(kron(np.eye(factor.rows), F))
    if isinstance(factor, BlockFactor):
        return csr_array(block_diag([factor_matrix(part) for part in factor.parts]))
    raise CurvatureError(f"the factor {type(factor).__name__} has no rows to write into a model")
