"""Save and load a thousand times, and train, stop and resume for minutes: memory, open files,
threads, child processes and temporary folders must not grow."""

import gc
import os
import tempfile
import threading
from pathlib import Path

import torch
from tiny import tiny_config

from dreamsa import api, checkpoint
from prove.common import Result, use_tiny_model

COUNT, QUICK = 1000, 30


def _used() -> dict[str, int]:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory, MB": pages * os.sysconf("SC_PAGE_SIZE") // 2**20,
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
    }


def prove(folder: Path, count: int) -> Result:
    use_tiny_model()
    tempfile.tempdir = str(folder)
    runs, failures = folder / "runs", []

    def cycle(number: int) -> None:
        job = api.generate(config=tiny_config(steps=6, seed=number), runs=runs)
        next(iter(job))
        job.stop()
        api.resume(job.run, runs=runs).wait()

    saved = folder / "saved"
    for step in range(5):  # compile, and fill the caches
        cycle(step)
        checkpoint.save_step(saved, step, {"a": {"x": torch.zeros(10_000)}}, {"step": step})
    before = _used()
    for step in range(5, count + 5):
        checkpoint.save_step(saved, step, {"a": {"x": torch.zeros(10_000)}}, {"step": step})
        assert checkpoint.newest(saved, checkpoint.load)
        if step % 10 == 0:
            cycle(step)
    after = _used()
    if len(list(saved.iterdir())) != 2:
        failures.append(f"{len(list(saved.iterdir()))} checkpoints are kept, not 2")
    for name, allowed in (("memory, MB", 50), ("open files", 0), ("threads", 0),
                          ("temporary files", 0)):  # fmt: skip
        if after[name] > before[name] + allowed:
            failures.append(f"{name}: {before[name]} -> {after[name]}")
    return Result(
        count, failures, {f"{n} before, after": f"{before[n]}, {after[n]}" for n in before}
    )
