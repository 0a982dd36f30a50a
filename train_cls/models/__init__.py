"""Networks by name: `build_model("resnet18", classes=200)`."""

import difflib
from collections.abc import Callable, Sequence
from functools import partial

import torch

from dreamsa.randomness import seed_for
from train_cls.models.classifier import Classifier, Dropout, Pixels, load_weights_, seed_dropout_
from train_cls.models.mobilenet import MobileNetV2
from train_cls.models.plain import NN2, VGG16
from train_cls.models.residual import (
    BasicBlock,
    Bottleneck,
    PadShortcut,
    PreBasicBlock,
    PreBottleneck,
    PreResNet,
    ResNet,
)

__all__ = [
    "MODELS",
    "Classifier",
    "Dropout",
    "Pixels",
    "build_model",
    "load_weights_",
    "seed_dropout_",
]

RESNET = (64, 128, 256, 512)
CIFAR = (16, 32, 64)

MODELS: dict[str, Callable[..., Classifier]] = {
    # 1.65 M multiply-adds for a grey 8 x 8 image: for scikit-learn's digits on a CPU
    "preresnet-small": partial(PreResNet, block=PreBasicBlock, widths=CIFAR, depths=(2, 2, 2)),
    "preresnet-tiny": partial(PreResNet, block=PreBasicBlock, widths=CIFAR, depths=(1, 1, 1)),
    "resnet18": partial(
        ResNet, block=BasicBlock, widths=RESNET, depths=(2, 2, 2, 2), large_stem=True
    ),
    "resnet50": partial(
        ResNet, block=Bottleneck, widths=RESNET, depths=(3, 4, 6, 3), large_stem=True
    ),
    "resnet18-cifar": partial(ResNet, block=BasicBlock, widths=RESNET, depths=(2, 2, 2, 2)),
    "resnet50-cifar": partial(ResNet, block=Bottleneck, widths=RESNET, depths=(3, 4, 6, 3)),
    "resnet110": partial(
        ResNet, block=BasicBlock, widths=CIFAR, depths=(18, 18, 18), shortcut=PadShortcut
    ),
    "preresnet110": partial(PreResNet, block=PreBottleneck, widths=CIFAR, depths=(12, 12, 12)),
    "vgg16": VGG16,
    "nn2": NN2,
    "mobilenetv2": MobileNetV2,
}


def build_model(
    name: str,
    classes: int,
    channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> Classifier:
    """A network of MODELS with initial weights, on the CPU.

    Args:
        mean, std: Of the training images per channel, on the scale of [0, 1]; None for 0.5.
        seed: The weights are a function of it alone; the global generator is unchanged.

    Raises:
        ValueError: Unknown name, fewer than 2 classes, no channel, or not one mean and std per
            channel.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"There is no model {name!r}; the models are {', '.join(MODELS)}.{hint}")
    if classes < 2:
        raise ValueError(f"A classifier needs at least 2 classes, got {classes}.")
    mean, std = mean or (0.5,) * channels, std or (0.5,) * channels
    if channels < 1 or len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"channels={channels} needs one mean and one std each, got {len(mean)} and {len(std)}."
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(
            seed_for(seed, 0, "weights")
        )  # torch.manual_seed would seed the GPUs too
        return MODELS[name](classes, channels, mean, std)
