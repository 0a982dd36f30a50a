"""Many linear classifiers trained by SGD side by side, as one tensor [m, k, d + 1]: the last column is the bias.

An episode or a learning rate is one head. A step costs two batched matrix products instead of a Python loop over heads.
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
    """The numbers of torch.optim.SGD; lr is one for all heads, or one per head. Weight decay also pulls on the bias, as there."""

    lr: float | Float[Tensor, "m 1 1"]
    momentum: float
    dampening: float
    weight_decay: float

    def step_(
        self, heads: Float[Tensor, "m k d1"], velocity: Float[Tensor, "m k d1"] | None, gradient: Float[Tensor, "m k d1"]
    ) -> Float[Tensor, "m k d1"]:
        """One step on `heads`, in place; `gradient` is used up.

        Returns:
            The velocity for the next step. The first gradient is not dampened, as in torch.optim.SGD.
        """
        gradient.add_(heads, alpha=self.weight_decay)
        velocity = gradient if velocity is None else velocity.mul_(self.momentum).add_(gradient, alpha=1 - self.dampening)
        heads.sub_(velocity * self.lr)
        return velocity


def with_bias_column(features: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d1"]:
    """A column of ones after the last feature, so that the bias is one more weight."""
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)


def random_head(dimension: int, classes: int, rng: torch.Generator) -> Float[Tensor, "k d1"]:
    """nn.Linear(dimension, classes) as torch initialises it, weight and bias in one matrix."""
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
    """The heads after one SGD step per batch on the mean cross-entropy; the given ones are not changed.

    Args:
        heads: One per row.
        features, labels: Each head's own data (s = m), or one set that all share (s = 1). features end in a column of ones.
        batches: Indices into the n examples, for each step.
    """
    m, rows = len(heads), torch.arange(len(features), device=features.device)[:, None]
    heads, velocity = heads.clone(), None
    for batch in batches:
        inputs, targets = features[rows, batch].expand(m, -1, -1), labels[rows, batch].expand(m, -1)
        velocity = sgd.step_(heads, velocity, mean_loss_gradient(heads, inputs, targets))
    return heads
