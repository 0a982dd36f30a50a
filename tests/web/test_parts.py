"""The page's pure parts: commands, tree, pace, markup, pictures, examples."""

import shlex
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config, tiny_score

from dreamsa import api, cli
from dreamsa.config import EditConfig, edited, preset, to_json
from dreamsa.runs import RunError, new_run
from dreamsa.web import commands, examples, markup, pace, pictures
from dreamsa.web.jobs import Status
from dreamsa.web.tree import branches

FACTS = {"device": "cpu", "backend": "numba"}
HOSTILE = [
    "<img src=x onerror=alert(1)>", "\"><script>alert(1)</script>", "' onmouseover='alert(1)", "${alert(1)}", "{{value}}", "`id`", "$(touch x)",
    "&lt;b&gt;", "a rabbit\u202egnp.exe", "[x](javascript:alert(1))",
]  # fmt: skip


class Captured(Exception):
    """The configuration that a command came to."""


@pytest.fixture
def captured(monkeypatch):
    """What configuration a command would run."""

    def capture(config, parent, folder, facts):
        raise Captured(config, parent, folder)

    monkeypatch.setattr(api, "_shared_run", capture)


def configurations():
    toybox, paper = preset("toybox", "a rabbit"), preset("paper", 'a rabbit\'s "friend"; rm -rf $HOME')
    yield toybox
    yield api.with_overrides(toybox, {"steps": 100, "seed": 7, "sds.guidance_scale": 30.0, "camera.distance": [1.5, 2.0]})
    yield api.with_overrides(toybox, {"negative_prompt": "a hat", "model.dtype": "float32", "field.blob_radius": 0.3})
    yield api.with_overrides(toybox, {"prompt": "--help a rabbit"})
    yield paper
    yield api.with_overrides(preset("sd", "a rabbit"), {"model.model": "some/model", "seed": 3})


@pytest.mark.parametrize("config", configurations(), ids=lambda config: f"{config.model.model}-{config.seed}-{config.prompt[:9]}")
def test_commands_come_to_the_very_configuration(tmp_path, captured, config):
    run = new_run(config, None, tmp_path, FACTS)
    with pytest.raises(Captured) as of_cli:
        cli.main(shlex.split(commands.command_line(run, tmp_path))[1:])
    with pytest.raises(Captured) as of_python:
        exec(commands.python_code(run, tmp_path), {})
    for found in (of_cli, of_python):
        made, parent, folder = found.value.args
        assert commands.differences(commands._json(to_json(config)), commands._json(to_json(made))) == {}
        assert parent is None
        assert folder == tmp_path


@pytest.mark.parametrize(
    "how",
    [
        EditConfig("", "anneal", 150, 0.01), EditConfig("", "anneal", 20, 0.3), EditConfig("", "plain", moments="keep"), EditConfig("", "plain"),
        EditConfig("", "noise", 30, 0.02), EditConfig("", "interpolate", eta=0.7), EditConfig("", "fresh", scale=0.5),
    ],
    ids=lambda how: how.escape,
)  # fmt: skip
def test_commands_of_an_edit_come_to_the_very_configuration(tmp_path, captured, monkeypatch, how):
    before = new_run(preset("toybox", "a rabbit"), None, tmp_path, FACTS)
    before.update(status="finished")
    (before.path / "training.safetensors").touch()
    monkeypatch.setattr(type(before), "latest_checkpoint", before.path)
    config = edited(
        before.config, "a purple rabbit", EditConfig(before.id, how.escape, how.ascent_steps, how.scale, how.eta, how.moments), 200
    )
    run = new_run(api.with_overrides(config, {"seed": 5, "optimizer.lr": 0.02}), before, tmp_path, FACTS)
    with pytest.raises(Captured) as of_cli:
        cli.main(shlex.split(commands.command_line(run, tmp_path))[1:])
    with pytest.raises(Captured) as of_python:
        exec(commands.python_code(run, tmp_path), {})
    for found in (of_cli, of_python):
        made, parent, _ = found.value.args
        assert commands.differences(commands._json(to_json(run.config)), commands._json(to_json(made))) == {}
        assert parent.id == before.id


def test_an_edit_whose_parent_is_gone_says_so(tmp_path):
    config = edited(tiny_config(), "a mug", EditConfig("a-rabbit-0000"), 20)
    run = new_run(config, None, tmp_path, FACTS)
    assert "a-rabbit-0000" in commands.command_line(run, tmp_path)
    assert commands.command_line(run, tmp_path).startswith("#")


def test_the_tree_puts_edits_under_their_parents_and_orphans_at_the_root(tmp_path):
    rabbit = new_run(tiny_config(), None, tmp_path, FACTS)
    mug = new_run(tiny_config(prompt="a mug"), None, tmp_path, FACTS)
    purple = new_run(tiny_config(prompt="a purple rabbit"), rabbit, tmp_path, FACTS)
    dark = new_run(tiny_config(prompt="a dark rabbit"), purple, tmp_path, FACTS)
    gone = new_run(tiny_config(prompt="a duck"), None, tmp_path, FACTS)
    orphan = new_run(tiny_config(prompt="a red duck"), gone, tmp_path, FACTS)
    shutil.rmtree(gone.path)
    rows = [(branch.run.prompt, branch.depth) for branch in branches([rabbit, mug, purple, dark, orphan])]
    assert sorted(prompt for prompt, depth in rows if depth == 0) == ["a mug", "a rabbit", "a red duck"]
    at = rows.index(("a rabbit", 0))
    assert rows[at : at + 3] == [("a rabbit", 0), ("a purple rabbit", 1), ("a dark rabbit", 2)]


