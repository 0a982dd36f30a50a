"""Command lines and Python code that repeat a run."""

import shlex
from dataclasses import replace

import pytest
from tiny import tiny_config

from dreamsa import cli, job, with_overrides
from dreamsa.choices import ESCAPES
from dreamsa.config import ControlConfig, EditConfig, edited, to_json
from dreamsa.guidance import hub
from dreamsa.presets import edit_length, preset
from dreamsa.runs import new_run
from dreamsa.web import commands

FACTS = {"device": "cpu", "backend": "numba"}


class Captured(BaseException):
    """Configuration, parent and folder of a run that a command starts."""


@pytest.fixture
def captured(monkeypatch):
    def capture(config, parent, folder, facts, name):
        raise Captured(config, parent, folder)

    monkeypatch.setattr(job, "new_run", capture)
    monkeypatch.setattr(job, "require_model", lambda config: None)
    monkeypatch.setattr(job.StableDiffusion, "shared", lambda config, device: None)
    monkeypatch.setattr(hub, "local_folder", lambda config: None)


def repeated(run, folder):
    """What the command line and the Python code of a run start."""
    with pytest.raises(Captured) as of_cli:
        cli.main(shlex.split(commands.command_line(run, folder))[1:])
    with pytest.raises(Captured) as of_python:
        exec(commands.python_code(run, folder), {})
    return [found.value.args for found in (of_cli, of_python)]


def assert_same(config, other):
    assert to_json(config) == to_json(other)


def configurations():
    toybox = preset("toybox", "a rabbit")
    paper = preset("paper", 'a rabbit\'s "friend"; rm -rf $HOME')
    yield toybox
    changes = {
        "steps": 100,
        "seed": 7,
        "distill.guidance_scale": 30.0,
        "camera.distance": [1.5, 2.0],
    }
    yield with_overrides(toybox, changes)
    changes = {"negative_prompt": "a hat", "model.dtype": "float32", "field.blob_radius": 0.3}
    yield with_overrides(toybox, changes)
    yield with_overrides(toybox, {"prompt": "--help a rabbit"})
    yield paper
    yield with_overrides(preset("sd", "a rabbit"), {"model.model": "some/model", "seed": 3})


@pytest.mark.parametrize(
    "config",
    configurations(),
    ids=lambda config: f"{config.model.model}-{config.seed}-{config.prompt[:9]}",
)
def test_commands_repeat_the_exact_configuration(tmp_path, captured, config):
    folder = tmp_path / "my runs; $HOME"
    run = new_run(config, None, folder, FACTS)
    for made, parent, where in repeated(run, folder):
        assert_same(made, config)
        assert parent is None
        assert where == folder


@pytest.fixture
def rabbit(tmp_path, monkeypatch):
    """A run that counts as finished."""
    run = new_run(preset("toybox", "a rabbit"), None, tmp_path / "my runs", FACTS)
    run.update(status="finished")
    (run.path / "training.safetensors").touch()
    monkeypatch.setattr(type(run), "latest_checkpoint", run.path)
    monkeypatch.setattr(commands, "parent_of", lambda child, folder: run)
    return run


@pytest.mark.parametrize(
    "numbers",
    [
        {"ascent_steps": 150},
        {"ascent_steps": 20, "scale": 0.3},
        {"ascent_steps": 40},
        {"moments": "keep"},
        {},
        {"eta": 0.6},
        {"eta": 0.7},
        {"eta": 1.0, "scale": 0.5},
        {"eta": 0.3, "ascent_steps": 30},
    ],
    ids=str,
)
def test_commands_of_an_edit_repeat_the_exact_configuration(tmp_path, captured, rabbit, numbers):
    config = edited(rabbit.config, "a purple rabbit", EditConfig(rabbit.id, **numbers), 200)
    config = with_overrides(config, {"seed": 5, "optimizer.lr": 0.02})
    run = new_run(config, rabbit, tmp_path / "my runs", FACTS)
    for made, parent, _ in repeated(run, tmp_path / "my runs"):
        assert_same(made, config)
        assert parent.id == rabbit.id


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_named_escape_is_one_word_of_the_command(tmp_path, rabbit, escape):
    row = ESCAPES[escape]
    ascent_steps = edit_length(rabbit.config, 200)[1] if row.ascends else 0
    numbers = EditConfig(rabbit.id, row.eta, ascent_steps)
    config = edited(rabbit.config, "a mug", numbers, 200)
    line = commands.command_line(new_run(config, rabbit, tmp_path, FACTS), rabbit.path.parent)
    expected = ["--escape", escape, "--steps", "200", "--runs", str(rabbit.path.parent)]
    assert shlex.split(line)[4:] == expected


def test_a_control_of_a_study_is_a_comment(tmp_path, rabbit):
    numbers = EditConfig(rabbit.id, ascent_steps=5, control=ControlConfig("noise"))
    run = new_run(edited(rabbit.config, "a mug", numbers, 20), rabbit, tmp_path, FACTS)
    for words in (commands.command_line(run, tmp_path), commands.python_code(run, tmp_path)):
        assert words.startswith("#") and len(words.splitlines()) == 1
        assert "control" in words


def test_an_edit_whose_parent_is_gone_is_a_comment(tmp_path):
    config = edited(tiny_config(), "a mug", EditConfig("a-rabbit-0000"), 20)
    run = new_run(config, None, tmp_path, FACTS)
    for words in (commands.command_line(run, tmp_path), commands.python_code(run, tmp_path)):
        assert words.startswith("#")
        assert "a-rabbit-0000" in words


def test_an_edit_of_an_early_version_lacks_its_parents_prompt(tmp_path, rabbit):
    config = edited(rabbit.config, "a mug", EditConfig(rabbit.id), 200)
    config = replace(config, edit=replace(config.edit, parent_prompt=""))
    run = new_run(config, rabbit, tmp_path, FACTS)
    assert "parent_prompt" not in commands.command_line(run, tmp_path)
