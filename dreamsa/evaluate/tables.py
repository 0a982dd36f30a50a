"""Results of trials as numbers: per arm, against each other, and as files."""

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamsa import checkpoint
from dreamsa.evaluate.metrics import Mean, PairedTest, bootstrap_mean, holm, mcnemar, student_mean, wilson
from dreamsa.evaluate.trials import MODEL_ARM, arm_of
from dreamsa.guidance.prompts import same_prompt

MEASURES = (
    "probability",
    "r_precision",
    "object_right",
    "colour_right",
    "probability_before",
    "directional_similarity",
    "psnr",
    "silhouette",
    "likeness",
    "foreground",
    "view_right",
    "janus",
)
"""The scores that tables show."""


CLAIMS = {"D": ("B", "E", "F"), "H": ("B", "C", "F"), "I": ("B", "C", "H")}
"""What each way has to beat. Ascent: no escape, a random one, and Perturb-and-Revise's, both as far. Interpolation: none, scratch, and one as short as
ascent. Auto: the two that it chooses from, and scratch."""
AGAINST = " against "


def told(result: dict[str, Any]) -> str:
    """A finished trial in a line."""
    head = f"{result['arm']}, seed {result['seed']}: {result['parent_prompt']} -> {result['prompt']}: "
    if result["scores"] is None:
        return head + f"failed, {result['failed']}"
    scores = result["scores"]
    return (
        head
        + f"{'success' if result['success'] else 'miss'}, probability {scores['probability']:.3f}, PSNR to the parent {scores['psnr']:.1f} dB"
    )


def of(results: Sequence[dict[str, Any]], measure: str) -> list[float]:
    """A score of all trials that have it."""
    found = [result["scores"].get(measure) for result in results if result["scores"]]
    return [value for value in found if value is not None]


def total_displacement(result: dict[str, Any]) -> float | None:
    """Euclidean norm over all parameter groups of the move that an escape made."""
    moved = result.get("displacement")
    return sum(norm**2 for norm in moved.values()) ** 0.5 if moved else None


def summary(results: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Per arm: successes with Wilson's interval, means of the scores with Student's intervals, median steps to success and displacement."""
    table: dict[str, dict[str, Any]] = {}
    for arm, own in results.items():
        if not own:
            continue
        quick = [r["steps_to_success"] for r in own if r["steps_to_success"] is not None]
        moved = [m for m in map(total_displacement, own) if m is not None]
        table[arm] = {
            "title": arm_of(arm).title,
            "success": wilson(sum(r["success"] for r in own), len(own))._asdict(),
            "steps_to_success": statistics.median(quick) if quick else None,
            "displacement": statistics.median(moved) if moved else None,
            **{measure: plain(student_mean(of(own, measure))) for measure in MEASURES if of(own, measure)},
        }
    return table


def differences(results: dict[str, list[dict[str, Any]]], measure: str, arm: str = MODEL_ARM) -> dict[str, Mean]:
    """`arm` minus each other arm, paired over seeds that both have finished."""
    if not results.get(arm):
        return {}
    scores = {name: {r["seed"]: r["scores"][measure] for r in own if r["scores"]} for name, own in results.items()}
    found = {}
    for other in results:
        common = [s for s in scores[arm] if s in scores[other] and None not in (scores[arm][s], scores[other][s])]
        if other != arm and common:
            found[other] = student_mean([scores[arm][s] - scores[other][s] for s in common])
    return found


def plain(d: Mean) -> dict[str, Any]:
    """For JSON, which has no NaN."""
    return {name: None if value != value else value for name, value in d._asdict().items()}


def write_tables(folder: Path, results: Sequence[dict[str, Any]], summed: dict[str, Any]) -> None:
    """FOLDER/results.csv with one line per trial and FOLDER/results.json with the summary too. Neither holds a time or a run's random name."""
    columns = ["parent_prompt", "prompt", "arm", "seed", "success", "steps_to_success"]
    measures = sorted({name for r in results if r["scores"] for name in r["scores"]})
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow([*columns, "displacement", *measures])
    for r in results:
        moved = total_displacement(r)
        scores = [(r["scores"] or {}).get(name) for name in measures]
        table.writerow([*(r[name] for name in columns), None if moved is None else round(moved, 6), *scores])
    checkpoint.write_atomic(folder / "results.csv", out.getvalue().encode())
    timeless = [{name: value for name, value in r.items() if name != "seconds"} for r in results]
    checkpoint.write_json(folder / "results.json", {"summary": summed, "trials": timeless})


def paired_tests(results: dict[str, list[dict[str, Any]]]) -> dict[str, tuple[PairedTest, Mean]]:
    """CLAIMS on the trials that both arms have finished, as "D against B": McNemar's test with Holm's adjustment for all of them, and the difference of
    the success rates per pair, bootstrapped over pairs."""
    outcome = {name: {(r["parent_prompt"], r["prompt"], r["seed"]): bool(r["success"]) for r in own} for name, own in results.items()}
    tests: dict[str, PairedTest] = {}
    gaps: dict[str, Mean] = {}
    for arm, other in ((arm, other) for arm, others in CLAIMS.items() for other in others):
        common = sorted(outcome.get(arm, {}).keys() & outcome.get(other, {}).keys())
        if not common:
            continue
        name = f"{arm}{AGAINST}{other}"
        tests[name] = mcnemar([(outcome[arm][key], outcome[other][key]) for key in common])
        by_pair: dict[tuple[str, str], list[int]] = {}
        for key in common:
            by_pair.setdefault(key[:2], []).append(outcome[arm][key] - outcome[other][key])
        gaps[name] = bootstrap_mean([sum(values) / len(values) for values in by_pair.values()])
    return {name: (test, gaps[name]) for name, test in holm(tests).items()}


def success_by_step(results: Sequence[dict[str, Any]], steps: int) -> list[tuple[float, float]]:
    """(step, share of the trials that have succeeded by then), up to the last step; repairs, of which no step knows, are left out."""
    results = [r for r in results if not same_prompt(r["prompt"], r["parent_prompt"])]
    reached = sorted(r["steps_to_success"] for r in results if r["steps_to_success"] is not None)
    return [
        (0.0, 0.0),
        *((step, (i + 1) / len(results)) for i, step in enumerate(reached)),
        (float(steps), len(reached) / max(len(results), 1)),
    ]
