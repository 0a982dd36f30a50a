"""Progress on stderr: one live line on a terminal, a line now and then elsewhere.

A thread of its own reads a counter that the training increments anyway; the training does not know
of it, and no device is synchronised.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from train_cls.train import Training
from train_cls.trials import Study

LIVE_HZ = 4
PIPE_SECONDS = 60.0
"""Seconds between lines where stderr is no terminal."""


class Count(NamedTuple):
    done: float
    total: float
    text: str


class Clock:
    """Estimates the time left from the pace since the first thing was done, so that the start of
    processes and the reading of data do not count."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.seen: float | None = None
        self.first: tuple[float, float] | None = None

    def left(self, count: Count) -> float | None:
        """Seconds; None until the pace is known."""
        if self.first is None:
            if self.seen is not None and count.done > self.seen:
                self.first = (self.now(), count.done)
            self.seen = count.done
            return None
        began, before = self.first
        if count.done <= before:
            return None
        return (self.now() - began) * (count.total - count.done) / (count.done - before)


def duration(seconds: float) -> str:
    """Such as "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count_of(training: Training) -> Count:
    """Progress of one run, in batches."""
    steps, done, period = training.setup.steps, training.batches, training.setup.period
    last = max(training.steps - 1, 0)
    at = min(done, last)
    text = (
        f"generation {at // period + 1}/{-(-training.steps // period)}  "
        f"epoch {at // steps + 1}/{training.steps // steps}  step {at % steps + 1}/{steps}"
    )
    return Count(done, training.steps, text)


def count_of_study(study: Study) -> Count:
    """Progress of a comparison or sweep, in epochs."""
    done, total = study.done(), sum(study.epochs.values())
    ended = sum(trial.has_ended for trial in study.trials)
    return Count(done, total, f"{ended}/{len(study.trials)} runs  {done}/{total} epochs")


class Meter:
    """Shows a count that starts when `watch` is called."""

    def __init__(self, console: Console | None = None, every: float = PIPE_SECONDS) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.every, self.clock = every, Clock()
        self.count: Callable[[], Count] | None = None

    def watch(self, count: Callable[[], Count]) -> None:
        self.clock.left(count())
        self.count = count

    def line(self) -> str:
        """The count and the time left; empty before the first."""
        if self.count is None:
            return ""
        left = self.clock.left(count := self.count())
        share = f"{100 * count.done / max(count.total, 1):.0f} %"
        return f"{count.text}  {share}" + (f"  {duration(left)} left" if left is not None else "")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the progress while the block runs."""
        if self.console.is_terminal:
            stdout_too = sys.stdout.isatty()  # else its text belongs in its file
            with Live(
                get_renderable=self._bar,
                console=self.console,
                refresh_per_second=LIVE_HZ,
                transient=True,
                redirect_stdout=stdout_too,
            ):
                yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._lines, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _lines(self, ended: threading.Event) -> None:
        printed = time.monotonic()
        while not ended.wait(min(self.every, 1.0)):
            line = self.line()
            if line and time.monotonic() - printed >= self.every:
                self.console.print(line)
                printed = time.monotonic()

    def _bar(self) -> Table:
        row = Table.grid(padding=(0, 2))
        if self.count is not None:
            count = self.count()
            row.add_row(ProgressBar(max(count.total, 1), count.done, width=24), self.line())
        return row
