"""Finished examples: made from runs for shipping, and put into an empty folder of runs so that nobody meets an empty gallery.

To refresh those that are shipped:  python -m dreamsa.web.examples assets/examples RUN RUN ... --runs runs
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from dreamsa import checkpoint
from dreamsa.assets import asset
from dreamsa.runs import Run, RunError, find_run, runs_folder

FILES = ("config.json", "metrics.jsonl", "contact_sheet.png", "turntable.webp", "README.md")
MOST_BYTES = 6_000_000
"""Of all examples together."""


def ship(names: list[str], runs: Path, out: Path) -> list[Path]:
    """Copy finished runs to `out` in place of the examples there: pictures, numbers and the scene, which is what edits and exports need.

    The optimizer's moments are left out, two thirds of a checkpoint; so `edit --moments keep` cannot start from an example. The hash
    table, nearly all the rest, is kept in half precision: rounded by at most one part in 2,000.

    Raises:
        RunError: A run is missing or not finished, an edit comes without its parent, or all are larger than MOST_BYTES.
    """
    found = [find_run(name, runs) for name in names]
    for run in found:
        if run.status != "finished":
            raise RunError(f"Run {run.id} is {run.status}, not finished; only finished runs are examples.")
        if run.record["parent"] not in (None, *(other.id for other in found)):
            raise RunError(f"Run {run.id} was edited from {run.record['parent']}; name that one as well.")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".tmp-", dir=out.parent))
    try:
        for run in found:
            _ship(run, part / run.id)
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        if size > MOST_BYTES:
            raise RunError(f"These examples have {size:,} bytes together; at most {MOST_BYTES:,} are shipped. Name fewer runs.")
        out.mkdir(exist_ok=True)
        for old in out.glob("*/run.json"):
            shutil.rmtree(old.parent)
        for run in found:
            (part / run.id).rename(out / run.id)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return [out / run.id for run in found]


def _ship(run: Run, target: Path) -> None:
    target.mkdir()
    for name in FILES:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, target / name)
    newest = run.latest_checkpoint
    tensors, state = checkpoint.load(newest)
    scene = {name: value.half() if name == "field.table" else value for name, value in tensors["scene"].items()}
    checkpoint.save(target / "checkpoints" / newest.name, {"scene": scene}, state)
    checkpoint.write_json(target / "run.json", {**run.record, "example": True})


def install(runs: Path, source: Path | None = None) -> list[Run]:
    """Copy the shipped examples to a folder that holds no run yet; returns them. Does nothing where there is a run, or no examples."""
    if any(runs.glob("*/run.json")):
        return []
    try:
        source = source or asset("examples")
    except FileNotFoundError:
        return []
    runs.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*/run.json")):
        part = Path(tempfile.mkdtemp(prefix=".tmp-", dir=runs))
        try:
            shutil.copytree(path.parent, part, dirs_exist_ok=True)
            os.chmod(part, 0o755)
            part.rename(runs / path.parent.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return [Run(path.parent) for path in sorted(runs.glob("*/run.json"))]


def main(arguments: list[str]) -> None:
    from cyclopts import App

    app = App(name="dreamsa-examples", help=__doc__)

    @app.default
    def _(out: Path, *names: str, runs: Path | None = None) -> None:
        for path in ship(list(names), runs_folder(runs), out):
            print(path)

    app(arguments)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"dreamsa: {error}", file=sys.stderr)
        raise SystemExit(1) from None
