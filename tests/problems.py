"""Small instances: every curvature form and support family, as tables that tests cross.

A new form or family is one row here; the conformance tests follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from chita_opt.curvature import BlockDiagonal, Curvature, Dense, LowRank, SharedRows
from chita_opt.problem import Problem, from_hessian
from chita_opt.supports import (
    BlockWidths,
    Budget,
    LatencyTable,
    LayerFamilies,
    LinearRows,
    MinimumKeeps,
    NestedGroups,
    NeuronGates,
    ProcessorPartition,
    SupportFamily,
    TreePrices,
    TwoBudgets,
    WholeGroups,
    intersection,
)

Array = np.ndarray
Draw = torch.Generator


@dataclass(frozen=True)
class PairBudget(SupportFamily):
    """At most k of the pairs (0, 1), (2, 3), … hold a kept weight: a family in one small class.

    It knows only its oracle, its members and its rows: one row for every choice of one weight
    from each pair. With ``tight=False`` there is only a row for the number of weights, which also
    other masks satisfy.
    """

    size: int
    k: int
    tight: bool = True

    @property
    def name(self) -> str:
        return f"pairs(k={self.k})"

    @property
    def specification(self) -> Mapping[str, Any]:
        return {"family": "pairs", "size": self.size, "k": self.k}

    def best_support(self, scores: Tensor) -> Tensor:
        order = scores.reshape(-1, 2).sum(1).argsort(descending=True, stable=True)
        kept = torch.zeros(len(order), dtype=torch.bool, device=scores.device)
        return kept.index_fill(0, order[: self.k], True).repeat_interleave(2)

    def contains(self, mask: Tensor) -> bool:
        return int(mask.reshape(-1, 2).any(1).sum()) <= self.k

    def rows(self) -> LinearRows:
        if not self.tight:
            return LinearRows.plain(csr_array(np.ones((1, self.size))), np.array([2.0 * self.k]))
        choices = np.array(list(product((0, 1), repeat=self.size // 2)))
        G = np.stack([choices == 0, choices == 1], axis=2).reshape(len(choices), self.size)
        return LinearRows.plain(
            csr_array(G.astype(np.float64)), np.full(len(choices), float(self.k))
        )


def normal(draw: Draw, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def whole(draw: Draw, low: int, high: int) -> int:
    """A random whole number in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=draw))


def gradients(draw: Draw, n: int, p: int) -> LowRank:
    """Rows of mean one and columns of unequal size."""
    return LowRank((normal(draw, n, p) + 0.5) * (0.2 + normal(draw, p).abs()), 1.0 / n)


def gram(draw: Draw, n: int, p: int) -> Tensor:
    return gradients(draw, n, p).dense()


