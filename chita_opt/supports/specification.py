"""Support families from a line of text, for the command line and ``prune``."""

from __future__ import annotations

from chita_opt.errors import SupportError
from chita_opt.supports.budget import Budget
from chita_opt.supports.sparsity import keep_count

_FORMS = "'cardinality', 'N:M' (as 2:4), 'blocks:WIDTH:M', 'rows:WIDTH:M'"


def family_from_text(
    text: str, size: int, *, k: int | None = None, sparsity: float | None = None
) -> Budget:
    """Read a family over ``size`` weights.

    ``cardinality`` needs ``k`` or ``sparsity``. The others (``2:4``, ``blocks:8:1``: at most 1 in
    every 8 consecutive weights, ``rows:784:20``) are complete; a ``k`` or ``sparsity`` given with
    them is a total over all weights.

    Raises
    ------
    SupportError
        If the text is not one of the forms, or counts do not fit.
    """
    if k is not None and sparsity is not None:
        raise SupportError(f"both k={k} and sparsity={sparsity} were given; give one of them")
    total = k if sparsity is None else keep_count(size, sparsity).k
    if text == "cardinality":
        if total is None:
            raise SupportError("a cardinality budget needs k or a sparsity")
        return Budget.cardinality(size, total)
    budget = _partition(text, size)
    return budget if total is None else Budget.nested(budget, total)


def _partition(text: str, size: int) -> Budget:
    parts = text.split(":")
    kind, numbers = (parts[0], parts[1:]) if parts[0] in {"blocks", "rows"} else ("n:m", parts)
    try:
        first, second = (int(x) for x in numbers)
    except ValueError:
        raise SupportError(f"family {text!r} is not known; write {_FORMS}") from None
    n, m = (first, second) if kind == "n:m" else (second, first)
    return Budget.n_of_m(size, n, m)
