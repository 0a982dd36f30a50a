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

    for number in (getattr(signal, name) for name in STOPPING if hasattr(signal, name)):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, handler)
    return received


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold back a first Ctrl-C until the block is done, then raise KeyboardInterrupt; a second one
    raises immediately.

    Does nothing outside the main thread, or where something else handles SIGINT.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, signal.default_int_handler)

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if received:
        raise KeyboardInterrupt
