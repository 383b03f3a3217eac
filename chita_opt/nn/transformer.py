"""A small transformer encoder that classifies images read row by row."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from chita_opt.errors import DataError


class TransformerClassifier(nn.Module):
    """Rows of an image as tokens, encoder layers, and the mean token to the log-probabilities.

    The encoder of Vaswani et al., "Attention is all you need" (2017), with its fixed sinusoidal
    positions and without dropout; one layer by default.

    Parameters
    ----------
    tokens, features : int
        Rows of an image, and pixels of a row.
    classes : int
        Number of classes.
    width, heads, hidden, layers : int
        Numbers of a token (a multiple of ``heads``, even), heads of the attention, units between
        the linear layers of an encoder layer, and encoder layers.
    seed : int, optional
        Draw the first weights with this seed; torch's random state stays.

    Raises
    ------
    DataError
        A size is below 1, or ``width`` is odd or no multiple of ``heads``.
    """

    positions: Tensor

    def __init__(
        self,
        tokens: int,
        features: int,
        classes: int,
        *,
        width: int = 32,
        heads: int = 4,
        hidden: int = 64,
        layers: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        sizes = (tokens, features, classes, width, heads, hidden, layers)
        if min(sizes) < 1 or width % heads or width % 2:
            raise DataError(
                f"sizes {sizes} must be 1 or more, and width {width} even and a multiple of "
                f"{heads} heads"
            )
        self.tokens = tokens
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.embed = nn.Linear(features, width)
            layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
            self.output = nn.Linear(width, classes)
        self.register_buffer("positions", _positions(tokens, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (n, classes) of images (n, tokens * features)."""
        tokens = self.embed(x.flatten(1).unflatten(1, (self.tokens, -1))) + self.positions
        return functional.log_softmax(self.output(self.encoder(tokens).mean(1)), dim=1)


def _positions(tokens: int, width: int) -> Tensor:
    """(tokens, width) sines and cosines of falling frequency."""
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(tokens)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


__all__ = ["TransformerClassifier"]
