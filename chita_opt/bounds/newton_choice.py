"""Which Newton system fits a factor."""

from __future__ import annotations

from chita_opt.bounds.newton import MatrixFreeNewton, NewtonSystem, SampleSpaceNewton
from chita_opt.bounds.row_newton import CoupledNewton, RowNewton
from chita_opt.curvature.factors import BlockFactor, ColumnFactor, Factor, RowFactor


def newton_system(factor: Factor, memory_limit: float) -> NewtonSystem:
    """Pick the system by the factor's shape and the memory it may use (bytes)."""
    if isinstance(factor, ColumnFactor) and 24.0 * factor.dual_size**2 <= memory_limit:
        return SampleSpaceNewton(factor)
    if isinstance(factor, RowFactor):
        if 24.0 * factor.rows * factor.F.shape[0] ** 2 <= memory_limit:
            return CoupledNewton(factor, [RowNewton(factor)], [factor.size])
    if isinstance(factor, BlockFactor):
        share = memory_limit / len(factor.parts)
        children = [newton_system(f, share) for f in factor.parts]
        return CoupledNewton(factor, children, [f.size for f in factor.parts])
    return MatrixFreeNewton(factor)
