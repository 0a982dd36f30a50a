"""Statistics of the benchmark of distillation: per method, against the baseline, and as files."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dreamsa.evaluation.colour import colour_spread
from dreamsa.files import write_atomic, write_json
from dreamsa.statistics import Mean, bootstrap_mean, student_mean
from dreamsa.studies.distillation_plan import DistillationBenchmark
from dreamsa.studies.methods import BASELINE, method_of
from dreamsa.studies.plans import Result
from dreamsa.studies.tables import to_json

Results = Mapping[str, Sequence[Result]]
"""Per method."""
ENOUGH_CLUSTERS = 12
"""Objects from which intervals are bootstrapped; below, they are Student's."""


class Measure(NamedTuple):
    """A column of the tables."""

    title: str
    digits: int = 3
    group: str = "shape"
    """The table in the report: judge, shape, colour or cost."""
    better: int = 0
    """1 if higher is better, -1 if lower."""


MEASURES: dict[str, Measure] = {
    "success": Measure("success", 3, "judge", 1),
    "object_right": Measure("object right", 3, "judge", 1),
    "colour_right": Measure("colour right", 3, "judge", 1),
    "view_right": Measure("view right", 3, "judge", 1),
    "janus": Measure("Janus", 3, "judge", -1),
    "turned": Measure("turned", 3, "judge", -1),
    "two_faced": Measure("two-faced", 3, "judge", -1),
    "iou": Measure("IoU", 3, "shape", 1),
    "depth_error": Measure("depth error", 3, "shape", -1),
    "normal_error_deg": Measure("normal error, deg", 1, "shape", -1),
    "chamfer": Measure("Chamfer", 4, "shape", -1),
    "f_score": Measure("F-score", 3, "shape", 1),
    "precision": Measure("precision", 3, "shape", 1),
    "recall": Measure("recall", 3, "shape", 1),
    "half_opaque": Measure("half opaque", 3, "shape", -1),
    "fog": Measure("fog", 3, "shape", -1),
    "floaters": Measure("floaters", 4, "shape", -1),
    "psnr": Measure("PSNR, dB", 1, "colour", 1),
    "colour_error": Measure("colour error", 1, "colour", -1),
    "colour_spread": Measure("colour spread over seeds", 1, "colour"),
    "unet_calls": Measure("UNet calls", 0, "cost"),
    "seconds": Measure("seconds", 0, "cost", -1),
    "failed": Measure("failed", 3, "cost", -1),
}
"""Means over objects in reports."""
KEY_MEASURES = (
    "success",
    "view_right",
    "turned",
    "iou",
    "f_score",
    "normal_error_deg",
    "fog",
    "psnr",
    "colour_error",
    "colour_spread",
    "unet_calls",
)
"""The columns of table.md."""
EDIT_SCORES = ("probability_before", "directional_similarity", "psnr", "silhouette", "likeness")
"""Scores that only edits have."""


def flat(result: Result) -> dict[str, Any]:
    """All entries of a result in one dictionary, as a line of results.csv has them."""
    scores = {k: v for k, v in (result["scores"] or {}).items() if k not in EDIT_SCORES}
    own = {k: v for k, v in result.items() if k not in ("scores", "fidelity")}
    return {**own, **scores, **(result["fidelity"] or {})}


def value_of(result: Result, measure: str) -> float | None:
    """A measure of one trial as a number; None where it is undefined."""
    value = flat(result).get(measure)
    if measure == "failed":
        return float(value is not None)
    return None if value is None else float(value)


def one_line(result: Result) -> str:
    """A finished trial in one line."""
    head = f"{result['method']}, seed {result['seed']}: {result['prompt']}: "
    if result["failed"]:
        return f"{head}failed, {result['failed']}"
    found, outcome = result["fidelity"], "success" if result["success"] else "miss"
    error = found["colour_error"]
    colour = "no colour" if error is None else f"colour error {error:.1f}"
    return f"{head}{outcome}, IoU {found['iou']:.2f}, {colour}"


def clustered_mean(values: Mapping[str, Sequence[float]]) -> Mean | None:
    """Mean over clusters of their own means, with its interval; None without values.

    Trials of one object are not independent, so that the objects are what is drawn.
    """
    means = [statistics.mean(own) for own in values.values() if own]
    if not means:
        return None
    return bootstrap_mean(means) if len(means) >= ENOUGH_CLUSTERS else student_mean(means)


