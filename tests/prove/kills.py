"""kill -9 at random moments of a run of 60 steps that saves every 5, a third of them inside a save.
After each the newest checkpoint must verify and be no older than before, and the run that was
killed over and over must end with the bits of the unbroken one."""

import os
import random
import signal
import time
from pathlib import Path

from dreamsa import api, checkpoint
from dreamsa.runs import list_runs
from prove.common import Result, digest, ended, fork, generate, settle, use_tiny_model

COUNT, QUICK = 200, 4


def _kill(folder: Path, pid: int, rng: random.Random, in_save: bool, longest: float) -> bool:
    """Kill a child at a random moment; returns whether a save was under way."""
    deadline = time.monotonic() + rng.random() * longest
    end = time.monotonic() + 3 * longest
    while time.monotonic() < (end if in_save else deadline):
        saving = any(folder.glob("*/checkpoints/.tmp-*"))
        if (in_save and saving and time.monotonic() > deadline) or os.waitid(
            os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            break
        time.sleep(0.0005)
    saving = any(folder.glob("*/checkpoints/.tmp-*"))
    os.kill(pid, signal.SIGKILL)
    return saving


def prove(folder: Path, count: int) -> Result:
    use_tiny_model()
    log = folder / "log"
    started = time.monotonic()
    assert settle(lambda: generate(folder / "whole"), log) == 0, log.read_text()
    longest = time.monotonic() - started
    whole = digest(list_runs(folder / "whole")[0])
    rng, failures, kills, saves, trial = random.Random(0), [], 0, 0, 0
    while kills < count:
        trial += 1
        runs = folder / f"trial-{trial}"
        fork_begin = lambda runs=runs: generate(runs)  # noqa: E731
        pid, last = fork(fork_begin, log), -1
        for _ in range(8):
            saves += _kill(runs, pid, rng, kills % 3 == 0, longest)
            kills += ended(pid) == -signal.SIGKILL
            if not list_runs(runs):  # killed before it was created: nothing to lose
                break
            run = list_runs(runs)[0]
            found = checkpoint.latest(run.checkpoints)
            step = int(found.name) if found else -1
            if step < last:
                failures.append(f"{run.id}: from step {last} back to {step}")
            last = step
            if run.status == "finished" or kills >= count:
                break
            pid = fork(lambda run=run: api.resume(run, runs=run.path.parent).wait(), log)
        for run in list_runs(runs):
            if run.status != "finished":
                code = settle(lambda run=run: api.resume(run, runs=run.path.parent).wait(), log)
                if code:
                    failures.append(f"{run.id}: resume ended with {code}")
            if digest(run) != whole:
                failures.append(f"{run.id}: other bits")
            failures += [f"left behind: {path}" for path in run.path.rglob(".tmp-*")]
    return Result(kills, failures, {"of these inside a save": saves, "runs": trial})
