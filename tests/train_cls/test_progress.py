"""Progress on a terminal and in pipes, and the time left."""

import io
import time

from rich.console import Console

from train_cls.progress import Clock, Count, Meter, duration


def test_the_time_left_counts_from_the_first_progress():
    """The start of worker processes is no part of the pace."""
    now = [0.0]
    clock = Clock(lambda: now[0])
    found = []
    for second, done in ((0, 2), (50, 2), (100, 3), (101, 3), (104, 5), (106, 6)):
        now[0] = second
        found.append(clock.left(Count(done, 10, "")))
    assert found == [None, None, None, None, 2 * 5, 2 * 4]
    assert (duration(123), duration(3723)) == ("2:03", "1:02:03")


def shown(meter: Meter, seconds: float) -> str:
    done = iter(range(10_000))
    meter.watch(lambda: Count(next(done), 10_000, "epoch 1/2"))
    with meter.shown():
        time.sleep(seconds)
    assert isinstance(meter.console.file, io.StringIO)
    return meter.console.file.getvalue()


def test_a_terminal_shows_a_bar_that_vanishes():
    text = shown(Meter(Console(file=io.StringIO(), force_terminal=True, width=90)), 0.6)
    assert "epoch 1/2" in text and "━" in text and text.endswith("\x1b[2K")


def test_a_pipe_gets_a_line_now_and_then():
    lines = shown(Meter(Console(file=io.StringIO(), width=90), every=0.1), 0.5).splitlines()
    assert 2 <= len(lines) <= 5 and all("epoch 1/2  0 %" in line for line in lines)
    assert "left" in lines[-1] and "\x1b" not in "".join(lines)
    assert shown(Meter(Console(file=io.StringIO(), width=90), every=60), 0.1) == ""
