"""The report of the benchmark of distillation: tables, and a row of eight views per trial."""

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from dreamsa.evaluation.views import strip, valid_views
from dreamsa.files import write_atomic
from dreamsa.media import write_png
from dreamsa.runs import slug
from dreamsa.statistics import Mean
from dreamsa.studies.distillation_plan import DistillationBenchmark, DistillationTrial
from dreamsa.studies.distillation_tables import (
    MEASURES,
    Results,
    difference,
    method_mean,
    spreads,
)
from dreamsa.studies.methods import BASELINE, method_of
from dreamsa.studies.plans import Result, result_of
from dreamsa.studies.report import figure, image, interval, page, table
from dreamsa.studies.subjects import Subject

GROUPS = {
    "judge": "Object and orientation",
    "shape": "Shape",
    "colour": "Colour",
    "cost": "Cost",
}
LEGEND = (
    "<p>Means over the objects, with 95 % intervals over the objects: all trials of an object, in "
    "natural and other colours, are one value, as they are not independent. Success: the judge "
    "names object and colour in at least 6 of 8 views. View right, Janus: by the judge, of objects "
    "with a front. Turned: another orientation fits the true images clearly better. Two-faced: "
    "fraction of the side and back views nearer to the true front than to the true side; an object "
    "that is turned by 180 degrees is two-faced, too. IoU: of the silhouettes. Depth, Chamfer: "
    "world units, an object has radius 0.5. Normal error: the true objects as fields have 4 to 9 "
    "degrees. F-score, precision, recall: of the mesh, within 0.02. Half opaque: of the pixels "
    "with opacity above 0.1, the fraction below 0.9. Fog: mean of 4 a (1 - a). Floaters: fraction "
    "of the matter outside the largest part. PSNR: over the pixels of the object. Colour error: "
    "median CIEDE2000 from the nearest valid colour; about 1 is just noticeable. Colour spread: "
    "over seeds, in CIELAB. UNet calls: noise predictions of a run over all its views.</p>"
)


def write_report(benchmark: DistillationBenchmark) -> Path:
    """Write FOLDER/report.html from the finished trials."""
    results = {method: own for method, own in benchmark.results.items() if own}
    done, recipe = sum(map(len, results.values())), benchmark.recipe
    others = [method for method in results if method != BASELINE]
    parts = [
        f"<p>{len(results)} methods, {len(benchmark.subjects)} objects, seeds: "
        f"{len(benchmark.seeds)}, {recipe.steps} steps of the baseline. Finished: {done} of "
        f"{len(benchmark.trials)} trials. Judge: {escape(recipe.judge)}. Settings of all: "
        f"{escape(str(recipe.overrides or 'the preset'))}.</p>",
        _methods(results),
        "<h2>Means</h2>",
        *(_means(results, group, title) for group, title in GROUPS.items()),
        LEGEND,
    ]
    if BASELINE in results and others:
        parts += [
            f"<h2>Differences from {BASELINE}</h2>",
            *(_differences(results, others, group, title) for group, title in GROUPS.items()),
            "<p>Paired over the trials that both have; bold where the 95 % interval over objects "
            "excludes 0. Not adjusted for the number of comparisons.</p>",
        ]
    parts += [
        "<h2>Every object</h2>",
        _per_object(benchmark, results),
        "<p>Successes of the seeds, mean IoU, mean colour error.</p>",
        *_colours(results),
        "<h2>Every trial</h2>",
        *_gallery(benchmark),
    ]
    path = benchmark.folder / "report.html"
    write_atomic(path, page("Benchmark of distillation", parts).encode())
    return path


def _methods(results: Results) -> str:
    rows = []
    for name, own in results.items():
        row = method_of(name)
        failed = sum(result["failed"] is not None for result in own)
        counts = [f"{sum(r['success'] for r in own)}/{len(own)}", str(failed)]
        settings = ", ".join(f"{key} = {value}" for key, value in row.overrides.items())
        about = f"<b>{escape(name)}</b> {escape(row.title)}"
        rows.append([about, *counts, escape(row.source), escape(settings)])
    return table(["method", "successes", "failed", "source", "settings"], rows)


def _group(group: str) -> list[str]:
    return [name for name, measure in MEASURES.items() if measure.group == group]


def _head(first: str, group: str) -> list[str]:
    arrows = {1: " ↑", -1: " ↓", 0: ""}
    return [first, *(MEASURES[m].title + arrows[MEASURES[m].better] for m in _group(group))]


def _means(results: Results, group: str, title: str) -> str:
    rows = [
        [
            f"<b>{escape(method)}</b>",
            *(interval(method_mean(own, m), MEASURES[m].digits) for m in _group(group)),
        ]
        for method, own in results.items()
    ]
    return f"<h3>{title}</h3>" + table(_head("method", group), rows)


