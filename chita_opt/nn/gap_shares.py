r"""Where in the network a certified gap comes from.

With the terms of the dual bound (see ``chita_opt.bounds.dual``), displacement x = w - w_bar,
witness v, pull c, gains :math:`\delta_j=c_j^2/2d_j` and multipliers y of the family's rows,
:math:`\pi=G^\top y`, the gap is a sum of terms that are all >= 0:

.. math::
    U-L=\tfrac12(x-v)^\top Q(x-v)
        +\sum_{j\text{ kept}}\Big(\tfrac{d_j}2\big(w_j-\tfrac{c_j}{d_j}\big)^2
            +(\pi_j-\delta_j)^+\Big)
        +\sum_{j\text{ pruned}}(\delta_j-\pi_j)^+ + \text{slack rows}.

The sums over a layer's weights are that layer's share; the first term and the slack rows belong to
the layers together. Where a log raised the bound, the shares are of its one witness's gap.
"""

from __future__ import annotations

import torch

from chita_opt.bounds import dual_point
from chita_opt.certificates import Certificate
from chita_opt.nn.layer_map import LayerMap


def gap_shares(certificate: Certificate, layer_map: LayerMap) -> dict[str, float]:
    """Share of the gap that arises at each layer's weights; what is missing to 1 is joint.

    Parameters
    ----------
    certificate : Certificate
        Of a problem over the flat vector of ``layer_map``.
    layer_map : LayerMap
        The layers.

    Returns
    -------
    dict of str to float
        By layer name, each in [0, 1], with a sum of at most 1; zeros if there is no gap.
    """
    problem, bound = certificate.solution.problem, certificate.bound
    w, mask = certificate.solution.w, certificate.solution.mask
    point = dual_point(problem, bound.witness, bound.split)
    d = problem.rho if bound.split is None else problem.rho + bound.split
    G = problem.supports.rows().G
    prices = torch.from_numpy(G.T @ problem.supports.multipliers(point.gains)).to(w.device)
    kept = 0.5 * d * (w - point.pull / d).square() + (prices - point.gains).clamp_min(0.0)
    terms = torch.where(mask, kept, (point.gains - prices).clamp_min(0.0))
    gap = certificate.gap if certificate.log is None else certificate.upper - point.value
    whole = max(gap, float(terms.sum()))
    if not whole > 0.0:
        return dict.fromkeys(layer_map.names, 0.0)
    return {item.name: float(terms[item.start : item.stop].sum()) / whole for item in layer_map}


__all__ = ["gap_shares"]
