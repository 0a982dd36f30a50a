"""A run of 60 steps is stopped after every step and resumed: the bits of the unbroken run; an edit
that ascends and moves likewise; and one run that is interrupted ten times."""

from pathlib import Path

from dreamsa import api
from dreamsa.job import Job
from dreamsa.runs import Run
from prove.common import Result, digest, generate, use_tiny_model

COUNT, QUICK = 59, 3


def _until(job: Job, step: int) -> Run:
    for progress in job:
        if progress.step == step:
            break
    job.stop()
    return job.run


def prove(folder: Path, count: int) -> Result:
    from tiny import tiny_config

    use_tiny_model()
    runs, failures, steps = folder / "runs", [], count + 1
    config = tiny_config(steps=steps)
    parent = generate(runs, steps)
    given = {"steps": steps, "ascent_steps": max(steps // 4, 1), "eta": 0.4, "runs": runs}
    edit = api.edit(parent, "a mug", **given).wait()
    wanted = {"generate": digest(parent), "edit": digest(edit)}
    for step in range(1, steps):
        for kind, start in (
            ("generate", lambda: api.generate(config=config, runs=runs)),
            ("edit", lambda: api.edit(parent, "a mug", **given)),
        ):
            run = api.resume(_until(start(), step), runs=runs).wait()
            if digest(run) != wanted[kind]:
                failures.append(f"{kind}, step {step}: other bits")
    run = _until(api.generate(config=config, runs=runs), 1)
    for step in range(2, steps, max(steps // 10, 1)):
        run = _until(api.resume(run, runs=runs), step)
    if digest(api.resume(run, runs=runs).wait()) != wanted["generate"]:
        failures.append("a chain of interruptions: other bits")
    return Result(2 * count + 1, failures)
