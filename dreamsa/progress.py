"""A progress bar of a job, for terminals and for the log of a job that runs without one."""

from collections.abc import Iterator
from typing import Any


def with_bar(job: Any) -> Iterator[Any]:
    """Iterate over a job and show on stderr what it does: its stages, steps and remaining time."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console, shown = Console(stderr=True), None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )

    def say(line: str) -> None:
        if not console.is_terminal:
            console.print(line, highlight=False, soft_wrap=True)

    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=job.run.record["steps"], note="")

        def stage(text: str) -> None:
            bar.update(task, description=text, note="")
            if not text.startswith("pictures") or " 4/" in text:  # one line of a log is enough
                say(text)

        job.stages.listener = stage
        for progress in job:
            phase, step, steps = progress.phase, progress.step, progress.steps
            milliseconds, left = 1000 * progress.seconds_per_step, progress.eta_seconds
            note = f"{milliseconds:.0f} ms/step, {left:.0f} s left"
            bar.update(task, description=phase, completed=step, total=steps, note=note)
            if progress.preview != shown:
                shown = progress.preview
                say(f"step {step}/{steps} {phase}, {note}, preview {shown}")
            yield progress
        bar.update(task, description="finished", note="")
