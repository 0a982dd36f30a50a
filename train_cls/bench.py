"""Cost of the annealer and the trainer relative to plain PyTorch: ratios of medians of interleaved
runs in one process.

    train-cls bench                              # ResNet-18, batches of 128 random 32 x 32 images
    train-cls bench --model preresnet-small --size 8 --channels 1 --batch 32
    train-cls bench --model timm:resnet18 --size 64

With timm installed, a third contest takes the ingredients of timm's training script: its optimizer
factory, mixup and cutmix, loss and scheduler, in the order of its loop.

On a CPU, measures process time, which excludes other programs; on a GPU, wall time after a
synchronisation.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import NamedTuple

import torch
from pydantic import Field
from torch import nn

from dreamsa.annealing import Annealer, GradientAscent, Rule, Window
from dreamsa.device import resolve_device
from dreamsa.randomness import generator_for
from dreamsa.settings import settings
from train_cls.config import AugmentConfig, TrainConfig
from train_cls.data import Dataset, Splits, augment, channel_stats
from train_cls.groups import split_groups
from train_cls.models import build_model
from train_cls.models.timm_import import import_timm
from train_cls.plan import ALWAYS, FOREVER
from train_cls.train import new_training, train

NEVER = Window(FOREVER)


@settings()
class BenchConfig:
    model: str = "resnet18"
    classes: int = Field(default=200, ge=2)
    channels: int = Field(default=3, ge=1)
    size: int = Field(default=32, ge=1)
    """Height and width of the images in pixels. With small images the overhead weighs more."""
    batch: int = Field(default=128, ge=1)
    rounds: int = Field(default=15, ge=1)
    """Measurements of each contestant, after one for warm-up."""
    epoch: int = Field(default=2, ge=1)
    """Steps per timed epoch."""
    device: str = "auto"


class Contest(NamedTuple):
    """Median seconds of each contestant for the same work."""

    seconds: dict[str, float]

    def ratio(self, one: str, other: str) -> float:
        return self.seconds[one] / self.seconds[other]


def time_interleaved(
    contestants: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> Contest:
    """Time every contestant once per round, in an order that rotates between rounds, after one
    round of warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for i in range(rounds + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds = _seconds(contestants[name], device)
            if i:
                taken[name].append(seconds)
    return Contest({name: statistics.median(times) for name, times in taken.items()})


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    _synchronize(device)
    began = clock()
    work()
    _synchronize(device)
    return clock() - began


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def random_images(config: BenchConfig, count: int) -> Dataset:
    """Uniform noise with labels; the content does not affect the speed."""
    rng = generator_for(0, 0, "bench images")
    images = torch.randint(
        0, 256, (count, config.channels, config.size, config.size), dtype=torch.uint8, generator=rng
    )
    labels = torch.arange(count) % config.classes
    return Dataset(images, labels, tuple(map(str, range(config.classes))))


def overhead(config: BenchConfig) -> Contest:
    """Time one training step: "plain", with inactive rules "mounted", and with early layers that
    "ascend" under a guard.

    All three share the network and the optimizer and differ only in the rules.
    """
    device = resolve_device(config.device)
    model = build_model(config.model, config.classes, config.channels).to(device).train()
    optimizer = torch.optim.SGD(
        split_groups(model, TrainConfig()), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True
    )
    data = random_images(config, config.batch).to(device)

    def step(window: Window | None) -> None:
        annealer = None
        if window is not None:
            rule = Rule(window, GradientAscent(0.01), groups=("early",), bound=1e9)
            annealer = Annealer(optimizer, [rule])
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data.images), data.labels)
        loss.backward()
        if annealer is not None:
            annealer.observe(loss)
        optimizer.step()
        if annealer is not None:
            annealer.remove()

    windows = {"plain": None, "mounted": NEVER, "ascend": ALWAYS}
    return time_interleaved(
        {name: lambda w=window: step(w) for name, window in windows.items()}, config.rounds, device
    )


def throughput(config: BenchConfig) -> Contest:
    """Time one epoch: "train-cls" (SEAL's rules, crops, flips, metrics of the epoch) and a "bare"
    loop without them.

    Both have the same uint8 images on the device, and equal networks and optimizers. Neither
    includes the evaluation after an epoch: the trainer's is reduced to two images.
    """
    images = random_images(config, config.batch * config.epoch)
    train_config, device = training_settings(config), resolve_device(config.device)
    epochs = trained_epochs(train_config, images)
    bare = bare_epochs(config, train_config, images.to(device))
    return time_interleaved(
        {"bare": lambda: next(bare), "train-cls": lambda: next(epochs)}, config.rounds, device
    )


