r"""The empirical Fisher matrix without coupling between the rows of the layers' weights.

With gradient rows A (n, p) and :math:`A_r` the columns of one row r (one output unit, of a
convolution one output channel),

.. math:: C=\mathrm{diag}_r\big(\tfrac1nA_r^\top A_r\big),

which is :math:`A^\top A/n` with every entry between two rows set to zero. A problem over it falls
into rows, joined only by the budget.
"""

from __future__ import annotations

from torch import Tensor

from chita_opt.curvature import Curvature, Dense, LowRank
from chita_opt.nn.layer_map import LayerMap


def row_blocks(
    A: Tensor, layer_map: LayerMap, *, memory_limit: int | None = None
) -> dict[str, list[Curvature]]:
    """One block for every row of every layer, by layer name.

    A row with fewer weights than there are gradients is stored as its matrix, which the methods
    would form anyway; a wider one as its gradients, a view of ``A`` that costs nothing.

    Parameters
    ----------
    A : Tensor
        (n, p) gradient rows, float32 or float64, as :func:`chita_opt.nn.gradient_rows` gives them.
    layer_map : LayerMap
        The layers, p weights in all. A bias or a norm has one weight a row.
    memory_limit : int, optional
        Bytes for ``A`` and the matrices together; rows whose matrices would exceed it stay views.
    """
    n, left = len(A), None
    if memory_limit is not None:
        left = memory_limit - A.nelement() * A.element_size()
    found: dict[str, list[Curvature]] = {}
    for item in layer_map:
        rows, width = item.rows_cols
        own: list[Curvature] = []
        for r in range(rows):
            start = item.start + r * width
            columns, need = A[:, start : start + width], 8 * width**2
            if width < n and (left is None or need <= left):
                left = None if left is None else left - need
                wide = columns.double()
                own.append(Dense(wide.T @ wide / n))
            else:
                own.append(LowRank(columns, 1.0 / n))
        found[item.name] = own
    return found


__all__ = ["row_blocks"]
