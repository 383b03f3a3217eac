"""Products with the Hessian and parts of it, in numpy, with a bound on every rounding error."""

from __future__ import annotations

import numpy as np

from chita_opt.certificates.arithmetic import (
    BLOCK,
    Block,
    QuadraticData,
    adjoint,
    blocks_of,
    forward,
    gamma,
    gram,
)

Array = np.ndarray
_U = 2.0**-53


def hessian_part(data: QuadraticData, index: Array) -> tuple[Array, Array]:
    """H = C + diag(rho) on ``index`` (m,), and a (m,) whose products bound its entries' errors.

    The error of entry i, j is at most a_i a_j: that of a product of columns is at most gamma times
    their lengths, so the error as a matrix is at most the sum of the squares, far below what the
    largest entry's error gives.
    """
    H, squares, start = np.zeros((len(index), len(index))), np.zeros(len(index)), 0
    for block in blocks_of(data.specification, data.curvature):
        size = block.size // block.rows
        for _ in range(block.rows):
            here = np.flatnonzero((index >= start) & (index < start + size))
            H[np.ix_(here, here)], squares[here] = _part_of(block, index[here] - start)
            start += size
    H[np.diag_indices(len(index))] += data.rho[index]
    return H, np.sqrt(squares + _U * np.abs(np.diag(H))) * (1.0 + 4 * _U)


def _part_of(block: Block, index: Array) -> tuple[Array, Array]:
    """Entries, and squares of which sqrt(e_i e_j) bounds the error of entry i, j."""
    if block.columns is None:
        assert block.H is not None
        return block.H[np.ix_(index, index)], np.zeros(len(index))
    return gram(Block(block.columns[index], block.scale, None, 1, len(index)))


def hessian_product(data: QuadraticData, x: Array) -> tuple[Array, Array]:
    """H x (p,), H = C + diag(rho), and a bound on the error of every entry."""
    values, errors, start = [], [], 0
    for block in blocks_of(data.specification, data.curvature):
        part = x[start : start + block.size]
        if block.columns is None:
            assert block.H is not None
            X = part.reshape(block.rows, -1)
            q = (X @ block.H).reshape(-1)
            error = gamma(len(block.H) + 2) * (np.abs(X) @ np.abs(block.H)).reshape(-1)
        else:
            r, r_error = forward(block, part)
            q, error = adjoint(block, r)
            error += _adjoint_size(block, r_error)
        values.append(q)
        errors.append(error)
        start += block.size
    ridge, q = data.rho * x, np.concatenate(values)
    return q + ridge, np.concatenate(errors) + 4 * _U * (np.abs(q) + np.abs(ridge))


def _adjoint_size(block: Block, error: Array) -> Array:
    """sqrt(scale) |A|'error: what errors of an image leave in its pullback."""
    assert block.columns is not None
    size = np.empty(block.size)
    for i in range(0, block.size, BLOCK):
        part = block.columns[i : i + BLOCK].astype(np.float64)
        size[i : i + BLOCK] = np.abs(part, out=part) @ error
    return block.scale**0.5 * size * (1.0 + gamma(len(error) + 4))
