"""Ten objects, generated and judged: python -m dreamsa.evaluate.quality OUT. And the two edits of the thesis, side by side.

Writes OUT/quality.json, OUT/quality.md and one picture per run. Objects that are done are not run again.
"""

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamsa import api
from dreamsa.config import Escape, preset
from dreamsa.evaluate.geometry import AZIMUTHS, ELEVATION_DEG, geometry_of
from dreamsa.evaluate.judge import Judge
from dreamsa.export.video import contact_sheet, write_png
from dreamsa.render.cameras import orbit
from dreamsa.runs import Run, slug
from dreamsa.toybox.captions import article
from dreamsa.toybox.shapes import COLOURS, TOYS

OBJECTS = ("rabbit", "gas can", "duck", "car", "chair", "mug", "house", "mushroom", "snowman", "donut")
EDITS = (("rabbit", "purple"), ("gas can", "ebony"))


def _seen(run: Run) -> torch.Tensor:
    """The run's scene from 8 azimuths, [8, 3, 64, 64]."""
    camera = run.config.camera
    cameras = orbit(list(AZIMUTHS), ELEVATION_DEG, **api.viewing_camera(camera))
    return api.load_scene(run, "cpu").look(cameras, 64).rgb


def measure(run: Run, name: str, colour: str | None, judge: Judge, seconds: float) -> dict[str, Any]:
    """What the judge says of 8 views, and how close the shape is to the true object's."""
    verdict = judge(_seen(run))
    objects = verdict.objects.argmax(1) == list(TOYS).index(name)
    facts: dict[str, Any] = {
        "run": run.id,
        "object right, of 8": int(objects.sum()),
        "object probability": round(float(verdict.objects[:, list(TOYS).index(name)].mean()), 3),
        "minutes": round(seconds / 60, 2),
        "steps": run.record["steps"],
    }
    if colour:
        facts["colour right, of 8"] = int((verdict.colours.argmax(1) == list(COLOURS).index(colour)).sum())
        facts["colour probability"] = round(float(verdict.colours[:, list(COLOURS).index(colour)].mean()), 3)
    shape = geometry_of(api.load_scene(run, "cpu"), run.config.camera, name)
    facts["silhouette IoU, median"] = round(statistics.median(shape.iou), 3)
    facts["silhouette IoU, least"] = round(min(shape.iou), 3)
    errors = [e for e in shape.depth_error if np.isfinite(e)]
    facts["depth error, median"] = round(statistics.median(errors), 3) if errors else None
    return facts


def quality(out: Path, seed: int = 0, objects: tuple[str, ...] = OBJECTS, edits: bool = True) -> Iterator[str]:
    """Generate, edit, measure; yields a line per finished run."""
    out.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = json.loads((out / "quality.json").read_text()) if (out / "quality.json").exists() else {}
    judge, folder = Judge.load(), out / "runs"

    def keep(key: str, run: Run, name: str, colour: str | None, seconds: float) -> str:
        done[key] = measure(run, name, colour, judge, seconds)
        camera = run.config.camera
        views = api.pictures(api.load_scene(run, "cpu"), camera, 8, 96)
        write_png(contact_sheet(views, 8), out / f"{slug(key)}.png")
        (out / "quality.json").write_text(json.dumps(done, indent=2) + "\n")
        (out / "quality.md").write_text(table(done))
        return f"{key}: {done[key]}"

    for name in objects:
        if name not in done:
            config = api.with_overrides(preset("toybox", f"{article(name)} {name}"), {"seed": seed})
            started = time.monotonic()
            run = api.generate(config=config, runs=folder).wait()
            yield keep(name, run, name, None, time.monotonic() - started)
    for name, colour in EDITS if edits else ():
        ways: tuple[Escape, ...] = ("plain", "anneal")
        for escape in ways:
            key = f"{colour} {name}, {escape}"
            if key not in done and name in done:
                started = time.monotonic()
                run = api.edit(done[name]["run"], f"{article(colour)} {colour} {name}", escape=escape, runs=folder).wait()
                yield keep(key, run, name, colour, time.monotonic() - started)


def table(done: dict[str, Any]) -> str:
    """All results as Markdown, with pictures."""
    columns = (
        "object right, of 8",
        "colour right, of 8",
        "silhouette IoU, median",
        "silhouette IoU, least",
        "depth error, median",
        "minutes",
    )
    lines = ["| | " + " | ".join(columns) + " | eight azimuths |", "|---" * (len(columns) + 2) + "|"]
    for key, facts in done.items():
        cells = " | ".join(str(facts.get(column, "")) for column in columns)
        lines.append(f"| {key} | {cells} | ![{key}]({slug(key)}.png) |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from cyclopts import run as run_command

    def main(out: Path, *, seed: int = 0, objects: str = ",".join(OBJECTS), edits: bool = True) -> None:
        """Generate ten objects, edit two of them, and let the judge and the true shapes measure them."""
        for line in quality(out, seed, tuple(objects.split(",")), edits):
            print(line, flush=True)

    run_command(main)
