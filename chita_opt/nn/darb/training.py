r"""The training loop of DARB: dense, pruned anywhere, block widths, pruned by blocks, retrained.

Ren et al., "DARB: A Density-Adaptive Regular-Block Pruning for Deep Neural Networks" (AAAI 2020).
What the paper leaves open is an option here: how widths are rounded, whether a rule or the best
total decides them, and by what weights are chosen: magnitude, as in the paper, or any method of
this package on the quadratic model of the loss.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import nll_loss

from chita_opt.errors import DataError
from chita_opt.heuristics import solve
from chita_opt.nn.darb.joint_widths import solve_with_widths
from chita_opt.nn.darb.patterns import Choice, darb_family, dual_gains
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.layers import select_layers
from chita_opt.nn.masks import MaskKeeper, apply_masks_
from chita_opt.nn.pruning_options import PruneOptions
from chita_opt.nn.pruning_problem import build_problem
from chita_opt.nn.stages import BlockRounds
from chita_opt.nn.train import TrainingLog, TrainingRecipe, train_classifier
from chita_opt.nn.training_checkpoint import digest
from chita_opt.nn.weight_files import load_weights, save_weights
from chita_opt.problem import Problem
from chita_opt.supports import Budget, SupportFamily, keep_count
from chita_opt.supports.block_widths import BlockWidths

STAGES = ("dense", "irregular", "irregular_retrained", "blocks", "blocks_retrained")
"""Names of the states that a run passes through."""


_NO_TRAINING = TrainingLog((), 0, 0.0, stopped_early=False)


@dataclass(frozen=True, kw_only=True)
class DarbRecipe:
    """How to train a network to regular blocks.

    Attributes
    ----------
    sparsity : float
        Share of the weights removed: of the irregular pruning exactly, of the blocks at least.
    choice, rounding, widest
        How block widths are chosen; see :func:`chita_opt.nn.darb.darb_family`.
    method : str
        "magnitude"; a method of :func:`chita_opt.solve` for the quadratic model at the dense
        weights, which then also adjusts the weights that stay; or "blocks":
        :class:`~chita_opt.nn.stages.BlockRounds` on that model, for deep networks, in which one
        solve of few gradients promises what the network does not keep.
    measure : PruneOptions
        Selection of layers, and for the quadratic model rows, batch size, ridge and so on.
    dense, irregular, retrain : TrainingRecipe
        Training before pruning, on the irregular mask, and on the blocks. No epochs: none.
    """

    sparsity: float
    choice: Choice = "published"
    rounding: str = "nearest"
    widest: int = 16
    method: str = "magnitude"
    measure: PruneOptions = field(default_factory=PruneOptions)
    dense: TrainingRecipe = field(default_factory=lambda: TrainingRecipe(epochs=0))
    irregular: TrainingRecipe = field(default_factory=lambda: TrainingRecipe(epochs=0))
    retrain: TrainingRecipe = field(default_factory=lambda: TrainingRecipe(epochs=5, lr=0.01))


@dataclass(frozen=True, eq=False)
class DarbStage:
    """The network at one point of the run.

    Attributes
    ----------
    name : str
        One of ``STAGES``.
    state : Mapping
        For ``model.load_state_dict``.
    masks : Mapping
        By parameter name; empty for the dense network.
    losses : tuple of float
        Of each epoch that led here from the stage before; empty where none did.
    """

    name: str
    state: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    losses: tuple[float, ...] = ()

    @property
    def kept(self) -> int:
        """Weights that the masks keep."""
        return sum(int(mask.sum()) for mask in self.masks.values())


def train_darb_(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    recipe: DarbRecipe,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> dict[str, DarbStage]:
    """Train a model in place to density-adaptive regular blocks.

    The stages are "dense"; "irregular": pruned wherever; "irregular_retrained": trained on that
    mask, the rival of the same sparsity; "blocks": the dense weights pruned by blocks, whose widths
    come from the irregular pruning or from the best total; "blocks_retrained": those trained on
    their mask.

    Parameters
    ----------
    model : torch.nn.Module
        Maps inputs to log-probabilities, (n, classes) or (n, classes, places); it ends retrained.
    x, y : Tensor
        (n, ...) inputs and (n,) or (n, places) classes.
    recipe : DarbRecipe
        What to do.
    folder : path, optional
        Where stages and checkpoints of unfinished epochs are kept. The same call continues a run
        that was stopped, to the same weights.
    seed : int
        Of sample orders and of the method.

    Returns
    -------
    dict of str to DarbStage
        By name, in order.

    Raises
    ------
    SupportError
        If even the widest blocks keep too many weights.
    DataError
        If the folder holds another run, or the data do not fit.
    LayerError
        If the selection of layers fails.
    """
    run = _Run(model, x, y, recipe, None if folder is None else Path(folder), seed)
    steps = (run.dense, run.irregular, run.retrained, run.blocks, run.retrained)
    for name, step in zip(STAGES, steps, strict=True):
        run.stage(name, step)
    return run.stages


class _Run:
    """The steps of one run and what they share."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        recipe: DarbRecipe,
        folder: Path | None,
        seed: int,
    ) -> None:
        self.model, self.x, self.y, self.recipe = model, x, y, recipe
        self.folder, self.seed = folder, seed
        measure = recipe.measure
        self.layers: LayerMap = select_layers(
            model, include=measure.include, exclude=measure.exclude,
            biases=measure.biases, norms=measure.norms,
        )  # fmt: skip
        self.k = keep_count(self.layers.size, recipe.sparsity).k
        self.stages: dict[str, DarbStage] = {}
        self._problem: Problem | None = None
        self._name = ""
        self._begin = digest(model)

    def stage(self, name: str, step: Callable[[], tuple[dict[str, Tensor], TrainingLog]]) -> None:
        """Take a stage from its file, or make it and write the file."""
        self._name = name
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        if path is not None and path.is_file():
            self.stages[name] = self._read(path, name)
            self.model.load_state_dict(self.stages[name].state)
            return
        masks, log = step()
        state = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        self.stages[name] = DarbStage(name, state, masks, log.losses)
        if path is not None:
            notes = {"run": self._fingerprint, "losses": json.dumps(log.losses)}
            save_weights(path, self.model, masks=masks, metadata=notes)
            self._checkpoint(name).unlink(missing_ok=True)

    def dense(self) -> tuple[dict[str, Tensor], TrainingLog]:
        """Train without masks."""
        return {}, self._trained(self.recipe.dense, {})

    def irregular(self) -> tuple[dict[str, Tensor], TrainingLog]:
        """Prune wherever."""
        return self._prune(Budget.cardinality(self.layers.size, self.k)), _NO_TRAINING

    def blocks(self) -> tuple[dict[str, Tensor], TrainingLog]:
        """Choose widths, go back to the dense weights and prune them by blocks."""
        masks = self.stages["irregular"].masks
        self.model.load_state_dict(self.stages["dense"].state)
        recipe = self.recipe
        scores = self._worth()
        if recipe.choice == "published":  # the rule looks at the irregular mask
            scores = scores * self.layers.flatten(masks)
        family = darb_family(
            self.layers, self.k, scores,
            choice=recipe.choice, rounding=recipe.rounding, widest=recipe.widest,
        )  # fmt: skip
        return self._prune(family), _NO_TRAINING

    def retrained(self) -> tuple[dict[str, Tensor], TrainingLog]:
        """Train on the mask of the stage before."""
        pruned = self._name.removesuffix("_retrained")
        masks = dict(self.stages[pruned].masks)
        recipe = self.recipe.irregular if pruned == "irregular" else self.recipe.retrain
        return masks, self._trained(recipe, masks)

    def _worth(self) -> Tensor:
        """What each dense weight is worth: its square, or its part of the dual bound."""
        if self.recipe.method in ("magnitude", "blocks"):
            return self.layers.weights(self.model).square().cpu()
        return dual_gains(self._measured(), self.k).cpu()

    def _prune(self, family: SupportFamily) -> dict[str, Tensor]:
        """Prune the model in place; its masks."""
        if self.recipe.method == "magnitude":
            mask = family.best_support(self.layers.weights(self.model).cpu().square())
        else:
            w = self._solved(replace(self._measured(), supports=family))
            mask = w.cpu() != 0
            self.layers.write_(self.model, w)
        masks = self.layers.unflatten(mask)
        apply_masks_(self.model, masks)
        return masks

    def _solved(self, problem: Problem) -> Tensor:
        """Weights by the quadratic model."""
        if self.recipe.method == "blocks":
            return BlockRounds().solve(problem, self.layers)
        solver = solve_with_widths if isinstance(problem.supports, BlockWidths) else solve
        return solver(problem, self.recipe.method, seed=self.seed).w

    def _measured(self) -> Problem:
        """The quadratic model at the dense weights, measured once."""
        if self._problem is None:
            own = {k: v.clone() for k, v in self.model.state_dict().items()}
            self.model.load_state_dict(self.stages["dense"].state)
            anything = Budget.cardinality(self.layers.size, self.k)
            options = replace(self.recipe.measure, seed=self.seed)
            data = (self.x, self.y)
            network = build_problem(self.model, nll_loss, data, self.layers, anything, options)
            self._problem = network.problem
            self.model.load_state_dict(own)
        return self._problem

    def _trained(self, recipe: TrainingRecipe, masks: Mapping[str, Tensor]) -> TrainingLog:
        keeper = MaskKeeper(self.model, masks) if masks else None
        checkpoint = None if self.folder is None else self._checkpoint(self._name)
        return train_classifier(
            self.model, self.x, self.y,
            recipe=recipe, seed=self.seed, mask_keeper=keeper, checkpoint=checkpoint,
        )  # fmt: skip

    def _read(self, path: Path, name: str) -> DarbStage:
        saved = load_weights(path)
        if saved.metadata.get("run") != self._fingerprint:
            raise DataError(
                f"{path} is of another run, {saved.metadata.get('run')}; this one is "
                f"{self._fingerprint}: choose another folder"
            )
        losses = tuple(json.loads(saved.metadata["losses"]))
        return DarbStage(name, saved.state, saved.masks, losses)

    def _checkpoint(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.training.safetensors"

    @property
    def _fingerprint(self) -> str:
        """What tells this run from another."""
        recipe = asdict(replace(self.recipe, measure=PruneOptions()))
        recipe["measure"] = str(replace(self.recipe.measure, progress=None, holdout=None))
        content = {"recipe": recipe, "seed": self.seed, "samples": len(self.x)}
        content["begin"] = self._begin
        return json.dumps(content | {"layers": self.layers.names}, sort_keys=True, default=str)


__all__ = ["STAGES", "DarbRecipe", "DarbStage", "train_darb_"]
