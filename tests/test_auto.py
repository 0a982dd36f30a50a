"""The escape auto: it resumes, and where that is not on its way, the parent is interpolated as if nothing had been tried."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_auto, tiny_config, tiny_score

from dreamsa import api, auto, train
from dreamsa.auto import ENOUGH, Watch, advantage
from dreamsa.config import EditConfig
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.scene import fresh_parameters
from dreamsa.train import new_training, rate_factor, sds_step

STEPS, WATCHED = 24, 4


def steps(training, n):
    score = tiny_score()
    prompt = ViewPrompt(score, training.config.prompt)
    return [sds_step(training, score, prompt).phase for _ in range(n)]


def table(training):
    return training.scene.field.table.detach().clone()


@pytest.fixture
def parent():
    """A scene that has been trained for a while."""
    training = new_training(tiny_config(steps=100))
    steps(training, 30)
    return training.scene.tensors()


def edit(parent, escape):
    training = new_training(tiny_config(steps=STEPS, edit=EditConfig("parent", escape, eta=0.6)))
    training.scene.restore({name: value.clone() for name, value in parent.items()})
    return training


def test_a_scene_that_fits_the_prompt_has_the_advantage():
    score, config = tiny_score(), tiny_config(steps=150)
    fresh, trained = new_training(config), new_training(config)
    steps(trained, 150)
    prompt = ViewPrompt(score, config.prompt)
    found = [advantage(training.scene, config.camera, score, prompt) for training in (fresh, trained)]
    assert found[1] > found[0]
    assert advantage(trained.scene, config.camera, score, prompt) == found[1]  # nothing in it is random


def test_a_scene_on_its_way_is_resumed_to_the_end(parent, monkeypatch):
    monkeypatch.setattr(auto, "advantage", lambda *_: 0.0)
    watched, plain = edit(parent, "auto"), edit(parent, "plain")
    assert steps(watched, STEPS) == ["watch"] * WATCHED + ["descend"] * (STEPS - WATCHED)
    steps(plain, STEPS)
    torch.testing.assert_close(table(watched), table(plain), atol=0.02, rtol=0)  # the occupancy grid was looked at once more
    assert watched.watch.decision.startswith("went on resuming: after 4 steps the scene was on its way")
    assert not watched.watch.parent
    assert watched.clock == (STEPS, STEPS)


def test_one_that_is_not_begins_again_from_the_interpolated_parent(parent, monkeypatch):
    monkeypatch.setattr(auto, "advantage", lambda *_: -0.01)
    watched = edit(parent, "auto")
    steps(watched, WATCHED)
    assert (table(watched) - parent["field.table"]).norm() > 0
    watched.watch.turn(watched, None, None)
    config = watched.config
    fresh = fresh_parameters(config.field, config.render, config.seed + 1)[0]
    torch.testing.assert_close(table(watched), 0.4 * parent["field.table"] + 0.6 * fresh)
    assert not watched.optimizer.state
    assert "went back to the parent and interpolated by 0.6" in watched.watch.decision


def test_its_schedules_begin_again_too(parent, monkeypatch):
    asked, draw = [], train.sample_timesteps
    monkeypatch.setattr(train, "sample_timesteps", lambda config, *where: asked.append(where[:2]) or draw(config, *where))
    monkeypatch.setattr(auto, "advantage", lambda *_: -0.01)
    watched = edit(parent, "auto")
    steps(watched, WATCHED)
    assert watched.clock == (WATCHED, STEPS)
    steps(watched, 1)
    assert watched.clock == (1, STEPS - WATCHED)
    shorter = tiny_config(steps=STEPS - WATCHED)
    assert rate_factor(watched.config, WATCHED + 7, WATCHED) == rate_factor(shorter, 7)
    assert rate_factor(watched.config, STEPS - 1, WATCHED) == rate_factor(shorter, STEPS - WATCHED - 1)
    steps(watched, STEPS - WATCHED - 1)
    assert asked == [*((step, STEPS) for step in range(WATCHED)), *((step, STEPS - WATCHED) for step in range(STEPS - WATCHED))]


@pytest.mark.parametrize(("found", "resumes", "began"), [(None, None, 0), (ENOUGH, True, 0), (ENOUGH - 1e-4, False, 4)])
def test_just_enough_is_enough(found, resumes, began):
    watch = Watch(4, 0.6, found)
    assert (watch.resumes, watch.began) == (resumes, began)
    assert (watch.decision is None) == (found is None)


def test_a_run_says_what_was_decided_and_why(tmp_path, monkeypatch):
    monkeypatch.setattr(api.StableDiffusion, "load", lambda config, device: tiny_score())
    rabbit = api.generate(config=tiny_config(turntable=0), runs=tmp_path).wait()
    run = api.edit(rabbit, "a purple rabbit", steps=STEPS, runs=tmp_path).wait()
    assert run.config.edit.escape == "auto"
    assert run.record["decision"].startswith("went ")
    assert "denoising its views" in run.record["decision"]
    assert api.edit(rabbit, "a purple rabbit", steps=STEPS, moments="keep", runs=tmp_path).run.config.edit.escape == "plain"
    assert api.edit(rabbit, "a purple rabbit", steps=STEPS, ascent_steps=4, runs=tmp_path).run.config.edit.escape == "anneal"


def test_a_run_that_is_made_longer_keeps_its_decision(parent, monkeypatch, tmp_path):
    monkeypatch.setattr(auto, "advantage", lambda *_: -0.01)
    watched = edit(parent, "auto")
    steps(watched, WATCHED + 1)
    watched.save(tmp_path / "1")
    longer = new_training(replace(watched.config, steps=2 * STEPS))
    longer.load(tmp_path / "1")
    assert longer.clock == (1, 2 * STEPS - WATCHED)
    steps(longer, WATCHED + 2)  # past where a run of that length would decide
    assert longer.watch.found == -0.01


def test_too_few_steps_to_watch_are_refused():
    with pytest.raises(ValueError, match="at least 12 steps, got 11"):
        tiny_auto(steps=11)
