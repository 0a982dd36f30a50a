"""What a comparison and a benchmark consist of, and where their results are."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from dreamsa.choices import ASCENT_SCALE
from dreamsa.evaluation.judge import EMBEDDED
from dreamsa.evaluation.scores import ENOUGH, Scores
from dreamsa.files import write_json
from dreamsa.presets import preset
from dreamsa.runs import slug
from dreamsa.studies.arms import ARMS, MODEL_ARM, arm_of

Result = dict[str, Any]
"""The content of a result.json."""
SCHEMA = 2
"""Version of plans. In the first, arms were letters."""
KINDS = ("colour", "part or material", "similar object", "different object", "repair")
"""Kinds of edits in a benchmark."""


@dataclass(frozen=True)
class Recipe:
    """Settings that all arms share."""

    steps: int
    ascent_steps: int
    scale: float = ASCENT_SCALE
    judge: str = EMBEDDED
    evaluate_every: int = 50
    """Steps between the judge's evaluations."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Other settings, as `with_overrides` takes them."""


@dataclass(frozen=True)
class Trial:
    """One arm on one edit with one seed."""

    folder: Path
    """Holds the run, the views during it and result.json."""
    parent: Path
    prompt: str
    arm: str
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class Comparison:
    """One edit of one parent by several arms with several seeds; all its files are in `folder`."""

    folder: Path
    parent: Path
    prompt: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: Recipe

    def trial(self, arm: str, seed: int) -> Trial:
        folder = trial_folder(self.folder, arm, seed)
        return Trial(folder, self.parent, self.prompt, arm, seed, self.recipe)

    @property
    def due(self) -> list[tuple[Trial, ...]]:
        """Unfinished trials in chains that can run in parallel; matched ones follow MODEL_ARM's."""
        matched = [arm for arm in self.arms if arm_of(arm).matched]
        chains = [(MODEL_ARM, *matched)] if matched else []
        chains += [(arm,) for arm in self.arms if not any(arm in chain for chain in chains)]
        trials = [
            tuple(self.trial(arm, seed) for arm in chain) for seed in self.seeds for chain in chains
        ]
        return [chain for chain in trials if any(result_of(t.folder) is None for t in chain)]

    @property
    def results(self) -> dict[str, list[Result]]:
        """Results of the finished trials per arm, in the order of the seeds."""
        return {
            arm: finished(trial_folder(self.folder, arm, seed) for seed in self.seeds)
            for arm in self.arms
        }


class Pair(NamedTuple):
    """An edit of a benchmark: the parent's prompt and the new one; the same one for a repair."""

    kind: str
    source: str
    prompt: str

    @property
    def faulty(self) -> bool:
        """Whether the parent is generated without view-dependent text, so that it has a front on
        every side (the Janus problem)."""
        return self.source == self.prompt


PAIRS: tuple[Pair, ...] = tuple(
    Pair(kind, source, prompt)
    for kind, edits in {
        # the first four are held out of the embedded model's training; the thesis has the first two
        "colour": (
            ("a rabbit", "a purple rabbit"),
            ("a gas can", "an ebony gas can"),
            ("a duck", "a blue duck"),
            ("a mug", "an orange mug"),
            ("a chair", "a green chair"),
            ("a car", "a yellow car"),
        ),
        # the colour is that of the cap, icing, shade or crown; other parts keep their own
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
        "repair": tuple(
            (name, name)
            for name in ("a rabbit", "a duck", "a car", "a gas can", "a house", "a teapot")
        ),
    }.items()
    for source, prompt in edits
)
RECIPE = Recipe(steps=300, ascent_steps=60, overrides={"turntable": 0})
PARENT_STEPS = preset("toybox", "").steps


@dataclass(frozen=True)
class ParentTask:
    """An object to generate, with other seeds until the judge accepts it."""

    folder: Path
    prompt: str
    seed: int
    steps: int
    accept: float
    """Fraction of the views in which the judge must name it correctly; if faulty, also the fraction
    in which it must see a wrong side."""
    attempts: int
    recipe: Recipe
    faulty: bool = False
    """Generated without view-dependent text."""

    def accepts(self, scores: Scores) -> bool:
        wrong = 0.0 if scores.view_right is None else 1 - scores.view_right
        return scores.passes(self.accept) and (not self.faulty or wrong >= self.accept)


