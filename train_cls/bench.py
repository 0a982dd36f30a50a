"""What the annealer and the trainer cost beside plain PyTorch: ratios of medians, the rivals taking turns in one process.

    train-cls bench                                        # ResNet-18, batches of 128 random images of 32 x 32
    train-cls bench --model preresnet-small --size 8 --channels 1 --batch 32

On a CPU the clock is the process's own, so that other programs do not count; on a GPU it is the wall's, after a synchronisation.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from dreamsa.annealing import Annealer, GradientAscent, Rule, Window, split_params
from dreamsa.randomness import generator_for
from train_cls.config import TrainConfig
from train_cls.data import Dataset, Splits
from train_cls.models import build_model
from train_cls.train import device_of, new_training, train

NEVER = Window(10**12)
ALWAYS = Window(0, 10**12)


@dataclass(frozen=True)
class BenchConfig:
    model: str = "resnet18"
    classes: int = 200
    channels: int = 3
    size: int = 32
    """Height and width of the images in pixels. Small images are the harder case: the network takes less time, the rest takes the same."""
    batch: int = 128
    rounds: int = 15
    """Turns of each rival; one more before them is not counted."""
    epoch: int = 2
    """Steps of an epoch where whole epochs are timed."""
    device: str = "auto"

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("channels", "size", "batch", "rounds", "epoch")}
        if min(numbers.values()) < 1 or self.classes < 2:
            raise ValueError(f"Wanted at least 2 classes and at least 1 of all else, got {self.classes} classes and {numbers}.")


class Contest(NamedTuple):
    """Seconds that each rival took for the same work: the medians of its turns."""

    seconds: dict[str, float]

    def ratio(self, one: str, other: str) -> float:
        return self.seconds[one] / self.seconds[other]


def take_turns(rivals: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> Contest:
    """Time every rival once a round, in an order that turns from round to round; a first round warms up and is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in rivals}
    names = list(rivals)
    for i in range(rounds + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds = _seconds(rivals[name], device)
            if i:
                taken[name].append(seconds)
    return Contest({name: statistics.median(times) for name, times in taken.items()})


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    _wait(device)
    began = clock()
    work()
    _wait(device)
    return clock() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def random_images(config: BenchConfig, count: int) -> Dataset:
    """Noise with labels: speed does not depend on what is to be seen."""
    rng = generator_for(0, 0, "bench images")
    images = torch.randint(0, 256, (count, config.channels, config.size, config.size), dtype=torch.uint8, generator=rng)
    labels = torch.arange(count) % config.classes
    return Dataset(images, labels, tuple(map(str, range(config.classes))))


def overhead(config: BenchConfig) -> Contest:
    """One training step: "plain", with rules "mounted" whose windows are shut, and with early layers that "ascend" under a guard.

    All three are the same network and optimizer; only the rules are put on and taken off.
    """
    device = device_of(config.device)
    model = build_model(config.model, config.classes, config.channels).to(device).train()
    optimizer = torch.optim.SGD(split_params(model, before="layer3"), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)
    data = random_images(config, config.batch).to(device)

    def step(window: Window | None) -> None:
        rules = [] if window is None else [Rule(window, GradientAscent(0.01), groups=("early",), bound=1e9)]
        annealer = None if window is None else Annealer(optimizer, rules)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data.images), data.labels)
        loss.backward()
        if annealer is not None:
            annealer.observe(loss)
        optimizer.step()
        if annealer is not None:
            annealer.remove()

    windows = {"plain": None, "mounted": NEVER, "ascend": ALWAYS}
    return take_turns({name: lambda w=window: step(w) for name, window in windows.items()}, config.rounds, device)


def throughput(config: BenchConfig) -> Contest:
    """One whole epoch: "train-cls" (SEAL's rules, crops and flips, the record of the epoch) beside a "bare" loop with none of it.

    Both have the same images on the device as uint8, and equal networks and optimizers. The evaluation after the epoch is left out of
    both as far as it goes: the trainer's is on two images.
    """
    device = device_of(config.device)
    images = random_images(config, config.batch * config.epoch)
    few = images.select(torch.arange(2))
    settings = TrainConfig(
        model=config.model, batch=config.batch, epochs=10**6, generations=2, flip=True, pad=min(4, config.size // 4), lr=1e-3,
        evaluate_every=10**9, device=config.device,
    )  # fmt: skip
    training = new_training(settings, images)
    epochs = train(training, Splits(images, few.select(torch.arange(0)), few))
    bare = bare_epochs(config, settings, images.to(device))
    return take_turns({"bare": lambda: next(bare), "train-cls": lambda: next(epochs)}, config.rounds, device)


def bare_epochs(config: BenchConfig, settings: TrainConfig, data: Dataset) -> Iterator[float]:
    """The loop that everyone writes; yields the mean loss of every epoch."""
    device = data.images.device
    model = build_model(config.model, config.classes, config.channels).to(device).train()
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10**6)
    while True:
        total = torch.zeros((), device=device)
        for index in torch.randperm(len(data), device=device).split(config.batch):
            optimizer.zero_grad()
            logits = model(data.images[index])
            loss = nn.functional.cross_entropy(logits, data.labels[index], label_smoothing=settings.label_smoothing)
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach()
        yield float(total) / config.epoch


def bench(config: BenchConfig) -> Iterator[dict[str, dict[str, float]]]:
    """Both contests, one after the other, in seconds and ratios."""
    step = overhead(config)
    yield {"seconds per step": step.seconds, "of a plain step": {name: step.ratio(name, "plain") for name in ("mounted", "ascend")}}
    epoch = throughput(config)
    yield {"seconds per epoch": epoch.seconds, "of a bare loop's throughput": {"train-cls": epoch.ratio("bare", "train-cls")}}
