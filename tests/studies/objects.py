"""Ten objects, generated and judged, and the two edits of the thesis.

Command: PYTHONPATH=tests python -m studies.objects OUT. Writes OUT/quality.json, OUT/quality.md and
an image per run. Finished objects do not run again.
"""

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dreamsa import api
from dreamsa.choices import EscapeName
from dreamsa.evaluation.geometry import geometry_of
from dreamsa.evaluation.judge import Judge
from dreamsa.evaluation.views import fixed_views
from dreamsa.files import write_atomic, write_json
from dreamsa.media import contact_sheet, write_png
from dreamsa.outputs import load_scene, orbit_images
from dreamsa.presets import preset
from dreamsa.runs import Run, slug
from dreamsa.settings import with_overrides
from dreamsa.toybox.captions import article
from dreamsa.toybox.shapes import COLOURS, TOYS

OBJECTS = (
    "rabbit",
    "gas can",
    "duck",
    "car",
    "chair",
    "mug",
    "house",
    "mushroom",
    "snowman",
    "donut",
)
EDITS = (("rabbit", "purple"), ("gas can", "ebony"))
ESCAPES: tuple[EscapeName, ...] = ("plain", "anneal")


def measure(
    run: Run, name: str, colour: str | None, judge: Judge, seconds: float
) -> dict[str, Any]:
    """The judge's verdict on 8 views, and the shape against the true object's."""
    scene, camera = load_scene(run, "cpu"), run.config.camera
    verdict = judge(fixed_views(scene, camera).rgb)
    index = list(TOYS).index(name)
    facts: dict[str, Any] = {
        "run": run.id,
        "object right, of 8": int((verdict.objects.argmax(1) == index).sum()),
        "object probability": round(float(verdict.objects[:, index].mean()), 3),
        "minutes": round(seconds / 60, 2),
        "steps": run.record["steps"],
    }
    if colour:
        index = list(COLOURS).index(colour)
        facts["colour right, of 8"] = int((verdict.colours.argmax(1) == index).sum())
        facts["colour probability"] = round(float(verdict.colours[:, index].mean()), 3)
    shape = geometry_of(scene, camera, name)
    errors = [error for error in shape.depth_error if np.isfinite(error)]
    return {
        **facts,
        "silhouette IoU, median": round(statistics.median(shape.iou), 3),
        "silhouette IoU, min": round(min(shape.iou), 3),
        "depth error, median": round(statistics.median(errors), 3) if errors else None,
    }


def measure_objects(
    out: Path, seed: int = 0, objects: tuple[str, ...] = OBJECTS, edits: bool = True
) -> Iterator[str]:
    """Generate, edit and measure; yields a line per finished run."""
    out.mkdir(parents=True, exist_ok=True)
    record = out / "quality.json"
    done: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    judge, folder = Judge.load(), out / "runs"

    def keep(key: str, job: api.Job, name: str, colour: str | None = None) -> str:
        started = time.monotonic()
        run = job.wait()
        done[key] = measure(run, name, colour, judge, time.monotonic() - started)
        images = orbit_images(load_scene(run, "cpu"), run.config.camera, 8, 96)
        write_png(contact_sheet(images, 8), out / f"{slug(key)}.png")
        write_json(record, done)
        write_atomic(out / "quality.md", table(done).encode())
        return f"{key}: {done[key]}"

    for name in objects:
        if name not in done:
            config = with_overrides(preset("toybox", f"{article(name)} {name}"), {"seed": seed})
            yield keep(name, api.generate(config=config, runs=folder), name)
    for name, colour in EDITS if edits else ():
        for escape in ESCAPES:
            key = f"{colour} {name}, {escape}"
            if key not in done and name in done:
                prompt = f"{article(colour)} {colour} {name}"
                job = api.edit(done[name]["run"], prompt, escape=escape, runs=folder)
                yield keep(key, job, name, colour)


def table(done: dict[str, Any]) -> str:
    """All results as Markdown, with images."""
    columns = (
        "object right, of 8",
        "colour right, of 8",
        "silhouette IoU, median",
        "silhouette IoU, min",
        "depth error, median",
        "minutes",
    )
    lines = [
        "| | " + " | ".join(columns) + " | eight azimuths |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for key, facts in done.items():
        cells = " | ".join(str(facts.get(column, "")) for column in columns)
        lines.append(f"| {key} | {cells} | ![{key}]({slug(key)}.png) |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from cyclopts import run as run_command

    def main(
        out: Path, *, seed: int = 0, objects: str = ",".join(OBJECTS), edits: bool = True
    ) -> None:
        """Generate ten objects, edit two of them, and measure them."""
        for line in measure_objects(out, seed, tuple(objects.split(",")), edits):
            print(line, flush=True)

    run_command(main)
