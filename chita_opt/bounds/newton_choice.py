"""Which Newton system fits a factor."""

from __future__ import annotations

from chita_opt.bounds.newton import MatrixFreeNewton, NewtonSystem, SampleSpaceNewton
from chita_opt.bounds.row_newton import CoupledNewton, RowNewton
from chita_opt.curvature.factors import BlockFactor, ColumnFactor, Factor, RowFactor


def newton_system(factor: Factor, memory_limit: float) -> NewtonSystem:
    """Pick the system by the factor's shape and the memory it may use (bytes)."""
    if isinstance(factor, BlockFactor):
        share = memory_limit / max(_bytes(factor), 1.0)
        children = [newton_system(f, share * _bytes(f)) for f in factor.parts]
        return CoupledNewton(factor, children, [f.size for f in factor.parts])
    if _bytes(factor) <= memory_limit:
        if isinstance(factor, ColumnFactor):
            return SampleSpaceNewton(factor)
        if isinstance(factor, RowFactor):
            return CoupledNewton(factor, [RowNewton(factor)], [factor.size])
    return MatrixFreeNewton(factor)


def _bytes(factor: Factor) -> float:
    """What the systems of a factor take: three square matrices of each part's own dual."""
    if isinstance(factor, BlockFactor):
        return sum(_bytes(f) for f in factor.parts)
    if isinstance(factor, RowFactor):
        return 24.0 * factor.rows * factor.width**2
    return 24.0 * factor.dual_size**2
