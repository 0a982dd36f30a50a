"""A save fails or ends the process at each call into the operating system in turn: opening,
making, renaming, removing, syncing, listing, and writing tensors. Afterwards the old or the new
checkpoint must verify, and saving must work again."""

import errno
import os
import sys
from pathlib import Path

import torch

from dreamsa import checkpoint
from prove.common import Result, settle, use_tiny_model

COUNT, QUICK = 1000, 12
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.listdir",
          "os.scandir", "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp")  # fmt: skip


def _save(folder: Path, step: int) -> None:
    checkpoint.save_step(folder, step, {"scene": {"a": torch.full((64,), 1.0 * step)}}, {"a": step})


def _fail_at(number: int, crash: bool, folder: Path) -> None:
    """Count the calls that concern `folder`, and fail at one of them."""
    seen = 0

    def step(name: str, path: object) -> None:
        nonlocal seen
        if name != "fsync" and str(folder) not in str(path):
            return
        seen += 1
        if seen == number:
            if crash:
                os._exit(9)
            code = (errno.ENOSPC, errno.EIO)[number % 2]
            raise OSError(code, os.strerror(code))

    fsync, write = os.fsync, checkpoint.save_file
    os.fsync = lambda descriptor: (step("fsync", ""), fsync(descriptor))[1]
    checkpoint.save_file = lambda group, path: (step("save_file", path), write(group, path))[1]
    sys.addaudithook(lambda name, args: step(name, args[0]) if name in EVENTS and args else None)
    _save(folder, 3)
    if seen < number:
        raise SystemExit(7)  # all calls have had their turn


def prove(folder: Path, count: int) -> Result:
    use_tiny_model()
    failures, tried, points = [], 0, 0
    for crash in (False, True):
        for number in range(1, count + 1):
            place = folder / f"{crash}-{number}"
            _save(place, 1)
            _save(place, 2)
            code = settle(lambda n=number, c=crash, p=place: _fail_at(n, c, p), folder / "log")
            if code == 7:
                break
            tried, points = tried + 1, max(points, number)
            found = checkpoint.newest(place, checkpoint.load)
            if found is None or found.state["a"] not in (2, 3):
                failures.append(f"call {number}, crash {crash}: neither old nor new")
            _save(place, 3)
            _save(place, 4)
            if [p.name for p in sorted(place.iterdir())] != ["00000003", "00000004"]:
                failures.append(f"call {number}, crash {crash}: {sorted(place.iterdir())}")
    return Result(tried, failures, {"calls of one save": points})
