"""Linear classifiers trained by SGD in parallel, as one tensor [m, k, d + 1] whose last column is
the bias.

There is one head per episode or learning rate. A step is two batched matrix products.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dreamsa.randomness import random_linear


@dataclass(frozen=True)
class SGD:
    """Hyperparameters of torch.optim.SGD; one lr for all heads or one per head. Weight decay
    includes the bias."""

    lr: float | Float[Tensor, "m 1 1"]
    momentum: float
    dampening: float
    weight_decay: float

    def step_(
        self,
        heads: Float[Tensor, "m k d1"],
        velocity: Float[Tensor, "m k d1"] | None,
        gradient: Float[Tensor, "m k d1"],
    ) -> Float[Tensor, "m k d1"]:
        """One step on `heads`, in place; overwrites `gradient`.

        Returns:
            The velocity for the next step. The first gradient is not dampened, as in
            torch.optim.SGD.
        """
        gradient.add_(heads, alpha=self.weight_decay)
        velocity = (
            gradient
            if velocity is None
            else velocity.mul_(self.momentum).add_(gradient, alpha=1 - self.dampening)
        )
        heads.sub_(velocity * self.lr)
        return velocity


def with_bias_column(features: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d1"]:
    """Append a column of ones, whose weight is the bias."""
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)


def random_head(dimension: int, classes: int, rng: torch.Generator) -> Float[Tensor, "k d1"]:
    """Weight and bias of nn.Linear(dimension, classes) in one matrix, with torch's default
    initialisation."""
    layer = random_linear(dimension, classes, rng)
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach()


def mean_loss_gradient(
    heads: Float[Tensor, "m k d1"], inputs: Float[Tensor, "m b d1"], labels: Int[Tensor, "m b"]
) -> Float[Tensor, "m k d1"]:
    """Gradient of each head's mean cross-entropy: (softmax - one-hot)^T inputs / b."""
    error = (inputs @ heads.mT).softmax(-1) - F.one_hot(labels, heads.shape[1])
    return (error.mT / inputs.shape[1]) @ inputs


@torch.no_grad()
def train_heads(
    heads: Float[Tensor, "m k d1"],
    features: Float[Tensor, "s n d1"],
    labels: Int[Tensor, "s n"],
    batches: Iterable[Int[Tensor, "s b"]],
    sgd: SGD,
) -> Float[Tensor, "m k d1"]:
    """Train heads on the mean cross-entropy, one SGD step per batch; returns new heads.

    Args:
        features, labels: One set per head (s = m) or a shared one (s = 1). The last feature is 1.
        batches: Indices of each step's examples.
    """
    m, rows = len(heads), torch.arange(len(features), device=features.device)[:, None]
    heads, velocity = heads.clone(), None
    for batch in batches:
        inputs, targets = features[rows, batch].expand(m, -1, -1), labels[rows, batch].expand(m, -1)
        velocity = sgd.step_(heads, velocity, mean_loss_gradient(heads, inputs, targets))
    return heads
