import pytest
import torch
from tiny_model import assert_unchanged, snapshot
from torch import nn

from train_cls.evaluate.metrics import predict
from train_cls.evaluate.prediction_depth import (
    DepthConfig,
    default_layers,
    depths,
    first_smallest,
    layer_features,
    majority,
    nearest_neighbours,
    prediction_depth,
)
from train_cls.models import build_model

LAYERS = ["bn1", "layer1.0", "layer2.1", "fc"]


def test_depth_of_a_case_by_hand():
    """Columns agree from probe 0, 2, 3 and never; the last from 3 on and by chance in probe 0."""
    probes = torch.tensor([[7, 1, 1, 7, 7], [7, 2, 1, 7, 1], [7, 7, 2, 7, 2], [7, 7, 7, 1, 7]])
    assert depths(probes, torch.full((5,), 7)).tolist() == [0, 2, 3, 4, 3]


def test_of_equal_distances_the_smaller_columns_come_first():
    distances = torch.tensor(
        [[2.0, 1.0, 2.0, 0.0, 2.0], [3.0, 3.0, 3.0, 3.0, 3.0], [5.0, 4.0, 3.0, 2.0, 1.0]]
    )
    assert first_smallest(distances, 3).tolist() == [[3, 1, 0], [0, 1, 2], [4, 3, 2]]


def test_neighbours_are_those_of_a_stable_sort(rng):
    distances = torch.randint(0, 6, (50, 40), generator=rng).float()
    assert first_smallest(distances, 7).equal(distances.argsort(dim=1, stable=True)[:, :7])


def test_of_equally_frequent_classes_the_nearest_wins():
    rows = torch.tensor([[2, 1, 1, 2, 0], [0, 1, 1, 2, 2], [1, 0, 0, 0, 1], [4, 3, 2, 1, 0]])
    assert majority(rows, 5).tolist() == [2, 1, 0, 4]


def test_neighbours_of_points_on_a_line():
    bank, labels = (
        torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]]),
        torch.tensor([0, 0, 0, 1, 1, 1]),
    )
    assert nearest_neighbours(
        bank, labels, torch.tensor([[-5.0], [5.5], [6.5], [11.5]]), 3
    ).tolist() == [0, 0, 1, 1]


def test_neighbours_do_not_depend_on_the_chunk(rng, monkeypatch):
    bank, labels, queries = (
        torch.randn(90, 5, generator=rng),
        torch.arange(90) % 4,
        torch.randn(33, 5, generator=rng),
    )
    expected = torch.stack(
        [
            labels[(bank - query).norm(dim=1).argsort()[:5]].bincount(minlength=4).argmax()
            for query in queries
        ]
    )
    clear = torch.tensor(
        [
            (
                labels[(bank - query).norm(dim=1).argsort()[:5]]
                .bincount()
                .sort()
                .values[-2:]
                .diff()
                > 0
            ).item()
            for query in queries
        ]
    )
    first = nearest_neighbours(bank, labels, queries)
    assert first[clear].equal(expected[clear]) and clear.any()
    monkeypatch.setattr("train_cls.evaluate.prediction_depth.DISTANCES_AT_ONCE", 400)
    assert nearest_neighbours(bank, labels, queries).equal(first)


def test_default_layers_of_a_residual_network(model):
    assert default_layers(model) == LAYERS


def test_default_layers_of_stages_without_blocks():
    stages = {name: nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()) for name in ("layer1", "layer2")}
    model = nn.ModuleDict(
        {**stages, "fc1": nn.Linear(2, 2), "drop": nn.Dropout(), "fc": nn.Linear(2, 2)}
    )
    assert default_layers(model) == ["layer1", "layer2", "fc1", "fc"]
    with pytest.raises(ValueError, match="Pass the names of the layers to probe"):
        default_layers(nn.Sequential(nn.Flatten()))


