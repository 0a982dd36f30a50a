"""A comparison as one HTML file that opens without a network: plots as inline SVG, tables, and the answer."""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train_cls.compare import paired_difference, table, verdict, write_csv
from train_cls.run import rows

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums } td, th { padding: .2rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) { background: #f4f4f7 } svg { width: 100%; height: auto }
.claim { font-size: 1.2rem; padding: .8rem 1rem; background: #eef3ff; border-left: .3rem solid #4a6fd6 }
"""


def write_report(folder: Path, arms: Sequence[str], seeds: Sequence[int], arm: str = "seal", score: str = "test accuracy") -> Path:
    """FOLDER/report.html and FOLDER/scores.csv from the finished runs of a comparison.

    Raises:
        ValueError: No run of it has finished.
    """
    scores = table(folder, arms, seeds, score)
    if not scores:
        raise ValueError(f"No run in {folder} has a {score} yet. Run: train-cls compare {folder}")
    write_csv(scores, folder / "scores.csv", score)
    answer = verdict(scores, arm)
    other = {name: table(folder, arms, seeds, name) for name in ("test nll", "test ece")}
    parts = [
        f"<h1>Comparison: {html.escape(folder.name)}</h1>",
        f'<p class="claim">{html.escape(answer["claim"])}</p>',
        _score_table(scores, answer, arm, score, other),
        "<h2>Accuracy over epochs</h2>",
        _curves(folder, scores, score, f"{score}, mean over seeds"),
        "<h2>Early layers</h2>",
        _curves(folder, scores, "early_norm", "norm of the early layers' weights"),
        _curves(folder, scores, "early_lr", "learning rate of the early layers"),
        "<p>Bands: epochs in which the early layers ascend. Every arm of a seed has the same steps, and all but those trained from "
        "scratch share their first generation. Accuracies are of the last epoch. Intervals: bootstrap over seeds, 95 %.</p>",
    ]
    path = folder / "report.html"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(folder.name)}</title><style>{STYLE}</style>'
    path.write_text(head + "\n".join(parts) + "</html>\n")
    return path


def _score_table(
    scores: dict[str, dict[str, float]], answer: dict[str, Any], arm: str, score: str, other: dict[str, dict[str, dict[str, float]]]
) -> str:
    lines = [
        f"<table><tr><th>arm</th><th>{score}, %</th><th>95 %</th><th>{arm} minus it</th><th>95 %</th><th>wins</th><th>NLL</th><th>ECE</th></tr>"
    ]
    for name, by_seed in sorted(scores.items(), key=lambda item: -float(np.mean(list(item[1].values())))):
        own = paired_difference(list(by_seed.values()), [0.0] * len(by_seed))
        d = answer.get("differences", {}).get(name)
        versus = f"<td>{100 * d['mean']:+.2f}</td><td>{_interval(d)}</td><td>{d['wins']}/{d['seeds']}</td>" if d else "<td></td>" * 3
        more = "".join(f"<td>{np.mean(list(found[name].values())):.3f}</td>" if name in found else "<td></td>" for found in other.values())
        cells = f"<td>{100 * own.mean:.2f}</td><td>{_interval(own._asdict())}</td>{versus}{more}"
        lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return "".join(lines) + "</table>"


def _interval(d: dict[str, Any]) -> str:
    return "" if d["low"] != d["low"] else f"[{100 * d['low']:+.2f}, {100 * d['high']:+.2f}]"


def _curves(folder: Path, scores: dict[str, dict[str, float]], column: str, title: str) -> str:
    """One line per arm, the mean over seeds, as SVG; ascents shaded."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4))
    bands: set[int] = set()
    for name, by_seed in scores.items():
        curves: dict[int, list[float]] = {}
        for seed in by_seed:
            for row in rows(folder / name / f"seed-{seed}"):
                if row.get(column) is not None:
                    curves.setdefault(row["epoch"], []).append(row[column])
                if row["phase"] == "ascend":
                    bands.add(row["epoch"])
        epochs = sorted(curves)
        axes.plot(epochs, [float(np.mean(curves[e])) for e in epochs], label=name, linewidth=1.4)
    for epoch in bands:
        axes.axvspan(epoch - 1, epoch, color="#4a6fd6", alpha=0.08, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_title(title)
    axes.legend(fontsize=7, ncols=3)
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
