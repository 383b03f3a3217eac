r"""Exact exchanges on a small dense quadratic, by the sweep operator.

For :math:`\min_{x}\tfrac12x^\top Qx-q^\top x` with x zero off a set T, the swept tableau holds
:math:`-Q_{TT}^{-1}`, :math:`Q_{TT}^{-1}Q_{TO}`, the Schur complement of the others O, the weights
on T and the pulls on O. With it the gain of every exchange of one weight for another is known
exactly, and moving a weight in or out is a rank-one update (Beaton's sweep; Goodnight 1979).
"""

from __future__ import annotations

import torch
from torch import Tensor


class Tableau:
    """Swept matrix V (m, m), vector u (m,), and which indices are in.

    Parameters
    ----------
    Q : Tensor
        (m, m) positive definite.
    q : Tensor
        (m,).
    inside : Tensor
        (m,) bool, the set T to start from.
    """

    def __init__(self, Q: Tensor, q: Tensor, inside: Tensor) -> None:
        self.inside = inside.clone()
        m = len(q)
        T, O = inside.nonzero().squeeze(1), (~inside).nonzero().squeeze(1)  # noqa: E741
        self.V = torch.empty(m, m, dtype=torch.float64, device=Q.device)
        self.u = torch.empty(m, dtype=torch.float64, device=Q.device)
        L = torch.linalg.cholesky(Q[T[:, None], T[None, :]])
        inverse = torch.cholesky_inverse(L) if len(T) else Q.new_zeros(0, 0)
        B = inverse @ Q[T[:, None], O[None, :]]
        weights = inverse @ q[T]
        self.V[T[:, None], T[None, :]] = -inverse
        self.V[T[:, None], O[None, :]] = B
        self.V[O[:, None], T[None, :]] = B.T
        self.V[O[:, None], O[None, :]] = Q[O[:, None], O[None, :]] - Q[O[:, None], T[None, :]] @ B
        self.u[T] = weights
        self.u[O] = q[O] - Q[O[:, None], T[None, :]] @ weights
        self.value = -0.5 * float(q[T] @ weights)

    @classmethod
    def swept(cls, V: Tensor, u: Tensor, inside: Tensor, value: float) -> Tableau:
        """A tableau whose entries are known already, for the set ``inside``."""
        tableau = cls.__new__(cls)
        tableau.inside, tableau.V, tableau.u, tableau.value = inside.clone(), V, u, value
        return tableau

    def toggle(self, j: int) -> None:
        """Move index j in or out: a rank-one update of the rest, then its own row and column."""
        pivot, own = float(self.V[j, j]), float(self.u[j])
        sign = -1.0 if bool(self.inside[j]) else 1.0
        row = self.V[j].clone()
        self.value -= 0.5 * own * own / pivot
        self.u -= row * (own / pivot)
        self.V.addr_(row, row, alpha=-1.0 / pivot)
        row *= sign / pivot
        self.V[j] = row
        self.V[:, j] = row
        self.V[j, j] = -1.0 / pivot
        self.u[j] = sign * own / pivot
        self.inside[j] = sign > 0

    def removal_costs(self) -> Tensor:
        """Cost of taking each inside index out; infinite outside."""
        cost = -0.5 * self.u.square() / self.V.diagonal()
        return torch.where(self.inside, cost, torch.inf)

    def best_exchanges(
        self, allowed: Tensor | None, out: Tensor, into: Tensor, count: int = 1
    ) -> list[tuple[float, int, int]]:
        """The ``count`` largest decreases over pairs (leave ``out[a]``, enter ``into[b]``).

        Only pairs that are ``allowed``, best first, as (change, leaving, entering).
        """
        inverse = -self.V.diagonal()[out]
        ratio = self.u[out] / inverse
        cross = self.V.index_select(0, out).index_select(1, into)
        gain = torch.addcmul(self.u[into][None, :], cross, ratio[:, None]).square_()
        bend = cross.square_().div_(inverse[:, None]).add_(self.V.diagonal()[into][None, :])
        change = gain.div_(bend).mul_(-0.5).add_((0.5 * self.u[out] * ratio)[:, None])
        return cheapest_pairs(change, allowed, out, into, count)

    def exchange(self, a: int, b: int) -> float:
        """Change of the value when ``a`` leaves and ``b`` enters."""
        inverse, own = -float(self.V[a, a]), float(self.u[a])
        cross = float(self.V[a, b])
        pull, bend = float(self.u[b]) + cross * own / inverse, float(self.V[b, b])
        return 0.5 * own * own / inverse - 0.5 * pull * pull / (bend + cross * cross / inverse)


def cheapest_pairs(
    change: Tensor, allowed: Tensor | None, out: Tensor, into: Tensor, count: int
) -> list[tuple[float, int, int]]:
    """The ``count`` smallest allowed entries of ``change`` (overwritten), ascending.

    As (change, leaving, entering); the rows belong to ``out``, the columns to ``into``.
    """
    if allowed is not None:
        change.masked_fill_(~allowed, torch.inf)
    best = change.flatten().topk(min(count, change.numel()), largest=False)
    rows = out[best.indices // len(into)].tolist()
    columns = into[best.indices % len(into)].tolist()
    return list(zip(best.values.tolist(), rows, columns, strict=True))
