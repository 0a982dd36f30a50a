"""HTML of the page."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from dreamsa.web import markup
from dreamsa.web.jobs import Status

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    "${alert(1)}",
    "{{value}}",
    "`id`",
    "$(touch x)",
    "&lt;b&gt;",
    "a rabbit\u202egnp.exe",
    "[x](javascript:alert(1))",
]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.words = set(), set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.words += data


@pytest.mark.parametrize("words", HOSTILE)
def test_user_input_is_text_in_every_element(words):
    status = Status("a-0000", words, "failed", 1, 2, "descend", error=words)
    row = Status(words, words, "finished", 2, 2, "")
    made = (
        markup.card(status, 0, [{"prompt": words}], words)
        + markup.strip([Status("a", words, "queued", 0, 2, "")])
        + markup.tree([(row, 1, None)], None, [(Path(words) / "run.json", words)])
        + markup.hint(words)
        + markup.message(ValueError(words))
        + markup.animation("data:,", words, (words, words))
        + markup.facts_table({words: {"x": words}})
    )
    found = Tags()
    found.feed(made)
    harmless = {
        "div",
        "span",
        "h2",
        "p",
        "i",
        "b",
        "button",
        "img",
        "figure",
        "figcaption",
        "table",
        "tr",
        "th",
        "td",
    }
    assert found.tags <= harmless
    assert not any(name.startswith("on") for name in found.attributes)
    assert found.words.count(words) >= 12


@pytest.mark.parametrize(
    ("status", "ascent", "wanted"),
    [
        (Status("a", "p", "running", 30, 750, "ascend"), 150, "ascending 30/150"),
        (Status("a", "p", "running", 310, 750, "descend"), 150, "descending 310/750"),
        (Status("a", "p", "running", 0, 750, ""), 150, "loading the model"),
        (Status("a", "p", "queued", 0, 750, "", place=2), 0, "queued, 2 ahead"),
        (Status("a", "p", "stopped", 200, 750, ""), 0, "stopped at 200/750"),
        (Status("a", "p", "finished", 750, 750, ""), 0, "finished"),
    ],
)
def test_the_badge_names_the_phase(status, ascent, wanted):
    found = Tags()
    found.feed(markup.badge(status, ascent))
    assert found.words == wanted


def test_what_a_job_does_between_its_steps_is_in_the_badge_and_failures_in_the_strip():
    status = Status("a-0000", "a mug", "running", 5, 5, "descend", stage="pictures 8/52")
    assert "pictures 8/52" in markup.badge(status)
    failed = Status("b-0000", "a <b>", "failed", 1, 5, "", error="no good")
    assert "Failed: a &lt;b&gt; (b-0000): no good and 1 more" in markup.strip([], [failed, failed])
    assert "Failed" not in markup.strip([])


def test_the_curve_shades_the_ascent_in_proportion():
    rows = [
        {"step": step, "grad_norm": 2.0, "grad_dot_latents": -4.0 if step < 50 else 4.0}
        for step in range(0, 100, 10)
    ]
    plain, shaded = markup.curve(rows, 0, 100), markup.curve(rows, 50, 100)
    assert 'class="ascent"' not in plain
    width = float(shaded.partition('width="')[2].partition('"')[0])
    assert width == pytest.approx((600 - 44 - 8) / 2)
    assert markup.curve(rows[:1], 0, 100) == ""
    assert (
        markup.curve([{"step": 0, "grad_norm": None, "grad_dot_latents": None}] * 5, 0, 100) == ""
    )


def test_damaged_runs_follow_the_tree_and_cannot_be_selected():
    status = Status("a-rabbit-0000", "a rabbit", "finished", 2, 2, "")
    damaged = [(Path("runs/a-mug-0000/run.json"), "status is missing")]
    shown = markup.tree([(status, 0, None)], status.id, damaged)
    assert shown.count("<button") == shown.count("data-run") == 1
    assert shown.index("a rabbit") < shown.index("a-mug-0000/run.json") < shown.index("damaged")
    assert "status is missing" in shown
