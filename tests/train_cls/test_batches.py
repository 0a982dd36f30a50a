"""Mixup, cutmix and random erasing: closed forms, distributions, and reproducible draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import SMALL

from dreamsa.randomness import generator_for
from train_cls.config import AugmentConfig
from train_cls.data import erase, load_splits, mix
from train_cls.train import loss_of, new_training, train

LABELS = torch.arange(8) % 4


def pictures(count: int = 8, size: int = 12) -> torch.Tensor:
    """Image i has the value 10 * i everywhere."""
    values = 10 * torch.arange(count, dtype=torch.uint8)
    return values.view(-1, 1, 1, 1).expand(-1, 3, size, size).clone()


def weights_of(step: int, **config: float) -> tuple[torch.Tensor, torch.Tensor]:
    rng = generator_for(0, step, "mix")
    return mix(pictures(), LABELS, 4, AugmentConfig(**config), rng)


def test_mixup_blends_pixels_and_labels_by_one_weight():
    images, labels = weights_of(3, mixup=1.0)
    values = images[:, 0, 0, 0] * 25.5  # image i: i
    partner = torch.randperm(8, generator=after_two_draws(3))
    i = next(i for i in range(8) if LABELS[partner[i]] != LABELS[i])
    weight = float(labels[i, LABELS[i]])
    own = torch.arange(8.0)
    torch.testing.assert_close(values, weight * own + (1 - weight) * own[partner])
    assert images.dtype == torch.float32 and bool((images == images[:, :1, :1, :1]).all())
    torch.testing.assert_close(labels.sum(1), torch.ones(8))


def after_two_draws(step: int) -> torch.Generator:
    rng = generator_for(0, step, "mix")
    torch.rand(2, generator=rng, dtype=torch.float64)
    return rng


def test_cutmix_pastes_a_rectangle_whose_area_is_the_weight():
    images, labels = weights_of(5, cutmix=1.0)
    assert images.dtype == torch.uint8
    changed = images != pictures()
    area = changed[:, 0].double().mean((1, 2))
    partner = torch.randperm(8, generator=after_two_draws(5))
    moved = partner != torch.arange(8)
    assert 0 < area[moved][0] < 1 and len(area[moved].unique()) == 1
    for i in moved.nonzero().flatten().tolist():
        inside = changed[i, 0]
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        assert bool(inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
        assert images[i][:, inside].unique().tolist() == [10 * int(partner[i])]
        if LABELS[partner[i]] != LABELS[i]:
            assert float(labels[i, LABELS[partner[i]]]) == pytest.approx(float(area[i]))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_weight_has_the_beta_distribution(alpha):
    """Its mean is 1/2 and its variance 1 / (4 (2 alpha + 1))."""
    found = []
    for step in range(2000):
        _, labels = weights_of(step, mixup=alpha)
        partner = torch.randperm(8, generator=after_two_draws(step))
        other = next((i for i in range(8) if LABELS[partner[i]] != LABELS[i]), None)
        if other is not None:
            found.append(float(labels[other, LABELS[other]]))
    assert np.mean(found) == pytest.approx(0.5, abs=0.04)
    assert np.var(found) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_both_alternate_and_neither_changes_nothing():
    kinds = [weights_of(step, mixup=1.0, cutmix=1.0)[0].dtype for step in range(200)]
    assert 70 < sum(kind == torch.uint8 for kind in kinds) < 130
    images, labels = weights_of(0)
    assert torch.equal(images, pictures()) and labels is LABELS
    assert torch.equal(weights_of(7, mixup=0.3)[0], weights_of(7, mixup=0.3)[0])
    assert not torch.equal(weights_of(7, mixup=0.3)[0], weights_of(8, mixup=0.3)[0])


def test_erasing_replaces_one_rectangle_of_the_chosen_images():
    images = torch.full((400, 1, 40, 20), 7, dtype=torch.uint8)
    rng = torch.Generator().manual_seed(1)
    erased = erase(images, rng, 0.25)
    changed = (erased != images)[:, 0]
    chosen = changed.any((1, 2))
    assert 0.15 < chosen.float().mean() < 0.35
    areas = []
    for mask in changed[chosen]:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert inside.float().mean() > 0.9  # noise equals the image in 1 of 256 pixels
        areas.append(inside.numel() / mask.numel())
    assert 0.01 < min(areas) < 0.05 and 0.25 < max(areas) < 0.36
    assert erase(images, rng, 0.0) is images
    values = erased[erased != 7].float()
    assert values.mean() == pytest.approx(127.5, abs=3), "uniform noise"
    assert bool(erase(images, rng, 1.0).ne(images).any((1, 2, 3)).all())


def test_the_loss_of_mixed_labels_is_the_mixture_of_losses():
    splits = load_splits("digits", SMALL.splits)
    training = new_training(SMALL, splits.train)
    training.model.eval()
    images, one, two = splits.train.images[:6], splits.train.labels[:6], splits.train.labels[6:12]
    mixed = 0.3 * torch.eye(10)[one] + 0.7 * torch.eye(10)[two]
    losses = [loss_of(training, images, labels)[0] for labels in (one, two, mixed)]
    torch.testing.assert_close(losses[2], 0.3 * losses[0] + 0.7 * losses[1])


def test_a_run_with_every_augmentation_resumes_bit_for_bit(tmp_path):
    splits = load_splits("digits", SMALL.splits)
    augmented = AugmentConfig(mixup=0.2, cutmix=1.0, erase=0.5, operations=2)
    config = replace(SMALL, model="preresnet-tiny", augment=augmented, generations=1, epochs=4)
    whole = new_training(config, splits.train)
    losses = [result.loss for result in train(whole, splits)]
    first = new_training(config, splits.train)
    for result in train(first, splits):
        if result.epoch == 2:
            break
    second = new_training(config, splits.train)
    second.load(first.save(tmp_path))
    assert [result.loss for result in train(second, splits)] == losses[2:]
    plain = new_training(replace(config, augment=AugmentConfig()), splits.train)
    assert next(train(plain, splits)).loss != losses[0]
