"""HTML of the page, as pure functions. Whatever a user wrote goes through `text` and is nothing but text."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dreamsa.web.jobs import Status
from dreamsa.web.pace import duration

STATES = {"queued": "queued", "running": "running", "stopping": "stopping, saving", "created": "not started"}


def text(value: object) -> str:
    """Anything as text that HTML and Markdown leave alone."""
    return html.escape(str(value), quote=True).replace("`", "&#96;")


def badge(status: Status, ascent_steps: int = 0) -> str:
    """What a run is doing, in a coloured word: "ascending 30/150", "descending 310/750", "queued, 2 before it"."""
    kind, words = status.state, STATES.get(status.state, status.state)
    if status.state == "running":
        if not status.phase:
            words = "loading the model"
        elif status.phase.startswith("ascend"):
            kind, words = "ascending", f"ascending {status.step}/{ascent_steps}"
        elif status.phase == "watch":
            kind, words = "descending", f"descending, watched {status.step}/{status.steps}"
        else:
            kind, words = "descending", f"descending {status.step}/{status.steps}"
    elif status.state == "queued" and status.place:
        words = f"queued, {status.place} before it"
    elif status.state in ("stopped", "failed") and status.step:
        words = f"{status.state} at {status.step}/{status.steps}"
    return f'<span class="badge {kind}">{text(words)}</span>'


def card(status: Status, ascent_steps: int, lineage: Sequence[Mapping[str, str]], facts: str) -> str:
    """The head of the panel: what run it is, where it is, how long it will take."""
    share = 100 * status.step / max(status.steps, 1)
    mark = 100 * ascent_steps / max(status.steps, 1)
    came = "".join(f"<span>{text(step['prompt'])}</span> → " for step in lineage)
    left = ""
    if status.state == "running" and status.eta_seconds is not None:
        left = f"about {duration(status.eta_seconds)} left, {1000 * (status.seconds_per_step or 0):.0f} ms a step"
    return (
        f'<div class="card"><div class="lineage">{came}</div><h2>{text(status.prompt)}</h2>'
        f'<p class="line">{badge(status, ascent_steps)}<span class="left">{left}</span></p>'
        f'<div class="bar" role="progressbar" aria-label="steps done" aria-valuenow="{status.step}" aria-valuemin="0" '
        f'aria-valuemax="{status.steps}"><i style="width:{share:.1f}%"></i>'
        + (f'<b style="width:{mark:.1f}%" title="steps that ascend"></b>' if ascent_steps else "")
        + f'</div><p class="facts">{text(facts)}</p>'
        + (f'<p class="message bad" role="alert">{text(status.error)}</p>' if status.error else "")
        + "</div>"
    )


def message(words: str, bad: bool = False) -> str:
    """One line that answers what the user just did; empty for no words."""
    kind, role = ("bad", "alert") if bad else ("good", "status")
    return f'<p class="message {kind}" role="{role}">{text(words)}</p>' if words else ""


def strip(statuses: Iterable[Status]) -> str:
    """What runs and what waits on this server, in one line."""
    parts = []
    for status in statuses:
        share = f" {status.step}/{status.steps}" if status.state != "queued" else ""
        parts.append(f"<span>{badge(status, 0) if status.state == 'queued' else _dot()} {text(status.prompt)}{share}</span>")
    words = "".join(parts) or "<span>Nothing is running.</span>"
    return f'<div class="strip" role="status" aria-label="jobs on this server">{words}</div>'


def _dot() -> str:
    return '<span class="dot" title="running"></span>'


def tree(rows: Iterable[tuple[Status, int, str | None]], chosen: str | None) -> str:
    """Runs as buttons, edits indented under what they were made from. Rows are (status, depth, thumbnail)."""
    buttons = []
    for status, depth, thumbnail in rows:
        picture = f'<img src="{thumbnail}" alt="" width="48" height="48">' if thumbnail else '<span class="blank"></span>'
        pressed = "true" if status.id == chosen else "false"
        buttons.append(
            f'<button type="button" class="run" data-run="{text(status.id)}" aria-pressed="{pressed}" style="--depth:{min(depth, 6)}">'
            f"{picture}<span class='words'><span class='prompt'>{text(status.prompt)}</span>"
            f"<span class='facts'>{text(status.id)}</span></span>"
            f"<span class='badge {status.state}'>{text(STATES.get(status.state, status.state))}</span></button>"
        )
    return f'<div class="tree">{"".join(buttons) or "<p>No runs yet.</p>"}</div>'


def animation(uri: str | None, alt: str, captions: Sequence[str] = ()) -> str:
    """A turntable, or two in one picture with a caption under each."""
    if uri is None:
        return ""
    under = "".join(f"<span>{text(caption)}</span>" for caption in captions)
    kind = "pair" if captions else "single"
    return f'<figure class="turntable {kind}"><img src="{uri}" alt="{text(alt)}"><figcaption>{under}</figcaption></figure>'


def curve(metrics: Sequence[Mapping[str, Any]], ascent_steps: int, steps: int) -> str:
    """<g, z> / |g| over the steps: how far the score model's gradient points along the latents. Dots are steps, the line is
    their moving mean; the ascent is shaded."""
    points = [
        (row["step"], row["grad_dot_latents"] / row["grad_norm"])
        for row in metrics
        if row.get("grad_norm") and row.get("grad_dot_latents") is not None
    ]
    if len(points) < 2:
        return ""
    width, height, left, bottom = 600, 190, 44, 24
    ordered = sorted(value for _, value in points)
    most = max(abs(ordered[len(ordered) // 50]), abs(ordered[-1 - len(ordered) // 50]), 1e-9)  # a few outliers may leave the picture
    wide, tall = width - left - 8, height - bottom - 8

    def at(step: float, value: float) -> tuple[float, float]:
        return left + wide * step / max(steps, 1), 8 + tall * (1 - min(max(value / most, -1), 1)) / 2

    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6"/>' for x, y in (at(*point) for point in points))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in _smooth(points)))
    ascent = at(ascent_steps, 0)[0] - left
    zero = at(0, 0)[1]
    return (
        f'<figure class="curve"><svg viewBox="0 0 {width} {height}" role="img" aria-label="projection of the gradient on the latents over steps">'
        + (f'<rect class="ascent" x="{left}" y="8" width="{ascent:.1f}" height="{tall}"/>' if ascent_steps else "")
        + (f'<text class="ascent" x="{left + 6}" y="24">ascent</text>' if ascent > 50 else "")
        + f'<line class="axis" x1="{left}" x2="{width - 8}" y1="{zero:.1f}" y2="{zero:.1f}"/>'
        f'<g class="dots">{dots}</g><polyline points="{line}"/>'
        f'<text x="{left - 6}" y="16" text-anchor="end">{most:.2g}</text><text x="{left - 6}" y="{zero + 4:.1f}" text-anchor="end">0</text>'
        f'<text x="{left - 6}" y="{8 + tall}" text-anchor="end">{-most:.2g}</text>'
        f'<text x="{left}" y="{height - 6}">0</text><text x="{width - 8}" y="{height - 6}" text-anchor="end">step {steps}</text>'
        "</svg><figcaption>⟨g, z⟩ / |g|: the latents' length along the score model's gradient. Dots are logged steps, the line is their moving "
        "mean.</figcaption></figure>"
    )


def _smooth(points: Sequence[tuple[int, float]], reach: int = 4) -> list[tuple[float, float]]:
    found = []
    for i, (step, _) in enumerate(points):
        near = [value for _, value in points[max(i - reach, 0) : i + reach + 1]]
        found.append((float(step), sum(near) / len(near)))
    return found


def facts_table(facts: Mapping[str, Any]) -> str:
    """Nested facts as a table, such as the doctor's."""
    rows = []
    for key, value in facts.items():
        inner = facts_table(value) if isinstance(value, Mapping) else text(value)
        rows.append(f"<tr><th scope='row'>{text(key)}</th><td>{inner}</td></tr>")
    return f"<table class='doctor'>{''.join(rows)}</table>"
