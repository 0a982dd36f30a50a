"""Training on digits: methods, schedules, exact resume and optimizers."""

import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import SMALL
from torch.amp import GradScaler

from dreamsa.device import Processes
from train_cls.config import AnnealConfig, DataConfig, TrainConfig
from train_cls.data import load_splits
from train_cls.methods import METHODS
from train_cls.train import new_training, train, train_step


@pytest.fixture(scope="module")
def splits():
    return load_splits("digits", SMALL.splits)


def weights(training):
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_bit_for_bit(method, splits, tmp_path):
    """Saved in the middle of generation 2 and loaded into new objects, with snapshots, masks and
    teachers."""
    config = replace(SMALL, method=method)
    whole = new_training(config, splits.train)
    results = list(train(whole, splits))
    assert all(np.isfinite(r.loss) for r in results) and results[-1].scores["test accuracy"] >= 0
    assert whole.step == whole.steps
    if whole.steps <= whole.setup.period:
        return
    first = new_training(config, splits.train)
    for result in train(first, splits):
        if result.epoch == 3:
            break
    second = new_training(config, splits.train)
    second.load(first.save(tmp_path))
    rest = list(train(second, splits))
    assert torch.equal(weights(whole), weights(second))
    assert rest[-1].scores == results[-1].scores and rest[0].loss == results[3].loss


def test_methods_that_share_generation_one_are_equal_after_it(splits):
    ends = {}
    for method in METHODS:
        if not METHODS[method].from_scratch:
            training = new_training(replace(SMALL, method=method), splits.train)
            for result in train(training, splits):
                if result.epoch == SMALL.epochs:
                    break
            ends[method] = weights(training)
    first = ends["restarts"]
    assert len(ends) > 14 and all(torch.equal(first, other) for other in ends.values())


def test_accuracy_falls_during_an_ascent_and_recovers(splits):
    config = replace(
        SMALL,
        method="seal",
        epochs=8,
        generations=2,
        anneal=AnnealConfig(scale=1.0, share=0.5, bound=1e9),
    )
    results = list(train(new_training(config, splits.train), splits))
    phases = [r.phase for r in results]
    assert phases == ["descend"] * 8 + ["ascend"] * 4 + ["descend"] * 4
    assert results[11].loss > results[7].loss and results[15].loss < results[11].loss
    assert (
        results[11].accuracy < results[7].accuracy and results[15].accuracy > results[11].accuracy
    )


def test_seal_with_scale_zero_is_the_freezing_control(splits):
    ends = []
    for method, scale in (("seal", 0.0), ("seal-zero", 0.01)):
        training = new_training(
            replace(
                SMALL, method=method, epochs=4, generations=2, anneal=AnnealConfig(scale=scale)
            ),
            splits.train,
        )
        list(train(training, splits))
        ends.append(weights(training))
    assert torch.equal(*ends)


def test_settings_reach_the_optimizer(splits):
    training = new_training(
        replace(SMALL, optimizer="adamw", clip=1.0, accumulate=2, batch=10, ema=0.9), splits.train
    )
    results = list(train(training, splits))
    assert training.steps == 3 * 2 * 5 and "test average accuracy" in results[-1].scores


def test_half_precision_keeps_single_precision_weights(splits):
    training = new_training(
        replace(SMALL, method="normal", epochs=1, precision="bfloat16"), splits.train
    )
    (result,) = train(training, splits)
    assert np.isfinite(result.loss) and weights(training).dtype == torch.float32


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adagrad", "rmsprop"])
def test_every_optimizer_works_with_rules(optimizer, splits):
    training = new_training(
        replace(SMALL, optimizer=optimizer, method="landscape", lr=1e-3), splits.train
    )
    list(train(training, splits))
    assert training.annealer.lowest is not None and torch.isfinite(weights(training)).all()


def test_accumulated_batches_equal_one_large_one_without_batch_norm():
    small = load_splits("digits", DataConfig(per_class=2, validation=0, size=32))
    ends = []
    for batch, accumulate in ((20, 1), (5, 4)):
        config = TrainConfig(
            epochs=1,
            generations=1,
            method="normal",
            batch=batch,
            accumulate=accumulate,
            model="vgg16",
            pad=0,
            lr=1e-3,
        )
        training = new_training(config, small.train)
        for module in training.model.modules():
            if hasattr(module, "p"):
                module.p = 0.0
        list(train(training, small))
        ends.append(weights(training))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "early", "late"),
    [
        ("seal", 0.1, 1.0),
        ("seal-reverse", 1.0, 0.1),
        ("seal-zero", 0.0, 1.0),
        ("random-direction", 0.1, 1.0),
    ],
)
def test_reported_rates_include_the_rules(method, early, late, splits):
    """Of early and later layers, in units of the scheduled rate, during the ascent and after it."""
    config = replace(
        SMALL,
        method=method,
        epochs=4,
        generations=2,
        schedule="constant",
        anneal=AnnealConfig(scale=0.1, share=0.5),
    )
    training = new_training(config, splits.train)
    seen = {
        result.epoch: (result.early_lr, training.annealer.rates["late"])
        for result in train(training, splits)
    }
    assert seen[5] == pytest.approx((config.lr * early, config.lr * late))
    assert seen[4] == seen[8] == pytest.approx((config.lr, config.lr))


