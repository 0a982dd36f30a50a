"""Arms with equal optimizer steps from one shared first generation per seed: does a method beat the best control?"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from dreamsa import checkpoint
from train_cls.config import TrainConfig, from_dict, to_dict, with_overrides
from train_cls.data import Splits, load_splits
from train_cls.methods import METHODS
from train_cls.run import continue_run, is_finished, new_run, rows

FROM_SCRATCH = frozenset({"normal", "long", "sgdr", "swa", "sam", "sa-gd", "langevin", "kinetic", "landscape", "tolerant-teacher"})
"""Methods whose first generation is not the plain one that the others share."""
CONTROLS = ("long", "restarts", "reset-only", "seal-zero", "random-direction", "llf", "shrink-perturb", "swa", "sam")
"""What SEAL has to beat: its own ingredients without ascent, and what else the same steps could buy."""
ARMS = ("normal", "seal", "seal-reverse", *CONTROLS)


class Difference(NamedTuple):
    """Paired over seeds, in the units of the score."""

    mean: float
    low: float  # of the 95 % interval
    high: float
    wins: int
    seeds: int


def paired_difference(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Difference:
    """a - b per seed with a bootstrap 95 % interval (percentile, 10,000 draws); not a number where there is one seed."""
    d = np.asarray(a, float) - np.asarray(b, float)
    if len(d) < 2 or np.ptp(d) == 0:
        spread = (float("nan"), float("nan")) if len(d) < 2 else (float(d[0]), float(d[0]))
    else:
        rng = np.random.default_rng(seed)
        interval = stats.bootstrap((d,), np.mean, n_resamples=10_000, method="percentile", rng=rng).confidence_interval
        spread = (float(interval.low), float(interval.high))
    return Difference(float(d.mean()), *spread, int((d > 0).sum()), len(d))


def compare(
    config: TrainConfig,
    folder: Path,
    arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = range(3),
    changes: dict[str, dict[str, Any]] | None = None,
    load: Callable[[TrainConfig], Splits] = lambda config: load_splits(config.data, config.splits),
) -> Iterator[str]:
    """Run every arm for every seed; yields a line per finished run. Resumable: finished runs are not run again.

    Args:
        changes: Settings that one arm has of its own, by arm and dotted name (a tuned learning rate, say). An arm may be called
            "METHOD@anything" to run one method with several settings.

    Raises:
        ValueError: An unknown arm, no seeds, or a folder that holds another comparison.
    """
    changes = changes or {}
    for arm in arms:
        if arm.partition("@")[0] not in METHODS:
            raise ValueError(f"There is no method {arm.partition('@')[0]!r}; there are {', '.join(METHODS)}.")
    if not seeds:
        raise ValueError("A comparison needs at least one seed.")
    plan = {"config": to_dict(config), "changes": changes}
    known = folder / "comparison.json"
    folder.mkdir(parents=True, exist_ok=True)
    if known.exists() and not _same_plan(json.loads(known.read_text()), json.loads(json.dumps(plan))):
        raise ValueError(f"{folder} holds a comparison with other settings. Choose another folder.")
    checkpoint.write_json(known, plan)
    for seed in seeds:
        base = replace(config, seed=seed, method="restarts", splits=replace(config.splits, seed=seed))
        splits = load(base)
        shared: Path | None = None
        for arm in arms:
            method = arm.partition("@")[0]
            own = with_overrides(replace(base, method=method), changes.get(arm, {}))
            branches = method not in FROM_SCRATCH and all(map(_after_generation_1, changes.get(arm, {})))
            if branches and shared is None:
                shared = _first_generation(base, folder / "generation-1" / f"seed-{seed}", splits)
            branch = shared if branches else None
            run = folder / arm / f"seed-{seed}"
            if not (run / "config.json").exists():
                new_run(run, own)
            if not is_finished(run):
                for _ in continue_run(run, splits, branch):
                    pass
            yield f"{arm}, seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in last_scores(run).items() if k.startswith("test"))


def _same_plan(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Settings that an older version did not know count as their defaults."""
    return one["changes"] == other["changes"] and from_dict(one["config"]) == from_dict(other["config"])


