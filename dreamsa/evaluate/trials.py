"""One arm on one edit with one seed, run so that it can be stopped and gone on with at any moment; and many of them, side by side."""

import json
import multiprocessing
import os
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreamsa import api, checkpoint
from dreamsa.config import Escape, parse_setting
from dreamsa.evaluate.judge import Judge
from dreamsa.evaluate.scores import ENOUGH, Views, finished_scene, fit_of, fixed_views, scores_of, strip, succeeded
from dreamsa.export.video import contact_sheet, write_png
from dreamsa.guidance.prompts import same_prompt
from dreamsa.guidance.score_model import GuidanceFailed
from dreamsa.runs import Run, list_runs
from dreamsa.scene import Scene
from dreamsa.toybox.renderer import to_uint8

QUARTERS = (0.0, 90.0, 180.0, 270.0)
"""Azimuths that are looked at while an edit runs."""
SAVE_EVERY = 100
"""Steps of a trial between checkpoints: what a killed one loses at most."""
Stop = Callable[[], bool]
"""Whether to save and leave."""


@dataclass(frozen=True)
class Arm:
    """One way to edit. All arms of a comparison start from the same parent with the same seeds and ask the UNet equally often, but for auto, which asks
    64 times more to decide."""

    letter: str
    title: str
    escape: Escape
    moments: str = "reset"
    matched: bool = False
    """Moves each parameter group as far as arm D's ascent has moved it, with the same seed."""
    how: dict[str, Any] = field(default_factory=dict)
    """What this arm alone changes of HOW."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """And of the configuration, as `api.with_overrides` takes it."""


ARMS: dict[str, Arm] = {
    arm.letter: arm
    for arm in (
        Arm("A", "plain resume, moments kept", "plain", "keep"),
        Arm("B", "plain resume, moments reset", "plain"),
        Arm("C", "from scratch on the new prompt", "fresh"),
        Arm("D", "ascent, then descent", "anneal"),
        Arm("E", "random displacement, as far as D", "noise", matched=True),
        Arm("F", "interpolation to a random scene, as far as D (Perturb-and-Revise)", "interpolate", matched=True),
        Arm("G", "ascent of the regularisers only", "regularizers"),
        Arm("H", "interpolation to a random scene by the share eta (Perturb-and-Revise)", "interpolate"),
        Arm("I", "auto: B, and H if the scene is not on its way after a sixth of the steps", "auto"),
    )
}
MODEL_ARM = "D"
"""The arm whose displacement the matched ones copy."""
HOW = ("ascent_steps", "scale", "eta")
"""Arguments of `api.edit` that a variant of an arm may set; anything else it sets is a setting of the configuration."""


@lru_cache
def arm_of(name: str) -> Arm:
    """An arm by name: a letter of ARMS, or a variant of one, "D@scale=1@ascent_steps=20" or "B@sds.guidance_scale=50". A variant of E or F moves
    as far as its own settings say.

    Raises:
        ValueError: An unknown letter, or a setting that is none.
    """
    letter, *settings = name.split("@")
    if letter not in ARMS:
        there = ", ".join(f"{arm.letter} ({arm.title})" for arm in ARMS.values())
        raise ValueError(f"There is no arm {letter!r}. There are: {there}; or all. A variant is LETTER@setting=value, e.g. D@scale=1.")
    if not settings:
        return ARMS[letter]
    values = dict(map(parse_setting, settings))
    unknown = [key for key in values if key not in HOW and "." not in key]
    if unknown:
        raise ValueError(f"Arm {name!r} sets {unknown[0]!r}; a variant sets {', '.join(HOW)}, or a configuration's name.name.")
    how = {key: value for key, value in values.items() if key in HOW}
    said = ", ".join(f"{key} = {value}" for key, value in values.items())
    base = replace(ARMS[letter], letter=name, how=how, overrides={k: v for k, v in values.items() if k not in HOW})
    if base.matched and how:
        return replace(base, matched=False, title=f"{base.title.replace(', as far as D', '')}, {said}")
    return replace(base, title=f"{base.title}, {said}")


@dataclass(frozen=True)
class Recipe:
    """What all arms of a comparison share."""

    steps: int
    ascent_steps: int
    scale: float = 0.01
    judge: str = "toybox"
    look_every: int = 50
    """Steps between two looks of the judge."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Other settings, as `api.with_overrides` takes them."""


@dataclass(frozen=True)
class Trial:
    folder: Path
    """Holds the run, the pictures of its steps and result.json."""
    parent: Path
    prompt: str
    arm: str
    seed: int
    recipe: Recipe


