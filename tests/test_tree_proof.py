"""Logs of branch and bound: the right ones are accepted, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chita_opt as co
from chita_opt.certificates import (
    ProofReport,
    certify,
    save_problem,
    save_proof,
    verify,
    verify_file,
    verify_proof,
)
from chita_opt.certificates.certificate import (
    dense_arrays,
    problem_arrays,
    problem_specification,
)
from chita_opt.certificates.container import read_sealed
from chita_opt.certificates.node_bound import FREE, IN, OUT, NodeBounds
from chita_opt.certificates.problem_data import read_problem
from chita_opt.certificates.tree_proof import replay
from chita_opt.cli import OK, REFUSED, run
from chita_opt.errors import CertificateError, ProblemError
from chita_opt.exact import TreeOptions, branch_and_bound, enumerate_optimum
from chita_opt.heuristics import solve
from chita_opt.instances import correlated_instance

from .forging import Arrays, Claims, forge, with_changed_bits
from .problems import CURVATURES, FAMILIES, LAMINAR, families_where, make_problem, random_problem
from .small_tree import Logged, SmallTree, log_of

OTHERS = [name for name in FAMILIES if name not in LAMINAR]
TIGHT = families_where(lambda family: family.rows_are_tight)


@pytest.fixture(scope="module")
def logged() -> Logged:
    """A tree with branchings, fixings, closed leaves and empty ones."""
    problem = make_problem("dense", "cardinality", p=12, seed=3, ridge=1e-2, linear=True)
    blocks = co.Budget.per_block([i % 3 for i in range(12)], 2)
    return log_of(problem.with_supports(co.Budget.nested(blocks, 5)))


@pytest.fixture(scope="module")
def file(logged: Logged, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("proof") / "file"
    save_proof(logged, path)
    return path


def refused(file: Path, target: Path, change: Callable[[Arrays, Claims], object], why: str) -> None:
    with pytest.raises(CertificateError, match=why):
        verify_proof(forge(file, target, change))


# -- accepted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TIGHT)
@pytest.mark.parametrize("form", CURVATURES)
def test_honest_logs_are_accepted(form: str, family: str, tmp_path: Path) -> None:
    found = log_of(make_problem(form, family, p=8, linear=True, per_weight=True))
    written = save_proof(found, tmp_path / "file")
    report = verify_proof(tmp_path / "file")
    assert report.lower == written.lower <= found.optimum <= report.upper
    assert report.gap <= 3e-6 * (abs(found.optimum) + report.at_zero)
    assert (report.steps, report.p) == (found.proof.steps if found.proof else 0, 8)


@pytest.mark.parametrize("family", [*OTHERS, "cardinality", "n_of_m", "nested_blocks"])
@pytest.mark.parametrize("form", ["low_rank", "dense", "shared_rows", "mixed_blocks"])
def test_logs_of_the_real_search_are_accepted(form: str, family: str, tmp_path: Path) -> None:
    problem = make_problem(form, family, p=12, linear=True)
    if problem.supports.binary_auxiliary:
        with pytest.raises(ProblemError, match="search without a proof"):
            branch_and_bound(problem, options=TreeOptions(proof=True))
        return
    result = branch_and_bound(problem, options=TreeOptions(proof=True))
    save_proof(result, tmp_path / "file")
    report, optimum = verify_proof(tmp_path / "file"), enumerate_optimum(problem).objective
    assert report.lower <= optimum * (1 + 1e-12) + 1e-15 and report.upper >= optimum
    assert report.gap <= 1.1e-4 * (report.upper - problem.dense_minimum) + 1e-10


@pytest.mark.parametrize("limit", [1, 3, 7])
@pytest.mark.parametrize("family", ["cardinality", "nested_blocks"])
def test_logs_of_stopped_searches_prove_the_bound_reached(
    family: str, limit: int, tmp_path: Path
) -> None:
    problem = make_problem("dense", family, p=14, seed=5, ridge=1e-4, linear=True)
    options = TreeOptions(proof=True, node_limit=limit, gap=0.0)
    result = branch_and_bound(problem, options=options)
    save_proof(result, tmp_path / "file")
    report, optimum = verify_proof(tmp_path / "file"), enumerate_optimum(problem).objective
    assert report.lower >= result.lower - 1e-6 * abs(result.lower)
    assert report.lower <= optimum <= report.upper
    gap = (report.upper - report.lower) / (report.upper - problem.dense_minimum)
    assert report.relative_gap == pytest.approx(gap)


def test_a_search_stopped_before_its_root_proves_the_dense_minimum(tmp_path: Path) -> None:
    problem = make_problem("dense", "cardinality", p=14, seed=5, linear=True)
    result = branch_and_bound(problem, options=TreeOptions(proof=True, time_limit=1e-9))
    save_proof(result, tmp_path / "file")
    report = verify_proof(tmp_path / "file")
    assert (report.steps, report.leaves) == (1, 1)
    assert report.lower == pytest.approx(problem.dense_minimum, abs=1e-6 * problem.prune_all)


def test_a_log_says_what_it_proves(logged: Logged, file: Path) -> None:
    report = verify_proof(file)
    assert isinstance(report, ProofReport) and report.fixings > 0 and report.leaves > 3
    _, claims = read_sealed(file)
    assert "not about the network" in claims["scope"] and claims["steps"] == report.steps
    assert report.lower == pytest.approx(logged.optimum, rel=1e-4)
    assert report.weakest >= report.lower


def test_a_thousand_nodes(tmp_path: Path) -> None:
    problem = make_problem("deficient", "cardinality", p=12, ridge=1e-4)
    problem = problem.with_supports(co.Budget.cardinality(12, 5))
    found = log_of(problem, slack=1e-9, ascents=0, fix=False, share=1e-3, slow=True)
    assert found.proof is not None and found.proof.steps >= 1000
    save_proof(found, tmp_path / "file")
    report = verify_proof(tmp_path / "file")
    assert report.steps == found.proof.steps and report.lower <= found.optimum <= report.upper


def test_one_verify_for_both_kinds(file: Path, logged: Logged, tmp_path: Path) -> None:
    certify(logged.solution).save(tmp_path / "certificate")
    assert verify(file) == verify_proof(file)
    assert co.verify(tmp_path / "certificate") == verify_file(tmp_path / "certificate")
    with pytest.raises(CertificateError, match="not 'tree_proof'"):
        verify_proof(tmp_path / "certificate")
    with pytest.raises(CertificateError):
        verify_file(file)


def test_the_problem_may_be_given_beside(file: Path, logged: Logged, tmp_path: Path) -> None:
    save_problem(logged.solution.problem, tmp_path / "own")
    assert verify(file, tmp_path / "own") == verify(file)
    save_problem(make_problem("dense", "nested_blocks", p=12, seed=4), tmp_path / "other")
    with pytest.raises(CertificateError, match="another problem"):
        verify(file, tmp_path / "other")


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_line_replays(
    as_json: bool, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--json"] if as_json else []
    assert run(["verify", str(file), *more]) == OK
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out)["verified"] and json.loads(out)["bound_proof"] == "tree"
    else:
        assert "a tree of" in out and "not about the network" in out.replace("\n", " ")
        assert "proves       the optimum, to within" in out
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-1])
    assert run(["verify", str(tmp_path / "cut"), *more]) == REFUSED


def test_replaying_needs_no_torch(file: Path) -> None:
    code = (
        "import sys; from chita_opt.certificates import verify; "
        f"verify({str(file)!r}); assert not {{'torch', 'scipy'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=60)


# -- refused ------------------------------------------------------------------------------------


def test_every_changed_byte_is_refused(file: Path, tmp_path: Path) -> None:
    for changed in with_changed_bits(file, tmp_path / "x", 200):
        with pytest.raises(CertificateError):
            verify_proof(changed)


def hard() -> co.Problem:
    instance = correlated_instance(40, 20, correlation=0.7, seed=1)
    return instance.problem(ridge=1e-2, supports=co.Budget.cardinality(20, 5))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of a search with open leaves."""
    result = branch_and_bound(hard(), options=TreeOptions(proof=True, node_limit=4, gap=0.0))
    assert result.stats["open_nodes"] > 1
    path = tmp_path_factory.mktemp("stopped") / "file"
    save_proof(result, path)
    return path


