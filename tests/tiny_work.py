"""Quick work that other processes can import."""

import os
import time
from pathlib import Path


def square(task, stop):
    """`task` squared; 0 raises, and 99 lasts until it is stopped."""
    if task == 0:
        raise ValueError("zero was given")
    while task == 99 and not stop():
        time.sleep(0.01)
    return None if stop() else task * task


def until_stopped(folder, stop):
    """Write this process's id, wait until stopped, and say so in a file."""
    (Path(folder) / f"{os.getpid()}.pid").touch()
    while not stop():
        time.sleep(0.01)
    (Path(folder) / f"{os.getpid()}.saved").touch()


class Budget:
    """Stops at call number `calls`."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self):
        self.left -= 1
        return self.left <= 0
