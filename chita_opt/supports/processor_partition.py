r"""Links between processors are cut: a layer's rows and columns are dealt to p processors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.base import Array, SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.dealing import completed, dealt, inside_parts, one_hot, packed
from chita_opt.supports.linear_rows import LinearRows

_STARTS = 6


def given_partition(row_parts: Tensor, column_parts: Tensor) -> Budget:
    """The family of a partition that is given: weights within one processor, all others cut.

    Parameters
    ----------
    row_parts, column_parts : Tensor
        (rows,) and (cols,) int64, the processor of each output and each input.
    """
    inside = (row_parts[:, None] == column_parts[None, :]).reshape(-1)
    labels = (~inside).to(torch.int64)
    return Budget(labels, torch.tensor([int(inside.sum()), 0]), title="partition given")


@dataclass(frozen=True, eq=False)
class PartitionAnswer:
    """A choice of processors and what HiGHS says about it.

    Attributes
    ----------
    mask : Tensor
        (p,) bool.
    value : float
        Sum of its scores, recomputed.
    solver_bound : float
        The solver's word on the best value; nothing here rests on it.
    optimal : bool
        Whether the solver says that it closed the gap.
    """

    mask: Tensor
    value: float
    solver_bound: float
    optimal: bool


@dataclass(frozen=True, eq=False)
class ProcessorPartition(SupportFamily):
    r"""Outputs i and inputs j lie on processors of equal room; only weights within one are kept.

    .. math:: z_{ij}\le1-a_{iq}+b_{jq},\quad z_{ij}\le1+a_{iq}-b_{jq},\quad
              \sum_qa_{iq}=\sum_qb_{jq}=1,\quad\sum_ia_{iq}\le\lceil R/P\rceil,\quad
              \sum_jb_{jq}\le\lceil C/P\rceil

    The family of Shahhosseini et al., "Partition pruning" (PDP 2020). Choosing the processors is
    balanced co-clustering and **NP-hard**: ``is_exact`` is False. The oracle alternates two
    transportation problems, rows to processors for fixed columns and back, each solved exactly,
    from several starts; :meth:`solve_exactly` gives small layers to HiGHS. ``value_bound`` drops
    the processors: each row keeps at most :math:`\lceil C/P\rceil` and each column at most
    :math:`\lceil R/P\rceil` weights, whose linear program is integral.

    Attributes
    ----------
    shape : (int, int)
        Rows R (outputs) and columns C (inputs).
    parts : int
        Processors P.
    """

    shape: tuple[int, int]
    parts: int
    is_exact = False
    rows_are_tight = False
    binary_auxiliary = True

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.parts < 1 or self.parts > max(self.shape):
            raise SupportError(
                f"a matrix of shape {self.shape} cannot be dealt to {self.parts} processors; give "
                f"between 1 and {max(self.shape)}"
            )

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return self.shape[0] * self.shape[1]

    @property
    def room(self) -> tuple[int, int]:
        """Rows and columns that one processor takes at most."""
        return -(-self.shape[0] // self.parts), -(-self.shape[1] // self.parts)

    @property
    def name(self) -> str:
        """Shape and processors."""
        return f"{self.shape[0]}x{self.shape[1]} on {self.parts} processors"

    @property
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description; says that the oracle is a heuristic."""
        return {
            "family": "processor partition",
            "size": self.size,
            "shape": list(self.shape),
            "parts": self.parts,
            "oracle": "heuristic with a bound (NP-hard)",
        }

    @property
    def max_count(self) -> int:
        """Whole processors first: no deal holds more pairs."""
        counts = [np.diff(np.minimum(np.arange(self.parts + 1) * r, n))
                  for r, n in zip(self.room, self.shape, strict=True)]  # fmt: skip
        return int(counts[0] @ counts[1])

    # -- oracle ---------------------------------------------------------------------------

    def best_support(self, scores: Tensor) -> Tensor:
        """Alternating transportation from several starts; a heuristic."""
        s = self.check_scores(scores).double().cpu().numpy().reshape(self.shape)
        best = max((self._alternated(s, start) for start in self._starts(s)), key=lambda x: x[0])
        return torch.from_numpy(inside_parts(best[1], best[2]).reshape(-1)).to(scores.device)

    def _starts(self, s: Array) -> list[Array]:
        """Processors of the columns: by the leading singular vectors, in order, and at random."""
        count, room = self.shape[1], self.room[1]
        in_order = np.arange(count) // room
        starts = [in_order]
        if s.any():
            vectors = np.linalg.svd(s - s.mean(), full_matrices=False)[2][: self.parts]
            for vector in vectors:
                start = np.empty(count, dtype=np.int64)
                start[np.argsort(vector, kind="stable")] = in_order
                starts.append(start)
        draw = np.random.default_rng(0)
        return starts + [draw.permutation(in_order) for _ in range(_STARTS)]

    def _alternated(self, s: Array, columns: Array) -> tuple[float, Array, Array]:
        value, kept = -1.0, (columns, columns)
        while True:
            rows = dealt(s @ one_hot(columns, self.parts), self.room[0])
            columns = dealt(s.T @ one_hot(rows, self.parts), self.room[1])
            found = float(s[inside_parts(rows, columns)].sum())
            if found <= value * (1.0 + 1e-12):
                return value, *kept
            value, kept = found, (rows, columns)

    def value_bound(self, scores: Tensor) -> float:
        """Row and column counts alone; see the class."""
        s = self.check_scores(scores).double().cpu().numpy()
        return self.rows().bound(s, self.multipliers(scores))

    def solve_exactly(self, scores: Tensor, *, time_limit: float = 60.0) -> PartitionAnswer:
        """The mixed-integer program in HiGHS, for layers of a few hundred weights.

        Raises
        ------
        SupportError
            If HiGHS finds no deal within the time limit.
        """
        s = self.check_scores(scores).double().cpu().numpy()
        rows, scale = self.rows(), float(s.max()) or 1.0
        cost = np.concatenate([-s / scale, np.zeros(rows.q)])
        found = milp(
            cost,
            constraints=LinearConstraint(rows.joint, ub=rows.h),
            integrality=np.ones(len(cost)),
            bounds=Bounds(0, 1),
            options={"time_limit": time_limit, "mip_rel_gap": 0.0},
        )
        if found.x is None:
            raise SupportError(f"HiGHS found no deal of {self.name}: {found.message}")
        mask = torch.from_numpy(found.x[: self.size] > 0.5)
        value = float(s[mask.numpy()].sum())
        return PartitionAnswer(mask, value, -scale * float(found.mip_dual_bound), found.status == 0)

    # -- membership -----------------------------------------------------------------------

    def contains(self, mask: Tensor) -> bool:
        """Whether the connected rows and columns can be dealt to the processors."""
        return self._deal(self.check_mask(mask)) is not None

    def _deal(self, mask: Tensor) -> tuple[Array, Array] | None:
        """Processors of rows and columns that leave every kept weight inside, or None."""
        (count, width), kept = self.shape, mask.cpu().numpy().reshape(self.shape)
        i, j = np.nonzero(kept)
        graph = coo_array((np.ones(len(i)), (i, count + j)), shape=(count + width,) * 2)
        number, label = connected_components(graph, directed=False)
        sizes = np.stack([np.bincount(label[:count], minlength=number),
                          np.bincount(label[count:], minlength=number)], axis=1)  # fmt: skip
        order = np.argsort(-sizes.sum(1), kind="stable")
        tied = [c for c in order.tolist() if sizes[c].min() > 0]
        place = packed(sizes[tied], self.parts, np.array(self.room))
        if place is None:
            return None
        part = np.full(number, -1)
        part[tied] = place
        rows, columns = part[label[:count]], part[label[count:]]
        return completed(rows, self.parts, self.room[0]), completed(
            columns, self.parts, self.room[1]
        )

    def laminar_part(self, mask: Tensor) -> Budget | None:
        """The partition that holds a mask, as given."""
        deal = self._deal(mask)
        return None if deal is None else given_partition(*map(torch.from_numpy, deal))

    @cached_property
    def _linear_rows(self) -> LinearRows:
        """Counts of rows and columns; agreement of both ends; the deal itself."""
        (count, width), P = self.shape, self.parts
        several, p = count + width, self.size
        i, j = np.divmod(np.arange(p), width)
        owner = np.repeat(np.arange(several), P)  # of a_iq and b_jq, row or column
        part = np.tile(np.arange(P), several)
        pair = several + np.arange(p * P)  # the row of (weight, processor)
        end_row = (i[:, None] * P + np.arange(P)).reshape(-1)
        end_column = ((count + j)[:, None] * P + np.arange(P)).reshape(-1)
        room = several + 2 * p * P + np.where(owner < count, part, P + part)
        once = several + 2 * p * P + 2 * P + owner
        u, ones = np.arange(several * P), np.ones(p * P)
        height = several + 2 * p * P + 2 * P + 2 * several
        E = csr_array(
            (np.concatenate([ones, -ones, -ones, ones, np.ones(2 * len(u)), -np.ones(len(u))]),
             (np.concatenate([pair, pair, pair + p * P, pair + p * P, room, once, once + several]),
              np.concatenate([end_row, end_column, end_row, end_column, u, u, u]))),
            shape=(height, several * P),
        )  # fmt: skip
        weights = np.repeat(np.arange(p), P)
        row = np.concatenate([i, count + j, pair, pair + p * P])
        column = np.concatenate([np.arange(p), np.arange(p), weights, weights])
        G = csr_array((np.ones(len(row)), (row, column)), shape=(height, p))
        h = [np.repeat(self.room[::-1], self.shape), np.ones(2 * p * P),
             np.repeat(self.room, P), np.ones(several), -np.ones(several)]  # fmt: skip
        return LinearRows(G, np.concatenate(h).astype(np.float64), E)

    def rows(self) -> LinearRows:
        """Counts, then the agreement of both ends, then the deal; u holds a, then b."""
        return self._linear_rows

    def auxiliary(self, mask: Tensor) -> Array:
        """A deal that leaves every kept weight inside."""
        deal = self._deal(mask)
        if deal is None:
            raise SupportError(f"the mask is not of the family {self.name}")
        return np.concatenate([one_hot(part, self.parts).reshape(-1) for part in deal])

    def multipliers(self, scores: Tensor) -> Array:
        """Prices of the counts alone: the linear program of row and column counts."""
        s = self.check_scores(scores).double().cpu()
        rows, several = self.rows(), sum(self.shape)
        scale = float(s.max()) or 1.0
        counts, h = csr_array(rows.G[:several]), rows.h[:several]
        found = linprog(-s.numpy() / scale, A_ub=counts, b_ub=h, bounds=(0, 1), method="highs")
        if found.status != 0:
            raise SupportError(f"the linear program of {self.name} failed: {found.message}")
        y = np.zeros(len(rows.h))
        y[:several] = scale * np.maximum(-found.ineqlin.marginals, 0.0)
        return y
