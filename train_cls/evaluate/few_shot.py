"""Few-shot transfer: episodes of a few classes with K labelled images each (Guo et al. 2020,
arXiv:1912.07200).

An episode draws `way` classes and `shots` support and `queries` query images of each, and trains a
new linear head on the support set, as in the benchmark's finetune.py (IBM/cdfsl-benchmark): SGD
with lr 0.01, momentum 0.9, dampening 0.9 and weight decay 1e-3, 100 epochs in mini-batches of 4,
backbone in eval mode.

"Linear + affine" also adapts the scales and shifts of batch norms. No public code defines it. Here,
the affine parameters use plain SGD with lr 0.01, which finetune.py gives an unfrozen backbone, and
running statistics stay fixed, because mini-batches of 4 cannot estimate them (finetune.py switches
an unfrozen backbone to train mode).

Each episode has its own generator, so both updates and all models see the same episodes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from dreamsa.randomness import generator_for
from dreamsa.settings import settings
from train_cls.evaluate.linear_heads import SGD, random_head, train_heads, with_bias_column
from train_cls.evaluate.metrics import Images, device_of, embed, evaluating
from train_cls.models.classifier import Classifier


@settings()
class FewShotConfig:
    shots: int = Field(default=5, ge=1)
    way: int = Field(default=5, ge=2)
    queries: int = Field(default=15, ge=1)
    episodes: int = Field(default=600, ge=1)
    epochs: int = Field(default=100, ge=1)
    batch: int = Field(default=4, ge=1)
    lr: float = 0.01
    momentum: float = 0.9
    dampening: float = 0.9
    weight_decay: float = 1e-3
    affine_lr: float = 0.01
    seed: int = 0

    @property
    def head(self) -> SGD:
        """The optimizer of the heads."""
        return SGD(self.lr, self.momentum, self.dampening, self.weight_decay)


@dataclass(frozen=True)
class FewShotResult:
    """Accuracy in [0, 1] of every episode, in order, for paired comparisons."""

    accuracies: Float[Tensor, "episodes"]

    @property
    def mean(self) -> float:
        return self.accuracies.mean().item()

    @property
    def interval(self) -> float:
        """Half the width of the 95 % interval, 1.96 * std / sqrt(episodes), std with divisor n as
        in finetune.py."""
        return 1.96 * self.accuracies.std(correction=0).item() / math.sqrt(len(self.accuracies))


@dataclass(frozen=True)
class Episodes:
    """e episodes: indices of images sorted by class, initial heads, and the order of the support
    set in each epoch."""

    support: Int[Tensor, "e s"]
    query: Int[Tensor, "e q"]
    heads: Float[Tensor, "e way d1"]
    order: Int[Tensor, "e epochs s"]

    def batches(self, size: int) -> Iterator[Int[Tensor, "e b"]]:
        """Indices into the support set for each step; the last mini-batch of an epoch may be
        smaller."""
        for epoch in self.order.unbind(1):
            yield from epoch.split(size, dim=1)


def images_by_class(
    labels: Int[Tensor, "n"], config: FewShotConfig
) -> list[Int[Tensor, "members"]]:
    """Indices of each class's images, classes ascending.

    Raises:
        ValueError: Too few classes, or a class with too few images.
    """
    classes, counts = labels.cpu().unique(return_counts=True)
    needed = config.shots + config.queries
    if len(classes) < config.way:
        raise ValueError(
            f"Found {len(classes)} classes, expected at least way={config.way}. Lower way or add "
            "classes."
        )
    if counts.min() < needed:
        few = int(counts.argmin())
        raise ValueError(
            f"Found {int(counts[few])} images in class {int(classes[few])}, expected at least "
            f"{config.shots} shots + {config.queries} queries "
            f"= {needed} in every class. Add images, remove the class, or lower shots."
        )
    return list(labels.cpu().argsort(stable=True).split(counts.tolist()))


def draw_episodes(
    by_class: list[Int[Tensor, "_"]], dimension: int, first: int, last: int, config: FewShotConfig
) -> Episodes:
    """Draw episodes first to last - 1, on the CPU; `dimension` is that of the features."""
    support, query, heads, order = [], [], [], []
    for episode in range(first, last):
        rng = generator_for(config.seed, episode, "few-shot episode")
        classes = torch.randperm(len(by_class), generator=rng)[: config.way].tolist()
        drawn = [
            by_class[c][
                torch.randperm(len(by_class[c]), generator=rng)[: config.shots + config.queries]
            ]
            for c in classes
        ]
        support.append(torch.cat([images[: config.shots] for images in drawn]))
        query.append(torch.cat([images[config.shots :] for images in drawn]))
        heads.append(random_head(dimension, config.way, rng))
        order.append(
            torch.rand(config.epochs, config.way * config.shots, generator=rng).argsort(
                dim=1, stable=True
            )
        )
    return Episodes(
        torch.stack(support), torch.stack(query), torch.stack(heads), torch.stack(order)
    )


def sorted_labels(way: int, count: int, device: torch.device) -> Int[Tensor, "examples"]:
    """Labels 0 ... 0, 1 ... 1, up to way - 1, `count` of each."""
    return torch.arange(way, device=device).repeat_interleave(count)


def in_chunks(
    query_logits: Callable[[Episodes], Float[Tensor, "e q way"]],
    labels: Tensor,
    dimension: int,
    parallel: int,
    config: FewShotConfig,
) -> FewShotResult:
    """Accuracy of all episodes, `parallel` at a time."""
    if parallel < 1:
        raise ValueError(f"parallel must be at least 1, got {parallel}.")
    by_class = images_by_class(labels, config)
    chunks = [
        (first, min(first + parallel, config.episodes))
        for first in range(0, config.episodes, parallel)
    ]
    predicted = torch.cat(
        [
            query_logits(draw_episodes(by_class, dimension, *chunk, config)).argmax(-1).cpu()
            for chunk in chunks
        ]
    )
    return FewShotResult(
        (predicted == sorted_labels(config.way, config.queries, predicted.device)).double().mean(1)
    )


def linear_logits(
    features: Float[Tensor, "n d1"], config: FewShotConfig, episodes: Episodes
) -> Float[Tensor, "e q way"]:
    """Logits of each episode's queries after the linear update; the last feature is 1."""
    device = features.device
    support, query = (
        features[episodes.support.to(device)],
        features[episodes.query.to(device)],
    )  # [e, s, d + 1], [e, q, d + 1]
    labels = sorted_labels(config.way, config.shots, device).expand(len(support), -1)
    batches = (batch.to(device) for batch in episodes.batches(config.batch))
    heads = train_heads(episodes.heads.to(features), support, labels, batches, config.head)
    return query @ heads.mT