def method_mean(results: Sequence[Result], measure: str) -> Mean | None:
    """Mean of a method's trials over objects; an object's natural and other colours are one."""
    values: dict[str, list[float]] = {}
    if measure == "colour_spread":
        for (name, _), spread in spreads(results).items():
            values.setdefault(name, []).append(spread)
        return clustered_mean(values)
    for result in results:
        value = value_of(result, measure)
        if value is not None:
            values.setdefault(result["object"], []).append(value)
    return clustered_mean(values)


def spreads(results: Sequence[Result]) -> dict[tuple[str, str | None], float]:
    """Per object and colour, the spread over seeds of the mean colour in CIELAB."""
    colours: dict[tuple[str, str | None], list[tuple[float, float, float]]] = {}
    for result in results:
        found = result["fidelity"]
        if found is not None and found["lab_l"] is not None:
            lab = found["lab_l"], found["lab_a"], found["lab_b"]
            colours.setdefault((result["object"], result["colour"]), []).append(lab)
    found = {key: colour_spread(own) for key, own in colours.items()}
    return {key: spread for key, spread in found.items() if spread is not None}


def difference(results: Results, method: str, measure: str, other: str = BASELINE) -> Mean | None:
    """`method` minus `other`, paired over the trials that both have, mean over objects."""
    values: dict[str, list[float]] = {}
    if measure == "colour_spread":
        first, second = spreads(results.get(method, ())), spreads(results.get(other, ()))
        for key in first.keys() & second.keys():
            values.setdefault(key[0], []).append(first[key] - second[key])
        return clustered_mean(dict(sorted(values.items())))
    theirs = {_key(r): value_of(r, measure) for r in results.get(other, ())}
    for result in results.get(method, ()):
        one, two = value_of(result, measure), theirs.get(_key(result))
        if one is not None and two is not None:
            values.setdefault(result["object"], []).append(one - two)
    return clustered_mean(values)


def _key(result: Result) -> tuple[Any, ...]:
    return result["object"], result["colour"], result["seed"]


def summary(results: Results) -> dict[str, Any]:
    """Per method: means over objects, differences from the baseline, and colours per object."""
    table: dict[str, Any] = {}
    for method, own in results.items():
        if not own:
            continue
        row = method_of(method)
        means = {measure: method_mean(own, measure) for measure in MEASURES}
        gaps = {measure: difference(results, method, measure) for measure in MEASURES}
        table[method] = {
            "title": row.title,
            "source": row.source,
            "trials": len(own),
            "successes": sum(r["success"] for r in own),
            "failures": sum(r["failed"] is not None for r in own),
            "means": {name: to_json(mean) for name, mean in means.items() if mean},
            f"minus {BASELINE}": {
                name: to_json(gap) for name, gap in gaps.items() if gap and method != BASELINE
            },
            "colour spread over seeds": {
                " ".join(filter(None, (colour, name))): round(spread, 3)
                for (name, colour), spread in spreads(own).items()
            },
        }
    return table


def markdown(results: Results) -> str:
    """The methods as a Markdown table, with 95 % intervals over objects."""
    titles = [MEASURES[measure].title for measure in KEY_MEASURES]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for method, own in results.items():
        if own:
            cells = [
                text(method_mean(own, measure), MEASURES[measure].digits)
                for measure in KEY_MEASURES
            ]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def text(mean: Mean | None, digits: int) -> str:
    """ "0.912 [0.880, 0.950]"; no interval if there is only one value."""
    if mean is None:
        return ""
    numbers = [f"{value:,.{digits}f}" for value in (mean.mean, mean.low, mean.high)]
    known = mean.low == mean.low
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if known else numbers[0]


def write_results(benchmark: DistillationBenchmark) -> None:
    """Write results.csv, a line per trial, results.json, which has the summary too, and table.md.

    Only the column `seconds` depends on the machine's speed.
    """
    results = benchmark.results
    trials = [result for own in results.values() for result in own]
    rows = [flat(result) for result in trials]
    columns = list(dict.fromkeys(name for row in sorted(rows, key=len)[::-1] for name in row))
    out = io.StringIO()
    table = csv.DictWriter(out, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    folder = benchmark.folder
    write_atomic(folder / "results.csv", out.getvalue().encode())
    write_json(folder / "results.json", {"summary": summary(results), "trials": trials})
    write_atomic(folder / "table.md", markdown(results).encode())
