"""`dreamsa benchmark edits`: many edits on the toybox by every arm, with several seeds."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dreamsa import api, job
from dreamsa.config import RunConfig
from dreamsa.evaluation.judge import EMBEDDED, Judge, absolute_judge
from dreamsa.evaluation.scores import finished_scene, scores_of
from dreamsa.evaluation.views import fixed_views, strip
from dreamsa.files import write_json
from dreamsa.media import write_png
from dreamsa.pool import Stop, default_workers, each
from dreamsa.presets import preset
from dreamsa.settings import with_overrides
from dreamsa.studies.arms import chosen_arms
from dreamsa.studies.plans import (
    KINDS,
    PAIRS,
    RECIPE,
    EditBenchmark,
    ParentTask,
    Result,
    keep_plan,
    result_of,
)
from dreamsa.studies.report import write_benchmark
from dreamsa.studies.tables import paired_tests, summary, to_json, trial_line, write_tables
from dreamsa.studies.trials import SAVE_EVERY, newest_run, run_chain, trained


def new_benchmark(
    out: Path | str,
    arms: str = "all",
    seeds: int = 3,
    judge: str | None = None,
    overrides: dict[str, Any] | None = None,
    quick: bool = False,
) -> EditBenchmark:
    """A benchmark from the options of the command; `quick` is its smoke test.

    Raises:
        ValueError: An unknown arm or judge, or `seeds` is out of range.
    """
    if not 1 <= seeds <= 1000:
        raise ValueError(f"seeds must lie in [1, 1000], got {seeds}.")
    recipe = replace(
        RECIPE,
        judge=absolute_judge(judge or EMBEDDED),
        overrides={**RECIPE.overrides, **(overrides or {})},
    )
    numbers = tuple(range(seeds))
    full = EditBenchmark(Path(out), arms=chosen_arms(arms), seeds=numbers, recipe=recipe)
    return smoke(full) if quick else full


def smoke(benchmark: EditBenchmark) -> EditBenchmark:
    """A smoke test in seconds: a pair of each kind, one seed, three arms, few steps, every parent
    accepted. Its numbers mean nothing."""
    small = {"camera.resolution": 32, "render.samples": 32, **benchmark.recipe.overrides}
    return replace(
        benchmark,
        pairs=tuple(next(pair for pair in PAIRS if pair.kind == kind) for kind in KINDS),
        arms=("plain", "ascent", "noise-matched"),
        seeds=(0,),
        recipe=replace(
            benchmark.recipe, steps=6, ascent_steps=2, evaluate_every=3, overrides=small
        ),
        parent_steps=6,
        accept=0.0,
        attempts=1,
    )


def benchmark_edits(
    benchmark: EditBenchmark, *, workers: int | None = None, stop: Stop = lambda: False
) -> Iterator[str]:
    """Generate the parents, then run all edits.

    Yields a line per run as it finishes, and last the path of the report. The same call resumes a
    stopped benchmark. FOLDER/report.html opens without a network; results.csv and results.json hold
    its numbers.

    Args:
        workers: Processes; by default one per core.
        stop: Called at every step; once true, the benchmark saves, writes the tables of the
            finished trials and ends.

    Raises:
        ValueError: The folder holds another benchmark or is not writable, or a setting is wrong.
    """
    if not benchmark.seeds or not benchmark.pairs:
        raise ValueError("A benchmark needs at least one pair and one seed.")
    job.check(_parent_config(benchmark.parents[0], 0))
    plan = {
        "pairs": benchmark.pairs,
        "parent_steps": benchmark.parent_steps,
        "accept": benchmark.accept,
        "attempts": benchmark.attempts,
        **asdict(benchmark.recipe),
    }
    keep_plan(benchmark.folder / "benchmark.json", plan)
    return _benchmark(benchmark, workers or default_workers(), stop)


def _benchmark(benchmark: EditBenchmark, workers: int, stop: Stop) -> Iterator[str]:
    parents = len(benchmark.parents)
    edits = len(benchmark.pairs) * len(benchmark.seeds) * len(benchmark.arms)
    steps = parents * benchmark.parent_steps + edits * benchmark.recipe.steps
    yield f"{parents} parents and {edits} edits, {steps:,} steps, without those already finished"
    due = [task for task in benchmark.parents if result_of(task.folder) is None]
    for i, result in enumerate(each(make_parent, due, workers, stop), 1):
        yield f"parent {i}/{len(due)}: {_parent_line(result)}"
    chains = [chain for comparison in benchmark.comparisons for chain in comparison.due]
    waiting = sum(result_of(trial.folder) is None for chain in chains for trial in chain)
    number = 0
    for results in each(run_chain, chains, workers, stop):
        for result in results:
            number += 1
            yield f"edit {number}/{waiting}: {trial_line(result)}"
    results = benchmark.results
    if any(results.values()):
        summaries = {kind: summary(own) for kind, own in benchmark.results_by_kind.items()}
        tests = {
            name: {**test._asdict(), "over pairs": to_json(gap)}
            for name, (test, gap) in paired_tests(results).items()
        }
        trials = [result for own in results.values() for result in own]
        tables = {"all": summary(results), **summaries, "paired tests": tests}
        write_tables(benchmark.folder, trials, tables)
        yield str(write_benchmark(benchmark))


def _parent_line(result: Result) -> str:
    accepted = "accepted" if result["accepted"] else "not accepted"
    faulty = ", made to be faulty" if result["faulty"] else ""
    return (
        f"{result['prompt']}, seed {result['seed']}: {accepted}, "
        f"object correct in {100 * result['object_right']:.0f} % of the views{faulty}"
    )


def _parent_config(task: ParentTask, attempt: int) -> RunConfig:
    seed = task.seed + 1000 * attempt
    changes = {"seed": seed, "steps": task.steps, "save_every": SAVE_EVERY, **task.recipe.overrides}
    return with_overrides(preset("toybox", task.prompt), changes)


def make_parent(task: ParentTask, stop: Stop = lambda: False) -> Result | None:
    """Generate parents until the judge accepts one or no attempt is left; None if stopped."""
    result = result_of(task.folder)
    if result is not None:
        return result
    judge = Judge.load(task.recipe.judge)
    for attempt in range(task.attempts):
        folder = task.folder / f"try-{attempt}"
        run = newest_run(folder)
        if run is None or run.status != "finished":
            config = _parent_config(task, attempt)
            work = api.generate(config=config, runs=folder) if run is None else api.resume(run)
            run = work.run
            if not trained(work, stop):
                return None
        views = fixed_views(finished_scene(run), run.config.camera, resolution=judge.size)
        write_png(strip(views.rgb), folder / "views.png")
        scores = scores_of(judge, views, run.prompt)
        result = {
            "prompt": task.prompt,
            "seed": task.seed,
            "run": f"{folder.name}/{run.id}",
            "faulty": task.faulty,
            "accepted": task.accepts(scores),
            "object_right": scores.object_right,
            "scores": asdict(scores),
        }
        if result["accepted"]:
            break
    assert result is not None
    write_json(task.folder / "result.json", result)
    return result
