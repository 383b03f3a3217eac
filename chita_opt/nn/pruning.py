"""``prune``: from a trained model and data to pruned weights and a proof, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from chita_opt.bounds import Bound, dual_point
from chita_opt.certificates import Certificate, certify
from chita_opt.certificates.pipeline import (
    Effort,
    certify_within,
    check_provable,
    check_seconds,
    less,
    run_method,
    share,
)
from chita_opt.nn.layer_engine import bound_apart, check_engine, part_of_time, solve_apart
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.layers import select_layers
from chita_opt.nn.mac_budget import mac_budget
from chita_opt.nn.provenance import run_record
from chita_opt.nn.pruning_options import PruneOptions
from chita_opt.nn.pruning_problem import NetworkProblem, build_family, build_problem
from chita_opt.nn.result import LayerReport, PruningResult
from chita_opt.nn.trust.guard import Guard
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports import KeepCount, SupportFamily

_COMPETITION = 0.5  # share of the time left at which methods, or candidates, have to end


def prune(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    data: Any,
    *,
    sparsity: float | None = None,
    support: str | SupportFamily = "cardinality",
    method: str = "auto",
    options: PruneOptions | None = None,
    **changes: Any,
) -> PruningResult:
    r"""Choose which weights of a model to remove, re-solve the others, and prove how well.

    The quadratic model of the loss around the trained weights (see :class:`chita_opt.Problem`) is
    minimised over the allowed supports. Every tied parameter is one variable. Biases and
    normalisation layers stay as they are unless asked for.

    Parameters
    ----------
    model : torch.nn.Module
        A trained model; neither its weights nor its state change.
    loss_fn : callable or None
        ``loss_fn(output, target)``, a mean over the batch or one value a sample; None is enough
        for ``curvature="inputs"``.
    data : (inputs, targets), Dataset, DataLoader or iterable of batches
        Calibration data; see :func:`chita_opt.nn.gradient_rows`.
    sparsity : float, optional
        Share of the selected weights to remove; rounded to a count by
        :func:`chita_opt.keep_count`. With a pattern such as "2:4" it is a further total.
    support : str or SupportFamily
        "cardinality", "N:M" (as "2:4": at most 2 of 4 consecutive weights of a row, in the
        flattened order of the parameter), "bmwm:8", "darb", "blocks:4x4", "neurons", any form of
        :func:`chita_opt.supports.family_from_text`, "macs:0.6" (remove 60 % of the
        multiplications, see :meth:`chita_opt.nn.MacCount.budget`), or a family over the flat
        vector of :func:`chita_opt.nn.select_layers`.
    method : str
        A name of ``METHODS``, "auto", or "hybrid" (:func:`chita_opt.exact.hybrid`): a heuristic,
        exact search of windows and a tree over what no witness decides, which bring their own
        bound; ``time_limit`` says for how long (a minute if absent).
    options : PruneOptions, optional
        Everything else.
    **changes
        Fields of :class:`PruneOptions` by name, such as ``curvature="inputs"``, ``rows=500`` or
        ``certify=False``; they win over ``options``.

    Returns
    -------
    PruningResult
        Masks, weights, table of layers and certificate. ``result.apply_(model)`` writes them.

    Raises
    ------
    LayerError
        If the selection of layers fails.
    SupportError
        If a count or a pattern does not fit; the message names the layer.
    DataError, ProblemError, MethodError, MemoryLimitError
        If data, options or limits do not fit.
    TypeError
        If an option is not known.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Linear(8, 3)
    >>> data = torch.randn(64, 8), torch.randint(3, (64,))
    >>> result = prune(net, torch.nn.functional.cross_entropy, data, sparsity=0.5, rows=64)
    >>> result.solution.nnz
    12
    >>> bool(result.certificate.lower <= result.objective)
    True
    """
    options = (options or PruneOptions()).changed(changes)
    if options.compete is None:  # a method that was asked for by name is what is applied
        options = replace(options, compete="doubtful" if method == "auto" else "never")
    clock = Clock(options.time_limit)
    layer_map = select_layers(
        model,
        include=options.include,
        exclude=options.exclude,
        biases=options.biases,
        norms=options.norms,
    )
    support, sparsity = mac_budget(support, model, layer_map, data, sparsity)
    w_bar = layer_map.weights(model)
    supports = build_family(layer_map, support, sparsity, options, w_bar=w_bar)
    check_engine(options, method, layer_map, supports)
    guard, no_trust = Guard.open(model, loss_fn, data, layer_map, options)
    network = build_problem(model, loss_fn, data, layer_map, supports, options)
    measured = clock.elapsed
    effort = _effort(method, options)
    check_provable(network.problem)
    dtypes = {i.name: layer_map.parameter(model, i).dtype for i in layer_map}
    run = _Run(network, effort, options, clock, layer_map, dtypes, guard is not None)
    solution, layers = run.solve()
    solved = clock.elapsed
    chosen, trust = solution.w, None
    if guard is not None:
        limit = share(clock, _COMPETITION if options.certify else 1.0, run.reserve)
        chosen, trust = guard.judged(network, solution, limit)
        if trust.interrupted:
            solution = replace(solution, status=Status.INTERRUPTED)
    judged = clock.elapsed
    certificate, own = run.certify(solution, layers) if options.certify else (None, {})
    solution = solution if certificate is None else certificate.solution
    if trust is not None and trust.passed_over is not None:
        solution = replace(solution, w=chosen, method=trust.chosen)
        certificate, own = run.transferred(solution, certificate, own)
    seconds = {
        "curvature": measured,
        "solve": solved - measured,
        "trust": judged - solved,
        "certify": clock.elapsed - judged,
        "total": clock.elapsed,
    }
    notes = network.notes if guard is not None else {**network.notes, "trust": no_trust}
    asked = {"method": method, "sparsity": sparsity, "support": supports.name}
    notes = {**notes, "run": run_record(options, **asked)}
    keep = _keep_count(supports, sparsity)
    return PruningResult(layer_map, keep, solution, certificate, own, dtypes, seconds, notes, trust)


class _Run:
    """One problem over all layers, or one a layer, solved and certified under one clock."""

    def __init__(
        self,
        network: NetworkProblem,
        effort: Effort,
        options: PruneOptions,
        clock: Clock,
        layer_map: LayerMap,
        dtypes: Mapping[str, torch.dtype],
        guarded: bool,
    ) -> None:
        self.network, self.effort, self.options = network, effort, options
        self.competes = guarded and options.compete != "never"
        self.clock, self.layer_map, self.dtypes = clock, layer_map, dtypes
        self.reserve = 0.0  # seconds of the certificates' own arithmetic
        if options.time_limit is not None and options.certify:
            self.reserve = check_seconds(network.problem) * (2.0 if network.parts else 1.0)

    def solve(self) -> tuple[Solution, dict[str, Solution]]:
        """The solution over all layers, and the layers' own where they are independent.

        The hybrid looks at all layers together: it gives its time where the gap is largest.
        """
        parts = self.network.parts
        if not parts or self.effort.method == "hybrid":
            self.options.tell("solve", 0, 0)
            solution = run_method(self.network.problem, self.effort, self._method_limit())
            return self._rounded(solution, self.layer_map.names), {}
        layers: dict[str, Solution] = {}
        try:
            self._solve_parts(layers)
        except KeyboardInterrupt:  # between two layers
            if not layers:
                raise
        if len(layers) < len(parts):
            self._finish_quickly(layers)
        layers = {name: layers[name] for name in parts}
        return _joined(self.network.problem, list(layers.values())), layers

    def _solve_parts(self, layers: dict[str, Solution]) -> None:
        """Solve layer by layer into ``layers``, until done or interrupted."""
        parts, budget, begin = self.network.parts, self._method_limit(), self.clock.elapsed
        if self.options.engine is not None:

            def keep(name: str, found: Solution) -> None:
                layers[name] = self._rounded(found, (name,))
                self.options.tell("solve", len(layers), len(parts))

            return solve_apart(parts, self.effort, budget, self.options.engine, keep)
        smallest_first = sorted(parts.items(), key=lambda part: part[1].p)
        for done, (name, problem) in enumerate(smallest_first):
            self.options.tell("solve", done, len(parts))
            limit = None
            if budget is not None:
                left = [p.p for k, p in parts.items() if k not in layers]
                limit = less(budget, self.clock.elapsed - begin) * part_of_time(problem.p, left)
            layers[name] = self._rounded(run_method(problem, self.effort, limit), (name,))
            if layers[name].status is Status.INTERRUPTED:
                return

    def _finish_quickly(self, layers: dict[str, Solution]) -> None:
        """After Ctrl-C the remaining layers get their magnitude support, solved exactly."""
        for name, problem in self.network.parts.items():
            if name not in layers:
                quick = replace(self.effort, method="backsolve")
                found = replace(run_method(problem, quick, None), status=Status.INTERRUPTED)
                layers[name] = self._rounded(found, (name,))

    def certify(
        self, solution: Solution, layers: Mapping[str, Solution]
    ) -> tuple[Certificate, dict[str, Certificate]]:
        """A certificate over all layers, and the layers' own where they are independent."""
        own: dict[str, Certificate] = {}
        try:
            return self._certified(solution, layers, own), own
        except KeyboardInterrupt:  # outside of the parts that survive one; a second one ends it
            cut_short = replace(solution, status=Status.INTERRUPTED)
            return self._certified(cut_short, layers, own), own

    def _certified(
        self, solution: Solution, layers: Mapping[str, Solution], own: dict[str, Certificate]
    ) -> Certificate:
        """Certify what is not in ``own`` yet, and all layers together."""
        if not layers:
            self.options.tell("bound", 0, 0)
            return certify_within(solution, self.effort, less(self.clock.remaining, self.reserve))
        if self.options.engine is not None and solution.status is not Status.INTERRUPTED:
            limit = less(self.clock.remaining, self.reserve)
            bounds = bound_apart(layers, self.effort, limit, self.options.engine)
            own |= {name: certify(layers[name], bound=bound) for name, bound in bounds.items()}
        for name, found in sorted(layers.items(), key=lambda layer: layer[1].problem.p):
            if name in own:
                continue
            self.options.tell("bound", len(own), len(layers))
            left = [s.problem.p for k, s in layers.items() if k not in own]
            limit = less(self.clock.remaining, self.reserve)
            limit = None if limit is None else limit * part_of_time(found.problem.p, left)
            if solution.status is Status.INTERRUPTED:  # what is left takes the bound at hand
                found = replace(found, status=Status.INTERRUPTED)
            own[name] = certify_within(found, self.effort, limit)
            if own[name].solution.status is Status.INTERRUPTED:
                solution = replace(solution, status=Status.INTERRUPTED)
        parts = [own[name] for name in layers]
        bound = _joined_bound(self.network.problem, [c.bound for c in parts], layers.values())
        return certify(solution, bound=bound)

    def transferred(
        self,
        solution: Solution,
        certificate: Certificate | None,
        own: Mapping[str, Certificate],
    ) -> tuple[Certificate | None, dict[str, Certificate]]:
        """The bounds that were proven, held against other weights of the same problems."""
        if certificate is None:
            return None, {}
        pieces = self.layer_map.unflatten(solution.w)
        layers = {
            name: certify(
                replace(c.solution, w=pieces[name].flatten(), method=solution.method),
                bound=c.bound,
                log=c.log,
            )
            for name, c in own.items()
        }
        whole = certify(solution, bound=certificate.bound, log=certificate.log)
        return whole, layers

    def _method_limit(self) -> float | None:
        """Seconds for the methods: a share of what is left where something follows, else all."""
        part = _COMPETITION if self.competes else 1.0
        if self.options.certify:
            part = self.effort.method_share
        return share(self.clock, part, self.reserve)

    def _rounded(self, solution: Solution, names: tuple[str, ...]) -> Solution:
        """The solution with the weights that the parameters' types can hold."""
        sizes = [self.layer_map[name].size for name in names]
        pieces = solution.w.split(sizes)
        w = torch.cat([x.to(self.dtypes[n]).double() for n, x in zip(names, pieces, strict=True)])
        return replace(solution, w=w)


