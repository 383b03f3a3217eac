"""Models to files that solvers read, and the solvers' answers back as solutions.

An answer is read for its indicators alone. The weights are solved anew on that support and the
objective is recomputed from the data: a file, like a solver, is not believed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chita_opt.errors import DataError
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status

if TYPE_CHECKING:
    import pyomo.environ as pyo

FORMATS = (".lp", ".mps", ".nl", ".gms")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?|[-+]?inf(?:inity)?|nan"
_PAIR = re.compile(
    rf"""^\s*(?:\d+\s+)?                        # CBC numbers its lines
         (?:<variable\s+name=")?
         (?P<kind>[zuw])[(_\[](?P<index>\d+)[)_\]]
         (?:"[^>]*?\bvalue=")?\s*[=\s]?\s*(?P<value>{_NUMBER})""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)


def write_model(model: pyo.ConcreteModel, path: str | Path) -> Path:
    """Write a Pyomo model by the suffix of ``path``: .lp, .mps, .nl or .gms.

    Variables keep their names (``z(0)``; ``z_0_`` in .gms); next to a .nl file stand .row and
    .col files that hold them (``z[0]``). HiGHS reads .lp and .mps without quadratic rows and sets;
    SCIP reads .mps and .nl, its .lp reader refuses Pyomo's quadratic terms, and sets only from .nl;
    .gms holds no sets.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    DataError
        If the suffix is another, the folder is missing, or the format cannot hold the model.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise DataError(f"cannot write {target}: the suffix must be one of {', '.join(FORMATS)}")
    if not target.parent.is_dir():
        raise DataError(f"cannot write {target}: there is no folder {target.parent}; create it")
    try:
        model.write(str(target), io_options={"symbolic_solver_labels": True})
    except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
        target.unlink(missing_ok=True)
        reason = str(error).splitlines()[0]
        raise DataError(f"{target.suffix} cannot hold this model: {reason}") from error
    return target


def read_solution(problem: Problem, path: str | Path, *, method: str = "") -> Solution:
    """Read a solver's solution file and solve the weights anew on its support.

    Lines of a name and a value are understood: HiGHS (raw style, its default), SCIP (``write
    solution``), Gurobi (``.sol``), CPLEX (``.sol``, XML), CBC, and AMPL ``.sol`` with the .col file
    of :func:`write_model` beside it. Names are those of the models of this folder: z (1 keeps), u
    (1 prunes), or w alone. Variables that a file leaves out are zero.

    Parameters
    ----------
    problem : Problem
        What the model was made of.
    path : str or Path
        The file.
    method : str
        Name for the solution; the file's name if absent.

    Raises
    ------
    DataError
        If the file cannot be read, names no indicator, has a value that is not near 0 or 1, or
        keeps weights that the family does not allow together.
    """
    source = Path(path)
    try:
        text = source.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {source}: {error}") from error
    mask = _mask(_values(text, source), problem.p, source)
    if not problem.supports.contains(mask):
        raise DataError(
            f"{source} keeps {int(mask.sum())} weights in a pattern outside "
            f"{problem.supports.name}; was the model made of this problem?"
        )
    solver = problem.curvature.support_solver(problem.separable, mask)
    return Solution(problem, solver.weights, method or source.name, Status.FEASIBLE)


def _values(text: str, source: Path) -> dict[str, dict[int, float]]:
    """Values by variable and index, from lines or from AMPL's numbers."""
    found: dict[str, dict[int, float]] = {"z": {}, "u": {}, "w": {}}
    names = source.with_suffix(".col")
    lines = text.splitlines()
    if not _PAIR.search(text) and names.is_file():
        labels = names.read_text().split()
        lines = [f"{n} {v}" for n, v in zip(labels, _ampl(lines, source), strict=False)]
    for line in lines:
        match = _PAIR.match(line)
        if match:
            value = float(match["value"].lower().replace("d", "e"))
            # of two sections with one name the first holds the primal values
            found[match["kind"].lower()].setdefault(int(match["index"]), value)
    return found


def _ampl(lines: list[str], source: Path) -> list[str]:
    """Primal values of an AMPL .sol file."""
    try:
        start = lines.index("Options")
        count = int(lines[start + 1])
        _, duals, _, primals = (int(x) for x in lines[start + 2 + count : start + 6 + count])
    except (ValueError, IndexError) as error:
        raise DataError(f"{source} is no solution file that is understood") from error
    first = start + 6 + count + duals
    return lines[first : first + primals]


def _mask(values: dict[str, dict[int, float]], p: int, source: Path) -> Tensor:
    """(p,) bool from z, else from u, else from w."""
    kind = next((k for k in ("z", "u", "w") if values[k]), None)
    if kind is None:
        raise DataError(f"{source} names no variable z, u or w of this package's models")
    outside = [j for j in values[kind] if j >= p]
    if outside:
        raise DataError(f"{source} has {kind}({outside[0]}), the problem only {p} weights")
    numbers = torch.zeros(p, dtype=torch.float64)
    for j, value in values[kind].items():
        numbers[j] = value
    if kind == "w":
        return numbers != 0.0
    wrong = ~(numbers - numbers.round()).abs().le(1e-4) | (numbers < -0.1) | (numbers > 1.1)
    if bool(wrong.any()):
        j = int(wrong.nonzero()[0])
        raise DataError(f"{source}: {kind}({j}) is {float(numbers[j])}; it must be 0 or 1")
    return numbers > 0.5 if kind == "z" else numbers < 0.5