def _after_generation_1(setting: str) -> bool:
    """Whether a setting changes nothing before generation 2: those of the methods, but for where the layers are parted."""
    return setting.startswith("anneal.") and setting != "anneal.before"


def _first_generation(config: TrainConfig, folder: Path, splits: Splits) -> Path:
    """The checkpoint after one plain generation, trained unless it is there."""
    if not (folder / "config.json").exists():
        new_run(folder, replace(config, generations=1))
    if not is_finished(folder):
        for _ in continue_run(folder, splits):
            pass
    newest = checkpoint.latest(folder / "generations")
    assert newest is not None
    return newest


def scores_of(row: dict[str, Any]) -> dict[str, float]:
    """The scores in a line of metrics; of averaged weights in place of the last ones where the method averages."""
    scores = {name: value for name, value in row.items() if name.startswith(("test ", "validation "))}
    averaged = {name.replace("average ", ""): value for name, value in scores.items() if " average " in name}
    return {**{name: value for name, value in scores.items() if " average " not in name}, **averaged}


def last_scores(run: Path) -> dict[str, float]:
    """Scores at the end of a run."""
    return scores_of([row for row in rows(run) if any(name.startswith("test ") for name in row)][-1])


def history(folder: Path, arm: str, seed: int | str) -> list[dict[str, Any]]:
    """The metrics of one run of a comparison, with those of the first generation that it shares before its own."""
    own = rows(folder / arm / f"seed-{seed}")
    first = rows(folder / "generation-1" / f"seed-{seed}") if own and own[0]["epoch"] > 1 else []
    return first + own


def table(folder: Path, arms: Sequence[str], seeds: Sequence[int], score: str = "test accuracy") -> dict[str, dict[str, float]]:
    """score[arm][seed] of all finished runs that have one."""
    found: dict[str, dict[str, float]] = {}
    for arm in arms:
        for seed in seeds:
            run = folder / arm / f"seed-{seed}"
            if is_finished(run) and any(score in row for row in rows(run)):
                found.setdefault(arm, {})[str(seed)] = last_scores(run)[score]
    return found


def verdict(scores: dict[str, dict[str, float]], arm: str = "seal", controls: Sequence[str] = CONTROLS) -> dict[str, Any]:
    """The claim: does `arm` beat the best control? With the paired difference to every arm, over seeds that both have.

    The best control is the one with the best paired difference, chosen on the same scores, which favours it; that is meant.
    """
    if arm not in scores:
        return {"arm": arm, "claim": f"{arm} was not run"}
    there = [c for c in controls if c in scores]
    differences = {other: _difference(scores[arm], scores[other])._asdict() for other in scores if other != arm}
    if not there:
        return {"arm": arm, "claim": "no control was run", "differences": differences}
    best = min(there, key=lambda c: differences[c]["mean"])
    d = _difference(scores[arm], scores[best])
    sure = d.low > 0 or d.high < 0
    said = "beats" if sure and d.mean > 0 else "loses to" if sure else "does not differ surely from"
    interval = f" [{100 * d.low:+.2f}, {100 * d.high:+.2f}], {d.seeds} seeds" if d.seeds > 1 else ", one seed"
    claim = f"{arm} {said} the best control, {best}: {100 * d.mean:+.2f} points{interval}"
    return {"arm": arm, "best control": best, "claim": claim, "differences": differences}


def _difference(a: dict[str, float], b: dict[str, float]) -> Difference:
    common = sorted(a.keys() & b.keys())
    return paired_difference([a[s] for s in common], [b[s] for s in common])


def write_csv(scores: dict[str, dict[str, float]], path: Path, score: str) -> None:
    """One line per arm and seed."""
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["arm", "seed", score])
        out.writerows([arm, seed, value] for arm, by_seed in scores.items() for seed, value in by_seed.items())


def generations(run: Path) -> list[dict[str, torch.Tensor]]:
    """Weights at the end of every generation of a run, the first first."""
    return [checkpoint.load(path).tensors["model"] for path in sorted((run / "generations").glob("[0-9]*"))]
