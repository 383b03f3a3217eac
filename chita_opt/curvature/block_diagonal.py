"""Curvature without coupling between consecutive blocks of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chita_opt.curvature.base import Curvature, SeparablePart, SupportSolver
from chita_opt.curvature.factors import BlockFactor
from chita_opt.errors import CurvatureError


@dataclass(frozen=True, eq=False)
class BlockDiagonal(Curvature):
    """C = diag(C_1, …, C_B); every block may be of any form, also per-sample gradients.

    Raises
    ------
    CurvatureError
        If there is no block, or blocks lie on different devices.
    """

    blocks: Sequence[Curvature]

    def __post_init__(self) -> None:
        if not self.blocks:
            raise CurvatureError("a block-diagonal curvature needs at least one block")
        devices = {str(b.device) for b in self.blocks}
        if len(devices) > 1:
            raise CurvatureError(f"blocks lie on {sorted(devices)}; move them to one device")
        object.__setattr__(self, "blocks", tuple(self.blocks))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of every block, and p."""
        ends = torch.tensor([b.size for b in self.blocks]).cumsum(0).tolist()
        return (0, *ends)

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights."""
        return self.offsets[-1]

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""
        return self.blocks[0].device

    @property
    def specification(self) -> Mapping[str, Any]:
        """Form and the blocks' own descriptions."""
        return {"form": "block_diagonal", "blocks": [dict(b.specification) for b in self.blocks]}

    def arrays(self) -> dict[str, Tensor]:
        """The blocks' data, prefixed with their number."""
        pairs = enumerate(self.blocks)
        return {f"{i}.{name}": a for i, b in pairs for name, a in b.arrays().items()}

    def factor(self) -> BlockFactor:
        """The blocks' factors side by side."""
        return self._factor

    @cached_property
    def _factor(self) -> BlockFactor:
        return BlockFactor([b.factor() for b in self.blocks])

    def slices(self) -> list[tuple[Curvature, slice]]:
        """Every block with its slice of the weights."""
        ends = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        return [(b, slice(i, j)) for b, (i, j) in zip(self.blocks, ends, strict=True)]

    @property
    def image_size(self) -> int:
        """Sum of the blocks'."""
        return sum(b.image_size for b in self.blocks)

    def _images(self, image: Tensor) -> list[tuple[Curvature, Tensor]]:
        parts = image.split([b.image_size for b in self.blocks])
        return list(zip(self.blocks, parts, strict=True))

    def image(self, x: Tensor, *, exact: bool = True) -> Tensor:
        """Block by block."""
        return torch.cat([b.image(x[s], exact=exact) for b, s in self.slices()])

    def pullback(self, image: Tensor, *, index: Tensor | None = None, exact: bool = True) -> Tensor:
        """Block by block."""
        Cx = torch.cat([b.pullback(u, exact=exact) for b, u in self._images(image)])
        return Cx if index is None else Cx[index]

    def energy(self, image: Tensor) -> float:
        """Sum over the blocks."""
        return sum(b.energy(u) for b, u in self._images(image))

    def image_of_dual(self, r: Tensor) -> Tensor:
        """Block by block."""
        parts = zip(self.blocks, self._factor.split_dual(r), strict=True)
        return torch.cat([b.image_of_dual(v) for b, v in parts])

    def dual_of_image(self, image: Tensor) -> Tensor:
        """Block by block."""
        return torch.cat([b.dual_of_image(u) for b, u in self._images(image)])

    def diagonal(self) -> Tensor:
        """Block by block."""
        return torch.cat([b.diagonal() for b in self.blocks])

    def cross(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Zero unless both weights lie in one block."""
        out = torch.zeros(len(rows), len(cols), dtype=torch.float64, device=rows.device)
        for block, s in self.slices():
            i = ((rows >= s.start) & (rows < s.stop)).nonzero().squeeze(1)
            j = ((cols >= s.start) & (cols < s.stop)).nonzero().squeeze(1)
            if len(i) and len(j):
                out[i[:, None], j[None, :]] = block.cross(rows[i] - s.start, cols[j] - s.start)
        return out

    def support_solver(
        self, part: SeparablePart, mask: Tensor, *, exact: bool = True
    ) -> SupportSolver:
        """Every block by its own best way."""
        solvers = [
            b.support_solver(part.restrict(s), mask[s], exact=exact) for b, s in self.slices()
        ]
        return BlockSupport(self, solvers, mask)

    def to(self, device: torch.device | str) -> BlockDiagonal:
        """The same curvature on another device."""
        return BlockDiagonal([b.to(device) for b in self.blocks])


class BlockSupport(SupportSolver):
    """The blocks' minimisers put together."""

    def __init__(
        self, curvature: BlockDiagonal, solvers: Sequence[SupportSolver], mask: Tensor
    ) -> None:
        self.curvature, self.solvers, self.mask = curvature, solvers, mask
        self.weights = torch.cat([s.weights for s in solvers])
        self.pull = torch.cat([s.pull for s in solvers])
        self.value = sum(s.value for s in solvers)
        self.exact = all(s.exact for s in solvers)

    def moved(self, mask: Tensor, *, exact: bool = False) -> BlockSupport:
        """Only blocks whose mask changed, or that are less exact than asked, are solved again."""
        solvers = [
            old
            if bool((mask[s] == old.mask).all()) and (old.exact or not exact)
            else old.moved(mask[s], exact=exact)
            for old, (_, s) in zip(self.solvers, self.curvature.slices(), strict=True)
        ]
        return BlockSupport(self.curvature, solvers, mask)

    def inverse_diagonal(self, index: Tensor) -> Tensor:
        """Block by block."""
        return self._gather(index, lambda solver, i: solver.inverse_diagonal(i))

    def schur_diagonal(self, index: Tensor) -> Tensor:
        """Block by block."""
        return self._gather(index, lambda solver, i: solver.schur_diagonal(i))

    def reduced(self, index: Tensor) -> Tensor:
        """Block by block, zero between blocks."""
        Q = torch.zeros(len(index), len(index), dtype=torch.float64, device=index.device)
        for solver, here, local in self._parts(index):
            Q[here[:, None], here[None, :]] = solver.reduced(local)
        return Q

    def _gather(self, index: Tensor, ask: Callable[[SupportSolver, Tensor], Tensor]) -> Tensor:
        out = torch.empty(len(index), dtype=torch.float64, device=index.device)
        for solver, here, local in self._parts(index):
            out[here] = ask(solver, local)
        return out

    def _parts(self, index: Tensor) -> list[tuple[SupportSolver, Tensor, Tensor]]:
        found = []
        for solver, (_, s) in zip(self.solvers, self.curvature.slices(), strict=True):
            here = ((index >= s.start) & (index < s.stop)).nonzero().squeeze(1)
            if len(here):
                found.append((solver, here, index[here] - s.start))
        return found
