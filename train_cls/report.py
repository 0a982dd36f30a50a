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
from dreamsa.statistics import student_mean
from train_cls.compare import history, is_control, table, verdict, write_csv
from train_cls.forgetting import ACCURACY, DISTANCE, FORGOTTEN
from train_cls.run import diverged, scores_of

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1f; background: #fff }
body { max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin: 2rem 0 .2rem }
svg { width: 100%; height: auto; display: block }
table { border-collapse: collapse; margin: 1.5rem 0; width: 100% }
table { font-variant-numeric: tabular-nums }
td, th { padding: .25rem .5rem; font-size: .95rem; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #d5d5de; font-weight: 600 }
th:first-child, td:first-child { text-align: left }
tr:nth-child(even) td { background: #f6f6f9 }
tr.claimed td { background: #e6eeff; font-weight: 600 }
.claim { font-size: 1.2rem; padding: .8rem 1rem; background: #eef3ff }
.claim { border-left: .3rem solid #2f5bd0 } .note { color: #55555f; font-size: .9rem }
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
    parts = [
        f"<h1>Comparison: {html.escape(folder.name)}</h1>",
        f'<p class="claim">{html.escape(answer["claim"])}</p>',
        _score_table(scores, answer, arm, score, other),
        _diverged(folder, arms, seeds),
        _ascents(folder, scores),
        '<p class="note">Scores are of the last epoch. All arms of a seed compute the same number '
        "of gradients (sam two per step, hence half the generations; normal one generation). All "
        "except those trained from scratch share their first generation. Differences are paired "
        "over common seeds; intervals are Student's, of 95 %; p-values are of paired t-tests, "
        "adjusted for the number of arms (Holm). * a control: the claim is about the best of them"
        f"{_choice(answer)}.</p>"
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


def _score_table(
    scores: dict[str, dict[str, float]],
    answer: dict[str, Any],
    arm: str,
    score: str,
    other: dict[str, dict[str, dict[str, float]]],
) -> str:
    """One row per arm, sorted by the paired difference, which is fair to arms with fewer seeds."""
    lines = [
        f"<table><tr><th>arm</th><th>seeds</th><th>{score}, %</th><th>95 %</th>"
        f"<th>{html.escape(arm)} minus it</th><th>95 %</th><th>p</th><th>wins</th>"
        "<th>NLL</th><th>ECE</th></tr>"
    ]
    differences = answer.get("differences", {})

    def difference(name: str) -> float:
        return differences[name]["mean"] if name in differences else 0.0

    for name, by_seed in sorted(scores.items(), key=lambda item: difference(item[0])):
        own = student_mean(list(by_seed.values()))
        d = differences.get(name)
        versus = "<td></td>" * 4
        if d is not None:
            wins = f"{d['wins']}/{d['count']}"
            cells = f"{100 * d['mean']:+.2f}", _interval(d, "+"), f"{d['p_holm']:.3f}", wins
            versus = "".join(f"<td>{cell}</td>" for cell in cells)
        more = "".join(
            f"<td>{np.mean(list(found[name].values())):.3f}</td>" if name in found else "<td></td>"
            for found in other.values()
        )
        score_cells = f"<td>{100 * own.mean:.2f}</td><td>{_interval(own._asdict())}</td>"
        cells = f"<td>{len(by_seed)}</td>{score_cells}{versus}{more}"
        mark = ' class="claimed"' if name == arm else ""
        lines.append(
            f"<tr{mark}><td>{html.escape(name)}{' *' if is_control(name) else ''}</td>{cells}</tr>"
        )
    return "".join(lines) + "</table>"


def _diverged(folder: Path, arms: Sequence[str], seeds: Sequence[int]) -> str:
    """Which runs are missing from the table because they diverged."""
    lost = {
        arm: [str(seed) for seed in seeds if diverged(folder / arm / f"seed-{seed}")]
        for arm in arms
    }
    words = [f"{html.escape(arm)} with seed {', '.join(of)}" for arm, of in lost.items() if of]
    return f'<p class="claim">Diverged: {"; ".join(words)}.</p>' if words else ""


def _ascents(folder: Path, scores: dict[str, dict[str, float]]) -> str:
    """What the ascents did, by arm, with a sentence about those that made nothing forgotten."""
    lines, kept = [], []
    for name, by_seed in scores.items():
        ends = [row for seed in by_seed for row in history(folder, name, seed) if ACCURACY in row]
        if not ends:
            continue
        accuracies = [row[ACCURACY] for row in ends]
        distance = np.mean([row[DISTANCE] for row in ends])
        numbers = f"{100 * np.mean(accuracies):.1f}</td><td>{100 * max(accuracies):.1f}"
        cells = f"{len(ends)}</td><td>{numbers}</td><td>{100 * distance:.2f}"
        lines.append(f"<tr><td>{html.escape(name)}</td><td>{cells}</td></tr>")
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
    head = "<th>ascents</th><th>training accuracy after them, %</th><th>highest</th>"
    return (
        "<h2>What the ascents did</h2>"
        f"<table><tr><th>arm</th>{head}<th>|dw|/|w| of their layers, %</th></tr>"
        f"{''.join(lines)}</table>{note}"
    )


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
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(9.6, 3.9), layout="constrained")
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
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    plt.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
