"""Call a model with other tensors in place of its parameters and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class TensorCall:
    """``torch.func.functional_call`` for models that use a parameter, or a module, several times.

    Each tensor is put wherever the parameter of that name is used. torch's own tying would swap a
    module that is registered under two names twice, and then leave a plain tensor behind in it.

    Parameters
    ----------
    model : torch.nn.Module
        The model; its structure must not change.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._places: dict[str, list[str]] = {}  # by any name of the parameter
        places: dict[int, dict[tuple[int, str], str]] = {}
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owner, _, own = name.rpartition(".")
            place = (id(model.get_submodule(owner)), own)
            places.setdefault(id(parameter), {}).setdefault(place, name)
            names.setdefault(id(parameter), []).append(name)
        for key, found in places.items():
            self._places |= {name: [*found.values()] for name in names[key]}

    def __call__(self, tensors: Mapping[str, Tensor], args: tuple[Any, ...]) -> Any:
        """The output; ``tensors`` holds one entry a parameter, by any of its names."""
        everywhere = {
            place: tensor
            for name, tensor in tensors.items()
            for place in self._places.get(name, [name])
        }
        return functional_call(self.model, everywhere, args, tie_weights=False)


__all__ = ["TensorCall"]
