"""Comparisons as one HTML file that opens from disk without a network: pictures inside, plots as inline SVG, tables, and the answer in words."""

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamsa import checkpoint
from dreamsa.evaluate.metrics import Mean, wilson
from dreamsa.evaluate.scores import finished_scene, fixed_views, strip
from dreamsa.evaluate.tables import AGAINST, MEASURES, differences, paired_tests, success_by_step, summary
from dreamsa.evaluate.trials import MODEL_ARM, Trial, arm_of, newest_run, result_of
from dreamsa.export.video import write_png
from dreamsa.runs import Run

if TYPE_CHECKING:
    from dreamsa.evaluate.benchmark import Benchmark
    from dreamsa.evaluate.compare import Comparison

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-size: .82rem; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .45rem; text-align: right; vertical-align: top } th { font-weight: 600; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; min-width: 11rem } tbody tr:nth-child(odd) { background: #f4f4f7 } small { color: #666; white-space: nowrap } td small { display: block }
.wide { overflow-x: auto } svg { max-width: 100%; height: auto } figure { margin: .6rem 0; display: flex; gap: .6rem; align-items: center; flex-wrap: wrap }
figcaption { flex: 0 0 13rem; font-size: .9rem } figure img { max-width: 100% } .strip { flex: 1 1 30rem; min-width: 0 } .turn { height: 6rem } .hit { color: #17692c } .miss { color: #a3242b }
.claim { font-size: 1.1rem; padding: .6rem 1rem; background: #eef3ff; border-left: .3rem solid #4a6fd6; margin: .4rem 0 }
"""
TITLES = {
    "probability": "new prompt",
    "r_precision": "R-precision",
    "object_right": "object",
    "colour_right": "colour",
    "probability_before": "old prompt",
    "directional_similarity": "direction",
    "psnr": "PSNR, dB",
    "silhouette": "silhouette",
    "likeness": "likeness",
    "foreground": "foreground",
    "view_right": "side",
    "janus": "Janus",
}
LEGEND = (
    "<p>New and old prompt: the judge's probability among distractors; R-precision: share of views for which the new prompt is the likeliest text; "
    "object, colour: share of views in which it is named right; direction: cosine between the change of the pictures and of the prompts. Kept of the "
    "parent from the same cameras: PSNR, overlap of the silhouettes, cosine of the judge's features. Foreground: share of pixels; side: share of views of which the judge names the side right; Janus: share of side and back "
    "views that look like a front. Successes (object, and colour where one is asked for, right in at least 6 of 8 views; of a repair the side, too) with Wilson intervals, means with Student's, 95 %.</p>"
)
COLOURS = {
    "A": "#8c8c94",
    "B": "#1b1b1f",
    "C": "#c9a227",
    "D": "#2f5fd0",
    "E": "#d1495b",
    "F": "#2a9d6f",
    "G": "#9b5fc0",
    "H": "#e07b00",
    "I": "#00a5cf",
}
STYLES = ("-", "--", ":", "-.")
"""Of the variants of one arm."""
SHADE = "#4a6fd6"


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document."""
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>\n'
    return f"{head}<h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</html>\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(path: Path, alt: str, css: str = "strip") -> str:
    """A file as an <img> that carries it; nothing where the file is not there."""
    if not path.is_file():
        return ""
    kind = path.suffix.removeprefix(".")
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img class="{css}" alt="{html.escape(alt)}" src="data:image/{kind};base64,{data}">'


def rate(successes: int, trials: int) -> str:
    """ "7/9 [45, 94] %": with Wilson's interval."""
    found = wilson(successes, trials)
    return f"{successes}/{trials} <small>[{100 * found.low:.0f}, {100 * found.high:.0f}] %</small>" if trials else ""


def interval(d: Mean | Mapping[str, Any] | None, digits: int = 3, signed: bool = False) -> str:
    """ "0.912 [0.880, 0.950]"; without an interval where one value alone gives none."""
    if d is None:
        return ""
    facts = d._asdict() if isinstance(d, Mean) else d
    mean, low, high = (_number(facts[name], digits, signed) for name in ("mean", "low", "high"))
    return f"{mean} <small>[{low}, {high}]</small>" if low else mean


def _number(value: float | None, digits: int, signed: bool) -> str:
    """Nothing for what is not known; a zero without a sign."""
    if value is None or value != value:
        return ""
    value = round(value, digits) + 0.0
    return f"{value:{'+' if signed and value else ''}.{digits}f}"


def _digits(measure: str) -> int:
    return 1 if measure == "psnr" else 3


def plot(
    series: Mapping[str, Sequence[tuple[float, float]]], title: str, shaded: float = 0, share: bool = True, steps: bool = False
) -> str:
    """One line per arm over the steps, as SVG: shares, or else sizes on a logarithmic axis. The first `shaded` steps, the ascent's, are shaded."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    with plt.rc_context(
        {"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure, axes = plt.subplots(figsize=(7.5, 3.0))
        if shaded:
            axes.axvspan(0, shaded, color=SHADE, alpha=0.12, linewidth=0, label="ascent (D, G)")
        for arm, points in series.items():
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(
                    x,
                    y,
                    label=arm,
                    color=COLOURS[arm[0]],
                    linestyle=STYLES[[a for a in series if a[0] == arm[0]].index(arm) % len(STYLES)],
                    linewidth=2.2 if arm == MODEL_ARM else 1.3,
                    drawstyle="steps-post" if steps else None,
                )
        if share:
            axes.set_ylim(-0.02, 1.02)
        elif any(y > 0 for points in series.values() for _, y in points):
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_title(title, loc="left")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        figure.tight_layout()
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        plt.close(figure)
    return out.getvalue()[out.getvalue().index("<svg") :]


Read = Callable[[dict[str, Any]], Sequence[tuple[float, float | None]]]


def mean_curves(results: Mapping[str, Sequence[dict[str, Any]]], read: Read) -> dict[str, list[tuple[float, float]]]:
    """Per arm the mean over its trials at each step that `read` finds."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for arm, own in results.items():
        at: dict[float, list[float]] = {}
        for result in own:
            for step, value in read(result):
                if value is not None:
                    at.setdefault(step, []).append(value)
        curves[arm] = [(step, float(np.mean(values))) for step, values in sorted(at.items())]
    return curves


def _looked(measure: str) -> Read:
    return lambda result: [(row["step"], row.get(measure)) for row in result["curve"]]


def _moved(result: dict[str, Any]) -> Sequence[tuple[float, float | None]]:
    rows = result.get("moved", [])
    return [(row["step"], sum(norm**2 for name, norm in row.items() if name != "step") ** 0.5) for row in rows]


def _curves(results: Mapping[str, Sequence[dict[str, Any]]], ascent: int) -> list[str]:
    shaded = ascent if any(arm_of(arm).escape in ("anneal", "regularizers") for arm in results) else 0
    parts = [plot(mean_curves(results, _looked("probability")), "probability of the new prompt, four views, mean over trials", shaded)]
    if any("colour_right" in row for own in results.values() for r in own for row in r["curve"]):
        parts.append(plot(mean_curves(results, _looked("colour_right")), "share of views whose colour is named right", shaded))
    parts.append(plot(mean_curves(results, _moved), "distance of the parameters from the parent's", shaded, share=False))
    return parts


KEPT = ("psnr", "silhouette", "likeness", "foreground", "view_right", "janus")
"""The scores of the second table; the first tells how well the new prompt is met."""


def _arm_tables(results: dict[str, list[dict[str, Any]]]) -> str:
    """How well each arm meets the new prompt; and what it keeps of the parent and of an object."""
    summed = summary(results)
    there = [m for m in MEASURES if any(m in facts for facts in summed.values())]
    met, kept = [m for m in there if m not in KEPT], [m for m in there if m in KEPT]

    def row(arm: str, facts: dict[str, Any], measures: list[str], first: list[str]) -> list[str]:
        return [f"<b>{arm}</b> {html.escape(facts['title'])}", *first, *(interval(facts.get(m), _digits(m)) for m in measures)]

    def escape(facts: dict[str, Any]) -> list[str]:
        quick, moved, success = facts["steps_to_success"], facts["displacement"], facts["success"]
        return [rate(success["successes"], success["trials"]), "" if quick is None else f"{quick:g}", f"{moved:.3g}" if moved else ""]

    head = ["arm", "success", "steps to it, median", "moved by the escape", *(TITLES[m] for m in met)]
    return table(head, [row(arm, facts, met, escape(facts)) for arm, facts in summed.items()]) + table(
        ["arm", *(TITLES[m] for m in kept)], [row(arm, facts, kept, []) for arm, facts in summed.items()]
    )


def verdict(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What the paired differences say of the arm D against each other one, a sentence of HTML each; "surely" means that the 95 % interval leaves out 0."""
    sentences = []
    for other, d in differences(results, "probability").items():
        said = "does better than" if d.low > 0 else "does worse than" if d.high < 0 else "does not differ surely from"
        if d.count < 2:
            said = "was tried once beside"
        elif max(abs(d.low), abs(d.high)) < 0.01:
            said = "does as well as"
        sentences.append(
            f"{MODEL_ARM} {said} {other} ({arm_of(other).title}): probability of the new prompt {interval(d, 3, True)}, seeds: {d.count}."
        )
    return sentences


def _parent_strip(parent: Run, path: Path) -> Path:
    """The parent's eight views as a file."""
    if not path.is_file():
        write_png(strip(fixed_views(finished_scene(parent), parent.config.camera).rgb), path)
    return path


def _figure(caption: str, *pictures: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{''.join(pictures)}</figure>"


def _outcome(result: dict[str, Any] | None) -> str:
    if result is None:
        return "not finished"
    return '<span class="hit">success</span>' if result["success"] else '<span class="miss">miss</span>'


def _trial_figure(trial: Trial, turntable: bool = True) -> str:
    result, run = result_of(trial.folder), newest_run(trial.folder)
    caption = f"<b>{trial.arm}</b> {html.escape(arm_of(trial.arm).title)}, seed {trial.seed}: {_outcome(result)}"
    turning = picture(run.path / "turntable.webp", "turntable", "turn") if run is not None and turntable else ""
    return _figure(caption, picture(trial.folder / "views.png", f"eight views of {trial.prompt}"), turning)


def _time(results: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    each = [
        f"{arm} {np.median([r['seconds'] for r in own if 'seconds' in r]):.0f} s"
        for arm, own in results.items()
        if any("seconds" in r for r in own)
    ]
    return f"<p>Time of the steps alone, median per arm, on whatever else the machine was doing: {', '.join(each)}.</p>"


def write_comparison(comparison: "Comparison") -> Path:
    """FOLDER/report.html from the trials that have finished."""
    results = {arm: own for arm, own in comparison.results.items() if own}
    parent, recipe = Run(comparison.parent), comparison.recipe
    before = _parent_strip(parent, comparison.folder / "parent.png")
    claims = verdict(results) or [f"Arm {MODEL_ARM} was not run beside another one: nothing to conclude."]
    parts = [
        f"<p>Every arm: {recipe.steps} steps and as many calls of the UNet (auto: 64 more) from the same parent, <code>{html.escape(parent.id)}</code>; {recipe.ascent_steps} "
        f"of them ascend at S = {recipe.scale:g} where an arm ascends. Judge: {html.escape(recipe.judge)}.</p>",
        *(f'<p class="claim">{claim}</p>' for claim in claims),
        "<h2>Before and after</h2>",
        _figure(
            f"<b>parent</b> {html.escape(parent.prompt)}",
            picture(before, "eight views of the parent"),
            picture(parent.path / "turntable.webp", "turntable", "turn"),
        ),
        *(_trial_figure(comparison.trial(arm, comparison.seeds[0])) for arm in results),
    ]
    if len(comparison.seeds) > 1:
        rest = [_trial_figure(comparison.trial(arm, seed)) for seed in comparison.seeds[1:] for arm in results]
        parts.append(f"<details><summary>The other seeds</summary>{''.join(rest)}</details>")
    minus = {m: differences(results, m) for m in ("probability", "psnr", "silhouette")}
    rows = [
        [f"{MODEL_ARM} minus {other}", *(interval(d.get(other), _digits(m), signed=True) for m, d in minus.items())]
        for other in results
        if other != MODEL_ARM
    ]
    parts += [
        "<h2>Scores</h2>",
        _arm_tables(results),
        LEGEND,
        *([table(["paired over seeds", *(html.escape(TITLES[m]) for m in minus)], rows)] if MODEL_ARM in results else []),
        "<h2>Over the steps</h2>",
        *_curves(results, recipe.ascent_steps),
        _time(results),
    ]
    path = comparison.folder / "report.html"
    checkpoint.write_atomic(path, page(f"{parent.prompt} → {comparison.prompt}", parts).encode())
    return path


def write_benchmark(benchmark: "Benchmark") -> Path:
    """FOLDER/report.html from the trials that have finished."""
    results, by_kind, recipe = benchmark.results, benchmark.results_by_kind, benchmark.recipe
    arms = [arm for arm in benchmark.arms if results[arm]]
    kinds = list(by_kind)
    tests = paired_tests(results)
    share = table(
        ["arm", "all", *kinds],
        [
            [
                f"<b>{arm}</b> {html.escape(arm_of(arm).title)}",
                rate(*_count(results[arm])),
                *(rate(*_count(by_kind[kind][arm])) for kind in kinds),
            ]
            for arm in arms
        ],
    )
    paired = table(
        ["paired", "only the first", "only the second", "both", "neither", "p", "p, Holm", "difference, over pairs"],
        [
            [name, *(str(n) for n in test[:4]), f"{test.p:.3g}", f"{test.p_holm:.3g}", interval(gap, 3, signed=True)]
            for name, (test, gap) in tests.items()
        ],
    )
    rejected = benchmark.rejected
    parts = [
        f"<p>{len(benchmark.pairs)} edits in {len({p.kind for p in benchmark.pairs})} kinds, seeds: {len(benchmark.seeds)}, arms: {len(benchmark.arms)}, {recipe.steps} steps each, "
        f"{recipe.ascent_steps} of them ascending at S = {recipe.scale:g} where an arm ascends. Judge: {html.escape(recipe.judge)}. "
        f"Finished: {sum(len(own) for own in results.values())} trials.</p>",
        *(f'<p class="claim">{html.escape(claim)}</p>' for claim in benchmark_verdict(tests)),
        "<h2>Successes</h2>",
        share,
        "<p>A success: the judge names the object, and the colour where one is asked for, right in at least 6 of 8 views, and for a repair, whose prompt is the parent's own, "
        "the side that it is seen from in three quarters. Wilson intervals, 95 %.</p>",
        *([paired, "<p>McNemar's exact test over all trials that both arms have finished, adjusted by Holm for the tests of this table. Trials of one pair are "
           "not independent, hence the last column: the difference of the success rates per pair, bootstrapped over pairs.</p>"] if tests else []),
        plot({arm: success_by_step(results[arm], recipe.steps) for arm in arms}, "share of the edits that have succeeded, over steps, repairs left out", recipe.ascent_steps, steps=True),
        "<h2>Scores over all trials</h2>",
        _arm_tables({arm: results[arm] for arm in arms}),
        LEGEND,
        "<p>Trials of one pair are not independent, so that these intervals are too narrow.</p>",
        "<h2>Over the steps</h2>",
        *_curves({arm: results[arm] for arm in arms}, recipe.ascent_steps),
        _time(results),
        *([f"<p>Left out, as the judge accepted no parent: {html.escape(', '.join(rejected))}.</p>"] if rejected else []),
        "<h2>Every edit</h2>",
        *_gallery(benchmark),
    ]  # fmt: skip
    path = benchmark.folder / "report.html"
    checkpoint.write_atomic(path, page("Benchmark of edits", parts).encode())
    return path


def benchmark_verdict(tests: Mapping[str, Any]) -> list[str]:
    """What the paired tests say, a sentence each."""
    sentences = []
    for name, (test, gap) in tests.items():
        arm, other = name.split(AGAINST)
        better = test.only_first > test.only_second
        said = (
            "does not differ surely from" if test.p_holm >= 0.05 else "succeeds more often than" if better else "succeeds less often than"
        )
        sentences.append(
            f"{arm} {said} {other} ({arm_of(other).title}): only {arm} {test.only_first}, only {other} {test.only_second} trials, "
            f"p = {test.p_holm:.2g} after Holm; {100 * gap.mean:+.1f} points over {gap.count} pairs."
        )
    return sentences or ["Too little has finished to compare arms."]


def _count(results: Sequence[dict[str, Any]]) -> tuple[int, int]:
    return sum(r["success"] for r in results), len(results)


def _gallery(benchmark: "Benchmark") -> Iterable[str]:
    """Per pair the parent and each arm's result for the first seed, with the outcomes of all seeds; misses as large as hits."""
    for pair in benchmark.pairs:
        comparison = benchmark.comparison(pair, benchmark.seeds[0])
        if comparison is None or not any(comparison.results.values()):
            continue
        yield f"<h3>{html.escape(pair.source)} → {html.escape(pair.prompt)} <small>{html.escape(pair.kind)}</small></h3>"
        parent = Run(comparison.parent)
        yield _figure("<b>parent</b>", picture(_parent_strip(parent, parent.path.parent / "views.png"), f"eight views of {pair.source}"))
        for arm in benchmark.arms:
            outcomes = [result_of(benchmark.trial_folder(pair, arm, seed)) for seed in benchmark.seeds]
            said = ", ".join(f"{seed}: {_outcome(result)}" for seed, result in zip(benchmark.seeds, outcomes, strict=True))
            views = picture(benchmark.trial_folder(pair, arm, benchmark.seeds[0]) / "views.png", f"eight views of {pair.prompt}")
            yield _figure(f"<b>{arm}</b> {html.escape(arm_of(arm).title)}<br><small>seed {said}</small>", views)
