"""Methods: what each does at its generations and steps, and how they combine."""

from dataclasses import replace
from math import cos, pi

import pytest
import torch
from tiny_model import SMALL
from torch import nn

from dreamsa.device import Processes
from train_cls.config import PRESETS, AnnealConfig, DataConfig, TrainConfig, from_saved, preset
from train_cls.data import load_splits
from train_cls.forgetting import DISTANCE
from train_cls.methods import METHODS, check_settings, is_control, is_from_scratch, methods_of
from train_cls.train import learning_rate_schedule, loss_of, new_training, train, train_step

TINY = replace(
    SMALL, model="preresnet-tiny", splits=DataConfig(per_class=4), generations=2, label_smoothing=0
)


@pytest.fixture(scope="module")
def splits():
    return load_splits("digits", TINY.splits)


def training_of(splits, **settings):
    anneal = {
        key: value for key, value in settings.items() if hasattr(TINY.anneal, key) and key != "seed"
    }
    rest = {key: value for key, value in settings.items() if key not in anneal}
    config = replace(TINY, **rest, anneal=replace(TINY.anneal, **anneal))
    return new_training(config, splits.train)


def steps(training, splits, count):
    for _ in range(count):
        train_step(training, splits.train.images[:20], splits.train.labels[:20], Processes())


def weights(training):
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


# Names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("seel", "There is no method 'seel'. Did you mean seal"),
        ("seal,", "There is no method ''"),
        ("seal,swa,seal", "The method seal is named twice"),
        ("long,swa", "long and swa cannot be combined: each sets the learning rate"),
        ("normal,long", "long and normal cannot be combined: one sets the learning rate"),
        ("normal,sam", "normal and sam cannot be combined: each sets the number of generations"),
    ],
)
def test_methods_that_do_not_go_together_are_refused(name, message, splits):
    with pytest.raises(ValueError, match=message):
        training_of(splits, method=name)


def test_a_method_that_averages_refuses_a_second_average(splits):
    with pytest.raises(ValueError, match=r"seal,swa averages the weights itself; with ema=0.9"):
        training_of(splits, method="seal,swa", ema=0.9)


def test_a_combination_is_a_control_if_all_are_and_from_scratch_if_any_is():
    assert is_control("llf") and is_control("llf,swa") and not is_control("seal,swa")
    assert is_from_scratch("seal,swa") and not is_from_scratch("seal,llf")
    assert list(methods_of("seal, swa")) == ["seal", "swa"]


def test_a_setting_without_effect_is_refused():
    check_settings(["anneal.scale", "anneal.average_from", "lr"], "seal,swa")
    with pytest.raises(
        ValueError, match=r"anneal.rho has no effect on seal or long: .* setting of sam"
    ):
        check_settings(["anneal.rho"], "seal", "long")


def test_every_setting_of_anneal_belongs_to_a_method():
    used = {name for method in METHODS.values() for name in method.uses}
    assert used == set(AnnealConfig.__dataclass_fields__)


# Combinations


@pytest.mark.parametrize("method", ["seal,swa", "landscape,swa", "landscape,kinetic", "ban,sam"])
def test_a_combination_resumes_bit_for_bit(method, splits, tmp_path):
    whole = training_of(splits, method=method, epochs=3, generations=2)
    rows = list(train(whole, splits))
    first = training_of(splits, method=method, epochs=3, generations=2)
    rest = train(first, splits)
    while first.epoch < 2:
        next(rest)
    second = training_of(splits, method=method, epochs=3, generations=2)
    second.load(first.save(tmp_path))
    again = list(train(second, splits))
    assert torch.equal(weights(whole), weights(second)) and again[-1].scores == rows[-1].scores
    assert again[-1].recent_loss == rows[-1].recent_loss


