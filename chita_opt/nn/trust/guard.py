"""The trust mechanism of ``prune``: every solve is measured, and challenged where it failed.

A trusted solution is kept: there the model ranks candidates well, and the solution is its best. A
doubtful one competes, by the held-out loss, with the minimisers on other supports and with
layer-wise reconstruction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from chita_opt.errors import DataError, LayerError, MemoryLimitError
from chita_opt.heuristics.relax_round import relax_round, relaxes_cheaply
from chita_opt.nn.evaluation import model_device
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.pruning_options import PruneOptions
from chita_opt.nn.pruning_problem import NetworkProblem
from chita_opt.nn.sampling import RowChoice, open_rows, row_order, sample_count
from chita_opt.nn.trust.budgets import BudgetSearch
from chita_opt.nn.trust.calibration import HeldOut, held_out_of, hold_out
from chita_opt.nn.trust.competition import Candidate, entered, lowest, solved_on
from chita_opt.nn.trust.loss_rows import LossRows
from chita_opt.nn.trust.measuring import measure_trust
from chita_opt.nn.trust.moments import LayerInputs
from chita_opt.nn.trust.one_stage import OneShotOptions, one_shot
from chita_opt.nn.trust.reconstruction import Reconstruction
from chita_opt.nn.trust.scores import COMPETING, supports_by
from chita_opt.nn.trust.verdict import TrustReport, Verdict
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status

_log = logging.getLogger(__name__)
_MOST_INPUTS, _FEWEST_INPUTS = 20_000, 128  # samples that reconstruction reads
_WORK = 2e11  # multiplications for the moments of one reconstruction
_SEARCH_SECONDS = 60.0  # for layer budgets, where no time limit is given
_BATCH = 2000


@dataclass(frozen=True, eq=False)
class Guard:
    """Held-out samples, and the training samples that gradient rows may use.

    Attributes
    ----------
    model, loss_fn, data, layer_map, options
        As given to ``prune``.
    choosing, auditing : HeldOut
        The two halves of the held-out samples.
    """

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor] | None
    data: Any
    layer_map: LayerMap
    options: PruneOptions
    choosing: HeldOut
    auditing: HeldOut

    @classmethod
    def open(
        cls,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        data: Any,
        layer_map: LayerMap,
        options: PruneOptions,
    ) -> tuple[Guard | None, str]:
        """Hold samples out; where the data do not allow it, None and the reason.

        Raises
        ------
        DataError
            If ``options.holdout`` asks for samples that the data do not have.
        """
        if not options.trust:
            return None, "switched off"
        used, wanted = options.rows * options.batch_size, options.holdout
        own = wanted is not None and not isinstance(wanted, Integral)
        try:
            if own:
                held = held_out_of(model, loss_fn, wanted, layer_map)
            else:
                held = hold_out(
                    model, loss_fn, data, layer_map, used=used, count=wanted, seed=options.seed
                )
        except DataError as error:
            if wanted is not None:
                raise
            _log.warning("trust is not measured: %s", error)
            return None, str(error)
        return cls(model, loss_fn, data, layer_map, options, *held.halves()), ""

    def judged(
        self, network: NetworkProblem, solution: Solution, time_limit: float | None = None
    ) -> tuple[Tensor, TrustReport]:
        """The weights to apply, and the report on them.

        Ctrl-C ends the competition with the candidates at hand. After an interrupted solve there
        is none.

        Parameters
        ----------
        network : NetworkProblem
            What the method solved.
        solution : Solution
            Its answer.
        time_limit : float, optional
            Seconds for further candidates.
        """
        report, problem = self._measured(network, solution.w), network.problem
        compete = self.options.compete
        doubted = report.verdict in (Verdict.DOUBTFUL, Verdict.NOT_TRUSTED)
        challenged = compete == "always" or (compete == "doubtful" and doubted)
        stopped = solution.status is Status.INTERRUPTED
        if not challenged or stopped or not self.choosing.has_loss:
            return solution.w, report
        self.options.tell("trust", 0, 0)
        found, notes = [entered(solution.method, solution.w, self.choosing)], list[str]()
        try:
            self._challenge(problem, found, notes, Clock(time_limit))
        except KeyboardInterrupt:
            notes.append("interrupted before all candidates were tried")
            stopped = True
        best = lowest(found)
        if best is not found[0]:
            report = replace(self._measured(network, best.w), passed_over=report)
        return best.w, replace(
            report,
            candidates=tuple(candidate.row(problem) for candidate in found),
            chosen=best.name,
            reasons=(*report.reasons, *notes),
            interrupted=stopped,
        )

    def _measured(self, network: NetworkProblem, w: Tensor) -> TrustReport:
        return measure_trust(
            network.problem,
            w,
            self.auditing,
            batch_size=self.options.batch_size,
            gradient=network.gradient,
            thresholds=self.options.trust_thresholds,
        )

    def _challenge(
        self, problem: Problem, found: list[Candidate], notes: list[str], clock: Clock
    ) -> None:
        """Append what competes with the answer in ``found``; notes on what could not."""
        if clock.expired:
            notes.append("the time limit left no time for other candidates")
            return
        masks = supports_by(problem, self.layer_map, COMPETING)
        if found[0].name != "relax_round" and relaxes_cheaply(problem):
            relaxed = relax_round(problem, time_limit=clock.remaining)
            if relaxed.status is Status.INTERRUPTED:
                raise KeyboardInterrupt
            masks["relaxation"] = relaxed.mask
        found += self._rounded(solved_on(problem, masks, self.choosing, clock=clock))
        if clock.expired:
            notes.append("the time limit left no time for layer-wise reconstruction")
            return
        try:
            found += self._rounded(self._reconstructed(problem, lowest(found).w != 0, clock))
        except (LayerError, MemoryLimitError) as error:
            notes.append(f"no layer-wise reconstruction: {error}")
        if clock.expired:
            notes.append("the time limit ended the competition early")

    def _rounded(self, found: list[Candidate]) -> Iterator[Candidate]:
        """With the weights that the parameters' types hold."""
        for candidate in found:
            pieces = self.layer_map.unflatten(candidate.w)
            types = {i.name: self.layer_map.parameter(self.model, i).dtype for i in self.layer_map}
            w = self.layer_map.flatten({n: x.to(types[n]) for n, x in pieces.items()})
            yield replace(candidate, w=w)

    def _reconstructed(self, problem: Problem, start: Tensor, clock: Clock) -> list[Candidate]:
        device = model_device(self.model)
        used = self.options.rows * self.options.batch_size
        size, loss_fn = sample_count(self.data), self.loss_fn
        if size is None or loss_fn is None:
            raise LayerError("it needs a loss and samples that can be read by number")
        index = row_order(size, self.options.seed)[:used]
        source = open_rows(self.data, RowChoice(index=index[:_MOST_INPUTS, None]))
        batches = [x.to(device) for x, _ in source.chunks(_BATCH)]
        inputs = LayerInputs(self.choosing.network, batches).within(_WORK, fewest=_FEWEST_INPUTS)
        left = _SEARCH_SECONDS if clock.remaining is None else clock.remaining
        rows = LossRows(
            self.model,
            loss_fn,
            self.data,
            self.layer_map,
            pool=index,
            batch_size=self.options.batch_size,
            seed=self.options.seed,
            memory_limit=self.options.memory_limit,
        )
        return one_shot(
            problem.w_bar.to(device),
            Reconstruction(inputs),
            problem.supports,
            self.choosing,
            rows_at=lambda w, places: rows.on(w, places, self.options.rows),
            start=start.to(device),
            options=OneShotOptions(search=BudgetSearch(time_limit=left)),
            clock=clock,
        )


__all__ = ["Guard"]
