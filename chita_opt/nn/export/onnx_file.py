"""ONNX files of pruned networks, with a check that the zeros are still there."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chita_opt.errors import DataError, MissingDependencyError
from chita_opt.files import write_atomically
from chita_opt.nn.evaluation import evaluating, full_precision, model_device

_LIMIT = 2 << 30  # bytes of a protobuf message


def save_onnx(
    path: str | os.PathLike[str],
    model: nn.Module,
    example: Tensor,
    *,
    masks: Mapping[str, Tensor] | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a model as ONNX, in eval mode, for any number of samples.

    The exporter folds normalisation into convolutions, and transposes and reorders matrices; what
    is pruned stays exactly zero, which is checked in the file before it is written.

    Parameters
    ----------
    path : path
        File to write or replace.
    model : torch.nn.Module
        The pruned model; it is left as it was.
    example : Tensor
        (samples, ...) inputs of the right shape and type.
    masks : mapping of str to Tensor, optional
        What is pruned, by parameter name.
    notes : mapping of str to str, optional
        Metadata of the file.

    Raises
    ------
    MissingDependencyError
        If ``onnx`` or ``onnxscript`` is not installed.
    DataError
        If torch cannot export the model, the file would exceed 2 GiB, or a matrix in it has fewer
        zeros than were pruned.
    """
    numpy_helper = _onnx()
    try:
        proto = _exported(model, example)
    except Exception as error:  # the exporter passes on errors of every kind
        first = str(error).strip().partition("\n")[0]
        raise DataError(f"torch cannot export this model to ONNX: {first}") from error
    arrays = [numpy_helper.to_array(item) for item in proto.graph.initializer]
    _check_zeros(arrays, masks or {})
    for key, value in (notes or {}).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    if proto.ByteSize() >= _LIMIT:
        raise DataError(f"the file would have {proto.ByteSize()} bytes; ONNX allows {_LIMIT}")
    write_atomically(path, proto.SerializeToString(), make_folder=True)


def _onnx() -> Any:
    try:
        import onnxscript  # noqa: F401  # torch's exporter needs it
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX files need the packages onnx and onnxscript: pip install chita-opt[onnx]"
        ) from error
    return numpy_helper


def _exported(model: nn.Module, example: Tensor) -> Any:
    x = example.to(model_device(model))
    x = torch.cat([x, x]) if len(x) == 1 else x  # one sample would be taken for a fixed size
    with evaluating(model), full_precision(x.device), _quiet():
        batch = torch.export.Dim("batch")
        program = torch.onnx.export(
            model, (x,), dynamo=True, verbose=False, dynamic_shapes=({0: batch},)
        )
    assert program is not None
    return program.model_proto


def _check_zeros(arrays: list[np.ndarray], masks: Mapping[str, Tensor]) -> None:
    """Refuse a file in which no matrix has a pruned one's size and at least its zeros."""
    zeros: dict[int, int] = {}
    for array in arrays:
        most = zeros.get(array.size, 0)
        zeros[array.size] = max(most, array.size - int(np.count_nonzero(array)))
    for name, mask in masks.items():
        pruned = int((~mask).sum())
        if pruned > zeros.get(mask.numel(), -1):
            raise DataError(
                f"the exporter left no matrix with the {pruned} zeros of {name!r}; nothing was "
                "written"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's remarks on torch's own internals."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


__all__ = ["save_onnx"]