def _effort(method: str, options: PruneOptions) -> Effort:
    effort = Effort(method=method, target_gap=options.target_gap, seed=options.seed)
    limit = options.memory_limit
    return effort if limit is None else replace(effort, memory_limit=float(limit))


def _joined(problem: Problem, solutions: list[Solution]) -> Solution:
    """One solution over all layers from the layers' own."""
    order = (Status.INTERRUPTED, Status.TIME_LIMIT, Status.ITERATION_LIMIT)
    statuses = [s.status for s in solutions]
    status = next((s for s in order if s in statuses), statuses[0])
    w = torch.cat([s.w for s in solutions])
    stats = {"layers": [dict(s.stats) for s in solutions]}
    seconds = sum(s.seconds for s in solutions)
    return Solution(problem, w, solutions[0].method, status, seconds, stats=stats)


def _joined_bound(problem: Problem, bounds: list[Bound], solutions: Iterable[Solution]) -> Bound:
    """The layers' witnesses put together: the bound is the sum of theirs."""
    witness = torch.cat([b.witness for b in bounds])
    splits = [
        torch.zeros_like(s.w) if b.split is None else b.split
        for b, s in zip(bounds, solutions, strict=True)
    ]
    whole = None if all(b.split is None for b in bounds) else torch.cat(splits)
    value = dual_point(problem, witness, whole).value
    upper = sum(b.relaxation_upper for b in bounds)
    proof = "dual" if any(b.proof == "dual" for b in bounds) else bounds[0].proof
    z = [b.z for b in bounds if b.z is not None]
    indicators = torch.cat(z) if len(z) == len(bounds) else None
    seconds = sum(b.seconds for b in bounds)
    return Bound(value, witness, whole, proof, upper, indicators, seconds)


def _keep_count(supports: SupportFamily, sparsity: float | None) -> KeepCount:
    k = supports.max_count
    requested = 1.0 - k / supports.size if sparsity is None else float(sparsity)
    return KeepCount(k, supports.size, requested)


__all__ = ["LayerReport", "PruneOptions", "PruningResult", "prune"]
