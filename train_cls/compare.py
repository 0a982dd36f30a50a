"""Compare methods at equal cost, from a shared first generation per seed: does a method beat the
best control?"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dreamsa import checkpoint
from dreamsa.files import write_atomic, write_json
from dreamsa.settings import from_tree, to_tree, with_overrides
from dreamsa.statistics import bootstrap_mean
from train_cls.config import TrainConfig, with_absolute_data
from train_cls.data import Splits, load_splits
from train_cls.methods import METHODS
from train_cls.run import continue_run, is_finished, new_run, rows

FROM_SCRATCH = frozenset({
    "normal", "long", "sgdr", "swa", "sam", "sa-gd", "langevin", "kinetic", "landscape",
    "tolerant-teacher",
})  # fmt: skip
"""Methods whose first generation differs from the plain one that the others share."""
CONTROLS = (
    "long", "restarts", "reset-only", "seal-zero", "random-direction", "llf", "shrink-perturb",
    "swa", "sam",
)  # fmt: skip
"""Baselines of SEAL: its own ingredients without ascent, and other methods of equal cost."""
ARMS = ("normal", "seal", "seal-reverse", *CONTROLS)


class Difference(NamedTuple):
    """Paired over seeds, in the units of the score."""

    mean: float
    low: float  # of the 95 % interval
    high: float
    wins: int
    seeds: int


def paired_difference(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Difference:
    """Mean of a - b with a 95 % bootstrap interval, which is NaN for a single seed."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean, low, high, count = bootstrap_mean(differences, seed)
    return Difference(mean, low, high, sum(d > 0 for d in differences), count)


def compare(
    config: TrainConfig,
    folder: Path,
    arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = range(3),
    changes: dict[str, dict[str, Any]] | None = None,
    load: Callable[[TrainConfig], Splits] = lambda config: load_splits(config.data, config.splits),
) -> Iterator[str]:
    """Train every arm with every seed; yields a line per finished run. Resumable: skips finished
    runs.

    Args:
        arms: Methods. "METHOD@NAME" trains a method again with other settings.
        changes: Settings of single arms, such as a tuned learning rate, by arm and dotted name.

    Raises:
        ValueError: Unknown arm, no seeds, or a folder that holds another comparison.
    """
    changes = changes or {}
    for arm in arms:
        if arm.partition("@")[0] not in METHODS:
            raise ValueError(
                f"There is no method {arm.partition('@')[0]!r}; the methods are "
                f"{', '.join(METHODS)}."
            )
    if not seeds:
        raise ValueError("A comparison needs at least one seed.")
    config = with_absolute_data(config)
    plan = {"config": to_tree(config), "changes": changes}
    saved = folder / "comparison.json"
    folder.mkdir(parents=True, exist_ok=True)
    if saved.exists() and not _same_plan(
        json.loads(saved.read_text()), json.loads(json.dumps(plan))
    ):
        raise ValueError(f"{folder} holds a comparison with other settings. Choose another folder.")
    write_json(saved, plan)
    for seed in seeds:
        base = replace(
            config, seed=seed, method="restarts", splits=replace(config.splits, seed=seed)
        )
        splits = load(base)
        shared: Path | None = None
        for arm in arms:
            method = arm.partition("@")[0]
            own = with_overrides(replace(base, method=method), changes.get(arm, {}))
            branches = method not in FROM_SCRATCH and all(
                map(_after_generation_1, changes.get(arm, {}))
            )
            if branches and shared is None:
                shared = _first_generation(base, folder / "generation-1" / f"seed-{seed}", splits)
            branch = shared if branches else None
            run = folder / arm / f"seed-{seed}"
            if not (run / "config.json").exists():
                new_run(run, own)
            if not is_finished(run):
                for _ in continue_run(run, splits, branch):
                    pass
            yield f"{arm}, seed {seed}: " + ", ".join(
                f"{k} {v:.4f}" for k, v in last_scores(run).items() if k.startswith("test")
            )


