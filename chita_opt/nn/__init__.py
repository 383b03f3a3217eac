"""Prune PyTorch networks: layers, gradients, data, small models and the whole pipeline.

The names below are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "LayerMap": "chita_opt.nn.layers",
    "LayerSlice": "chita_opt.nn.layers",
    "LeftAlone": "chita_opt.nn.layers",
    "select_layers": "chita_opt.nn.layers",
    "GradientRows": "chita_opt.nn.gradients",
    "gradient_file": "chita_opt.nn.gradients",
    "gradient_rows": "chita_opt.nn.gradients",
    "RowChoice": "chita_opt.nn.sampling",
    "LayerGram": "chita_opt.nn.inputs",
    "layer_inputs": "chita_opt.nn.inputs",
    "MacCount": "chita_opt.nn.macs",
    "count_macs": "chita_opt.nn.macs",
    "LayerReport": "chita_opt.nn.result",
    "PruneOptions": "chita_opt.nn.pruning_options",
    "PruningResult": "chita_opt.nn.result",
    "prune": "chita_opt.nn.pruning",
    "Distillation": "chita_opt.nn.gradual_training",
    "GradualOptions": "chita_opt.nn.gradual_training",
    "GradualResult": "chita_opt.nn.gradual_training",
    "prune_and_train": "chita_opt.nn.gradual_training",
    "StageOptions": "chita_opt.nn.stages",
    "StagedResult": "chita_opt.nn.stages",
    "prune_in_stages": "chita_opt.nn.stages",
    "MaskKeeper": "chita_opt.nn.masks",
    "apply_masks_": "chita_opt.nn.masks",
    "from_torch_prune": "chita_opt.nn.masks",
    "to_torch_prune_": "chita_opt.nn.masks",
    "SavedWeights": "chita_opt.nn.weight_files",
    "load_weights": "chita_opt.nn.weight_files",
    "save_weights": "chita_opt.nn.weight_files",
    "recalibrate_bn_": "chita_opt.nn.batch_norm",
    "ImageData": "chita_opt.nn.data",
    "digits": "chita_opt.nn.data",
    "mnist": "chita_opt.nn.data",
    "mnist_subset": "chita_opt.nn.data",
    "CharacterModel": "chita_opt.nn.characters",
    "TextData": "chita_opt.nn.characters",
    "perplexity": "chita_opt.nn.characters",
    "text_data": "chita_opt.nn.characters",
    "LeNet5": "chita_opt.nn.models",
    "MLPNet": "chita_opt.nn.models",
    "accuracy": "chita_opt.nn.models",
    "load_pretrained": "chita_opt.nn.models",
    "pretrained_card": "chita_opt.nn.models",
    "TransformerClassifier": "chita_opt.nn.transformer",
    "TrainingLog": "chita_opt.nn.train",
    "TrainingRecipe": "chita_opt.nn.train",
    "train_classifier": "chita_opt.nn.train",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'chita_opt.nn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
