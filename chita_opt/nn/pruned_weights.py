"""Pruned weights of a network, by parameter name, ready to be applied or saved."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from chita_opt.files import write_atomically
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.weight_files import WEIGHTS_FORMAT


class PrunedWeights(ABC):
    """A pruned network that has not been touched yet: call :meth:`apply_`.

    Attributes
    ----------
    layer_map : LayerMap
        Where each parameter lies in the flat vector of weights.
    dtypes : Mapping
        Type of each parameter by name.
    """

    layer_map: LayerMap
    dtypes: Mapping[str, torch.dtype]

    @property
    @abstractmethod
    def w(self) -> Tensor:
        """The pruned weights as one vector, (p,) float64."""

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """Everything about the result but the tensors, as JSON-able values."""

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """Boolean masks keyed as in the state dict; names of a tied parameter share one."""
        return self._by_name(self.layer_map.unflatten(self.w != 0))

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Pruned weights keyed as in the state dict, each of its parameter's type."""
        flat = self.layer_map.unflatten(self.w)
        return self._by_name({name: w.to(self.dtypes[name]) for name, w in flat.items()})

    def apply_(self, model: nn.Module) -> nn.Module:
        """Write the pruned weights into a model, in place, and return it.

        Raises
        ------
        LayerError
            If the model does not have the pruned parameters; it is then unchanged.
        """
        self.layer_map.write_(model, self.w)
        return model

    def save(self, path: str | Path) -> None:
        """Write the pruned parameters, their masks and the report to one safetensors file.

        :func:`chita_opt.nn.load_weights` reads it; its ``state`` fits
        ``model.load_state_dict(state, strict=False)``, its ``metadata["report"]`` is JSON. The
        file is replaced whole or not at all.
        """
        tensors: dict[str, Tensor] = {}
        aliases: dict[str, str] = {}
        for item in self.layer_map:
            tensors[item.name] = self.weights[item.name].cpu().contiguous()
            tensors[f"mask/{item.name}"] = self.masks[item.name].cpu().contiguous()
            aliases |= dict.fromkeys(item.aliases, item.name)
        header = {
            "chita_opt": WEIGHTS_FORMAT,
            "aliases": json.dumps(aliases, sort_keys=True),
            "report": json.dumps(self.report()),
        }
        write_atomically(path, save(tensors, metadata=header))

    def _by_name(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        aliases = {alias: item.name for item in self.layer_map for alias in item.aliases}
        return tensors | {alias: tensors[name] for alias, name in aliases.items()}


__all__ = ["PrunedWeights"]
