import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_model import assert_unchanged, snapshot
from torch import nn

from train_cls.evaluate.few_shot import (
    FewShotConfig,
    FewShotResult,
    affine_logits,
    draw_episodes,
    few_shot_affine,
    few_shot_features,
    few_shot_linear,
    images_by_class,
)
from train_cls.evaluate.linear_heads import train_heads, with_bias_column

QUICK = FewShotConfig(shots=2, way=3, queries=4, episodes=6, epochs=5)


def slow_layer(head):
    layer = nn.Linear(head.shape[1] - 1, len(head))
    layer.load_state_dict({"weight": head[:, :-1], "bias": head[:, -1]})
    return layer, torch.optim.SGD(
        layer.parameters(), lr=0.01, momentum=0.9, dampening=0.9, weight_decay=0.001
    )


def slow_linear(features, episodes, index, config):
    """One episode as in the benchmark's finetune.py: nn.Linear, torch.optim.SGD, a Python loop."""
    support = features[episodes.support[index]]
    labels = torch.arange(config.way).repeat_interleave(config.shots)
    layer, optimizer = slow_layer(episodes.heads[index])
    for order in episodes.order[index]:
        for batch in order.split(config.batch):
            optimizer.zero_grad()
            F.cross_entropy(layer(support[batch]), labels[batch]).backward()
            optimizer.step()
    return layer


@pytest.fixture
def noise(rng):
    return torch.randn(150, 16, generator=rng), torch.arange(150) % 6


@pytest.mark.parametrize("shots", [1, 5])  # 5 x 1 and 5 x 5 are no multiples of the mini-batch
def test_parallel_episodes_equal_sequential_ones_of_torch(noise, shots):
    features, labels = noise
    config = FewShotConfig(shots=shots, epochs=20)
    episodes = draw_episodes(images_by_class(labels, config), 16, 0, 2, config)
    support, answers = (
        with_bias_column(features)[episodes.support],
        torch.arange(5).repeat_interleave(shots).expand(2, -1),
    )
    heads = train_heads(
        episodes.heads, support, answers, episodes.batches(config.batch), config.head
    )
    for index, head in enumerate(heads):
        slow = slow_linear(features, episodes, index, config)
        assert torch.allclose(head, torch.cat([slow.weight, slow.bias[:, None]], 1), atol=1e-5)


def test_accuracies_are_those_of_the_slow_loop(noise):
    features, labels = noise
    config = FewShotConfig(shots=3, way=4, queries=6, episodes=5, epochs=10)
    episodes = draw_episodes(images_by_class(labels, config), 16, 0, 5, config)
    result = few_shot_features(features, labels, config, parallel=2)
    for index, accuracy in enumerate(result.accuracies):
        predicted = slow_linear(features, episodes, index, config)(
            features[episodes.query[index]]
        ).argmax(1)
        assert accuracy == (predicted == torch.arange(4).repeat_interleave(6)).double().mean()


def test_separable_features_give_accuracy_one(rng):
    labels = torch.arange(200) % 8
    features = 20 * F.one_hot(labels, 8).float() + torch.rand(200, 8, generator=rng)
    result = few_shot_features(features, labels, FewShotConfig(shots=5, episodes=40))
    assert result.mean == 1 and result.interval == 0


def test_random_labels_give_chance_accuracy(rng):
    result = few_shot_features(
        torch.randn(400, 8, generator=rng),
        torch.arange(400) % 10,
        FewShotConfig(shots=1, epochs=20),
    )
    assert abs(result.mean - 0.2) < 2 * result.interval
    assert (
        0.003 < result.interval < 0.006
    )  # 75 guesses an episode: 1.96 * sqrt(0.16 / 75 / 600) = 0.0037


def test_the_interval_is_the_benchmarks():
    accuracies = torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64)
    result = FewShotResult(accuracies)
    assert result.mean == pytest.approx(0.5)
    assert result.interval == pytest.approx(
        1.96 * math.sqrt((0.09 + 0.01 + 0.16) / 3) / math.sqrt(3)
    )


def test_an_episode_holds_shots_and_queries_of_distinct_images(noise):
    labels = noise[1]
    config = FewShotConfig(shots=5, episodes=20)
    episodes = draw_episodes(images_by_class(labels, config), 16, 0, 20, config)
    support, query = labels[episodes.support].view(20, 5, 5), labels[episodes.query].view(20, 5, 15)
    assert (support == support[:, :, :1]).all() and (query == support[:, :, :1]).all()
    assert all(len(set(row)) == 5 for row in support[:, :, 0].tolist())
    for drawn in torch.cat([episodes.support, episodes.query], 1).tolist():
        assert len(set(drawn)) == 100


