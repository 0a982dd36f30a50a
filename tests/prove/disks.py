"""The disk is full at many levels (files larger than a limit cannot be written), read-only, or the
run's folder is removed while it trains: one sentence, the old checkpoint verifies, and the run
continues when there is room."""

import resource
import shutil
import signal
from pathlib import Path

from tiny import tiny_config

from dreamsa import api, checkpoint
from dreamsa.runs import RunError, list_runs
from prove.common import Result, digest, generate, settle, use_tiny_model

COUNT, QUICK = 20, 2


def _resume_with(limit: int, runs: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        api.resume(list_runs(runs)[0], runs=runs).wait()
    except (RunError, OSError) as error:
        raise SystemExit(3 if "\n" not in str(error) else 4) from error


def _removed(runs: Path) -> None:
    job = api.generate(config=tiny_config(steps=400), runs=runs)
    try:
        for progress in job:
            if progress.step == 3:
                shutil.rmtree(job.run.path)
    except (RunError, OSError) as error:
        raise SystemExit(3 if "\n" not in str(error) else 4) from error


def prove(folder: Path, count: int) -> Result:
    use_tiny_model()
    runs, log, failures = folder / "runs", folder / "log", []
    assert settle(lambda: generate(folder / "whole"), log) == 0, log.read_text()
    whole = digest(list_runs(folder / "whole")[0])

    def begin() -> None:
        job = api.generate(config=tiny_config(steps=60, save_every=5), runs=runs)
        for progress in job:
            if progress.step == 7:
                break
        job.stop()

    assert settle(begin, log) == 0, log.read_text()
    run = list_runs(runs)[0]
    largest = max(path.stat().st_size for path in run.checkpoints.rglob("*"))
    for level in range(count):
        limit = 1 + largest * level // count
        code = settle(lambda limit=limit: _resume_with(limit, runs), log)
        found = checkpoint.latest(run.checkpoints)
        if code != 3 or found is None or int(found.name) < 7:
            failures.append(f"{limit} bytes: exit {code}, newest checkpoint {found}")
    if settle(lambda: api.resume(run, runs=runs).wait(), log) or digest(run) != whole:
        failures.append("with room again: other bits")
    failures += [f"left behind: {path}" for path in run.path.rglob(".tmp-*")]
    code = settle(lambda: _removed(folder / "removed"), log)
    failures += [] if code == 3 else [f"a removed folder: exit {code}"]
    return Result(count + 1, failures)
