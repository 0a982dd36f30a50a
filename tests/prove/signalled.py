"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 at random moments of a run under the command line's own loop,
once and twice 20 ms apart: exit code 128 + the signal's number, within 5 s, everything done so far
saved. Nothing may be left running."""

import os
import random
import signal
import time
from pathlib import Path

from tiny import tiny_config

from dreamsa import api, checkpoint, cli
from dreamsa.runs import list_runs
from prove.common import Result, ended, fork, use_tiny_model

COUNT, QUICK = 100, 2
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def _run(runs: Path) -> None:
    cli._follow(api.generate(config=tiny_config(steps=5000), runs=runs), False, True)


def _step(runs: Path) -> int:
    found = list_runs(runs)
    rows = found[0].metrics() if found else []
    return rows[-1]["step"] if rows else -1


def prove(folder: Path, count: int) -> Result:
    use_tiny_model()
    rng, failures, slowest = random.Random(0), [], 0.0
    for trial in range(count):
        runs, number = folder / f"{trial}", NUMBERS[trial % len(NUMBERS)]
        pid = fork(lambda runs=runs: _run(runs), folder / "log")
        deadline = time.monotonic() + 120
        while _step(runs) < 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(rng.random())
        seen, started = _step(runs), time.monotonic()
        os.kill(pid, number)
        if trial // len(NUMBERS) % 2:
            time.sleep(0.02)
            os.kill(pid, NUMBERS[(trial + 1) % len(NUMBERS)])
        code, seconds = ended(pid), time.monotonic() - started
        slowest = max(slowest, seconds)
        run = list_runs(runs)[0]
        saved = checkpoint.latest(run.checkpoints)
        if code != 128 + number or seconds > 5:
            failures.append(f"{number.name}: exit {code} after {seconds:.1f} s")
        if saved is None or int(saved.name) <= seen or run.status != "stopped":
            failures.append(f"{number.name}: step {seen} was done, saved is {saved}, {run.status}")
    return Result(count, failures, {"slowest exit, s": round(slowest, 2)})
