"""What can be chosen about pruning a network, checked once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch

from chita_opt.errors import ProblemError
from chita_opt.exact import ParallelEngine
from chita_opt.nn.trust.verdict import TrustThresholds
from chita_opt.supports.budget_splits import Split

Progress = Callable[[str, int, int], object]
BLOCKWISE = ("inputs", "row_gradients")  # no coupling between layers
CURVATURES = ("gradients", "row_gradients", "sampled", "inputs")


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    r"""Options of :func:`chita_opt.nn.prune`.

    Attributes
    ----------
    k : int, optional
        Weights to keep, instead of a sparsity.
    curvature : {"gradients", "row_gradients", "sampled", "inputs"}
        "gradients": one problem over all layers, C the empirical Fisher matrix of gradient rows;
        the objective is a modelled increase of the loss. "row_gradients": the same without the
        entries of C between two rows (outputs; channels of a convolution), so that the problem
        falls into rows under the budget; see :mod:`chita_opt.nn.row_blocks`. "sampled": as
        "gradients" with rows of the
        Gauss-Newton matrix; see :func:`chita_opt.nn.sampled_rows.sampled_rows`. "inputs":
        layer-wise reconstruction, C block-diagonal with every layer's input second moments; the
        objective is half the mean squared change of the layers' outputs, summed over layers. No
        loss is needed for it.
    scope : {"global", "layer"}
        Whether ``sparsity`` is of all selected weights together, or of each layer.
    split : str, mapping of str to int, or sequence of int, optional
        How the weights to keep are divided among the layers before anything is solved: "uniform",
        "erk", "magnitude", or a count for each parameter by name or in order; see
        :func:`chita_opt.supports.split_budget`. By default the solution divides them itself.
    certify : bool
        Prove a bound; without it ``result.certificate`` is None.
    rows, batch_size : int
        n gradient rows of m samples each; for "inputs" n*m samples are used.
    first_order : float or "1/m"
        Factor α of the linear term: 0 (none), "1/m" or 1; see :func:`chita_opt.from_gradients`.
    ridge : float
        ρ.
    ridge_unit : {"absolute", "mean_diagonal"}
        "mean_diagonal": ρ is ``ridge`` times the mean of C's diagonal; for "inputs" and
        "row_gradients", of each layer's.
    include, exclude, biases, norms
        Selection of layers; see :func:`chita_opt.nn.select_layers`.
    seed : int
        Of the draw of samples and of the method. A stream that cannot be read by number (an
        iterator, an ``IterableDataset``) is read in its own order.
    time_limit : float, optional
        Seconds over the whole call. Gradient rows are always completed; method and bound share
        what is left. A loose bound of layer inputs is raised in that time by splits of each row's
        own (:func:`chita_opt.exact.block_split_bound`), without a limit only where that takes
        seconds.
    target_gap : float, optional
        Stop the bound once the relative gap is this small.
    device : torch.device or str, optional
        Where to solve; the model's device by default.
    memory_limit : int, optional
        Bytes for gradient rows or input moments, and for the relaxation's Newton system.
    trust : bool
        Measure the answer on held-out training samples, and let other candidates compete with it
        where the quadratic model is doubtful; see :mod:`chita_opt.nn.trust`. Where the data leave
        too few samples, the report says so.
    holdout : int, or (inputs, targets) or batches, optional
        How many samples to hold out of those that gradient rows do not use (by default 5,000, or
        what is left if that is at least 100), or samples of their own.
    compete : {"doubtful", "always", "never"}, optional
        When other candidates compete by held-out loss: where the answer is not trusted, always, or
        never. "doubtful" where the method is "auto", else "never".
    trust_thresholds : TrustThresholds
        Where trust ends.
    gradient_file : str or path, optional
        Where to write gradient rows that are larger than memory; they are then read from there,
        and ``memory_limit`` is about what is held beside the file.
    workers : int, optional
        Processes for layers that are independent of each other (``curvature="inputs"`` or
        "row_gradients" with a budget for each layer), one thread each; the result is the same to
        the last bit for any number unless a time limit ends the work. By default they are solved
        here one after the other, with the threads that torch has. Refused where all layers are
        one problem.
    scheduler : str, optional
        Address of a dask scheduler whose workers take the layers instead.
    progress : callable, optional
        Called as ``progress(stage, done, total)``; total is 0 where it is not known.
    """

    k: int | None = None
    curvature: Literal["gradients", "row_gradients", "sampled", "inputs"] = "gradients"
    scope: Literal["global", "layer"] = "global"
    split: Split | None = None
    certify: bool = True
    rows: int = 1000
    batch_size: int = 1
    first_order: float | str = 0.0
    ridge: float = 1e-3
    ridge_unit: Literal["absolute", "mean_diagonal"] = "absolute"
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] = ()
    biases: bool = False
    norms: bool = False
    seed: int = 0
    time_limit: float | None = None
    target_gap: float | None = None
    device: torch.device | str | None = None
    memory_limit: int | None = None
    trust: bool = True
    holdout: Any = None
    compete: Literal["doubtful", "always", "never"] | None = None
    trust_thresholds: TrustThresholds = field(default_factory=TrustThresholds)
    gradient_file: str | os.PathLike[str] | None = None
    workers: int | None = None
    scheduler: str | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        _one_of("curvature", self.curvature, CURVATURES)
        _one_of("scope", self.scope, ("global", "layer"))
        _one_of("ridge_unit", self.ridge_unit, ("absolute", "mean_diagonal"))
        if self.compete is not None:
            _one_of("compete", self.compete, ("doubtful", "always", "never"))
        if not 0.0 < self.ridge < float("inf"):
            raise ProblemError(f"ridge is {self.ridge}; it must be positive and finite")
        if self.workers is not None and self.workers < 1:
            raise ProblemError(f"workers is {self.workers}; give a count >= 1, or None")
        if self.gradient_file is not None and self.curvature != "gradients":
            raise ProblemError(
                f"gradient_file holds rows of curvature='gradients'; got {self.curvature!r}"
            )
        if self.curvature == "inputs" and self.alpha:
            raise ProblemError(
                f"first_order={self.first_order!r} needs gradients; curvature='inputs' has none"
            )

    @property
    def engine(self) -> ParallelEngine | None:
        """Where independent layers are solved; None for here, with the threads at hand."""
        if self.workers is None and self.scheduler is None:
            return None
        return ParallelEngine(workers=self.workers or 1, scheduler=self.scheduler)

    @property
    def alpha(self) -> float:
        """The factor of the linear term as a number."""
        if self.first_order == "1/m":
            return 1.0 / self.batch_size
        if isinstance(self.first_order, str) or not 0.0 <= self.first_order <= 1.0:
            raise ProblemError(f"first_order is {self.first_order!r}; give 0, '1/m' or 1")
        return float(self.first_order)

    def changed(self, changes: dict[str, Any]) -> Self:
        """The same options with some fields replaced.

        Raises
        ------
        TypeError
            If a name is not that of a field.
        """
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, [*known, "sparsity", "support", "method"])
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"prune() has no option {name!r}{hint}")
        return replace(self, **changes)

    def tell(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Report progress to whoever asked for it."""
        if self.progress is not None:
            self.progress(stage, done, total)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ProblemError(f"{name} is {value!r}; choose {' or '.join(map(repr, allowed))}")


__all__ = ["Progress", "PruneOptions"]