@dataclass(frozen=True)
class EditBenchmark:
    """Edits, seeds and arms of a benchmark; all its files are in `folder`."""

    folder: Path
    pairs: tuple[Pair, ...] = PAIRS
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: Recipe = RECIPE
    parent_steps: int = PARENT_STEPS
    accept: float = ENOUGH
    attempts: int = 2

    def parent(self, source: str, seed: int, faulty: bool = False) -> ParentTask:
        name = slug(source) + ("-faulty" if faulty else "")
        return ParentTask(
            self.folder / "parents" / name / f"seed-{seed}",
            source,
            seed,
            self.parent_steps,
            self.accept,
            self.attempts,
            _with_wording(self.recipe, "{prompt}") if faulty else self.recipe,
            faulty,
        )

    @property
    def parents(self) -> list[ParentTask]:
        """One per source and seed, shared by all its pairs; faulty ones for repairs."""
        sources = dict.fromkeys((pair.source, pair.faulty) for pair in self.pairs)
        return [self.parent(name, seed, faulty) for seed in self.seeds for name, faulty in sources]

    def comparison(self, pair: Pair, seed: int) -> Comparison | None:
        """All arms of a pair with one seed; None without an accepted parent."""
        parent = self.parent(pair.source, seed, pair.faulty)
        generated = result_of(parent.folder)
        if generated is None or not generated["accepted"]:
            return None
        wording = self.recipe.overrides.get("views.wording", preset("toybox", "").views.wording)
        recipe = _with_wording(self.recipe, wording) if pair.faulty else self.recipe
        path = parent.folder / generated["run"]
        return Comparison(self._pair_folder(pair), path, pair.prompt, self.arms, (seed,), recipe)

    def trial_folder(self, pair: Pair, arm: str, seed: int) -> Path:
        return trial_folder(self._pair_folder(pair), arm, seed)

    def _pair_folder(self, pair: Pair) -> Path:
        return self.folder / "edits" / f"{slug(pair.source)}--{slug(pair.prompt)}"

    @property
    def comparisons(self) -> list[Comparison]:
        """Seed by seed, the kinds in turn, so that an interrupted benchmark has complete seeds and
        pairs of each kind."""
        of_kind = {kind: [pair for pair in self.pairs if pair.kind == kind] for kind in KINDS}
        order = sorted(self.pairs, key=lambda pair: of_kind[pair.kind].index(pair))
        found = [self.comparison(pair, seed) for seed in self.seeds for pair in order]
        return [comparison for comparison in found if comparison is not None]

    def results_of(self, pairs: Sequence[Pair]) -> dict[str, list[Result]]:
        """Results of the finished trials of some pairs, per arm."""
        return {
            arm: finished(self.trial_folder(p, arm, seed) for p in pairs for seed in self.seeds)
            for arm in self.arms
        }

    @property
    def results(self) -> dict[str, list[Result]]:
        return self.results_of(self.pairs)

    @property
    def results_by_kind(self) -> dict[str, dict[str, list[Result]]]:
        kinds = dict.fromkeys(pair.kind for pair in self.pairs)
        return {
            kind: self.results_of([pair for pair in self.pairs if pair.kind == kind])
            for kind in kinds
        }

    @property
    def rejected(self) -> list[str]:
        """Parents that the judge accepted with none of their seeds."""
        return [
            f"{task.prompt}{', faulty' if task.faulty else ''}, seed {task.seed}"
            for task in self.parents
            if (result_of(task.folder) or {"accepted": True})["accepted"] is False
        ]


def trial_folder(folder: Path, arm: str, seed: int) -> Path:
    return folder / arm / f"seed-{seed}"


def result_of(folder: Path) -> Result | None:
    """The result.json of a finished trial or parent; None before."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.is_file() else None


def finished(folders: Iterable[Path]) -> list[Result]:
    """The results that there are."""
    return [result for result in map(result_of, folders) if result is not None]


def keep_plan(path: Path, plan: dict[str, Any]) -> None:
    """Write the plan of a folder, or check that the folder has the same one.

    Arms and seeds are not part of a plan: more may be added.

    Raises:
        ValueError: The folder has another plan or one of an earlier version, or is not writable.
    """
    wanted = json.loads(json.dumps({"schema": SCHEMA, **plan}))
    if path.exists():
        _check_plan(path, wanted)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"{path.parent} is not writable: {reason}. Choose another folder."
        ) from error


def _check_plan(path: Path, wanted: dict[str, Any]) -> None:
    try:
        held = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Choose another folder.") from error
    if held.get("schema") != SCHEMA:
        raise ValueError(
            f"{path.parent} holds a {path.stem} of another version of dreamsa, whose arms have "
            "other names. Choose another folder."
        )
    for name in sorted(wanted.keys() | held.keys()):
        if wanted.get(name) != held.get(name):
            raise ValueError(
                f"{path.parent} holds another {path.stem}: its {name} is {held.get(name)!r}, "
                f"not {wanted.get(name)!r}. Choose another folder."
            )


def _with_wording(recipe: Recipe, wording: str) -> Recipe:
    return replace(recipe, overrides={**recipe.overrides, "views.wording": wording})
