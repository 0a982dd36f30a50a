"""Networks: published sizes, outputs of transformers, order of parameters, initial weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from train_cls.data import DataConfig, batch_order, channel_stats, load_splits
from train_cls.models import MODELS, Dropout, Pixels, build_model, seed_dropout_

SIZES = {
    "preresnet-small": 8,
    "preresnet-tiny": 8,
    "resnet18": 64,
    "resnet50": 64,
    "mobilenetv2": 64,
    "vgg16": 32,
    "nn2": 32,
}  # the others: 16, to be quick
RESIDUAL = [name for name in MODELS if "resnet" in name]


def images_for(name: str, batch: int = 4, channels: int = 3) -> torch.Tensor:
    size = SIZES.get(name, 16)
    return torch.randint(
        0,
        256,
        (batch, channels, size, size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "published"),
    [
        ("resnet18", 1000, 11_689_512),  # torchvision
        ("resnet50", 1000, 25_557_032),  # torchvision
        ("resnet18-cifar", 10, 11_173_962),  # 3 x 3 stem instead of 7 x 7: 64 * 3 * (49 - 9) fewer
        ("resnet50-cifar", 10, 23_520_842),
        ("resnet110", 10, 1_727_962),  # 1.7 M in Table 6 of the paper
        ("preresnet110", 10, 1_146_842),  # 1.1 M
        ("vgg16", 10, 15_245_130),  # the SWA paper's code
        ("mobilenetv2", 1000, 3_504_872),  # torchvision, transformers
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, classes: int, published: int):
    assert parameters(build_model(name, classes)) == published


def test_nn2_has_the_layers_of_its_table():
    convolutions = [(3, 32), (32, 64), (64, 128), (128, 128), (128, 256), (256, 256)]
    linears = [(4096, 1024), (1024, 512), (512, 10)]
    model = build_model("nn2", 10)
    assert [
        (m.in_channels, m.out_channels) for m in model.modules() if isinstance(m, nn.Conv2d)
    ] == convolutions
    assert [
        (m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)
    ] == linears
    assert [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [
        64,
        128,
        256,
    ]
    assert parameters(model) == sum(9 * a * b + b for a, b in convolutions) + sum(
        a * b + b for a, b in linears
    ) + 2 * (64 + 128 + 256)


def test_the_small_network_costs_about_1_8_million_multiply_adds_per_digit():
    model = build_model("preresnet-small", 10, channels=1).eval()
    with FlopCounterMode(display=False) as counter:
        model(images_for("preresnet-small", 1, 1))
    assert 1.6e6 < counter.get_total_flops() / 2 < 2e6


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_trains_and_evaluates_in_bfloat16_and_channels_last(name: str, channels: int):
    model = build_model(name, 7, channels).to(memory_format=torch.channels_last)
    images = images_for(name, 2, channels).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert model.train()(images).shape == (2, 7)
        logits = model.eval()(images)
    assert logits.shape == (2, 7) and logits.dtype == torch.bfloat16 and logits.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_reaches_every_parameter(name: str):
    model = build_model(name, 5)
    seed_dropout_(model, seed=0, step=0)
    F.cross_entropy(model(images_for(name)), torch.tensor([0, 1, 2, 3])).backward()
    without = [
        key
        for key, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_defined_in_the_order_of_the_forward_pass(name: str):
    """So that "before layer3" is a cut in named_parameters()."""
    model = build_model(name, 5).eval()
    called = []
    owners = [
        (key, module)
        for key, module in model.named_modules()
        if list(module.parameters(recurse=False))
    ]
    for key, module in owners:
        module.register_forward_hook(lambda *_, key=key: called.append(key))
    with torch.no_grad():
        model(images_for(name, 1))
    assert called == [key for key, _ in owners]
    assert list(model.named_modules())[-1] == ("fc", model.fc) and model.fc.out_features == 5


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_fc_of_features_of_normalised_pixels(name: str):
    model, images = build_model(name, 5).eval(), images_for(name, 2)
    with torch.no_grad():
        features = model.features(model.pixels(images))
        assert features.shape == (2, model.fc.in_features)
        torch.testing.assert_close(model.fc(features), model(images))


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_networks_have_stages_as_children(name: str):
    children = [child for child, _ in build_model(name, 5).named_children()]
    stages = [child for child in children if child.startswith("layer")]
    assert stages == [
        f"layer{i + 1}" for i in range(4 if name.startswith(("resnet18", "resnet50")) else 3)
    ]
    assert children[:2] == ["pixels", "conv1"] and children[-1] == "fc"


@pytest.mark.parametrize(
    ("name", "stage", "number"),
    [("resnet50", "layer3", 23), ("resnet18", "layer3", 10), ("resnet18", "layer4", 14)],
)
def test_published_layer_numbers_are_the_stages(name: str, stage: str, number: int):
    """SEAL's L = 23 and LLF's L = 10 and 14 count convolutions without the shortcuts'."""
    convolutions = [
        key
        for key, module in build_model(name, 5).named_modules()
        if isinstance(module, nn.Conv2d) and "shortcut" not in key
    ]
    assert convolutions[number - 1].startswith(stage) and not convolutions[number - 2].startswith(
        stage
    )


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("resnet18-cifar", 18),
        ("resnet50", 50),
        ("resnet110", 110),
        ("preresnet110", 110),
        ("preresnet-small", 14),
        ("preresnet-tiny", 8),
        ("vgg16", 16),
    ],
)
def test_names_contain_the_number_of_layers(name: str, depth: int):
    layers = [
        key
        for key, module in build_model(name, 5).named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    assert sum("shortcut" not in key for key in layers) == depth


def test_the_weights_depend_only_on_the_seed():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_model("resnet18-cifar", 10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (
        build_model("resnet18-cifar", 10, seed=3),
        build_model("resnet18-cifar", 10, seed=4),
    )
    for (key, a), b, c in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), key
        assert "bn" in key or "shortcut.1" in key or not torch.equal(a, c), key


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("resnet18", "fan_in"),
        ("resnet50", "fan_in"),
        ("preresnet110", "fan_out"),
        ("vgg16", "fan_out"),
        ("mobilenetv2", "fan_out"),
    ],
)
def test_convolutions_start_with_variance_two_over_fan(name: str, mode: str):
    for key, module in build_model(name, 10).named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000 and module.groups == 1:
            per_input, per_output = (
                module.weight[0].numel(),
                module.weight.numel() // module.in_channels,
            )
            fan = per_input if mode == "fan_in" else per_output
            assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05), key


