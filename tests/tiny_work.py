"""Quick work that other processes can import."""

import time


def square(task, stop):
    """`task` squared; 0 raises, and 99 lasts until it is stopped."""
    if task == 0:
        raise ValueError("zero was given")
    while task == 99 and not stop():
        time.sleep(0.01)
    return None if stop() else task * task


class Budget:
    """Stops at call number `calls`."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self):
        self.left -= 1
        return self.left <= 0
