"""The interface that every curvature form answers, and the solver on a fixed support."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chita_opt.curvature.factors import Factor
from chita_opt.errors import CurvatureError

_PASSES = 7  # measured; the shortest is the least disturbed one


@dataclass(frozen=True, eq=False)
class SeparablePart:
    r"""The separable part, :math:`g^\top(w-\bar w)+\tfrac12\sum_j\rho_j(w_j-\bar w_j)^2`.

    Attributes
    ----------
    w_bar, g, rho : Tensor
        (p,) float64 each: dense weights, linear term, ridge.
    """

    w_bar: Tensor
    g: Tensor
    rho: Tensor

    def restrict(self, index: slice) -> SeparablePart:
        """The part of a slice of the weights."""
        return SeparablePart(self.w_bar[index], self.g[index], self.rho[index])

    def value(self, x: Tensor) -> float:
        """Value at the displacement ``x = w - w_bar``."""
        return float(self.g @ x + 0.5 * (self.rho * x) @ x)


class Curvature(ABC):
    r"""A positive semidefinite matrix C (p, p), the curvature of the loss at the dense weights.

    No form but :class:`Dense` stores C. Results are float64 whatever the data's type is.
    """

    size: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the data."""

    @property
    @abstractmethod
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description: the form and its sizes."""

    @abstractmethod
    def arrays(self) -> dict[str, Tensor]:
        """The data by name, as stored in a certificate."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Length of an image: n for gradients, p for the other forms."""

    @abstractmethod
    def image(self, x: Tensor, *, exact: bool = True) -> Tensor:
        r"""What the curvature needs to know of a displacement x (p,), linear in x.

        ``sqrt(scale) A x`` for gradients, x itself for explicit matrices. With ``exact=False``
        products may be taken in the data's type.
        """

    @abstractmethod
    def pullback(self, image: Tensor, *, index: Tensor | None = None, exact: bool = True) -> Tensor:
        """``C x`` (or its entries at ``index``) from the image of x; any image is allowed."""

    @abstractmethod
    def energy(self, image: Tensor) -> float:
        """``x'Cx / 2`` in float64 from the image of x."""

    @abstractmethod
    def image_of_dual(self, r: Tensor) -> Tensor:
        """The image whose pullback is ``F' r``, for r in the space of :meth:`factor`."""

    @abstractmethod
    def dual_of_image(self, image: Tensor) -> Tensor:
        """The point r of the factor's space that belongs to an image."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """``diag(C)`` (p,) float64."""

    @abstractmethod
    def cross(self, rows: Tensor, cols: Tensor) -> Tensor:
        """The sub-matrix ``C[rows][:, cols]`` in float64, for index vectors."""

    @abstractmethod
    def factor(self) -> Factor:
        """A factor F with C = F'F, in which the dual is solved; made once."""

    @abstractmethod
    def support_solver(
        self, part: SeparablePart, mask: Tensor, *, exact: bool = True
    ) -> SupportSolver:
        """Minimise over the weights of ``mask``, the others at zero.

        Picks the cheapest exact way by itself: Woodbury in the sample space, Cholesky of the
        principal sub-matrix, or batches of rows. ``exact=False`` stops at the data's precision.
        """

    def product(self, x: Tensor, *, exact: bool = True) -> Tensor:
        """``C x`` for x (p,)."""
        return self.pullback(self.image(x, exact=exact), exact=exact)

    def quadratic(self, x: Tensor) -> float:
        """``x'Cx / 2`` in float64."""
        return self.energy(self.image(x))

    def submatrix(self, index: Tensor) -> Tensor:
        """The principal sub-matrix on ``index``, float64."""
        return self.cross(index, index)

    def dense(self) -> Tensor:
        """C itself (p, p), float64; for small p only."""
        every = torch.arange(self.size, device=self.device)
        return self.cross(every, every)

    @cached_property
    def pass_seconds(self) -> float:
        """Seconds of one pass: an image and its pullback at the data's precision (A x, A'y).

        The unit that costs are reported in, because it does not depend on the machine. Measured
        on first use, the shortest of several, and kept.
        """
        x = torch.ones(self.size, dtype=torch.float64, device=self.device)
        seconds = []
        for _ in range(_PASSES):
            _finish(self.device)
            begin = time.perf_counter()
            self.pullback(self.image(x, exact=False), exact=False)
            _finish(self.device)
            seconds.append(time.perf_counter() - begin)
        return min(seconds)

    def to(self, device: torch.device | str) -> Curvature:
        """The same curvature with its data on ``device``."""
        raise CurvatureError(f"{type(self).__name__} cannot be moved to {device}")


class MatrixCurvature(Curvature):
    """A curvature from explicit matrices: the image of a displacement is the displacement."""

    @property
    def image_size(self) -> int:
        """Images are displacements: p."""
        return self.size

    def image(self, x: Tensor, *, exact: bool = True) -> Tensor:
        """X itself."""
        return x

    def energy(self, image: Tensor) -> float:
        """``x'Cx / 2``."""
        return 0.5 * float(image @ self.pullback(image))

    def dual_of_image(self, image: Tensor) -> Tensor:
        """``r = F x``."""
        return self.factor().forward(image, exact=True)


def _finish(device: torch.device) -> None:
    """Wait for a GPU's queue; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class SupportSolver(ABC):
    r"""The minimiser on a fixed support S and what exchange moves need of it.

    Attributes
    ----------
    mask : Tensor
        (p,) bool, the support.
    weights : Tensor
        (p,) float64, the minimiser; zero off the support.
    pull : Tensor
        (p,) float64, :math:`c_j=\rho_j\bar w_j-g_j-[C(w-\bar w)]_j`. On S, :math:`w_j=c_j/\rho_j`
        (where rho > 0); off S, c_j is minus the gradient, the force that pulls w_j away from zero.
    value : float
        Objective at the minimiser.
    exact : bool
        Whether it was solved to float64 rather than to the precision of the data.
    """

    mask: Tensor
    weights: Tensor
    pull: Tensor
    value: float
    exact: bool

    @abstractmethod
    def inverse_diagonal(self, index: Tensor) -> Tensor:
        r""":math:`[H_{SS}^{-1}]_{jj}` for j in S, H = C + diag(rho).

        Removing j alone costs :math:`w_j^2 / 2[H_{SS}^{-1}]_{jj}`.
        """

    @abstractmethod
    def schur_diagonal(self, index: Tensor) -> Tensor:
        r""":math:`H_{jj}-H_{jS}H_{SS}^{-1}H_{Sj}` for j not in S.

        Adding j alone gains :math:`c_j^2/2` over that.
        """

    @abstractmethod
    def moved(self, mask: Tensor, *, exact: bool = False) -> SupportSolver:
        """The minimiser on another support, reusing what it can.

        At the data's precision, or to float64 if ``exact``.
        """

    def prepare(self, index: Tensor) -> None:  # noqa: B027
        """Announce the indices (sorted) that the next questions are about; work is then shared."""

    def swept(self, index: Tensor) -> Tensor | None:
        r"""The tableau on ``index`` (m,), kept and pruned weights mixed, swept on the support.

        For T kept and O pruned, in the order of ``index``: :math:`-[H_{SS}^{-1}]_{TT}`,
        :math:`[H_{SS}^{-1}H_{SO}]_{TO}` and the Schur complement of O. None where it is no
        cheaper than a new solve.
        """
        return None

    @abstractmethod
    def reduced(self, index: Tensor) -> Tensor:
        r""":math:`H_{CC}-H_{CS}H_{SS}^{-1}H_{SC}` (m, m) float64 for m indices C outside S."""