def test_corruptions_of_a_stopped_log_are_refused(stopped: Path, tmp_path: Path) -> None:
    assert run(["verify", str(stopped)]) == OK
    for changed in with_changed_bits(stopped, tmp_path / "x", 50):
        with pytest.raises(CertificateError):
            verify_proof(changed)
    arrays, written = read_sealed(stopped)
    optimum = enumerate_optimum(hard()).objective
    steps = len(arrays["tree.parent"])
    leaves = set(range(steps)) - set(arrays["tree.parent"].tolist())
    for leaf in leaves:
        if arrays["tree.side"][leaf] >= 0:
            refused(stopped, tmp_path / "x", without_step(leaf), "needs one child|is not proven")
            continue
        # an only child: its parent's own witness proves the same claim, and nothing wrong
        report = verify_proof(forge(stopped, tmp_path / "x", without_step(leaf)))
        assert report.lower == written["lower"] <= optimum
    for name in ("cutoff", "lower"):

        def raised(arrays: Arrays, claims: Claims, name: str = name) -> None:
            claims["lower"] = claims[name] = claims[name] + 1e-4 * abs(claims["upper"])

        refused(stopped, tmp_path / "x", raised, "not proven|exceeds")


def without_step(step: int) -> Callable[[Arrays, Claims], None]:
    """Drop a leaf, and renumber as one who hides it would."""

    def change(arrays: Arrays, claims: Claims) -> None:
        for name in ("parent", "side", "branch", "witness_row"):
            arrays[f"tree.{name}"] = np.delete(arrays[f"tree.{name}"], step)
        for name in ("parent", "fix_step"):
            own = arrays[f"tree.{name}"]
            arrays[f"tree.{name}"] = own - (own > step)

    return change


