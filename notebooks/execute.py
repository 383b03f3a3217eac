"""Execute the notebooks from clean; write their outputs back without what changes by itself.

``python notebooks/execute.py`` executes all of them, names as arguments choose some, and
``--check`` writes nothing. The kernel starts in an empty folder and does not see CHITA_OPT_DATA
(``--reference`` lets it): outputs that are kept come from data that everybody has.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode

from chita_opt.files import write_atomically

FOLDER = Path(__file__).resolve().parent
LIMIT = 90.0  # seconds of one notebook
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path: Path, *, limit: float = LIMIT, reference: bool = False) -> NotebookNode:
    """A notebook with fresh outputs.

    Raises
    ------
    CellExecutionError, CellTimeoutError
        If a cell fails, or the cells together take longer than ``limit`` seconds.
    RuntimeError
        If a cell writes to stderr: a warning in a notebook is a mistake in it.
    """
    notebook = nbformat.read(path, as_version=4)
    deadline = time.monotonic() + limit
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout_func=lambda cell: max(1.0, deadline - time.monotonic()),
            coalesce_streams=True,
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=_environment(reference))
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{path.name}, cell {cell.id} warns: {output.text}")
    return normalised(notebook)


def normalised(notebook: NotebookNode) -> NotebookNode:
    """Without metadata that depends on the machine or on the editor."""
    notebook.metadata = nbformat.from_dict(_METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    nbformat.validate(notebook)
    return notebook


def _environment(reference: bool) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if reference or k != "CHITA_OPT_DATA"}
    return environment | {"OMP_NUM_THREADS": "1"}  # sums in the same order on every machine


def _run(path: Path, given: argparse.Namespace) -> str:
    """One line about a notebook."""
    begin = time.monotonic()
    notebook = executed(path, limit=given.limit, reference=given.reference)
    text = nbformat.writes(notebook) + "\n"
    if not given.check:
        write_atomically(path, text.encode())
    return f"{path.name}: {time.monotonic() - begin:.0f} s, {len(text) / 1e3:.0f} kB"


def main() -> int:
    """Execute what is named, or all; 1 if any fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of one notebook")
    parser.add_argument("--reference", action="store_true", help="let notebooks use CHITA_OPT_DATA")
    given = parser.parse_args()
    failed = 0
    for path in given.notebooks or sorted(FOLDER.glob("*.ipynb")):
        try:
            print(_run(path, given), flush=True)
        except (CellExecutionError, CellTimeoutError, RuntimeError) as error:
            failed = 1
            print(f"{path.name}: {error}", file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
