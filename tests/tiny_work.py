"""Work for processes of their own: importable there, and quick."""

import time


def square(task, stop):
    """`task` squared; 0 is an error, and 99 lasts until it is told to stop."""
    if task == 0:
        raise ValueError("zero was given")
    while task == 99 and not stop():
        time.sleep(0.01)
    return None if stop() else task * task


class Budget:
    """Says stop from the call number `calls` on."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self):
        self.left -= 1
        return self.left <= 0
