"""A job on the command line: its progress, its end, and what a judge says of the result."""

import sys
import warnings
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from dreamsa.commands.output import one_line_json

if TYPE_CHECKING:
    from dreamsa.job import Job
    from dreamsa.runs import Run

RESULTS = ("mesh.glb", "turntable.mp4", "turntable.webp", "contact_sheet.png")


def follow(job: "Job", as_json: bool, quiet: bool, expected: str = "") -> None:
    """Show a job's progress to its end, after a line on how long it will take. A first Ctrl-C or
    SIGTERM saves and prints how to resume."""
    from transformers.utils import logging

    from dreamsa.device import Processes
    from dreamsa.signals import stop_on_signals

    logging.disable_progress_bar()
    if not Processes.current().is_first:  # under `accelerate launch` one process prints
        job.wait()
        return
    if expected and not as_json and not quiet:
        print(expected, file=sys.stderr, flush=True)
    signals, run = stop_on_signals(), job.run
    try:
        with closing(_shown(job, as_json, quiet)) as shown:  # an error of the last save shows
            for _ in shown:
                if signals:
                    break
    finally:
        job.stop()
    if signals and run.status != "finished":
        step = run.record["step"]
        saved = f"at step {step} and saved" if step else "before the first step was done"
        print(
            f"Stopped {saved}. Continue with: {run.command('resume')}",
            file=sys.stderr,
        )
        raise SystemExit(128 + signals[0])
    if not quiet:
        job.stages("asking the judge")
    _print_finished(run, "" if quiet else _verdict(run), as_json, quiet)


def _verdict(run: "Run") -> str:
    """What the embedded judge sees; empty for other models, whose objects it does not know."""
    from dreamsa.evaluation.verdict import judge_run

    try:
        return judge_run(run)
    except (ValueError, RuntimeError, OSError) as error:
        warnings.warn(f"The judge could not evaluate run {run.id}: {error}", stacklevel=2)
        return ""


def _print_finished(run: "Run", verdict: str, as_json: bool, quiet: bool) -> None:
    if as_json:
        facts = {"event": "finished", "run": run.id, "path": str(run.path)}
        print(one_line_json({**facts, "judge": verdict or None}))
    elif quiet:
        print(run.path)
    else:
        files = ", ".join(name for name in RESULTS if (run.path / name).exists())
        print(f"{run.path}\n  {files}")
        if verdict:
            print(verdict)
        print(f"Change it:  {run.command('edit', 'a new prompt')}")


def _shown(job: "Job", as_json: bool, quiet: bool) -> Generator[Any]:
    if as_json:
        yield from _as_json(job)
    elif quiet:
        yield from job
    else:
        from dreamsa.progress import with_bar

        yield from with_bar(job)


def _as_json(job: "Job") -> Generator[Any]:
    """One line per event: start, stage, step; what is not known is null."""
    run, record = job.run, job.run.record

    def say(event: str, **facts: Any) -> None:
        print(one_line_json({"event": event, "run": run.id, **facts}), flush=True)

    names = "prompt", "parent", "steps", "step", "device", "backend"
    say("start", path=str(run.path), **{name: record[name] for name in names})
    job.stages.listener = lambda text: say("stage", stage=text)
    for progress in job:
        facts = {**progress.result._asdict(), "step": progress.step, "steps": progress.steps}
        preview = str(progress.preview) if progress.preview else None
        say("step", **facts, eta_seconds=round(progress.eta_seconds, 1), preview=preview)
        yield progress
