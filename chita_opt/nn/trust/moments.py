"""Inputs of a network's layers, in the dense network and behind layers that are pruned already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from chita_opt.errors import LayerError
from chita_opt.nn.evaluation import evaluating, full_precision, model_device, samples_in_cache
from chita_opt.nn.layer_map import LayerSlice
from chita_opt.nn.patches import input_vectors, is_stock
from chita_opt.nn.row_engines import RowLoss


@dataclass(frozen=True, eq=False)
class LayerMoments:
    r"""Second moments that least squares of one layer needs.

    With x the input vectors in the pruned network, t the dense network's pre-activations (without
    bias) at the same samples and places:

    Attributes
    ----------
    H : Tensor
        (groups, d, d) float64, mean of :math:`xx^\top`; groups is 1 but for grouped convolutions.
    target : Tensor
        (rows, d) float64, mean of :math:`tx^\top`.
    weight : Tensor
        (rows, d) float64, the dense weights.
    """

    H: Tensor
    target: Tensor
    weight: Tensor


class LayerInputs:
    """Runs a network up to a layer, with any weights in front of it.

    Parameters
    ----------
    network : RowLoss
        The network as a function of its selected weights; those it holds are the dense ones.
    batches : sequence of Tensor
        Inputs, on the network's device.

    Raises
    ------
    LayerError
        If a selected parameter is tied, or no weight of a plain linear or convolutional layer, or
        a layer is not called exactly once.
    """

    def __init__(self, network: RowLoss, batches: Sequence[Tensor]) -> None:
        self.network, self.batches = network, tuple(batches)
        self._modules = {item.name: self._layer(item) for item in network.layer_map}
        self._keys = dict(zip(network.layer_map.names, network.keys, strict=True))

    def within(self, work: float, *, fewest: int = 1) -> LayerInputs:
        """The same with so few samples that all moments take about ``work`` multiplications.

        A convolution has one input vector for each place of its output.
        """
        each = sum(
            self._places[item.name] * item.rows_cols[1] ** 2 for item in self.network.layer_map
        )
        left = max(fewest, int(work / (2.0 * each)))
        batches = []
        for batch in self.batches:
            if left > 0:
                batches.append(batch[:left])
                left -= len(batch)
        return LayerInputs(self.network, batches)

    @cached_property
    def order(self) -> tuple[LayerSlice, ...]:
        """The layers in the order of their calls."""
        return tuple(self.network.layer_map[name] for name in self._places)

    @cached_property
    def _places(self) -> dict[str, int]:
        """Input vectors of one sample of each layer, in the order of calls."""
        places: dict[str, int] = {}
        calls = dict.fromkeys(self._modules, 0)
        by_module = {module: name for name, module in self._modules.items()}

        def called(module: nn.Module, args: object, output: Tensor) -> None:
            name = by_module[module]
            calls[name] += 1
            places[name] = output.numel() // self.network.layer_map[name].shape[0]

        handles = [module.register_forward_hook(called) for module in by_module]
        try:
            with evaluating(self.network.model), torch.no_grad():
                self.network.output(self.network.selected, self.batches[0][:1])
        finally:
            for handle in handles:
                handle.remove()
        for name, count in calls.items():
            if count != 1:
                raise LayerError(
                    f"the layer of {name!r} is called {count} times; layer-wise reconstruction "
                    f"needs exactly one call: exclude={name!r}"
                )
        return places

    def moments(self, item: LayerSlice, weights: Mapping[str, Tensor]) -> LayerMoments:
        """Moments of a layer behind layers with ``weights`` (by parameter name; others dense)."""
        dense = self.network.selected
        before = {self._keys[n]: w.to(dense[self._keys[n]].dtype) for n, w in weights.items()}
        W = dense[self._keys[item.name]].double().flatten(1)
        H = cross = None
        count = 0
        for x, x_dense in self._pairs(item, dense, before):
            if H is None or cross is None:
                groups, width, _ = x.shape
                H = torch.zeros(groups, width, width, dtype=torch.float64, device=x.device)
                cross = H if x_dense is x else torch.zeros_like(H)
            H += (x @ x.mT).double()
            if x_dense is not x:
                cross += (x_dense @ x.mT).double()
            count += x.shape[2]
        assert H is not None and cross is not None
        mean, target = H / count, W.unflatten(0, (len(H), -1)) @ (cross / count)
        return LayerMoments(0.5 * (mean + mean.mT), target.flatten(0, 1), W)

    def _pairs(
        self, item: LayerSlice, dense: Mapping[str, Tensor], before: Mapping[str, Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Input vectors with the given and with the dense weights; one object if they agree."""
        module = self._modules[item.name]
        device = model_device(self.network.model)
        with evaluating(self.network.model), full_precision(device), torch.no_grad():
            for batch in self._passes:
                plain = input_vectors(module, self._input(module, dense, batch))
                if before:
                    mixed = {**dense, **before}
                    yield input_vectors(module, self._input(module, mixed, batch)), plain
                else:
                    yield plain, plain

    @cached_property
    def _passes(self) -> tuple[Tensor, ...]:
        network = self.network
        call = partial(network.output, network.selected)
        size = samples_in_cache(network.model, self.batches[0], call)
        return tuple(part for batch in self.batches for part in batch.split(size))

    def _input(self, module: nn.Module, weights: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        handle = module.register_forward_pre_hook(_stop, with_kwargs=True)
        try:
            self.network.output(weights, batch)
        except _Reached as reached:
            return reached.x
        finally:
            handle.remove()
        raise LayerError("a layer that was called before is not called with other weights")

    def _layer(self, item: LayerSlice) -> nn.Module:
        module = self.network.model.get_submodule(item.module_name)
        if item.aliases or item.kind in ("bias", "norm") or not is_stock(module):
            raise LayerError(
                f"{item.name!r} is tied, or not the weight of a plain linear or convolutional "
                f"layer; layer-wise reconstruction cannot fit it: exclude={item.name!r}"
            )
        return module


class _Reached(Exception):
    """Carries a layer's input out of a forward pass that need not go on."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


def _stop(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
    raise _Reached(args[0] if args else kwargs["input"])


__all__ = ["LayerInputs", "LayerMoments"]
