r"""The perspective relaxation as a conic program.

.. math::
    \min_{w,z,s}\ & \tfrac12\|F(w-\bar w)\|^2 + g^\top(w-\bar w)
        + \tfrac12\sum_j d_j\,(s_j - 2\bar w_jw_j + \bar w_j^2)\\
    \text{s.t. } & w_j^2\le s_jz_j\ (s_j\ge0),\qquad Gz+Eu\le h,\qquad 0\le z,u\le1

w (p,) weights, z (p,) indicators (1 keeps), s (p,) the squares' epigraph;
:math:`F^\top F=C-\mathrm{diag}(e)` with F (m, p), :math:`d=\rho+e>0`, :math:`\bar w, g, \rho` of
the problem; :math:`Gz+Eu\le h` the rows of the family, u its auxiliary
variables where it has any. With :math:`z_j` binary, :math:`s_j=w_j^2` and
the value is the problem's.

Strength: the convex hull of every :math:`\{(w_j,z_j,s_j)\}` without an M; it grows with d, and so
with the split e. Where the rows describe the convex hull of the family (all built-in families), its
value is the best that :func:`chita_opt.dual_bound` can prove with the same split.

Size: 3p variables, p three-dimensional cones, the rows of G, and m rows of F in the objective (m =
n for n gradients, however large p is).

Source: Frangioni & Gentile, *Mathematical Programming* 106 (2006); Günlük & Linderoth,
*Mathematical Programming* 124 (2010).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from chita_opt.bounds.dual import check_ridge
from chita_opt.bounds.splits import split_problem
from chita_opt.formulations.factors import factor_matrix
from chita_opt.formulations.relaxed_rows import RelaxedRows, relaxed_rows
from chita_opt.problem import Problem

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(frozen=True, eq=False)
class PerspectiveModel:
    """The model and its variables by the names above.

    Attributes
    ----------
    model : cvxpy.Problem
        Solve it with any conic solver, such as Clarabel; its value is a lower bound up to the
        solver's accuracy. ``image(w.value - w_bar)`` of the (split) curvature is a witness with
        which :func:`chita_opt.bounds.dual_point` proves nearly the same without trust in it.
    w, z, s : cvxpy.Variable
        (p,) each.
    rows : RelaxedRows
        The family's rows on z, with its auxiliary variables.
    """

    model: cp.Problem
    w: cp.Variable
    z: cp.Variable
    s: cp.Variable
    rows: RelaxedRows


def perspective_relaxation(problem: Problem, *, split: Tensor | None = None) -> PerspectiveModel:
    """Build the relaxation of ``problem``.

    Parameters
    ----------
    problem : Problem
        Any family, any curvature form.
    split : Tensor, optional
        (p,) the diagonal e to move from the curvature to the ridge, with C - diag(e) positive
        semidefinite (see :func:`chita_opt.bounds.candidate_splits`); none if absent.

    Raises
    ------
    ProblemError
        If some ``d = rho + e`` is not positive.
    """
    import cvxpy as cp

    base = problem if split is None else split_problem(problem, split)
    check_ridge(base.rho)
    p, F = base.p, factor_matrix(base.curvature.factor())
    w_bar, g, d = (v.cpu().numpy() for v in (base.w_bar, base.g, base.rho))
    w, z, s = cp.Variable(p, name="w"), cp.Variable(p, name="z"), cp.Variable(p, name="s")
    square = s - 2.0 * cp.multiply(w_bar, w) + w_bar**2
    value = 0.5 * cp.sum_squares(F @ (w - w_bar)) + g @ (w - w_bar) + 0.5 * d @ square
    # w^2 <= s z, s >= 0, z >= 0, as the rotated cone |(2w, s - z)| <= s + z
    cones = cp.SOC(s + z, cp.vstack([2.0 * w, s - z]), axis=0)
    rows = relaxed_rows(base.supports, z)
    model = cp.Problem(cp.Minimize(value), [cones, rows.left <= rows.h, *rows.box])
    return PerspectiveModel(model, w, z, s, rows)
