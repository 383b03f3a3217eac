"""The user's own model, data and checkpoint."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chita_opt.errors import DataError
from chita_opt.nn import load_weights

LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nll": functional.nll_loss,
    "cross-entropy": functional.cross_entropy,
    "mse": functional.mse_loss,
}


def call(reference: str, option: str) -> Any:
    """Call what ``module:function`` names; modules are found from the current folder too.

    Raises
    ------
    DataError
        If the text has another form, or the module or the function does not exist.
    """
    module_name, separator, name = reference.partition(":")
    if not separator or not module_name or not name:
        raise DataError(f"{option} is {reference!r}; write MODULE:FUNCTION, as nets:build")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise  # a fault inside the user's module
        raise DataError(
            f"{option}: there is no module {module_name!r} in {here} or installed"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise DataError(f"{option}: {module_name!r} has no function {name!r}")
    return found


def build_model(reference: str, checkpoint: Path | None) -> nn.Module:
    """The user's model with the checkpoint's weights, in eval mode.

    Raises
    ------
    DataError
        If the function returns no module, or the checkpoint does not fit.
    """
    made = call(reference, "--model")
    model = made if isinstance(made, nn.Module) else made()
    if not isinstance(model, nn.Module):
        raise DataError(f"--model {reference} returned {type(model).__name__}, not a torch module")
    if checkpoint is not None:
        try:
            model.load_state_dict(read_state(checkpoint))
        except RuntimeError as error:
            raise DataError(f"{checkpoint} does not fit the model: {error}") from error
    return model.eval()


def read_state(path: Path) -> Mapping[str, Tensor]:
    """A state dict from a safetensors file or a torch checkpoint, which runs no code of its own.

    Raises
    ------
    DataError
        If the file is damaged, would have to run code, or holds something else.
    """
    if path.suffix == ".safetensors":
        return load_weights(path).state
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, UnpicklingError among them
        first = str(error).partition("\n")[0]
        raise DataError(f"{path} cannot be read as plain weights: {first}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(f"{path} holds no state dict (a mapping of names to tensors)")
    return state


__all__ = ["LOSSES", "build_model", "call", "read_state"]
