"""ResNet20 for CIFAR-10 (1x1 convolutions on the shortcuts), with data as stored beside it."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import torch
from PIL import Image
from reference_data import data_root
from torch import Tensor, nn
from torch.nn.functional import relu

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Residual sum, then ReLU."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet20(nn.Module):
    """Three stages of three blocks with 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(
            BasicBlock(16, 32, 2), *(BasicBlock(32, 32, 1) for _ in range(2))
        )
        self.layer3 = nn.Sequential(
            BasicBlock(32, 64, 2), *(BasicBlock(64, 64, 1) for _ in range(2))
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


def resnet20(name: str = "resnet20_finetuned") -> ResNet20:
    """The trained net of the data folder."""
    model = ResNet20()
    with np.load(data_root() / "data" / f"{name}.npz") as file:
        state = {
            k: torch.from_numpy(np.asarray(file[k])) for k in file.files if k != "dense_accuracy"
        }
    model.load_state_dict(state)
    return model.eval()


@cache
def images(split: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 3, 32, 32) and labels, in the stored order."""
    with np.load(data_root() / "data" / "cifar10_jpeg.npz") as file:
        content, offset = file[f"jpeg_{split}"], file[f"offset_{split}"]
        y = torch.from_numpy(file[f"y_{split}"].astype(np.int64))
    number = len(y) if count is None else count
    x = np.empty((number, 32, 32, 3), np.float32)
    for i in range(number):
        picture = Image.open(io.BytesIO(content[offset[i] : offset[i + 1]].tobytes()))
        x[i] = np.asarray(picture, np.float32) / 255.0
    x = (x - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), y[:number]
