"""Make the shipped examples and the pictures of README and docs anew, with the embedded model.

    python tests/web/make_examples.py --runs runs/examples

Runs that are finished already are kept, so that the command can be stopped and repeated. It writes
assets/examples, docs/pictures (the objects) and docs/web (the page, which needs a Chromium).
"""

import shutil
import sys
from pathlib import Path

from cyclopts import App
from screenshots import screenshots
from ship_examples import ship

from dreamsa import api
from dreamsa.evaluation.verdict import judge_run
from dreamsa.runs import Run

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = {
    "a-rabbit": ("a rabbit", None),
    "a-purple-rabbit": ("a purple rabbit", "a-rabbit"),
    "a-gas-can": ("a gas can", None),
}
"""Prompt and parent of each example, parents first."""

app = App(name="make-examples", help=__doc__)


def make(name: str, runs: Path) -> Run:
    """An example's finished run: the one that is there, continued if it was stopped, or a new
    one."""
    prompt, parent = EXAMPLES[name]
    run = api.Run(runs / name)
    if not run.path.exists():
        if parent is None:
            job = api.generate(prompt, name=name, runs=runs)
        else:
            job = api.edit(parent, prompt, name=name, runs=runs)
        job.wait(progress=True)
    elif run.status != "finished":
        run.resume().wait(progress=True)
    print(f"{name}: {judge_run(run)}", flush=True)
    return run


@app.default
def main(*, runs: Path = REPO / "runs" / "examples", pictures: bool = True) -> None:
    made = [make(name, runs) for name in EXAMPLES]
    for path in ship([run.id for run in made], runs, REPO / "assets" / "examples"):
        print(path)
    folder = REPO / "docs" / "pictures"
    folder.mkdir(exist_ok=True)
    for run in made:
        shutil.copyfile(run.path / "contact_sheet.png", folder / f"{run.id}.png")
    if pictures:
        for path in screenshots(REPO / "docs" / "web", runs):
            print(path)


if __name__ == "__main__":
    try:
        app()
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"dreamsa: {error}", file=sys.stderr)
        raise SystemExit(1) from None
