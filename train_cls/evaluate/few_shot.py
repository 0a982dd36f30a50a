"""Few-shot transfer: small tasks of a few classes and K labelled images each, many times over (Guo et al. 2020, arXiv:1912.07200).

An episode draws `way` classes, `shots` labelled and `queries` other images of each, and trains a new linear head on the labelled ones:
the inner loop of the benchmark's finetune.py (IBM/cdfsl-benchmark), SGD with lr 0.01, momentum 0.9, dampening 0.9 and weight decay
1e-3, 100 epochs in mini-batches of 4, backbone in eval mode.

"Linear + affine" adapts the scales and shifts of the batch norms along with the head. No public code defines it. Ours: the same loop and
the same draws; the affine parameters take plain SGD with lr 0.01, which is what that file gives an unfrozen backbone; running statistics
stay as they are, since a mini-batch of 4 cannot replace them (that file switches an unfrozen backbone to train mode).

Episode i draws from its own generator, so the two updates and two models see the same episodes whatever is computed at once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from dreamsa.randomness import generator_for
from train_cls.evaluate.linear_heads import SGD, random_head, train_heads, with_bias_column
from train_cls.evaluate.metrics import Images, device_of, embed, evaluating
from train_cls.models.classifier import Classifier


@dataclass(frozen=True)
class FewShotConfig:
    shots: int = 5
    way: int = 5
    queries: int = 15
    episodes: int = 600
    epochs: int = 100
    batch: int = 4
    lr: float = 0.01
    momentum: float = 0.9
    dampening: float = 0.9
    weight_decay: float = 1e-3
    affine_lr: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("shots", "queries", "episodes", "epochs", "batch")}
        if self.way < 2 or min(numbers.values()) < 1:
            raise ValueError(f"way should be at least 2 and the other counts at least 1, got way={self.way} and {numbers}.")

    @property
    def head(self) -> SGD:
        """How the heads are trained."""
        return SGD(self.lr, self.momentum, self.dampening, self.weight_decay)


@dataclass(frozen=True)
class FewShotResult:
    """Accuracy in [0, 1] of every episode, in order: two models can be compared episode by episode."""

    accuracies: Float[Tensor, "episodes"]

    @property
    def mean(self) -> float:
        return self.accuracies.mean().item()

    @property
    def interval(self) -> float:
        """Half the width of the 95 % confidence interval, 1.96 * std / sqrt(episodes), std with divisor n as in finetune.py."""
        return 1.96 * self.accuracies.std(correction=0).item() / math.sqrt(len(self.accuracies))


@dataclass(frozen=True)
class Episodes:
    """e episodes: indices into the images, class by class; the heads they start from; and each epoch's order of the support."""

    support: Int[Tensor, "e s"]
    query: Int[Tensor, "e q"]
    heads: Float[Tensor, "e way d1"]
    order: Int[Tensor, "e epochs s"]

    def batches(self, size: int) -> Iterator[Int[Tensor, "e b"]]:
        """Indices into the support for each step; an epoch's last mini-batch may be short."""
        for epoch in self.order.unbind(1):
            yield from epoch.split(size, dim=1)


def images_by_class(labels: Int[Tensor, "n"], config: FewShotConfig) -> list[Int[Tensor, "members"]]:
    """Indices of each class's images, classes in ascending order.

    Raises:
        ValueError: Too few classes for an episode, or a class with too few images.
    """
    classes, counts = labels.cpu().unique(return_counts=True)
    needed = config.shots + config.queries
    if len(classes) < config.way:
        raise ValueError(f"Found {len(classes)} classes, wanted at least way={config.way}: take fewer ways or more classes.")
    if counts.min() < needed:
        few = int(counts.argmin())
        raise ValueError(
            f"Found {int(counts[few])} images in class {int(classes[few])}, wanted at least {config.shots} shots + {config.queries} queries "
            f"= {needed} in every class: add images, leave the class out, or take fewer shots."
        )
    return list(labels.cpu().argsort(stable=True).split(counts.tolist()))


def draw_episodes(by_class: list[Int[Tensor, "_"]], dimension: int, first: int, last: int, config: FewShotConfig) -> Episodes:
    """Episodes first to last - 1, on the CPU; `dimension` is that of the features."""
    support, query, heads, order = [], [], [], []
    for episode in range(first, last):
        rng = generator_for(config.seed, episode, "few-shot episode")
        classes = torch.randperm(len(by_class), generator=rng)[: config.way].tolist()
        drawn = [by_class[c][torch.randperm(len(by_class[c]), generator=rng)[: config.shots + config.queries]] for c in classes]
        support.append(torch.cat([images[: config.shots] for images in drawn]))
        query.append(torch.cat([images[config.shots :] for images in drawn]))
        heads.append(random_head(dimension, config.way, rng))
        order.append(torch.rand(config.epochs, config.way * config.shots, generator=rng).argsort(dim=1, stable=True))
    return Episodes(torch.stack(support), torch.stack(query), torch.stack(heads), torch.stack(order))


def class_by_class(way: int, each: int, device: torch.device) -> Int[Tensor, "examples"]:
    """Labels 0 ... 0, 1 ... 1, up to way - 1, `each` of each."""
    return torch.arange(way, device=device).repeat_interleave(each)


