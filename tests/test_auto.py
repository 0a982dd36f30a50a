"""The escape auto: both ways are tried, and the better one goes on as if the other had not been."""

import pytest
import torch
from tiny import tiny_auto, tiny_config, tiny_score

from dreamsa import api, auto
from dreamsa.auto import RESUMED, REVISED, advantage
from dreamsa.config import EditConfig
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.train import new_training, sds_step

STEPS, TRIED = 24, 4


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


def edit(parent, escape, **changes):
    config = tiny_config(steps=STEPS, edit=EditConfig("parent", escape, eta=0.6), **changes)
    training = new_training(config)
    training.scene.restore({name: value.clone() for name, value in parent.items()})
    return training


def advantages(monkeypatch, resumed, scratch):
    found = iter((resumed, scratch))
    monkeypatch.setattr(auto, "advantage", lambda *_: next(found))


def test_a_scene_that_fits_the_prompt_has_the_advantage():
    score, config = tiny_score(), tiny_config(steps=150)
    fresh, trained = new_training(config), new_training(config)
    steps(trained, 150)
    prompt = ViewPrompt(score, config.prompt)
    found = [advantage(training.scene, config.camera, score, prompt) for training in (fresh, trained)]
    assert found[1] > found[0]
    assert advantage(trained.scene, config.camera, score, prompt) == found[1]  # nothing in it is random


def test_what_resuming_had_reached_comes_back_to_the_bit_where_it_wins(parent, monkeypatch):
    advantages(monkeypatch, 2.0, 1.0)
    tried, resumed = edit(parent, "auto"), edit(parent, "auto")
    phases = steps(tried, 2 * TRIED)
    steps(resumed, TRIED)
    assert (table(resumed) - parent["field.table"]).norm() < (table(tried) - parent["field.table"]).norm()
    assert phases == [f"try {RESUMED}"] * TRIED + [f"try {REVISED}"] * TRIED
    tried.race.turn(tried, None, None)
    assert torch.equal(table(tried), table(resumed))
    moments = [[training.optimizer.state[p]["exp_avg"] for p in training.scene.parameters()] for training in (tried, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert "went on with resuming" in tried.race.decision
    assert not tried.race.kept


def test_interpolating_goes_on_from_the_parent_where_it_wins(parent, monkeypatch):
    advantages(monkeypatch, 1.0, 2.0)
    tried = edit(parent, "auto")
    fresh = new_training(tiny_config(seed=tried.config.seed + 1)).scene.field.table.detach()
    steps(tried, TRIED)
    tried.race.turn(tried, None, None)
    tried.annealer.begin()
    torch.testing.assert_close(table(tried), 0.4 * parent["field.table"] + 0.6 * fresh)
    tried = edit(parent, "auto")
    advantages(monkeypatch, 1.0, 2.0)
    steps(tried, 2 * TRIED)
    before = table(tried)
    assert steps(tried, STEPS - 2 * TRIED) == ["descend"] * (STEPS - 2 * TRIED)
    assert "went on with interpolating" in tried.race.decision
    assert (table(tried) - before).norm() < (table(tried) - parent["field.table"]).norm()


def test_a_run_says_what_was_decided_and_why(tmp_path, monkeypatch):
    monkeypatch.setattr(api.StableDiffusion, "load", lambda config, device: tiny_score())
    rabbit = api.generate(config=tiny_config(turntable=0), runs=tmp_path).wait()
    run = api.edit(rabbit, "a purple rabbit", escape="auto", steps=STEPS, runs=tmp_path).wait()
    assert run.record["decision"].startswith("went on with ")
    assert "helps the model to denoise the views" in run.record["decision"]


def test_schedules_run_whole_over_the_way_that_is_taken():
    """The resumed scene goes on where it was put aside, the other one begins anew; both end at the end."""
    config = tiny_auto(steps=24)
    assert [auto.clock(config, step) for step in (0, 3, 4, 7, 8, 23)] == [(0, 20), (3, 20), (0, 20), (3, 20), (4, 20), (19, 20)]
    assert auto.clock(tiny_config(steps=24), 7) == (7, 24)


@pytest.mark.parametrize(("ahead", "resumes"), [(0.0025, True), (0.0015, False), (-0.1, False)])
def test_resuming_has_to_be_clearly_ahead(ahead, resumes):
    race = auto.Race(4, {RESUMED: 0.01 + ahead, REVISED: 0.01})
    assert race.resumes == resumes
    assert race.decision.startswith(f"went on with {RESUMED if resumes else REVISED}: after 4 steps each")


def test_too_few_steps_for_two_tries_are_refused():
    with pytest.raises(ValueError, match="at least 12 steps, got 11"):
        tiny_auto(steps=11)
