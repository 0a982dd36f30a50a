import pytest
import torch
import torch.nn.functional as F
from tiny_model import assert_unchanged, snapshot
from torch import nn

from dreamsa.randomness import generator_for
from train_cls.evaluate.linear_heads import SGD, random_head, train_heads, with_bias_column
from train_cls.evaluate.linear_probe import (
    ProbeConfig,
    ProbeResult,
    ProbeScore,
    linear_probe,
    probe_features,
    shuffled_batches,
)
from train_cls.evaluate.metrics import accuracy, embed


@pytest.fixture
def splits(rng):
    """Three clusters in the plane."""
    centres = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, -3.0]])
    labels = torch.arange(3).repeat(20)
    return [(centres[labels] + torch.randn(60, 2, generator=rng), labels) for _ in range(3)]


def slow_probe(features, labels, classes, lr, config):
    """nn.Linear and torch.optim.SGD, one learning rate at a time."""
    start = random_head(
        features.shape[1], classes, generator_for(config.seed, 0, "linear probe: head")
    )
    layer = nn.Linear(features.shape[1], classes)
    layer.load_state_dict({"weight": start[:, :-1], "bias": start[:, -1]})
    optimizer = torch.optim.SGD(
        layer.parameters(), lr=lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    for batch in shuffled_batches(len(features), config, torch.device("cpu")):
        optimizer.zero_grad()
        F.cross_entropy(layer(features[batch[0]]), labels[batch[0]]).backward()
        optimizer.step()
    return layer


def test_parallel_heads_equal_sequential_ones_of_torch(splits):
    config, (features, labels) = ProbeConfig(epochs=10, batch=16, weight_decay=0.01), splits[0]
    start = random_head(2, 3, generator_for(config.seed, 0, "linear probe: head"))
    sgd = SGD(
        torch.tensor(config.learning_rates)[:, None, None], config.momentum, 0, config.weight_decay
    )
    batches = shuffled_batches(60, config, torch.device("cpu"))
    heads = train_heads(
        start.expand(3, -1, -1), with_bias_column(features)[None], labels[None], batches, sgd
    )
    for lr, head in zip(config.learning_rates, heads, strict=True):
        slow = slow_probe(features, labels, 3, lr, config)
        assert torch.allclose(head, torch.cat([slow.weight, slow.bias[:, None]], 1), atol=1e-5)


def test_reported_accuracies_are_those_of_torchs_layer(splits):
    config = ProbeConfig(epochs=5)
    result = probe_features(*splits, config=config)
    for score in result.scores:
        layer = slow_probe(*splits[0], 3, score.lr, config)
        expected = [accuracy(layer(features).detach(), labels) for features, labels in splits]
        assert [score.train, score.validation, score.test] == expected


def test_clusters_are_separated(splits):
    assert probe_features(*splits, config=ProbeConfig(epochs=20)).chosen.test > 0.95


def test_the_default_is_the_papers_protocol():
    config = ProbeConfig()
    assert (config.learning_rates, config.epochs, config.momentum, config.weight_decay) == (
        (0.1, 0.01, 0.001),
        120,
        0.9,
        1e-4,
    )


def test_the_learning_rate_is_chosen_on_the_validation_split():
    result = ProbeResult(
        (
            ProbeScore(0.1, 1, 0.7, 0.6),
            ProbeScore(0.01, 0.9, 0.8, 0.5),
            ProbeScore(0.001, 0.8, 0.8, 0.7),
        )
    )
    assert result.chosen == result.scores[1]
    assert result.best_on_test == 0.7


def test_the_probe_leaves_the_model_unchanged(model, images):
    labels = torch.arange(120) % 5
    model.train()
    model.layer2.eval()
    before = snapshot(model)
    linear_probe(
        model,
        (images[:60], labels[:60]),
        (images[60:90], labels[60:90]),
        (images[90:], labels[90:]),
        ProbeConfig(epochs=3),
    )
    assert_unchanged(model, before)


def test_the_probe_uses_the_features_of_the_model(model, images):
    labels, config = torch.arange(120) % 5, ProbeConfig(epochs=3)
    features = embed(model, images)
    parts = [slice(0, 60), slice(60, 90), slice(90, 120)]
    assert linear_probe(
        model, *((images[part], labels[part]) for part in parts), config=config
    ) == probe_features(*((features[part], labels[part]) for part in parts), config=config)


def test_results_depend_only_on_the_seed(splits):
    torch.manual_seed(1)
    first = probe_features(*splits, config=ProbeConfig(epochs=2, seed=3))
    state = torch.get_rng_state()
    assert probe_features(*splits, config=ProbeConfig(epochs=2, seed=3)) == first
    assert torch.get_rng_state().equal(state)


def test_bad_splits_and_numbers_are_errors(splits):
    with pytest.raises(ValueError, match="0 images and 0 labels in the validation split"):
        probe_features(splits[0], (splits[1][0][:0], splits[1][1][:0]), splits[2])
    with pytest.raises(ValueError, match="learning_rates .* at least 1 item"):
        ProbeConfig(learning_rates=())
    with pytest.raises(ValueError, match="epochs must be greater than or equal to 1"):
        ProbeConfig(epochs=0)