def test_seal_with_averaging_ascends_under_the_averages_schedule(splits):
    training = training_of(splits, method="seal,swa", epochs=4, share=0.5)
    rows = list(train(training, splits))
    assert [row.phase for row in rows] == ["descend"] * 4 + ["ascend"] * 2 + ["descend"] * 2
    assert rows[-1].lr == pytest.approx(0.25 * training.config.lr)
    assert "test average accuracy" in rows[-1].scores


# Generations


def test_reinit_torch_keeps_biases_and_norms_of_later_layers(splits):
    """As in the published code of LLF and SEAL; `model` replaces them too."""
    for reinit in ("torch", "model"):
        training = training_of(splits, method="llf", reinit=reinit, epochs=1)
        steps(training, splits, training.setup.period)
        early, late, head = (group["params"] for group in training.optimizer.param_groups)
        before = {p: p.detach().clone() for p in training.model.parameters()}
        training.annealer.begin()
        same = {p: torch.equal(p, before[p]) for p in before}
        assert all(same[p] for p in early)
        vectors = [p for p in (*late, *head) if p.ndim < 2]
        assert vectors and all(same[p] == (reinit == "torch") for p in vectors)
        matrices = [p for p in (*late, *head) if p.ndim > 1]
        assert matrices and not any(same[p] for p in matrices)
        if reinit == "torch":  # kaiming_uniform_(a=sqrt(5)): uniform up to 1 / sqrt(fan_in)
            for p in matrices:
                assert 0.8 < p.abs().max() * p[0].numel() ** 0.5 <= 1


def test_rifle_fine_tunes_under_one_cosine_and_keeps_the_backbones_moments(splits):
    training = training_of(splits, method="rifle", epochs=1)
    steps(training, splits, training.setup.period)
    before = {p: p.detach().clone() for p in training.model.parameters()}
    training.annealer.begin()
    for group in training.optimizer.param_groups:
        for p in group["params"]:
            head = group["name"] == "head"
            assert (p in training.optimizer.state) != head
            assert torch.equal(p, before[p]) != head
    at = training.setup.total // 2
    assert training.schedule(at) == pytest.approx(0.5)


def test_a_born_again_student_sees_no_labels(splits):
    training = training_of(splits, method="ban", epochs=1)
    images, labels = splits.train.images[:20], splits.train.labels[:20]
    plain = nn.functional.cross_entropy(training.model(images), labels)
    torch.testing.assert_close(loss_of(training, images, labels)[0], plain)
    steps(training, splits, training.setup.period)
    training.model.eval()
    target = training.model(images).softmax(1)
    training.annealer.begin()  # the teacher is the network so far, the student a new one
    training.model.eval()
    losses = [loss_of(training, images, y)[0] for y in (labels, (labels + 1) % 10)]
    logits = training.model(images)
    expected = nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(losses[0], expected)
    assert torch.equal(*losses)


def test_self_distillation_mixes_labels_and_the_softened_teacher(splits):
    training = training_of(splits, method="self-distillation", epochs=1, distill=0.3, soften=2.0)
    steps(training, splits, training.setup.period)
    training.annealer.begin()
    training.model.eval()
    images, labels = splits.train.images[:20], splits.train.labels[:20]
    logits = training.model(images)
    target = (training.plan.modules["teacher"](images) / 2).softmax(1)
    hard = nn.functional.cross_entropy(logits, labels)
    soft = 4 * nn.functional.cross_entropy(logits / 2, target)
    torch.testing.assert_close(loss_of(training, images, labels)[0], 0.7 * hard + 0.3 * soft)


# Steps


def test_sharpness_aware_steps_update_norm_statistics_once(splits):
    plain, sam = (training_of(splits, method=name, epochs=1) for name in ("restarts", "sam"))
    for training in (plain, sam):
        steps(training, splits, 1)
    counts = {name: b for name, b in sam.model.named_buffers() if name.endswith("tracked")}
    assert counts and all(int(count) == 1 for count in counts.values())
    for (name, one), (_, other) in zip(
        plain.model.named_buffers(), sam.model.named_buffers(), strict=True
    ):
        assert torch.equal(one, other), name
    assert not torch.equal(weights(plain), weights(sam))