@torch.no_grad()
def test_features_are_the_outputs_before_an_inplace_relu(model, images):
    model.eval()
    stem = model.bn1(model.conv1(model.pixels(images)))
    expected = stem.clone()
    assert (expected < 0).any()
    average = layer_features(model, images, ["bn1", "fc"], batch=50)
    assert torch.allclose(average["bn1"], expected.mean((2, 3)), atol=1e-5)
    assert torch.allclose(average["fc"], predict(model, images), atol=1e-5)
    assert torch.allclose(
        layer_features(model, images, ["bn1"], "flatten", batch=50)["bn1"],
        expected.flatten(1),
        atol=1e-5,
    )


@pytest.mark.parametrize("pooling", ["average", "flatten"])
def test_the_whole_equals_its_parts(model, images, rng, pooling):
    labels = torch.randint(0, 4, (120,), generator=rng)
    bank, queries = (images[:90], labels[:90]), (images[90:], labels[90:])
    result = prediction_depth(
        model, bank, queries, config=DepthConfig(neighbours=3, pooling=pooling, batch=40)
    )
    assert result.layers == tuple(LAYERS)
    for name, accuracy, probe in zip(result.layers, result.accuracies, result.probes, strict=True):
        known, queried = (
            layer_features(model, part, [name], pooling)[name]
            for part in (images[:90], images[90:])
        )
        assert probe.equal(nearest_neighbours(known, labels[:90], queried, 3))
        assert accuracy == pytest.approx((probe == labels[90:]).double().mean().item())
    assert result.depths.equal(depths(result.probes, predict(model, images[90:]).argmax(1)))
    assert result.mean_depth == pytest.approx(sum(result.depths.tolist()) / 30)


def test_images_of_the_bank_are_their_own_neighbours(model, images):
    labels = torch.arange(120) % 4
    result = prediction_depth(
        model,
        (images, labels),
        (images, labels),
        ["conv1"],
        DepthConfig(neighbours=1, pooling="flatten"),
    )
    assert result.accuracies == (1.0,)


def test_every_block_of_mobilenet_is_probed(rng):
    """17 inverted residuals between the stem and the last layer, as in Table 2 of its paper."""
    model = build_model("mobilenetv2", 3)
    images = torch.randint(0, 256, (24, 3, 32, 32), generator=rng, dtype=torch.uint8)
    labels = torch.arange(24) % 3
    result = prediction_depth(model, (images[:16], labels[:16]), (images[16:], labels[16:]))
    blocks = [
        f"layer{i + 1}.{j}" for i, count in enumerate((1, 2, 3, 4, 3, 3, 1)) for j in range(count)
    ]
    assert result.layers == ("bn1", *blocks, "fc")
    assert 0 <= result.mean_depth <= 19


def test_the_model_is_unchanged(model, images):
    model.train()
    before = snapshot(model)
    prediction_depth(model, (images, torch.arange(120) % 4), (images[:9], torch.arange(9) % 4))
    assert_unchanged(model, before)
    assert not any(module._forward_hooks for module in model.modules())


def test_an_unknown_layer_is_an_error_that_lists_the_layers(model, images):
    with pytest.raises(ValueError, match=r"no layers \['layer9'\].*'layer1\.0'.*'fc'"):
        layer_features(model, images, ["bn1", "layer9"])


def test_bad_input_is_an_error(model, images):
    labels = torch.arange(120) % 4
    with pytest.raises(ValueError, match="at least 5 neighbours"):
        prediction_depth(model, (images[:4], labels[:4]), (images, labels))
    with pytest.raises(ValueError, match="neighbours must be greater than or equal to 1"):
        DepthConfig(neighbours=0)
    model.layer1[0].append(model.relu)
    with pytest.raises(ValueError, match="240 outputs of layer relu for 120 images"):
        layer_features(model, images, ["relu"])
    model.bn1.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        prediction_depth(model, (images, labels), (images, labels), ["bn1"])
