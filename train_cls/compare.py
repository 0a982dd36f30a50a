"""Compare methods at equal cost, from a shared first generation per seed: does a method beat the
best control?"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamsa.files import write_atomic
from dreamsa.settings import to_tree, with_overrides
from dreamsa.statistics import PairedDifference, detectable_difference, holm, paired_difference
from train_cls import methods
from train_cls.config import TrackerName, TrainConfig, from_saved, with_absolute_data
from train_cls.methods import METHODS, is_from_scratch
from train_cls.run import is_finished, last_scores, rows
from train_cls.trials import Outcome, Study, Trial, difference

CONTROLS = tuple(name for name, method in METHODS.items() if method.control)
ARMS = ("normal", "seal", "seal-reverse", *CONTROLS)
PLAN = "comparison.json"


def compare(
    config: TrainConfig,
    folder: Path,
    arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = range(3),
    changes: dict[str, dict[str, Any]] | None = None,
    workers: int | None = 1,
    threads: int | None = None,
    track: Sequence[TrackerName] = (),
) -> Iterator[Outcome]:
    """Train every arm with every seed; yields an outcome per finished run. The same call resumes:
    finished runs are not run again. See `plan_comparison` and `Study.run`."""
    yield from plan_comparison(config, folder, arms, seeds, changes).run(workers, threads, track)


def plan_comparison(
    config: TrainConfig,
    folder: Path,
    arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = range(3),
    changes: dict[str, dict[str, Any]] | None = None,
) -> Study:
    """Check a comparison, which FOLDER/comparison.json records; arms and seeds may be added later.

    Args:
        arms: Methods. "METHOD@NAME" trains a method again with other settings.
        changes: Settings of single arms, such as a tuned learning rate, by arm and dotted name.

    Raises:
        ValueError: Unknown arm, wrong setting, no seeds, or a folder that holds another comparison.
    """
    changes = changes or {}
    if not seeds:
        raise ValueError("A comparison needs at least one seed.")
    if unknown := [arm for arm in changes if arm not in arms]:
        raise ValueError(f"There is no arm {unknown[0]!r} to tune; the arms are {', '.join(arms)}.")
    config = with_absolute_data(config)
    own = {arm: _config_of(arm, config, changes.get(arm, {})) for arm in dict.fromkeys(arms)}
    plan = _merged_plan(folder, config, changes)
    trials: list[Trial] = []
    for seed in seeds:
        base = _seeded(replace(config, method="restarts", generations=1), seed)
        shared = Trial(folder / "generation-1" / f"seed-{seed}", base, ())
        branches = [arm for arm in own if _branches(own[arm], changes.get(arm, {}))]
        trials += [shared] if branches else []
        for arm in own:
            run, first = folder / arm / f"seed-{seed}", shared if arm in branches else None
            trials.append(
                Trial(run, _seeded(own[arm], seed), (("arm", arm), ("seed", seed)), first)
            )
    return Study.checked(trials, (folder / PLAN, plan))


def _config_of(arm: str, config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    """Settings of an arm.

    Raises:
        ValueError: A setting is unknown, out of range, or not an arm's own.
    """
    for name in ("seed", "splits.seed", "method"):
        if name in changes:
            raise ValueError(
                f"{name} is not tuned: an arm is named by its method, seeds are shared."
            )
    method = arm.partition("@")[0]
    methods.check_settings(changes, method)
    return with_overrides(replace(config, method=method), changes)


def _seeded(config: TrainConfig, seed: int) -> TrainConfig:
    return replace(config, seed=seed, splits=replace(config.splits, seed=seed))


def _branches(config: TrainConfig, changes: dict[str, Any]) -> bool:
    """Whether an arm's first generation is the one that the others share."""
    return not is_from_scratch(config.method) and all(map(_after_generation_1, changes))


def _merged_plan(folder: Path, config: TrainConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """What comparison.json will hold, with the arms of earlier calls.

    Raises:
        ValueError: The comparison there has other settings.
    """
    path = folder / PLAN
    if not path.exists():
        return {"config": to_tree(config), "changes": changes}
    found = json.loads(path.read_text())
    before = with_absolute_data(from_saved(found["config"]))
    if other := difference(before, config):
        raise ValueError(f"{folder} holds a comparison with other settings: {other}")
    return {"config": to_tree(config), "changes": {**found["changes"], **changes}}


def _after_generation_1(setting: str) -> bool:
    """Whether a setting has no effect before generation 2: those of the methods, except the
    threshold between layers."""
    return setting.startswith("anneal.") and setting != "anneal.before"


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
