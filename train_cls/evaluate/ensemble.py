"""Ensembles of models, or of the generations of one model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from train_cls.evaluate.metrics import scores


@dataclass(frozen=True)
class EnsembleScores:
    """Scores of the averaged probabilities, of each member, and how often two members predict
    different classes."""

    ensemble: dict[str, float]
    members: tuple[dict[str, float], ...]
    disagreement: Float[Tensor, "m m"]

    @property
    def mean_disagreement(self) -> float:
        """Mean over the pairs of different members, in [0, 1]; 0 for a single member."""
        m = len(self.members)
        return self.disagreement.sum().item() / (m * (m - 1)) if m > 1 else 0.0


def average_probabilities(logits: Sequence[Float[Tensor, "n k"]]) -> Float[Tensor, "n k"]:
    """log of the mean over members of softmax(logits), float64: logits of the averaged
    probabilities (Lakshminarayanan et al. 2017).

    Raises:
        ValueError: No members, or different shapes.
    """
    shapes = sorted({tuple(member.shape) for member in logits})
    if len(shapes) != 1:
        raise ValueError(
            f"Found logits of shapes {shapes}, expected at least one member and one shape. "
            "Predict the same images with each."
        )
    return torch.stack([member.double().log_softmax(1) for member in logits]).logsumexp(
        0
    ) - math.log(len(logits))


def disagreement(logits: Sequence[Float[Tensor, "n k"]]) -> Float[Tensor, "m m"]:
    """Fraction of images on which members i and j predict different classes, in [0, 1], float64; 0
    on the diagonal."""
    predicted = torch.stack([member.argmax(1) for member in logits])
    return torch.stack([(predicted != row).double().mean(1) for row in predicted])


def ensemble_scores(
    logits: Sequence[Float[Tensor, "n k"]], labels: Int[Tensor, "n2"]
) -> EnsembleScores:
    """Scores of the averaged probabilities of several models, and of each model.

    Args:
        logits: One tensor per member, of the same images.
        labels: One per image.

    Raises:
        ValueError: As average_probabilities and metrics.on_same_device.
    """
    return EnsembleScores(
        ensemble=scores(average_probabilities(logits), labels),
        members=tuple(scores(member, labels) for member in logits),
        disagreement=disagreement(logits),
    )
