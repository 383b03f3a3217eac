"""Sequential layer-wise reconstruction: one-shot pruning that needs no gradients.

Layer after layer, in the order of calls, the weights are fitted by least squares to the dense
network's pre-activations from the inputs that the pruned layers in front deliver, so that each
layer repairs what those before it broke (as layer-wise OBS and its successors do, Dong et al.
2017; Frantar & Alistarh 2022, but with the pruned network's inputs read again for every layer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.trust.layer_surgeon import LayerSurgeon
from chita_opt.nn.trust.moments import LayerInputs


class Reconstruction:
    """Reconstructs a network for any counts of kept weights, or on any support.

    Parameters
    ----------
    inputs : LayerInputs
        The network and the calibration inputs.
    damping : float
        Ridge of each layer's least squares, relative to its inputs' mean square.
    share : float
        Share of a layer's weights that a round of optimal brain surgeon leaves.
    """

    def __init__(self, inputs: LayerInputs, *, damping: float = 1e-2, share: float = 0.6) -> None:
        self.inputs = inputs
        self._options: dict[str, Any] = {"damping": damping, "share": share}
        self._first: LayerSurgeon | None = None

    @property
    def layer_map(self) -> LayerMap:
        """The layers."""
        return self.inputs.network.layer_map

    def prune(self, counts: Mapping[str, int]) -> Tensor:
        """Weights (p,) with ``counts[name]`` kept in each layer.

        Raises
        ------
        SupportError
            If a layer's count is missing or exceeds its size.
        """
        for item in self.layer_map:
            if not 0 <= counts.get(item.name, -1) <= item.size:
                raise SupportError(
                    f"{item.name!r} has {item.size} weights; counts asks for "
                    f"{counts.get(item.name)}"
                )
        done: dict[str, Tensor] = {}
        for item in self.inputs.order:
            _, weights = self._surgeon(done).prune(counts[item.name])
            done[item.name] = weights.reshape(item.shape)
        return self.layer_map.flatten(done)

    def refit(self, mask: Tensor) -> Tensor:
        """Weights (p,) on a support (p,)."""
        masks, done = self.layer_map.unflatten(mask), dict[str, Tensor]()
        for item in self.inputs.order:
            weights = self._surgeon(done).refit(masks[item.name].flatten(1))
            done[item.name] = weights.reshape(item.shape)
        return self.layer_map.flatten(done)

    def _surgeon(self, done: Mapping[str, Tensor]) -> LayerSurgeon:
        """Least squares of the next layer; the first one's inputs never change."""
        item = self.inputs.order[len(done)]
        if done:
            return LayerSurgeon(self.inputs.moments(item, done), **self._options)
        if self._first is None:
            self._first = LayerSurgeon(self.inputs.moments(item, done), **self._options)
        return self._first


__all__ = ["Reconstruction"]