def in_chunks(
    query_logits: Callable[[Episodes], Float[Tensor, "e q way"]], labels: Tensor, dimension: int, parallel: int, config: FewShotConfig
) -> FewShotResult:
    """Accuracy of all episodes, `parallel` at a time."""
    if parallel < 1:
        raise ValueError(f"parallel should be at least 1 episode, got {parallel}.")
    by_class = images_by_class(labels, config)
    chunks = [(first, min(first + parallel, config.episodes)) for first in range(0, config.episodes, parallel)]
    predicted = torch.cat([query_logits(draw_episodes(by_class, dimension, *chunk, config)).argmax(-1).cpu() for chunk in chunks])
    return FewShotResult((predicted == class_by_class(config.way, config.queries, predicted.device)).double().mean(1))


def linear_logits(features: Float[Tensor, "n d1"], config: FewShotConfig, episodes: Episodes) -> Float[Tensor, "e q way"]:
    """Logits of each episode's queries after the linear update; features end in a column of ones."""
    device = features.device
    support, query = features[episodes.support.to(device)], features[episodes.query.to(device)]  # [e, s, d + 1], [e, q, d + 1]
    labels = class_by_class(config.way, config.shots, device).expand(len(support), -1)
    batches = (batch.to(device) for batch in episodes.batches(config.batch))
    heads = train_heads(episodes.heads.to(features), support, labels, batches, config.head)
    return query @ heads.mT


def few_shot_features(
    features: Float[Tensor, "n d"], labels: Int[Tensor, "n2"], config: FewShotConfig = FewShotConfig(), parallel: int = 100
) -> FewShotResult:
    """The linear update on features that are already there; `parallel` episodes are one tensor program.

    Raises:
        ValueError: Unequal numbers of features and labels, too few classes or images in a class, parallel below 1.
    """
    if len(features) != len(labels):
        raise ValueError(f"Found {len(features)} images and {len(labels)} labels, wanted one label per image.")
    return in_chunks(partial(linear_logits, with_bias_column(features), config), labels, features.shape[1], parallel, config)


def few_shot_linear(
    model: Classifier, images: Images, labels: Int[Tensor, "n2"], config: FewShotConfig = FewShotConfig(), parallel: int = 100
) -> FewShotResult:
    """Few-shot accuracy with a new linear head on the frozen model. The model is not changed.

    Raises:
        ValueError: As few_shot_features.
    """
    return few_shot_features(embed(model, images), labels, config, parallel)


class Features(nn.Module):
    """A classifier without its last layer, as a module: functional_call wants one."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Images) -> Float[Tensor, "n d"]:
        return self.model.features(self.model.pixels(images))


def affine_parameters(module: nn.Module) -> dict[str, Float[Tensor, "c"]]:
    """Scale and shift of every batch norm, detached, by name.

    Raises:
        ValueError: There are none.
    """
    found = {
        f"{name}.{kind}": parameter.detach()
        for name, norm in module.named_modules()
        if isinstance(norm, _BatchNorm)
        for kind, parameter in norm.named_parameters(recurse=False)
    }
    if not found:
        raise ValueError("Found no batch norm with scale and shift, wanted at least one to adapt: use the linear update for this model.")
    return found


@torch.no_grad()  # torch.func.grad works in there; outside it the other weights would be tracked over all steps
def affine_logits(model: Classifier, images: Images, config: FewShotConfig, episodes: Episodes) -> Float[Tensor, "e q way"]:
    """Logits of each episode's queries after head and batch-norm scales and shifts were adapted; the model should be in eval mode."""
    device, body, count = device_of(model), Features(model), len(episodes.support)
    support, query = (images[index.to(images.device)].to(device) for index in (episodes.support, episodes.query))  # [e, s, c, h, w] ...
    labels = class_by_class(config.way, config.shots, device).expand(count, -1)

    def logits(affine: dict[str, Tensor], head: Tensor, images: Tensor) -> Tensor:
        return with_bias_column(functional_call(body, affine, (images,))) @ head.T

    def loss(affine: dict[str, Tensor], head: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits(affine, head, images), labels)

    gradients = vmap(grad(loss, argnums=(0, 1)))
    affine = {name: value.expand(count, -1) for name, value in affine_parameters(body).items()}
    heads, velocity, rows = episodes.heads.to(model.fc.weight.detach(), copy=True), None, torch.arange(count, device=device)[:, None]
    for batch in episodes.batches(config.batch):
        batch = batch.to(device)
        for_affine, for_heads = gradients(affine, heads, support[rows, batch], labels[rows, batch])
        velocity = config.head.step_(heads, velocity, for_heads)
        affine = {name: value - config.affine_lr * for_affine[name] for name, value in affine.items()}
    return vmap(logits)(affine, heads, query)


def few_shot_affine(
    model: Classifier, images: Images, labels: Int[Tensor, "n2"], config: FewShotConfig = FewShotConfig(), parallel: int = 10
) -> FewShotResult:
    """Few-shot accuracy when the scales and shifts of the batch norms are adapted with the new head. The model is not changed.

    Every step runs the whole network forward and back on `batch` images of each of `parallel` episodes: way * shots * epochs images an
    episode, and way * queries * parallel images at once at its end.

    Raises:
        ValueError: Unequal numbers of images and labels, too few classes or images in a class, no batch norm to adapt, parallel below 1.
    """
    if len(images) != len(labels):
        raise ValueError(f"Found {len(images)} images and {len(labels)} labels, wanted one label per image.")
    with evaluating(model):
        return in_chunks(partial(affine_logits, model, images, config), labels, model.fc.in_features, parallel, config)
