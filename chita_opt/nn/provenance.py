"""What it takes to repeat a run: options, versions and fingerprints of data."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from chita_opt import __version__

_PACKAGES = ("torch", "numpy", "scipy", "numba")


def run_record(options: Any, **asked: Any) -> dict[str, Any]:
    """What was asked for, the fields of the options (callables left out) and versions, for JSON."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    plain = {name: _plain(value) for name, value in values.items() if not callable(value)}
    return {**asked, "options": plain, "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of what computes the numbers."""
    return {
        "chita_opt": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
    }


def fingerprint(data: Any) -> dict[str, Any]:
    """Tell data apart by the SHA-256 of all their bytes, types and shapes.

    Parameters
    ----------
    data : Tensor, (inputs, targets), mapping of names to tensors, TensorDataset or its DataLoader
        Other data are described, and their ``sha256`` is None: reading them may be dear, or change
        them.

    Returns
    -------
    dict
        ``kind``, ``shapes`` and ``sha256``, as JSON-able values.
    """
    tensors = _tensors(data)
    kind = type(data).__name__
    if tensors is None:
        size = len(data) if hasattr(data, "__len__") else None
        return {"kind": kind, "length": size, "sha256": None}
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return {"kind": kind, "shapes": shapes, "sha256": digest.hexdigest()}


def _tensors(data: Any) -> dict[str, Tensor] | None:
    if isinstance(data, DataLoader):
        return _tensors(data.dataset)
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, Tensor):
        return {"inputs": data}
    if isinstance(data, tuple | list) and len(data) == 2:
        data = dict(zip(("inputs", "targets"), map(torch.as_tensor, data), strict=True))
    if isinstance(data, Mapping) and all(isinstance(t, Tensor) for t in data.values()):
        return dict(data)
    return None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, tuple | list) and all(isinstance(v, str | int | float) for v in value):
        return list(value)
    found = fingerprint(value)
    return found if found["sha256"] else str(value)


__all__ = ["fingerprint", "run_record", "versions"]
