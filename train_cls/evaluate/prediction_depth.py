"""Prediction depth: the layer from which on nearest-neighbour probes agree with the prediction of
the network.

A k-nearest-neighbour probe per layer, as in Baldock et al. 2021 (arXiv:2106.09647), with K = 5 as
in the SEAL paper (Baldock: 30). The bank holds training images, the queries are test images.
Baldock flattens a layer's output; "average" takes the mean over positions, which is 16 to 4000
times smaller but discards positions.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from dreamsa.settings import settings
from train_cls.evaluate.metrics import Images, LabelledImages, predict
from train_cls.models.timm_classifier import TimmClassifier

Pooling = Literal["average", "flatten"]
DISTANCES_AT_ONCE = 1 << 24
"""Max entries of the distance matrix to compute at once: 64 MiB of float32."""


@settings()
class DepthConfig:
    neighbours: int = Field(default=5, ge=1, le=40)
    pooling: Pooling = "average"
    batch: int = Field(default=256, ge=1)


@dataclass(frozen=True)
class DepthResult:
    layers: tuple[str, ...]
    accuracies: tuple[float, ...]
    """Of each layer's probe, in [0, 1]."""
    probes: Int[Tensor, "layers n"]
    """Predicted class of each query by each probe."""
    depths: Int[Tensor, "n"]
    """From 0 to the number of layers; see `depths`."""

    @property
    def mean_depth(self) -> float:
        return self.depths.double().mean().item()


def default_layers(model: nn.Module) -> list[str]:
    """The stem's batch norm (before its ReLU) or convolution, each block of layer1, layer2, ...,
    and the linear layers fc; of timm's networks the stages or blocks that its `feature_info` names.

    A stage without blocks, as in VGG, counts as one layer.

    Raises:
        ValueError: The model has no such children.
    """
    if isinstance(model, TimmClassifier):
        return model.stages()
    children = dict(model.named_children())
    names = [name for name in ("bn1", "conv1") if name in children][:1]
    for name, child in children.items():
        if re.fullmatch(r"layer\d+", name):
            blocks = [
                f"{name}.{inner}"
                for inner, block in child.named_children()
                if next(block.children(), None) is not None
            ]
            names += blocks if isinstance(child, nn.Sequential) and blocks else [name]
        elif re.fullmatch(r"fc\d*", name):
            names.append(name)
    if not names:
        raise ValueError(
            f"Found children {list(children)}, expected conv1, layer1, layer2, ... or fc. Pass "
            "the names of the layers to probe."
        )
    return names


def as_vectors(
    output: Float[Tensor, "n *c_and_positions"], pooling: Pooling, channels_last: bool = False
) -> Float[Tensor, "n d"]:
    """One vector per image from a layer's output, as a copy: the mean over positions, or all
    values.

    Outputs of 3 dimensions are tokens, [n, tokens, c]; others are [n, c, *positions], or [n,
    *positions, c] with `channels_last`.
    """
    if output.ndim == 2 or pooling == "flatten":
        return output.detach().flatten(1).clone()  # a ReLU in place may follow the layer
    if output.ndim == 3 or channels_last:
        return output.detach().flatten(1, -2).mean(1)
    return output.detach().flatten(2).mean(2)


