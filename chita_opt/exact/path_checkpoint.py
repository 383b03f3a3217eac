"""What is known of every count, of one problem or of its blocks, on disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np

from chita_opt.exact.options import TreeOptions
from chita_opt.exact.result import TreeProof
from chita_opt.exact.tree_search.checkpoint import fingerprint, read_arrays, write_arrays
from chita_opt.solution import Status
from chita_opt.supports.base import Array

if TYPE_CHECKING:
    from chita_opt.exact.path import PathSolver

_FIELDS = tuple(f.name for f in fields(TreeProof))


class PathCheckpoint:
    """Saves paths after counts are solved, and restores them for the same problem.

    Parameters
    ----------
    options : TreeOptions
        File and interval; nothing happens without a file.
    paths : sequence of PathSolver
        One, or one a block.
    """

    def __init__(self, options: TreeOptions, paths: Sequence[PathSolver]) -> None:
        self.path, self.interval = options.checkpoint, options.checkpoint_seconds
        self.resume, self.proof = options.resume, options.proof
        self.paths = paths
        self._last = time.perf_counter()
        self._mark = self._fingerprint() if self.path else b""

    def _fingerprint(self) -> bytes:
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(fingerprint(path.quadratic, path.base))
            digest.update(path.ks.tobytes())
        return digest.digest()

    def of_tree(self, options: TreeOptions, block: int, i: int) -> TreeOptions:
        """The options of one count's tree: its own file, beside this one."""
        if self.path is None:
            return options
        name = f"{self.path.name}.{block}.{int(self.paths[block].ks[i])}"
        return replace(options, checkpoint=self.path.with_name(name), resume=self.resume)

    def solved(self, options: TreeOptions, status: Status) -> None:
        """A count was worked on with ``options``: a finished tree needs no file."""
        self.save()
        if status is Status.OPTIMAL and options.checkpoint is not None:
            options.checkpoint.unlink(missing_ok=True)

    def save(self, *, force: bool = False) -> None:
        """Write all paths if it is time."""
        now = time.perf_counter()
        if self.path is None or not (force or now - self._last >= self.interval):
            return
        self._last = now
        arrays = {"fingerprint": np.frombuffer(self._mark, dtype=np.uint8)}
        for n, path in enumerate(self.paths):
            arrays |= {f"{n}.{name}": a for name, a in _known(path).items()}
        write_arrays(self.path, arrays)

    def restore(self) -> bool:
        """Fill the paths from the file; False where there is none.

        Raises
        ------
        DataError
            If the file is damaged or belongs to another problem.
        """
        if self.path is None or not self.resume or not self.path.exists():
            return False
        arrays = read_arrays(self.path, ("fingerprint",), self._mark)
        for n, path in enumerate(self.paths):
            prefix = f"{n}."
            own = {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
            _learn(path, own, self.proof)
        return True


def _known(path: PathSolver) -> dict[str, Array]:
    found = {
        "upper": path.upper, "lower": path.lower, "w": path.w, "nodes": np.array(path.nodes),
        "tried": np.array(sorted(path.tried), dtype=np.int64),
        "proven": np.array(sorted(path.proofs), dtype=np.int64),
    }  # fmt: skip
    for i, proof in path.proofs.items():
        found |= {f"{i}.{name}": np.asarray(getattr(proof, name)) for name in _FIELDS}
    return found


def _learn(path: PathSolver, a: dict[str, Array], proof: bool) -> None:
    """Weights always; bounds only where their logs are at hand, if there must be a proof."""
    path.upper, path.w, path.nodes = a["upper"].copy(), a["w"].copy(), int(a["nodes"])
    for i in a["proven"].tolist():
        arrays = {name: a[f"{i}.{name}"] for name in _FIELDS}
        path.proofs[i] = TreeProof(cutoff=float(arrays.pop("cutoff")), **arrays)
    if not proof:
        path.tried, path.lower = set(a["tried"].tolist()), a["lower"].copy()
        return
    path.tried = set(path.proofs)
    for i, log in path.proofs.items():
        path.lower[: i + 1] = np.maximum(path.lower[: i + 1], log.cutoff)
