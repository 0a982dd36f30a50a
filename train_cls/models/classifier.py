"""Base class of the networks: pixels, then features, then one linear layer named `fc`."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dreamsa.randomness import generator_for


class Pixels(nn.Module):
    """(pixels - mean) / std per channel, always in float32.

    mean and std are on the scale of [0, 1]; as buffers, they are saved with the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(
                f"mean and std must have one number per channel each, got {len(mean)} and "
                f"{len(std)}."
            )
        if min(std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, got {tuple(std)}.")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, images: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images uint8 in [0, 255] or floating point in [0, 1].

        Raises:
            ValueError: Another dtype or number of channels.
        """
        if images.shape[1] != len(self.mean):
            raise ValueError(
                f"This network takes images of {len(self.mean)} channel(s), got {images.shape[1]}."
            )
        if images.dtype == torch.uint8:
            return (images - 255 * self.mean.view(-1, 1, 1)) / (255 * self.std.view(-1, 1, 1))
        if not images.is_floating_point():
            raise ValueError(
                f"Images must be uint8 in [0, 255] or floating point in [0, 1], got {images.dtype}."
            )
        return (images.float() - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)


class Dropout(nn.Module):
    """nn.Dropout with its own generator, set by `seed_dropout_`; before, it uses the global one."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.rng: torch.Generator | None = None

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if not self.training or self.p == 0:
            return x
        keep = torch.empty_like(x, requires_grad=False).bernoulli_(1 - self.p, generator=self.rng)
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Classifier(nn.Module, ABC):
    """A network whose children and parameters are defined in the order of the forward pass.

    A threshold such as "before layer3" is therefore a cut in `named_parameters()`.
    """

    fc: nn.Linear
    min_size: ClassVar[int] = 1
    """Min height and width in pixels."""

    prefix: ClassVar[str] = ""
    """Of the names of `body` within the classifier."""
    head: str = "fc"
    """Name of the last layer in `body`."""
    rng: torch.Generator | None = None
    """Seeds the training passes of networks that draw from torch's global generator."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.pixels = Pixels(mean, std)

    @property
    def body(self) -> nn.Module:
        """The module whose children name the layers of thresholds; it has all parameters."""
        return self

    def depths(self) -> dict[str, int]:
        """Depth of every parameter of `body`, in layers from 0: the stem, each block of layer1,
        layer2, ..., and all that follows them."""
        found: dict[str, int] = {}
        blocks: list[str] = []
        for name, _ in self.named_parameters():
            block = re.match(r"layer\d+(\.\d+)?", name)
            if block and block[0] not in blocks:
                blocks.append(block[0])
            found[name] = len(blocks) if block or not blocks else -1
        return {name: len(blocks) + 1 if depth < 0 else depth for name, depth in found.items()}

    def undecayed(self) -> set[str]:
        """Parameters of `body` that weight decay can leave out: norms and biases."""
        return {name for name, p in self.body.named_parameters() if p.ndim <= 1}

    @abstractmethod
    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Inputs of `fc`, from normalised pixels."""

    def forward(self, images: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits of images: uint8 in [0, 255] or floating point in [0, 1].

        Raises:
            ValueError: Images smaller than `min_size`, another number of channels, or an integer
                type other than uint8.
        """
        height, width = images.shape[-2:]
        if min(height, width) < self.min_size:
            raise ValueError(
                f"{type(self).__name__} needs images of at least {self.min_size} x "
                f"{self.min_size} pixels, got {height} x {width}. "
                "Resize them or use a smaller network."
            )
        return self.fc(self.features(self.pixels(images)))


def seed_dropout_(model: nn.Module, seed: int, step: int) -> None:
    """Give every module that draws at random in training its own generator for this step, so that a
    resumed run repeats an unbroken one.

    Call it once per optimizer step, before the first forward pass.
    """
    for name, module in model.named_modules():
        if isinstance(module, Dropout):
            device = next(model.parameters()).device
            module.rng = generator_for(seed, step, f"dropout {name}", device)
        elif isinstance(module, Classifier):
            module.rng = generator_for(seed, step, f"passes {name}")


def load_weights_(model: Classifier, weights: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's parameters and buffers into a network.

    Raises:
        ValueError: They belong to another network.
    """
    own = model.state_dict()
    different = sorted(own.keys() ^ weights.keys()) or [
        name for name in own if own[name].shape != weights[name].shape
    ]
    if different:
        found, expected = (
            tuple(part[different[0]].shape) if different[0] in part else "absent"
            for part in (weights, own)
        )
        raise ValueError(
            f"The checkpoint belongs to another network: {different[0]} is {found} in it and "
            f"{expected} in this {type(model).__name__}, and "
            f"{len(different) - 1} more differ. Use the model and classes of its training."
        )
    model.load_state_dict(weights)


def init_convolutions_(model: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    """N(0, 2 / fan) for the weight of every convolution (He et al., arXiv:1502.01852), fan of the
    given mode; zero for its bias."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