def test_kinetic_annealing_has_momentum_at_its_defaults(splits):
    training = training_of(splits, method="kinetic")
    seen = []
    training.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append(optimizer.param_groups[0]["momentum"])
    )
    steps(training, splits, 1)
    assert seen == [pytest.approx(1 - training.config.lr**0.5)]
    assert len(training.plan.rules) == 1  # and no modified landscape


def test_the_random_control_goes_at_least_as_far_as_the_ascent(splits):
    moved = {}
    for method in ("seal", "random-direction"):
        training = training_of(splits, method=method, epochs=4, scale=0.1, share=1.0)
        found = [row.scores[DISTANCE] for row in train(training, splits) if DISTANCE in row.scores]
        moved[method] = found
        if not found:  # the run ends with the ascent
            training.annealer.begin()
            moved[method] = [training.setup.forgetting.take()[DISTANCE]]
    assert moved["random-direction"][0] >= moved["seal"][0] > 0


# Schedules


def factors(splits, **settings):
    training = training_of(splits, **settings)
    schedule = learning_rate_schedule(training.setup, training.plan)
    return [schedule(step) for step in range(training.setup.total)], training.setup.steps


def test_rates_per_epoch_follow_the_published_code(splits):
    """schedulers.py: (e + 1) / warmup, then half a cosine over the epochs that are left."""
    found, per_epoch = factors(
        splits, method="restarts", epochs=8, warmup=3.0, lr_updates="epoch", batch=10
    )
    assert per_epoch == 4
    for step, factor in enumerate(found):
        epoch = step // per_epoch % 8
        expected = (epoch + 1) / 3 if epoch < 3 else 0.5 * (1 + cos(pi * (epoch - 3) / 5))
        assert factor == pytest.approx(expected), step


def test_step_decay_restarts_with_every_generation(splits):
    found, per_epoch = factors(
        splits, method="restarts", epochs=4, schedule="step", decay_at=(1.0, 3.0), batch=40
    )
    assert per_epoch == 1 and found == pytest.approx([1, 0.1, 0.1, 0.01] * 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "step"}, "steps need both"),
        ({"decay_at": (3.0,)}, "steps need both"),
        ({"schedule": "step", "decay_at": (-1.0,)}, "epochs above 0"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_a_configuration_of_an_older_version_keeps_its_constant_rate():
    assert from_saved({"constant_lr": True}).schedule == "constant"
    assert from_saved({"constant_lr": False}) == TrainConfig()
    assert all(isinstance(preset(name), TrainConfig) for name in PRESETS)


# Reports


def test_the_recent_loss_is_the_mean_of_the_last_twenty(splits):
    training = training_of(splits, method="restarts", epochs=6, generations=1, batch=10)
    losses = []
    observe = training.annealer.observe
    training.annealer.observe = lambda loss: (losses.append(float(loss.detach())), observe(loss))
    rows = list(train(training, splits))
    assert len(losses) == 24
    assert rows[-1].recent_loss == pytest.approx(sum(losses[-20:]) / 20)
    assert rows[0].recent_loss == pytest.approx(sum(losses[:4]) / 4)


def test_distances_to_snapshots_are_reported(splits):
    rows = list(train(training_of(splits, method="distancing", epochs=1, generations=3), splits))
    names = [[key for key in row.scores if key.startswith("distance")] for row in rows]
    assert [len(one) for one in names] == [0, 1, 2]
    assert all(rows[-1].scores[name] > 0 for name in names[-1])


def test_inputs_can_be_normalised_as_imagenet(splits):
    with pytest.raises(ValueError, match="needs 3 channels, the images have 1"):
        training_of(splits, normalize="imagenet")
