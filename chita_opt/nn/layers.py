"""Select the layers of a model that may be pruned, by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter

from chita_opt.errors import LayerError
from chita_opt.nn.layer_map import LayerMap, LayerSlice, LeftAlone

__all__ = ["LayerMap", "LayerSlice", "LeftAlone", "select_layers"]

_WEIGHTED: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Linear, "linear"),
    (nn.Conv1d, "conv1d"),
    (nn.Conv2d, "conv2d"),
    (nn.Conv3d, "conv3d"),
)
_RECURRENT: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.modules.rnn.RNNCellBase)
# weight_ih_l0, weight_hh_l1_reverse, bias_ih, ..., and not weight_hh_l0_orig of a masked layer
_RECURRENT_KEY = re.compile(r"(weight|bias)_(?:ih|hh|hr)(?:_l\d+(?:_reverse)?)?")
_ATTENTION_KEYS = {
    **dict.fromkeys(("in_proj_weight", *(f"{x}_proj_weight" for x in "qkv")), "attention"),
    **dict.fromkeys(("in_proj_bias", "bias_k", "bias_v"), "bias"),
}
_MATRICES = {kind for _, kind in _WEIGHTED} | {"recurrent", "attention"}
_NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # every BatchNorm and InstanceNorm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True)
class _Use:
    """One name under which one module holds a parameter."""

    name: str
    module_name: str
    module: nn.Module
    parameter: nn.Parameter
    role: str  # a kind of LayerSlice, or "unsupported"
    place: int  # position in module order

    def matches(self, pattern: str) -> bool:
        if pattern in (self.name, self.module_name) or self.name.startswith(f"{pattern}."):
            return True
        return fnmatchcase(self.name, pattern) or fnmatchcase(self.module_name, pattern)


def select_layers(
    model: nn.Module,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    biases: bool = False,
    norms: bool = False,
) -> LayerMap:
    """Select prunable parameters and lay them out in one flat vector.

    The weights of ``Linear``, ``Conv1d``, ``Conv2d`` and ``Conv3d`` layers (grouped, depthwise
    and 1x1 ones too) can be pruned; the input, hidden and projection matrices of ``RNN``,
    ``LSTM``, ``GRU`` and their cells, whose rows are the units of one gate after the other; and the
    projections of ``MultiheadAttention``, whose ``in_proj_weight`` holds the rows of queries, keys
    and values one after the other. The table of an ``Embedding`` is looked up rather than
    multiplied: it is pruned where ``include`` gives its exact parameter name, and must be excluded
    otherwise. A parameter shared by several layers is one variable, listed under its first name
    that can be pruned; excluding any of its names excludes it. What is not selected stands in
    ``left_alone`` with the reason.

    Parameters
    ----------
    model : torch.nn.Module
        The model; it is only read.
    include : str or sequence of str, optional
        What to prune; every supported weight when not given. Each entry is the exact name of a
        module (everything in it), the exact name of a parameter, or a pattern with ``*``, ``?``
        and ``[...]`` that is matched against both, where ``*`` also spans dots:
        ``"fc1"``, ``"fc1.weight"``, ``"layer1.*"``.
    exclude : str or sequence of str
        What to leave alone, in the same form; it wins over ``include``.
    biases, norms : bool
        Take the biases of the selected layers, or the affine parameters of normalisation layers,
        too. Without these, such a parameter is taken only where ``include`` gives its exact
        parameter name.

    Returns
    -------
    LayerMap
        The selection, in module order, each tensor flattened row-major.

    Raises
    ------
    LayerError
        If an entry matches nothing, nothing is selected, or a layer within the selection holds
        parameters that cannot be pruned (``Embedding``, a custom module with its own parameters,
        an uninitialised lazy layer, ...). The message names it and the cure.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> select_layers(net).names
    ('0.weight', '2.weight')
    >>> select_layers(net, include="2", biases=True).sizes
    (6, 2)
    """
    if not isinstance(model, nn.Module):
        raise LayerError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    wanted = None if include is None else _as_patterns("include", include)
    unwanted = _as_patterns("exclude", exclude)
    groups = _parameter_uses(model)
    _check_matches(model, groups, "include", wanted or ())
    _check_matches(model, groups, "exclude", unwanted)

    chosen: list[tuple[_Use, tuple[str, ...]]] = []
    refused: list[_Use] = []
    left: list[LeftAlone] = []
    for group in groups:
        reason = _passed_over(group, wanted, unwanted)
        by_name = any(use.name in (wanted or ()) for use in group)
        allowed = {"bias": biases or by_name, "norm": norms or by_name, "embedding": by_name}
        use = None if reason else _prunable(group, {role for role in allowed if allowed[role]})
        if use is not None:
            chosen.append((use, tuple(other.name for other in group if other is not use)))
        else:
            left.append(_left_alone(group[0], reason or group[0].role))
        # A tied Embedding does not stand in the way of a Linear layer that is asked for by name.
        if not reason and (use is None or wanted is None):
            refused += [other for other in group if other.role in ("unsupported", "embedding")]
    if refused:
        raise LayerError(_refusal(refused))
    _check_left_alone(groups, wanted or (), chosen)
    if not chosen:
        raise LayerError(
            "nothing is selected: within include and outside exclude the model has no weight of a "
            "Linear, Conv1d, Conv2d, Conv3d, recurrent or attention layer"
        )
    return _lay_out(sorted(chosen, key=lambda pair: pair[0].place), tuple(left))


def _as_patterns(option: str, value: str | Sequence[str]) -> tuple[str, ...]:
    patterns = (value,) if isinstance(value, str) else tuple(value)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise LayerError(f"{option} must hold names or patterns, got {pattern!r}")
    if option == "include" and not patterns:
        raise LayerError("include is empty; leave it out to take every supported layer")
    return patterns


def _parameter_uses(model: nn.Module) -> list[list[_Use]]:
    """Group all names of all parameters by parameter, in module order."""
    groups: dict[int, list[_Use]] = {}
    place = 0
    for module_name, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{module_name}.{key}" if module_name else key
            role = _role(module, key, parameter)
            use = _Use(name, module_name, module, parameter, role, place)
            groups.setdefault(id(parameter), []).append(use)
            place += 1
    return list(groups.values())


def _role(module: nn.Module, key: str, parameter: nn.Parameter) -> str:
    if isinstance(parameter, UninitializedParameter) or parameter.is_meta:
        return "unsupported"
    if not parameter.is_floating_point() or parameter.numel() == 0:
        return "unsupported"
    if isinstance(module, _NORMS):
        return "norm" if key in ("weight", "bias") else "unsupported"
    for layer_type, kind in _WEIGHTED:
        if isinstance(module, layer_type):
            return {"weight": kind, "bias": "bias"}.get(key, "unsupported")
    if isinstance(module, _RECURRENT) and (match := _RECURRENT_KEY.fullmatch(key)):
        return {"weight": "recurrent", "bias": "bias"}[match[1]]
    if isinstance(module, nn.MultiheadAttention):
        return _ATTENTION_KEYS.get(key, "unsupported")
    if isinstance(module, nn.Embedding) and module.max_norm is None and not module.sparse:
        return "embedding"
    return "unsupported"


def _passed_over(
    group: list[_Use], wanted: tuple[str, ...] | None, unwanted: tuple[str, ...]
) -> str:
    """Say why a parameter is outside of the selection; "" if it is within."""
    if any(use.matches(pattern) for use in group for pattern in unwanted):
        return "excluded"
    if wanted and not any(use.matches(pattern) for use in group for pattern in wanted):
        return "not included"
    return ""


def _left_alone(use: _Use, reason: str) -> LeftAlone:
    lazy = isinstance(use.parameter, UninitializedParameter)
    return LeftAlone(use.name, 0 if lazy else use.parameter.numel(), reason)


def _prunable(group: list[_Use], allowed: set[str]) -> _Use | None:
    """Pick the name that a parameter is listed under; weights come before other roles."""
    for roles in (_MATRICES, allowed):
        for use in group:
            if use.role in roles:
                return use
    return None


def _lay_out(
    chosen: list[tuple[_Use, tuple[str, ...]]], left_alone: tuple[LeftAlone, ...]
) -> LayerMap:
    slices: list[LayerSlice] = []
    start = 0
    for use, aliases in chosen:
        stop = start + use.parameter.numel()
        shape = tuple(use.parameter.shape)
        slices.append(LayerSlice(use.name, use.module_name, use.role, shape, start, stop, aliases))
        start = stop
    return LayerMap(tuple(slices), left_alone)


def _check_matches(
    model: nn.Module, groups: list[list[_Use]], option: str, patterns: tuple[str, ...]
) -> None:
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for pattern in patterns:
        if any(use.matches(pattern) for group in groups for use in group):
            continue
        if option == "exclude" and any(fnmatchcase(name, pattern) for name in modules):
            continue  # a module without parameters: nothing of it could be pruned anyway
        names = [*modules, *(use.name for group in groups for use in group)]
        near = difflib.get_close_matches(pattern, names, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise LayerError(f"{option}={pattern!r} matches no layer or parameter of the model{hint}")


def _check_left_alone(
    groups: list[list[_Use]],
    wanted: tuple[str, ...],
    chosen: list[tuple[_Use, tuple[str, ...]]],
) -> None:
    """Refuse an include entry whose every match is a bias or norm that was left alone."""
    taken = {id(use.parameter) for use, _ in chosen}
    for pattern in wanted:
        hits = [use for group in groups for use in group if use.matches(pattern)]
        if any(id(use.parameter) in taken for use in hits):
            continue
        for role, option in (("norm", "norms"), ("bias", "biases")):
            if all(use.role == role for use in hits):
                raise LayerError(
                    f"include={pattern!r} matches only {role} parameters, which are left alone; "
                    f"pass {option}=True or an exact name such as {hits[0].name!r}"
                )


def _refusal(refused: list[_Use]) -> str:
    """Name every module that cannot be pruned, why, and what to do."""
    lines: dict[str, str] = {}
    for use in refused:
        where = use.module_name or use.name
        kind = type(use.module).__name__
        lines.setdefault(where, f"{where!r} ({kind}) {_reason(use)}")
    names = ", ".join(map(repr, lines))
    cure = names if len(lines) == 1 else f"[{names}]"
    return f"{'; '.join(lines.values())}. Leave alone what is not to be pruned: exclude={cure}"


def _reason(use: _Use) -> str:
    if isinstance(use.parameter, UninitializedParameter):
        return "is a lazy layer without weights yet: pass one batch through the model first"
    if use.parameter.is_meta:
        return "lies on the meta device and has no values"
    if use.name.endswith("_orig"):
        return (
            f"is masked by torch.nn.utils.prune ({use.name!r}): make the mask permanent with "
            "prune.remove first"
        )
    if use.role == "embedding":
        return f"holds a table that is looked up; to prune it, name it: include={use.name!r}"
    return f"holds {use.name!r}, which cannot be pruned"
