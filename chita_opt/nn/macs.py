"""Multiplications of a network, layer by layer, and pruning budgets made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from chita_opt.errors import LayerError, SupportError
from chita_opt.nn.attention import plain_attention
from chita_opt.nn.evaluation import evaluating, model_device
from chita_opt.nn.layer_map import LayerMap
from chita_opt.supports import MinimumKeeps, TwoBudgets, keep_count

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RECURRENT = (nn.RNNBase, nn.modules.rnn.RNNCellBase)


@dataclass(frozen=True, eq=False)
class MacCount:
    """How often the weights of each layer multiply in one forward pass of one sample.

    A multiplication and its addition count as one (MAC); FLOPs are often given as twice as many. A
    weight of a convolution multiplies once for every output position (padding counts as any other
    input), one of a linear layer once for every vector it is given, one of a recurrent layer once
    a time step. Biases and normalisation do not count.

    Attributes
    ----------
    layer_map : LayerMap
        The layers.
    each : tuple of int
        Multiplications of one weight of each layer.
    """

    layer_map: LayerMap
    each: tuple[int, ...]

    @property
    def total(self) -> int:
        """Multiplications of all weights."""
        return sum(f * n for f, n in zip(self.each, self.layer_map.sizes, strict=True))

    @property
    def by_layer(self) -> dict[str, int]:
        """Multiplications of each layer."""
        pairs = zip(self.layer_map, self.each, strict=True)
        return {item.name: f * item.size for item, f in pairs}

    def per_weight(self) -> Tensor:
        """(p,) int64 over the flat vector of the layer map."""
        sizes = torch.tensor(self.layer_map.sizes)
        return torch.tensor(self.each, dtype=torch.int64).repeat_interleave(sizes)

    def kept(self, weights: Tensor) -> int:
        """Multiplications by weights (p,) that are not zero."""
        return int(self.per_weight()[weights.cpu() != 0].sum())

    def budget(
        self, *, sparsity: float = 0.0, mac_cut: float = 0.0, minimum: float = 0.0
    ) -> TwoBudgets | MinimumKeeps:
        """A family for ``prune`` and ``prune_in_stages``: weights and multiplications together.

        Parameters
        ----------
        sparsity : float
            Share of the weights to remove; 0 leaves their number free.
        mac_cut : float
            Share of the multiplications to remove; 0 leaves them free.
        minimum : float
            Share of each layer's weights, and at least one weight, that both budgets set aside
            for it; 0 lets layers die.

        Raises
        ------
        SupportError
            If a share lies outside [0, 1], or the minima exceed a budget.
        """
        for name, share in (("mac_cut", mac_cut), ("minimum", minimum)):
            if not 0.0 <= share <= 1.0:
                raise SupportError(f"{name} is {share}; give a share in [0, 1]")
        k = keep_count(self.layer_map.size, sparsity).k
        limit = int((1 - Fraction(repr(float(mac_cut)))) * self.total)
        both = TwoBudgets(self.per_weight(), k, limit)
        if not minimum:
            return both
        sizes = torch.tensor(self.layer_map.sizes)
        least = (minimum * sizes.double()).round().to(torch.int64).clamp_min(1)
        return MinimumKeeps(both, torch.arange(len(sizes)).repeat_interleave(sizes), least)


def count_macs(model: nn.Module, layer_map: LayerMap, inputs: Any) -> MacCount:
    """Run a model once and count the multiplications of the selected layers.

    A parameter that several layers share, or a layer that runs several times, counts every use. An
    attention counts its projections for as many tokens as there are queries.

    Parameters
    ----------
    model : torch.nn.Module
        The model; it is run in eval mode and left as it was.
    layer_map : LayerMap
        The layers to count; see :func:`chita_opt.nn.select_layers`.
    inputs : Tensor
        (samples, ...) inputs; one sample is enough.

    Raises
    ------
    LayerError
        If a selected layer does not run, or its multiplications differ between samples.

    Examples
    --------
    >>> import torch
    >>> from chita_opt.nn import select_layers
    >>> net = torch.nn.Conv2d(3, 16, 3, padding=1)
    >>> count = count_macs(net, select_layers(net), torch.zeros(1, 3, 32, 32))
    >>> count.each, count.total
    ((1024,), 442368)
    """
    given = torch.as_tensor(inputs).to(model_device(model))
    uses: dict[int, int] = {}

    def hook(module: nn.Module, _given: Any, output: Any) -> None:
        attends = isinstance(module, nn.MultiheadAttention)  # it does not call its out_proj
        for parameter in module.parameters(recurse=attends):
            uses[id(parameter)] = uses.get(id(parameter), 0) + _vectors(module, output)

    kinds = (nn.Linear, nn.MultiheadAttention, *_CONVOLUTIONS, *_RECURRENT)
    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
    try:
        with evaluating(model), plain_attention(), torch.no_grad():
            model(given)
    finally:
        for handle in handles:
            handle.remove()
    return MacCount(layer_map, _each(model, layer_map, uses, len(given)))


def _each(
    model: nn.Module, layer_map: LayerMap, uses: Mapping[int, int], samples: int
) -> tuple[int, ...]:
    counts = []
    for item in layer_map:
        if item.kind in ("bias", "norm", "embedding"):
            counts.append(0)
            continue
        used = uses.get(id(layer_map.parameter(model, item)), 0)
        if used == 0 or used % samples:
            raise LayerError(
                f"{item.name!r} multiplied {used} vectors for {samples} samples; give inputs that "
                "use every selected layer alike, or exclude it"
            )
        counts.append(used // samples)
    return tuple(counts)


def _vectors(module: nn.Module, output: Any) -> int:
    """How many vectors a layer's matrix was multiplied with, over all samples."""
    values = output[0] if isinstance(output, tuple) else output
    if isinstance(module, nn.RNNBase):
        width = module.proj_size or module.hidden_size
        data = values.data if isinstance(values, nn.utils.rnn.PackedSequence) else values
        return int(data.numel()) // (width * (2 if module.bidirectional else 1))
    width = values.shape[1] if isinstance(module, _CONVOLUTIONS) else values.shape[-1]
    return int(values.numel()) // int(width)
