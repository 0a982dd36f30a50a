"""The escape auto: it resumes, and where that is not on its way, the parent is interpolated as if nothing had been tried."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_auto, tiny_config, tiny_score

from dreamsa import api, auto, train
from dreamsa.auto import ENOUGH, Watch, preference
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


def preferences(later=1.0):
    """The parent prefers its own prompt by 0.02; what is found later, in units of that."""
    seen = iter([-0.02, 0.02 * later])
    return lambda *_: next(seen)


@pytest.fixture
def parent():
    """A scene that has been trained for a while."""
    training = new_training(tiny_config(steps=100))
    steps(training, 30)
    return training.scene.tensors()


def edit(parent, escape, parent_prompt="a duck"):
    training = new_training(tiny_config(steps=STEPS, edit=EditConfig("parent", escape, eta=0.6, parent_prompt=parent_prompt)))
    training.scene.restore({name: value.clone() for name, value in parent.items()})
    return training


class TwoPictures:
    """Expects a red square of "a rabbit" and a green one of anything else."""

    def __init__(self):
        self.red = tiny_score()
        self.green = replace(self.red, means=self.red.means[:, [1, 0, 2]])
        self.alpha_bar, self.encode = self.red.alpha_bar, self.red.encode

    def embed(self, texts):
        return torch.tensor([float("rabbit" in text) for text in texts]).view(-1, 1, 1)

    def predict_noise(self, noisy, timesteps, condition, guidance_scale):
        of = self.red if condition.positive.item() == 1 else self.green
        return of.predict_noise(noisy, timesteps, condition, guidance_scale)


def test_the_model_prefers_the_prompt_that_a_scene_was_made_for():
    score, config = TwoPictures(), tiny_config(steps=150)
    fresh, trained = new_training(config), new_training(config)
    red, green = ViewPrompt(score, "a rabbit"), ViewPrompt(score, "a duck")
    for _ in range(150):
        sds_step(trained, score, red)
    found = [preference(training.scene, config.camera, score, red, green) for training in (fresh, trained)]
    assert found[1] > max(found[0], 0)
    assert preference(trained.scene, config.camera, score, green, red) == pytest.approx(-found[1])
    assert preference(trained.scene, config.camera, score, red, green) == found[1]  # nothing in it is random
    assert preference(trained.scene, config.camera, score, red, red) == 0


def test_what_it_finds_is_measured_against_the_parent(parent, monkeypatch):
    """-1 is the parent's own preference; a parent that is what the new prompt says has nothing to escape from."""
    for first, later, found in ((-0.02, 0.01, 0.5), (-0.02, -0.02, -1.0), (0.003, -1.0, 1.0)):
        seen = [first, later]
        monkeypatch.setattr(auto, "preference", lambda *_, seen=seen: seen.pop(0))
        watched = edit(parent, "auto")
        steps(watched, WATCHED + 1)
        assert watched.watch.found == found


def test_a_repair_is_interpolated_at_once(parent):
    """With the parent's own prompt there is nothing that the model could prefer."""
    repaired = edit(parent, "auto", parent_prompt="A rabbit")
    repaired.watch.turn(repaired, None, None)
    config = repaired.config
    fresh = fresh_parameters(config.field, config.render, config.seed + 1)[0]
    torch.testing.assert_close(table(repaired), 0.4 * parent["field.table"] + 0.6 * fresh)
    assert steps(edit(parent, "auto", "A rabbit"), STEPS) == ["descend"] * STEPS
    interpolated, repaired = edit(parent, "interpolate"), edit(parent, "auto", "A rabbit")
    steps(interpolated, STEPS)
    steps(repaired, STEPS)
    assert torch.equal(table(repaired), table(interpolated))
    assert repaired.watch.decision.startswith("interpolated by 0.6 at once")


def test_a_scene_on_its_way_is_resumed_to_the_end(parent, monkeypatch):
    monkeypatch.setattr(auto, "preference", preferences())
    watched, plain = edit(parent, "auto"), edit(parent, "plain")
    assert steps(watched, STEPS) == ["watch"] * WATCHED + ["descend"] * (STEPS - WATCHED)
    steps(plain, STEPS)
    torch.testing.assert_close(table(watched), table(plain), atol=0.02, rtol=0)  # the occupancy grid was looked at once more
    assert watched.watch.decision.startswith("went on resuming: after 4 steps the scene was on its way")
    assert not watched.watch.parent
    assert watched.clock == (STEPS, STEPS)


def test_one_that_is_not_begins_again_from_the_interpolated_parent(parent, monkeypatch):
    monkeypatch.setattr(auto, "preference", preferences(-0.5))
    watched = edit(parent, "auto")
    steps(watched, WATCHED)
    assert (table(watched) - parent["field.table"]).norm() > 0
    watched.watch.turn(watched, tiny_score(), None)
    config = watched.config
    fresh = fresh_parameters(config.field, config.render, config.seed + 1)[0]
    torch.testing.assert_close(table(watched), 0.4 * parent["field.table"] + 0.6 * fresh)
    assert not watched.optimizer.state
    assert "went back to the parent and interpolated by 0.6" in watched.watch.decision


def test_its_schedules_begin_again_too(parent, monkeypatch):
    asked, draw = [], train.sample_timesteps
    monkeypatch.setattr(train, "sample_timesteps", lambda config, *where: asked.append(where[:2]) or draw(config, *where))
    monkeypatch.setattr(auto, "preference", preferences(-0.5))
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
    watch = Watch(4, 0.6, found=found)
    assert (watch.resumes, watch.began) == (resumes, began)
    assert (watch.decision is None) == (found is None)


def test_a_run_says_what_was_decided_and_why(tmp_path, monkeypatch):
    monkeypatch.setattr(api.StableDiffusion, "load", lambda config, device: tiny_score())
    rabbit = api.generate(config=tiny_config(turntable=0), runs=tmp_path).wait()
    run = api.edit(rabbit, "a purple rabbit", steps=STEPS, runs=tmp_path).wait()
    assert run.config.edit.escape == "auto"
    assert run.record["decision"].startswith("went ")
    assert "between the old prompt" in run.record["decision"]
    assert run.config.edit.parent_prompt == "a rabbit"
    assert api.edit(rabbit, "a purple rabbit", steps=STEPS, moments="keep", runs=tmp_path).run.config.edit.escape == "plain"
    assert api.edit(rabbit, "a purple rabbit", steps=STEPS, ascent_steps=4, runs=tmp_path).run.config.edit.escape == "anneal"


def test_a_run_that_is_made_longer_keeps_its_decision(parent, monkeypatch, tmp_path):
    monkeypatch.setattr(auto, "preference", preferences(-0.5))
    watched = edit(parent, "auto")
    steps(watched, WATCHED + 1)
    watched.save(tmp_path / "1")
    longer = new_training(replace(watched.config, steps=2 * STEPS))
    longer.load(tmp_path / "1")
    assert longer.clock == (1, 2 * STEPS - WATCHED)
    steps(longer, WATCHED + 2)  # past where a run of that length would decide
    assert longer.watch.found == -0.5


def test_too_few_steps_to_watch_are_refused():
    with pytest.raises(ValueError, match="at least 12 steps, got 11"):
        tiny_auto(steps=11)
