"""``solve`` by search: agreement with enumeration, limits, files and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chita_opt.cli import BAD_INPUT, OK

from .test_cli import RIDGE, call, instance, optimum, solved

__all__ = ["instance"]  # the fixture


@pytest.mark.parametrize("method", ["auto", "bnb", "highs"])
@pytest.mark.parametrize("k", [0, 1, 3, 6, 8])
def test_searches_agree_with_enumeration(
    capsys: pytest.CaptureFixture[str], instance: Path, method: str, k: int
) -> None:
    report = solved(capsys, "solve", instance, "--k", k, "--ridge", RIDGE, "--method", method)
    best = optimum(instance, k)
    assert report["upper"] == pytest.approx(best, rel=1e-8)
    assert report["lower"] <= best + 1e-12
    assert report["gap"] <= 1e-4 or report["gap_absolute"] <= 1e-9  # k = 8 prunes nothing
    assert report["status"] == "optimal"


def test_the_hybrid_by_name(
    capsys: pytest.CaptureFixture[str], instance: Path, tmp_path: Path
) -> None:
    file = tmp_path / "hybrid.safetensors"
    limits = ("--time-limit", 20, "--save-certificate", file)
    report = solved(
        capsys, "solve", instance, "--k", 3, "--ridge", RIDGE, "--method", "hybrid", *limits
    )
    assert report["method"] == "hybrid"
    assert report["upper"] == pytest.approx(optimum(instance, 3), rel=1e-8)
    code, out, _ = call(capsys, "verify", file)
    assert code == OK and "accuracy" in out


def test_the_relaxation_by_name(capsys: pytest.CaptureFixture[str], instance: Path) -> None:
    report = solved(capsys, "solve", instance, "--k", 3, "--method", "relaxation")
    assert report["method"] == "relax_round" and report["bound_proof"] in ("dual", "trivial")


def test_a_tree_cut_short_still_bounds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / "middle.npz"
    A = rng.normal(size=(40, 8)) @ rng.normal(size=(8, 30)) + 0.05 * rng.normal(size=(40, 30))
    np.savez(path, A=A, w_bar=rng.normal(size=30))
    arguments = ("solve", path, "--k", 9, "--ridge", 1e-5)
    whole = solved(capsys, *arguments, "--method", "bnb")
    short = solved(capsys, *arguments, "--method", "bnb", "--node-limit", 1)
    assert short["nodes"] <= 1 < whole["nodes"]
    assert short["lower"] <= whole["lower"] + 1e-9 * abs(whole["lower"])
    assert short["upper"] >= whole["lower"] and short["status"] == "iteration_limit"


def test_files_of_a_search(
    capsys: pytest.CaptureFixture[str], instance: Path, tmp_path: Path
) -> None:
    weights, certificate = tmp_path / "w.npy", tmp_path / "c.safetensors"
    files = ("--save-weights", weights, "--save-certificate", certificate)
    report = solved(capsys, "solve", instance, "--k", 3, "--ridge", RIDGE, *files)
    assert np.count_nonzero(np.load(weights)) == report["nnz"] == 3
    assert report["certificate_lower"] <= report["lower"] + 1e-12
    code, out, _ = call(capsys, "verify", certificate)
    assert code == OK and "accuracy" in out


@pytest.mark.parametrize("method", ["bnb", "auto"])
def test_a_proof_is_replayed(
    capsys: pytest.CaptureFixture[str], instance: Path, tmp_path: Path, method: str
) -> None:
    proof = tmp_path / "proof.safetensors"
    report = solved(
        capsys, "solve", instance, "--k", 3, "--ridge", RIDGE, "--method", method, "--proof", proof
    )
    assert report["proof_steps"] >= 1
    code, out, _ = call(capsys, "verify", proof)
    assert code == OK and "accuracy" in out


def test_a_stopped_tree_proves_its_bound(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    path, proof = tmp_path / "middle.npz", tmp_path / "proof.safetensors"
    A = rng.normal(size=(40, 8)) @ rng.normal(size=(8, 30)) + 0.05 * rng.normal(size=(40, 30))
    np.savez(path, A=A, w_bar=rng.normal(size=30))
    arguments = ("solve", path, "--k", 9, "--ridge", 1e-5, "--method", "bnb", "--node-limit", 1)
    report = solved(capsys, *arguments, "--proof", proof)
    assert report["lower"] * (1 - 1e-6) <= report["proof_lower"] <= report["upper"]
    code, out, _ = call(capsys, "verify", proof)
    assert code == OK and "proves       lower bound" in out and "not optimality" in out


@pytest.mark.parametrize("method", ["highs", "relaxation", "chita"])
def test_a_proof_needs_a_tree(
    capsys: pytest.CaptureFixture[str], instance: Path, tmp_path: Path, method: str
) -> None:
    proof = tmp_path / "proof.safetensors"
    code, out, err = call(capsys, "solve", instance, "--k", 3, "--method", method, "--proof", proof)
    assert code == BAD_INPUT and out == "" and "bnb" in err and not proof.exists()
