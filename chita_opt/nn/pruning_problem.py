"""From a model and data to the quadratic problem of pruning it, or one problem a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from chita_opt.curvature import BlockDiagonal, Curvature, LowRank, SharedRows, open_gradients
from chita_opt.errors import DataError, SupportError
from chita_opt.nn.gradients import GradientRows, gradient_file, gradient_rows
from chita_opt.nn.inputs import LayerGram, layer_inputs
from chita_opt.nn.layer_map import LayerMap, LayerSlice
from chita_opt.nn.pruning_options import PruneOptions
from chita_opt.nn.row_blocks import row_blocks
from chita_opt.nn.sampled_rows import sampled_rows
from chita_opt.nn.sampling import RowChoice
from chita_opt.problem import Problem, from_gradients
from chita_opt.supports import (
    Budget,
    LayerFamilies,
    SupportFamily,
    family_from_text,
    join_layers,
    keep_count,
    needs_count,
    split_budget,
)

_ROWS = {
    "gradients": "gradient rows",
    "row_gradients": "gradient rows, no coupling between outputs,",
    "sampled": "sampled Gauss-Newton rows",
}


@dataclass(frozen=True)
class NetworkProblem:
    """The problem over all selected weights, and how it was made.

    Attributes
    ----------
    problem : Problem
        Over the flat vector of the layer map.
    parts : Mapping
        Independent problems by layer name, where layers share neither curvature nor budget;
        empty where the problem is one.
    notes : Mapping
        How the curvature was measured, for the report.
    gradient : Tensor or None
        (p,) mean gradient of the loss, where the curvature is not made of it.
    """

    problem: Problem
    parts: Mapping[str, Problem] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    gradient: Tensor | None = None


def build_family(
    layer_map: LayerMap,
    support: str | SupportFamily,
    sparsity: float | None,
    options: PruneOptions,
    *,
    w_bar: Tensor | None = None,
) -> SupportFamily:
    """The support family over the flat vector; ``w_bar`` (p,) for ``split="magnitude"``.

    Raises
    ------
    SupportError
        If counts and family contradict each other, or a layer does not split into the groups of
        an N:M or block family; the message names the layer.
    """
    if sparsity is not None and options.k is not None:
        raise SupportError(f"both sparsity={sparsity} and k={options.k} were given; give one")
    if options.split is not None:
        return _split_family(layer_map, support, sparsity, options, w_bar)
    if isinstance(support, SupportFamily):
        return _own_family(layer_map, support, sparsity, options)
    if options.scope == "global":
        _check_groups(layer_map, support)
        shapes = [item.shape for item in layer_map]
        return family_from_text(
            support, layer_map.size, k=options.k, sparsity=sparsity, shapes=shapes
        )
    if options.k is not None:
        raise SupportError("k counts weights of all layers; scope='layer' needs a sparsity")
    if support != "cardinality" and needs_count(support):
        own = [
            family_from_text(support, item.size, sparsity=sparsity, shapes=[item.shape])
            for item in layer_map
        ]
        return join_layers(own)
    if support != "cardinality":
        if sparsity is not None:
            raise SupportError(
                f"a sparsity of each layer on top of {support} is not offered; use scope='global'"
            )
        _check_groups(layer_map, support)
        shapes = [item.shape for item in layer_map]
        return family_from_text(support, layer_map.size, shapes=shapes)
    if sparsity is None:
        raise SupportError("a cardinality budget needs a sparsity")
    counts = [keep_count(size, sparsity).k for size in layer_map.sizes]
    return Budget.per_layer(layer_map.sizes, counts)


def _split_family(
    layer_map: LayerMap,
    support: str | SupportFamily,
    sparsity: float | None,
    options: PruneOptions,
    w_bar: Tensor | None,
) -> SupportFamily:
    """A count for each layer, by the rule asked for."""
    if support != "cardinality" or options.scope == "layer":
        raise SupportError(
            f"split={options.split!r} divides a count among layers, with support='cardinality' and "
            f"scope='global'; got support={support!r} and scope={options.scope!r}"
        )
    split, k = options.split, options.k
    assert split is not None
    if sparsity is not None:
        k = keep_count(layer_map.size, sparsity).k
    elif k is None and not isinstance(split, str):
        k = sum(split.values() if isinstance(split, Mapping) else split)
    if k is None:
        raise SupportError(f"split={split!r} needs a sparsity or k")
    shapes = {item.name: item.shape for item in layer_map}
    return Budget.per_layer(layer_map.sizes, split_budget(split, k, shapes, w=w_bar))


def build_problem(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    data: Any,
    layer_map: LayerMap,
    supports: SupportFamily,
    options: PruneOptions,
    *,
    out: Tensor | None = None,
    columns: Tensor | None = None,
) -> NetworkProblem:
    """Measure the curvature and put the problem together.

    ``out`` is memory for gradient rows. With ``columns`` the problem is over these weights alone,
    as is ``supports``; the others stay as they are (curvature "gradients" in memory only).
    """
    if options.curvature == "inputs":
        return _from_inputs(model, data, layer_map, supports, options)
    if loss_fn is None:
        raise DataError(f"loss_fn is needed for curvature={options.curvature!r}")
    options.tell("gradients", 0, options.rows)
    choice = RowChoice(
        rows=options.rows,
        batch_size=options.batch_size,
        seed=options.seed if by_number(data) else None,
        columns=columns,
    )
    w_bar, gradient, alpha = layer_map.weights(model), None, options.alpha
    w_bar = w_bar if columns is None else w_bar[columns]
    if options.curvature == "sampled":
        limit, seed = options.memory_limit, options.seed
        sampled = sampled_rows(
            model, loss_fn, data, layer_map, choice, seed=seed, memory_limit=limit
        )
        found, gradient, alpha = sampled.rows, sampled.gradient, 0.0
        rows: Tensor | LowRank = found.A
    else:
        found, rows = _loss_gradients(model, loss_fn, data, layer_map, choice, options, out)
    problem = from_gradients(rows, w_bar, ridge=options.ridge, supports=supports, first_order=alpha)
    notes = {
        "curvature": f"{options.rows} {_ROWS[options.curvature]} of {options.batch_size} samples",
        "gradient_path": found.path,
        "path_reason": found.reason,
        "calibration_loss": found.loss_mean,
    }
    if options.curvature == "row_gradients":
        blocks = row_blocks(found.A, layer_map, memory_limit=options.memory_limit)
        network = _from_blocks(blocks, layer_map, w_bar, supports, options, notes, problem.g)
        return replace(network, gradient=found.A.mean(0, dtype=torch.float64))
    if gradient is not None and options.alpha:
        g = options.alpha * gradient
        problem = Problem(problem.curvature, w_bar, problem.rho, supports, g)
    if options.ridge_unit == "mean_diagonal":
        rho = options.ridge * float(problem.curvature.diagonal().mean())
        problem = Problem(problem.curvature, w_bar, rho, supports, problem.g)
    return NetworkProblem(_placed(problem, options), notes=notes, gradient=gradient)


def _loss_gradients(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: Any,
    layer_map: LayerMap,
    choice: RowChoice,
    options: PruneOptions,
    out: Tensor | None,
) -> tuple[GradientRows, Tensor | LowRank]:
    """Gradient rows, and what the problem is made of: themselves, or the curvature of a file."""
    limit, path = options.memory_limit, options.gradient_file

    def progress(done: int, total: int) -> None:
        options.tell("gradients", done, total)

    inputs = (model, loss_fn, data, layer_map, choice)
    if path is None:
        found = gradient_rows(*inputs, memory_limit=limit, progress=progress, out=out)
        return found, found.A
    found = gradient_file(*inputs, path=path, memory_limit=limit, progress=progress)
    return found, open_gradients(path, memory_limit=limit)


def _from_inputs(
    model: nn.Module,
    data: Any,
    layer_map: LayerMap,
    supports: SupportFamily,
    options: PruneOptions,
) -> NetworkProblem:
    count = options.rows * options.batch_size
    options.tell("layer inputs", 0, count)
    grams = layer_inputs(
        model,
        drawn_samples(data, count, options.seed),
        layer_map,
        samples=count,
        memory_limit=options.memory_limit,
        progress=lambda done: options.tell("layer inputs", done, count),
    )
    blocks = {item.name: _row_blocks(item, grams[item.name]) for item in layer_map}
    notes = {"curvature": f"input second moments of {count} samples, layer by layer"}
    return _from_blocks(blocks, layer_map, layer_map.weights(model), supports, options, notes)


def _from_blocks(
    blocks: Mapping[str, list[Curvature]],
    layer_map: LayerMap,
    w_bar: Tensor,
    supports: SupportFamily,
    options: PruneOptions,
    notes: Mapping[str, Any],
    g: Tensor | None = None,
) -> NetworkProblem:
    """The problem over all blocks, and one a layer where the family falls apart too.

    The unit "mean_diagonal" of the ridge is that of each layer.
    """
    ridges = []
    for item in layer_map:
        scale = 1.0
        if options.ridge_unit == "mean_diagonal":
            scale = float(torch.cat([b.diagonal() for b in blocks[item.name]]).mean())
        ridges.append(torch.full((item.size,), options.ridge * scale, dtype=torch.float64))
    rho = torch.cat(ridges).to(w_bar.device)
    g = torch.zeros_like(w_bar) if g is None else g
    curvature = BlockDiagonal([b for item in layer_map for b in blocks[item.name]])
    problem = _placed(Problem(curvature, w_bar, rho, supports, g), options)
    parts = {}
    families = layer_families(layer_map, supports)
    for item, family in zip(layer_map, families, strict=False):
        s, own = slice(item.start, item.stop), blocks[item.name]
        whole = own[0] if len(own) == 1 else BlockDiagonal(own)
        parts[item.name] = _placed(Problem(whole, w_bar[s], rho[s], family, g[s]), options)
    return NetworkProblem(problem, parts, notes)


def _row_blocks(item: LayerSlice, gram: LayerGram) -> list[Curvature]:
    """One block for a layer; for a grouped convolution one for each group of outputs."""
    if gram.groups == 1:
        return [SharedRows(gram.H, item.rows_cols[0])]
    return [SharedRows(H, item.rows_cols[0] // gram.groups) for H in gram.H]


def layer_families(layer_map: LayerMap, supports: SupportFamily) -> Iterator[SupportFamily]:
    """Each layer's own family where no group and no total spans two layers; else nothing."""
    if isinstance(supports, LayerFamilies):
        if [part.size for part in supports.parts] == list(layer_map.sizes):
            yield from supports.parts
        return
    if not isinstance(supports, Budget) or supports.total is not None:
        return
    ranges = []
    for item in layer_map:
        own = supports.labels[item.start : item.stop]
        ranges.append((int(own.min()), int(own.max()) + 1))
    if any(a[1] > b[0] for a, b in pairwise(ranges)):
        return
    for item, (first, stop) in zip(layer_map, ranges, strict=True):
        labels = supports.labels[item.start : item.stop] - first
        yield Budget(labels, supports.caps[first:stop], title=supports.title)


