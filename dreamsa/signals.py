"""Signals that stop a run: they take effect between steps, so that no half-done step is ever
saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


def stop_on_signals() -> list[int]:
    """Install handlers for Ctrl-C, SIGTERM and a closed terminal.

    Returns:
        A list that receives the number of the first signal, for loops to check. A second signal has
        its default effect.
    """
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in _numbers():
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, handler)
    return received


def interrupt_on_signals() -> None:
    """Let SIGTERM and a closed terminal raise KeyboardInterrupt as Ctrl-C does, unless something
    else handles or ignores them."""
    for number in _numbers():
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


@contextmanager
def held_interrupts() -> Iterator[list[int]]:
    """Hold back a first signal that would raise KeyboardInterrupt; a second one raises it.

    Does nothing outside the main thread, or for signals that something else handles.

    Yields:
        A list that receives the number of the first signal.
    """
    received: list[int] = []
    held = [n for n in _numbers() if signal.getsignal(n) is signal.default_int_handler]
    if threading.current_thread() is not threading.main_thread() or not held:
        yield received
        return

    def handler(number: int, frame: Any) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number in held:
            signal.signal(number, signal.default_int_handler)

    for number in held:
        signal.signal(number, handler)
    try:
        yield received
    finally:
        restore()


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold back a first interrupt until the block is done, then raise KeyboardInterrupt."""
    with held_interrupts() as received:
        yield
    if received:
        raise KeyboardInterrupt


def _numbers() -> list[int]:
    """Those of STOPPING that the platform has."""
    return [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
