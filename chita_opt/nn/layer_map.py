"""Where each selected tensor lies in the flat weight vector that the solvers work on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from chita_opt.errors import LayerError


@dataclass(frozen=True)
class LayerSlice:
    """One selected parameter and its place in the flat vector.

    Attributes
    ----------
    name : str
        Parameter name, as in ``model.named_parameters()``, for instance ``"fc1.weight"``.
    module_name : str
        Name of the layer that owns the parameter, for instance ``"fc1"``.
    kind : str
        ``"linear"``, ``"conv1d"``, ``"conv2d"``, ``"conv3d"``, ``"recurrent"`` (a
        matrix of an RNN, LSTM or GRU), ``"attention"`` (an input projection of a
        ``MultiheadAttention``), ``"embedding"``, ``"bias"`` or ``"norm"``.
    shape : tuple of int
        Shape of the parameter.
    start, stop : int
        The parameter, flattened row-major, is ``vector[start:stop]``.
    aliases : tuple of str
        Further names of the same tied parameter. It is one variable of the problem.
    """

    name: str
    module_name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int
    aliases: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.stop - self.start

    @property
    def rows_cols(self) -> tuple[int, int]:
        """Shape as a matrix: output units by weights per output unit."""
        return self.shape[0], math.prod(self.shape[1:])


@dataclass(frozen=True)
class LeftAlone:
    """A parameter of the model that is not selected.

    Attributes
    ----------
    name : str
        Parameter name, the first one of a tied parameter.
    size : int
        Number of its values; 0 of a lazy layer without weights yet.
    reason : str
        Why: ``"excluded"``, ``"not included"``, ``"bias"`` or ``"norm"`` (not asked for).
    """

    name: str
    size: int
    reason: str


@dataclass(frozen=True)
class LayerMap:
    """Translation between named tensors and one flat vector, in module order.

    Attributes
    ----------
    slices : tuple of LayerSlice
        The selected parameters; each begins where the one before it stops.
    left_alone : tuple of LeftAlone
        Every other parameter of the model with the reason; together they are all there are.
    """

    slices: tuple[LayerSlice, ...]
    left_alone: tuple[LeftAlone, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check that the slices follow each other."""
        end = 0
        for item in self.slices:
            if item.start != end or item.size != math.prod(item.shape):
                raise LayerError(
                    f"slice {item.name!r} covers {item.start}:{item.stop}, which does not follow "
                    f"{end} with {math.prod(item.shape)} weights of shape {item.shape}"
                )
            end = item.stop

    @property
    def size(self) -> int:
        """Length p of the flat vector."""
        return self.slices[-1].stop if self.slices else 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of weights of each slice, in order."""
        return tuple(item.size for item in self.slices)

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter name of each slice, in order."""
        return tuple(item.name for item in self.slices)

    @cached_property
    def _by_name(self) -> dict[str, LayerSlice]:
        return {name: item for item in self.slices for name in (item.name, *item.aliases)}

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.slices)

    def __iter__(self) -> Iterator[LayerSlice]:
        """Iterate over the slices in order."""
        return iter(self.slices)

    def __contains__(self, name: object) -> bool:
        """Say whether a parameter name, or an alias, is selected."""
        return name in self._by_name

    def __getitem__(self, name: str) -> LayerSlice:
        """Return the slice of a parameter name or of one of its aliases."""
        try:
            return self._by_name[name]
        except KeyError:
            raise LayerError(
                f"{name!r} is not a selected parameter; selected are {', '.join(self.names)}"
            ) from None

    def rows_cols(self, name: str) -> tuple[int, int]:
        """Return the shape of a weight as a matrix: outputs by weights per output.

        For a convolution of shape (out, in / groups, k, ...) the columns run over the input
        channels and, fastest, over the kernel.
        """
        return self[name].rows_cols

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenate named tensors into one vector.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            One tensor for every slice, under its name or one of its aliases.

        Returns
        -------
        Tensor
            Vector of length ``size`` in float64, on the device of the tensors.

        Raises
        ------
        LayerError
            If a slice has no tensor, a name is unknown or a shape differs.
        """
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            item = self[name]
            if tuple(tensor.shape) != item.shape:
                raise LayerError(f"{name!r} has shape {tuple(tensor.shape)}, expected {item.shape}")
            found.setdefault(item.name, tensor)
        missing = [name for name in self.names if name not in found]
        if missing:
            raise LayerError(f"no tensor given for {', '.join(missing)}")
        parts = [found[name].detach().reshape(-1).to(torch.float64) for name in self.names]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def unflatten(
        self,
        vector: Tensor,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """Cut a flat vector into named tensors; the inverse of :meth:`flatten`.

        Parameters
        ----------
        vector : Tensor
            Vector of length ``size``: weights, or a boolean mask.
        dtype, device : optional
            Of the result; those of the vector when not given.

        Returns
        -------
        dict of str to Tensor
            Copies, keyed by the name of each slice (aliases are not repeated).

        Raises
        ------
        LayerError
            If the vector has another length.
        """
        flat = self._checked(vector)
        return {
            item.name: flat[item.start : item.stop]
            .reshape(item.shape)
            .to(device=device, dtype=dtype, copy=True)
            for item in self.slices
        }

    def weights(self, model: nn.Module) -> Tensor:
        """Return the current weights of a model as a flat float64 vector (a copy)."""
        return self.flatten({item.name: self.parameter(model, item) for item in self.slices})

    def write_(self, model: nn.Module, vector: Tensor) -> None:
        """Copy a flat vector into the parameters of a model, in place.

        Parameters
        ----------
        model : torch.nn.Module
            The model that the map was made from, or one with the same parameters.
        vector : Tensor
            Vector of length ``size``, cast to the dtype of each parameter.

        Raises
        ------
        LayerError
            If the length differs, a value is not finite or the model does not fit the map;
            the model is then unchanged.
        """
        flat = self._checked(vector)
        if not bool(torch.isfinite(flat).all()):
            raise LayerError("the weight vector holds values that are not finite")
        targets = [self.parameter(model, item) for item in self.slices]
        with torch.no_grad():
            for item, target in zip(self.slices, targets, strict=True):
                target.copy_(flat[item.start : item.stop].reshape(item.shape))

    def parameter(self, model: nn.Module, item: LayerSlice) -> nn.Parameter:
        """Return the parameter of a slice in a model, checked against the slice's shape."""
        try:
            parameter = model.get_parameter(item.name)
        except AttributeError as error:
            raise LayerError(f"the model has no parameter {item.name!r}: {error}") from error
        if tuple(parameter.shape) != item.shape:
            raise LayerError(
                f"{item.name!r} has shape {tuple(parameter.shape)}, the map expects {item.shape}"
            )
        return parameter

    def _checked(self, vector: Tensor) -> Tensor:
        flat = torch.as_tensor(vector).detach()
        if flat.shape != (self.size,):
            raise LayerError(
                f"a vector of shape {tuple(flat.shape)} was given, expected ({self.size},)"
            )
        return flat