class OverflowingScaler(GradScaler):
    """Gradients of batches 0, 1 and 12 overflow."""

    def __init__(self, *args, **kwargs):
        super().__init__("cpu")
        self.batch = -1

    def scale(self, outputs):
        self.batch += 1
        return super().scale(outputs) * (np.inf if self.batch in (0, 1, 12) else 1.0)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])  # fused and not
def test_a_skipped_update_changes_no_weights_and_takes_no_step(optimizer, splits):
    training = new_training(replace(SMALL, optimizer=optimizer, lr=1e-3), splits.train)
    before, images, labels = weights(training), splits.train.images[:20], splits.train.labels[:20]
    training.scaler = OverflowingScaler()
    for skipped in (True, True, False):
        train_step(training, images, labels, Processes())
        assert torch.equal(before, weights(training)) == skipped
        assert len(training.optimizer.state) == (
            0 if skipped else len(list(training.model.parameters()))
        )
    assert (training.step, training.batches) == (1, 3)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_epochs_end_after_all_batches_and_rules_follow_the_steps_taken(
    optimizer, splits, monkeypatch, tmp_path
):
    drawn, phases = [], []

    def record(images, rng, flip, pad):
        drawn.append(images)
        phases.append((training.step, training.annealer.phase))
        return images

    monkeypatch.setattr(torch.amp, "GradScaler", OverflowingScaler)
    monkeypatch.setattr("train_cls.train.augment", record)
    config = replace(SMALL, optimizer=optimizer, lr=1e-3, method="seal", model="preresnet-tiny")
    training = new_training(config, splits.train)
    results = list(train(training, splits))
    assert training.batches == training.steps == 30 and training.step == 27
    assert [r.epoch for r in results] == [1, 2, 3, 4, 5, 6]
    assert [r.generation for r in results] == [1, 1, 2, 2, 3, 3]
    assert [bool(r.scores) for r in results] == [True] * 6
    epoch = torch.cat(drawn[:5]).flatten(1).unique(dim=0)
    assert len(epoch) == len(splits.train), "skipped batches are not drawn again"
    period, ascent = training.setup.period, training.setup.ascent_window.length
    for step, phase in phases:
        ascends = step >= period and step % period < ascent
        assert phase == ("ascend" if ascends else "descend"), step
    assert results[-1].lr == config.lr * training.schedule(training.step - 1)
    restored = new_training(config, splits.train)
    restored.load(training.save(tmp_path))
    assert (restored.step, restored.batches) == (training.step, training.batches)
    assert training.scaler.get_scale() < 65536  # halved by every overflow
    assert restored.scaler.state_dict() == training.scaler.state_dict()


@pytest.mark.parametrize(("method", "constant"), [("seal", False), ("long", False), ("swa", True)])
def test_base_rates_stay_in_the_groups_and_results_report_the_schedule(method, constant, splits):
    config = replace(
        SMALL,
        method=method,
        warmup=0.5,
        schedule="constant" if constant else "cosine",
        model="preresnet-tiny",
    )
    training = new_training(config, splits.train)
    for result in train(training, splits):
        factor = 1.0 if constant else training.schedule(training.step - 1)
        assert result.lr == config.lr * factor
        assert all(group["lr"] == config.lr for group in training.optimizer.param_groups)
        if result.phase == "descend":
            assert result.early_lr == result.lr


def test_weights_of_another_network_are_refused(splits, tmp_path):
    path = new_training(SMALL, splits.train).save(tmp_path)
    other = new_training(replace(SMALL, model="preresnet-tiny"), splits.train)
    message = r"another network: layer1\.1\.bn1\.bias is \(16,\) in it and absent in this PreResNet"
    with pytest.raises(ValueError, match=message):
        other.load(path)


def test_divergence_is_an_error(splits):
    wild = replace(
        SMALL,
        method="seal",
        epochs=6,
        generations=2,
        weight_decay=10.0,
        anneal=AnnealConfig(scale=100.0, share=1.0, bound=1e30),
    )
    with pytest.raises(FloatingPointError, match="diverged"):
        list(train(new_training(wild, splits.train), splits))


def test_an_ascent_ends_early_when_the_loss_exceeds_its_bound(splits, caplog):
    config = replace(
        SMALL, method="seal", epochs=4, generations=2, anneal=AnnealConfig(share=1.0, bound=0.01)
    )
    results = list(train(new_training(config, splits.train), splits))
    assert [r.phase for r in results] == ["descend"] * 8 and "ends early" in caplog.text


def test_the_method_in_the_documentation_runs():
    """The example of docs/train_cls.md changes the early layers' gradients in its window and
    nothing else."""
    text = (Path(__file__).parents[2] / "docs" / "train_cls.md").read_text()
    lines = text.split("## A custom method")[1].split("\n## ")[0].splitlines()
    code = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line))
    names: dict = {}
    exec(code, names)
    model, optimizer, annealer = names["model"], names["optimizer"], names["annealer"]
    images = torch.randint(
        0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )

    def changed() -> set[str]:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        before = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        return {
            name for name, p in model.named_parameters() if not torch.equal(before[name], p.grad)
        }

    early = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("conv1", "bn1", "layer1", "layer2"))
    }
    for step, expected in (
        (999, set()),
        (1000, early),
        (1249, early),
        (1250, set()),
        (2000, early),
    ):
        annealer.step = step
        assert changed() == expected, step
