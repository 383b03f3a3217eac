"""``demo``: a small trained network, several methods, several sparsities, one proof each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from chita_opt import __version__
from chita_opt.certificates import Certificate, Verification, verify_file
from chita_opt.certificates.pipeline import Effort
from chita_opt.certificates.verification import SCOPE
from chita_opt.cli import INTERRUPTED, OK
from chita_opt.cli.comparing import Comparison, Row, compare_methods, print_rows
from chita_opt.cli.demo_network import DemoNetwork
from chita_opt.cli.plots import CONTROL, plot_accuracy, plot_over_time
from chita_opt.cli.screen import SCOPE_SENTENCE, Stages, percent, print_json, stages
from chita_opt.errors import DataError
from chita_opt.supports import Budget, keep_count

_METHODS = ("magnitude", "backsolve", "chita", "relax_round")
_PATTERN_METHODS = ("magnitude", "backsolve", "relax_round")
_RIDGE = 1e-3
_SHOWN = 0.9  # the sparsity whose certificate and traces are written, if it is among them


@dataclass(eq=False)
class _Demo:
    """What has been found so far; Ctrl-C leaves it printable."""

    network: DemoNetwork
    effort: Effort
    shown: Stages
    rows: list[Row] = field(default_factory=list)
    comparisons: dict[float, Comparison] = field(default_factory=dict)
    interrupted: bool = False

    def sparsity(self, sparsity: float) -> None:
        """All methods at one sparsity, and training with a mask for as long as the last took."""
        network = self.network
        family = Budget.cardinality(network.p, keep_count(network.p, sparsity).k)
        problem = network.problem(family, _RIDGE)
        label = f"sparsity {sparsity:g}: "
        found = compare_methods(problem, _METHODS, self.effort, self.shown, label)
        self.comparisons[sparsity] = found
        self.rows += found.rows(f"{sparsity:g}", network.accuracy_of)
        self.interrupted = found.interrupted
        if self.interrupted:
            return
        self.shown.begin(f"{label}{CONTROL}")
        accuracy, kept, seconds = network.control(
            sparsity, found.solutions[-1].seconds, self.effort.seed
        )
        self.rows.append(_control_row(f"{sparsity:g}", accuracy, kept, seconds))
        self.shown.done()

    def pattern(self) -> None:
        """2:4, the pattern that current hardware runs faster."""
        problem = self.network.problem(Budget.n_of_m(self.network.p, 2, 4), _RIDGE)
        found = compare_methods(problem, _PATTERN_METHODS, self.effort, self.shown, "2:4: ")
        self.rows += found.rows("2:4", self.network.accuracy_of)
        self.interrupted = found.interrupted


def run_demo(
    out: Path, sparsities: Sequence[str], time_limit: float, seed: int, as_json: bool
) -> int:
    """Run everything, print the table, write certificate and plots."""
    wanted = _sparsities(sparsities)
    out.mkdir(parents=True, exist_ok=True)
    network = DemoNetwork.load(seed)
    network.warm_up()
    effort = Effort(time_limit=time_limit, seed=seed)
    total = len(wanted) * (len(_METHODS) + 2) + len(_PATTERN_METHODS) + 1
    with stages(total) as shown:
        demo = _Demo(network, effort, shown)
        _run(demo, wanted)
    written = _write(demo, out)
    if as_json:
        print_json(_json(demo, written, seed))
    else:
        _show(demo, written)
    return INTERRUPTED if demo.interrupted else OK


def _run(demo: _Demo, wanted: Sequence[float]) -> None:
    try:
        for sparsity in wanted:
            demo.sparsity(sparsity)
            if demo.interrupted:
                return
        demo.pattern()
    except KeyboardInterrupt:
        if not demo.rows:
            raise
        demo.interrupted = True


@dataclass(frozen=True, eq=False)
class _Written:
    """The files of the demo, and what re-checking the certificate gave."""

    certificate: Path
    sparsity: float
    verification: Verification
    plots: tuple[Path, ...]


def _write(demo: _Demo, out: Path) -> _Written:
    """Certificate and plots of the sparsity that is shown; the certificate is read back."""
    done = list(demo.comparisons)
    sparsity = _SHOWN if _SHOWN in done else done[len(done) // 2]
    found = demo.comparisons[sparsity]
    path = out / "certificate.safetensors"
    certificate: Certificate = found.certificate
    certificate.save(path)
    over_time, over_sparsity = out / "objective_over_time.png", out / "accuracy_over_sparsity.png"
    plot_over_time(over_time, found.solutions, certificate, f"sparsity {sparsity:g}")
    plot_accuracy(over_sparsity, _curves(demo), demo.network.dense_accuracy)
    return _Written(path, sparsity, verify_file(path), (over_time, over_sparsity))


def _curves(demo: _Demo) -> dict[str, list[tuple[float, float]]]:
    """Accuracy by method: (sparsity, percent)."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in demo.rows:
        if row.accuracy is not None and row.budget != "2:4":
            curves.setdefault(row.method, []).append((float(row.budget), row.accuracy))
    return curves


def _control_row(budget: str, accuracy: float, kept: int, seconds: float) -> Row:
    return Row(
        budget=budget,
        method=CONTROL,
        objective=None,
        lower=None,
        gap=None,
        seconds=seconds,
        nnz=kept,
        accuracy=accuracy,
    )


def _show(demo: _Demo, written: _Written) -> None:
    network, found = demo.network, written.verification
    print_rows(
        f"MLPNet 784-40-20-10, {network.p:,} weights, dense test accuracy "
        f"{network.dense_accuracy:.2f} %; ridge {_RIDGE:g}, {len(network.A):,} gradient rows",
        demo.rows,
    )
    bounds = [c.bound.seconds for c in demo.comparisons.values()]
    click.echo(
        f"The bound of each sparsity took {sum(bounds) / len(bounds):.1f} s on average on top of "
        f"the method.\n{SCOPE_SENTENCE}\n"
        f"{CONTROL}: gradual magnitude pruning on all {len(network.data.x_train):,} training "
        "images for as long as relax_round took. It has no\nbound. Where it is more accurate, the "
        "quadratic model around the dense network says too little about one so far away."
    )
    size = written.certificate.stat().st_size / 1e6
    click.echo(
        f"\nCertificate of sparsity {written.sparsity:g}: {written.certificate} ({size:.0f} MB, "
        f"the gradients included)\nre-checked with numpy alone: objective {found.upper:.6g}, "
        f"bound {found.lower:.6g}, gap {percent(found.relative_gap)}\n"
        f"check it yourself: chita-opt verify {written.certificate}"
    )
    for plot in written.plots:
        click.echo(f"plot: {plot}")


def _json(demo: _Demo, written: _Written, seed: int) -> dict[str, Any]:
    return {
        "dense_accuracy": demo.network.dense_accuracy,
        "rows": [asdict(row) for row in demo.rows],
        "certificate": written.certificate,
        "certificate_sparsity": written.sparsity,
        "verified": True,
        "gap": written.verification.relative_gap,
        "plots": list(written.plots),
        "interrupted": demo.interrupted,
        "seed": seed,
        "version": __version__,
        "scope": SCOPE,
    }


def _sparsities(texts: Sequence[str]) -> list[float]:
    try:
        values = [float(text) for text in texts if text.strip()]
    except ValueError as error:
        raise DataError(f"--sparsities: {error}") from error
    if not values or not all(0.0 <= s < 1.0 for s in values):
        raise DataError("--sparsities needs shares in [0, 1), separated by commas")
    return values


__all__ = ["run_demo"]
