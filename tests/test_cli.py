"""The command line: JSON on stdout alone, exit codes, the user's own model, files."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chita_opt.cli import BAD_INPUT, INTERRUPTED, OK, REFUSED, run
from chita_opt.cli.options import METHOD_NAMES
from chita_opt.heuristics import METHODS
from chita_opt.nn import load_weights

RIDGE = 0.05
KEYS = {
    "upper": float,
    "lower": float,
    "gap": float,
    "status": str,
    "seconds": float,
    "nnz": int,
    "method": str,
    "bound_proof": str,
    "gap_absolute": float,
    "share_of_pruning_everything": float,
    "screening": dict,
    "realised_sparsity": float,
    "version": str,
    "scope": str,
    "seed": int,
}


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    rng = np.random.default_rng(4)
    path = tmp_path / "tiny.npz"
    np.savez(path, A=rng.normal(size=(6, 8)), w_bar=rng.normal(size=8), g=0.1 * rng.normal(size=8))
    return path


def optimum(path: Path, k: int) -> float:
    """Enumerated in numpy."""
    with np.load(path, allow_pickle=False) as data:
        A, w_bar, g = data["A"], data["w_bar"], data["g"]
    C = A.T @ A / len(A) + RIDGE * np.eye(A.shape[1])
    best = np.inf
    for kept in combinations(range(len(w_bar)), k):
        x = -w_bar.copy()
        out = [j for j in range(len(x)) if j not in kept]
        S = np.ix_(kept, kept)
        x[list(kept)] = np.linalg.solve(C[S], -g[list(kept)] - C[np.ix_(kept, out)] @ x[out])
        best = min(best, 0.5 * x @ C @ x + g @ x)
    return best


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def solved(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = call(capsys, *arguments, "--json")
    assert code == OK and err == ""
    return dict(json.loads(out))


def test_the_method_names_are_those_of_the_table() -> None:
    assert METHOD_NAMES == ("auto", *METHODS)


def test_solve_agrees_with_enumeration(capsys: pytest.CaptureFixture[str], instance: Path) -> None:
    for k in (1, 3, 6):
        report = solved(capsys, "solve", instance, "--k", k, "--ridge", RIDGE)
        best = optimum(instance, k)
        assert report["lower"] <= best + 1e-12
        assert report["upper"] == pytest.approx(best, rel=1e-9)
        assert report["nnz"] == report["k"] == k


def test_the_json_of_solve(capsys: pytest.CaptureFixture[str], instance: Path) -> None:
    report = solved(capsys, "solve", instance, "--sparsity", 0.5, "--seed", 3)
    for name, kind in KEYS.items():
        assert isinstance(report[name], kind), name
    assert report["gap"] >= 0.0 and report["lower"] <= report["upper"]
    assert report["ridge"] == 1e-3 and report["requested_sparsity"] == 0.5
    assert report["seed"] == 3 and report["nnz"] == 4 and report["p"] == 8
    assert "accuracy" in report["scope"]


@pytest.mark.parametrize("family", ["2:4", "blocks:4:1", "rows:8:3"])
def test_families(capsys: pytest.CaptureFixture[str], instance: Path, family: str) -> None:
    report = solved(capsys, "solve", instance, "--family", family)
    assert report["nnz"] == report["k"] == {"2:4": 4, "blocks:4:1": 2, "rows:8:3": 3}[family]


def test_families_follow_the_shapes_of_layers(
    capsys: pytest.CaptureFixture[str], instance: Path
) -> None:
    rows = ("--shape", "2x2", "--shape", "2x2")
    assert solved(capsys, "solve", instance, "--family", "bmwm:2", *rows)["nnz"] == 4
    found = solved(capsys, "solve", instance, "--family", "neurons", "--k", 3, *rows)
    assert found["nnz"] == 2  # whole rows of two weights
    for text, what in (("3x2", "do not hold 8"), ("8", "is no shape")):
        code, _, err = call(
            capsys, "solve", instance, "--family", "darb", "--k", 3, "--shape", text
        )
        assert code == BAD_INPUT and what in err


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_solves(
    capsys: pytest.CaptureFixture[str], instance: Path, method: str
) -> None:
    report = solved(capsys, "solve", instance, "--k", 3, "--method", method, "--ridge", RIDGE)
    assert report["upper"] >= optimum(instance, 3) - 1e-12
    assert method in ("auto", report["method"])


def test_text_for_people(capsys: pytest.CaptureFixture[str], instance: Path) -> None:
    code, out, err = call(capsys, "solve", instance, "--k", 3)
    assert code == OK and err == ""
    assert "lower bound" in out and "not about the network's accuracy" in out


def test_a_time_limit_is_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "larger.npz"
    A = rng.normal(size=(300, 1500)) * rng.random(1500)
    np.savez(path, A=A.astype(np.float32), w_bar=rng.normal(size=1500))
    report = solved(capsys, "solve", path, "--sparsity", 0.7, "--time-limit", 1.0)
    assert report["seconds"] < 3.0 and report["lower"] <= report["upper"]


def test_the_target_gap(capsys: pytest.CaptureFixture[str], instance: Path) -> None:
    report = solved(capsys, "solve", instance, "--k", 3, "--gap", 0.9)
    assert report["lower"] <= report["upper"]


BAD = {
    "no budget": (["--ridge", 1], "needs k or a sparsity"),
    "both": (["--k", 2, "--sparsity", 0.5], "give one of them"),
    "k too large": (["--k", 9], "in [0, 8]"),
    "family": (["--family", "3:5"], "groups of 5"),
    "unknown family": (["--family", "squares"], "is not known"),
    "no ridge": (["--k", 2, "--ridge", 0], "ridge > 0"),
    "no folder": (["--k", 2, "--save-weights", "no/w.npy"], "no folder"),
    "method": (["--k", 2, "--method", "magic"], "magic"),
    "negative ridge": (["--k", 2, "--ridge", -1], "--ridge"),
    "sparsity": (["--sparsity", 1.5], "--sparsity"),
    "time limit": (["--k", 2, "--time-limit", 0], "--time-limit"),
}


@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], instance: Path, arguments: list[object], message: str
) -> None:
    code, out, err = call(capsys, "solve", instance, *arguments, "--json")
    assert code == BAD_INPUT and out == ""
    assert message in err and "Traceback" not in err


def test_bad_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.npz"
    np.savez(bad, A=np.eye(3))
    for path in (bad, tmp_path / "none.npz"):
        code, out, err = call(capsys, "solve", path, "--k", 1)
        assert code == BAD_INPUT and out == "" and path.name in err


def test_debug_shows_the_traceback(instance: Path) -> None:
    from chita_opt.errors import SupportError

    with pytest.raises(SupportError):
        run(["--debug", "solve", str(instance)])


def test_interrupted_methods_still_print(
    capsys: pytest.CaptureFixture[str], instance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("chita_opt.heuristics.relax_round"), "maximise_dual", stop)
    code, out, _ = call(capsys, "solve", instance, "--k", 3, "--json")
    report = json.loads(out)
    assert code == INTERRUPTED and report["status"] == "interrupted"
    assert report["lower"] <= report["upper"]


def test_interrupts_elsewhere_leave_with_130(
    capsys: pytest.CaptureFixture[str], instance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chita_opt.cli.solving.load_instance", stop)
    code, _, err = call(capsys, "solve", instance, "--k", 3)
    assert code == INTERRUPTED and "interrupted" in err


@pytest.fixture
def saved(capsys: pytest.CaptureFixture[str], instance: Path) -> tuple[Path, Path]:
    """A certificate and the weights in it."""
    certificate, weights = instance.with_name("c.safetensors"), instance.with_name("w.npy")
    files = ("--save-certificate", certificate, "--save-weights", weights)
    solved(capsys, "solve", instance, "--k", 3, "--ridge", RIDGE, *files)
    return certificate, weights


def test_verify(
    capsys: pytest.CaptureFixture[str], instance: Path, saved: tuple[Path, Path]
) -> None:
    report = solved(capsys, "verify", saved[0])
    assert report["verified"] is True and report["nnz"] == 3
    assert report["lower"] <= optimum(instance, 3) <= report["upper"] + 1e-12
    code, out, _ = call(capsys, "verify", saved[0], "--instance", instance)
    assert code == OK and "verified" in out


def test_verify_refuses_every_changed_byte(
    capsys: pytest.CaptureFixture[str], saved: tuple[Path, Path]
) -> None:
    content = saved[0].read_bytes()
    bad = saved[0].with_name("bad.safetensors")
    for place in [*range(0, len(content), len(content) // 60), len(content) - 1]:
        changed = bytearray(content)
        changed[place] ^= 1
        bad.write_bytes(changed)
        code, out, err = call(capsys, "verify", bad)
        assert code == REFUSED and out == "" and err.startswith("refused"), place
    bad.write_bytes(content[:-1])
    code, out, _ = call(capsys, "verify", bad, "--json")
    assert code == REFUSED and json.loads(out)["verified"] is False


def test_verify_refuses_another_instance(
    capsys: pytest.CaptureFixture[str], instance: Path, saved: tuple[Path, Path]
) -> None:
    with np.load(instance, allow_pickle=False) as data:
        arrays = dict(data)
    for name in arrays:
        other = instance.with_name("other.npz")
        np.savez(other, **{k: a * (1 + 1e-9 * (k == name)) for k, a in arrays.items()})
        code, _, err = call(capsys, "verify", saved[0], "--instance", other)
        assert code == REFUSED and f"{name} differs" in err


def test_certify_own_weights(
    capsys: pytest.CaptureFixture[str], instance: Path, saved: tuple[Path, Path]
) -> None:
    report = solved(capsys, "certify", instance, "--weights", saved[1], "--ridge", RIDGE)
    assert report["k"] == 3 and report["upper"] == pytest.approx(optimum(instance, 3), rel=1e-9)
    code, _, err = call(capsys, "certify", instance, "--weights", saved[1], "--k", 2)
    assert code == BAD_INPUT and "keep 3 weights" in err
    for array in (np.zeros(3), np.zeros((2, 4)), np.full(8, np.nan), np.zeros(8, dtype=int)):
        np.save(saved[1], array)
        code, _, err = call(capsys, "certify", instance, "--weights", saved[1], "--k", 2)
        assert code == BAD_INPUT and "w.npy" in err


def test_compare(capsys: pytest.CaptureFixture[str], instance: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = instance.with_name("plot.png")
    methods = "magnitude,chita, relax_round"
    arguments = ("compare", instance, "--k", 3, "--ridge", RIDGE, "--methods", methods)
    report = solved(capsys, *arguments, "--plot", plot)
    assert [row["method"] for row in report["rows"]] == ["magnitude", "chita", "relax_round"]
    assert all(row["lower"] <= row["objective"] for row in report["rows"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    code, out, _ = call(capsys, *arguments)
    assert code == OK and "lower bound" in out
    code, _, err = call(capsys, "compare", instance, "--k", 3, "--methods", "magic")
    assert code == BAD_INPUT and "no method" in err
    code, _, err = call(capsys, "compare", "none.npz", "--k", 3)
    assert code == BAD_INPUT and "demo-net" in err


NETS = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4))
def data():
    torch.manual_seed(1)
    return torch.randn(64, 8), torch.randint(4, (64,))
def loader():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), 16)
def number():
    return 3
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder with the user's module, which is the current one."""
    (tmp_path / "users_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "users_nets", raising=False)
    return import_module


PRUNE = ("prune", "--model", "users_nets:make", "--rows", 64, "--ridge", 0.05)


@pytest.mark.parametrize("data", ["data", "loader"])
def test_prune_a_users_model(capsys: pytest.CaptureFixture[str], user: Any, data: str) -> None:
    arguments = (*PRUNE, "--data", f"users_nets:{data}", "--test", "users_nets:data")
    files = ("--out", "pruned.safetensors", "--save-certificate", "c.safetensors")
    report = solved(capsys, *arguments, "--sparsity", 0.5, *files)
    assert set(KEYS) <= set(report) and report["nnz"] == 36
    assert 0.0 <= report["accuracy"] <= 100.0
    nets = user("users_nets")
    model, dense, found = nets.make(), nets.make(), load_weights("pruned.safetensors")
    model.load_state_dict(found.state)
    assert sum(int((model[i].weight != 0).sum()) for i in (0, 2)) == 36
    assert torch.equal(model[0].bias, dense[0].bias)
    assert torch.equal(found.masks["0.weight"], model[0].weight != 0)
    code, out, _ = call(capsys, "verify", "c.safetensors")
    assert code == OK and "36 of 72" in out


def test_prune_reads_checkpoints(capsys: pytest.CaptureFixture[str], user: Any) -> None:
    arguments = (*PRUNE, "--data", "users_nets:data", "--sparsity", 0.5)
    state = {k: 2 * v for k, v in nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
             .state_dict().items()}  # fmt: skip
    torch.save({"state_dict": state, "epoch": 3}, "net.pt")
    call(capsys, *arguments, "--checkpoint", "net.pt", "--out", "a.safetensors", "--no-certify")
    kept = load_weights("a.safetensors")
    assert torch.equal(kept.state["0.bias"], state["0.bias"])
    call(capsys, *arguments, "--checkpoint", "a.safetensors", "--out", "b.safetensors")
    assert torch.equal(load_weights("b.safetensors").state["2.bias"], state["2.bias"])
    torch.save(nn.Linear(2, 2), "code.pt")
    code, _, err = call(capsys, *arguments, "--checkpoint", "code.pt")
    assert code == BAD_INPUT and "plain weights" in err
    torch.save({"weight": torch.zeros(2)}, "wrong.pt")
    code, _, err = call(capsys, *arguments, "--checkpoint", "wrong.pt")
    assert code == BAD_INPUT and "does not fit the model" in err


def test_prune_options_reach_the_library(capsys: pytest.CaptureFixture[str], user: Any) -> None:
    arguments = ("prune", "--model", "users_nets:make", "--data", "users_nets:data")
    report = solved(
        capsys, *arguments, "--rows", 16, "--batch-size", 4, "--first-order", "1/m",
        "--support", "2:4", "--include", "0", "--ridge", 0.1, "--method", "chita",
    )  # fmt: skip
    assert report["nnz"] == 24 and report["method"] == "chita" and report["ridge"] == 0.1
    assert [row["name"] for row in report["layers"]] == ["0.weight"]
    assert report["notes"]["curvature"] == "16 gradient rows of 4 samples"
    inputs = solved(
        capsys, *arguments, "--curvature", "inputs", "--rows", 64, "--scope", "layer",
        "--sparsity", 0.5, "--method", "chita", "--ridge-unit", "mean_diagonal", "--ridge", 0.2,
    )  # fmt: skip
    assert set(inputs["layer_gaps"]) == {"0.weight", "2.weight"}
    code, out, _ = call(capsys, *arguments, "--rows", 64, "--sparsity", 0.5, "--no-certify")
    assert code == OK and "not certified" in out
    code, out, _ = call(capsys, *arguments, "--rows", 16, "--sparsity", 0.5, "--no-trust")
    assert code == OK and "switched off" in out
    held = solved(capsys, *arguments, "--rows", 16, "--sparsity", 0.5, "--holdout", 10)
    assert held["trust"]["samples"] == 5 and held["trust"]["verdict"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"--model": "users_nets"}, "MODULE:FUNCTION"),
        ({"--model": "no_such_module:make"}, "no module 'no_such_module'"),
        ({"--model": "users_nets:no"}, "no function 'no'"),
        ({"--model": "users_nets:number"}, "not a torch module"),
        ({"--test": "users_nets:number"}, "(x, y)"),
        ({"--support": "3:8"}, "exclude='2.weight'"),
        ({"--sparsity": "2"}, "--sparsity"),
        ({"--out": "no/pruned"}, "no folder"),
        ({"--rows": "65"}, "Lower rows"),
        ({"--exclude": "fc9"}, "matches no layer"),
    ],
)
def test_prune_mistakes(
    capsys: pytest.CaptureFixture[str], user: Any, change: dict[str, str], message: str
) -> None:
    given = {"--model": "users_nets:make", "--data": "users_nets:data", "--rows": "64"}
    if "--support" not in change:
        given["--sparsity"] = "0.5"
    arguments = [text for pair in (given | change).items() for text in pair]
    code, out, err = call(capsys, "prune", *arguments)
    assert code == BAD_INPUT and out == "" and message in err


