"""The input vectors that the rows of a layer's weight are multiplied with."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from chita_opt.errors import LayerError

_STOCK = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


def is_stock(module: nn.Module) -> bool:
    """Say whether a layer computes what ``Linear`` or ``Conv1d..3d`` computes.

    A subclass with its own ``forward`` may do anything with its weight, and an attention reads that
    of its ``out_proj`` without calling it.
    """
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    return any(
        isinstance(module, stock) and type(module).forward is stock.forward for stock in _STOCK
    )


def window_view(module: Conv, x: Tensor) -> Tensor:
    """View the padded input of a convolution as the windows that the kernel visits.

    Parameters
    ----------
    module : Conv1d, Conv2d or Conv3d
        Its stride, padding (numbers, ``"same"``, ``"valid"``; every ``padding_mode``), dilation
        and groups are obeyed.
    x : Tensor
        Input of shape (N, C, ...) or (C, ...).

    Returns
    -------
    Tensor
        A strided view (no copy is made but for the padding) of shape
        (N, groups, C / groups, *kernel, *output size).
    """
    dims = len(module.kernel_size)
    x = padded_input(module, x)
    for i in range(dims):
        span = module.dilation[i] * (module.kernel_size[i] - 1) + 1
        # Appends the window as the last dimension; the slice then leaves the dilated taps.
        x = x.unfold(2 + i, span, module.stride[i])[..., :: module.dilation[i]]
    x = x.unflatten(1, (module.groups, -1))
    places, taps = range(3, 3 + dims), range(3 + dims, 3 + 2 * dims)
    return x.permute(0, 1, 2, *taps, *places)


def padded_input(module: Conv, x: Tensor) -> Tensor:
    """The input (N, C, ...) of a convolution with what its padding adds."""
    dims = len(module.kernel_size)
    if x.ndim == dims + 1:
        x = x.unsqueeze(0)
    if x.ndim != dims + 2:
        raise LayerError(
            f"{type(module).__name__} received an input of shape {tuple(x.shape)}, expected "
            f"{dims + 2} dimensions"
        )
    pad = _padding(module)
    if not any(pad):
        return x
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(x, pad, mode=mode)


def input_vectors(module: nn.Module, x: Tensor) -> Tensor:
    """Collect all input vectors of one call of a layer.

    Returns
    -------
    Tensor
        Shape (groups, d, count): column t of group g is the vector that every row of the group's
        weight matrix is multiplied with at place t. ``groups`` is 1 but for convolutions.
    """
    if not isinstance(module, Conv):
        return x.reshape(-1, x.shape[-1]).t().unsqueeze(0)
    view = window_view(module, x)
    dims = len(module.kernel_size)
    order = (1, 2, *range(3, 3 + dims), 0, *range(3 + dims, 3 + 2 * dims))
    count = view.shape[0] * view.shape[3 + dims :].numel()
    return view.permute(order).reshape(module.groups, -1, count)


def _padding(module: Conv) -> list[int]:
    """Return the padding as ``functional.pad`` wants it: last dimension first."""
    pad: list[int] = []
    for i in reversed(range(len(module.kernel_size))):
        if module.padding == "same":
            total = module.dilation[i] * (module.kernel_size[i] - 1)
            pad += [total // 2, total - total // 2]
        elif module.padding == "valid":
            pad += [0, 0]
        else:
            pad += [int(module.padding[i])] * 2
    return pad
