"""Files that claim something else than what was written: changed bytes, changed content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chita_opt.certificates.container import array_hash, read_sealed, write_sealed

Arrays = dict[str, np.ndarray]
Claims = dict[str, Any]


def forge(file: Path, target: Path, change: Callable[[Arrays, Claims], object]) -> Path:
    """A file with a valid seal and hash over changed content."""
    arrays, claims = read_sealed(file)
    change(arrays, claims)
    problem = {k: a for k, a in arrays.items() if k.startswith("problem.")}
    claims["problem_hash"] = array_hash(problem, claims["problem"])
    write_sealed(target, arrays, claims)
    return target


def with_changed_bits(file: Path, target: Path, count: int) -> Iterator[Path]:
    """``target`` with one bit of ``file`` changed, ``count`` times at places of their own."""
    content, source = file.read_bytes(), np.random.default_rng(0)
    for place in source.choice(len(content), size=count, replace=False).tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << int(source.integers(8))
        target.write_bytes(changed)
        yield target
