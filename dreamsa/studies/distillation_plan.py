"""What the benchmark of distillation consists of, and where its results are."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dreamsa.config import RunConfig
from dreamsa.evaluation.judge import EMBEDDED
from dreamsa.presets import preset
from dreamsa.runs import slug
from dreamsa.settings import with_overrides
from dreamsa.studies.methods import METHODS, method_of
from dreamsa.studies.plans import Result, finished, keep_plan, result_of
from dreamsa.studies.subjects import COLOURED, NATURAL, Subject
from dreamsa.studies.trials import SAVE_EVERY

STEPS = preset("toybox", "").steps


@dataclass(frozen=True)
class DistillationRecipe:
    """Settings that all methods share."""

    steps: int = STEPS
    """Of a method whose `steps` is 1."""
    judge: str = EMBEDDED
    overrides: dict[str, Any] = field(default_factory=dict)
    """Other settings; those of a method come after them."""


@dataclass(frozen=True)
class DistillationTrial:
    """One method on one object with one seed."""

    folder: Path
    """Holds the run, views.png and result.json."""
    method: str
    subject: Subject
    seed: int
    recipe: DistillationRecipe

    @property
    def config(self) -> RunConfig:
        """The configuration of its run.

        Raises:
            ValueError: A setting is unknown or out of range.
        """
        method = method_of(self.method)
        changes = {
            "save_every": SAVE_EVERY,
            "turntable": 0,
            "steps": max(round(self.recipe.steps * method.steps), 1),
            **self.recipe.overrides,
            **method.overrides,
            "seed": self.seed,
        }
        return with_overrides(preset("toybox", self.subject.prompt), changes)

    @property
    def facts(self) -> Result:
        """The entries of a result that identify it."""
        return {
            "method": self.method,
            "prompt": self.subject.prompt,
            "object": self.subject.name,
            "colour": self.subject.colour,
            "held_out": self.subject.held_out,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class DistillationBenchmark:
    """Methods, objects and seeds of a benchmark; all its files are in `folder`."""

    folder: Path
    methods: tuple[str, ...] = tuple(METHODS)
    subjects: tuple[Subject, ...] = (*NATURAL, *COLOURED)
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: DistillationRecipe = DistillationRecipe()

    def method_folder(self, method: str) -> Path:
        return self.folder / "trials" / method

    def trial(self, method: str, subject: Subject, seed: int) -> DistillationTrial:
        folder = self.method_folder(method) / slug(subject.prompt) / f"seed-{seed}"
        return DistillationTrial(folder, method, subject, seed, self.recipe)

    @property
    def trials(self) -> list[DistillationTrial]:
        """Seed by seed and object by object, all methods in turn, so that an interrupted benchmark
        can be compared."""
        return [
            self.trial(method, subject, seed)
            for seed in self.seeds
            for subject in self.subjects
            for method in self.methods
        ]

    @property
    def due(self) -> list[DistillationTrial]:
        """Unfinished trials."""
        return [trial for trial in self.trials if result_of(trial.folder) is None]

    @property
    def results(self) -> dict[str, list[Result]]:
        """Results of the finished trials per method."""
        return {
            method: finished(trial.folder for trial in self.trials if trial.method == method)
            for method in self.methods
        }

    def keep(self) -> None:
        """Write the plan, or check that the folder has the same one: steps, judge and settings, and
        those of each method.

        Raises:
            ValueError: The folder holds another benchmark, or other methods of the same names, or
                is not writable.
        """
        keep_plan(self.folder / "benchmark.json", vars(self.recipe))
        for method in self.methods:
            row = method_of(method)
            plan = {"overrides": row.overrides, "steps": row.steps}
            keep_plan(self.method_folder(method) / "method.json", plan)


def smoke(benchmark: DistillationBenchmark) -> DistillationBenchmark:
    """A smoke test in seconds: the first two methods, the first and the last object, one seed, few
    steps. Its numbers mean nothing."""
    small = {"camera.resolution": 32, "render.samples": 32, **benchmark.recipe.overrides}
    return replace(
        benchmark,
        methods=benchmark.methods[:2],
        subjects=tuple(dict.fromkeys((benchmark.subjects[0], benchmark.subjects[-1]))),
        seeds=(0,),
        recipe=replace(benchmark.recipe, steps=6, overrides=small),
    )
