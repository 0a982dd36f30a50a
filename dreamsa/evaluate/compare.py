"""`dreamsa compare`: several ways to edit one object, at equal UNet calls from the same parent with the same seeds. Does ascent beat its controls?"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamsa import api, checkpoint
from dreamsa.config import EditConfig, edited
from dreamsa.evaluate.judge import EMBEDDED, locate_judge
from dreamsa.evaluate.report import write_comparison
from dreamsa.evaluate.tables import summary, told, write_tables
from dreamsa.evaluate.trials import (
    MODEL_ARM,
    Recipe,
    Stop,
    Trial,
    arm_of,
    chosen_arms,
    default_workers,
    each,
    edit_of,
    result_of,
    run_chain,
)
from dreamsa.guidance.prompts import check_prompt, same_prompt
from dreamsa.runs import Run, RunError, find_run, runs_folder, slug

PLAN = "comparison.json"


@dataclass(frozen=True)
class Comparison:
    """One edit of one parent, to be made by several arms with several seeds; everything of it is in `folder`."""

    folder: Path
    parent: Path
    prompt: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: Recipe

    def trial(self, arm: str, seed: int) -> Trial:
        return Trial(self.folder / arm / f"seed-{seed}", self.parent, self.prompt, arm, seed, self.recipe)

    @property
    def due(self) -> list[tuple[Trial, ...]]:
        """What is not finished, in chains that can run side by side: trials that are matched to another one follow it."""
        matched = [arm for arm in self.arms if arm_of(arm).matched]
        chains = [(MODEL_ARM, *matched)] if matched else []
        chains += [(arm,) for arm in self.arms if not any(arm in chain for chain in chains)]
        trials = [tuple(self.trial(arm, seed) for arm in chain) for seed in self.seeds for chain in chains]
        return [chain for chain in trials if any(result_of(trial.folder) is None for trial in chain)]

    @property
    def results(self) -> dict[str, list[dict[str, Any]]]:
        """Results of the finished trials per arm, in the order of the seeds."""
        found = {arm: [result_of(self.trial(arm, seed).folder) for seed in self.seeds] for arm in self.arms}
        return {arm: [result for result in results if result is not None] for arm, results in found.items()}


def compare(
    run: Run | str | Path,
    prompt: str,
    *,
    arms: str | Sequence[str] = "all",
    seeds: int = 3,
    steps: int | None = None,
    ascent_steps: int | None = None,
    scale: float = 0.01,
    judge: str | None = None,
    out: Path | str | None = None,
    workers: int | None = None,
    look_every: int = 50,
    overrides: dict[str, Any] | None = None,
    runs: Path | str | None = None,
    stop: Stop = lambda: False,
) -> Iterator[str]:
    """Edit a run in several ways and compare what comes of it; yields a line per trial as it finishes, and last the path of the report.

    Finished trials are not run again and stopped ones go on, so the same call after a stop is the same comparison. OUT/report.html opens from
    disk; OUT/results.csv and OUT/results.json hold the same numbers. Nothing in them but a line on time depends on the machine's speed.

    With the parent's own prompt and `overrides` it is a repair, of which success asks that the judge sees the right side of the object, too.

    Args:
        arms: Names as `trials.arm_of` has them, or "all".
        seeds: How many; 0, 1, ...
        steps, ascent_steps: Of every arm, as `api.edit` has them.
        out: Folder of the comparison; by default RUNS/comparisons/PARENT-PROMPT.
        workers: Processes; by default one per core. Another number may round sums otherwise.
        stop: Asked at every step; once true, all is saved and the generator ends.

    Raises:
        ValueError: Anything that is wrong with the arguments, in one sentence, before anything is run.
    """
    home = runs_folder(runs)
    parent, prompt = find_run(run, home), check_prompt(prompt)
    if parent.status != "finished":
        raise RunError(f"Run {parent.id} is {parent.status}, not finished. Finish it first: dreamsa resume {parent.id}")
    if same_prompt(prompt, parent.prompt) and not overrides:
        raise ValueError(
            f"The new prompt is the parent's own, {parent.prompt!r}: there is nothing to edit. Name what it should become, or --set what should differ."
        )
    letters, name = chosen_arms(arms), judge or EMBEDDED
    _check_counts(seeds=seeds, look_every=look_every, workers=workers or 1)
    locate_judge(name)
    steps, ascent_steps = api.edit_length(parent.config, steps, ascent_steps)
    recipe = Recipe(steps, ascent_steps, scale, name, look_every, overrides or {})
    check_recipe(parent, prompt, recipe, letters)
    folder = Path(out) if out else home / "comparisons" / f"{parent.id}-{slug(prompt)}"
    comparison = Comparison(folder, parent.path.resolve(), prompt, letters, tuple(range(seeds)), recipe)
    keep_plan(folder / PLAN, {"parent": parent.id, "parent_prompt": parent.prompt, "prompt": prompt, **asdict(recipe)})
    return _compare(comparison, workers or default_workers(), stop)


def _compare(comparison: Comparison, workers: int, stop: Stop) -> Iterator[str]:
    for results in each(run_chain, comparison.due, workers, stop):
        yield from map(told, results)
    if any(comparison.results.values()):
        write_tables(comparison.folder, [r for results in comparison.results.values() for r in results], summary(comparison.results))
        yield str(write_comparison(comparison))


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not 1 <= count <= 100_000:
            raise ValueError(f"{name} must lie in [1, 100000], got {count}.")


def check_recipe(parent: Run, prompt: str, recipe: Recipe, arms: Sequence[str]) -> None:
    """Refuse what no edit could be made with.

    Raises:
        ValueError: The first thing that is wrong.
    """
    for name in arms:
        arm = arm_of(name)
        how = EditConfig(parent.id, arm.escape, moments=arm.moments, **edit_of(arm, recipe))  # pyright: ignore[reportArgumentType]
        api.check(api.with_overrides(edited(parent.config, prompt, how, recipe.steps), {**recipe.overrides, **arm.overrides}))


def keep_plan(path: Path, plan: dict[str, Any]) -> None:
    """Write down what a folder is for, or make sure that it is for this. Arms and seeds are no part of it: more may be added.

    Raises:
        ValueError: The folder holds something else, or cannot be written.
    """
    wanted = json.loads(json.dumps(plan))
    if path.exists():
        try:
            held = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read: {error}. Choose another folder.") from error
        other = sorted(name for name in wanted.keys() | held.keys() if wanted.get(name) != held.get(name))
        if other:
            name = other[0]
            raise ValueError(
                f"{path.parent} holds another {path.stem}: its {name} is {held.get(name)!r}, not {wanted.get(name)!r}. Choose another folder."
            )
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(path, wanted)
    except OSError as error:
        raise ValueError(f"{path.parent} cannot be written: {error.strerror or error}. Choose another folder.") from error
