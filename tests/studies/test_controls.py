"""Controls of comparisons: their rules and their objective, on tiny runs."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_config, tiny_score

from dreamsa import api, job
from dreamsa.config import ControlConfig, EditConfig, LossConfig
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.rendering.cameras import orbit
from dreamsa.runs import RunError
from dreamsa.studies.controls import method_of
from dreamsa.train import displacement, new_training, objective, regularizers, train


def control(kind, norms=None, **changes):
    edit = EditConfig(
        "parent", ascent_steps=5, scale=0.1, control=ControlConfig(kind, norms), **changes
    )
    return tiny_config(edit=edit)


def training_of(config):
    return new_training(config, "cpu", method_of(config))


def moved(training):
    """The displacement of each group by the events before the first step."""
    start = {p: p.detach().clone() for p in training.scene.parameters()}
    training.annealer.begin()
    return displacement(training.optimizer, start)


def test_only_controls_have_a_method():
    assert method_of(tiny_config()) is None
    assert method_of(tiny_config(edit=EditConfig("parent", ascent_steps=5))) is None
    assert method_of(control("noise")) is not None


@pytest.mark.parametrize("kind", ["noise", "interpolate"])
def test_a_matched_control_moves_each_group_by_the_given_norm(kind):
    found = moved(training_of(control(kind, {"grid": 0.5, "mlp": 0.25})))
    assert found == pytest.approx({"grid": 0.5, "mlp": 0.25}, rel=1e-4)


def test_noise_of_no_given_norm_is_as_large_as_an_ascent_can_be():
    config = control("noise")
    training = training_of(config)
    grid = training.scene.field.table
    rms = moved(training)["grid"] / grid.numel() ** 0.5
    assert rms == pytest.approx(0.1 * config.optimizer.lr * 5, rel=0.1)


def test_a_regularizer_replaces_the_distillation_loss_while_it_ascends():
    config = replace(control("regularizers"), loss=LossConfig(entropy=3.0))
    training = training_of(config)
    image = training.scene.view(orbit([0.0, 90.0]), 8)
    distillation = torch.tensor(7.0)
    opacity = regularizers(image, LossConfig(opacity=1.0), 0.0)
    ascending = [training.objective(config, step, distillation, image) for step in (0, 4)]
    assert ascending == [-opacity, -opacity]
    assert training.objective(config, 5, distillation, image) == objective(
        config, 5, distillation, image
    )
    broken = training.objective(config, 0, torch.tensor(float("nan")), image)
    assert not broken.isfinite()


def test_phases_name_the_control():
    config = control("regularizers")
    training, score = training_of(config), tiny_score()
    phases = [r.phase for r in train(training, score, ViewPrompt(score, config.prompt))]
    assert phases == ["ascend regularizers"] * 5 + ["descend"] * 7


@pytest.mark.parametrize("kind", ["noise", "regularizers"])
def test_a_control_resumes_bit_identically_but_not_by_the_public_verb(kind, runs, rabbit):
    edit = replace(control(kind).edit, parent=rabbit.id)
    config = tiny_config(prompt="a purple rabbit", edit=edit)

    def begin(name):
        return job.start(config, rabbit, runs / name, method_of(config))

    complete = begin("complete").wait()
    work = begin("stopped")
    for progress in work:
        if progress.step == 3:
            work.stop()
            break
    with pytest.raises(RunError, match="control of a comparison"):
        api.resume(work.run, runs=runs)
    resumed = job.resume(work.run, runs, method_of(config)).wait()
    scenes = [run.latest_checkpoint / "scene.safetensors" for run in (complete, resumed)]
    assert scenes[0].read_bytes() == scenes[1].read_bytes()
