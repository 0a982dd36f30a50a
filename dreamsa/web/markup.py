"""HTML of the page, as pure functions. All user input is escaped by `text`."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dreamsa.web.jobs import Status, sentence
from dreamsa.web.pace import duration

STATES = {"stopping": "stopping, saving", "created": "not started"}


def text(value: object) -> str:
    """A value as text, escaped for HTML and Markdown."""
    return html.escape(str(value), quote=True).replace("`", "&#96;")


def badge(status: Status, ascent_steps: int = 0) -> str:
    """State or phase of a run, coloured: "ascending 30/150", "queued, 2 ahead"."""
    kind, words = status.state, STATES.get(status.state, status.state)
    if status.state == "running":
        if status.stage or not status.phase:
            words = status.stage or "loading the model"
        elif status.phase.startswith("ascend"):
            kind, words = "ascending", f"ascending {status.step}/{ascent_steps}"
        else:
            kind, words = "descending", f"descending {status.step}/{status.steps}"
    elif status.state == "queued" and status.place:
        words = f"queued, {status.place} ahead"
    elif status.state in ("stopped", "failed") and status.step:
        words = f"{status.state} at {status.step}/{status.steps}"
    return f'<span class="badge {text(kind)}">{text(words)}</span>'


def card(
    status: Status,
    ascent_steps: int,
    lineage: Sequence[Mapping[str, str]],
    facts: str,
    verdict: str = "",
) -> str:
    """Head of the panel: prompt, ancestors, state, progress, remaining time, `facts`, and what the
    judge says."""
    done = 100 * status.step / max(status.steps, 1)
    mark = 100 * ascent_steps / max(status.steps, 1)
    ancestors = "".join(f"<span>{text(step['prompt'])}</span> → " for step in lineage)
    left = ""
    if status.state == "running" and status.eta_seconds and not status.stage:
        pace = f"{1000 * (status.seconds_per_step or 0):.0f} ms per step"
        left = f"about {duration(status.eta_seconds)} left, {pace}"
    return (
        f'<div class="card"><div class="lineage">{ancestors}</div><h2>{text(status.prompt)}</h2>'
        f'<p class="line">{badge(status, ascent_steps)}<span class="left">{left}</span></p>'
        '<div class="bar" role="progressbar" aria-label="steps done" aria-valuemin="0" '
        f'aria-valuenow="{status.step}" aria-valuemax="{status.steps}">'
        f'<i style="width:{done:.1f}%"></i>'
        + (f'<b style="width:{mark:.1f}%" title="ascent steps"></b>' if ascent_steps else "")
        + f'</div><p class="facts">{text(facts)}</p>'
        + (f'<p class="verdict">{text(verdict)}</p>' if verdict else "")
        + (f'<p class="message bad" role="alert">{text(status.error)}</p>' if status.error else "")
        + "</div>"
    )


def message(reply: str | Exception) -> str:
    """One line in reply to the user's action, or an error; empty for no words."""
    bad = isinstance(reply, Exception)
    kind, role = ("bad", "alert") if bad else ("good", "status")
    words = sentence(reply) if bad else reply
    return f'<p class="message {kind}" role="{role}">{text(words)}</p>' if words else ""


def hint(words: str) -> str:
    """A subdued line."""
    return f'<p class="hint">{text(words)}</p>'


def strip(statuses: Iterable[Status], failures: Sequence[Status] = ()) -> str:
    """One line with the running and the waiting jobs, and one with the newest failures."""
    parts = []
    for status in statuses:
        queued = status.state == "queued"
        sign = badge(status) if queued else '<span class="dot" title="running"></span>'
        steps = "" if queued else f" {status.step}/{status.steps}"
        parts.append(f"<span>{sign} {text(status.prompt)}{steps}</span>")
    words = "".join(parts) or "<span>Nothing is running.</span>"
    if failures:
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        reason = f"{failures[0].prompt} ({failures[0].id}): {failures[0].error}"
        words += f'<span class="failures">Failed: {text(reason)}{more}</span>'
    return f'<div class="strip" role="status" aria-label="jobs on this server">{words}</div>'


def tree(
    rows: Iterable[tuple[Status, int, str | None]],
    selected: str | None,
    damaged: Iterable[tuple[Path, str]] = (),
) -> str:
    """Runs as buttons, edits indented below their parents; then damaged runs, not selectable.

    Args:
        rows: (status, depth, thumbnail) of each run.
        damaged: (path of the record, reason) of each damaged run.
    """
    lines = []
    for status, depth, thumbnail in rows:
        pressed = "true" if status.id == selected else "false"
        button = f'button type="button" data-run="{text(status.id)}" aria-pressed="{pressed}"'
        words = status.prompt, status.id, STATES.get(status.state, status.state)
        lines.append(_row(button, words, status.state, min(depth, 6), thumbnail))
    for path, reason in damaged:
        words = f"{path.parent.name}/{path.name}", reason, "damaged"
        lines.append(_row("div", words, "failed"))
    return f'<div class="tree">{"".join(lines) or "<p>No runs yet.</p>"}</div>'


