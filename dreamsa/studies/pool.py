"""Tasks in parallel processes that share the cores and stop on request."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, TypeVar

import numba
import torch

from dreamsa.device import available_cores

Stop = Callable[[], bool]
"""Whether to save and stop; called between steps."""
Task = TypeVar("Task")
Result = TypeVar("Result")


def default_workers() -> int:
    """Processes of a comparison: one per core, at most 8; a single one if there is a GPU."""
    return 1 if torch.cuda.is_available() else min(available_cores(), 8)


def each(
    work: Callable[[Task, Stop], Result | None], tasks: Sequence[Task], workers: int, stop: Stop
) -> Iterator[Result]:
    """Yield the results of `work(task, stop)` as they come, except None.

    With one worker, runs in this process. Once `stop()` is true, running tasks are asked to stop
    and no other starts; so too when a task raises, whose exception is raised once they have ended.
    """
    if workers == 1 or not tasks or stop():
        for task in tasks:
            if stop():
                return
            result = work(task, stop)
            if result is not None:
                yield result
        return
    context = multiprocessing.get_context("spawn")
    stopping, threads = context.Event(), max(1, available_cores() // workers)
    with ProcessPoolExecutor(
        min(workers, len(tasks)), context, _begin_worker, (stopping, threads)
    ) as pool:
        waiting = {pool.submit(_in_worker, work, task) for task in tasks}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                if stop():
                    stopping.set()
                for future in done:
                    result = future.result()
                    if result is not None:
                        yield result
        finally:
            stopping.set()


_stopping: Any = None


def _begin_worker(stopping: Any, threads: int) -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal; the parent sets `stopping`."""
    global _stopping
    _stopping = stopping
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore[reportAttributeAccessIssue]


def _in_worker(work: Callable[[Any, Stop], Any], task: Any) -> Any:
    return None if _stopping.is_set() else work(task, _stopping.is_set)