@pytest.mark.parametrize(
    ("name", "kind", "depths"),
    [("resnet18", "basic", [2, 2, 2, 2]), ("resnet50", "bottleneck", [3, 4, 6, 3])],
)
def test_resnets_compute_what_transformers_computes(name: str, kind: str, depths: list[int]):
    from transformers import ResNetConfig, ResNetForImageClassification

    widths = [64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048]
    theirs = ResNetForImageClassification(
        ResNetConfig(layer_type=kind, depths=depths, hidden_sizes=widths, num_labels=10)
    ).eval()
    ours = build_model(name, 10).eval()
    copy_layers_(
        theirs,
        ours,
        their_order=lambda keys: sorted(
            keys, key=lambda key: (*stage_and_block(key), ".shortcut." in key)
        ),
    )
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            ours(images), theirs(ours.pixels(images)).logits, rtol=1e-3, atol=1e-4
        )


def test_mobilenet_computes_what_transformers_computes():
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(
        num_labels=10, tf_padding=False, layer_norm_eps=1e-5
    )  # torchvision's padding and epsilon
    theirs, ours = (
        MobileNetV2ForImageClassification(config).eval(),
        build_model("mobilenetv2", 10).eval(),
    )
    copy_layers_(theirs, ours, their_order=list)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            ours(images), theirs(ours.pixels(images)).logits, rtol=1e-3, atol=1e-5
        )


def stage_and_block(key: str) -> tuple[int, int, int]:
    """Sorts transformers' layers: stem, then stage and block, then the classifier."""
    parts = key.split(".")
    if "stages" not in parts:
        return (1 if "classifier" in parts else -1, 0, 0)
    return (0, int(parts[parts.index("stages") + 1]), int(parts[parts.index("layers") + 1]))


