"""Work for processes of their own: importable there, and quick."""

import time


def square(task, stop):
    """`task` squared; 0 is an error, and 99 lasts until it is told to stop."""
    if task == 0:
        raise ValueError("zero was given")
    while task == 99 and not stop():
        time.sleep(0.01)
    return None if stop() else task * task