def layer(draw: Draw, p: int) -> SharedRows:
    rows = next(r for r in (3, 2, 1) if p % r == 0)
    return SharedRows(gram(draw, p // rows + 2, p // rows), rows)


def mixed(draw: Draw, p: int) -> BlockDiagonal:
    """Gradients, rank-deficient matrix and rows side by side."""
    a = p // 3
    b = (p - a) // 2
    return BlockDiagonal(
        [gradients(draw, 2, a), Dense(gram(draw, max(b - 1, 1), b)), layer(draw, p - a - b)]
    )


CURVATURES: dict[str, Callable[[Draw, int], Curvature]] = {
    "low_rank": lambda draw, p: gradients(draw, max(p // 2, 1), p),
    "tall": lambda draw, p: gradients(draw, 2 * p + 1, p),
    "dense": lambda draw, p: Dense(gram(draw, 2 * p, p)),
    "deficient": lambda draw, p: Dense(gram(draw, max(p // 2, 1), p)),
    "shared_rows": layer,
    "mixed_blocks": mixed,
    "gradient_blocks": lambda draw, p: BlockDiagonal(
        [gradients(draw, 3, p // 2), gradients(draw, p, p - p // 2)]
    ),
}


def two_layers(draw: Draw, p: int) -> Budget:
    a = p // 2 - 1
    return Budget.per_layer([a, p - a], [whole(draw, 0, a), whole(draw, 1, p - a)])


def rows_family(draw: Draw, p: int) -> Budget:
    rows = next(r for r in (3, 2, 1) if p % r == 0)
    return Budget.per_row(rows, p // rows, [whole(draw, 0, p // rows) for _ in range(rows)])


def n_of_m(draw: Draw, p: int) -> Budget:
    m = next(m for m in (4, 3, 2, 1) if p % m == 0)
    return Budget.n_of_m(p, whole(draw, 1, m), m)


def blocks(draw: Draw, p: int) -> Budget:
    """Three interleaved blocks of unequal sizes and caps."""
    labels = torch.randint(0, 3, (p,), generator=draw)
    labels[:3] = torch.arange(3)
    sizes = torch.bincount(labels, minlength=3).tolist()
    return Budget.per_block(labels, [whole(draw, 0, size) for size in sizes])


def nested(inner: Callable[[Draw, int], Budget]) -> Callable[[Draw, int], Budget]:
    def build(draw: Draw, p: int) -> Budget:
        budget = inner(draw, p)
        return Budget.nested(budget, whole(draw, 0, int(budget.caps.sum())))

    return build


def whole_groups(draw: Draw, p: int) -> WholeGroups:
    """Interleaved groups of equal size."""
    count = next(c for c in (4, 3, 2, 1) if p % c == 0)
    labels = (torch.arange(p) % count)[torch.randperm(p, generator=draw)]
    return WholeGroups(labels, whole(draw, 0, count) * (p // count))


def unequal_groups(draw: Draw, p: int) -> WholeGroups:
    """Groups of any sizes, with their sizes or others as costs."""
    labels = torch.randint(0, 4, (p,), generator=draw)
    labels[:4] = torch.arange(4)
    costs = torch.randint(1, 5, (4,), generator=draw) if whole(draw, 0, 1) else None
    limit = p if costs is None else int(costs.sum())
    return WholeGroups(labels, whole(draw, 1, limit), costs)


def two_budgets(draw: Draw, p: int) -> TwoBudgets:
    """Few costs, of which some are zero."""
    costs = torch.tensor([0, 1, 4, 9])[torch.randint(0, 4, (p,), generator=draw)]
    costs[0] = 4
    return TwoBudgets(costs, whole(draw, 1, p), whole(draw, 4, int(costs.sum())))


def minimum_keeps(draw: Draw, p: int) -> MinimumKeeps:
    """Two layers of unequal costs, one weight of each set aside."""
    sizes, costs = [p // 3, p - p // 3], [3, 1]
    layers = torch.arange(2).repeat_interleave(torch.tensor(sizes))
    full = sizes[0] * costs[0] + sizes[1] * costs[1]
    budget = TwoBudgets.per_layer(sizes, costs, k=whole(draw, 2, p), limit=whole(draw, 4, full))
    return MinimumKeeps(budget, layers, torch.tensor([1, 1]))


def latency_table(draw: Draw, p: int) -> LatencyTable:
    """Two layers of which half, or all, may be kept."""
    sizes = [p // 2, p - p // 2]
    tables = [([0, n // 2, n], [0, whole(draw, 1, 3), whole(draw, 4, 6)]) for n in sizes]
    return LatencyTable.of_tables(sizes, tables, whole(draw, 3, 12))


def nested_groups(draw: Draw, p: int) -> NestedGroups:
    """Four interleaved channels in two layers."""
    channels = torch.randint(0, 4, (p,), generator=draw)
    prices = TreePrices(1, whole(draw, 0, 2), whole(draw, 0, 2))
    return NestedGroups(channels, torch.tensor([0, 0, 1, 1]), prices, whole(draw, 5, p + 8))


def tied_neurons(draw: Draw, p: int) -> NeuronGates:
    """One hidden layer: rows of the first matrix with columns of the second."""
    hidden = next(h for h in (4, 3, 2, 1) if p % h == 0)
    inputs = p // hidden - 1
    return NeuronGates.of_chain([inputs, hidden, 1], [whole(draw, 0, hidden)])


def recurrent_neurons(draw: Draw, p: int) -> NeuronGates:
    """One gate, two neurons tied to each other, and what follows; NP-hard in general."""
    outputs = whole(draw, 0, 1)
    inputs = p // 2 - 2 - outputs
    return NeuronGates.of_recurrent(inputs, 2, gates=1, keep=whole(draw, 1, 2), outputs=outputs)


def darb(draw: Draw, p: int) -> BlockWidths:
    """Two matrices that share the budget, one with a row that no width divides."""
    a = p // 4
    return BlockWidths(((2, a), (1, p - 2 * a)), whole(draw, 2, p - 2), widths=(1, 2, 4))


def layers_of_many_kinds(draw: Draw, p: int) -> LayerFamilies:
    """A count, groups kept whole, and block widths."""
    a = p // 3
    groups = WholeGroups(torch.arange(a) // 2, 2)
    rest = BlockWidths(((1, p - 2 * a),), whole(draw, 1, 3), widths=(1, 2))
    return LayerFamilies((Budget.cardinality(a, whole(draw, 1, a)), groups, rest))


def laminar(draw: Draw, p: int) -> SupportFamily:
    """Pairs within halves."""
    halves = Budget.per_block((torch.arange(p) >= p // 4 * 2).long(), whole(draw, 1, p // 4 * 2))
    return intersection(Budget.n_of_m(p, 1, 2), halves)


def both_axes(draw: Draw, p: int) -> SupportFamily:
    """Counts of rows and of columns together."""
    columns = torch.arange(p) % (p // 2)
    rows = Budget.per_row(2, p // 2, whole(draw, 1, p // 2))
    return intersection(rows, Budget.per_block(columns, whole(draw, 1, 2)))


FAMILIES: dict[str, Callable[[Draw, int], SupportFamily]] = {
    "cardinality": lambda draw, p: Budget.cardinality(p, whole(draw, 1, p - 1)),
    "nothing": lambda draw, p: Budget.cardinality(p, 0),
    "everything": lambda draw, p: Budget.cardinality(p, p),
    "layers": two_layers,
    "rows": rows_family,
    "n_of_m": n_of_m,
    "blocks": blocks,
    "nested_n_of_m": nested(n_of_m),
    "nested_blocks": nested(blocks),
    "groups": whole_groups,
    "unequal_groups": unequal_groups,
    "block_2x2": lambda draw, p: WholeGroups.blocks((2, p // 2), (2, 2), whole(draw, 1, p)),
    "two_budgets": two_budgets,
    "minimum_keeps": minimum_keeps,
    "latency_table": latency_table,
    "nested_groups": nested_groups,
    "tied_neurons": tied_neurons,
    "recurrent_neurons": recurrent_neurons,
    "partition": lambda draw, p: ProcessorPartition((2, p // 2), 2),
    "laminar": laminar,
    "both_axes": both_axes,
    "darb": darb,
    "darb_two_a_block": lambda draw, p: BlockWidths(
        ((2, p // 2),), whole(draw, 2, p), widths=(2, 4), keep=2
    ),
    "layers_of_many_kinds": layers_of_many_kinds,
    "pairs": lambda draw, p: PairBudget(p - p % 2, whole(draw, 1, max(p // 2 - 1, 1))),
}


def families_where(is_so: Callable[[SupportFamily], bool]) -> list[str]:
    """Names of the families of which something holds, at a size of 12."""
    draw = torch.Generator().manual_seed(0)
    return [name for name, build in FAMILIES.items() if is_so(build(draw, 12))]


LAMINAR = families_where(lambda family: family.is_laminar)


def make_problem(
    curvature: str,
    family: str,
    *,
    p: int = 12,
    seed: int = 0,
    linear: bool = False,
    ridge: float = 0.1,
    per_weight: bool = False,
) -> Problem:
    """One instance: data of order one, the ridge relative to the mean of diag(C)."""
    draw = torch.Generator().manual_seed(seed)
    C = CURVATURES[curvature](draw, p)
    rho = torch.full((p,), ridge * float(C.diagonal().mean()), dtype=torch.float64)
    if per_weight:
        rho = rho * (0.3 + 1.4 * torch.rand(p, generator=draw, dtype=torch.float64))
    g = 0.3 * C.product(normal(draw, p)) + 0.1 * rho * normal(draw, p) if linear else None
    w_bar = normal(draw, p)
    return Problem(C, w_bar, rho, FAMILIES[family](draw, p), g)


def random_problem(seed: int) -> Problem:
    """Any form, any family, any size up to 14, with or without a linear term."""
    draw = torch.Generator().manual_seed(1000 + seed)
    forms, families = list(CURVATURES), list(FAMILIES)
    return make_problem(
        forms[seed % len(forms)],
        families[(seed // len(forms)) % len(families)],
        p=2 * whole(draw, 3, 7),
        seed=seed,
        linear=bool(whole(draw, 0, 1)),
        ridge=1e-4 if seed % 12 == 0 else 10.0 ** whole(draw, -3, 0),
        per_weight=bool(whole(draw, 0, 1)),
    )


def single_precision(problem: Problem) -> Problem:
    """The same problem with float32 gradients, where it has any."""
    return Problem(
        _single(problem.curvature), problem.w_bar, problem.rho, problem.supports, problem.g
    )


def _single(curvature: Curvature) -> Curvature:
    if isinstance(curvature, LowRank):
        return LowRank(curvature.A.float(), curvature.scale)
    if isinstance(curvature, BlockDiagonal):
        return BlockDiagonal([_single(block) for block in curvature.blocks])
    if isinstance(curvature, SharedRows):
        return SharedRows(curvature.H.float(), curvature.rows)
    assert isinstance(curvature, Dense)
    return Dense(curvature.H.float())


def moved_by_linear_term(problem: Problem, g: Tensor) -> Problem:
    """The same minimum and increases, but dense weights elsewhere and a linear term."""
    H = problem.curvature.dense()
    w_bar = problem.w_bar + torch.linalg.solve(H + torch.diag(problem.rho), g)
    ridge = float(problem.rho[0])
    return from_hessian(H, w_bar, ridge=ridge, supports=problem.supports, g=g)


def awkward_problem(seed: int) -> Problem:
    """Data that break careless arithmetic: one kind of damage after another.

    Bad scales (columns over eight orders of magnitude), near singularity, zero columns, duplicate
    columns, or a ridge that is tiny against the curvature.
    """
    draw = torch.Generator().manual_seed(5000 + seed)
    p = 2 * whole(draw, 3, 6)
    A = normal(draw, 2 * p, p)
    ridge = 10.0 ** whole(draw, -3, -1)
    kind = (seed // 3) % 5
    if kind == 0:
        A = A * 10.0 ** (8.0 * torch.rand(p, generator=draw, dtype=torch.float64) - 4.0)
    elif kind == 1:
        A = A @ (torch.ones(p, p, dtype=torch.float64) + 1e-5 * normal(draw, p, p))
    elif kind == 2:
        A[:, ::3] = 0.0
    elif kind == 3:
        A[:, 1::2] = A[:, ::2]
    else:
        ridge = 1e-9
    C = LowRank(A, 1.0 / len(A))
    rho = ridge * float(C.diagonal().mean())
    family = list(FAMILIES)[(seed // 15) % len(FAMILIES)]
    g = 0.3 * C.product(normal(draw, p)) if whole(draw, 0, 1) else None
    return Problem(C, normal(draw, p), rho, FAMILIES[family](draw, p), g)


def set_auxiliary(model: Any, problem: Problem, mask: Tensor) -> None:
    """Give a model's auxiliary variables the family's values for a mask."""
    for i, value in enumerate(problem.supports.auxiliary(mask).tolist()):
        model.auxiliary[i].set_value(value)
