"""The escape auto: it resumes, and where that is not on its way, the parent is interpolated as if nothing had been tried."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_auto, tiny_config, tiny_repair, tiny_score

from dreamsa import api, auto, train
from dreamsa.auto import ENOUGH, Watch, preference
from dreamsa.config import EditConfig
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.guidance.score_model import GuidanceFailed
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
    assert watched.watch.decision == "went on resuming: in the parent the model saw the new prompt as well as the old one"


def test_a_repair_is_interpolated_at_once(parent):
    """With the parent's own prompt there is nothing that the model could prefer."""
    interpolated, repaired = edit(parent, "interpolate"), edit(parent, "auto", "A rabbit")
    assert steps(repaired, STEPS) == steps(interpolated, STEPS) == ["descend"] * STEPS
    assert torch.equal(table(repaired), table(interpolated))


def test_another_scene_is_drawn_on_the_cpu_whatever_runs_the_grid():
    config = tiny_config()
    fields = [replace(config.field, backend=name) for name in ("auto", "triton")]
    ours, theirs = (fresh_parameters(field, config.render, 1) for field in fields)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_decision_is_made_once(parent, monkeypatch):
    """A run that was interrupted between the decision and its step is not moved again."""
    monkeypatch.setattr(auto, "preference", preferences(-0.5))
    watched = edit(parent, "auto")
    steps(watched, WATCHED)
    assert watched.watch.turn(watched, tiny_score(), None)
    moved = table(watched)
    assert not watched.watch.turn(watched, tiny_score(), None)
    assert torch.equal(table(watched), moved)


def test_the_occupancy_is_looked_at_anew_where_the_scene_was_moved(parent, monkeypatch):
    """Also where a step was skipped, so that the optimizer's steps and the run's are no longer the same."""
    monkeypatch.setattr(auto, "preference", preferences(-0.5))
    watched = edit(parent, "auto")
    steps(watched, WATCHED)
    looks = []
    monkeypatch.setattr(watched.scene, "refresh", lambda seed, step, full: looks.append((step, full)))
    watched.annealer.step += 1
    steps(watched, 1)
    assert looks == [(WATCHED, True)]


def test_guidance_that_is_not_finite_ends_the_run(parent):
    score = tiny_score()
    monkey = replace(score, means=score.means * float("nan"))
    watched = edit(parent, "auto")
    with pytest.raises(GuidanceFailed, match="not finite when `auto` asked"):
        sds_step(watched, monkey, ViewPrompt(monkey, "a rabbit"))


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
    assert watched.watch.turn(watched, tiny_score(), None)
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
    watch = Watch(4, 0.6, at_first=-0.02, found=found)
    assert (watch.resumes, watch.began) == (resumes, began)
    assert (watch.decision is None) == (found is None)


def test_a_run_says_what_was_decided_and_why(tmp_path, monkeypatch):
    monkeypatch.setattr(api.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(auto, "preference", preferences(0.1))
    rabbit = api.generate(config=tiny_config(turntable=0), runs=tmp_path).wait()
    run = api.edit(rabbit, "a purple rabbit", steps=STEPS, escape="auto", runs=tmp_path).wait()
    assert run.record["decision"].startswith("went back to the parent and interpolated by 0.6: after 4 steps")
    assert "saw its views at +0.10, and +0.4 is enough" in run.record["decision"]
    assert run.config.edit.parent_prompt == "a rabbit"
    repair = api.edit(rabbit, "a rabbit", steps=STEPS, escape="auto", runs=tmp_path).wait()
    assert repair.record["decision"] == auto.REPAIR


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
    tiny_repair(steps=11)  # watches none
