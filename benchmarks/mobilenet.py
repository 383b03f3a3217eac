"""MobileNetV1 (Howard et al. 2017), width 1, for images of 32 x 32: 4.2 million weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# (outputs, stride) of the depthwise-separable blocks; the strides of 224-pixel images would leave
# one place of 32 pixels after the third halving, so two of the halvings are left out.
BLOCKS = (
    (64, 1), (128, 1), (128, 1), (256, 2), (256, 1), (512, 2),
    *((512, 1),) * 5, (1024, 2), (1024, 1),
)  # fmt: skip


def _unit(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class MobileNetV1(nn.Module):
    """A convolution, thirteen depthwise-separable blocks, a mean over places and 1000 classes."""

    def __init__(self) -> None:
        super().__init__()
        layers, inputs = [_unit(3, 32, 3, 1)], 32
        for outputs, stride in BLOCKS:
            layers.append(_unit(inputs, inputs, 3, stride, groups=inputs))
            layers.append(_unit(inputs, outputs, 1, 1))
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(self.features(x).mean((2, 3)))


def untrained_mobilenet(x: Tensor, seed: int = 0) -> MobileNetV1:
    """Random weights; the running statistics of its norms are those of the images ``x``."""
    torch.manual_seed(seed)
    model = MobileNetV1().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over batches
    with torch.no_grad():
        for batch in x.split(64):
            model(batch)
    return model.eval()
