"""`dreamsa benchmark distillation`: methods x objects x seeds, against the true objects."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreamsa import api, job
from dreamsa.evaluation.fidelity import fidelity_of
from dreamsa.evaluation.judge import EMBEDDED, absolute_judge
from dreamsa.evaluation.scores import finished_scene, scores_of
from dreamsa.evaluation.views import fixed_views, strip
from dreamsa.files import write_json
from dreamsa.guidance.score_model import GuidanceFailed
from dreamsa.media import write_png
from dreamsa.pool import Stop, default_workers, each
from dreamsa.runs import Run
from dreamsa.studies.distillation_plan import (
    STEPS,
    DistillationBenchmark,
    DistillationRecipe,
    DistillationTrial,
    smoke,
)
from dreamsa.studies.distillation_report import write_report
from dreamsa.studies.distillation_tables import one_line, write_results
from dreamsa.studies.methods import chosen_methods
from dreamsa.studies.plans import Result, result_of
from dreamsa.studies.subjects import chosen_colours, chosen_objects
from dreamsa.studies.trials import newest_run, shared_judge, trained


def new_benchmark(
    out: Path | str,
    methods: str = "all",
    objects: str | None = None,
    colours: str | None = None,
    seeds: int = 3,
    steps: int | None = None,
    judge: str | None = None,
    overrides: dict[str, Any] | None = None,
    quick: bool = False,
) -> DistillationBenchmark:
    """A benchmark from the options of the command; `quick` is its smoke test.

    Raises:
        ValueError: An unknown method, object, colour or judge, nothing to generate, or a number is
            out of range.
    """
    for name, value in (("seeds", seeds), ("steps", STEPS if steps is None else steps)):
        if not 1 <= value <= 100_000:
            raise ValueError(f"{name} must lie in [1, 100000], got {value}.")
    subjects = (*chosen_objects(objects), *chosen_colours(colours))
    if not subjects:
        raise ValueError("There is nothing to generate: name some objects or colours.")
    recipe = DistillationRecipe(
        STEPS if steps is None else steps, absolute_judge(judge or EMBEDDED), overrides or {}
    )
    full = DistillationBenchmark(
        Path(out), chosen_methods(methods), subjects, tuple(range(seeds)), recipe
    )
    return smoke(full) if quick else full


def benchmark_distillation(
    benchmark: DistillationBenchmark, *, workers: int | None = None, stop: Stop = lambda: False
) -> Iterator[str]:
    """Generate every object by every method with every seed, and measure them.

    Yields a line per trial as it finishes, and last the path of the report. The same call resumes a
    stopped benchmark; methods, objects and seeds can be added to a finished one.
    FOLDER/report.html opens without a network; results.csv, results.json and table.md hold its
    numbers.

    Args:
        workers: Processes; by default one per core.
        stop: Called at every step; once true, the benchmark saves, writes the tables of the
            finished trials and ends.

    Raises:
        ValueError: The folder holds another benchmark or is not writable, or a setting is wrong.
    """
    for trial in benchmark.trials[: len(benchmark.methods) * len(benchmark.subjects)]:
        job.check(trial.config)
    benchmark.keep()
    return _benchmark(benchmark, workers or default_workers(), stop)


def _benchmark(benchmark: DistillationBenchmark, workers: int, stop: Stop) -> Iterator[str]:
    due = benchmark.due
    steps = sum(trial.config.steps for trial in due)
    yield f"{len(benchmark.trials)} trials; {len(due)} of them, {steps:,} steps, are to be done"
    for i, result in enumerate(each(run_trial, due, workers, stop), 1):
        yield f"trial {i}/{len(due)}: {one_line(result)}"
    if any(benchmark.results.values()):
        write_results(benchmark)
        yield str(write_report(benchmark))


def run_trial(trial: DistillationTrial, stop: Stop = lambda: False) -> Result | None:
    """Run or resume a trial and measure it; None if stopped before its end.

    Returns the result of a finished trial without running it again. A trial whose guidance failed
    is a miss without measures.
    """
    done = result_of(trial.folder)
    if done is not None:
        return done
    trial.folder.mkdir(parents=True, exist_ok=True)
    run = newest_run(trial.folder)
    try:
        if run is None or run.status != "finished":
            new = run is None
            work = api.generate(config=trial.config, runs=trial.folder) if new else api.resume(run)
            run = work.run
            if not trained(work, stop):
                return None
        result = _measured(trial, run)
    except GuidanceFailed as error:
        result = {
            **trial.facts,
            "success": False,
            "failed": str(error),
            "scores": None,
            "fidelity": None,
        }
    write_json(trial.folder / "result.json", result)
    return result


def _measured(trial: DistillationTrial, run: Run) -> Result:
    """The result of a finished run. Only `seconds` depends on the machine's speed."""
    judge, scene, camera = shared_judge(trial.recipe.judge), finished_scene(run), run.config.camera
    views = fixed_views(scene, camera, resolution=judge.size)
    write_png(strip(views.rgb), trial.folder / "views.png")
    scores = scores_of(judge, views, run.prompt)
    fidelity = fidelity_of(scene, camera, trial.subject.name, trial.subject.colour)
    return {
        **trial.facts,
        "success": scores.passes(),
        "failed": None,
        "steps": run.config.steps,
        **_costs(run),
        "scores": asdict(scores),
        "fidelity": fidelity._asdict(),
    }


def _costs(run: Run) -> dict[str, float | None]:
    """Noise predictions of a finished run over all views, and its seconds from the median step."""
    rows, config = run.metrics(), run.config
    calls = [row["unet_calls"] for row in rows if row.get("unet_calls") is not None]
    views = config.steps * config.camera.batch
    return {
        "unet_calls": round(statistics.mean(calls) * views) if calls else None,
        "seconds": round(statistics.median(row["seconds"] for row in rows) * config.steps, 1),
    }
