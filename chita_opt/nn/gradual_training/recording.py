"""What happened: rows of the history, as JSON lines, in TensorBoard and as a bar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from chita_opt.errors import MissingDependencyError
from chita_opt.files import remove_leftovers, write_atomically
from chita_opt.nn.gradual_training.options import GradualOptions
from chita_opt.nn.stages.state import Note

_DRAWN = ("loss", "lr", "sparsity", "held_out_loss", "held_out_accuracy")


@dataclass(frozen=True)
class HistoryRow:
    """The network at one moment.

    Attributes
    ----------
    step : int
        Training steps done.
    epoch : float
        The same in epochs.
    event : str
        "epoch", "pruning", or "end", which is after early stopping and recalibration.
    loss : float or None
        Mean training loss since the row before; None where no step lies between.
    lr : float
        Rate of the step that follows.
    sparsity : float
        Share of zeros among the selected weights.
    held_out_loss, held_out_accuracy : float or None
        On the held-out samples, accuracy in percent; None where there are none, or no classes.
    notes : Mapping
        Of a pruning step.
    """

    step: int
    epoch: float
    event: str
    loss: float | None
    lr: float
    sparsity: float
    held_out_loss: float | None = None
    held_out_accuracy: float | None = None
    notes: Mapping[str, Note] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The row for people."""
        parts = [f"{self.event} at epoch {self.epoch:.2f}: sparsity {self.sparsity:.4f}"]
        parts += [f"loss {self.loss:.4g}"] if self.loss is not None else []
        if self.held_out_loss is not None:
            parts.append(f"held-out loss {self.held_out_loss:.4g}")
        if self.held_out_accuracy is not None:
            parts.append(f"accuracy {self.held_out_accuracy:.2f} %")
        return ", ".join(parts)


class Recorder:
    """Where rows go beside the history; see :func:`recording`."""

    def __init__(self, options: GradualOptions, total: int, bar: Progress) -> None:
        self._options, self._total, self._bar = options, total, bar
        self._task: TaskID = bar.add_task("", total=total)
        self._board: Any = None

    def open_board(self, step: int) -> Any:
        """Open TensorBoard's file; what an earlier run drew from ``step`` on is hidden."""
        writer = _summary_writer()
        self._board = writer(str(self._options.tensorboard), purge_step=step)
        return self._board

    def begin(self, history: Sequence[HistoryRow]) -> None:
        """Write the rows of a run that is continued."""
        if self._options.log_file is not None:
            remove_leftovers(self._options.log_file)
        self._write(history)

    def row(self, history: Sequence[HistoryRow]) -> None:
        """Tell the last row."""
        row = history[-1]
        self._write(history)
        if self._board is not None:
            for name in _DRAWN:
                if (value := getattr(row, name)) is not None:
                    self._board.add_scalar(name, value, row.step)
        self._bar.update(self._task, description=row.line)

    def advance(self, step: int) -> None:
        """Tell how many training steps are done."""
        self._options.tell("training", step, self._total)
        self._bar.update(self._task, completed=step)

    def _write(self, history: Sequence[HistoryRow]) -> None:
        if self._options.log_file is not None:
            text = "".join(json.dumps(asdict(row)) + "\n" for row in history)
            write_atomically(self._options.log_file, text.encode(), make_folder=True)


@contextmanager
def recording(options: GradualOptions, total: int, step: int) -> Iterator[Recorder]:
    """Open bar and TensorBoard for a block.

    Raises
    ------
    MissingDependencyError
        If TensorBoard is asked for and not installed.
    """
    console = Console(stderr=True)
    bar = Progress(
        BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console, transient=True, disable=not options.progress_bar,
    )  # fmt: skip
    with ExitStack() as opened:
        recorder = Recorder(options, total, bar)
        if options.tensorboard is not None:
            opened.callback(recorder.open_board(step).close)
        opened.enter_context(bar)
        yield recorder


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "tensorboard=... needs the package 'tensorboard'; install it with "
            "pip install 'chita-opt[tensorboard]', or use log_file"
        ) from error
    return SummaryWriter


__all__ = ["HistoryRow", "Recorder", "recording"]
