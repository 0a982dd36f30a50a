"""Prediction depth: from which layer on the nearest training images already say what the network will say.

A k-nearest-neighbour probe per layer, as in Baldock et al. 2021 (arXiv:2106.09647), with the K = 5 of the SEAL paper (Baldock: 30). The
bank is the training images, the queries are test images. Baldock flattens a layer's output; "average" takes the mean over positions
instead, which is 16 to 4000 times smaller and is blind to where something is.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from train_cls.evaluate.metrics import Images, LabelledImages, predict

Pooling = Literal["average", "flatten"]
DISTANCES_AT_ONCE = 1 << 24
"""Size of a chunk of the distance matrix: 64 MiB of float32."""


@dataclass(frozen=True)
class DepthConfig:
    neighbours: int = 5
    pooling: Pooling = "average"
    batch: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.neighbours <= 40:
            raise ValueError(f"neighbours should be from 1 to 40, got {self.neighbours}.")


@dataclass(frozen=True)
class DepthResult:
    """accuracies: of each layer's probe, in [0, 1]; probes: its predictions; depths: see `depths`, from 0 to the number of layers."""

    layers: tuple[str, ...]
    accuracies: tuple[float, ...]
    probes: Int[Tensor, "layers n"]
    depths: Int[Tensor, "n"]

    @property
    def mean_depth(self) -> float:
        return self.depths.double().mean().item()


def default_layers(model: nn.Module) -> list[str]:
    """The stem's batch norm (before its ReLU) or convolution, every block of layer1, layer2, ..., and the linear layers fc.

    A stage without blocks inside, as in VGG, counts as one layer.

    Raises:
        ValueError: The model has no such children.
    """
    children = dict(model.named_children())
    names = [name for name in ("bn1", "conv1") if name in children][:1]
    for name, child in children.items():
        if re.fullmatch(r"layer\d+", name):
            blocks = [f"{name}.{inner}" for inner, block in child.named_children() if next(block.children(), None) is not None]
            names += blocks if isinstance(child, nn.Sequential) and blocks else [name]
        elif re.fullmatch(r"fc\d*", name):
            names.append(name)
    if not names:
        raise ValueError(f"Found children {list(children)}, wanted conv1, layer1, layer2, ... or fc: name the layers to probe.")
    return names


def as_vectors(output: Float[Tensor, "n c *positions"], pooling: Pooling) -> Float[Tensor, "n d"]:
    """A layer's output as one new vector per image: the mean over positions, or everything."""
    if output.ndim == 2 or pooling == "flatten":
        return output.detach().flatten(1).clone()  # a ReLU in place may follow the layer
    return output.detach().flatten(2).mean(2)


def layer_features(
    model: nn.Module, images: Images, layers: Sequence[str], pooling: Pooling = "average", batch: int = 256
) -> dict[str, Float[Tensor, "n d"]]:
    """The outputs of the named modules, one vector per image, on the model's device, in eval mode.

    Raises:
        ValueError: A name that the model lacks, or a module that does not run exactly once per pass.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise ValueError(f"Found no layers {unknown} in the model, wanted some of {[name for name in modules if name]}.")
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: kept[name].append(as_vectors(output, pooling))

    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        predict(model, images, batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, parts in kept.items():
        if sum(map(len, parts)) != len(images):
            raise ValueError(
                f"Found {sum(map(len, parts))} outputs of layer {name} for {len(images)} images: probe one that runs once per pass."
            )
    return {name: torch.cat(parts) for name, parts in kept.items()}


def first_smallest(distances: Float[Tensor, "n bank"], k: int) -> Int[Tensor, "n k"]:
    """Columns of each row's k smallest entries in ascending order; of equal entries the smaller column comes first.

    topk alone leaves open which of several equal entries it takes.
    """
    kth = distances.topk(k, largest=False).values[:, -1:]
    tied = distances == kth
    room = k - (distances < kth).sum(1, keepdim=True)
    taken: Bool[Tensor, "n bank"] = (distances < kth) | (tied & (tied.cumsum(1) <= room))
    columns = taken.nonzero()[:, 1].view(-1, k)
    return columns.gather(1, distances.gather(1, columns).argsort(dim=1, stable=True))


def majority(labels: Int[Tensor, "n k"], classes: int) -> Int[Tensor, "n"]:
    """The most frequent label of each row, whose columns go from near to far; of equally frequent ones that of the nearest neighbour.

    Neighbour r has 1 + 2^-(r + 2) votes: together the fractions are less than one vote, and the nearer one outweighs all that follow.
    """
    votes = 1 + 0.5 ** torch.arange(2, 2 + labels.shape[1], dtype=torch.float64, device=labels.device)
    return (F.one_hot(labels, classes) * votes[:, None]).sum(1).argmax(1)


def nearest_neighbours(
    bank: Float[Tensor, "bank d"], labels: Int[Tensor, "bank"], queries: Float[Tensor, "n d"], neighbours: int = 5
) -> Int[Tensor, "n"]:
    """The class of each query by majority among its Euclidean nearest neighbours in the bank; ties as in first_smallest and majority.

    Raises:
        ValueError: Fewer than `neighbours` in the bank, unequal numbers of features and labels, or features that are not finite.
    """
    if len(bank) != len(labels) or len(bank) < neighbours:
        raise ValueError(
            f"Found {len(bank)} images and {len(labels)} labels in the bank, wanted as many, and at least {neighbours} neighbours."
        )
    if not (bank.isfinite().all() and queries.isfinite().all()):
        raise ValueError("Found features that are not finite, wanted numbers: the model has diverged, evaluate an earlier checkpoint.")
    labels, centre = labels.to(bank.device, torch.int64), bank.mean(0)  # distances from the centre lose fewer digits
    classes, bank = 1 + int(labels.max()), bank - centre
    return torch.cat(
        [
            majority(labels[first_smallest(torch.cdist(part - centre, bank), neighbours)], classes)
            for part in queries.split(max(1, DISTANCES_AT_ONCE // len(bank)))
        ]
    )


def depths(probes: Int[Tensor, "layers n"], final: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Index of the earliest layer from which all later probes agree with the final prediction (Baldock et al., section 2).

    0 is the first probed layer; the number of layers means that not even the last one agrees.
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
    """Accuracy of the neighbour probe at each layer, and each query's depth. The model is not changed.

    Args:
        bank: Training images and labels.
        queries: Test images and labels, none of them in the bank: an image is its own nearest neighbour.
        layers: Module names in the order of the forward pass; default_layers(model) if not given.

    "average" runs the network once over all images; "flatten" once per layer, since only one layer's outputs fit into memory.

    Raises:
        ValueError: As default_layers, layer_features and nearest_neighbours.
    """
    layers = tuple(default_layers(model) if layers is None else layers)
    groups = [layers] if config.pooling == "average" else [(name,) for name in layers]
    rows: list[Tensor] = []
    for group in groups:
        known, asked = (layer_features(model, images, group, config.pooling, config.batch) for images, _ in (bank, queries))
        rows += [nearest_neighbours(known[name], bank[1], asked[name], config.neighbours) for name in group]
    probes, final = torch.stack(rows).cpu(), predict(model, queries[0], config.batch).argmax(1).cpu()
    correct = (probes == queries[1].cpu()).double().mean(1)
    return DepthResult(layers, tuple(correct.tolist()), probes, depths(probes, final))
