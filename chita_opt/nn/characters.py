"""Text as characters, recurrent networks that predict the next one, and their perplexity."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from chita_opt.errors import DataError
from chita_opt.nn.evaluation import evaluating, model_device


@dataclass(frozen=True, eq=False)
class TextData:
    """A text cut into windows; every target is the character after its input.

    Attributes
    ----------
    x_train, x_test : Tensor
        (windows, length) int64 indices into ``vocabulary``.
    y_train, y_test : Tensor
        (windows, length) the same windows, one character later.
    vocabulary : str
        All characters of the whole text, sorted.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    vocabulary: str


def text_data(text: str, *, length: int = 64, test_part: float = 0.1) -> TextData:
    """Cut a text into windows that do not overlap: the first part trains, the last part tests.

    Parameters
    ----------
    text : str
        The whole text.
    length : int
        Characters in a window. A rest that fills none is left out at the end of either part.
    test_part : float
        Share of the characters that test.

    Raises
    ------
    DataError
        If a part has less than one window, or a parameter is out of range.
    """
    if length < 1 or not 0.0 < test_part < 1.0:
        raise DataError(f"need length >= 1 and 0 < test_part < 1; got {length} and {test_part}")
    vocabulary = "".join(sorted(set(text)))
    place = {character: i for i, character in enumerate(vocabulary)}
    codes = torch.tensor([place[character] for character in text], dtype=torch.int64)
    cut = round((1.0 - test_part) * len(codes))
    x_train, y_train = _windows(codes[:cut], length)
    x_test, y_test = _windows(codes[cut:], length)
    return TextData(x_train, y_train, x_test, y_test, vocabulary)


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file in UTF-8.

    Raises
    ------
    DataError
        If there is no such file, or it holds no UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error


class CharacterModel(nn.Module):
    """Embedding, a recurrent network, and a linear layer to the next character's log-probability.

    Zaremba et al., "Recurrent Neural Network Regularization" (2014), without dropout: two layers
    of LSTM cells. Every window starts from the zero state.

    Parameters
    ----------
    characters : int
        Size of the vocabulary.
    cell : {"lstm", "gru"}
        Kind of the recurrent layers.
    width : int
        Units of the embedding and of each layer. A multiple of 64 leaves whole blocks at every
        power of two up to there.
    layers : int
        Recurrent layers.
    seed : int, optional
        Draw the first weights with this seed; torch's random state stays.

    Raises
    ------
    DataError
        If the cell is not known, or a size is below 1.
    """

    def __init__(
        self,
        characters: int,
        *,
        cell: Literal["lstm", "gru"] = "lstm",
        width: int = 128,
        layers: int = 2,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        kinds = {"lstm": nn.LSTM, "gru": nn.GRU}
        if cell not in kinds or min(characters, width, layers) < 1:
            raise DataError(
                f"need cell 'lstm' or 'gru' and sizes >= 1; got {cell!r}, {characters} "
                f"characters, width {width}, {layers} layers"
            )
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.embedding = nn.Embedding(characters, width)
            self.recurrent = kinds[cell](width, width, layers, batch_first=True)
            self.output = nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (n, characters, length) of windows (n, length)."""
        hidden, _ = self.recurrent(self.embedding(x))
        return functional.log_softmax(self.output(hidden), dim=2).transpose(1, 2)


def perplexity(model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 256) -> float:
    """Return the exponential of the mean negative log-likelihood a character.

    Parameters
    ----------
    model : torch.nn.Module
        Maps windows (n, length) to log-probabilities (n, characters, length). It is run in eval
        mode and left as it was.
    x, y : Tensor
        (n, length) windows and targets.
    batch_size : int
        Windows in one forward pass.

    Raises
    ------
    DataError
        No windows, or ``x`` and ``y`` differ in shape.
    """
    if not x.numel() or x.shape != y.shape:
        raise DataError(f"windows {tuple(x.shape)} and targets {tuple(y.shape)} must agree")
    device, total = model_device(model), 0.0
    with evaluating(model), torch.no_grad():
        for inputs, targets in zip(x.split(batch_size), y.split(batch_size), strict=True):
            scores = model(inputs.to(device))
            total += float(functional.nll_loss(scores, targets.to(device), reduction="sum"))
    return math.exp(total / y.numel())


def _windows(codes: Tensor, length: int) -> tuple[Tensor, Tensor]:
    count = (len(codes) - 1) // length
    if count < 1:
        raise DataError(f"{len(codes)} characters do not fill one window of {length} and a target")
    stop = count * length
    return codes[:stop].reshape(-1, length), codes[1 : stop + 1].reshape(-1, length)


__all__ = ["CharacterModel", "TextData", "perplexity", "read_text", "text_data"]
