"""Replace the shipped examples by finished runs.

python tests/web/ship_examples.py assets/examples RUN RUN ... --runs runs
"""

import shutil
import sys
import tempfile
from pathlib import Path

from cyclopts import App

from dreamsa import checkpoint
from dreamsa.files import TEMPORARY, write_json
from dreamsa.runs import Run, RunError, find_run, runs_folder

FILES = (
    "config.json",
    "metrics.jsonl",
    "contact_sheet.png",
    "turntable.webp",
    "mesh.glb",
    "README.md",
)
MAX_BYTES = 6_000_000
"""Maximum total size of the examples."""

app = App(name="ship-examples", help=__doc__)


def ship(names: list[str], runs: Path, out: Path) -> list[Path]:
    """Replace the examples in `out` by copies of finished runs: images, metrics and the scene.

    Leaves out the optimizer's moments, two thirds of a checkpoint, so that `edit --moments keep`
    cannot start from an example. Stores the hash table, most of the remainder, in half precision
    (relative error at most 1/2,000).

    Raises:
        RunError: A run is missing or not finished, an edit's parent is not named, or the total size
            exceeds MAX_BYTES.
    """
    found = [find_run(name, runs) for name in names]
    for run in found:
        if run.status != "finished":
            raise RunError(
                f"Run {run.id} is {run.status}, not finished; only finished runs are examples."
            )
        if run.record["parent"] not in (None, *(other.id for other in found)):
            raise RunError(
                f"Run {run.id} is an edit of {run.record['parent']}; name that run as well."
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=out.parent))
    try:
        for run in found:
            _ship(run, part / run.id)
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        if size > MAX_BYTES:
            raise RunError(
                f"These examples have {size:,} bytes, more than {MAX_BYTES:,}. Name fewer runs."
            )
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
    latest = run.latest_checkpoint
    tensors, state = checkpoint.load(latest)
    scene = {
        name: value.half() if name == "field.table" else value
        for name, value in tensors["scene"].items()
    }
    checkpoint.save(target / "checkpoints" / latest.name, {"scene": scene}, state)
    write_json(target / "run.json", {**run.record, "example": True})


@app.default
def main(out: Path, *names: str, runs: Path | None = None) -> None:
    for path in ship(list(names), runs_folder(runs), out):
        print(path)


if __name__ == "__main__":
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"dreamsa: {error}", file=sys.stderr)
        raise SystemExit(1) from None
