"""One arm on one edit with one seed, which can be stopped and resumed at any step."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dreamsa import job
from dreamsa.config import RunConfig, edited, same_prompt
from dreamsa.editing import ascent_steps
from dreamsa.evaluation.judge import Judge
from dreamsa.evaluation.kept import truth_kept
from dreamsa.evaluation.scores import ENOUGH, finished_scene, fit_of, scores_of, succeeded
from dreamsa.evaluation.views import QUARTERS, Views, fixed_views, strip
from dreamsa.files import write_json
from dreamsa.guidance.score_model import GuidanceFailed
from dreamsa.media import contact_sheet, to_uint8, write_png
from dreamsa.pool import Stop
from dreamsa.runs import Run, list_runs
from dreamsa.scene import Scene
from dreamsa.settings import with_overrides
from dreamsa.studies.arms import MODEL_ARM, Arm, arm_of
from dreamsa.studies.controls import method_of
from dreamsa.studies.plans import Recipe, Result, Trial, result_of, trial_folder

SAVE_EVERY = 100
"""Steps between a trial's checkpoints: how many a killed one loses at most."""


def run_trial(trial: Trial, stop: Stop = lambda: False) -> Result | None:
    """Run or resume a trial and judge it; None if stopped before its end.

    Returns the result of a finished trial without running it again. A trial whose guidance failed
    is a miss.
    """
    done = result_of(trial.folder)
    if done is not None:
        return done
    trial.folder.mkdir(parents=True, exist_ok=True)
    run = newest_run(trial.folder)
    try:
        if run is None or run.status != "finished":
            work = _start(trial) if run is None else _resume(trial, run)
            run = work.run
            ascent = ascent_steps(run.config)
            for progress in work:
                step = progress.step
                if step % trial.recipe.evaluate_every == 0 or step in (ascent, progress.steps):
                    path = trial.folder / "steps" / f"{step:08d}.png"
                    save_quarters(progress.scene, run, path)
                if stop() and step < progress.steps:
                    work.stop()
                    return None
        result = _judged(trial, run)
    except GuidanceFailed as error:
        result = {
            **_facts(trial),
            "failed": str(error),
            "success": False,
            "steps_to_success": None,
            "scores": None,
            "displacement": None,
            "curve": [],
        }
    write_json(trial.folder / "result.json", result)
    return result


def trained(work: job.Job, stop: Stop) -> bool:
    """Train a job to its end; False if `stop()` became true before, once it is saved."""
    for progress in work:
        if stop() and progress.step < progress.steps:
            work.stop()
            return False
    return True


def run_chain(chain: Sequence[Trial], stop: Stop = lambda: False) -> list[Result] | None:
    """Run trials in turn, as later ones may copy the first; the new results, None without any."""
    new = []
    for trial in chain:
        if result_of(trial.folder) is None:
            result = run_trial(trial, stop)
            if result is None:
                break
            new.append(result)
    return new or None


def newest_run(folder: Path) -> Run | None:
    """The run of a trial's folder; of several, a finished one or else the newest."""
    found = sorted(list_runs(folder), key=lambda run: run.status == "finished")
    return found[-1] if found else None


def trial_config(
    parent: Run,
    prompt: str,
    arm: Arm,
    recipe: Recipe,
    displacement: dict[str, float] | None = None,
) -> RunConfig:
    """The configuration of an arm's edit.

    Raises:
        ValueError: A setting is unknown or out of range.
    """
    edit = arm.edit(parent.id, recipe.ascent_steps, recipe.scale, displacement)
    overrides = {"save_every": SAVE_EVERY, **recipe.overrides, **arm.overrides}
    return with_overrides(edited(parent.config, prompt, edit, recipe.steps), overrides)


def check_arms(parent: Run, prompt: str, recipe: Recipe, arms: Sequence[str]) -> None:
    """Check the edits of all arms before any of them runs.

    Raises:
        ValueError: The first problem.
    """
    for name in arms:
        job.check(trial_config(parent, prompt, arm_of(name), recipe))


def _start(trial: Trial) -> job.Job:
    arm, parent, displacement = arm_of(trial.arm), Run(trial.parent), None
    if arm.matched:
        model = result_of(trial_folder(trial.folder.parent.parent, MODEL_ARM, trial.seed))
        if model is None or model["displacement"] is None:
            raise GuidanceFailed(f"{MODEL_ARM} failed, so {arm.name} has no displacement to copy.")
        displacement = model["displacement"]
    config = trial_config(parent, trial.prompt, arm, trial.recipe, displacement)
    config = replace(config, seed=trial.seed)
    return job.start(config, parent, trial.folder, method_of(config))


