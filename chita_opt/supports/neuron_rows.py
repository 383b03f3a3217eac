"""The linear rows of neurons that are kept or dropped whole."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from chita_opt.supports.base import Array
from chita_opt.supports.linear_rows import LinearRows


def partners(groups: Array, caps: Array) -> Array:
    """(N, G): how many neurons of a group a kept neuron may have beside itself."""
    return np.maximum(caps[None, :] - (groups[:, None] == np.arange(len(caps))), 0)


def neuron_rows(low: Array, place: Array, ends: Array, groups: Array, caps: Array) -> LinearRows:
    """Rows of the weights, of the groups, then of the pairs; u holds neurons, then pairs.

    Parameters
    ----------
    low : ndarray
        (p,) a neuron of each weight, -1 where it has none.
    place : ndarray
        (p,) the pair of each weight, -1 where it has one neuron or none.
    ends : ndarray
        (Q, 2) the neurons of each pair.
    groups, caps : ndarray
        (N,) group of each neuron; (G,) most neurons of each group.
    """
    count, top, q = len(groups), len(caps), len(ends)
    gated = np.flatnonzero(low >= 0)
    m, both = len(gated), np.arange(2 * q)
    neuron, other = ends.reshape(-1), ends[:, ::-1].reshape(-1)
    pair = count + np.repeat(np.arange(q), 2)
    under, product = m + top, m + top + 2 * q  # first rows of y <= h, and of the products
    target = np.where(place[gated] < 0, low[gated], count + place[gated])
    entries = [
        (np.arange(m), target, -np.ones(m)),
        (m + groups, np.arange(count), np.ones(count)),
        (under + both, pair, np.ones(2 * q)),
        (under + both, neuron, -np.ones(2 * q)),
        (product + neuron * top + groups[other], pair, np.ones(2 * q)),
    ]
    if q:
        limits = partners(groups, caps).reshape(-1).astype(np.float64)
        own = np.arange(count * top)
        entries.append((product + own, np.repeat(np.arange(count), top), -limits))
    row, column, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    height = product + (count * top if q else 0)
    E = csr_array((values, (row, column)), shape=(height, count + q))
    G = csr_array((np.ones(m), (np.arange(m), gated)), shape=(height, len(low)))
    h = np.zeros(height)
    h[m : m + top] = caps
    return LinearRows(G, h, E)
