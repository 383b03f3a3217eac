"""Pruned networks as files: state dicts, ONNX, compact forms, model cards; and back."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "ExportReport": "chita_opt.nn.export.exporting",
    "export": "chita_opt.nn.export.exporting",
    "load_export": "chita_opt.nn.export.loading",
    "restore_": "chita_opt.nn.export.loading",
    "to_torch_prune": "chita_opt.nn.export.loading",
    "save_onnx": "chita_opt.nn.export.onnx_file",
    "ModelCard": "chita_opt.nn.export.card",
    "model_card": "chita_opt.nn.export.card",
    "BitmapMatrix": "chita_opt.nn.export.matrices",
    "CsrMatrix": "chita_opt.nn.export.matrices",
    "TwoFourMatrix": "chita_opt.nn.export.two_four",
    "read_compact": "chita_opt.nn.export.compact_file",
    "to_semi_structured_": "chita_opt.nn.export.semi_structured",
    "LayerSizes": "chita_opt.nn.export.sizes",
    "layer_sizes": "chita_opt.nn.export.sizes",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'chita_opt.nn.export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