def _placed(problem: Problem, options: PruneOptions) -> Problem:
    return problem if options.device is None else problem.to(options.device)


def _own_family(
    layer_map: LayerMap, supports: SupportFamily, sparsity: float | None, options: PruneOptions
) -> SupportFamily:
    if sparsity is not None or options.k is not None or options.scope == "layer":
        raise SupportError(
            f"the family {supports.name} holds its own counts; leave out sparsity, k and scope"
        )
    if supports.size != layer_map.size:
        raise SupportError(
            f"the family {supports.name} is over {supports.size} weights; the selected layers "
            f"have {layer_map.size}: {', '.join(layer_map.names)}"
        )
    return supports


def _check_groups(layer_map: LayerMap, support: str) -> None:
    """Refuse groups that would span two rows of a layer (N:M, rows) or two layers (blocks)."""
    parts = support.split(":")
    if parts[0] in {"bmwm", "darb"} or needs_count(support):
        return  # their blocks follow the shape of each layer
    if not all(x.isdigit() for x in parts[1:]) or len(parts) < 2:
        return  # family_from_text names what is wrong with the text
    width = int(parts[1])
    for item in layer_map:
        columns = item.size if parts[0] == "blocks" else item.rows_cols[1]
        if width and columns % width:
            what = "weights" if parts[0] == "blocks" else "weights in a row"
            raise SupportError(
                f"{support}: {item.name!r} of shape {item.shape} has {columns} {what}, no "
                f"multiple of {width}; leave it alone with exclude={item.name!r}"
            )