def layer_features(
    model: nn.Module,
    images: Images,
    layers: Sequence[str],
    pooling: Pooling = "average",
    batch: int = 256,
) -> dict[str, Float[Tensor, "n d"]]:
    """Outputs of the named modules in eval mode, one vector per image, on the model's device.

    Raises:
        ValueError: Unknown module, or one that does not run exactly once per forward pass.
    """
    modules = dict(model.named_modules())
    channels_last = isinstance(model, TimmClassifier) and model.channels_last
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise ValueError(
            f"The model has no layers {unknown}; its layers are "
            f"{[name for name in modules if name]}."
        )
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: kept[name].append(
            as_vectors(output, pooling, channels_last)
        )

    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        predict(model, images, batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, parts in kept.items():
        if sum(map(len, parts)) != len(images):
            raise ValueError(
                f"Found {sum(map(len, parts))} outputs of layer {name} for {len(images)} images. "
                "Probe a layer that runs once per forward pass."
            )
    return {name: torch.cat(parts) for name, parts in kept.items()}


def first_smallest(distances: Float[Tensor, "n bank"], k: int) -> Int[Tensor, "n k"]:
    """Columns of each row's k smallest entries, ascending; ties go to the smaller column, which
    topk does not guarantee."""
    kth = distances.topk(k, largest=False).values[:, -1:]
    tied = distances == kth
    room = k - (distances < kth).sum(1, keepdim=True)
    taken: Bool[Tensor, "n bank"] = (distances < kth) | (tied & (tied.cumsum(1) <= room))
    columns = taken.nonzero()[:, 1].view(-1, k)
    return columns.gather(1, distances.gather(1, columns).argsort(dim=1, stable=True))


def majority(labels: Int[Tensor, "n k"], classes: int) -> Int[Tensor, "n"]:
    """The most frequent label of each row of neighbours, sorted by distance; ties go to the nearest
    neighbour.

    Neighbour r has 1 + 2^-(r + 2) votes: the fractions sum to less than one vote, and each
    outweighs all later ones.
    """
    votes = 1 + 0.5 ** torch.arange(
        2, 2 + labels.shape[1], dtype=torch.float64, device=labels.device
    )
    return (F.one_hot(labels, classes) * votes[:, None]).sum(1).argmax(1)


def nearest_neighbours(
    bank: Float[Tensor, "bank d"],
    labels: Int[Tensor, "bank"],
    queries: Float[Tensor, "n d"],
    neighbours: int = 5,
) -> Int[Tensor, "n"]:
    """Class of each query by majority of its Euclidean nearest neighbours in the bank; ties as in
    first_smallest and majority.

    Raises:
        ValueError: A bank smaller than `neighbours`, unequal numbers of features and labels, or
            features that are not finite.
    """
    if len(bank) != len(labels) or len(bank) < neighbours:
        raise ValueError(
            f"Found {len(bank)} images and {len(labels)} labels in the bank, expected equal "
            f"numbers of at least {neighbours} neighbours."
        )
    if not (bank.isfinite().all() and queries.isfinite().all()):
        raise ValueError(
            "Features are not finite: the model has diverged. Evaluate an earlier checkpoint."
        )
    labels, centre = labels.to(bank.device, torch.int64), bank.mean(0)  # centred for precision
    classes, bank = 1 + int(labels.max()), bank - centre
    return torch.cat(
        [
            majority(labels[first_smallest(torch.cdist(part - centre, bank), neighbours)], classes)
            for part in queries.split(max(1, DISTANCES_AT_ONCE // len(bank)))
        ]
    )


def depths(probes: Int[Tensor, "layers n"], final: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Index of the first layer from which on all probes agree with the final prediction (Baldock et
    al., section 2).

    The number of layers if the last probe does not agree.
    """
    agreeing = (probes == final).flip(0).cumprod(0).sum(0)
    return len(probes) - agreeing


def prediction_depth(
    model: nn.Module,
    bank: LabelledImages,
    queries: LabelledImages,
    layers: Sequence[str] | None = None,
    config: DepthConfig = DepthConfig(),
) -> DepthResult:
    """Accuracy of each layer's neighbour probe, and the depth of each query. Leaves the model
    unchanged.

    "average" pooling runs the network once over all images; "flatten" once per layer, to save
    memory.

    Args:
        bank: Training images and labels.
        queries: Test images and labels, none of them in the bank.
        layers: Module names in the order of the forward pass; None for default_layers(model).

    Raises:
        ValueError: As default_layers, layer_features and nearest_neighbours.
    """
    layers = tuple(default_layers(model) if layers is None else layers)
    groups = [layers] if config.pooling == "average" else [(name,) for name in layers]
    rows: list[Tensor] = []
    for group in groups:
        known, queried = (
            layer_features(model, images, group, config.pooling, config.batch)
            for images, _ in (bank, queries)
        )
        rows += [
            nearest_neighbours(known[name], bank[1], queried[name], config.neighbours)
            for name in group
        ]
    probes, final = (
        torch.stack(rows).cpu(),
        predict(model, queries[0], config.batch).argmax(1).cpu(),
    )
    correct = (probes == queries[1].cpu()).double().mean(1)
    return DepthResult(layers, tuple(correct.tolist()), probes, depths(probes, final))