def copy_layers_(theirs: nn.Module, ours: nn.Module, their_order) -> None:
    """Copy the layers of `theirs` in our order into `ours`, after drawing random batch-norm
    statistics."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    layers = {key: module for key, module in theirs.named_modules() if isinstance(module, kinds)}
    rng = torch.Generator().manual_seed(0)
    for module in layers.values():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (
                module.weight.data,
                module.bias.data,
                module.running_mean,
                module.running_var,
            ):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
    for key, module in zip(
        their_order(layers), (m for m in ours.modules() if isinstance(m, kinds)), strict=True
    ):
        module.load_state_dict(layers[key].state_dict())


def test_pixels_are_normalised_alike_from_bytes_and_floats():
    pixels, images = Pixels((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), images_for("resnet18")
    expected = (images / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.6, 0.7]
    ).view(3, 1, 1)
    torch.testing.assert_close(pixels(images), expected)
    torch.testing.assert_close(pixels(images / 255), expected)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (images, images / 255, (images / 255).bfloat16(), (images / 255).double()):
            assert pixels(given).dtype == torch.float32
    last = images.contiguous(memory_format=torch.channels_last)
    assert pixels(last).is_contiguous(memory_format=torch.channels_last)


def test_pixels_refuse_unsupported_images():
    with pytest.raises(ValueError, match="takes images of 3 channel"):
        build_model("resnet18", 10)(images_for("resnet18", channels=1))
    with pytest.raises(ValueError, match="uint8 in"):
        Pixels((0.5,), (0.5,))(torch.ones(1, 1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="std must be above 0"):
        Pixels((0.5,), (0.0,))
    with pytest.raises(ValueError, match="got 1 and 2"):
        Pixels((0.5,), (0.5, 0.5))


def test_saved_weights_carry_the_normalisation():
    saved = build_model("nn2", 4, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).state_dict()
    other = build_model("nn2", 4, seed=1)
    other.load_state_dict(saved)
    assert other.pixels.mean.tolist() == pytest.approx(
        [0.1, 0.2, 0.3]
    ) and other.pixels.std.tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_wrong_arguments_are_errors():
    with pytest.raises(
        ValueError,
        match=r"There is no model 'resnet19'; the models are .* Did you mean 'resnet1",
    ):
        build_model("resnet19", 10)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        build_model("resnet18", 1)
    with pytest.raises(ValueError, match="channels=1 needs one mean and one std each, got 3 and 1"):
        build_model("resnet18", 10, channels=1, mean=(0.1, 0.2, 0.3))
    with pytest.raises(
        ValueError, match="VGG16 needs images of at least 32 x 32 pixels, got 8 x 8"
    ):
        build_model("vgg16", 10)(images_for("preresnet-small"))


@pytest.mark.parametrize("name", ["vgg16", "nn2"])
def test_plain_networks_take_larger_images(name: str):
    assert build_model(name, 10).eval()(images_for("resnet18", 1)).shape == (1, 10)


def test_dropout_is_a_function_of_seed_and_step():
    model = nn.Sequential(Dropout(0.3), nn.Linear(1, 1), Dropout(0.3))

    def draw(seed: int, step: int) -> torch.Tensor:
        seed_dropout_(model, seed, step)
        return torch.stack(
            [
                model[0](torch.ones(40, 50)),
                model[2](torch.ones(40, 50)),
                model[0](torch.ones(40, 50)),
            ]
        )

    before = torch.get_rng_state()
    once = draw(0, 5)
    assert (
        torch.equal(once, draw(0, 5))
        and not torch.equal(once, draw(0, 6))
        and not torch.equal(once, draw(1, 5))
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(once[0], once[1]) and not torch.equal(once[0], once[2]), (
        "layers and passes draw differently"
    )
    assert once.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert once.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(Dropout(0.3).eval()(torch.ones(9)), torch.ones(9))


def test_norm_statistics_are_averages():
    """transformers' MobileNetV2 keeps only 0.3 % of the old ones at each step."""
    assert {
        m.momentum for m in build_model("mobilenetv2", 5).modules() if isinstance(m, nn.BatchNorm2d)
    } == {0.1}


def test_the_small_network_learns_the_digits():
    splits = load_splits("digits", DataConfig(per_class=50))
    model = build_model("preresnet-small", 10, 1, *channel_stats(splits.train.images))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(3):
        for index in batch_order(len(splits.train), 32, epoch, seed=0):
            optimizer.zero_grad()
            F.cross_entropy(
                model(splits.train.images[index]), splits.train.labels[index]
            ).backward()
            optimizer.step()
    with torch.no_grad():
        correct = model.eval()(splits.test.images).argmax(1) == splits.test.labels
    assert correct.float().mean() > 0.85
