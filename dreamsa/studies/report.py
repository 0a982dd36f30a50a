"""Reports as one HTML file that opens without a network, with images and plots embedded."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from dreamsa.evaluation.scores import finished_scene
from dreamsa.evaluation.views import fixed_views, strip
from dreamsa.files import write_atomic
from dreamsa.media import write_png
from dreamsa.runs import Run
from dreamsa.statistics import Mean, PairedTest, wilson
from dreamsa.studies.arms import MODEL_ARM, arm_of
from dreamsa.studies.plans import Comparison, EditBenchmark, Result, Trial, result_of
from dreamsa.studies.plots import curves_of, plot
from dreamsa.studies.tables import (
    AGAINST,
    MEASURES,
    Results,
    differences,
    paired_tests,
    success_by_step,
    summary,
)
from dreamsa.studies.trials import newest_run

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1f; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-size: .82rem;
  font-variant-numeric: tabular-nums }
td, th { padding: .2rem .45rem; text-align: right; vertical-align: top }
th { font-weight: 600; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; min-width: 11rem }
tbody tr:nth-child(odd) { background: #f4f4f7 }
small { color: #666; white-space: nowrap } td small { display: block }
.wide { overflow-x: auto } svg { max-width: 100%; height: auto }
figure { margin: .6rem 0; display: flex; gap: .6rem; align-items: center; flex-wrap: wrap }
figcaption { flex: 0 0 13rem; font-size: .9rem } figcaption small { white-space: normal }
figure img { max-width: 100% }
.strip { flex: 1 1 30rem; min-width: 0 } .turn { height: 6rem }
.hit { color: #17692c } .miss { color: #a3242b }
.claim { font-size: 1.1rem; padding: .6rem 1rem; background: #eef3ff;
  border-left: .3rem solid #4a6fd6; margin: .4rem 0 }
"""
LEGEND = (
    "<p>New and old prompt: the judge's probability among distractors. R-precision: fraction of "
    "the views for which the new prompt is the most probable text. Object, colour: fraction of the "
    "views in which the judge names it correctly. Direction: cosine between the change of the "
    "images and of the prompts. Preservation, against the parent from the same cameras: PSNR, "
    "intersection over union of the silhouettes, and likeness, the cosine of the judge's features; "
    "against the true object, for another colour: PSNR of the parts that should keep theirs, and "
    "Chamfer distance of the shape, world units. "
    "Foreground: fraction of the pixels. Side: fraction of the views whose side the judge names "
    "correctly. Janus: fraction of the side and back views that resemble the front more. A success "
    "has the correct object, and colour if the prompt names one, in at least 6 of 8 views; a "
    "repair also the correct side. Success rates with Wilson's, means with Student's 95 % "
    "intervals.</p>"
)
PRESERVATION = (
    "psnr",
    "silhouette",
    "likeness",
    "psnr_kept",
    "chamfer_kept",
    "foreground",
    "view_right",
    "janus",
)
"""The scores of the second table; the first shows agreement with the new prompt."""


