"""Report of a comparison: one self-contained HTML file with the verdict, tables and inline SVG
plots."""

import html
import io
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamsa.files import write_atomic
from dreamsa.settings import values_of
from dreamsa.statistics import student_mean
from train_cls.compare import history, is_control, table, verdict, write_csv
from train_cls.config import TrainConfig, read
from train_cls.forgetting import ACCURACY, DISTANCE, FORGOTTEN
from train_cls.run import diverged, is_finished, scores_of

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1f; background: #fff }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin: 2rem 0 .2rem }
svg { width: 100%; height: auto; display: block }
table { border-collapse: collapse; margin: 1rem 0; min-width: 50% }
table { font-variant-numeric: tabular-nums }
td, th { padding: .25rem .5rem; font-size: .95rem; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #d5d5de; font-weight: 600 }
th:first-child, td:first-child { text-align: left }
tr:nth-child(even) td { background: #f6f6f9 }
tr.claimed td { background: #e6eeff; font-weight: 600 }
.claim { font-size: 1.2rem; padding: .8rem 1rem; background: #eef3ff }
.claim { border-left: .3rem solid #2f5bd0 } .note { color: #55555f; font-size: .9rem }
.wide { overflow-x: auto }
"""
COLOURS = ("#d9541e", "#2a9d4a", "#8e44ad", "#0e8fa8", "#b5a100", "#c2185b", "#6d4c41", "#5c6b7a")
STYLES = ("-", "--", ":")
CLAIMED = "#2f5bd0"


def write_report(
    folder: Path,
    arms: Sequence[str],
    seeds: Sequence[int],
    arm: str = "seal",
    score: str = "test accuracy",
) -> Path:
    """Write FOLDER/report.html and FOLDER/scores.csv from the finished runs of a comparison.

    Raises:
        ValueError: No run has finished.
    """
    scores = table(folder, arms, seeds, score)
    if not scores:
        raise ValueError(
            f"No run in {folder} has a {score} yet. Run: train-cls compare "
            f"{shlex.quote(str(folder))}"
        )
    write_csv(scores, folder / "scores.csv", score)
    answer = verdict(scores, arm)
    other = {name: table(folder, arms, seeds, name) for name in ("test nll", "test ece")}
    scores = _by_difference(scores, answer)
    parts = [
        f"<h1>Comparison: {html.escape(folder.name)}</h1>",
        f'<p class="claim">{html.escape(answer["claim"])}</p>',
        _score_table(scores, answer, arm, score, other, _seconds(folder, scores)),
        _forest(answer, scores, arm),
        _diverged(folder, arms, seeds),
        _unfinished(folder, arms, seeds),
        '<p class="note">Scores are of the last epoch. All arms of a seed compute the same number '
        "of gradients (sam two per step, hence half the generations; normal one generation). All "
        "except those trained from scratch share their first generation. Differences are paired "
        "over common seeds; intervals are Student's, of 95 %; p-values are of paired t-tests, "
        "adjusted for the number of arms (Holm). * a control: the claim is about the best of them"
        f"{_choice(answer)}. Seconds are of training one run, shared generations included and "
        "evaluation left out; runs side by side slow each other.</p>",
        _ascents(folder, scores),
        _seed_table(scores, arm, score),
        _settings(folder, scores),
        f"<h2>{score.capitalize()} after each generation</h2>",
        _plot(_by_generation(folder, scores, score), arm, "generation", f"{score}, %"),
    ]
    for column, title in (
        ("accuracy", "Accuracy on training batches"),
        ("early_norm", "Norm of the early layers' weights"),
        ("early_lr", "Learning rate of the early layers, log scale, gaps where they are frozen"),
    ):
        curves, bands = _by_epoch(folder, scores, column, 100 if column == "accuracy" else 1)
        label = {
            "accuracy": "training accuracy, %",
            "early_norm": "||w||",
            "early_lr": "learning rate",
        }[column]
        parts += [
            f"<h2>{title}</h2>",
            _plot(curves, arm, "epoch", label, bands, log=column == "early_lr"),
        ]
    parts.append('<p class="note">Means over seeds. Bands: epochs that end in an ascent.</p>')
    path = folder / "report.html"
    title = f"<title>{html.escape(folder.name)}</title><style>{STYLE}</style>"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8">{title}'
    write_atomic(path, (head + "\n".join(parts) + "</html>\n").encode())
    return path


def _choice(answer: dict[str, Any]) -> str:
    """How the best control was chosen."""
    seeds = answer.get("choosing seeds")
    return f", chosen with seed {', '.join(seeds)} and judged with the others" if seeds else ""


def _by_difference(
    scores: dict[str, dict[str, float]], answer: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """The arms by their paired difference, which is fair to arms with fewer seeds."""
    differences = answer.get("differences", {})

    def difference(arm: str) -> float:
        return differences[arm]["mean"] if arm in differences else 0.0

    return {arm: scores[arm] for arm in sorted(scores, key=difference)}


def _seconds(folder: Path, scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean seconds of training, by arm."""
    return {
        arm: float(
            np.mean([sum(row["seconds"] for row in history(folder, arm, seed)) for seed in by_seed])
        )
        for arm, by_seed in scores.items()
    }


def _table(head: Sequence[str], lines: Iterable[str]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f'<div class="wide"><table><tr>{cells}</tr>{"".join(lines)}</table></div>'


def _row(arm: str, cells: Iterable[str], claimed: bool) -> str:
    """A row of a table whose first column names the arm, controls with a star."""
    mark, name = ' class="claimed"' if claimed else "", html.escape(arm)
    star = " *" if is_control(arm) else ""
    return f"<tr{mark}><td>{name}{star}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _score_table(
    scores: dict[str, dict[str, float]],
    answer: dict[str, Any],
    arm: str,
    score: str,
    other: dict[str, dict[str, dict[str, float]]],
    seconds: dict[str, float],
) -> str:
    """One row per arm: its score, the paired difference, and what it costs."""
    lines = []
    for name, by_seed in scores.items():
        own = student_mean(list(by_seed.values()))
        d = answer.get("differences", {}).get(name)
        versus = [""] * 4
        if d is not None:
            wins = f"{d['wins']}/{d['count']}"
            p = "" if d["p_holm"] != d["p_holm"] else f"{d['p_holm']:.3f}"
            versus = [f"{100 * d['mean']:+.2f}", _interval(d, "+"), p, wins]
        more = [
            f"{np.mean(list(found[name].values())):.3f}" if name in found else ""
            for found in other.values()
        ]
        mean = [str(len(by_seed)), f"{100 * own.mean:.2f}", _interval(own._asdict())]
        lines.append(
            _row(name, [*mean, *versus, *more, f"{seconds[name]:,.0f}"], claimed=name == arm)
        )
    head = ["arm", "seeds", f"{score}, %", "95 %", f"{arm} minus it", "95 %", "p", "wins"]
    return _table([*head, "NLL", "ECE", "seconds"], lines)


def _seed_table(scores: dict[str, dict[str, float]], arm: str, score: str) -> str:
    """One row per arm, one column per seed."""
    seeds = sorted({seed for by_seed in scores.values() for seed in by_seed}, key=int)
    lines = [
        _row(
            name,
            [f"{100 * by_seed[seed]:.2f}" if seed in by_seed else "" for seed in seeds],
            claimed=name == arm,
        )
        for name, by_seed in scores.items()
    ]
    title = f"<h2>{score.capitalize()} of every seed, %</h2>"
    return title + _table(["arm", *(f"seed {seed}" for seed in seeds)], lines)


def _settings(folder: Path, scores: dict[str, dict[str, float]]) -> str:
    """Settings in which the arms differ from each other, and the shared ones from the defaults."""
    runs = {
        arm: values_of(read(folder / arm / f"seed-{min(by_seed, key=int)}" / "config.json"))
        for arm, by_seed in scores.items()
    }
    default = values_of(TrainConfig())
    names = [name for name in default if name not in ("method", "seed", "splits.seed")]
    own = [name for name in names if len({repr(run[name]) for run in runs.values()}) > 1]
    lines = [
        _row(arm, [html.escape(str(run[name])) for name in own], False) for arm, run in runs.items()
    ]
    shared = next(iter(runs.values()))
    rest = [
        f"{name} = {shared[name]}"
        for name in names
        if name not in own and shared[name] != default[name]
    ]
    text = f"Settings of all arms that are not the defaults: {'; '.join(rest) or 'none'}."
    note = f'<p class="note">{html.escape(text)}</p>'
    return "<h2>Settings</h2>" + (_table(["arm", *own], lines) if own else "") + note


def _diverged(folder: Path, arms: Sequence[str], seeds: Sequence[int]) -> str:
    """Which runs are missing from the table because they diverged."""
    lost = {
        arm: [str(seed) for seed in seeds if diverged(folder / arm / f"seed-{seed}")]
        for arm in arms
    }
    words = [f"{html.escape(arm)} with seed {', '.join(of)}" for arm, of in lost.items() if of]
    return f'<p class="claim">Diverged: {"; ".join(words)}.</p>' if words else ""


def _unfinished(folder: Path, arms: Sequence[str], seeds: Sequence[int]) -> str:
    """How many runs are still missing from the table."""
    count = sum(
        not is_finished(run) and diverged(run) is None
        for arm in arms
        for run in (folder / arm / f"seed-{seed}" for seed in seeds)
    )
    words = f"Unfinished: {count} of {len(arms) * len(seeds)} runs; the same command resumes them."
    return f'<p class="claim">{words}</p>' if count else ""


def _ascents(folder: Path, scores: dict[str, dict[str, float]]) -> str:
    """What the ascents did, by arm, with a sentence about those that made nothing forgotten."""
    lines, kept = [], []
    for name, by_seed in scores.items():
        ends = [row for seed in by_seed for row in history(folder, name, seed) if ACCURACY in row]
        if not ends:
            continue
        accuracies = [row[ACCURACY] for row in ends]
        forgot = sum(accuracy <= FORGOTTEN for accuracy in accuracies)
        means = [np.mean(accuracies), max(accuracies), np.mean([row[DISTANCE] for row in ends])]
        numbers = [f"{100 * value:.1f}" for value in means[:2]] + [f"{100 * means[2]:.2f}"]
        lines.append(_row(name, [f"{forgot} of {len(ends)}", *numbers], False))
        if np.mean(accuracies) > FORGOTTEN:
            kept.append(name)
    if not lines:
        return ""
    note = (
        f'<p class="claim">Did not forget: {html.escape(", ".join(kept))}. An ascent is meant to '
        f"bring the training accuracy below {100 * FORGOTTEN:.0f} %; what these arms show is "
        "their schedule and resets, not ascending.</p>"
        if kept
        else ""
    )
    head = ["arm", "ascents that forgot", "training accuracy after them, %", "highest"]
    table = _table([*head, "|dw|/|w| of their layers, %"], lines)
    return f"<h2>What the ascents did</h2>{table}{note}"


def _interval(d: dict[str, Any], sign: str = "") -> str:
    return (
        "" if d["low"] != d["low"] else f"[{100 * d['low']:{sign}.2f}, {100 * d['high']:{sign}.2f}]"
    )


Curve = tuple[list[float], list[float]]


def _by_generation(
    folder: Path, scores: dict[str, dict[str, float]], score: str
) -> dict[str, Curve]:
    """Mean over seeds of a score at the end of every generation, in per cent, by arm."""
    found: dict[str, Curve] = {}
    for name, by_seed in scores.items():
        ends: dict[int, dict[str, float]] = {}
        for seed in by_seed:
            for row in history(folder, name, seed):
                if score in row:
                    ends.setdefault(row["generation"], {})[seed] = 100 * scores_of(row)[score]
        found[name] = (sorted(ends), [float(np.mean(list(ends[g].values()))) for g in sorted(ends)])
    return found


def _by_epoch(
    folder: Path, scores: dict[str, dict[str, float]], column: str, factor: float
) -> tuple[dict[str, Curve], set[int]]:
    """Mean over seeds of a column of the metrics by arm, and the epochs that end in an ascent."""
    found: dict[str, Curve] = {}
    bands: set[int] = set()
    for name, by_seed in scores.items():
        values: dict[int, list[float]] = {}
        for seed in by_seed:
            for row in history(folder, name, seed):
                values.setdefault(row["epoch"], []).append(factor * row[column])
                if row["phase"] == "ascend":
                    bands.add(row["epoch"])
        found[name] = (sorted(values), [float(np.mean(values[e])) for e in sorted(values)])
    return found, bands


def _plot(
    curves: dict[str, Curve], arm: str, x: str, y: str, bands: Iterable[int] = (), log: bool = False
) -> str:
    """SVG with one line per arm, the claimed one on top, and shaded ascents."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(3.9)
    for epoch in bands:
        axes.axvspan(epoch - 1, epoch, color=CLAIMED, alpha=0.08, linewidth=0)
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        colour, style, width = (
            COLOURS[i % len(COLOURS)],
            STYLES[i // len(COLOURS) % len(STYLES)],
            1.3,
        )
        if name == arm:
            colour, style, width = CLAIMED, "-", 2.6
        shown = [value if value > 0 or not log else float("nan") for value in ys]
        axes.plot(
            xs,
            shown,
            style,
            color=colour,
            linewidth=width,
            label=name,
            zorder=3 if name == arm else 2,
            marker="o" if len(xs) < 12 else "",
            markersize=3.5,
        )
    if log:
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return _svg(figure)


def _forest(answer: dict[str, Any], scores: dict[str, dict[str, float]], arm: str) -> str:
    """SVG of the paired differences and their intervals, one line per arm; empty without any."""
    differences = {
        name: answer["differences"][name]
        for name in scores
        if name in answer.get("differences", {})
        and answer["differences"][name]["low"] == answer["differences"][name]["low"]
    }
    if not differences:
        return ""
    figure, axes = _figure(0.9 + 0.28 * len(differences))
    for height, d in enumerate(reversed(differences.values())):
        low, mean, high = (100 * d[key] for key in ("low", "mean", "high"))
        colour = CLAIMED if low > 0 or high < 0 else "#8a8a94"
        axes.plot([low, high], [height, height], color=colour, linewidth=2)
        axes.plot(mean, height, "o", color=colour, markersize=5)
    names = [f"{name}{' *' if is_control(name) else ''}" for name in reversed(differences)]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.axvline(0, color="#1b1b1f", linewidth=0.8)
    axes.set_xlabel(f"{arm} minus the arm, points, with 95 % intervals")
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return _svg(figure)


def _figure(height: float) -> tuple[Any, Any]:
    """A figure without pyplot, whose backend is the caller's affair."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