def recipe_throughput(config: BenchConfig) -> Contest:
    """Time one epoch with mixup, cutmix and no decay of norms: of "timm", see `timm_epochs`, and of
    "train-cls" with SEAL's rules. Crops and flips are the same function for both."""
    images = random_images(config, config.batch * config.epoch)
    train_config, device = training_settings(config), resolve_device(config.device)
    train_config = replace(
        train_config, augment=AugmentConfig(mixup=0.8, cutmix=1.0), decay_norms=False
    )
    ours, theirs = trained_epochs(train_config, images), timm_epochs(train_config, images)
    return time_interleaved(
        {"timm": lambda: next(theirs), "train-cls": lambda: next(ours)}, config.rounds, device
    )


def training_settings(config: BenchConfig) -> TrainConfig:
    return TrainConfig(
        model=config.model,
        batch=config.batch,
        epochs=10**6,
        generations=2,
        flip=True,
        pad=min(4, config.size // 4),
        lr=1e-3,
        evaluate_every=10**9,
        device=config.device,
    )


def trained_epochs(train_config: TrainConfig, images: Dataset) -> Iterator[object]:
    """Epochs of the trainer, whose evaluation is reduced to two images."""
    few = images.select(torch.arange(2))
    training = new_training(train_config, images)
    return train(training, Splits(images, few.select(torch.arange(0)), few))


def timm_epochs(config: TrainConfig, images: Dataset) -> Iterator[float]:
    """The loop of timm's train.py (1.0) over images in memory, with its parts from timm; yields the
    mean loss of every epoch."""
    import_timm()
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    device = resolve_device(config.device)
    data, classes = images.to(device), len(images.classes)
    mean, std = channel_stats(images.images)
    model = build_model(config.model, classes, images.images.shape[1], mean, std).to(device).train()
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = create_optimizer_v2(
        model, "momentum", config.lr, config.weight_decay, config.momentum
    )
    mixup = Mixup(
        mixup_alpha=config.augment.mixup,
        cutmix_alpha=config.augment.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=classes,
    )
    scheduler = CosineLRScheduler(optimizer, 10**6, t_in_epochs=False)
    loss_of, updates = SoftTargetCrossEntropy().to(device), 0
    while True:
        total, seen = 0.0, 0
        order = torch.randperm(len(data), device=device)
        for index in order.split(config.batch):
            rng = generator_for(config.seed, updates, "augment", device)
            pixels = model.pixels(augment(data.images[index], rng, config.flip, config.pad))
            mixed, targets = mixup(pixels, data.labels[index])
            loss = loss_of(model.fc(model.features(mixed)), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            total, seen = total + loss.item() * len(index), seen + len(index)
            scheduler.step_update(updates, total / seen)
        yield total / seen


def bare_epochs(config: BenchConfig, train_config: TrainConfig, data: Dataset) -> Iterator[float]:
    """A minimal training loop; yields the mean loss of every epoch."""
    device = data.images.device
    model = build_model(config.model, config.classes, config.channels).to(device).train()
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=train_config.lr,
        momentum=train_config.momentum,
        weight_decay=train_config.weight_decay,
        fused=True,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10**6)
    while True:
        total = torch.zeros((), device=device)
        for index in torch.randperm(len(data), device=device).split(config.batch):
            optimizer.zero_grad()
            logits = model(data.images[index])
            loss = nn.functional.cross_entropy(
                logits, data.labels[index], label_smoothing=train_config.label_smoothing
            )
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach()
        yield float(total) / config.epoch


def bench(config: BenchConfig) -> Iterator[dict[str, dict[str, float]]]:
    """All contests, in seconds and ratios."""
    step = overhead(config)
    yield {
        "seconds per step": step.seconds,
        "of a plain step": {name: step.ratio(name, "plain") for name in ("mounted", "ascend")},
    }
    epoch = throughput(config)
    yield {
        "seconds per epoch": epoch.seconds,
        "of a bare loop's throughput": {"train-cls": epoch.ratio("bare", "train-cls")},
    }
    if find_spec("timm") is not None:
        recipe = recipe_throughput(config)
        yield {
            "seconds per epoch with mixup and cutmix": recipe.seconds,
            "of the throughput of timm's loop": {"train-cls": recipe.ratio("timm", "train-cls")},
        }
