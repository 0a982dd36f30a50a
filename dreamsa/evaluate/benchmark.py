"""`dreamsa benchmark edits`: many edits on the toybox, several seeds, every arm. How often does each arm succeed, what does it keep, how soon?"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from dreamsa import api, checkpoint
from dreamsa.config import preset
from dreamsa.evaluate.compare import Comparison, keep_plan
from dreamsa.evaluate.judge import EMBEDDED, Judge, locate_judge
from dreamsa.evaluate.report import write_benchmark
from dreamsa.evaluate.scores import ENOUGH, Scores, finished_scene, fixed_views, scores_of, strip
from dreamsa.evaluate.tables import paired_tests, plain, summary, told, write_tables
from dreamsa.evaluate.trials import (
    SAVE_EVERY,
    Recipe,
    Stop,
    chosen_arms,
    default_workers,
    each,
    newest_run,
    result_of,
    run_chain,
)
from dreamsa.export.video import write_png
from dreamsa.guidance.prompts import ViewConfig
from dreamsa.runs import slug

KINDS = ("colour", "part or material", "similar object", "different object", "repair")


class Pair(NamedTuple):
    """An edit: what the parent is, and what it should become; the same prompt for a repair."""

    kind: str
    source: str
    prompt: str

    @property
    def faulty(self) -> bool:
        """Whether the parent is made without a word on the view, so that it gets a front on every side (the Janus fault)."""
        return self.source == self.prompt


PAIRS: tuple[Pair, ...] = tuple(
    Pair(kind, source, prompt)
    for kind, edits in {
        # of the whole object; the first four are held out of the training of the embedded model, the first two are the thesis'
        "colour": (
            ("a rabbit", "a purple rabbit"),
            ("a gas can", "an ebony gas can"),
            ("a duck", "a blue duck"),
            ("a mug", "an orange mug"),
            ("a chair", "a green chair"),
            ("a car", "a yellow car"),
        ),
        # the word paints a cap, an icing, a shade or a crown; stalk, dough, stand and trunk keep their colours
        "part or material": (
            ("a mushroom", "a yellow mushroom"),  # held out
            ("a mushroom", "an ebony mushroom"),
            ("a donut", "a blue donut"),
            ("a donut", "an ebony donut"),
            ("a lamp", "a purple lamp"),
            ("a tree", "an orange tree"),
        ),
        "similar object": (
            ("a rabbit", "a duck"),
            ("a mug", "a teapot"),
            ("a chair", "a table"),
            ("a tree", "a cactus"),
            ("a mushroom", "a lamp"),
            ("a gas can", "a cube"),
        ),
        "different object": (
            ("a rabbit", "a car"),
            ("a duck", "a mug"),
            ("a car", "a mushroom"),
            ("a gas can", "a rabbit"),
            ("a chair", "a donut"),
            ("a mug", "a house"),
        ),
        # objects that have a front
        "repair": tuple((name, name) for name in ("a rabbit", "a duck", "a car", "a gas can", "a house", "a teapot")),
    }.items()
    for source, prompt in edits
)
RECIPE = Recipe(steps=300, ascent_steps=60, overrides={"turntable": 0})
PARENT_STEPS = preset("toybox", "").steps


@dataclass(frozen=True)
class ParentTask:
    """An object to be edited, tried with several seeds until the judge accepts it."""

    folder: Path
    prompt: str
    seed: int
    steps: int
    accept: float
    """Share of the views in which the judge must name it right; of a faulty one, and see the wrong side."""
    tries: int
    recipe: Recipe
    faulty: bool = False
    """Made without a word on the view."""

    def accepts(self, scores: Scores) -> bool:
        wrong = 0.0 if scores.view_right is None else 1 - scores.view_right
        return scores.passes(self.accept) and (not self.faulty or wrong >= self.accept)


@dataclass(frozen=True)
class Benchmark:
    """All of a benchmark: which edits, with which seeds, by which arms; everything that comes of it is in `folder`."""

    folder: Path
    pairs: tuple[Pair, ...] = PAIRS
    arms: tuple[str, ...] = chosen_arms("all")
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: Recipe = RECIPE
    parent_steps: int = PARENT_STEPS
    accept: float = ENOUGH
    tries: int = 2

    def parent(self, source: str, seed: int, faulty: bool = False) -> ParentTask:
        folder = self.folder / "parents" / (slug(source) + ("-faulty" if faulty else "")) / f"seed-{seed}"
        recipe = _worded(self.recipe, "{prompt}") if faulty else self.recipe
        return ParentTask(folder, source, seed, self.parent_steps, self.accept, self.tries, recipe, faulty)

    @property
    def parents(self) -> list[ParentTask]:
        """One per source and seed, shared by all pairs with that source; faulty ones for the repairs."""
        sources = dict.fromkeys((pair.source, pair.faulty) for pair in self.pairs)
        return [self.parent(source, seed, faulty) for seed in self.seeds for source, faulty in sources]

    def comparison(self, pair: Pair, seed: int) -> Comparison | None:
        """All arms of a pair with one seed; None where there is no accepted parent (yet)."""
        parent = self.parent(pair.source, seed, pair.faulty)
        wording = self.recipe.overrides.get("views.wording", ViewConfig().wording)
        recipe = _worded(self.recipe, wording) if pair.faulty else self.recipe
        made = result_of(parent.folder)
        if made is None or not made["accepted"]:
            return None
        return Comparison(self._pair_folder(pair), parent.folder / made["run"], pair.prompt, self.arms, (seed,), recipe)

    def trial_folder(self, pair: Pair, arm: str, seed: int) -> Path:
        return self._pair_folder(pair) / arm / f"seed-{seed}"

    def _pair_folder(self, pair: Pair) -> Path:
        return self.folder / "edits" / f"{slug(pair.source)}--{slug(pair.prompt)}"

    @property
    def comparisons(self) -> list[Comparison]:
        """Seed by seed, and the kinds in turn, so that a benchmark that is cut short has whole seeds and something of each kind."""
        of_kind = {kind: [pair for pair in self.pairs if pair.kind == kind] for kind in KINDS}
        order = sorted(self.pairs, key=lambda pair: of_kind[pair.kind].index(pair))
        found = [self.comparison(pair, seed) for seed in self.seeds for pair in order]
        return [comparison for comparison in found if comparison is not None]

    def results_of(self, pairs: Sequence[Pair]) -> dict[str, list[dict[str, Any]]]:
        """Results of the finished trials of some pairs, per arm."""
        found = {arm: [result_of(self.trial_folder(p, arm, s)) for p in pairs for s in self.seeds] for arm in self.arms}
        return {arm: [result for result in results if result is not None] for arm, results in found.items()}

    @property
    def results(self) -> dict[str, list[dict[str, Any]]]:
        return self.results_of(self.pairs)

    @property
    def results_by_kind(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        kinds = dict.fromkeys(pair.kind for pair in self.pairs)
        return {kind: self.results_of([pair for pair in self.pairs if pair.kind == kind]) for kind in kinds}

    @property
    def rejected(self) -> list[str]:
        """Parents that the judge did not accept with any of their seeds."""
        return [
            f"{task.prompt}{', faulty' if task.faulty else ''}, seed {task.seed}"
            for task in self.parents
            if (result_of(task.folder) or {"accepted": True})["accepted"] is False
        ]


def smoke(benchmark: Benchmark) -> Benchmark:
    """The same machinery in seconds: one pair of each kind, one seed, three arms, a handful of steps, every parent accepted. Its numbers mean nothing."""
    small = {"camera.resolution": 32, "render.samples": 32, **benchmark.recipe.overrides}
    recipe = replace(benchmark.recipe, steps=6, ascent_steps=2, look_every=3, overrides=small)
    pairs = tuple(next(pair for pair in PAIRS if pair.kind == kind) for kind in KINDS)
    return replace(benchmark, pairs=pairs, arms=("B", "D", "E"), seeds=(0,), recipe=recipe, parent_steps=6, accept=0.0, tries=1)


def benchmark_edits(benchmark: Benchmark, *, workers: int | None = None, stop: Stop = lambda: False) -> Iterator[str]:
    """Make the parents, then all edits; yields a line per run as it finishes, and last the path of the report.

    Whatever is finished is not run again and what was stopped goes on, so it can be run in pieces. FOLDER/report.html opens from disk;
    results.csv and results.json hold its numbers.

    Args:
        workers: Processes; by default one per core.
        stop: Asked at every step; once true, all is saved, the tables of what has finished are written, and the generator ends.

    Raises:
        ValueError: The judge is missing, or the folder holds another benchmark or cannot be written.
    """
    locate_judge(benchmark.recipe.judge)
    if not benchmark.seeds or not benchmark.pairs:
        raise ValueError("A benchmark needs at least one pair and one seed.")
    api.check(_parent_config(benchmark.parents[0], 0))
    held = {"pairs": benchmark.pairs, "parent_steps": benchmark.parent_steps, "accept": benchmark.accept, "tries": benchmark.tries}
    keep_plan(benchmark.folder / "benchmark.json", {**held, **asdict(benchmark.recipe)})
    return _benchmark(benchmark, workers or default_workers(), stop)


def _benchmark(benchmark: Benchmark, workers: int, stop: Stop) -> Iterator[str]:
    parents, edits = len(benchmark.parents), len(benchmark.pairs) * len(benchmark.seeds) * len(benchmark.arms)
    steps = parents * benchmark.parent_steps + edits * benchmark.recipe.steps
    yield f"{parents} parents and {edits} edits, {steps:,} steps in all; what has finished before is not run again"
    due = [task for task in benchmark.parents if result_of(task.folder) is None]
    for i, result in enumerate(each(make_parent, due, workers, stop), 1):
        said = "accepted" if result["accepted"] else "not accepted"
        seen = f"object right in {100 * result['object_right']:.0f} % of views"
        yield f"parent {i}/{len(due)}: {result['prompt']}, seed {result['seed']}: {said}, {seen}{', made to be faulty' if result['faulty'] else ''}"
    chains = [chain for comparison in benchmark.comparisons for chain in comparison.due]
    waiting, number = sum(result_of(trial.folder) is None for chain in chains for trial in chain), 0
    for finished in each(run_chain, chains, workers, stop):
        for result in finished:
            number += 1
            yield f"edit {number}/{waiting}: {told(result)}"
    results = benchmark.results
    if any(results.values()):
        kinds = {kind: summary(own) for kind, own in benchmark.results_by_kind.items()}
        tests = {name: {**test._asdict(), "over pairs": plain(gap)} for name, (test, gap) in paired_tests(results).items()}
        write_tables(
            benchmark.folder, [r for own in results.values() for r in own], {"all": summary(results), **kinds, "paired tests": tests}
        )
        yield str(write_benchmark(benchmark))


def _worded(recipe: Recipe, wording: str) -> Recipe:
    return replace(recipe, overrides={**recipe.overrides, "views.wording": wording})


def _parent_config(task: ParentTask, attempt: int) -> Any:
    changes = {"seed": task.seed + 1000 * attempt, "steps": task.steps, "save_every": SAVE_EVERY, **task.recipe.overrides}
    return api.with_overrides(preset("toybox", task.prompt), changes)


def make_parent(task: ParentTask, stop: Stop = lambda: False) -> dict[str, Any] | None:
    """Generate a parent until the judge accepts one, or the tries are over; the result, or None if it was told to stop before."""
    made = result_of(task.folder)
    if made is not None:
        return made
    judge = Judge.load(task.recipe.judge)
    for attempt in range(task.tries):
        folder = task.folder / f"try-{attempt}"
        run = newest_run(folder)
        if run is None or run.status != "finished":
            job = api.generate(config=_parent_config(task, attempt), runs=folder) if run is None else api.resume(run)
            run = job.run
            for progress in job:
                if stop() and progress.step < progress.steps:
                    job.stop()
                    return None
        views = fixed_views(finished_scene(run), run.config.camera, resolution=judge.size)
        write_png(strip(views.rgb), folder / "views.png")
        scores = scores_of(judge, views, run.prompt)
        made = {
            "prompt": task.prompt,
            "seed": task.seed,
            "run": f"{folder.name}/{run.id}",
            "faulty": task.faulty,
            "accepted": task.accepts(scores),
            "object_right": scores.object_right,
            "scores": asdict(scores),
        }
        if made["accepted"]:
            break
    assert made is not None
    checkpoint.write_json(task.folder / "result.json", made)
    return made


def new_benchmark(
    out: Path | str,
    arms: str = "all",
    seeds: int = 3,
    judge: str | None = None,
    overrides: dict[str, Any] | None = None,
    quick: bool = False,
) -> Benchmark:
    """A benchmark from what a command line says; `quick` is the smoke form.

    Raises:
        ValueError: An unknown arm, or no seeds.
    """
    if not 1 <= seeds <= 1000:
        raise ValueError(f"seeds must lie in [1, 1000], got {seeds}.")
    recipe = replace(RECIPE, judge=judge or EMBEDDED, overrides={**RECIPE.overrides, **(overrides or {})})
    whole = Benchmark(Path(out), arms=chosen_arms(arms), seeds=tuple(range(seeds)), recipe=recipe)
    return smoke(whole) if quick else whole