def _same_plan(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Settings missing in an older version's file have their defaults."""
    first, second = (
        with_absolute_data(from_tree(TrainConfig, plan["config"])) for plan in (one, other)
    )
    return one["changes"] == other["changes"] and first == second


def _after_generation_1(setting: str) -> bool:
    """Whether a setting has no effect before generation 2: those of the methods, except the
    threshold between layers."""
    return setting.startswith("anneal.") and setting != "anneal.before"


def _first_generation(config: TrainConfig, folder: Path, splits: Splits) -> Path:
    """The checkpoint after one plain generation, trained unless it exists.

    Raises:
        ValueError: It is damaged.
    """
    if not (folder / "config.json").exists():
        new_run(folder, replace(config, generations=1))
    if not is_finished(folder):
        for _ in continue_run(folder, splits):
            pass
    newest = checkpoint.latest(folder / "generations")
    if newest is None:
        raise ValueError(
            f"{folder} has no complete checkpoint of its generation. Remove the folder to train "
            "it again."
        )
    return newest


def scores_of(row: dict[str, Any]) -> dict[str, float]:
    """The scores in a row of metrics: of the averaged weights if the method averages, else of the
    last ones."""
    scores = {
        name: value for name, value in row.items() if name.startswith(("test ", "validation "))
    }
    averaged = {
        name.replace("average ", ""): value for name, value in scores.items() if " average " in name
    }
    return {
        **{name: value for name, value in scores.items() if " average " not in name},
        **averaged,
    }


def last_scores(run: Path) -> dict[str, float]:
    """Scores at the end of a run."""
    return scores_of(
        [row for row in rows(run) if any(name.startswith("test ") for name in row)][-1]
    )


def history(folder: Path, arm: str, seed: int | str) -> list[dict[str, Any]]:
    """The metrics of one run of a comparison, preceded by those of its shared first generation."""
    own = rows(folder / arm / f"seed-{seed}")
    first = rows(folder / "generation-1" / f"seed-{seed}") if own and own[0]["epoch"] > 1 else []
    return first + own


def table(
    folder: Path, arms: Sequence[str], seeds: Sequence[int], score: str = "test accuracy"
) -> dict[str, dict[str, float]]:
    """found[arm][seed]: the score of every finished run that has it."""
    found: dict[str, dict[str, float]] = {}
    for arm in arms:
        for seed in seeds:
            run = folder / arm / f"seed-{seed}"
            if is_finished(run) and any(score in row for row in rows(run)):
                found.setdefault(arm, {})[str(seed)] = last_scores(run)[score]
    return found


def verdict(
    scores: dict[str, dict[str, float]], arm: str = "seal", controls: Sequence[str] = CONTROLS
) -> dict[str, Any]:
    """Does `arm` beat the best control? With the paired difference to every arm, over their common
    seeds.

    The best control is chosen on the same scores, which deliberately favours it.
    """
    if arm not in scores:
        return {"arm": arm, "claim": f"{arm} was not run"}
    available = [c for c in controls if c in scores]
    differences = {
        other: _difference(scores[arm], scores[other])._asdict() for other in scores if other != arm
    }
    if not available:
        return {"arm": arm, "claim": "no control was run", "differences": differences}
    best = min(available, key=lambda c: differences[c]["mean"])
    d = _difference(scores[arm], scores[best])
    significant = d.low > 0 or d.high < 0
    outcome = (
        "beats"
        if significant and d.mean > 0
        else "loses to"
        if significant
        else "does not differ significantly from"
    )
    interval = (
        f" [{100 * d.low:+.2f}, {100 * d.high:+.2f}], {d.seeds} seeds"
        if d.seeds > 1
        else ", one seed"
    )
    claim = f"{arm} {outcome} the best control, {best}: {100 * d.mean:+.2f} points{interval}"
    return {"arm": arm, "best control": best, "claim": claim, "differences": differences}


def _difference(a: dict[str, float], b: dict[str, float]) -> Difference:
    common = sorted(a.keys() & b.keys())
    return paired_difference([a[s] for s in common], [b[s] for s in common])


def write_csv(scores: dict[str, dict[str, float]], path: Path, score: str) -> None:
    """Write one row per arm and seed."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["arm", "seed", score])
    table.writerows([arm, *item] for arm, by_seed in scores.items() for item in by_seed.items())
    write_atomic(path, text.getvalue().encode())


def generations(run: Path) -> list[dict[str, torch.Tensor]]:
    """Weights at the end of every generation of a run, in order."""
    return [
        checkpoint.load(path).tensors["model"]
        for path in sorted((run / "generations").glob(checkpoint.NAME))
    ]
