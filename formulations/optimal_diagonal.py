r"""The perspective relaxation with the best split of all, as a semidefinite program.

.. math::
    \min_{w,z,W}\ & \tfrac12\langle H,W\rangle - b^\top w + c\\
    \text{s.t. } & \begin{bmatrix}W&w\\w^\top&1\end{bmatrix}\succeq0,\qquad
        w_j^2\le W_{jj}z_j,\qquad Gz+Eu\le h,\qquad 0\le z,u\le1

w (p,) weights, z (p,) indicators (1 keeps), W (p, p) in the place of :math:`ww^\top`; of the
problem :math:`H=C+\mathrm{diag}(\rho)`, :math:`b=H\bar w-g` and
:math:`c=\tfrac12\bar w^\top H\bar w-g^\top\bar w`; :math:`Gz+Eu\le h` the rows of the family.

Strength: the largest value of :func:`perspective_relaxation` over all splits e with
:math:`C-\mathrm{diag}(e)\succeq0`, :math:`\rho+e\ge0`. The multipliers of the cones are the d of
that split, :math:`e=d-\rho`.

Size: p(p + 5)/2 + 1 variables, one semidefinite cone of order p + 1, p three-dimensional cones and
the rows of G: for p up to about 50. The tree search and the outer approximation reach the same
bound in a tenth of a second at p = 100.

Source: Zheng, Sun & Li, *INFORMS Journal on Computing* 26 (2014); Dong, Chen & Linderoth,
arXiv:1510.06083 (2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chita_opt.formulations.relaxed_rows import relaxed_rows
from chita_opt.problem import Problem

if TYPE_CHECKING:
    import cvxpy as cp

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class LiftedModel:
    """The model, its variables by the names above, and the cones of the perspective.

    Attributes
    ----------
    model : cvxpy.Problem
        Solve it with Clarabel, SCS or MOSEK. Values of a conic solver that reports
        ``optimal_inaccurate`` may lie above the optimum: take :meth:`split` and prove the bound.
    w, z, W : cvxpy.Expression
        (p,), (p,) and (p, p) symmetric; w and W are multiples of variables, so that H has a unit
        diagonal in the solver's units.
    cones : cvxpy.SOC
        The p cones of the perspective.
    pairs : list of tuple
        Pairs of weights that are convexified together; none in the plain relaxation.
    corners : list of cvxpy constraints
        The 3 x 3 cone of every pair.
    units : ndarray
        (p,) w over its variable.
    """

    model: cp.Problem
    w: cp.Expression
    z: cp.Variable
    W: cp.Expression
    cones: cp.SOC
    pairs: list[tuple[int, int]]
    corners: list[cp.Constraint]
    units: Array

    def separable_curvature(self) -> Array:
        """After solving: d (p,), the multipliers of ``W_jj`` in the cones, twice."""
        t, u = self.cones.dual_value
        multipliers = np.ravel(t) + np.asarray(u).reshape(2, -1)[1]
        return 2.0 * np.maximum(multipliers, 0.0) / self.units**2

    def pair_curvature(self) -> Array:
        """After solving: D_T (pairs, 2, 2), the multipliers of W_TT in the corners, twice."""
        found = np.zeros((len(self.pairs), 2, 2))
        for D, (i, j), corner in zip(found, self.pairs, self.corners, strict=True):
            multiplier = np.asarray(corner.dual_value)[:2, :2]
            units = self.units[[i, j]]
            D[:] = (multiplier + multiplier.T) / np.outer(units, units)
        return found


def optimal_diagonal_relaxation(problem: Problem) -> LiftedModel:
    """Build the relaxation of ``problem``; any family, any curvature form with a small p."""
    return lifted_model(problem, [])


def lifted_model(problem: Problem, pairs: list[tuple[int, int]]) -> LiftedModel:
    """The relaxation with a 3 x 3 cone for every pair of weights."""
    import cvxpy as cp

    H, b, c = quadratic(problem)
    size = 0.5 * float(b @ np.linalg.solve(H, b)) or 1.0
    units = np.sqrt(size / np.where(H.diagonal() > 0.0, H.diagonal(), 1.0))
    p = problem.p
    z = cp.Variable(p, name="z")
    family = relaxed_rows(problem.supports, z)
    lifted = cp.Variable((p + 1, p + 1), PSD=True, name="lifted")
    U, u, square = lifted[:p, :p], lifted[:p, p], cp.diag(lifted)[:p]
    cones = cp.SOC(square + z, cp.vstack([2.0 * u, square - z]), axis=0)
    rows = [lifted[p, p] == 1.0, cones, family.left <= family.h, *family.box]
    corners = []
    for i, j in pairs:
        y = cp.Variable(name=f"y_{i}_{j}")
        corner = cp.bmat([[U[i, i], U[i, j], u[i]], [U[i, j], U[j, j], u[j]], [u[i], u[j], y]])
        corners.append(corner >> 0)
        rows += [corners[-1], y <= 1.0, y <= z[i] + z[j]]
    scale = np.outer(units, units)
    value = 0.5 * cp.sum(cp.multiply(H * scale, U)) - (b * units) @ u + c
    w, W = cp.multiply(units, u), cp.multiply(scale, U)
    model = cp.Problem(cp.Minimize(value), rows)
    return LiftedModel(model, w, z, W, cones, pairs, corners, units)


def quadratic(problem: Problem) -> tuple[Array, Array, float]:
    r"""H (p, p), b (p,), c with :math:`f(w)=\tfrac12w^\top Hw-b^\top w+c`, float64."""
    H = problem.curvature.dense().cpu().numpy() + np.diag(problem.rho.cpu().numpy())
    w_bar, g = problem.w_bar.cpu().numpy(), problem.g.cpu().numpy()
    b = H @ w_bar - g
    return H, b, 0.5 * float(w_bar @ (b - g))