def _resume(trial: Trial, run: Run) -> job.Job:
    return job.resume(run, trial.parent.parent, method_of(run.config))


def save_quarters(scene: Scene, run: Run, path: Path) -> None:
    """Write a scene's views from the four quarters as one PNG, for any judge to score later."""
    path.parent.mkdir(exist_ok=True)
    views = fixed_views(scene, run.config.camera, QUARTERS)
    write_png(contact_sheet(to_uint8(views.rgb), len(QUARTERS), gap=0), path)


def load_quarters(path: Path) -> Float[Tensor, "4 3 h w"]:
    """The views of `save_quarters`, in [0, 1]."""
    with Image.open(path) as file:
        sheet = torch.from_numpy(np.asarray(file.convert("RGB")).astype(np.float32) / 255)
    return torch.stack(sheet.chunk(len(QUARTERS), dim=1)).movedim(-1, 1).contiguous()


@lru_cache(maxsize=2)
def shared_judge(name: str) -> Judge:
    """`Judge.load`, cached."""
    return Judge.load(name)


def _facts(trial: Trial) -> Result:
    return {
        "arm": trial.arm,
        "seed": trial.seed,
        "prompt": trial.prompt,
        "parent_prompt": Run(trial.parent).prompt,
    }


def _judged(trial: Trial, run: Run) -> Result:
    """The result of a finished run. Only `seconds` depends on the machine's speed."""
    judge, parent, camera = shared_judge(trial.recipe.judge), Run(trial.parent), run.config.camera
    old, new = finished_scene(parent), finished_scene(run)
    before, after = (fixed_views(scene, camera, resolution=judge.size) for scene in (old, new))
    write_png(strip(after.rgb), trial.folder / "views.png")
    scores = scores_of(judge, after, run.prompt, (before, parent.prompt))
    repair, rows = same_prompt(run.prompt, parent.prompt), run.metrics()
    success = succeeded(scores, repair)
    start = fixed_views(old, camera, QUARTERS)
    curve = _curve(judge, trial.folder / "steps", start, run.prompt)
    ascent = ascent_steps(run.config)
    return {
        **_facts(trial),
        "success": success,
        "steps_to_success": steps_to_success(curve, ascent) if success and not repair else None,
        "scores": {**asdict(scores), **truth_kept(old, new, camera, parent.prompt, run.prompt)},
        "displacement": _displacement(run, rows),
        "curve": curve,
        "moved": [
            {"step": row["step"] + 1, **row["displacement"]} for row in rows if row["displacement"]
        ],
        "ascended": ascent,
        "seconds": round(statistics.median(row["seconds"] for row in rows) * trial.recipe.steps, 1),
    }


def _displacement(run: Run, rows: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Norm of the displacement by an edit's escape, per parameter group; None for a plain edit.

    The given one of a matched control; else the logged one at the end of the ascent or, without an
    ascent, after the first step.
    """
    edit = run.config.edit
    assert edit is not None
    if edit.control is not None and edit.control.displacement is not None:
        return {**edit.control.displacement}
    if edit.control is None and not edit.eta and not edit.ascent_steps:
        return None
    escape = [row for row in rows if row["phase"] != "descend"] or rows[:1]
    return escape[-1]["displacement"]


def _curve(judge: Judge, folder: Path, start: Views, prompt: str) -> list[dict[str, Any]]:
    """The judge's scores of the four views at each evaluated step; the parent's at step 0."""
    paths = sorted(folder.glob("[0-9]*.png"))
    images = torch.cat([start.rgb, *map(load_quarters, paths)])
    fit = vars(fit_of(judge, images, prompt))
    means = {
        name: value.view(-1, len(QUARTERS)).mean(1)
        for name, value in fit.items()
        if value is not None
    }
    return [
        {"step": step, **{name: round(float(value[i]), 4) for name, value in means.items()}}
        for i, step in enumerate([0, *(int(path.stem) for path in paths)])
    ]


def steps_to_success(curve: Sequence[dict[str, Any]], after: int = 0) -> int | None:
    """The first evaluated step beyond `after` from which on the judge always names object and
    colour correctly in a fraction ENOUGH of the four views."""
    first = None
    for row in curve:
        named = [row[name] for name in ("object_right", "colour_right") if name in row]
        right = min(named or [row["retrieved"]]) >= ENOUGH and row["step"] > after
        first = (row["step"] if first is None else first) if right else None
    return first