def few_shot_features(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, "n2"],
    config: FewShotConfig = FewShotConfig(),
    parallel: int = 100,
) -> FewShotResult:
    """Few-shot accuracy on precomputed features, `parallel` episodes at a time.

    Raises:
        ValueError: Unequal numbers of features and labels, too few classes or images in a class,
            parallel below 1.
    """
    if len(features) != len(labels):
        raise ValueError(
            f"Found {len(features)} images and {len(labels)} labels, expected one label per image."
        )
    return in_chunks(
        partial(linear_logits, with_bias_column(features), config),
        labels,
        features.shape[1],
        parallel,
        config,
    )


def few_shot_linear(
    model: Classifier,
    images: Images,
    labels: Int[Tensor, "n2"],
    config: FewShotConfig = FewShotConfig(),
    parallel: int = 100,
) -> FewShotResult:
    """Few-shot accuracy with a new linear head on the frozen model. Leaves the model unchanged.

    Raises:
        ValueError: As few_shot_features.
    """
    return few_shot_features(embed(model, images), labels, config, parallel)


class Features(nn.Module):
    """A classifier without its last layer, as a module for functional_call."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Images) -> Float[Tensor, "n d"]:
        return self.model.features(self.model.pixels(images))


def affine_parameters(module: nn.Module) -> dict[str, Float[Tensor, "c"]]:
    """Scale and shift of every batch norm by name, detached.

    Raises:
        ValueError: The module has none.
    """
    found = {
        f"{name}.{kind}": parameter.detach()
        for name, norm in module.named_modules()
        if isinstance(norm, _BatchNorm)
        for kind, parameter in norm.named_parameters(recurse=False)
    }
    if not found:
        raise ValueError(
            "The model has no batch norm with scale and shift to adapt. Use the linear update."
        )
    return found


@torch.no_grad()  # torch.func.grad works inside, without tracking the other weights over steps
def affine_logits(
    model: Classifier, images: Images, config: FewShotConfig, episodes: Episodes
) -> Float[Tensor, "e q way"]:
    """Logits of each episode's queries after the affine update; the model must be in eval mode."""
    device, body, count = device_of(model), Features(model), len(episodes.support)
    support, query = (
        images[index.to(images.device)].to(device) for index in (episodes.support, episodes.query)
    )  # [e, s, c, h, w] ...
    labels = sorted_labels(config.way, config.shots, device).expand(count, -1)

    def logits(affine: dict[str, Tensor], head: Tensor, images: Tensor) -> Tensor:
        return with_bias_column(functional_call(body, affine, (images,))) @ head.T

    def loss(affine: dict[str, Tensor], head: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits(affine, head, images), labels)

    gradients = vmap(grad(loss, argnums=(0, 1)))
    affine = {name: value.expand(count, -1) for name, value in affine_parameters(body).items()}
    heads, velocity, rows = (
        episodes.heads.to(model.fc.weight.detach(), copy=True),
        None,
        torch.arange(count, device=device)[:, None],
    )
    for batch in episodes.batches(config.batch):
        batch = batch.to(device)
        affine_gradient, head_gradient = gradients(
            affine, heads, support[rows, batch], labels[rows, batch]
        )
        velocity = config.head.step_(heads, velocity, head_gradient)
        affine = {
            name: value - config.affine_lr * affine_gradient[name] for name, value in affine.items()
        }
    return vmap(logits)(affine, heads, query)


def few_shot_affine(
    model: Classifier,
    images: Images,
    labels: Int[Tensor, "n2"],
    config: FewShotConfig = FewShotConfig(),
    parallel: int = 10,
) -> FewShotResult:
    """Few-shot accuracy with a new head and adapted scales and shifts of batch norms. Leaves the
    model unchanged.

    Every step runs the network forward and backward on `batch` images of each of `parallel`
    episodes: way * shots * epochs images per episode, and finally way * queries * parallel images
    at once.

    Raises:
        ValueError: Unequal numbers of images and labels, too few classes or images in a class, no
            batch norm to adapt, parallel below 1.
    """
    if len(images) != len(labels):
        raise ValueError(
            f"Found {len(images)} images and {len(labels)} labels, expected one label per image."
        )
    with evaluating(model):
        return in_chunks(
            partial(affine_logits, model, images, config),
            labels,
            model.fc.in_features,
            parallel,
            config,
        )
