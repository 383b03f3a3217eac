"""Apply masks to a model, keep them while it trains, and exchange them with PyTorch's pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from chita_opt.errors import LayerError


def apply_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of a model to exactly zero, in place.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    masks : mapping of str to Tensor
        Parameter name (or an alias of a tied one) to mask of the same shape: boolean, or 0 and 1;
        true keeps the weight.

    Raises
    ------
    LayerError
        If a name is unknown, or a mask does not fit its parameter; the model is then unchanged.
    """
    pairs = paired_masks(model, masks)
    with torch.no_grad():
        for parameter, mask in pairs:
            _zero_(parameter, mask)


class MaskKeeper:
    """Keeps pruned weights at exactly zero while optimisers step.

    Momentum, weight decay and Adam's averages move a weight whose gradient is masked; setting it
    back after each step does not depend on the optimiser.

    Parameters
    ----------
    model : torch.nn.Module
        The model to keep sparse. Its pruned weights are set to zero at once.
    masks : mapping of str to Tensor
        As for :func:`apply_masks_`. A tied parameter needs its mask under one of its names.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.AdamW(net.parameters())
    >>> mask = torch.tensor([[True, False]])
    >>> with MaskKeeper(net, {"weight": mask}).attach(optimizer):
    ...     net(torch.ones(1, 2)).sum().backward()
    ...     _ = optimizer.step()
    >>> net.weight[0, 1].item()
    0.0
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        pairs = paired_masks(model, masks)
        if not pairs:
            raise LayerError("no masks were given: there is nothing to keep")
        self._model = model
        self._masks = {name: _as_bool(name, mask).clone() for name, mask in masks.items()}
        self._handles: list[RemovableHandle] = []
        self.apply_()

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks, by parameter name."""
        return dict(self._masks)

    def apply_(self) -> None:
        """Set the pruned weights to zero now."""
        with torch.no_grad():
            for name, mask in self._masks.items():
                parameter = _parameter(self._model, name)
                if mask.device != parameter.device:  # the model has moved
                    mask = self._masks[name] = mask.to(parameter.device)
                _zero_(parameter, mask)

    def __call__(self, model: nn.Module | None = None) -> None:
        """Apply the masks; lets a training loop take the keeper as a callback."""
        if model is not None and model is not self._model:
            raise LayerError("this MaskKeeper belongs to another model")
        self.apply_()

    def attach(self, optimizer: Optimizer) -> MaskKeeper:
        """Apply the masks after every step of an optimiser, until :meth:`detach`.

        Raises
        ------
        LayerError
            If the optimiser updates none of the masked parameters.
        """
        updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(_parameter(self._model, name)) in updated for name in self._masks):
            raise LayerError(
                "the optimizer updates none of the masked parameters; make it from the "
                "parameters of the same model"
            )

        def after_step(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            self.apply_()

        self._handles.append(optimizer.register_step_post_hook(after_step))
        return self

    def detach(self) -> None:
        """Stop following every optimiser."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> MaskKeeper:
        """Enter a block at whose end the keeper detaches itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Detach from every optimiser."""
        self.detach()


def to_torch_prune_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Hand masks to ``torch.nn.utils.prune``: each parameter gets ``_orig`` and ``_mask``.

    A tied parameter is masked in every layer that uses it.

    Parameters
    ----------
    model : torch.nn.Module
        The model, changed in place as by ``prune.custom_from_mask``.
    masks : mapping of str to Tensor
        As for :func:`apply_masks_`.

    Raises
    ------
    LayerError
        If a name is unknown, or a mask does not fit its parameter; the model is then unchanged.
    """
    by_parameter = {id(parameter): mask for parameter, mask in paired_masks(model, masks)}
    targets = [
        (module, key, by_parameter[id(parameter)])
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if id(parameter) in by_parameter
    ]
    for module, key, mask in targets:
        torch_prune.custom_from_mask(module, key, mask)


def from_torch_prune(model: nn.Module) -> dict[str, Tensor]:
    """Read the masks that ``torch.nn.utils.prune`` holds in a model.

    Returns
    -------
    dict of str to Tensor
        Name that the parameter has once ``prune.remove`` made the mask permanent, to boolean
        mask. A tied parameter is listed once. Empty if nothing is pruned in this way.

    Raises
    ------
    LayerError
        If two layers mask a parameter that they share differently.
    """
    found: dict[str, Tensor] = {}
    owners: dict[int, str] = {}
    for module_name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            base = key.removesuffix("_orig")
            mask = module._buffers.get(f"{base}_mask")
            if parameter is None or base == key or mask is None:
                continue
            name = f"{module_name}.{base}" if module_name else base
            kept = mask.detach() != 0
            first = owners.setdefault(id(parameter), name)
            if not torch.equal(found.setdefault(first, kept), kept):
                raise LayerError(f"{first!r} and {name!r} are one parameter under two masks")
    return found


def paired_masks(
    model: nn.Module, masks: Mapping[str, Tensor]
) -> list[tuple[nn.Parameter, Tensor]]:
    """Check all masks and pair each with its parameter."""
    pairs: dict[int, tuple[nn.Parameter, Tensor, str]] = {}
    for name, mask in masks.items():
        parameter, kept = _parameter(model, name), _as_bool(name, mask)
        if kept.shape != parameter.shape:
            raise LayerError(
                f"the mask of {name!r} has shape {tuple(kept.shape)}, the parameter "
                f"{tuple(parameter.shape)}"
            )
        kept = kept.to(parameter.device)
        _, other, first = pairs.setdefault(id(parameter), (parameter, kept, name))
        if not torch.equal(other, kept):
            raise LayerError(f"{first!r} and {name!r} are one parameter under two masks")
    return [(parameter, kept) for parameter, kept, _ in pairs.values()]


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    try:
        return model.get_parameter(name)
    except AttributeError as error:
        orig = f"{name}_orig"
        if any(other == orig for other, _ in model.named_parameters(remove_duplicate=False)):
            raise LayerError(
                f"{name!r} is already masked by torch.nn.utils.prune; make that mask permanent "
                "with prune.remove first"
            ) from error
        raise LayerError(f"the model has no parameter {name!r}: {error}") from error


def _as_bool(name: str, mask: Tensor) -> Tensor:
    mask = torch.as_tensor(mask).detach()
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise LayerError(f"the mask of {name!r} must be boolean, or hold only 0 and 1")
    return mask.to(torch.bool)


def _zero_(parameter: Tensor, mask: Tensor) -> None:
    # Not a product with the mask: that leaves -0.0, and NaN where a pruned weight is not finite.
    parameter.masked_fill_(~mask, 0.0)
