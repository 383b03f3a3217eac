r"""Outer approximation in the indicators alone: the dual cuts, as a mixed-integer linear program.

.. math::
    \min_{z,t}\ t\qquad\text{s.t. } t\ \ge\ a_i-s_i^\top z,\qquad Gz\le h,\qquad z\in\{0,1\}^p

z (p,) indicators (1 keeps), t the loss increase divided by ``scale``. Each cut (a, s) comes from a
witness v and a split e of the dual bound (:func:`chita_opt.bounds.dual_point`): with
:math:`Q=C-\mathrm{diag}(e)\succeq0`, :math:`d=\rho+e`, :math:`q=Qv+g`, :math:`c=d\circ\bar w-q`,

.. math::
    \min_{\mathrm{supp}(w)\subseteq z} f(w)\ \ge\ -\tfrac12v^\top Qv
    +\sum_j\Big(\tfrac{d_j}2\bar w_j^2-q_j\bar w_j\Big)-\sum_jz_j\frac{c_j^2}{2d_j}=a-s^\top z,
    \qquad s\ge0 .

With :math:`v=w-\bar w` for the best weights of a mask the cut touches the problem at that mask,
whatever the split; larger e make it flatter everywhere else.

Strength: with the cut of the relaxation's witness, the continuous relaxation is at least that dual
bound; with all cuts of one split it is the perspective relaxation.

Size: p + 1 variables, p of them binary; one dense row for each cut and the rows of G.

Source: Bertsimas & Van Parys, *Annals of Statistics* 48 (2020), where the cuts touch at binary
points; Fischetti, Ljubić & Sinnl, *Management Science* 63 (2017), for other points.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from chita_opt.bounds.dual import dual_point
from chita_opt.errors import ProblemError
from chita_opt.formulations.model_parts import new_model
from chita_opt.problem import Problem

if TYPE_CHECKING:
    import pyomo.environ as pyo

Array = np.ndarray
_DIGITS = (
    40  # bits kept of a coefficient: what is rounded off stays below a rounding error of the row
)


@dataclass(frozen=True, eq=False)
class DualCut:
    """``f >= constant - slopes @ z`` for every mask z (that the cut is valid for).

    Attributes
    ----------
    constant : float
        a, in units of the loss.
    slopes : ndarray
        (p,) s >= 0.
    """

    constant: float
    slopes: Array

    def __post_init__(self) -> None:
        finite = np.isfinite(self.constant) and np.isfinite(self.slopes).all()
        if not finite or (self.slopes < 0.0).any():
            raise ProblemError("a dual cut needs a finite constant and finite slopes >= 0")

    def value(self, z: Array) -> float:
        """The bound that the cut gives at z (p,)."""
        return self.constant - float(self.slopes @ z)


def dual_cut(problem: Problem, witness: Tensor, split: Tensor | None = None) -> DualCut:
    """The cut of a witness (an image of C, or of C - diag(split)); valid for every witness.

    That C - diag(split) is positive semidefinite is the caller's part
    (:func:`chita_opt.bounds.safe_split`).

    Raises
    ------
    ProblemError
        If some ``d = rho + e`` is not positive.
    """
    point = dual_point(problem, witness, split)
    gains = point.gains.cpu().numpy()
    return DualCut(point.value + float(point.gains[point.mask].sum()), gains)


def cleaned(
    cut: DualCut, *, floor: float = -np.inf, scale: float = 1.0, smallest: float = 1e-8
) -> DualCut:
    r"""The cut with t = f / scale as a solver should see it; never above the cut itself.

    * Where :math:`a-s_j\le` ``floor`` (a proven lower bound on f) the slope shrinks to
      :math:`a-` ``floor``: a mask that keeps j is then bounded by the floor, which it is anyway.
    * Slopes below ``smallest`` (solvers drop them with a warning) become zero, and the constant
      falls by their sum, which is the most that they could have lowered the cut.
    * The other slopes are rounded up and the constant down to 40 bits.

    Parameters
    ----------
    cut : DualCut
        In units of the loss.
    floor : float
        A lower bound on f over all masks that the model allows.
    scale : float
        Unit of t, > 0.
    smallest : float
        In units of t.
    """
    slopes = np.minimum(cut.slopes, max(cut.constant - floor, 0.0)) / scale
    constant = cut.constant / scale
    constant -= 1e-15 * (abs(constant) + float(slopes.sum()))  # the divisions' rounding
    small = slopes < smallest
    constant -= float(slopes[small].sum()) * (1.0 + 1e-12)
    slopes = np.where(small, 0.0, _round_up(slopes))
    return DualCut(float(-_round_up(np.array([-constant]))[0]), slopes)


def _round_up(values: Array) -> Array:
    """Round up to 40 significant bits."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.ceil(np.ldexp(mantissa, _DIGITS)), exponent - _DIGITS)


def dual_cuts_milp(
    problem: Problem, cuts: Iterable[DualCut] = (), *, lower: float = 0.0
) -> pyo.ConcreteModel:
    """Build the model; ``model.z``, ``model.t`` are its variables, ``model.cuts`` the cuts.

    Any MIP solver takes it. More cuts are added by :func:`add_dual_cut`.

    Parameters
    ----------
    problem : Problem
        Gives the family; any whose rows describe it.
    cuts : iterable of DualCut
        In the units that t shall have (see :func:`cleaned`).
    lower : float
        A lower bound of t: the dense minimum is one, 0 without a linear term.
    """
    import pyomo.environ as pyo

    model = new_model(problem, "outer approximation in indicators")
    model.t = pyo.Var(bounds=(lower, None))
    model.cuts = pyo.ConstraintList()
    model.objective = pyo.Objective(expr=model.t)
    for cut in cuts:
        add_dual_cut(model, cut)
    return model


def add_dual_cut(model: pyo.ConcreteModel, cut: DualCut) -> pyo.Constraint:
    """Add one cut and return its constraint, for persistent solvers."""
    from pyomo.core.expr import LinearExpression

    used = np.flatnonzero(cut.slopes).tolist()
    row = LinearExpression(
        constant=0.0,
        linear_coefs=[1.0, *cut.slopes[used].tolist()],
        linear_vars=[model.t, *(model.z[j] for j in used)],
    )
    return model.cuts.add((cut.constant, row, None))
