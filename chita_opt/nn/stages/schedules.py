r"""How many weights each stage keeps.

With target sparsity s, first sparsity b ("base") and T stages, stage t = 0, ..., T-1 removes the
share

====== =============================================================================
exp    :math:`b+(s-b)\frac{2^{T-1}}{2^{T-1}-1}(1-2^{-t})`: the distance halves
poly   :math:`s+(b-s)(1-\frac{t}{T-1})^3` (Zhu & Gupta 2017)
linear :math:`b+(s-b)\frac{t}{T-1}`
cosine :math:`b+(s-b)\frac12(1-\cos\frac{\pi t}{T-1})`: slow at both ends
const  :math:`s`
mfac   :math:`1-(1-b)\left(\frac{1-s}{1-b}\right)^{(t+1)/T}`: the kept share falls by a factor
       (M-FAC, NeurIPS 2021)
====== =============================================================================

exp, poly, linear and const are those of CHITA++ (ICML 2023, its released code). The exponential one
comes near the target early and spends most stages on repairing there, which is what pays at high
sparsity.
"""

from __future__ import annotations

import math

from chita_opt.errors import SupportError
from chita_opt.supports import keep_count

SCHEDULES = ("exp", "poly", "linear", "cosine", "const", "mfac")


def stage_sparsities(
    schedule: str, sparsity: float, stages: int, *, base: float = 0.1
) -> tuple[float, ...]:
    """The share of weights that each stage removes, never falling, the last one ``sparsity``.

    Parameters
    ----------
    schedule : {"exp", "poly", "linear", "cosine", "const", "mfac"}
        See the table at the head of this module.
    sparsity : float
        Target s, in [0, 1].
    stages : int
        T, at least 1. A single stage removes everything at once.
    base : float
        b, in [0, 1); where it exceeds the target every stage has the target.

    Raises
    ------
    SupportError
        If an argument is out of range or the schedule is not known.
    """
    _check(schedule, sparsity, stages, base)
    if stages == 1 or base >= sparsity or schedule == "const":
        return (sparsity,) * stages
    last, way = stages - 1, sparsity - base
    if schedule == "exp":
        steps = [(1.0 - 0.5**t) / (1.0 - 0.5**last) for t in range(stages)]
    elif schedule == "poly":
        steps = [1.0 - (1.0 - t / last) ** 3 for t in range(stages)]
    elif schedule == "linear":
        steps = [t / last for t in range(stages)]
    elif schedule == "cosine":
        steps = [0.5 - 0.5 * math.cos(math.pi * t / last) for t in range(stages)]
    else:
        factor = ((1.0 - sparsity) / (1.0 - base)) ** (1.0 / stages)
        steps = [(1.0 - base) * (1.0 - factor ** (t + 1)) / way for t in range(stages)]
    return (*(min(base + way * x, sparsity) for x in steps[:-1]), sparsity)


def stage_counts(
    schedule: str, size: int, k: int, stages: int, *, base: float = 0.1
) -> tuple[int, ...]:
    """Number of weights that each stage keeps, never rising, the last one exactly ``k``.

    Parameters
    ----------
    schedule, stages, base
        As for :func:`stage_sparsities`.
    size, k : int
        Weights in all, and kept in the end.

    Raises
    ------
    SupportError
        As above, or if k is not in 0..size.
    """
    if not 0 <= k <= size or size < 1:
        raise SupportError(f"k is {k}; keep between 0 and all {size} weights")
    shares = stage_sparsities(schedule, 1.0 - k / size, stages, base=base)
    return (*(max(k, keep_count(size, share).k) for share in shares[:-1]), k)


def _check(schedule: str, sparsity: float, stages: int, base: float) -> None:
    if schedule not in SCHEDULES:
        raise SupportError(f"schedule is {schedule!r}; choose {', '.join(SCHEDULES)}")
    if not 0.0 <= sparsity <= 1.0:
        raise SupportError(f"sparsity is {sparsity}; give the share of weights removed, in [0, 1]")
    if isinstance(stages, bool) or int(stages) != stages or stages < 1:
        raise SupportError(f"stages is {stages!r}; give a whole number >= 1")
    if not 0.0 <= base < 1.0:
        raise SupportError(f"base is {base}; the first stage's sparsity lies in [0, 1)")


__all__ = ["SCHEDULES", "stage_counts", "stage_sparsities"]