def test_a_dropped_leaf_is_refused(file: Path, tmp_path: Path) -> None:
    arrays, _ = read_sealed(file)
    leaves = set(range(len(arrays["tree.parent"]))) - set(arrays["tree.parent"].tolist())
    for leaf in leaves:
        refused(file, tmp_path / "x", without_step(leaf), "needs one child|is not proven")


def test_a_subtree_that_is_cut_off_is_refused(file: Path, tmp_path: Path) -> None:
    """A branching turned into a leaf, its subtrees hidden under a second copy of nothing."""
    arrays, _ = read_sealed(file)
    for step in np.flatnonzero(arrays["tree.branch"] >= 0).tolist():

        def change(arrays: Arrays, claims: Claims, step: int = step) -> None:
            gone = {step}
            for i, parent in enumerate(arrays["tree.parent"].tolist()):
                if parent in gone:
                    gone.add(i)
            keep = np.array([i not in gone or i == step for i in range(len(arrays["tree.parent"]))])
            number = np.cumsum(keep) - 1
            arrays["tree.branch"][step] = -1
            fixed = keep[arrays["tree.fix_step"]]
            for name in ("fix_index", "fix_value"):
                arrays[f"tree.{name}"] = arrays[f"tree.{name}"][fixed]
            arrays["tree.fix_step"] = number[arrays["tree.fix_step"][fixed]]
            parent = arrays["tree.parent"][keep]
            arrays["tree.parent"] = np.where(parent < 0, parent, number[parent])
            for name in ("side", "branch", "witness_row"):
                arrays[f"tree.{name}"] = arrays[f"tree.{name}"][keep]

        refused(file, tmp_path / "x", change, "is not proven")


@pytest.mark.parametrize(("name", "rise"), [("cutoff", 1e-4), ("lower", 1e-12)])
def test_a_raised_claim_is_refused(name: str, rise: float, file: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays, claims: Claims) -> None:
        claims[name] += rise * abs(claims["upper"])
        claims["lower"] = claims[name]

    refused(file, tmp_path / "x", change, "not proven|exceeds")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1", True, 10**400])
@pytest.mark.parametrize("name", ["cutoff", "lower", "upper"])
def test_claims_of_another_type_are_refused(
    name: str, value: object, file: Path, tmp_path: Path
) -> None:
    refused(file, tmp_path / "x", lambda arrays, claims: claims.update({name: value}), name)


def test_a_lowered_objective_is_refused(file: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays, claims: Claims) -> None:
        claims["upper"] -= 1e-6 * abs(claims["upper"])

    refused(file, tmp_path / "x", change, "objective|exceeds")


