r"""The quadratic in weight space, and its reduction to a node's free weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import lapack

from chita_opt.errors import CurvatureError
from chita_opt.problem import Problem
from chita_opt.supports.base import Array

_EPS = float(np.finfo(np.float64).eps)
FREE, OUT, IN = -1, 0, 1


@dataclass(frozen=True, eq=False)
class Quadratic:
    r"""f(w) = const + w'Hw/2 - b'w with H = C + diag(rho), b = H w_bar - g.

    Attributes
    ----------
    H : ndarray
        (p, p) Fortran-ordered, positive definite.
    b : ndarray
        (p,).
    const : float
        f(0).
    entry_error : float or None
        Bound on the rounding of the entries of H as formed from the data, where it is known.
    """

    H: Array
    b: Array
    const: float
    entry_error: float | None = None

    @classmethod
    def of(cls, problem: Problem) -> Quadratic:
        """Form H once, in float64."""
        H = np.asfortranarray(problem.curvature.dense().cpu().numpy())
        H = np.asfortranarray(0.5 * (H + H.T))
        H[np.diag_indices_from(H)] += problem.rho.cpu().numpy()
        w_bar, g = problem.w_bar.cpu().numpy(), problem.g.cpu().numpy()
        b = H @ w_bar - g
        terms = problem.curvature.image_size + problem.p + 16
        error = 4.0 * terms * _EPS * float(H.diagonal().max(initial=0.0))
        return cls(H, b, float(0.5 * w_bar @ (H @ w_bar) - g @ w_bar), error)

    @cached_property
    def least_value(self) -> float:
        """The minimum with all weights kept."""
        return self.solve(np.arange(self.size))[1]

    @property
    def size(self) -> int:
        """Number of weights p."""
        return len(self.b)

    def margin(self, kept: Array) -> float:
        """Rounding that elimination and a Cholesky proof may hide, in units of H.

        The computed Schur complement is the exact one of H + E with
        |E_ij| <= gamma sqrt(H_ii H_jj) (Demmel 1989), and so is the factorisation; gamma is a
        small multiple of p eps, and the norm of such an E is at most gamma times the trace.
        """
        return 8.0 * (self.size + 2) * _EPS * float(self.H.diagonal()[kept].sum())

    def rounding(self, value: float) -> float:
        """Allowance for the rounding of a bound's terms."""
        return 64.0 * _EPS * self.size * (abs(self.const) + abs(value))

    def reduce(self, free: Array, kept: Array) -> tuple[Array, Array, float]:
        """Eliminate the weights ``kept``; H, b and constant over ``free`` (index arrays)."""
        H = np.asfortranarray(self.H[np.ix_(free, free)])
        if not len(kept):
            return H, self.b[free].copy(), self.const
        L, info = lapack.dpotrf(np.asfortranarray(self.H[np.ix_(kept, kept)]), lower=1, clean=0)
        if info:
            raise CurvatureError(
                f"the curvature plus the ridge is singular on {len(kept)} kept weights; "
                "raise the ridge"
            )
        B = np.empty((len(kept), len(free) + 1), order="F")
        B[:, :-1] = self.H[np.ix_(kept, free)]
        B[:, -1] = self.b[kept]
        Y, _ = lapack.dtrtrs(L, B, lower=1, overwrite_b=1)
        H -= Y[:, :-1].T @ Y[:, :-1]
        y = Y[:, -1]
        return H, self.b[free] - Y[:, :-1].T @ y, self.const - 0.5 * float(y @ y)

    def solve(self, support: Array) -> tuple[Array, float]:
        """Best weights on ``support`` (index array) and the value."""
        if not len(support):
            return np.zeros(0), self.const
        H = np.asfortranarray(self.H[np.ix_(support, support)])
        _, w, info = lapack.dposv(H, self.b[support], lower=1)
        if info:
            raise CurvatureError(
                f"the curvature plus the ridge is singular on {len(support)} kept weights; "
                "raise the ridge"
            )
        return w, self.const - 0.5 * float(self.b[support] @ w)