def _row(
    tag: str, words: tuple[str, str, str], kind: str, depth: int = 0, thumbnail: str | None = None
) -> str:
    image = '<span class="blank"></span>'
    if thumbnail:
        image = f'<img src="{text(thumbnail)}" alt="" width="48" height="48">'
    prompt, facts, state, kind = map(text, (*words, kind))
    return (
        f'<{tag} class="run" style="--depth:{depth}">{image}<span class="words">'
        f'<span class="prompt">{prompt}</span><span class="facts">{facts}</span></span>'
        f'<span class="badge {kind}">{state}</span></{tag.split()[0]}>'
    )


def animation(uri: str, alt: str, captions: Sequence[str] = ()) -> str:
    """A turntable, or two side by side in one image, with a caption under each."""
    kind = "pair" if captions else "single"
    spans = "".join(f"<span>{text(words)}</span>" for words in captions)
    image = f'<img src="{text(uri)}" alt="{text(alt)}"><figcaption>{spans}</figcaption>'
    return f'<figure class="turntable {kind}">{image}</figure>' if uri else ""


def curve(metrics: Sequence[Mapping[str, Any]], ascent_steps: int, steps: int) -> str:
    """<g, z> / |g| over the steps: projection of the latents z on the distillation gradient g.

    Dots are logged steps, the line is their moving mean, the ascent is shaded. Empty for fewer than
    two points.
    """
    points = [
        (row["step"], row["grad_dot_latents"] / row["grad_norm"])
        for row in metrics
        if row.get("grad_norm") and row.get("grad_dot_latents") is not None
    ]
    if len(points) < 2:
        return ""
    width, height, left, top, bottom = 600, 190, 44, 8, 24
    values = sorted(value for _, value in points)
    trimmed = len(values) // 50  # outliers are clipped to the frame
    limit = max(abs(values[trimmed]), abs(values[-1 - trimmed]), 1e-9)
    inner_width, inner_height = width - left - 8, height - bottom - top

    def x(step: float) -> float:
        return left + inner_width * step / max(steps, 1)

    def y(value: float) -> float:
        return top + inner_height * (1 - min(max(value / limit, -1), 1)) / 2

    dots = "".join(
        f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="1.6"/>' for step, value in points
    )
    line = " ".join(
        f"{x(step):.1f},{y(fmean(value for _, value in points[max(i - 4, 0) : i + 5])):.1f}"
        for i, (step, _) in enumerate(points)
    )
    ascent = x(ascent_steps) - left
    shade = (
        f'<rect class="ascent" x="{left}" y="{top}" width="{ascent:.1f}" height="{inner_height}"/>'
    )
    shade += f'<text class="ascent" x="{left + 6}" y="24">ascent</text>' if ascent > 50 else ""
    labels = [
        (left - 6, 16, "end", f"{limit:.2g}"),
        (left - 6, y(0) + 4, "end", "0"),
        (left - 6, top + inner_height, "end", f"{-limit:.2g}"),
        (left, height - 6, "start", "0"),
        (width - 8, height - 6, "end", f"step {steps}"),
    ]
    return (
        f'<figure class="curve"><svg viewBox="0 0 {width} {height}" role="img" '
        'aria-label="projection of the latents on the gradient over the steps">'
        f"{shade if ascent_steps else ''}"
        f'<line class="axis" x1="{left}" x2="{width - 8}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>'
        f'<g class="dots">{dots}</g><polyline points="{line}"/>'
        + "".join(
            f'<text x="{at}" y="{down:.1f}" text-anchor="{side}">{words}</text>'
            for at, down, side, words in labels
        )
        + "</svg><figcaption>⟨g, z⟩ / |g|: projection of the latents z on the distillation "
        "gradient g. Dots are logged steps, the line is their moving mean.</figcaption></figure>"
    )


def facts_table(facts: Mapping[str, Any]) -> str:
    """Nested facts, such as those of `dreamsa doctor`, as a table."""
    rows = []
    for key, value in facts.items():
        inner = facts_table(value) if isinstance(value, Mapping) else text(value)
        rows.append(f"<tr><th scope='row'>{text(key)}</th><td>{inner}</td></tr>")
    return f"<table class='doctor'>{''.join(rows)}</table>"