def test_an_unproven_fixing_is_refused(file: Path, tmp_path: Path) -> None:
    """Every fixing turned into its opposite, one at a time."""
    arrays, _ = read_sealed(file)
    for i in range(len(arrays["tree.fix_value"])):

        def change(arrays: Arrays, claims: Claims, i: int = i) -> None:
            arrays["tree.fix_value"][i] ^= 1

        refused(file, tmp_path / "x", change, "fixing of weight")


def test_an_invented_fixing_is_refused(file: Path, logged: Logged, tmp_path: Path) -> None:
    """Against the optimum itself: some step of the path to it must refuse."""
    kept = logged.solution.mask.numpy()

    def change(arrays: Arrays, claims: Claims) -> None:
        taken = arrays["tree.fix_index"][arrays["tree.fix_step"] == 0]
        j = next(j for j in range(12) if j not in taken and j != arrays["tree.branch"][0])
        first = arrays["tree.fix_step"].searchsorted(0)
        for name, value in (("step", 0), ("index", j), ("value", int(not kept[j]))):
            own = arrays[f"tree.fix_{name}"]
            arrays[f"tree.fix_{name}"] = np.insert(own, first, value)

    refused(file, tmp_path / "x", change, "fix")


def test_a_missing_side_is_refused(file: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays, claims: Claims) -> None:
        arrays["tree.side"][arrays["tree.side"] == 1] = 0

    refused(file, tmp_path / "x", change, "needs one child")


def test_a_cycle_is_refused(file: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays, claims: Claims) -> None:
        arrays["tree.parent"][1] = len(arrays["tree.parent"]) - 1

    refused(file, tmp_path / "x", change, "no tree")


def test_a_second_root_is_refused(file: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays, claims: Claims) -> None:
        arrays["tree.parent"][-1] = -1

    refused(file, tmp_path / "x", change, "no tree")


def test_branching_twice_on_a_weight_is_refused(file: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays, claims: Claims) -> None:
        inner = np.flatnonzero(arrays["tree.branch"] >= 0)
        arrays["tree.branch"][inner] = arrays["tree.branch"][0]

    refused(file, tmp_path / "x", change, "again")


def test_an_incumbent_that_is_not_allowed_is_refused(file: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays, claims: Claims) -> None:
        arrays["solution.w"] = arrays["problem.w_bar"].copy()

    refused(file, tmp_path / "x", change, "break row")


@pytest.mark.parametrize("factor", [1.2, 10.0, -1.0, 0.0])
def test_a_split_that_takes_too_much_is_refused(factor: float, file: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays, claims: Claims) -> None:
        arrays["tree.splits"] = factor * arrays["tree.splits"]
        claims["lower"] = claims["cutoff"] = -1e9

    refused(file, tmp_path / "x", change, "semidefinite" if factor > 0 else "not positive")


def test_a_witness_of_another_node_is_refused(file: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays, claims: Claims) -> None:
        rows = arrays["tree.witness_row"]
        rows[rows >= 0] = rows[0]

    refused(file, tmp_path / "x", change, "not proven")


def test_a_leaf_without_a_witness_is_refused(file: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays, claims: Claims) -> None:
        leaves = np.setdiff1d(np.arange(len(arrays["tree.parent"])), arrays["tree.parent"])
        arrays["tree.witness_row"][leaves] = -1

    refused(file, tmp_path / "x", change, "has no witness")


def test_every_array_is_needed_and_named(file: Path, tmp_path: Path) -> None:
    arrays, _ = read_sealed(file)
    for name in arrays:
        refused(file, tmp_path / "x", lambda a, c, name=name: a.pop(name), name)  # type: ignore[misc]


@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: a[:0], lambda a: a[None]])
def test_wrong_shapes_are_refused(
    change: Callable[[np.ndarray], np.ndarray], file: Path, tmp_path: Path
) -> None:
    arrays, _ = read_sealed(file)
    for name in arrays:
        with pytest.raises(CertificateError):
            verify_proof(
                forge(file, tmp_path / "x", lambda a, c, n=name: a.update({n: change(a[n])}))
            )  # type: ignore[misc]


