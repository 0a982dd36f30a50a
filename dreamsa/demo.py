"""`make demo`: "a rabbit", then "a purple rabbit" by annealing, and a page that shows both."""

import html
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from dreamsa.runs import Run

app = App(name="dreamsa-demo", help=__doc__)


@app.default
def demo(
    *, runs: Annotated[Path, Parameter(help="Folder that holds runs.")] = Path("runs"), seed: int = 0, steps: int | None = None
) -> None:
    """Generate, edit, write the page. `steps` shortens both, for trying the machinery."""
    from dreamsa import api
    from dreamsa.config import preset

    config = api.with_overrides(preset("toybox", "a rabbit"), {"seed": seed, **({"steps": steps} if steps else {})})
    rabbit = _finish("generate", api.generate(config=config, runs=runs))
    purple = _finish("edit", api.edit(rabbit, "a purple rabbit", runs=runs, steps=steps))
    page = runs / "demo.html"
    page.write_text(summary_page([rabbit, purple]))
    print(f"Look at {page.resolve()}")


def _finish(verb: str, job) -> Run:
    for progress in job:
        if progress.step % 100 == 0 or progress.step == progress.steps:
            done = f"{verb} {progress.run.prompt!r}: step {progress.step}/{progress.steps}, {progress.phase}"
            print(f"{done}, {progress.seconds_per_step * 1000:.0f} ms a step, {progress.eta_seconds:.0f} s left", flush=True)
    return job.run


def summary_page(runs: list[Run]) -> str:
    """One self-contained page beside the runs' folders: a turntable and a contact sheet per run, in order."""
    blocks = []
    for run in runs:
        record = run.record
        how = "from scratch" if not record["parent"] else f"edited from {html.escape(record['parent'])}"
        blocks.append(
            f"<section><h2>{html.escape(record['prompt'])}</h2><p>{how}, {record['steps']} steps</p>"
            f'<img src="{run.id}/turntable.webp" alt="turntable of {html.escape(record["prompt"])}">'
            f'<img src="{run.id}/contact_sheet.png" alt="twelve views of {html.escape(record["prompt"])}"></section>'
        )
    style = (
        "body{font:16px system-ui;margin:2rem auto;max-width:60rem;background:#fafafa;color:#222}"
        "img{vertical-align:top;margin:0 1rem 1rem 0;max-width:100%}section:not(:last-child){border-bottom:1px solid #ddd}"
    )
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>dreamsa</title><style>{style}</style><h1>dreamsa</h1>{''.join(blocks)}</html>\n"


if __name__ == "__main__":
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        print(f"dreamsa: {error}", file=sys.stderr)
        raise SystemExit(1) from None