def edit_of(arm: Arm, recipe: Recipe) -> dict[str, Any]:
    """How an arm escapes, as `api.edit` takes it."""
    return {"ascent_steps": recipe.ascent_steps, "scale": recipe.scale, **arm.how}


def chosen_arms(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names of arms from "all", "A,D,D@scale=1" or a list of them, in the order of ARMS; variants of one letter as they were given.

    Raises:
        ValueError: An unknown arm, none, or a matched one without the arm that it copies.
    """
    asked = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    asked = [name[:1].upper() + name[1:] for name in asked]
    if [name.upper() for name in asked] == ["ALL"]:
        return tuple(ARMS)
    matched = [name for name in asked or [""] if arm_of(name).matched]
    if matched and MODEL_ARM not in asked:
        raise ValueError(f"Arm {matched[0]} moves as far as arm {MODEL_ARM} does: add {MODEL_ARM}.")
    return tuple(name for letter in ARMS for name in dict.fromkeys(asked) if name[0] == letter)


def run_trial(trial: Trial, stop: Stop = lambda: False) -> dict[str, Any] | None:
    """Run a trial to its end, or go on with it, and let the judge look; the result, or None if it was told to stop before.

    A finished trial's result is read, not made again. A trial whose guidance broke down counts as a failure.
    """
    done = result_of(trial.folder)
    if done is not None:
        return done
    trial.folder.mkdir(parents=True, exist_ok=True)
    run = newest_run(trial.folder)
    try:
        if run is None or run.status != "finished":
            job = _start(trial) if run is None else api.resume(run, runs=trial.parent.parent)
            run = job.run
            ascended = _ascent(run)
            for progress in job:
                if progress.step % trial.recipe.look_every == 0 or progress.step in (ascended, progress.steps):
                    look(progress.scene, run, trial.folder / "steps" / f"{progress.step:08d}.png")
                if stop() and progress.step < progress.steps:
                    job.stop()
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
    checkpoint.write_json(trial.folder / "result.json", result)
    return result


def run_chain(chain: Sequence[Trial], stop: Stop = lambda: False) -> list[dict[str, Any]] | None:
    """Run trials one after the other, of which the later may copy the first; results of those that were not finished before, or None."""
    fresh = []
    for trial in chain:
        if result_of(trial.folder) is None:
            result = run_trial(trial, stop)
            if result is None:
                break
            fresh.append(result)
    return fresh or None


def result_of(folder: Path) -> dict[str, Any] | None:
    """The result of a finished trial."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.is_file() else None


def newest_run(folder: Path) -> Run | None:
    """The run of a trial's folder; where a kill has left several, a finished one or else the newest."""
    found = sorted(list_runs(folder), key=lambda run: run.status == "finished")
    return found[-1] if found else None


def _start(trial: Trial) -> api.Job:
    arm, recipe = arm_of(trial.arm), trial.recipe
    model = result_of(trial.folder.parent.parent / MODEL_ARM / trial.folder.name) if arm.matched else None
    if arm.matched and (model is None or model["displacement"] is None):
        raise GuidanceFailed(f"Arm {MODEL_ARM} came to no end, so that there is no displacement for {arm.letter} to copy.")
    return api.edit(
        Run(trial.parent), trial.prompt, escape=arm.escape, moments=arm.moments, steps=recipe.steps, **edit_of(arm, recipe),
        displacement=model["displacement"] if model else None, seed=trial.seed,
        overrides={"save_every": SAVE_EVERY, **recipe.overrides, **arm.overrides}, runs=trial.folder,
    )  # fmt: skip


def look(scene: Scene, run: Run, path: Path) -> None:
    """Keep what a scene looks like from the four quarters: one PNG, so that any judge can be asked later."""
    path.parent.mkdir(exist_ok=True)
    write_png(contact_sheet(to_uint8(fixed_views(scene, run.config.camera, QUARTERS).rgb), len(QUARTERS), gap=0), path)


def looked(path: Path) -> Tensor:
    """The four pictures that `look` kept, [4, 3, h, w] in [0, 1]."""
    with Image.open(path) as file:
        sheet = torch.from_numpy(np.asarray(file.convert("RGB")).astype(np.float32) / 255)
    return torch.stack(sheet.chunk(len(QUARTERS), dim=1)).movedim(-1, 1).contiguous()


@lru_cache(maxsize=2)
def _judge(name: str) -> Judge:
    return Judge.load(name)


def _facts(trial: Trial) -> dict[str, Any]:
    return {"arm": trial.arm, "seed": trial.seed, "prompt": trial.prompt, "parent_prompt": Run(trial.parent).prompt}


def _judged(trial: Trial, run: Run) -> dict[str, Any]:
    """What came of a finished run. Nothing in it depends on the machine's speed but `seconds`."""
    judge, parent, camera = _judge(trial.recipe.judge), Run(trial.parent), run.config.camera
    old, new = finished_scene(parent), finished_scene(run)
    before, after = (fixed_views(scene, camera, resolution=judge.size) for scene in (old, new))
    write_png(strip(after.rgb), trial.folder / "views.png")
    scores = scores_of(judge, after, run.prompt, (before, parent.prompt))
    repair, rows = same_prompt(run.prompt, parent.prompt), run.metrics()
    success = succeeded(scores, repair)
    curve = _curve(judge, trial.folder / "steps", fixed_views(old, camera, QUARTERS), run.prompt)
    moved = [{"step": row["step"] + 1, **row["displacement"]} for row in rows if row["displacement"]]
    escaped = [row for row in rows if row["phase"] != "descend"] or rows[:1]
    ascended = _ascent(run) if escaped[-1]["phase"] != "descend" else 0
    return {
        **_facts(trial),
        "success": success,
        "steps_to_success": steps_to_success(curve, ascended) if success and not repair else None,
        "scores": asdict(scores),
        "displacement": _displaced(run, escaped[-1]),
        "curve": curve,
        "moved": moved,
        "ascended": ascended,
        "seconds": round(statistics.median(row["seconds"] for row in rows) * trial.recipe.steps, 1),
    }


def _ascent(run: Run) -> int:
    return run.config.edit.ascent_steps if run.config.edit else 0


def _displaced(run: Run, escaped: dict[str, Any]) -> dict[str, float] | None:
    """How far a run's escape has moved each group, from the metrics at its end; None for a plain edit, which has none, and for auto, which may have."""
    edit = run.config.edit
    assert edit is not None
    return None if edit.escape in ("plain", "auto") else edit.displacement or escaped["displacement"]


def _curve(judge: Judge, folder: Path, start: Views, prompt: str) -> list[dict[str, Any]]:
    """What the judge says of the four pictures of each step that was looked at; of the parent's, at step 0."""
    paths = sorted(folder.glob("[0-9]*.png"))
    pictures = torch.cat([start.rgb, *(looked(path) for path in paths)])
    fit = fit_of(judge, pictures, prompt)
    per_step = {name: value.view(-1, len(QUARTERS)).mean(1) for name, value in vars(fit).items() if value is not None}
    return [
        {"step": step, **{name: round(float(value[i]), 4) for name, value in per_step.items()}}
        for i, step in enumerate([0, *(int(path.stem) for path in paths)])
    ]


def steps_to_success(curve: Sequence[dict[str, Any]], after: int = 0) -> int | None:
    """The first step looked at, past `after`, from which on the judge names object and colour right in ENOUGH of the four pictures each time."""
    first = None
    for row in curve:
        asked = [row[name] for name in ("object_right", "colour_right") if name in row] or [row["retrieved"]]
        right = min(asked) >= ENOUGH and row["step"] > after
        first = (row["step"] if first is None else first) if right else None
    return first


Task = TypeVar("Task")
Result = TypeVar("Result")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """One per core, at most 8; one alone where there is a GPU."""
    return 1 if torch.cuda.is_available() else min(cores(), 8)


def each(work: Callable[[Task, Stop], Result | None], tasks: Sequence[Task], workers: int, stop: Stop) -> Iterator[Result]:
    """`work(task, stop)` for every task, results as they come, None left out; in `workers` processes that share the cores out, or here for one.

    Once `stop()` is true, running tasks are told, and no other is begun. An error in one stops the others likewise, then is raised.
    """
    if workers == 1 or not tasks or stop():
        for task in tasks:
            if stop():
                return
            result = work(task, stop)
            if result is not None:
                yield result
        return
    context = multiprocessing.get_context("spawn")
    told = context.Event()
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _begin_worker, (told, max(1, cores() // workers))) as pool:
        waiting = {pool.submit(_in_worker, work, task) for task in tasks}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                if stop() and not told.is_set():
                    told.set()
                for future in done:
                    result = future.result()
                    if result is not None:
                        yield result
        finally:
            told.set()


_told: Any = None


def _begin_worker(told: Any, threads: int) -> None:
    """Ctrl-C reaches every process of a terminal; here the parent process tells when to stop."""
    global _told
    _told = told
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore[reportAttributeAccessIssue]


def _in_worker(work: Callable[[Any, Stop], Any], task: Any) -> Any:
    return None if _told.is_set() else work(task, _told.is_set)