def test_a_pace_is_measured_on_the_same_work_on_this_machine_or_not_claimed(tmp_path):
    config = tiny_config(steps=200)
    assert "not measured yet" in pace.estimate(None, 200)
    run = new_run(config, None, tmp_path, FACTS)
    lines = [f'{{"step": {step}, "seconds": {30 if step == 0 else 0.5}}}' for step in range(0, 70, 10)]
    (run.path / "metrics.jsonl").write_text("\n".join(lines))
    found = pace.measured(config, "cpu", [run])
    assert found == pace.Pace(0.5, 6, run.id)
    assert pace.estimate(found, 200) == f"About 2 min: 200 steps of 0.50 s, measured on 6 steps of {run.id}."
    assert pace.measured(config, "cuda", [run]) is None
    assert pace.measured(api.with_overrides(config, {"camera.resolution": 32}), "cpu", [run]) is None
    run.update(example=True)  # was made on somebody else's machine
    assert pace.measured(config, "cpu", [run]) is None


def test_a_probe_times_a_few_steps_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(api.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(pace, "mkdtemp", lambda prefix: str(tmp_path / "probe"))
    probe = pace.Probe(tiny_config())
    for _ in probe:
        pass
    probe.stop()
    assert probe.pace is not None
    assert probe.pace.steps == probe.STEPS - probe.LEFT_OUT
    assert not (tmp_path / "probe").exists()


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
def test_prompts_are_text_wherever_they_appear(words):
    status = Status("a-0000", words, "failed", 1, 2, "descend", error=words)
    row = Status(words, words, "finished", 2, 2, "")
    made = (
        markup.card(status, 0, [{"prompt": words}], words)
        + markup.strip([Status("a", words, "queued", 0, 2, "")])
        + markup.tree([(row, 1, None)], None)
        + markup.message(words, bad=True)
        + markup.animation("data:,", words, (words, words))
        + markup.facts_table({words: {"x": words}})
    )
    found = Tags()
    found.feed(made)
    harmless = {"div", "span", "h2", "p", "i", "b", "button", "img", "figure", "figcaption", "table", "tr", "th", "td"}
    assert found.tags <= harmless
    assert not any(name.startswith("on") for name in found.attributes)
    assert found.words.count(words) >= 8


@pytest.mark.parametrize(
    ("status", "ascent", "wanted"),
    [
        (Status("a", "p", "running", 30, 750, "ascend"), 150, "ascending 30/150"),
        (Status("a", "p", "running", 310, 750, "descend"), 150, "descending 310/750"),
        (Status("a", "p", "running", 0, 750, ""), 150, "loading the model"),
        (Status("a", "p", "queued", 0, 750, "", place=2), 0, "queued, 2 before it"),
        (Status("a", "p", "stopped", 200, 750, ""), 0, "stopped at 200/750"),
        (Status("a", "p", "finished", 750, 750, ""), 0, "finished"),
    ],
)
def test_the_badge_says_the_phase(status, ascent, wanted):
    found = Tags()
    found.feed(markup.badge(status, ascent))
    assert found.words == wanted


def test_the_curve_shades_the_ascent_in_proportion():
    rows = [{"step": step, "grad_norm": 2.0, "grad_dot_latents": -4.0 if step < 50 else 4.0} for step in range(0, 100, 10)]
    plain, shaded = markup.curve(rows, 0, 100), markup.curve(rows, 50, 100)
    assert 'class="ascent"' not in plain
    width = float(shaded.partition('width="')[2].partition('"')[0])
    assert width == pytest.approx((600 - 44 - 8) / 2)
    assert markup.curve(rows[:1], 0, 100) == ""
    assert markup.curve([{"step": 0, "grad_norm": None, "grad_dot_latents": None}] * 5, 0, 100) == ""


def turning(path, shades, size=16):
    frames = [Image.fromarray(np.full((size, size, 3), shade, np.uint8)) for shade in shades]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, loop=0, lossless=True)


def test_frames_are_taken_by_time_because_equal_ones_are_merged(tmp_path):
    turning(tmp_path / "a.webp", [0] * 30 + [200] * 10)
    with Image.open(tmp_path / "a.webp") as picture:
        assert picture.n_frames < 40  # what the test is about
    shades = pictures.animation(tmp_path / "a.webp", 40)[:, 0, 0, 0]
    assert shades.tolist() == [0] * 30 + [200] * 10


