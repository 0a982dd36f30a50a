"""Curves of arms over the steps, as inline SVG."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from dreamsa.studies.arms import MODEL_ARM, base_of
from dreamsa.studies.plans import Result
from dreamsa.studies.tables import Results, total_norm

Points = Sequence[tuple[float, float]]
LINE_STYLES = ("-", "--", ":", "-.")
"""Of the variants of one arm."""
ASCENT_COLOUR = "#4a6fd6"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plot(
    series: Mapping[str, Points],
    title: str,
    ascent: int = 0,
    fraction: bool = True,
    steps: bool = False,
) -> str:
    """A line per arm over the steps, as SVG. Leaves matplotlib's backend and style unchanged.

    Args:
        ascent: Number of steps at the start to shade as ascent.
        fraction: Values in [0, 1]; otherwise the axis is logarithmic.
        steps: Draw a step function.
    """
    with rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(7.5, 3.0), layout="constrained")
        axes = figure.subplots()
        if ascent:
            axes.axvspan(
                0, ascent, color=ASCENT_COLOUR, alpha=0.12, linewidth=0, label="ascending steps"
            )
        for arm, points in series.items():
            if points:
                base = base_of(arm)
                variants = [name for name in series if base_of(name) == base]
                axes.plot(
                    *zip(*points, strict=True),
                    label=arm,
                    color=base.colour,
                    linestyle=LINE_STYLES[variants.index(arm) % len(LINE_STYLES)],
                    linewidth=2.2 if arm == MODEL_ARM else 1.3,
                    drawstyle="steps-post" if steps else None,
                )
        if fraction:
            axes.set_ylim(-0.02, 1.02)
        elif any(y > 0 for points in series.values() for _, y in points):
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_title(title, loc="left")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        out = io.StringIO()
        unstamped = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=unstamped)
    svg = out.getvalue()
    return svg[svg.index("<svg") :]


Reader = Callable[[Result], Sequence[tuple[float, float | None]]]
"""(step, value) of one trial."""


def mean_curves(results: Results, read: Reader) -> dict[str, Points]:
    """Per arm, the mean over its trials at each step."""
    curves: dict[str, Points] = {}
    for arm, own in results.items():
        values: dict[float, list[float]] = {}
        for result in own:
            for step, value in read(result):
                if value is not None:
                    values.setdefault(step, []).append(value)
        curves[arm] = [(step, float(np.mean(those))) for step, those in sorted(values.items())]
    return curves


def _score(measure: str) -> Reader:
    return lambda result: [(row["step"], row.get(measure)) for row in result["curve"]]


def _distance(result: Result) -> Sequence[tuple[float, float | None]]:
    return [
        (row["step"], total_norm({k: v for k, v in row.items() if k != "step"}))
        for row in result.get("moved", [])
    ]


def curves_of(results: Results, ascent_steps: int) -> list[str]:
    """Plots of the scores during the edits and of the distance from the parent."""
    ascends = any(base_of(arm).name in (MODEL_ARM, "regularizers") for arm in results)
    ascent = ascent_steps if ascends else 0
    probability = mean_curves(results, _score("probability"))
    plots = [plot(probability, "probability of the new prompt, mean of four views", ascent)]
    if any("colour_right" in row for own in results.values() for r in own for row in r["curve"]):
        colour = mean_curves(results, _score("colour_right"))
        plots.append(plot(colour, "fraction of the views with the correct colour", ascent))
    distance = mean_curves(results, _distance)
    plots.append(
        plot(distance, "distance of the parameters from the parent's", ascent, fraction=False)
    )
    return plots
