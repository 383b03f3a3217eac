"""The command line: ``chita-opt demo | solve | prune | certify | verify | compare``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

OK, REFUSED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 a claim refused, 2 bad input, 130 interrupted.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of ``sys.argv[1:]``.
    """
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit code; errors become one line on stderr."""
    import click

    from chita_opt.cli.app import app
    from chita_opt.errors import ChitaError

    try:
        code = app.main(arguments, prog_name="chita-opt", standalone_mode=False, obj=arguments)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except (ChitaError, OSError) as error:
        if "--debug" in arguments:
            raise
        click.echo(f"error: {error}", err=True)
        return BAD_INPUT
    return code if isinstance(code, int) else OK


__all__ = ["BAD_INPUT", "INTERRUPTED", "OK", "REFUSED", "main", "run"]