@pytest.mark.slow
def test_the_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("mlxtend")
    out = tmp_path / "demo"
    report = solved(capsys, "demo", "--out", out, "--sparsities", "0.98")
    names = {p.name for p in out.iterdir()}
    assert names == {
        "certificate.safetensors", "objective_over_time.png", "accuracy_over_sparsity.png"
    }  # fmt: skip
    methods = [row["method"] for row in report["rows"] if row["budget"] == "0.98"]
    assert methods == ["magnitude", "backsolve", "chita", "relax_round", "masked training"]
    best = report["rows"][3]
    assert best["gap"] < 0.005 and best["nnz"] == 647 and best["accuracy"] > 50.0
    assert {row["nnz"] for row in report["rows"] if row["budget"] == "2:4"} == {16180}
    assert report["verified"] is True
    code, _, err = call(capsys, "demo", "--out", out, "--sparsities", "0.5,two")
    assert code == BAD_INPUT and "--sparsities" in err


def test_help_and_verify_do_not_load_torch(saved: tuple[Path, Path]) -> None:
    for arguments in (["--help"], ["solve", "--help"], ["verify", str(saved[0])]):
        code = (
            "import sys\nfrom chita_opt.cli import run\n"
            f"code = run({arguments!r})\n"
            "print(sorted({'torch', 'matplotlib', 'pyomo', 'cvxpy'} & set(sys.modules)))\n"
            "sys.exit(code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == OK, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"
        if "--help" in arguments:
            assert "130  interrupted" in done.stdout


def test_the_entry_point_exits_with_the_code() -> None:
    code = "from chita_opt.cli import main; main(['solve'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == BAD_INPUT and "Usage" in done.stderr and done.stdout == ""
