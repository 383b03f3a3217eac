"""Models as files, and solvers' answers read back and recomputed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highspy
import numpy as np
import pytest
import torch

from chita_opt.cli import run
from chita_opt.errors import DataError
from chita_opt.exact import enumerate_optimum
from chita_opt.formulations import (
    big_m_miqp,
    cleaned,
    dual_cut,
    dual_cuts_milp,
    perspective_miqcp,
    read_solution,
    removal_miqcp,
    sos1_miqp,
    weight_cuts_milp,
    write_model,
)
from chita_opt.problem import Problem

from .problems import make_problem

M = 50.0
FORMATS = (".lp", ".mps", ".nl", ".gms")


def cuts_of(problem: Problem) -> Any:
    best = enumerate_optimum(problem)
    points = (best.w, problem.w_bar, 0.5 * problem.w_bar)
    made = [dual_cut(problem, problem.curvature.image(w - problem.w_bar)) for w in points]
    return dual_cuts_milp(problem, [cleaned(c) for c in made], lower=-100.0)


MODELS: dict[str, Callable[[Problem], Any]] = {
    "big_m": lambda problem: big_m_miqp(problem, M),
    "sos1": sos1_miqp,
    "perspective": perspective_miqcp,
    "removal": lambda problem: removal_miqcp(problem, M),
    "weight_cuts": lambda problem: weight_cuts_milp(
        problem, M, [enumerate_optimum(problem).w, problem.w_bar]
    ),
    "dual_cuts": cuts_of,
}


@pytest.fixture
def problem() -> Problem:
    return make_problem("tall", "cardinality", p=8)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_in_every_format(
    problem: Problem, tmp_path: Path, name: str, suffix: str
) -> None:
    target = tmp_path / f"model{suffix}"
    if (name, suffix) == ("sos1", ".gms"):
        with pytest.raises(DataError, match="cannot hold"):
            write_model(MODELS[name](problem), target)
        assert not target.exists()
        return
    assert write_model(MODELS[name](problem), target) == target
    text = target.read_text()
    assert text.strip()
    letter = "u" if name == "removal" else "z"
    names = target.with_suffix(".col").read_text() if suffix == ".nl" else text
    assert f"{letter}(7)" in names or f"{letter}_7_" in names or f"{letter}[7]" in names


def highs(path: Path, **options: Any) -> highspy.Highs:
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    for key, value in options.items():
        solver.setOptionValue(key, value)
    assert solver.readModel(str(path)) == highspy.HighsStatus.kOk
    return solver


@pytest.mark.parametrize("suffix", [".lp", ".mps"])
@pytest.mark.parametrize("name", ["weight_cuts", "dual_cuts"])
def test_highs_reads_solves_and_is_read_back(
    problem: Problem, tmp_path: Path, name: str, suffix: str
) -> None:
    import pyomo.environ as pyo

    model = MODELS[name](problem)
    solver = highs(write_model(model, tmp_path / f"m{suffix}"))
    solver.run()
    pyo.SolverFactory("appsi_highs").solve(model)
    value = solver.getInfo().objective_function_value
    assert value == pytest.approx(float(pyo.value(model.objective)), rel=1e-6, abs=1e-6)
    solver.writeSolution(str(tmp_path / "answer.sol"), 0)
    found = read_solution(problem, tmp_path / "answer.sol")
    mask = torch.tensor([model.z[j].value > 0.5 for j in range(8)])
    exact = problem.curvature.support_solver(problem.separable, mask).value
    assert found.is_feasible and found.method == "answer.sol"
    assert found.objective == pytest.approx(exact, rel=1e-9)
    assert found.objective >= value - 1e-6  # the model is a relaxation


@pytest.mark.parametrize("suffix", [".lp", ".mps"])
def test_highs_reads_the_quadratic_objective(problem: Problem, tmp_path: Path, suffix: str) -> None:
    """Big-M with the indicators fixed to the optimum: the quadratic survives the file."""
    best = enumerate_optimum(problem)
    model = big_m_miqp(problem, M)
    solver = highs(write_model(model, tmp_path / f"m{suffix}"))
    for j in range(solver.getNumCol()):
        name = solver.getColName(j)[1]
        solver.changeColIntegrality(j, highspy.HighsVarType.kContinuous)
        if name.startswith("z"):
            kept = float(best.mask[int(name[2:-1])])
            solver.changeColBounds(j, kept, kept)
    solver.run()
    value = solver.getInfo().objective_function_value
    assert value == pytest.approx(best.objective, rel=1e-5)


ANSWERS = {
    "scip": "solution status: optimal solution found\nobjective value:     6.53\n"
    "z(0)                       1 \t(obj:0)\nw(0)   0.25 \t(obj:0)\nz(3)   0.99999999 \t(obj:0)\n",
    "gurobi": "# Solution for model x\n# Objective value = 1.5\nw(0) 0.5\nz(0) 1\nz(1) 0\nz(3) 1\n",
    "cplex": '<?xml version = "1.0"?>\n<CPLEXSolution version="1.2">\n <variables>\n'
    '  <variable name="z(0)" index="0" value="1"/>\n'
    '  <variable name="z(3)" index="3" status="BS" value="0.99999999"/>\n'
    '  <variable name="z(4)" index="4" value="-1e-9"/>\n </variables>\n</CPLEXSolution>\n',
    "cbc": "Optimal - objective value 1.5\n      0 z(0)     1     0\n      3 z(3)    1    0\n",
    "gams": "z_0_ 1\nz_3_ 1\nz_2_ 0\n",
    "removals": "".join(f"u({j}) {0 if j in (0, 3) else 1}\n" for j in range(8)),
    "weights": "w(0) -0.5\nw(3) 1e-3\nw(2) 0\n",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_of_other_solvers(problem: Problem, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.sol"
    path.write_text(ANSWERS[kind])
    found = read_solution(problem, path, method=kind)
    assert found.mask.nonzero().squeeze(1).tolist() == [0, 3]
    mask = torch.zeros(8, dtype=torch.bool)
    mask[[0, 3]] = True
    exact = problem.curvature.support_solver(problem.separable, mask)
    assert found.method == kind and found.objective == pytest.approx(exact.value)


def test_an_ampl_answer_takes_its_names_from_the_columns(problem: Problem, tmp_path: Path) -> None:
    write_model(big_m_miqp(problem, M), tmp_path / "m.nl")
    names = (tmp_path / "m.col").read_text().split()
    values = [1.0 if n in ("z[0]", "z[3]") else 0.0 for n in names]
    rows = 3
    lines = ["solver message", "", "Options", "3", "1", "1", "0", str(rows), str(rows)]
    lines += [str(len(names)), str(len(names)), *["0.0"] * rows, *map(str, values), "objno 0 0"]
    (tmp_path / "m.sol").write_text("\n".join(lines) + "\n")
    found = read_solution(problem, tmp_path / "m.sol")
    assert found.mask.nonzero().squeeze(1).tolist() == [0, 3]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no variable"),
        ("Columns\n Index Status Lower\n", "names no variable"),
        ("z(0) 1\nz(8) 1\n", "only 8 weights"),
        ("z(0) 0.4\n", r"z\(0\) is 0.4"),
        ("z(0) 2\n", r"z\(0\) is 2"),
        ("z(0) nan\n", r"z\(0\) is nan"),
        ("".join(f"z({j}) 1\n" for j in range(8)), "outside cardinality"),
    ],
)
def test_bad_answers_are_refused(problem: Problem, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.sol"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_solution(problem, path)


def test_missing_files_and_folders(problem: Problem, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_solution(problem, tmp_path / "none.sol")
    model = big_m_miqp(problem, M)
    with pytest.raises(DataError, match="suffix must be one of"):
        write_model(model, tmp_path / "m.txt")
    with pytest.raises(DataError, match="no folder"):
        write_model(model, tmp_path / "none" / "m.lp")


# -- command line ---------------------------------------------------------------------------------


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "instance.npz"
    np.savez(path, A=1e-2 * rng.normal(size=(20, 8)), w_bar=rng.normal(size=8))
    return path


@pytest.mark.parametrize(
    "name", ["big-m", "sos1", "perspective", "removal", "weight-cuts", "dual-cuts"]
)
def test_formulate(
    instance: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    to = tmp_path / "model.mps"
    words = ["formulate", str(instance), "-k", "3", "--ridge", "1e-5", "--model", name]
    assert run([*words, "--to", str(to), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == name and report["binaries"] == 8 and to.exists()
    assert run([*words, "--to", str(to)]) == 0
    assert "percent of the cost of pruning" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("suffix", [".lp", ".mps"])
def test_a_formulated_model_is_a_bound_in_percent(
    instance: Path, tmp_path: Path, suffix: str
) -> None:
    from chita_opt.instances import load_instance
    from chita_opt.supports import Budget

    problem = load_instance(instance).problem(ridge=1e-5, supports=Budget.cardinality(8, 3))
    optimum = 100.0 * enumerate_optimum(problem).objective / problem.prune_all
    for name in ("weight-cuts", "dual-cuts"):
        to = tmp_path / f"model{suffix}"
        words = ["formulate", str(instance), "-k", "3", "--ridge", "1e-5", "--model", name]
        assert run([*words, "--to", str(to)]) == 0
        solver = highs(to)
        solver.run()
        value = solver.getInfo().objective_function_value
        assert 0.1 * optimum < value <= optimum * (1.0 + 1e-6)


def test_formulate_refuses_bad_targets(
    instance: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["formulate", str(instance), "-k", "3", "--to"]
    assert run([*words, str(tmp_path / "m.txt")]) == 2
    assert run([*words, str(tmp_path / "none" / "m.lp")]) == 2
    assert "no folder" in capsys.readouterr().err
