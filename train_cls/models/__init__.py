"""Networks by name: `build_model("resnet18", classes=200)`."""

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from dreamsa.randomness import seed_for
from train_cls.models.classifier import Classifier, Dropout, Pixels, load_weights_, seed_dropout_
from train_cls.models.initial import load_initial_
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
from train_cls.models.timm_classifier import PREFIX, TimmClassifier
from train_cls.models.timm_import import import_timm

__all__ = [
    "MODELS",
    "Classifier",
    "Dropout",
    "Pixels",
    "build_model",
    "list_models",
    "load_initial_",
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


def list_models(pattern: str | None = None) -> list[str]:
    """Names of networks, or those that match a pattern with * and ?: of timm's if it begins with
    "timm:".

    Raises:
        ValueError: No name matches, or timm is not installed.
    """
    if pattern is None:
        return [*MODELS, f"{PREFIX}NAME"]
    if pattern.startswith(PREFIX):
        timm = import_timm()
        found = [PREFIX + name for name in timm.list_models(pattern.removeprefix(PREFIX) or "*")]
    else:
        found = fnmatch.filter(MODELS, pattern)
    if not found:
        raise ValueError(f"No model matches {pattern!r}. Use * and ?, as in 'timm:*resnet*'.")
    return found


def build_model(
    name: str,
    classes: int,
    channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    pretrained: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Classifier:
    """A network of MODELS, or "timm:NAME", with initial weights, on the CPU.

    Args:
        mean, std: Of the training images per channel, on the scale of [0, 1]; None for 0.5.
        seed: The weights are a function of it alone; the global generator is unchanged.
        pretrained, arguments: Of timm's networks only, see `TimmClassifier`.

    Raises:
        ValueError: Unknown name, timm is not installed, fewer than 2 classes, no channel, not one
            mean and std per channel, or as TimmClassifier.
    """
    ours = not name.startswith(PREFIX)
    if ours and name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"There is no model {name!r}; the models are {', '.join(MODELS)} and {PREFIX}NAME."
            f"{hint}"
        )
    if ours and (pretrained or arguments):
        raise ValueError(
            f"pretrained and model_args are for networks of timm; {name} is none. Use "
            f"{PREFIX}NAME, or initial_checkpoint."
        )
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
        if ours:
            return MODELS[name](classes, channels, mean, std)
        network = name.removeprefix(PREFIX)
        return TimmClassifier(classes, channels, mean, std, network, pretrained, arguments)
