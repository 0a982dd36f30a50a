"""`dreamsa demo`: "a rabbit", then "a purple rabbit", and a page that shows both."""

import html
from collections.abc import Iterator
from pathlib import Path

from dreamsa import api
from dreamsa.files import write_atomic
from dreamsa.job import Job
from dreamsa.presets import preset
from dreamsa.runs import Run
from dreamsa.settings import with_overrides

STYLE = (
    "body{font:16px system-ui;margin:2rem auto;max-width:60rem;background:#fafafa;color:#222}"
    "img{vertical-align:top;margin:0 1rem 1rem 0;max-width:100%}"
    "section:not(:last-child){border-bottom:1px solid #ddd}"
)


def make_demo(runs: Path, seed: int = 0, steps: int | None = None) -> Iterator[str]:
    """Generate, edit, write RUNS/demo.html; yields progress. `steps` shortens both runs."""
    overrides = {"seed": seed, **({"steps": steps} if steps else {})}
    rabbit = api.generate(config=with_overrides(preset("toybox", "a rabbit"), overrides), runs=runs)
    yield from _progress("generate", rabbit)
    purple = api.edit(rabbit.run, "a purple rabbit", runs=runs, steps=steps)
    yield from _progress("edit", purple)
    page = runs / "demo.html"
    write_atomic(page, summary_page([rabbit.run, purple.run]).encode())
    yield f"Open {page.resolve()}"


def _progress(verb: str, job: Job) -> Iterator[str]:
    for progress in job:
        if progress.step % 100 == 0 or progress.step == progress.steps:
            where = f"step {progress.step}/{progress.steps}, {progress.phase}"
            speed = f"{progress.seconds_per_step * 1000:.0f} ms a step"
            left = f"{progress.eta_seconds:.0f} s left"
            yield f"{verb} {progress.run.prompt!r}: {where}, {speed}, {left}"


def summary_page(runs: list[Run]) -> str:
    """A page beside the runs' folders: a turntable and a contact sheet per run, in order."""
    blocks = []
    for run in runs:
        record = run.record
        prompt, parent = html.escape(record["prompt"]), record["parent"]
        origin = f"edited from {html.escape(parent)}" if parent else "from scratch"
        blocks.append(
            f"<section><h2>{prompt}</h2><p>{origin}, {record['steps']} steps</p>"
            f'<img src="{run.id}/turntable.webp" alt="turntable of {prompt}">'
            f'<img src="{run.id}/contact_sheet.png" alt="twelve views of {prompt}"></section>'
        )
    head = "<!doctype html><html lang=en><meta charset=utf-8><title>dreamsa</title>"
    return f"{head}<style>{STYLE}</style><h1>dreamsa</h1>{''.join(blocks)}</html>\n"
