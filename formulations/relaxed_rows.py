"""The family's rows in a cvxpy model: ``G z + E u`` with auxiliary variables u in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chita_opt.supports import SupportFamily

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(frozen=True, eq=False)
class RelaxedRows:
    """The left side and what belongs to it.

    Attributes
    ----------
    left : cvxpy.Expression
        (m,) ``G z + E u``.
    h : ndarray
        (m,) right side.
    box : list of cvxpy constraints
        Bounds of z, and of u where there is one.
    u : cvxpy.Variable or None
        (q,) auxiliary variables.
    """

    left: cp.Expression
    h: np.ndarray
    box: list[cp.Constraint]
    u: cp.Variable | None


def relaxed_rows(supports: SupportFamily, z: cp.Variable) -> RelaxedRows:
    """Rows and bounds on indicators z (p,)."""
    import cvxpy as cp

    rows = supports.rows()
    box = [z >= 0.0, z <= 1.0]
    if not rows.q:
        return RelaxedRows(rows.G @ z, rows.h, box, None)
    u = cp.Variable(rows.q, name="u")
    return RelaxedRows(rows.G @ z + rows.E @ u, rows.h, [*box, u >= 0.0, u <= 1.0], u)
