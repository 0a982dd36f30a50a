"""`dreamsa compare`: one edit by several arms, from the same parent with the same seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreamsa.choices import ASCENT_SCALE
from dreamsa.config import same_prompt
from dreamsa.evaluation.judge import EMBEDDED, absolute_judge
from dreamsa.guidance.prompts import check_prompt
from dreamsa.pool import Stop, default_workers, each
from dreamsa.presets import edit_length
from dreamsa.runs import Run, find_run, runs_folder, slug
from dreamsa.studies.arms import chosen_arms
from dreamsa.studies.plans import Comparison, Recipe, keep_plan
from dreamsa.studies.report import write_comparison
from dreamsa.studies.tables import summary, trial_line, write_tables
from dreamsa.studies.trials import check_arms, run_chain

PLAN = "comparison.json"


def compare(
    run: Run | str | Path,
    prompt: str,
    *,
    arms: str | Sequence[str] = "all",
    seeds: int = 3,
    steps: int | None = None,
    ascent_steps: int | None = None,
    scale: float = ASCENT_SCALE,
    judge: str | None = None,
    out: Path | str | None = None,
    workers: int | None = None,
    evaluate_every: int = 50,
    overrides: dict[str, Any] | None = None,
    runs: Path | str | None = None,
    stop: Stop = lambda: False,
) -> Iterator[str]:
    """Edit a run with several arms and compare the results.

    Yields a line per trial as it finishes, and last the path of the report. The same call resumes a
    stopped comparison; finished trials do not run again. OUT/report.html opens without a network;
    OUT/results.csv and OUT/results.json hold the same numbers. Apart from times, the results do not
    depend on the machine's speed.

    With the parent's own prompt and `overrides` the edit is a repair, whose success also requires
    that the judge sees the correct sides of the object.

    Args:
        arms: Names as `arms.arm_of` takes them, or "all".
        seeds: How many: 0, 1, ...
        steps, ascent_steps: Of every arm; by default as `dreamsa.edit` has them.
        out: Folder of the comparison; by default RUNS/comparisons/PARENT-PROMPT.
        workers: Processes; by default one per core. Their number may change the rounding of sums.
        evaluate_every: Steps between the judge's evaluations.
        stop: Called at every step; once true, the comparison saves and ends.

    Raises:
        ValueError: A mistake in the arguments, before anything runs.
    """
    home = runs_folder(runs)
    parent, prompt = find_run(run, home), check_prompt(prompt)
    parent.require_finished()
    if same_prompt(prompt, parent.prompt) and not overrides:
        raise ValueError(
            f"The new prompt is the parent's own, {parent.prompt!r}, so there is nothing to edit. "
            "Give another prompt, or change a setting with --set."
        )
    names = chosen_arms(arms)
    _check_counts(seeds=seeds, evaluate_every=evaluate_every, workers=workers or 1)
    judge = absolute_judge(judge or EMBEDDED)
    steps, ascent_steps = edit_length(parent.config, steps, ascent_steps)
    recipe = Recipe(steps, ascent_steps, scale, judge, evaluate_every, overrides or {})
    check_arms(parent, prompt, recipe, names)
    folder = Path(out) if out else home / "comparisons" / f"{parent.id}-{slug(prompt)}"
    path = parent.path.resolve()
    comparison = Comparison(folder, path, prompt, names, tuple(range(seeds)), recipe)
    about = {"parent": parent.id, "parent_prompt": parent.prompt, "prompt": prompt}
    keep_plan(folder / PLAN, {**about, **asdict(recipe)})
    return _compare(comparison, workers or default_workers(), stop)


def _compare(comparison: Comparison, workers: int, stop: Stop) -> Iterator[str]:
    for results in each(run_chain, comparison.due, workers, stop):
        yield from map(trial_line, results)
    results = comparison.results
    if any(results.values()):
        trials = [result for own in results.values() for result in own]
        write_tables(comparison.folder, trials, summary(results))
        yield str(write_comparison(comparison))


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not 1 <= count <= 100_000:
            raise ValueError(f"{name} must lie in [1, 100000], got {count}.")
