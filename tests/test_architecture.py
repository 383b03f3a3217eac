"""The rules of the code base that a reader could break without noticing."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import chita_opt

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("chita_opt/**/*.py"), *ROOT.glob("formulations/**/*.py")])

# A room may import itself and rooms of a smaller number; equal numbers are siblings, kept apart.
ORDER = {
    "errors": 0,
    "files": 0,
    "supports": 1,
    "curvature": 2,
    "problem": 3,
    "solution": 4,
    "instances": 5,
    "bounds": 6,
    "heuristics": 7,
    "formulations": 7,
    "exact": 8,
    "certificates": 9,
    "nn": 10,
    "cli": 11,
}
HEAVY = ("torch", "pyomo", "cvxpy", "matplotlib")
MAX_LINES = 400
MAX_PARAMETERS = 8


def module_name(path: Path) -> str:
    """Name under which a source file is published."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "formulations":
        parts.insert(0, "chita_opt")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """Room of a module; "" for chita_opt itself."""
    return module.split(".")[1] if "." in module else ""


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Yield every module or name that a source imports, at any depth, as an absolute name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - is_package
                package = module.split(".")[: len(module.split(".")) - up]
                base = ".".join([*package, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node).endswith("import_module") and node.args:
            if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                yield node.args[0].value


def called(node: ast.Call) -> str:
    """Dotted name of what a call calls, such as "np.load"; "" where it has none."""
    try:
        return ast.unparse(node.func)
    except ValueError:
        return ""


def wrong_imports(source: str, module: str, is_package: bool = False) -> list[str]:
    """Names that a module must not import, given its room."""
    own, wrong = room(module), []
    for name in imports(ast.parse(source), module, is_package):
        if name.split(".")[0] == "formulations":
            wrong.append(f"{name}: say chita_opt.formulations")
        if name.split(".")[0] != "chita_opt" or not own:
            continue
        other = room(name)
        if other == "__version__" or (own == "cli" and not other):
            continue
        if other not in ORDER:
            wrong.append(f"{name}: import from the room that defines it")
        elif other != own and ORDER[other] >= ORDER[own]:
            wrong.append(f"{name}: {own} stands to the left of {other}, or beside it")
    return wrong


def pickles(source: str) -> list[str]:
    """Uses of pickle in a module, with line numbers."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if {name.split(".")[0] for name in names} & {"pickle", "cPickle", "cloudpickle", "dill"}:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Call):
            words = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            name = called(node)
            if name == "torch.load" and words.get("weights_only") is not True:
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
            if name in ("np.load", "numpy.load") and words.get("allow_pickle") is not False:
                found.append(f"line {node.lineno}: np.load without allow_pickle=False")
    return found


def packages_on_disk() -> set[str]:
    """Every folder with an __init__.py, as the package it is published as."""
    return {module_name(path) for path in SOURCES if path.name == "__init__.py"}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    module = module_name(path)
    assert room(module) in {"", *ORDER}, f"{module} is in no known room: add it to ORDER"
    assert not wrong_imports(path.read_text(), module, path.name == "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines: split it"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_more_parameters_mean_a_missing_type(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef):
            continue
        if any("njit" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue  # compiled kernels take plain arrays
        own = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([a for a in own if a.arg not in ("self", "cls")])
        assert count <= MAX_PARAMETERS, f"{path.name}: {node.name} has {count} parameters"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_pickle(path: Path) -> None:
    assert not pickles(path.read_text())


@pytest.mark.parametrize(
    "name",
    [
        "arithmetic",
        "container",
        "problem_data",
        "verification",
        "node_bound",
        "tree_proof",
        "path_proof",
        "block_proof",
        "pair_bound",
        "checking",
    ],
)
def test_certificates_are_checked_with_numpy_alone(name: str) -> None:
    source = (ROOT / "chita_opt" / "certificates" / f"{name}.py").read_text()
    found = set(imports(ast.parse(source), f"chita_opt.certificates.{name}", False))
    ours = {entry for entry in found if entry.startswith("chita_opt.")}
    others = {entry.split(".")[0] for entry in found - ours} - sys.stdlib_module_names
    assert {room(entry) for entry in ours} <= {"errors", "files", "certificates"}
    allowed = {"numpy", "safetensors"} if name == "container" else {"numpy"}  # it reads the file
    assert others <= allowed


def test_every_package_is_published() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert packages_on_disk() == set(config["packages"])
    assert len(config["packages"]) == len(set(config["packages"]))


@pytest.mark.parametrize(
    "module", ["chita_opt", "chita_opt.cli", "chita_opt.certificates.verification"]
)
def test_starts_without_heavy_imports(module: str) -> None:
    spec = find_spec(module)
    if spec is None or spec.origin is None:  # no such folder, or one without __init__.py
        pytest.skip(f"{module} does not exist")
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_exports_exist_and_hide_no_module() -> None:
    for name in chita_opt.__all__:
        assert getattr(chita_opt, name) is not None
    rooms = {path.stem if path.is_file() else path.name for path in (ROOT / "chita_opt").iterdir()}
    assert not rooms & set(chita_opt.__all__)  # an imported module would replace the export


@pytest.mark.parametrize(
    "source, module",
    [
        ("from chita_opt.nn import prune", "chita_opt.exact.tree_search.tree"),
        ("def f():\n    from chita_opt.solution import Solution", "chita_opt.problem"),
        ("from ..formulations import perspective", "chita_opt.heuristics.iht"),
        ("import chita_opt.heuristics.iht", "chita_opt.formulations.master"),
        ("from chita_opt import heuristics", "chita_opt.formulations.master"),
        ("from chita_opt import Problem", "chita_opt.bounds.dual"),
        (
            "if TYPE_CHECKING:\n    from chita_opt.certificates import Certificate",
            "chita_opt.exact",
        ),
        ("import_module('chita_opt.nn.prune')", "chita_opt.certificates"),
        ("from formulations import perspective", "chita_opt.exact.tree_search.tree"),
    ],
)
def test_a_wrong_import_is_seen(source: str, module: str) -> None:
    assert wrong_imports(source, module)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_a_pickle_is_seen(source: str) -> None:
    assert pickles(source)


def test_allowed_sources_pass() -> None:
    source = "from ..problem import Problem\nfrom .base import Method\nimport numpy as np"
    assert not wrong_imports(source, "chita_opt.heuristics.iht")
    assert not wrong_imports("from .iht import iht", "chita_opt.heuristics", is_package=True)
    assert not pickles("torch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)")