def _differences(results: Results, others: list[str], group: str, title: str) -> str:
    def cell(gap: Mean | None, measure: str) -> str:
        shown = interval(gap, MEASURES[measure].digits, signed=True)
        certain = gap is not None and (gap.low > 0 or gap.high < 0)
        return f"<b>{shown}</b>" if certain else shown

    rows = [
        [
            f"{escape(method)} minus {BASELINE}",
            *(cell(difference(results, method, m), m) for m in _group(group)),
        ]
        for method in others
    ]
    return f"<h3>{title}</h3>" + table(_head("paired", group), rows)


def _per_object(benchmark: DistillationBenchmark, results: Results) -> str:
    def cell(own: Iterable[Result], subject: Subject) -> str:
        theirs = [r for r in own if (r["object"], r["colour"]) == (subject.name, subject.colour)]
        if not theirs:
            return ""
        successes = f"{sum(r['success'] for r in theirs)}/{len(theirs)}"
        means = [interval(method_mean(theirs, m), d) for m, d in (("iou", 2), ("colour_error", 1))]
        return " · ".join([successes, *filter(None, means)])

    rows = [
        [
            escape(subject.prompt) + (" <small>held out</small>" if subject.held_out else ""),
            *(cell(own, subject) for own in results.values()),
        ]
        for subject in benchmark.subjects
    ]
    return table(["object", *map(escape, results)], rows)


def _colours(results: Results) -> Iterator[str]:
    """The spread over seeds per object, and which of several valid colours each seed chose."""
    spread = {method: spreads(own) for method, own in results.items()}
    keys = list(dict.fromkeys(key for own in spread.values() for key in own))
    if not keys:
        return

    def cell(method: str, key: tuple[str, str | None]) -> str:
        chosen = [
            f"{r['fidelity']['colour_variant'] + 1}"
            for r in results[method]
            if (r["object"], r["colour"]) == key and r["fidelity"]
            if r["fidelity"]["colour_margin"] is not None
        ]
        value = spread[method].get(key)
        number = "" if value is None else f"{value:.1f}"
        return f"{number} <small>{', '.join(chosen)}</small>" if chosen else number

    rows = [
        [escape(Subject(*key).prompt), *(cell(method, key) for method in results)] for key in keys
    ]
    yield "<h3>Colour spread over seeds</h3>"
    yield table(["object", *map(escape, results)], rows)
    yield (
        "<p>In CIELAB. Small: for objects with several valid colours, the number of the nearest "
        "one, seed by seed.</p>"
    )


def _caption(trial: DistillationTrial, result: Result | None) -> str:
    head = f"<b>{escape(trial.method)}</b>, seed {trial.seed}: "
    if result is None:
        return f"{head}not finished"
    if result["failed"]:
        return (
            f'{head}<span class="miss">failed</span><br><small>{escape(result["failed"])}</small>'
        )
    hit, found = result["success"], result["fidelity"]
    error = found["colour_error"]
    facts = [f"IoU {found['iou']:.2f}", f"F {found['f_score']:.2f}"]
    facts += [] if error is None else [f"colour {error:.1f}"]
    facts += [f"turned by {found['turned_deg']:g}°"] if found["turned"] else []
    outcome = f'<span class="{"hit" if hit else "miss"}">{"success" if hit else "miss"}</span>'
    return f"{head}{outcome}<br><small>{', '.join(facts)}</small>"


def _gallery(benchmark: DistillationBenchmark) -> Iterator[str]:
    """Each object's true views, and those of every trial."""
    for subject in benchmark.subjects:
        trials = [
            benchmark.trial(method, subject, seed)
            for method in benchmark.methods
            for seed in benchmark.seeds
        ]
        results = [(trial, result_of(trial.folder)) for trial in trials]
        if not any(result for _, result in results):
            continue
        yield f"<h3>{escape(subject.prompt)}</h3>"
        truth = image(_true_strip(trials[0], benchmark.folder), f"the true {subject.prompt}")
        yield figure("<b>true object</b>", truth)
        for trial, result in results:
            views = image(trial.folder / "views.png", f"eight views of {subject.prompt}")
            yield figure(_caption(trial, result), views)


def _true_strip(trial: DistillationTrial, folder: Path) -> Path:
    """The true object's eight views, a row per valid colour, as a file."""
    subject, camera = trial.subject, trial.config.camera
    path = folder / "truth" / f"{slug(subject.prompt)}.png"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        valid = valid_views(camera, subject.name, subject.colour)
        write_png(strip(*(views.rgb for views in valid)), path)
    return path
