"""What a reader needs to repeat a run: the command line, versions, and digests of input files."""

from __future__ import annotations

import hashlib
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click


def how_run(*inputs: Path | None) -> dict[str, Any]:
    """The running command, versions and SHA-256 digests of the files that it reads, for JSON."""
    from chita_opt.nn.provenance import versions  # it loads torch, which digests do not need

    arguments = click.get_current_context().obj or []
    return {
        "command": shlex.join(["chita-opt", *arguments]),
        "versions": {**versions(), "highspy": version("highspy")},
        "inputs": {str(path): file_digest(path) for path in inputs if path is not None},
    }


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["file_digest", "how_run"]