def by_number(data: Any) -> bool:
    """Whether samples can be fetched by number, so that a draw can be repeated."""
    source = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(source, IterableDataset):
        return False
    return hasattr(source, "__getitem__") and hasattr(source, "__len__")


def drawn_samples(data: Any, count: int, seed: int) -> Any:
    """``count`` samples drawn without replacement, where they can be fetched by number."""
    if not by_number(data):
        return data
    pair = isinstance(data, tuple | list) and len(data) == 2 and hasattr(data[0], "shape")
    if pair or isinstance(data, Tensor):
        inputs = torch.as_tensor(data[0] if pair else data)
        return inputs[_draw(len(inputs), count, seed).to(inputs.device)]
    if isinstance(data, tuple | list):  # batches
        inputs = torch.cat([torch.as_tensor(b if isinstance(b, Tensor) else b[0]) for b in data])
        return inputs[_draw(len(inputs), count, seed).to(inputs.device)]
    dataset: Any = data.dataset if isinstance(data, DataLoader) else data
    collate = data.collate_fn if isinstance(data, DataLoader) else None
    chosen = Subset(dataset, _draw(len(dataset), count, seed).tolist())
    return DataLoader(chosen, batch_size=min(count, 256), collate_fn=collate)


def _draw(size: int, count: int, seed: int) -> Tensor:
    if count > size:
        raise DataError(f"{count} samples are needed (rows * batch_size); the data hold {size}")
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]


__all__ = [
    "NetworkProblem",
    "build_family",
    "build_problem",
    "by_number",
    "drawn_samples",
    "layer_families",
]