def page(title: str, parts: Iterable[str]) -> str:
    """A complete document."""
    name = escape(title)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en">{head}\n<h1>{name}</h1>\n{body}\n</html>\n'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are HTML."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = (f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    inner = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide"><table>{inner}</table></div>'


def image(path: Path, alt: str, css: str = "strip") -> str:
    """An embedded image file; empty if it does not exist."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    source = f"data:image/{path.suffix.removeprefix('.')};base64,{data}"
    return f'<img class="{css}" alt="{escape(alt)}" src="{source}">'


def rate(successes: int, trials: int) -> str:
    """ "7/9 [45, 94] %", with Wilson's interval."""
    if not trials:
        return ""
    found = wilson(successes, trials)
    return f"{successes}/{trials} <small>[{100 * found.low:.0f}, {100 * found.high:.0f}] %</small>"


def interval(mean: Mean | Mapping[str, Any] | None, digits: int = 3, signed: bool = False) -> str:
    """ "0.912 [0.880, 0.950]"; no interval if there is only one value."""
    if mean is None:
        return ""
    facts = mean._asdict() if isinstance(mean, Mean) else mean
    centre, low, high = (_number(facts[key], digits, signed) for key in ("mean", "low", "high"))
    return f"{centre} <small>[{low}, {high}]</small>" if low else centre


def _number(value: float | None, digits: int, signed: bool) -> str:
    """A number; zero has no sign, None and NaN are empty."""
    if value is None or value != value:
        return ""
    value = round(value, digits) + 0.0
    return f"{value:{'+' if signed and value else ''}.{digits}f}"


def _digits(measure: str) -> int:
    return 1 if measure.startswith("psnr") else 3


def _arm(name: str) -> str:
    return f"<b>{escape(name)}</b> {escape(arm_of(name).title)}"


def _claims(sentences: Iterable[str]) -> list[str]:
    return [f'<p class="claim">{sentence}</p>' for sentence in sentences]


def _arm_tables(results: Results) -> str:
    """Agreement with the new prompt per arm, and preservation of the parent."""
    summaries = summary(results)
    known = [m for m in MEASURES if any(m in facts for facts in summaries.values())]
    agreement = [m for m in known if m not in PRESERVATION]
    preservation = [m for m in known if m in PRESERVATION]

    def cells(facts: dict[str, Any], measures: list[str]) -> list[str]:
        return [interval(facts.get(measure), _digits(measure)) for measure in measures]

    def escape_cells(facts: dict[str, Any]) -> list[str]:
        success, steps, norm = (
            facts[key] for key in ("success", "steps_to_success", "displacement")
        )
        return [
            rate(success["successes"], success["trials"]),
            "" if steps is None else f"{steps:g}",
            f"{norm:.3g}" if norm else "",
        ]

    head = ["arm", "success", "steps to it, median", "displacement by the escape"]
    return table(
        [*head, *(MEASURES[measure] for measure in agreement)],
        [[_arm(arm), *escape_cells(f), *cells(f, agreement)] for arm, f in summaries.items()],
    ) + table(
        ["arm", *(MEASURES[measure] for measure in preservation)],
        [[_arm(arm), *cells(facts, preservation)] for arm, facts in summaries.items()],
    )


def verdict(results: Results) -> list[str]:
    """MODEL_ARM against each other arm, a sentence of HTML each; a difference is significant if the
    95 % interval of the paired differences excludes 0."""
    sentences = []
    for other, mean in differences(results, "probability").items():
        if mean.count < 2:
            finding = "one seed only, against"
        elif max(abs(mean.low), abs(mean.high)) < 0.01:
            finding = "equal to"
        elif mean.low <= 0 <= mean.high:
            finding = "no significant difference from"
        else:
            finding = "better than" if mean.low > 0 else "worse than"
        sentences.append(
            f"{MODEL_ARM}: {finding} {escape(other)} ({escape(arm_of(other).title)}): "
            f"probability of the new prompt {interval(mean, 3, True)}, seeds: {mean.count}."
        )
    return sentences


def _parent_strip(parent: Run, path: Path) -> Path:
    """The parent's eight views as a file."""
    if not path.is_file():
        write_png(strip(fixed_views(finished_scene(parent), parent.config.camera).rgb), path)
    return path


def figure(caption: str, *images: str) -> str:
    """Images beside a caption of HTML."""
    return f"<figure><figcaption>{caption}</figcaption>{''.join(images)}</figure>"


def _outcome(result: Result | None) -> str:
    if result is None:
        return "not finished"
    hit = result["success"]
    return f'<span class="{"hit" if hit else "miss"}">{"success" if hit else "miss"}</span>'


def _turntable(run: Run | None) -> str:
    return "" if run is None else image(run.path / "turntable.webp", "turntable", "turn")


def _trial_figure(trial: Trial) -> str:
    caption = f"{_arm(trial.arm)}, seed {trial.seed}: {_outcome(result_of(trial.folder))}"
    views = image(trial.folder / "views.png", f"eight views of {trial.prompt}")
    return figure(caption, views, _turntable(newest_run(trial.folder)))


def _times(results: Results) -> str:
    seconds = {arm: [r["seconds"] for r in own if "seconds" in r] for arm, own in results.items()}
    medians = [f"{escape(arm)} {np.median(own):.0f} s" for arm, own in seconds.items() if own]
    return f"<p>Time of the steps, median per arm, with other load: {', '.join(medians)}.</p>"


def write_comparison(comparison: Comparison) -> Path:
    """Write FOLDER/report.html from the finished trials."""
    results = {arm: own for arm, own in comparison.results.items() if own}
    parent, recipe, seeds = Run(comparison.parent), comparison.recipe, comparison.seeds
    before = image(
        _parent_strip(parent, comparison.folder / "parent.png"), "eight views of the parent"
    )
    parts = [
        f"<p>Every arm: {recipe.steps} steps and as many UNet calls, from the same parent "
        f"<code>{escape(parent.id)}</code>. Arms that ascend do so in {recipe.ascent_steps} steps "
        f"at S = {recipe.scale:g}. Judge: {escape(recipe.judge)}.</p>",
        *_claims(
            verdict(results) or [f"{MODEL_ARM} was not compared with another arm: no conclusion."]
        ),
        "<h2>Before and after</h2>",
        figure(f"<b>parent</b> {escape(parent.prompt)}", before, _turntable(parent)),
        *(_trial_figure(comparison.trial(arm, seeds[0])) for arm in results),
    ]
    if len(seeds) > 1:
        rest = [_trial_figure(comparison.trial(arm, s)) for s in seeds[1:] for arm in results]
        parts.append(f"<details><summary>Other seeds</summary>{''.join(rest)}</details>")
    parts += [
        "<h2>Scores</h2>",
        _arm_tables(results),
        LEGEND,
        *([_difference_table(results)] if MODEL_ARM in results else []),
        "<h2>Over the steps</h2>",
        *curves_of(results, recipe.ascent_steps),
        _times(results),
    ]
    path = comparison.folder / "report.html"
    write_atomic(path, page(f"{parent.prompt} → {comparison.prompt}", parts).encode())
    return path


def _difference_table(results: Results) -> str:
    minus = {m: differences(results, m) for m in ("probability", "psnr", "silhouette")}
    rows = [
        [
            f"{MODEL_ARM} minus {escape(other)}",
            *(interval(d.get(other), _digits(m), signed=True) for m, d in minus.items()),
        ]
        for other in results
        if other != MODEL_ARM
    ]
    return table(["paired over seeds", *(MEASURES[measure] for measure in minus)], rows)


def write_benchmark(benchmark: EditBenchmark) -> Path:
    """Write FOLDER/report.html from the finished trials."""
    results = {arm: own for arm, own in benchmark.results.items() if own}
    by_kind, recipe, tests = benchmark.results_by_kind, benchmark.recipe, paired_tests(results)
    rates = [
        [_arm(arm), rate(*_count(own)), *(rate(*_count(kind[arm])) for kind in by_kind.values())]
        for arm, own in results.items()
    ]
    success = {arm: success_by_step(own, recipe.steps) for arm, own in results.items()}
    parts = [
        f"<p>{len(benchmark.pairs)} edits of {len(by_kind)} kinds, seeds: {len(benchmark.seeds)}, "
        f"arms: {len(benchmark.arms)}, {recipe.steps} steps each. Arms that ascend do so in "
        f"{recipe.ascent_steps} steps at S = {recipe.scale:g}. Judge: {escape(recipe.judge)}. "
        f"Finished: {sum(map(len, results.values()))} trials.</p>",
        *_claims(map(escape, benchmark_verdict(tests))),
        "<h2>Successes</h2>",
        table(["arm", "all", *by_kind], rates),
        "<p>A success: the judge names the object, and the colour if the prompt names one, "
        "correctly in at least 6 of 8 views; in a repair, whose prompt is the parent's own, also "
        "the side in three quarters of the views. Wilson intervals, 95 %.</p>",
        *([_test_table(tests)] if tests else []),
        plot(
            success,
            "fraction of the edits that have succeeded, without repairs",
            recipe.ascent_steps,
            steps=True,
        ),
        "<h2>Scores over all trials</h2>",
        _arm_tables(results),
        LEGEND,
        "<p>Trials of one pair are not independent: these intervals are too narrow.</p>",
        "<h2>Over the steps</h2>",
        *curves_of(results, recipe.ascent_steps),
        _times(results),
        *_rejected(benchmark),
        "<h2>Every edit</h2>",
        *_gallery(benchmark),
    ]
    path = benchmark.folder / "report.html"
    write_atomic(path, page("Benchmark of edits", parts).encode())
    return path


def _test_table(tests: Mapping[str, tuple[PairedTest, Mean]]) -> str:
    head = ["paired", "only the first", "only the second", "both", "neither", "p", "p, Holm"]
    rows = [
        [
            name,
            *map(str, test[:4]),
            f"{test.p:.3g}",
            f"{test.p_holm:.3g}",
            interval(gap, 3, signed=True),
        ]
        for name, (test, gap) in tests.items()
    ]
    return table([*head, "difference, over pairs"], rows) + (
        "<p>McNemar's exact test over all trials that both arms have finished, adjusted by Holm "
        "for the tests of this table. Trials of one pair are not independent, hence the last "
        "column: the difference of the success rates per pair, bootstrapped over pairs.</p>"
    )


def benchmark_verdict(tests: Mapping[str, tuple[PairedTest, Mean]]) -> list[str]:
    """The results of the paired tests, a sentence each."""
    sentences = []
    for name, (test, gap) in tests.items():
        arm, other = name.split(AGAINST)
        if test.p_holm >= 0.05:
            finding = "no significant difference from"
        else:
            more = test.only_first > test.only_second
            finding = f"succeeds {'more' if more else 'less'} often than"
        sentences.append(
            f"{arm}: {finding} {other} ({arm_of(other).title}): only {arm} {test.only_first}, "
            f"only {other} {test.only_second} trials, p = {test.p_holm:.2g} after Holm; "
            f"{100 * gap.mean:+.1f} points over {gap.count} pairs."
        )
    return sentences or ["Too few trials have finished to compare arms."]


def _count(results: Sequence[Result]) -> tuple[int, int]:
    return sum(r["success"] for r in results), len(results)


def _rejected(benchmark: EditBenchmark) -> list[str]:
    names = benchmark.rejected
    if not names:
        return []
    return [f"<p>Left out, as the judge accepted no parent: {escape(', '.join(names))}.</p>"]


def _gallery(benchmark: EditBenchmark) -> Iterable[str]:
    """Each pair's parent and the results of the first seed, with the outcomes of all seeds."""
    first = benchmark.seeds[0]
    for pair in benchmark.pairs:
        comparison = benchmark.comparison(pair, first)
        if comparison is None or not any(comparison.results.values()):
            continue
        edit = f"{escape(pair.source)} → {escape(pair.prompt)}"
        yield f"<h3>{edit} <small>{escape(pair.kind)}</small></h3>"
        parent = Run(comparison.parent)
        before = _parent_strip(parent, parent.path.parent / "views.png")
        yield figure("<b>parent</b>", image(before, f"eight views of {pair.source}"))
        for arm in benchmark.arms:
            folders = {seed: benchmark.trial_folder(pair, arm, seed) for seed in benchmark.seeds}
            outcomes = ", ".join(
                f"{seed}: {_outcome(result_of(folder))}" for seed, folder in folders.items()
            )
            views = image(folders[first] / "views.png", f"eight views of {pair.prompt}")
            yield figure(f"{_arm(arm)}<br><small>seed {outcomes}</small>", views)
