"""Whatever holds a pruned network, as one thing: state, masks and notes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from torch import Tensor, nn

from chita_opt.errors import DataError, LayerError
from chita_opt.nn.masks import from_torch_prune
from chita_opt.nn.pruned_weights import PrunedWeights
from chita_opt.nn.weight_files import SavedWeights

Source = PrunedWeights | SavedWeights | nn.Module | str | os.PathLike[str]


def network_of(source: Source, model: nn.Module | None = None) -> SavedWeights:
    """Everything of a pruned network that can be stored.

    Parameters
    ----------
    source : PrunedWeights, SavedWeights, torch.nn.Module or path
        A result of pruning; what a file held; a model whose zeros are its masks, or one masked by
        ``torch.nn.utils.prune``; or a file that :func:`chita_opt.nn.export.load_export` reads.
    model : torch.nn.Module, optional
        The model that was pruned: its other parameters and buffers are taken too. It is only read.

    Raises
    ------
    LayerError
        If weights do not fit the model.
    DataError
        If a file is damaged, or a mask does not fit its weights.
    """
    if isinstance(source, nn.Module):
        found = _of_model(source)
    elif isinstance(source, PrunedWeights):
        notes = {"report": json.dumps(source.report())}
        found = SavedWeights(dict(source.weights), dict(source.masks), notes)
    elif isinstance(source, SavedWeights):
        found = source
    else:
        from chita_opt.nn.export.loading import load_export

        found = load_export(source)
    check_masks(found)
    return found if model is None else _completed(found, model)


def check_masks(weights: SavedWeights) -> None:
    """Refuse masks of no weight, of another shape, or with weights outside of them.

    Raises
    ------
    DataError
        The message names the weight.
    """
    for name, mask in weights.masks.items():
        if name not in weights.state:
            raise DataError(f"there is a mask of {name!r}, but no such tensor")
        weight = weights.state[name]
        if mask.shape != weight.shape:
            raise DataError(
                f"the mask of {name!r} has shape {tuple(mask.shape)}, the weight "
                f"{tuple(weight.shape)}"
            )
        outside = int((weight.cpu()[~mask.cpu()] != 0).sum())
        if outside:
            raise DataError(
                f"{outside} weights of {name!r} are not zero where its mask prunes them; "
                "apply the masks first (apply_masks_)"
            )


def check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse tensors that a model lacks, or has in another shape or type.

    Raises
    ------
    LayerError
        The message names the first one.
    """
    for name, tensor in state.items():
        if name not in own:
            raise LayerError(f"the model has no {name!r}; it has {', '.join(own)}")
        mine = own[name]
        if (mine.shape, mine.dtype) != (tensor.shape, tensor.dtype):
            raise LayerError(
                f"{name!r} is {tuple(tensor.shape)} {tensor.dtype}, the model's is "
                f"{tuple(mine.shape)} {mine.dtype}; build the model in that shape and type"
            )


def _of_model(model: nn.Module) -> SavedWeights:
    """State and masks of a model, torch's own masks made permanent."""
    from_torch_prune(model)  # refuses a tied weight under two masks
    state, masks = dict(model.state_dict()), {}
    made: dict[int, Tensor] = {}  # a tied weight once
    for name in [key.removesuffix("_orig") for key in state if key.endswith("_orig")]:
        if f"{name}_mask" in state:
            weight, masks[name] = state.pop(f"{name}_orig"), state.pop(f"{name}_mask") != 0
            kept = weight.masked_fill(~masks[name], 0.0)
            state[name] = made.setdefault(weight.data_ptr(), kept)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in state and parameter.ndim > 1 and not bool(parameter.all()):
            masks[name] = parameter.detach() != 0
    return SavedWeights(state, masks, {})


def _completed(weights: SavedWeights, model: nn.Module) -> SavedWeights:
    """The whole state of a model with other weights in it."""
    own = dict(model.state_dict())
    check_fit(weights.state, own)
    return SavedWeights({**own, **weights.state}, weights.masks, weights.metadata)


__all__ = ["Source", "check_fit", "check_masks", "network_of"]
