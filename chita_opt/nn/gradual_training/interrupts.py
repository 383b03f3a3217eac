"""Ctrl-C between two training steps rather than in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def holding_interrupts() -> Iterator[Callable[[], int]]:
    """Count Ctrl-C instead of raising it; from the second one on it is raised as ever.

    A method that is interrupted returns what it has, and a weight that is written halfway is no
    state to continue from: the run asks for the count where its state is whole. Outside of the
    main thread, where Python delivers no signals, the count stays zero.
    """
    seen: list[int] = []
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield lambda: 0
        return

    def notice(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) > 1:
            previous(number, frame)

    signal.signal(signal.SIGINT, notice)
    try:
        yield lambda: len(seen)
    finally:
        signal.signal(signal.SIGINT, previous)


__all__ = ["holding_interrupts"]