def test_two_turntables_become_one_in_step(tmp_path):
    runs = [new_run(tiny_config(), None, tmp_path, FACTS) for _ in range(2)]
    assert pictures.side_by_side(*runs) is None
    turning(runs[0].path / "turntable.webp", range(0, 240, 4))
    turning(runs[1].path / "turntable.webp", range(0, 240, 4), size=32)
    (tmp_path / "both.webp").write_bytes(pictures.side_by_side(*runs))
    both = pictures.animation(tmp_path / "both.webp", 60)
    assert both.shape == (60, 16, 36, 3)
    assert np.abs(both[:, :, :16].astype(int) - both[:, :, 20:]).max() <= 6  # lossy


def test_before_and_after_are_one_camera_at_one_size(tmp_path):
    runs = [new_run(tiny_config(), None, tmp_path, FACTS) for _ in range(2)]
    for run, size in zip(runs, (16, 24), strict=True):
        views = np.zeros((12, size, size, 3), np.uint8) + (np.arange(12, dtype=np.uint8) * 20)[:, None, None, None]
        pictures_sheet = api.contact_sheet(views, 4)
        Image.fromarray(pictures_sheet).save(run.path / "contact_sheet.png")
    first, second = pictures.before_and_after(*runs)
    assert first.shape == second.shape == (512, 512, 3)
    assert (first == 20).all() and (second == 20).all()


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A rabbit and its edit, finished."""
    monkeypatch.setattr(api.StableDiffusion, "load", lambda config, device: tiny_score())
    small = api.write_outputs
    monkeypatch.setattr(api, "write_outputs", lambda run, scene, frames=8, resolution=16: small(run, scene, 8, 16))
    rabbit = api.generate(config=tiny_config(), runs=tmp_path / "made").wait()
    return rabbit, api.edit(rabbit, "a purple rabbit", steps=6, ascent_steps=2, runs=tmp_path / "made").wait()


def test_shipped_examples_fill_an_empty_gallery_and_can_be_edited_at_once(tmp_path, finished):
    names = [run.id for run in finished]
    shipped = examples.ship(names, tmp_path / "made", tmp_path / "examples")
    assert sorted(path.name for path in shipped) == sorted(names)
    assert not list(tmp_path.rglob("examples/**/training.safetensors"))
    installed = examples.install(tmp_path / "runs", tmp_path / "examples")
    assert sorted(run.id for run in installed) == sorted(names)
    rabbit = next(run for run in installed if run.id == names[0])
    assert rabbit.record["example"] is True
    views = [api.pictures(api.load_scene(run), run.config.camera, 2, 32).astype(int) for run in (finished[0], rabbit)]
    assert np.abs(views[0] - views[1]).max() <= 2  # of 255: the table was rounded
    assert api.edit(rabbit, "a mug", steps=4, escape="plain", runs=tmp_path / "runs").wait().status == "finished"
    with pytest.raises(RunError, match="shipped without its optimizer's moments"):
        api.edit(rabbit, "a mug", steps=4, moments="keep", runs=tmp_path / "runs")


def test_a_folder_with_runs_gets_no_examples_and_nothing_is_overwritten(tmp_path, finished):
    examples.ship([finished[0].id], tmp_path / "made", tmp_path / "examples")
    mine = new_run(tiny_config(), None, tmp_path / "runs", FACTS)
    assert examples.install(tmp_path / "runs", tmp_path / "examples") == []
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [mine.id]
    assert examples.install(tmp_path / "other", tmp_path / "nothing") == []


def test_what_cannot_be_an_example_is_refused_and_the_old_ones_stay(tmp_path, finished, monkeypatch):
    rabbit, purple = finished
    examples.ship([rabbit.id], tmp_path / "made", tmp_path / "examples")
    with pytest.raises(RunError, match="name that one as well"):
        examples.ship([purple.id], tmp_path / "made", tmp_path / "examples")
    monkeypatch.setattr(examples, "MOST_BYTES", 1000)
    with pytest.raises(RunError, match="at most 1,000 are shipped"):
        examples.ship([rabbit.id, purple.id], tmp_path / "made", tmp_path / "examples")
    rabbit.update(status="stopped")
    with pytest.raises(RunError, match="is stopped, not finished"):
        examples.ship([rabbit.id], tmp_path / "made", tmp_path / "examples")
    assert [path.name for path in (tmp_path / "examples").iterdir()] == [rabbit.id]
    assert not list(tmp_path.glob(".tmp-*"))


def test_without_gradio_one_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "dreamsa.web.page", raising=False)
    with pytest.raises(SystemExit, match="1"):
        cli.main(["web"])
    said = capsys.readouterr().err
    assert said == "dreamsa: The page needs gradio, which is not installed. Install it with: pip install 'dreamsa[web]'\n"


def test_an_edit_of_an_older_version_has_no_options_of_its_own(tmp_path):
    """It does not say what its parent was made for; nor does anyone have to."""
    before = new_run(preset("toybox", "a rabbit"), None, tmp_path, FACTS)
    config = edited(before.config, "a mug", EditConfig(before.id, "plain"), 200)
    run = new_run(replace(config, edit=replace(config.edit, parent_prompt="")), before, tmp_path, FACTS)
    assert "parent_prompt" not in commands.command_line(run, tmp_path)
