"""What the Pyomo models share: indicators with the rows of the family, weights, the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from scipy.sparse import csr_array
from torch import Tensor

from chita_opt.errors import ProblemError
from chita_opt.formulations.factors import factor_matrix
from chita_opt.problem import Problem
from chita_opt.supports import SupportFamily

if TYPE_CHECKING:
    import pyomo.environ as pyo

SideConstraint = Callable[["pyo.ConcreteModel"], None]
"""Adds any constraints on ``model.z`` (1 keeps) to a model: a rule of the user's own."""


def new_model(problem: Problem, name: str) -> pyo.ConcreteModel:
    """A model with the weights' index set ``J``, binary ``z`` and the rows ``family``."""
    import pyomo.environ as pyo

    model = pyo.ConcreteModel(name=name)
    model.J = pyo.RangeSet(0, problem.p - 1)
    model.z = pyo.Var(model.J, domain=pyo.Binary)
    add_family(model, problem.supports)
    return model


def add_family(model: pyo.ConcreteModel, supports: SupportFamily) -> None:
    """The rows ``G z + E u <= h`` as ``model.family``; rows without entries are left out."""
    import pyomo.environ as pyo

    rows, u = supports.rows(), add_auxiliary(model, supports)

    def rule(_: pyo.ConcreteModel, i: int) -> pyo.Expression:
        entries, extra = row(rows.G, i), row(rows.E, i)
        if not entries and not extra:
            return pyo.Constraint.Skip
        return (
            sum(a * model.z[j] for j, a in entries) + sum(a * u[j] for j, a in extra) <= (rows.h[i])
        )

    model.family = pyo.Constraint(range(len(rows.h)), rule=rule)


def add_auxiliary(model: pyo.ConcreteModel, supports: SupportFamily) -> Any:
    """The family's auxiliary variables as ``model.auxiliary``; an empty list where it has none.

    They are continuous in [0, 1] where binary indicators suffice for the family.
    """
    import pyomo.environ as pyo

    q = supports.rows().q
    if not q:
        return []
    domain = pyo.Binary if supports.binary_auxiliary else pyo.UnitInterval
    model.auxiliary = pyo.Var(range(q), domain=domain)
    return model.auxiliary


def add_side_constraints(model: pyo.ConcreteModel, constraints: Iterable[SideConstraint]) -> None:
    """Let every rule add its constraints to the model."""
    for constrain in constraints:
        constrain(model)


def add_loss(model: pyo.ConcreteModel, problem: Problem, limits: list[float] | None) -> None:
    r"""Weights ``w``, the image ``r = F(w - w_bar)`` and the quadratic objective.

    Parameters
    ----------
    model : ConcreteModel
        Of :func:`new_model`.
    problem : Problem
        Gives F, w_bar, g and rho.
    limits : list of float or None
        Bounds of \|w\|, or none.
    """
    import pyomo.environ as pyo

    add_image(model, problem, problem, limits)
    w_bar, g, rho = (v.tolist() for v in (problem.w_bar, problem.g, problem.rho))

    def separable(j: int) -> pyo.Expression:
        step = model.w[j] - w_bar[j]
        return g[j] * step + 0.5 * rho[j] * step**2

    energy = sum(model.r[i] ** 2 for i in model.I)
    model.objective = pyo.Objective(expr=0.5 * energy + sum(separable(j) for j in model.J))


def add_image(
    model: pyo.ConcreteModel, problem: Problem, split: Problem, limits: list[float] | None
) -> None:
    """Weights ``w`` and ``r = F(w - w_bar)``, F of the curvature of ``split``."""
    import pyomo.environ as pyo

    F = factor_matrix(split.curvature.factor())
    w_bar = problem.w_bar.tolist()
    model.I = pyo.RangeSet(0, F.shape[0] - 1)
    bounds = None if limits is None else (lambda _, j: (-limits[j], limits[j]))
    model.w = pyo.Var(model.J, bounds=bounds)
    model.r = pyo.Var(model.I)

    def image(_: pyo.ConcreteModel, i: int) -> pyo.Expression:
        return model.r[i] == sum(a * (model.w[j] - w_bar[j]) for j, a in row(F, i))

    model.image = pyo.Constraint(model.I, rule=image)


def row(matrix: csr_array, i: int) -> list[tuple[int, float]]:
    """(column, value) pairs of one sparse row."""
    span = slice(matrix.indptr[i], matrix.indptr[i + 1])
    return list(zip(matrix.indices[span].tolist(), matrix.data[span].tolist(), strict=True))


def limits_of(problem: Problem, big_m: float | Tensor) -> list[float]:
    """M as a list of p positive finite numbers.

    Raises
    ------
    ProblemError
        If it is not that.
    """
    M = torch.as_tensor(big_m, dtype=torch.float64).cpu()
    M = M.expand(problem.p) if M.ndim == 0 else M
    if M.shape != (problem.p,) or not bool(torch.isfinite(M).all()) or not bool((M > 0).all()):
        raise ProblemError(
            f"big_m has shape {tuple(M.shape)} and smallest entry {float(M.min()):.6g}; give one "
            f"positive finite M, or ({problem.p},) of them, such as proven_big_m(problem, upper)"
        )
    return list(M.tolist())
