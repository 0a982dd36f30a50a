"""Statistics of trials: per arm, between arms, and as files."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamsa.config import same_prompt
from dreamsa.files import write_atomic, write_json
from dreamsa.statistics import Mean, PairedTest, bootstrap_mean, holm, mcnemar, student_mean, wilson
from dreamsa.studies.arms import MODEL_ARM, arm_of
from dreamsa.studies.plans import Result

Results = Mapping[str, Sequence[Result]]
"""Per arm."""
MEASURES = {
    "probability": "new prompt",
    "r_precision": "R-precision",
    "object_right": "object",
    "colour_right": "colour",
    "probability_before": "old prompt",
    "directional_similarity": "direction",
    "psnr": "PSNR, dB",
    "silhouette": "silhouette",
    "likeness": "likeness",
    "psnr_kept": "PSNR of kept parts, dB",
    "chamfer_kept": "Chamfer of the shape",
    "foreground": "foreground",
    "view_right": "side",
    "janus": "Janus",
}
"""The scores in reports, with their titles."""
CLAIMS = {
    "ascent": ("plain", "noise-matched", "interpolate-matched"),
    "interpolate": ("plain", "scratch", "interpolate-matched"),
}
"""Arms that are tested against others."""
AGAINST = " against "


def trial_line(result: Result) -> str:
    """A finished trial in one line."""
    edit = f"{result['parent_prompt']} -> {result['prompt']}"
    head = f"{result['arm']}, seed {result['seed']}: {edit}: "
    scores = result["scores"]
    if scores is None:
        return f"{head}failed, {result['failed']}"
    outcome = "success" if result["success"] else "miss"
    return (
        f"{head}{outcome}, probability {scores['probability']:.3f}, "
        f"PSNR to the parent {scores['psnr']:.1f} dB"
    )


def values_of(results: Sequence[Result], measure: str) -> list[float]:
    """A score of all trials that have it."""
    found = [result["scores"].get(measure) for result in results if result["scores"]]
    return [value for value in found if value is not None]


def total_norm(norms: Mapping[str, float] | None) -> float | None:
    """Euclidean norm of a displacement over all parameter groups."""
    return sum(norm**2 for norm in norms.values()) ** 0.5 if norms else None


def summary(results: Results) -> dict[str, dict[str, Any]]:
    """Per arm: the success rate (Wilson intervals), means of the scores (Student's intervals), the
    median steps to success and the median displacement."""
    table: dict[str, dict[str, Any]] = {}
    for arm, own in results.items():
        if not own:
            continue
        steps = [r["steps_to_success"] for r in own if r["steps_to_success"] is not None]
        norms = [norm for r in own if (norm := total_norm(r.get("displacement"))) is not None]
        scores = {measure: values_of(own, measure) for measure in MEASURES}
        table[arm] = {
            "title": arm_of(arm).title,
            "success": wilson(sum(r["success"] for r in own), len(own))._asdict(),
            "steps_to_success": statistics.median(steps) if steps else None,
            "displacement": statistics.median(norms) if norms else None,
            **{name: to_json(student_mean(values)) for name, values in scores.items() if values},
        }
    return table


def differences(results: Results, measure: str, arm: str = MODEL_ARM) -> dict[str, Mean]:
    """`arm` minus each other arm, paired over the seeds that both have finished."""
    if not results.get(arm):
        return {}
    scores = {
        name: {r["seed"]: r["scores"][measure] for r in own if r["scores"]}
        for name, own in results.items()
    }
    found = {}
    for other in results:
        pairs = [(scores[arm][seed], scores[other].get(seed)) for seed in scores[arm]]
        gaps = [a - b for a, b in pairs if a is not None and b is not None]
        if other != arm and gaps:
            found[other] = student_mean(gaps)
    return found


def to_json(mean: Mean) -> dict[str, Any]:
    """A mean as JSON holds it, with None in place of NaN."""
    return {name: None if value != value else value for name, value in mean._asdict().items()}


def write_tables(folder: Path, results: Sequence[Result], summed: dict[str, Any]) -> None:
    """Write results.csv, a line per trial, and results.json, which has the summary too.

    Both are reproducible: they hold no times and no names of runs.
    """
    columns = ["parent_prompt", "prompt", "arm", "seed", "success", "steps_to_success"]
    measures = sorted({name for r in results if r["scores"] for name in r["scores"]})
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow([*columns, "displacement", *measures])
    for r in results:
        norm = total_norm(r.get("displacement"))
        scores = [(r["scores"] or {}).get(name) for name in measures]
        norm = None if norm is None else round(norm, 6)
        table.writerow([*(r[name] for name in columns), norm, *scores])
    write_atomic(folder / "results.csv", out.getvalue().encode())
    trials = [{name: value for name, value in r.items() if name != "seconds"} for r in results]
    write_json(folder / "results.json", {"summary": summed, "trials": trials})


def paired_tests(results: Results) -> dict[str, tuple[PairedTest, Mean]]:
    """Tests of CLAIMS on the trials that both arms have finished, by "ascent against plain".

    McNemar's test, adjusted by Holm for all of them, and the mean difference of the success rates
    per pair, bootstrapped over pairs.
    """
    success = {
        name: {(r["parent_prompt"], r["prompt"], r["seed"]): bool(r["success"]) for r in own}
        for name, own in results.items()
    }
    tests: dict[str, PairedTest] = {}
    gaps: dict[str, Mean] = {}
    for arm, other in ((arm, other) for arm, others in CLAIMS.items() for other in others):
        first, second = success.get(arm, {}), success.get(other, {})
        common = sorted(first.keys() & second.keys())
        if not common:
            continue
        name = f"{arm}{AGAINST}{other}"
        tests[name] = mcnemar([(first[key], second[key]) for key in common])
        by_pair: dict[tuple[str, str], list[int]] = {}
        for key in common:
            by_pair.setdefault(key[:2], []).append(first[key] - second[key])
        gaps[name] = bootstrap_mean([sum(values) / len(values) for values in by_pair.values()])
    return {name: (test, gaps[name]) for name, test in holm(tests).items()}


def success_by_step(results: Sequence[Result], steps: int) -> list[tuple[float, float]]:
    """(step, fraction of the trials that have succeeded by then) up to `steps`, without repairs."""
    edits = [r for r in results if not same_prompt(r["prompt"], r["parent_prompt"])]
    reached = sorted(r["steps_to_success"] for r in edits if r["steps_to_success"] is not None)
    return [
        (0.0, 0.0),
        *((step, (i + 1) / len(edits)) for i, step in enumerate(reached)),
        (float(steps), len(reached) / max(len(edits), 1)),
    ]
