"""The command ``chita-opt`` itself, and what its commands share."""

from __future__ import annotations

from pathlib import Path

import click

from chita_opt import __version__

EXIT_CODES = """\b
Exit codes:
  0    done
  1    verify, report: a claim is refused
  2    bad usage or bad input
  130  interrupted (Ctrl-C); solve, certify and prune still print the best answer so far
"""

existing = click.Path(exists=True, dir_okay=False, path_type=Path)
writable = click.Path(dir_okay=False, path_type=Path)
instance = click.argument("instance", type=existing)


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chita-opt")
@click.option("--debug", is_flag=True, help="Show tracebacks instead of one-line errors.")
def app(debug: bool) -> None:
    """Prune neural networks by optimisation, with a proof of how good the result is.

    Bounds and gaps are about the quadratic model of the loss, not about the network's accuracy.
    """


__all__ = ["EXIT_CODES", "app", "existing", "instance", "writable"]
