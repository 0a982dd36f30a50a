"""Tasks in parallel processes that share the cores and stop on request.

A worker that gets SIGTERM or SIGHUP, or whose parent dies, lets its task save and stop, and exits.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

import torch

from dreamsa.device import available_cores

Stop = Callable[[], bool]
"""Whether to save and stop; called between steps."""
Task = TypeVar("Task")
Result = TypeVar("Result")


def default_workers(on_gpu: bool | None = None) -> int:
    """Processes of a comparison: one per core, at most 8; a single one on a GPU, which is used if
    there is one unless stated otherwise."""
    on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
    return 1 if on_gpu else min(available_cores(), 8)


def each(
    work: Callable[[Task, Stop], Result | None],
    tasks: Sequence[Task],
    workers: int,
    stop: Stop = lambda: False,
    *,
    after: Callable[[Task], Task | None] = lambda task: None,
    threads: int | None = None,
) -> Iterator[Result]:
    """Yield the results of `work(task, stop)` as they come, except None.

    With one worker, runs in this process. Tasks start in their order as workers become free. Once
    `stop()` is true, running tasks are asked to stop and no other starts; so too when a task
    raises, whose exception is raised once they have ended, and when the iterator is closed.

    Args:
        after: The task that must have ended before this one starts, which stands before it in
            `tasks` or is no part of them; None for none.
        threads: Threads of torch in each process; default: all cores, divided among the workers.

    Raises:
        RuntimeError: A worker process died.
    """
    if workers == 1 or not tasks or stop():
        with _torch_threads(threads):
            for task in tasks:
                if stop():
                    return
                result = work(task, stop)
                if result is not None:
                    yield result
        return
    context = multiprocessing.get_context("spawn")
    stopping, threads = context.Event(), threads or max(1, available_cores() // workers)
    with ProcessPoolExecutor(
        min(workers, len(tasks)), context, _begin_worker, (stopping, threads)
    ) as pool:
        pending, running = list(tasks), dict[Future[Result | None], Task]()
        try:
            while pending or running:
                if stop():
                    stopping.set()
                    pending.clear()
                for task in _ready(pending, list(running.values()), after)[
                    : workers - len(running)
                ]:
                    pending.remove(task)
                    running[pool.submit(_in_worker, work, task)] = task
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    del running[future]
                    result = future.result()
                    if result is not None:
                        yield result
        except BrokenProcessPool as error:
            if stop():  # the signal has reached the workers first
                return
            raise RuntimeError(
                "A worker process died, perhaps for lack of memory. The same command resumes; "
                "take fewer --workers."
            ) from error
        finally:
            stopping.set()


def _ready(pending: list[Task], running: list[Task], after: Callable[[Task], Any]) -> list[Task]:
    """The pending tasks that wait for no other."""
    waited_for = [*pending, *running]
    return [task for task in pending if (one := after(task)) is None or one not in waited_for]


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_stopping: Any = None
_busy, _leaving = False, False


def _begin_worker(stopping: Any, threads: int) -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal; the parent sets `stopping`."""
    global _stopping
    _stopping = stopping
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _leave)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    allowed = int(os.environ.get("NUMBA_NUM_THREADS", threads))
    os.environ["NUMBA_NUM_THREADS"] = str(min(threads, allowed))  # numba reads it when it loads


def _leave(number: int, frame: Any) -> None:
    """Exit, or let the task save and stop first."""
    global _leaving
    _leaving = True
    if not _busy:
        os._exit(128 + number)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _stops() -> bool:
    return _leaving or _stopping.is_set()


def _in_worker(work: Callable[[Any, Stop], Any], task: Any) -> Any:
    global _busy
    _busy = True
    try:
        return None if _stops() else work(task, _stops)
    finally:
        _busy = False
        if _leaving and not _stopping.is_set():
            os._exit(1)
