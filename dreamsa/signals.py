"""Signals that stop a run: they take effect between steps, so that no half-done step is ever
saved."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
"""SIGUSR1: how Slurm announces the end of a job."""
TOGETHER = 1.0
"""Seconds in which further signals count as the first: a closing terminal sends several."""
_first = -inf
"""When the last signal that counted came."""


def stop_on_signals() -> list[int]:
    """Install handlers for Ctrl-C, SIGTERM, SIGUSR1 and a closed terminal.

    Returns:
        A list that receives the number of the first signal, for loops to check. A second signal,
        TOGETHER later or after that, has its default effect.
    """
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if not received:
            _begin()
            received.append(number)
        elif not _is_together():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in _numbers():
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, handler)
    return received


def interrupt_on_signals() -> None:
    """Let SIGTERM, SIGUSR1 and a closed terminal raise KeyboardInterrupt as Ctrl-C does, unless
    something else handles or ignores them. Several within TOGETHER raise it once."""
    for number in _numbers():
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


@contextmanager
def held_interrupts() -> Iterator[list[int]]:
    """Hold back a first signal that would raise KeyboardInterrupt; a second one, TOGETHER later or
    after that, raises it.

    Does nothing outside the main thread, or for signals that something else handles.

    Yields:
        A list that receives the number of the first signal.
    """
    received: list[int] = []
    raising = (signal.default_int_handler, _interrupt)
    held = {n: signal.getsignal(n) for n in _numbers() if signal.getsignal(n) in raising}
    if threading.current_thread() is not threading.main_thread() or not held:
        yield received
        return

    def handler(number: int, frame: Any) -> None:
        if not received:
            _begin()
            received.append(number)
        elif not _is_together():
            raise KeyboardInterrupt

    for number in held:
        signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, before in held.items():
            signal.signal(number, before)


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold back a first interrupt until the block is done, then raise KeyboardInterrupt."""
    with held_interrupts() as received:
        yield
    if received:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: Any) -> None:
    if not _is_together():
        _begin()
        raise KeyboardInterrupt


def _begin() -> None:
    global _first
    _first = time.monotonic()


def _is_together() -> bool:
    return time.monotonic() - _first < TOGETHER


def _numbers() -> list[int]:
    """Those of STOPPING that the platform has."""
    return [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
