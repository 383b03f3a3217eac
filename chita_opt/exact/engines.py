"""Independent tasks on several processes through joblib: one machine, or a dask cluster.

The tasks do not know of each other and every one runs with one thread, so the results are the same
to the last bit for any number of workers, as long as no time limit cuts a task short.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits

from chita_opt.errors import EngineError, MissingDependencyError

Task = TypeVar("Task")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ParallelEngine:
    """Where independent tasks run.

    Attributes
    ----------
    workers : int
        Processes on this machine (joblib's loky); 1 runs the tasks here, one after the other. Not
        used with a scheduler.
    scheduler : str or None
        Address of a dask scheduler, such as "tcp://host:8786": its workers run the tasks. They
        need this package installed.
    retries : int
        How often tasks are given again after the death of a process (of a dask worker: the
        cluster's ``distributed.scheduler.allowed-failures`` counts too) before it is an error.
    """

    workers: int = 1
    scheduler: str | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise EngineError(f"workers is {self.workers}; give a count >= 1")
        if self.retries < 0:
            raise EngineError(f"retries is {self.retries}; give a count >= 0")

    @property
    def is_serial(self) -> bool:
        """Whether the tasks run in this process."""
        return self.workers == 1 and self.scheduler is None

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        on_result: Callable[[int, Result], object] | None = None,
    ) -> list[Result]:
        """``[function(task) for task in tasks]``, in this order.

        Parameters
        ----------
        function : callable
            Of one argument; found by its name in a module, or a ``functools.partial`` of such.
        tasks : sequence
            What it is called with; sent to the workers by pickle.
        on_result : callable, optional
            Called as ``on_result(number of the task, result)`` as results come, in any order; what
            came before Ctrl-C is not lost.

        Raises
        ------
        EngineError
            If processes keep dying.
        MissingDependencyError
            If a scheduler is named and dask's ``distributed`` is not installed.
        """
        found: dict[int, Result] = {}

        def keep(number: int, result: Result) -> None:
            found[number] = result
            if on_result is not None:
                on_result(number, result)

        if self.is_serial:
            for number, task in enumerate(tasks):
                with _one_thread():
                    result = function(task)
                keep(number, result)
        else:
            self._spread(function, tasks, found, keep)
        return [found[number] for number in range(len(tasks))]

    def _spread(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        found: dict[int, Result],
        keep: Callable[[int, Result], None],
    ) -> None:
        """Give out what is not found yet until all is."""
        deaths = 0
        while len(found) < len(tasks):
            left = [number for number in range(len(tasks)) if number not in found]
            calls = (joblib.delayed(_in_worker)(function, n, tasks[n]) for n in left)
            try:
                with self._backend() as parallel:
                    for number, result in parallel(calls):
                        keep(number, result)
            except _deaths() as error:
                deaths += 1
                if deaths > self.retries:
                    raise EngineError(
                        f"processes died {deaths} times, last with {error}; is there too little "
                        "memory? Use fewer workers, or allow more retries"
                    ) from error
                _log.warning("a process died; its tasks are given out again (%s)", error)

    @contextmanager
    def _backend(self) -> Iterator[joblib.Parallel]:
        """Joblib on the processes asked for; results come as they are ready."""
        options: dict[str, Any] = {"return_as": "generator_unordered", "batch_size": 1}
        with ExitStack() as stack:
            if self.scheduler is None:
                stack.enter_context(
                    joblib.parallel_config(
                        "loky", n_jobs=self.workers, inner_max_num_threads=1, max_nbytes=None
                    )
                )
            else:
                client = stack.enter_context(_client(self.scheduler))
                stack.enter_context(
                    joblib.parallel_config("dask", client=client, retries=self.retries)
                )
            yield joblib.Parallel(**options)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run like a worker does: other sums than with several threads would end in other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)


def _in_worker(function: Callable[[Task], Result], number: int, task: Task) -> tuple[int, Result]:
    torch.set_num_threads(1)
    threadpool_limits(limits=1)
    return number, function(task)


def _deaths() -> tuple[type[Exception], ...]:
    """What joblib raises when a process has died."""
    try:
        from distributed.scheduler import KilledWorker
    except ImportError:
        return (TerminatedWorkerError,)
    return (TerminatedWorkerError, KilledWorker)


def _client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingDependencyError(
            f"scheduler {address} needs dask: install chita-opt[dask]"
        ) from error
    return Client(address, set_as_default=False)


__all__ = ["ParallelEngine"]