def test_a_log_that_proves_less_is_not_written(logged: Logged, tmp_path: Path) -> None:
    assert logged.proof is not None
    high = replace(logged.proof, cutoff=logged.optimum + 0.1 * abs(logged.optimum))
    with pytest.raises(CertificateError, match="proves a cutoff of"):
        save_proof(replace(logged, proof=high), tmp_path / "x")
    with pytest.raises(CertificateError, match="left no log"):
        save_proof(replace(logged, proof=None), tmp_path / "x")
    assert not list(tmp_path.iterdir())


# -- never above the optimum ---------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_bounds_of_random_states_hold(seed: int) -> None:
    """Any witness, any valid split, any state: the bound stays below the best of that state."""
    problem = random_problem(seed)
    source = np.random.default_rng(seed)
    p = problem.p
    stored = read_problem(problem_arrays(problem), problem_specification(problem))
    bounds = NodeBounds(stored)
    tree = SmallTree(problem, 0.0)
    for row in range(4):
        state = source.choice([FREE, OUT, IN], size=p, p=[0.5, 0.3, 0.2])
        v = source.normal(size=p) * source.choice([0.1, 1.0])
        gains = bounds.gains(v, tree.d * source.uniform(0.2, 1.0, size=p), state, row)
        best = best_of_state(problem, state)
        found = bounds.bound(gains, state)
        assert found <= best
        if np.isinf(found):
            assert np.isinf(best)


def best_of_state(problem: co.Problem, state: np.ndarray) -> float:
    """By enumeration of the masks of a state."""
    import torch

    free, best = np.flatnonzero(state == FREE), float("inf")
    for code in range(2 ** len(free)):
        mask = state == IN
        mask[free] = [(code >> i) & 1 for i in range(len(free))]
        chosen = torch.from_numpy(mask)
        if problem.supports.contains(chosen):
            solver = problem.curvature.support_solver(problem.separable, chosen)
            best = min(best, solver.value)
    return best


@settings(max_examples=200)
@given(st.data())
def test_no_accepted_log_claims_more_than_the_optimum(data: st.DataObject) -> None:
    """Honest logs, damaged at random and with a cutoff of any height."""
    seed = data.draw(st.integers(0, 40))
    form = data.draw(st.sampled_from(["dense", "low_rank", "shared_rows"]))
    family = data.draw(st.sampled_from(["cardinality", "blocks", "nested_blocks", "n_of_m"]))
    problem = make_problem(form, family, p=6, seed=seed, linear=seed % 2 == 0)
    optimum = enumerate_optimum(problem)
    rise = data.draw(st.sampled_from([-1e-3, 0.0, 1e-9, 1e-3, 0.3, 2.0]))
    cutoff = optimum.objective + rise * abs(optimum.objective)
    proof = SmallTree(problem, min(cutoff, optimum.objective), ascents=3).run()
    arrays = problem_arrays(problem) | {"solution.w": optimum.w.numpy()} | dense_arrays(problem)
    names = [f for f in proof.__dataclass_fields__ if f != "cutoff"]
    arrays |= {f"tree.{name}": np.array(getattr(proof, name)) for name in names}
    for _ in range(data.draw(st.integers(0, 3))):
        array = arrays[f"tree.{data.draw(st.sampled_from(names))}"]
        if array.size:
            place = data.draw(st.integers(0, array.size - 1))
            value = st.floats(-3, 3) if array.dtype.kind == "f" else st.integers(-1, 8)
            array.reshape(-1)[place] = data.draw(value)
    try:
        report = replay(arrays, problem_specification(problem), cutoff)
    except CertificateError:
        return
    assert report.lower <= cutoff <= optimum.objective * (1 + 1e-12) or report.weakest >= cutoff
    assert report.lower <= optimum.objective


def test_solutions_of_a_heuristic_may_be_the_incumbent(tmp_path: Path) -> None:
    problem = make_problem("dense", "cardinality", p=10)
    found = log_of(problem, slack=1e-6)
    other = replace(found, solution=solve(problem, "magnitude"))
    report = save_proof(other, tmp_path / "file")
    assert report.lower <= found.optimum <= report.upper == verify_proof(tmp_path / "file").upper
