r"""The network in training: its parameters, or Powerpropagation's in their place.

With power :math:`\alpha` a weight is :math:`w=\theta|\theta|^{\alpha-1}` and training moves
:math:`\theta`: the gradient is scaled by :math:`\alpha|\theta|^{\alpha-1}`, so that large weights
move more and a weight at zero stays there (Schwarz et al., "Powerpropagation: a sparsity inducing
weight reparameterisation", NeurIPS 2021).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from chita_opt.errors import LayerError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.tensor_call import TensorCall


class Trainee:
    """A working copy of a model, whose selected parameters hold what training moves.

    Weights are given to the model for each call (:class:`TensorCall`), which serves tied
    parameters and leaves the names of parameters, masks and averages as they are.

    Parameters
    ----------
    model : torch.nn.Module
        Copied.
    layer_map : LayerMap
        The weights that are reparametrised, and that can be pruned.
    power : float
        Powerpropagation's; 1 for plain training.

    Raises
    ------
    LayerError
        If a recurrent layer is to be reparametrised: its kernels do not see the weights of a call.
    """

    def __init__(self, model: nn.Module, layer_map: LayerMap, power: float = 1.0) -> None:
        self.model, self.layer_map, self.power = copy.deepcopy(model), layer_map, power
        self._call = TensorCall(self.model)
        self._plain = self.model if power == 1.0 else copy.deepcopy(model)
        recurrent = [item.name for item in layer_map if item.kind == "recurrent"]
        if power != 1.0 and recurrent:
            raise LayerError(
                f"power={power} does not serve {recurrent[0]!r} of a recurrent layer; leave it "
                "alone with exclude, or train with power=1"
            )
        self.write_(layer_map.weights(model))

    def __call__(self, x: Any) -> Tensor:
        """The network's output, in whatever mode the model is."""
        if self.power == 1.0:
            return self.model(x)
        weights = {
            item.name: signed_power(self.layer_map.parameter(self.model, item), self.power)
            for item in self.layer_map
        }
        output: Tensor = self._call(weights, (x,))
        return output

    def folded(self) -> nn.Module:
        """A plain model of the same outputs, bit for bit; valid until the trainee changes."""
        if self.power != 1.0:
            self._plain.load_state_dict(self.model.state_dict())
            with torch.no_grad():
                for item in self.layer_map:
                    weight = self.layer_map.parameter(self._plain, item)
                    weight.copy_(signed_power(weight, self.power))
        return self._plain

    def weights(self) -> Tensor:
        """The weights as they act in the network, (p,) float64."""
        return self.layer_map.weights(self.folded())

    def write_(self, weights: Tensor) -> None:
        """Set the weights; with a power they come back but for rounding."""
        root = weights.sign() * weights.abs() ** (1.0 / self.power)
        self.layer_map.write_(self.model, weights if self.power == 1.0 else root)

    def take_buffers_(self, other: nn.Module) -> None:
        """Copy the buffers (running statistics) of a model of the same kind."""
        if other is not self.model:
            for own, new in zip(self.model.buffers(), other.buffers(), strict=True):
                own.copy_(new)


class _SignedPower(torch.autograd.Function):
    """Automatic differentiation of abs and pow gives NaN at zero, where the derivative is zero."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, power: float) -> Tensor:
        factor = theta.abs() ** (power - 1.0)
        ctx.save_for_backward(factor)
        ctx.power = power
        return theta * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradients[0] * ctx.power * factor, None


def signed_power(theta: Tensor, power: float) -> Tensor:
    r"""The weights :math:`\theta|\theta|^{power-1}`, differentiable also at zero."""
    weights: Tensor = _SignedPower.apply(theta, power)
    return weights


__all__ = ["Trainee", "signed_power"]
