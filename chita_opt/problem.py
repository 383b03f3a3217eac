"""The one problem: a convex quadratic around trained weights and a family of allowed supports."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from chita_opt.curvature import Curvature, Dense, LowRank, SeparablePart, SharedRows
from chita_opt.errors import CurvatureError, ProblemError
from chita_opt.supports import SupportFamily


@dataclass(frozen=True, eq=False)
class Problem:
    r"""Minimise the modelled loss increase over supports.

    .. math::
        f(w)=\tfrac12(w-\bar w)^\top C(w-\bar w)+g^\top(w-\bar w)
             +\tfrac12\sum_j\rho_j(w_j-\bar w_j)^2
        \quad\text{s.t. } \mathrm{support}(w)\in\mathcal S

    f is zero at the dense weights, so "objective" always means modelled loss increase, in units of
    the loss (a mean over samples when built by :func:`from_gradients`).

    Attributes
    ----------
    curvature : Curvature
        C (p, p) in one of its forms.
    w_bar : Tensor
        (p,) dense weights; kept in float64.
    rho : Tensor
        (p,) ridge, >= 0; a float is spread over all weights.
    supports : SupportFamily
        The allowed supports, over the same p weights.
    g : Tensor
        (p,) linear term; zeros if absent.

    Raises
    ------
    ProblemError
        If shapes, devices or sizes disagree, or data are not finite, or a rho is negative.
    """

    curvature: Curvature
    w_bar: Tensor
    rho: Tensor
    supports: SupportFamily
    g: Tensor

    def __init__(
        self,
        curvature: Curvature,
        w_bar: Tensor,
        rho: float | Tensor,
        supports: SupportFamily,
        g: Tensor | None = None,
    ) -> None:
        p, device = curvature.size, curvature.device
        if supports.size != p:
            raise ProblemError(
                f"the family {supports.name} is over {supports.size} weights, the curvature over "
                f"{p}; make both over the same weights"
            )
        put = object.__setattr__
        put(self, "curvature", curvature)
        put(self, "supports", supports)
        put(self, "w_bar", _vector(w_bar, p, device, "w_bar"))
        put(self, "g", torch.zeros(p, dtype=torch.float64, device=device) if g is None
            else _vector(g, p, device, "g"))  # fmt: skip
        ridge = torch.as_tensor(rho, dtype=torch.float64, device=device)
        if ridge.ndim == 0:
            ridge = ridge.repeat(p)
        put(self, "rho", _vector(ridge, p, device, "rho"))
        lowest = float(self.rho.min())
        if lowest < 0.0:
            raise ProblemError(f"rho is {lowest}; the ridge must be >= 0")

    @property
    def p(self) -> int:
        """Number of weights."""
        return self.curvature.size

    @property
    def device(self) -> torch.device:
        """Device of the data and of every result."""
        return self.curvature.device

    @cached_property
    def separable(self) -> SeparablePart:
        """w_bar, g and rho together."""
        return SeparablePart(self.w_bar, self.g, self.rho)

    @cached_property
    def scores(self) -> Tensor:
        """Magnitude scores ``w_bar^2``."""
        return self.w_bar.square()

    def objective(self, w: Tensor) -> float:
        """f(w) in float64, from the data."""
        x = _vector(w, self.p, self.device, "w") - self.w_bar
        return self.curvature.quadratic(x) + self.separable.value(x)

    def gradient(self, w: Tensor, *, exact: bool = True) -> Tensor:
        """Gradient of f at w, (p,) float64."""
        x = _vector(w, self.p, self.device, "w") - self.w_bar
        return self.curvature.product(x, exact=exact) + self.g + self.rho * x

    @cached_property
    def prune_all(self) -> float:
        """Cost of pruning everything, f(0): the scale against which a gap can be read."""
        return self.objective(torch.zeros_like(self.w_bar))

    @cached_property
    def dense_minimum(self) -> float:
        """Minimum of f without a support constraint; 0 without a linear term, else negative.

        Relative gaps divide by the increase over this value, which a first-order term can make
        the only positive reference.
        """
        if not bool(self.g.any()):
            return 0.0
        every = torch.ones(self.p, dtype=torch.bool, device=self.device)
        return self.curvature.support_solver(self.separable, every).value

    def increase(self, value: float) -> float:
        """What an objective ``value`` is above the dense minimum: the unit of relative tolerances.

        Not below rounding. The value itself stands in where the minimum does not exist (a singular
        matrix with a linear term).
        """
        try:
            floor = self.dense_minimum
        except CurvatureError:
            floor = 0.0
        return max(value - floor, 1e-13 * abs(value), 1e-300)

    def with_supports(self, supports: SupportFamily) -> Problem:
        """The same quadratic under another family."""
        other = Problem(self.curvature, self.w_bar, self.rho, supports, self.g)
        if "dense_minimum" in self.__dict__:  # it does not depend on the family
            other.__dict__["dense_minimum"] = self.dense_minimum
        return other

    def to(self, device: torch.device | str) -> Problem:
        """The same problem with its data on ``device``."""
        return Problem(self.curvature.to(device), self.w_bar, self.rho, self.supports, self.g)


def from_gradients(
    rows: Tensor | LowRank,
    w_bar: Tensor,
    *,
    ridge: float | Tensor,
    supports: SupportFamily,
    first_order: float = 0.0,
) -> Problem:
    r"""Build the problem of CHITA (ICML 2023) from gradient rows, with its scaling, once.

    With n rows :math:`a_i` (each the gradient of the mean loss of an m-sample mini-batch),

    .. math:: C=\tfrac1n\sum_i a_ia_i^\top,\qquad \rho=\lambda,\qquad
              g=\frac{\alpha}{n}\sum_i a_i .

    Parameters
    ----------
    rows : Tensor or LowRank
        (n, p) float32 or float64; or the curvature itself, such as that of a file
        (:func:`chita_opt.open_gradients`), whose scale must be 1/n.
    w_bar : Tensor
        (p,).
    ridge : float or Tensor
        λ, scalar or (p,). Published code with ``l2`` and ``½‖y-Xw‖² + (n·l2/2)‖w-w̄‖²`` has
        λ = l2; its objective is n times ours.
    supports : SupportFamily
        Allowed supports.
    first_order : float
        α: 0 (no linear term), 1/m for m-sample rows (rows average m gradients, so C is the Fisher
        matrix over m and the linear term must shrink alike), or 1.

    Raises
    ------
    ProblemError, CurvatureError
        If the data are inconsistent or not finite.
    """
    A = rows.A if isinstance(rows, LowRank) else rows
    if A.ndim != 2:
        raise ProblemError(f"rows has shape {tuple(A.shape)}; give (samples, weights)")
    n = A.shape[0]
    if not 0.0 <= first_order <= 1.0:
        raise ProblemError(f"first_order is {first_order}; give 0, 1/m for m-sample rows, or 1")
    curvature = rows if isinstance(rows, LowRank) else LowRank(rows, 1.0 / n)
    if curvature.scale != 1.0 / n:
        raise ProblemError(f"the curvature has scale {curvature.scale}; {n} rows need 1/{n}")
    g = None
    if first_order:
        ones = torch.ones(n, dtype=torch.float64, device=A.device)
        g = curvature.pullback(ones) * (first_order / n**0.5)
    return Problem(curvature, w_bar, ridge, supports, g)


def from_hessian(
    H: Tensor,
    w_bar: Tensor,
    *,
    ridge: float | Tensor,
    supports: SupportFamily,
    g: Tensor | None = None,
) -> Problem:
    """Build the problem from an explicit positive semidefinite H (p, p)."""
    return Problem(Dense(H), w_bar, ridge, supports, g)


def from_layer_inputs(
    H: Tensor, W: Tensor, *, ridge: float | Tensor, supports: SupportFamily
) -> Problem:
    """Build layer-wise reconstruction: rows of W (rows, d) share H (d, d), the mean of xx'."""
    if W.ndim != 2 or W.shape[1] != len(H):
        raise ProblemError(
            f"W has shape {tuple(W.shape)}, H {tuple(H.shape)}; W needs len(H) columns"
        )
    return Problem(SharedRows(H, W.shape[0]), W.reshape(-1), ridge, supports)


def _vector(values: Tensor, p: int, device: torch.device, what: str) -> Tensor:
    """A finite (p,) float64 vector on the problem's device."""
    if not isinstance(values, Tensor) or values.shape != (p,):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ProblemError(f"{what} is {shape}; give a tensor of shape ({p},)")
    if not values.is_floating_point():
        raise ProblemError(f"{what} has type {values.dtype}; give a floating-point tensor")
    vector = values.detach().to(device=device, dtype=torch.float64)
    if not bool(torch.isfinite(vector).all()):
        position = int((~torch.isfinite(vector)).nonzero()[0])
        raise ProblemError(f"{what}[{position}] is {float(vector[position])}; it must be finite")
    return vector


__all__ = ["Problem", "from_gradients", "from_hessian", "from_layer_inputs"]
