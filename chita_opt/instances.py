"""Quadratic problems as files, and generators whose hardness or optimum is known."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chita_opt.curvature import Curvature, Dense, LowRank
from chita_opt.errors import DataError
from chita_opt.problem import Problem
from chita_opt.supports import Budget, SupportFamily

_TYPES = {np.dtype(t) for t in ("float16", "float32", "float64")}


@dataclass(frozen=True, eq=False)
class Instance:
    r"""A quadratic around dense weights, before a ridge and a support family are chosen.

    Attributes
    ----------
    curvature : Curvature
        C (p, p).
    w_bar : Tensor
        (p,) dense weights, float64.
    g : Tensor or None
        (p,) linear term, float64.
    """

    curvature: Curvature
    w_bar: Tensor
    g: Tensor | None = None

    @property
    def p(self) -> int:
        """Number of weights."""
        return self.curvature.size

    def problem(self, *, ridge: float | Tensor, supports: SupportFamily) -> Problem:
        """The problem with ``ridge`` (rho, scalar or (p,)) and a support family over p weights."""
        return Problem(self.curvature, self.w_bar, ridge, supports, self.g)


@dataclass(frozen=True, eq=False)
class PlantedInstance:
    """An instance whose optimum is known by construction.

    Attributes
    ----------
    instance : Instance
        The quadratic.
    ridge : float
        The rho for which the optimum was planted.
    supports : SupportFamily
        The family for which it was planted.
    w : Tensor
        (p,) the only optimal solution.
    """

    instance: Instance
    ridge: float
    supports: SupportFamily
    w: Tensor

    @property
    def problem(self) -> Problem:
        """The problem that ``w`` solves."""
        return self.instance.problem(ridge=self.ridge, supports=self.supports)

    @property
    def value(self) -> float:
        """Its optimal value."""
        return self.problem.objective(self.w)


def load_instance(path: str | Path) -> Instance:
    r"""Read a problem from a ``.npz`` file of plain arrays.

    The file holds either ``A`` (n, p), rows of gradients with curvature :math:`A^\top A/n`, or
    ``H`` (p, p), the curvature itself; ``w_bar`` (p,); and optionally ``g`` (p,). Types are
    float16 (read as float32), float32 or float64. Arrays of other names are not read.

    Raises
    ------
    DataError
        If the file cannot be read, an array is missing, has the wrong shape or type, or holds a
        value that is not finite; or if both ``A`` and ``H`` are present.
    CurvatureError
        If ``H`` is not symmetric and positive semidefinite.
    """
    arrays = _read(Path(path))
    if ("A" in arrays) == ("H" in arrays):
        found = "both A and H" if "A" in arrays else "neither A nor H"
        raise DataError(f"{path} holds {found}; give A (samples, weights) or H (weights, weights)")
    if "w_bar" not in arrays:
        raise DataError(f"{path} has no array w_bar; it holds {', '.join(sorted(arrays))}")
    name = "A" if "A" in arrays else "H"
    matrix = _checked(arrays[name], name, 2, path)
    p = matrix.shape[1]
    if name == "H" and len(matrix) != p:
        raise DataError(f"{path}: H has shape {tuple(matrix.shape)}; it must be square")
    vectors = {key: _checked(arrays[key], key, 1, path) for key in ("w_bar", "g") if key in arrays}
    for key, vector in vectors.items():
        if len(vector) != p:
            raise DataError(f"{path}: {key} has {len(vector)} entries, {name} has {p} columns")
    curvature = LowRank(matrix, 1.0 / len(matrix)) if name == "A" else Dense(matrix)
    g = vectors["g"].double() if "g" in vectors else None
    return Instance(curvature, vectors["w_bar"].double(), g)


def random_instance(n: int, p: int, *, seed: int = 0, linear: float = 0.0) -> Instance:
    """Gradient rows, weights and a linear term (times ``linear``) of independent normals."""
    rng = _generator(n, p, seed)
    A = torch.randn(n, p, generator=rng, dtype=torch.float64)
    return _with_weights(A, rng, linear)


def correlated_instance(
    n: int, p: int, *, correlation: float = 0.9, seed: int = 0, linear: float = 0.0
) -> Instance:
    r"""Rows whose neighbouring columns correlate: the supports of large weights are not optimal.

    Every row is a stationary autoregression along the columns, so columns i and j have
    correlation ``correlation`` to the power \|i-j\|.

    Raises
    ------
    DataError
        If the correlation lies outside (-1, 1), or n or p is below 1.
    """
    if not -1.0 < correlation < 1.0:
        raise DataError(f"correlation is {correlation}; it must lie between -1 and 1")
    rng = _generator(n, p, seed)
    A = torch.randn(n, p, generator=rng, dtype=torch.float64)
    fresh = (1.0 - correlation**2) ** 0.5
    for j in range(1, p):
        A[:, j] = correlation * A[:, j - 1] + fresh * A[:, j]
    return _with_weights(A, rng, linear)


def planted_instance(
    n: int,
    p: int,
    *,
    supports: SupportFamily | None = None,
    ridge: float = 1e-2,
    margin: float = 0.5,
    linear: bool = False,
    seed: int = 0,
) -> PlantedInstance:
    r"""An instance with a known optimum, for any support family.

    Let S be a largest support of the family and :math:`w^*` weights on it. Choose a vector c with
    :math:`c_S=\rho w^*_S`, and elsewhere smaller than every :math:`|c_j|` on S by the factor
    ``margin``. If :math:`\rho\bar w-g-C(w^*-\bar w)=c`, the dual bound at
    :math:`w^*-\bar w` equals :math:`f(w^*)`, so :math:`w^*` is optimal. The equation is solved for
    :math:`\bar w` with g = 0, or for g. The relaxation of such an instance is tight: it tests
    that optima are found and proven, not how hard gaps are closed.

    Parameters
    ----------
    n, p : int
        Gradient rows and weights.
    supports : SupportFamily, optional
        Default: at most p // 4 (at least 1) weights.
    ridge : float
        rho > 0.
    margin : float
        In [0, 1).
    linear : bool
        Plant by a linear term, the dense weights being random.
    seed : int
        Seed.

    Raises
    ------
    DataError
        If an argument is out of range or the family keeps no weight.
    """
    if not ridge > 0.0 or not 0.0 <= margin < 1.0:
        raise DataError(
            f"ridge is {ridge} and margin {margin}; need ridge > 0 and margin in [0, 1)"
        )
    rng = _generator(n, p, seed)
    family = supports or Budget.cardinality(p, max(1, p // 4))
    A = torch.randn(n, p, generator=rng, dtype=torch.float64)
    mask = family.best_support(torch.rand(p, generator=rng, dtype=torch.float64) + 0.1)
    if not bool(mask.any()):
        raise DataError(f"{family.name} keeps no weight; nothing can be planted")
    size = 0.5 + torch.rand(p, generator=rng, dtype=torch.float64)
    sign = torch.where(torch.rand(p, generator=rng, dtype=torch.float64) < 0.5, -1.0, 1.0)
    w = torch.where(mask, sign * size, 0.0)
    small = margin * float(w[mask].abs().min()) * (size - 0.5)
    c = ridge * torch.where(mask, w, sign * small)
    curvature = LowRank(A, 1.0 / n)
    if linear:
        w_bar = w + 0.3 * torch.randn(p, generator=rng, dtype=torch.float64)
        g = ridge * w_bar - c - curvature.product(w - w_bar)
        return PlantedInstance(Instance(curvature, w_bar, g), ridge, family, w)
    system = A.T @ A / n
    system.diagonal().add_(ridge)
    w_bar = torch.linalg.solve(system, c + curvature.product(w))
    return PlantedInstance(Instance(curvature, w_bar), ridge, family, w)


def _generator(n: int, p: int, seed: int) -> torch.Generator:
    if n < 1 or p < 1:
        raise DataError(f"an instance of {n} rows and {p} weights was asked for; both must be >= 1")
    return torch.Generator().manual_seed(seed)


def _with_weights(A: Tensor, rng: torch.Generator, linear: float) -> Instance:
    n, p = A.shape
    w_bar = torch.randn(p, generator=rng, dtype=torch.float64)
    g = linear * torch.randn(p, generator=rng, dtype=torch.float64) if linear else None
    return Instance(LowRank(A, 1.0 / n), w_bar, g)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:  # numpy leaves a damaged archive open
            return _arrays(np.load(file, allow_pickle=False), path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except DataError:
        raise
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a readable .npz file of plain arrays: {error}") from error


def _arrays(archive: Any, path: Path) -> dict[str, NDArray[Any]]:
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path} holds one array without a name; save with np.savez(file, A=...)")
    names = {"A", "H", "w_bar", "g"} & set(archive.files)
    if not names:
        raise DataError(f"{path} holds {archive.files or 'nothing'}; A or H is needed")
    return {name: archive[name] for name in names}


def _checked(array: NDArray[Any], name: str, dimensions: int, path: str | Path) -> Tensor:
    """A finite floating-point tensor, or a message that names file, array and place."""
    if array.ndim != dimensions or array.size == 0:
        kind = "a vector" if dimensions == 1 else "a matrix"
        raise DataError(f"{path}: {name} has shape {array.shape}; give {kind} with entries")
    if array.dtype.newbyteorder("=") not in _TYPES:
        raise DataError(f"{path}: {name} has type {array.dtype}; give float32 or float64")
    if not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        where = ", ".join(map(str, place))
        raise DataError(f"{path}: {name}[{where}] is {array[place]}; every entry must be finite")
    wide = np.float32 if array.dtype.itemsize <= 4 else np.float64
    return torch.from_numpy(np.ascontiguousarray(array, dtype=wide))


__all__ = [
    "Instance",
    "PlantedInstance",
    "correlated_instance",
    "load_instance",
    "planted_instance",
    "random_instance",
]