def test_labels_need_not_be_consecutive(noise):
    features, labels = noise
    assert few_shot_features(features, labels * 7 + 3, QUICK).accuracies.equal(
        few_shot_features(features, labels, QUICK).accuracies
    )


def test_results_do_not_depend_on_parallelism(noise, model, images):
    config = replace(QUICK, episodes=7)
    assert few_shot_features(*noise, config, parallel=3).accuracies.equal(
        few_shot_features(*noise, config, parallel=7).accuracies
    )
    labels = torch.arange(120) % 5
    one, three = (
        few_shot_affine(model, images, labels, config, parallel=p).accuracies for p in (1, 3)
    )
    assert one.equal(three)


def test_the_seed_decides_and_the_global_generator_is_unchanged(noise):
    state = torch.get_rng_state()
    first = few_shot_features(*noise, QUICK).accuracies
    assert few_shot_features(*noise, QUICK).accuracies.equal(first)
    assert not few_shot_features(*noise, replace(QUICK, seed=1)).accuracies.equal(first)
    assert torch.get_rng_state().equal(state)


def slow_affine(model, images, episodes, index, config):
    """One episode with modules and optimizers of torch."""
    model = deepcopy(model).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    affine = torch.optim.SGD(
        [parameter for norm in norms for parameter in norm.parameters()], lr=config.affine_lr
    )
    model.fc, optimizer = slow_layer(episodes.heads[index])
    support, labels = (
        images[episodes.support[index]],
        torch.arange(config.way).repeat_interleave(config.shots),
    )
    for order in episodes.order[index]:
        for batch in order.split(config.batch):
            optimizer.zero_grad()
            affine.zero_grad()
            F.cross_entropy(model(support[batch]), labels[batch]).backward()
            optimizer.step()
            affine.step()
    return model(images[episodes.query[index]])


def test_parallel_affine_episodes_equal_sequential_ones_of_torch(model, images):
    labels = torch.arange(120) % 5
    config = FewShotConfig(shots=2, way=3, queries=8, episodes=4, epochs=8, affine_lr=0.05)
    episodes = draw_episodes(images_by_class(labels, config), 6, 0, 4, config)
    slow = torch.stack(
        [slow_affine(model, images, episodes, index, config).detach() for index in range(4)]
    )
    fast = affine_logits(model.eval(), images, config, episodes)
    assert torch.allclose(fast, slow, atol=1e-5) and not fast.requires_grad
    expected = (slow.argmax(-1) == torch.arange(3).repeat_interleave(8)).double().mean(1)
    assert few_shot_affine(model, images, labels, config, parallel=3).accuracies.equal(expected)


def test_affine_parameters_that_do_not_move_give_the_linear_update(model, images):
    labels = torch.arange(120) % 5
    config = replace(QUICK, epochs=20, affine_lr=0.0)
    linear = few_shot_linear(model, images, labels, config).accuracies
    assert few_shot_affine(model, images, labels, config).accuracies.equal(linear)
    assert not few_shot_affine(
        model, images, labels, replace(config, affine_lr=0.5)
    ).accuracies.equal(linear)


@pytest.mark.parametrize("evaluate", [few_shot_linear, few_shot_affine])
def test_the_model_is_unchanged(model, images, evaluate):
    model.train()
    before = snapshot(model)
    evaluate(model, images, torch.arange(120) % 5, QUICK)
    assert_unchanged(model, before)


def test_too_little_data_is_an_error(noise):
    features, labels = noise  # 25 images of each of 6 classes
    with pytest.raises(
        ValueError,
        match=r"Found 25 images in class 0, expected at least 11 shots \+ 15 queries = 26",
    ):
        few_shot_features(features, labels, FewShotConfig(shots=11))
    with pytest.raises(ValueError, match="Found 6 classes, expected at least way=7"):
        few_shot_features(features, labels, FewShotConfig(way=7))
    with pytest.raises(ValueError, match="150 images and 149 labels"):
        few_shot_features(features, labels[1:])
    with pytest.raises(ValueError, match="shots must be greater than or equal to 1, got 0"):
        FewShotConfig(shots=0)


def test_a_model_without_batch_norm_has_no_affine_update(model, images):
    for parent in (model, model.layer1[0], model.layer2[1]):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    with pytest.raises(ValueError, match="no batch norm"):
        few_shot_affine(model, images, torch.arange(120) % 5, QUICK)
