"""Compare methods at equal cost, from a shared first generation per seed: does a method beat the
best control?"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dreamsa import checkpoint
from dreamsa.files import write_atomic, write_json
from dreamsa.settings import to_tree, with_overrides
from dreamsa.statistics import PairedDifference, detectable_difference, holm, paired_difference
from train_cls import methods
from train_cls.config import TrainConfig, from_saved, with_absolute_data
from train_cls.data import Splits, load_splits
from train_cls.methods import METHODS, is_from_scratch, methods_of
from train_cls.run import continue_run, is_finished, new_run, rows

CONTROLS = tuple(name for name, method in METHODS.items() if method.control)
ARMS = ("normal", "seal", "seal-reverse", *CONTROLS)
DIVERGED = "diverged.json"


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
        methods_of(arm.partition("@")[0])
    if not seeds:
        raise ValueError("A comparison needs at least one seed.")
    if unknown := [arm for arm in changes if arm not in arms]:
        raise ValueError(f"There is no arm {unknown[0]!r} to tune; the arms are {', '.join(arms)}.")
    config = with_absolute_data(config)
    own = {
        arm: with_overrides(replace(config, method=arm.partition("@")[0]), changes.get(arm, {}))
        for arm in arms
    }
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
            branches = not is_from_scratch(own[arm].method) and all(
                map(_after_generation_1, changes.get(arm, {}))
            )
            if branches and shared is None:
                shared = _first_generation(base, folder / "generation-1" / f"seed-{seed}", splits)
            run = folder / arm / f"seed-{seed}"
            if not (run / "config.json").exists():
                new_run(run, replace(own[arm], seed=seed, splits=base.splits))
            yield f"{arm}, seed {seed}: {_finish(run, splits, shared if branches else None)}"


def _finish(run: Path, splits: Splits, branch: Path | None) -> str:
    """Train a run to its end unless it has finished or diverged; what came of it, in words."""
    if diverged(run) is None and not is_finished(run):
        try:
            for _ in continue_run(run, splits, branch):
                pass
        except FloatingPointError as error:  # a result too, and no end of the comparison
            write_json(run / DIVERGED, {"error": str(error)})
    if error := diverged(run):
        return error
    return ", ".join(f"{k} {v:.4f}" for k, v in last_scores(run).items() if k.startswith("test"))


def diverged(run: Path) -> str | None:
    """Why a run of a comparison has diverged; None if it has not."""
    path = run / DIVERGED
    return json.loads(path.read_text())["error"] if path.exists() else None


def _same_plan(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Settings missing in an older version's file have their defaults."""
    first, second = (with_absolute_data(from_saved(plan["config"])) for plan in (one, other))
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


def is_control(arm: str) -> bool:
    """Whether an arm is a control, under its own settings ("long@hot") or not."""
    return methods.is_control(arm.partition("@")[0])


def judging(seeds: Iterable[str]) -> tuple[list[str], list[str]]:
    """The seeds that choose the best control, the first third, and those that judge it.

    A control that is chosen and judged with the same seeds has been lucky with them: of ten equal
    arms, the best control beats the claimed one by more than chance in one of three comparisons.
    """
    ordered = sorted(seeds, key=int)
    chosen = max(len(ordered) // 3, 1)
    return ordered[:chosen], ordered[chosen:]


def verdict(scores: dict[str, dict[str, float]], arm: str = "seal") -> dict[str, Any]:
    """Does `arm` beat the best control? With the paired differences to every arm.

    The differences are over all common seeds, their p-values adjusted for their number (Holm). The
    claim is about one control, which other seeds have chosen, see `judging`.

    Args:
        scores: As of `table`.
    """
    if arm not in scores:
        return {"arm": arm, "claim": f"{arm} was not run"}
    others = {name for name in scores if name != arm and scores[name].keys() & scores[arm].keys()}
    differences = holm({name: _difference(scores, arm, name, scores[arm]) for name in others})
    answer = {"arm": arm, "differences": {k: d._asdict() for k, d in differences.items()}}
    choosing, judges = judging(scores[arm])
    candidates = {
        name: _difference(scores, arm, name, choosing).mean
        for name in filter(is_control, others)
        if scores[name].keys() & set(choosing) and scores[name].keys() & set(judges)
    }
    if not any(map(is_control, others)):
        return {**answer, "claim": "no control was run"}
    if not candidates:
        return {**answer, "claim": "no conclusion: one seed chooses the control, others judge it"}
    best = min(candidates, key=candidates.__getitem__)
    d = _difference(scores, arm, best, judges)
    if d.count < 2:
        text = f"no conclusion from one seed: {100 * d.mean:+.2f} points against {best}"
        return {**answer, "best control": best, "claim": text}
    outcome = "does not differ surely from"
    if d.low > 0 or d.high < 0:
        outcome = "beats" if d.mean > 0 else "loses to"
    seen = detectable_difference(d.deviation, d.count)
    claim = (
        f"{arm} {outcome} the best control, {best}: {100 * d.mean:+.2f} points "
        f"[{100 * d.low:+.2f}, {100 * d.high:+.2f}], {d.count} seeds; "
        f"they would show {100 * seen:.1f} points in 80 % of cases"
    )
    return {**answer, "best control": best, "choosing seeds": choosing, "claim": claim}


def _difference(
    scores: dict[str, dict[str, float]], arm: str, other: str, seeds: Iterable[str]
) -> PairedDifference:
    common = sorted(set(seeds) & scores[arm].keys() & scores[other].keys())
    one, two = ([scores[name][seed] for seed in common] for name in (arm, other))
    return paired_difference(one, two)


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
