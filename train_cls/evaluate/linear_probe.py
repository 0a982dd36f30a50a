"""Linear probe: accuracy of a new linear layer on the frozen features of a model.

Protocol of the SEAL paper: SGD with momentum 0.9 and weight decay 1e-4, constant learning rates
1e-1, 1e-2 and 1e-3, 120 epochs. The paper gives no batch size; this uses that of its training
recipe. The model is in eval mode and images are not augmented, so features are computed once. The
paper reports the learning rate with the best test accuracy; this module chooses it on a validation
split and reports the other number separately.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from dreamsa.randomness import generator_for
from dreamsa.settings import settings
from train_cls.evaluate.linear_heads import SGD, random_head, train_heads, with_bias_column
from train_cls.evaluate.metrics import LabelledImages, accuracy, embed
from train_cls.models.classifier import Classifier

LabelledFeatures = tuple[Float[Tensor, "_ d"], Int[Tensor, "_"]]


@settings()
class ProbeConfig:
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1e-1, 1e-2, 1e-3), min_length=1
    )
    epochs: int = Field(default=120, ge=1)
    batch: int = Field(default=32, ge=1)
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class ProbeScore:
    """Accuracies in [0, 1] of the probe trained with one learning rate."""

    lr: float
    train: float
    validation: float
    test: float


@dataclass(frozen=True)
class ProbeResult:
    scores: tuple[ProbeScore, ...]

    @property
    def chosen(self) -> ProbeScore:
        """The score with the best validation accuracy, the first on a tie. Report its `test`."""
        return max(self.scores, key=lambda score: score.validation)

    @property
    def best_on_test(self) -> float:
        """The best test accuracy of any learning rate, the SEAL paper's number; selected on the
        test labels."""
        return max(score.test for score in self.scores)


def shuffled_batches(
    size: int, config: ProbeConfig, device: torch.device
) -> Iterator[Int[Tensor, "1 b"]]:
    """Indices of all mini-batches of all epochs, reshuffled every epoch; the last one of an epoch
    may be smaller."""
    for epoch in range(config.epochs):
        order = torch.randperm(
            size, generator=generator_for(config.seed, epoch, "linear probe: order")
        ).to(device)
        yield from order[None].split(config.batch, dim=1)


def probe_features(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    test: LabelledFeatures,
    config: ProbeConfig = ProbeConfig(),
) -> ProbeResult:
    """Linear probe on precomputed features; all learning rates start from the same head and see the
    same batches.

    Raises:
        ValueError: A split without examples, with unequal numbers of features and labels, or with
            negative labels.
    """
    for name, (features, labels) in (("train", train), ("validation", validation), ("test", test)):
        if len(features) != len(labels) or len(labels) == 0:
            raise ValueError(
                f"Found {len(features)} images and {len(labels)} labels in the {name} split, "
                "expected equal numbers of at least 1."
            )
    device = train[0].device
    inputs, labels = with_bias_column(train[0]), train[1].to(device, torch.int64)
    classes = 1 + max(int(split[1].max()) for split in (train, validation, test))
    head = random_head(
        inputs.shape[1] - 1, classes, generator_for(config.seed, 0, "linear probe: head")
    ).to(inputs)
    heads = train_heads(
        head.expand(len(config.learning_rates), -1, -1),
        inputs[None],
        labels[None],
        shuffled_batches(len(inputs), config, device),
        SGD(
            inputs.new_tensor(config.learning_rates)[:, None, None],
            config.momentum,
            0,
            config.weight_decay,
        ),
    )

    def score(lr: float, head: Tensor) -> ProbeScore:
        on = [
            accuracy(with_bias_column(features) @ head.T, labels)
            for features, labels in (train, validation, test)
        ]
        return ProbeScore(lr, train=on[0], validation=on[1], test=on[2])

    return ProbeResult(tuple(map(score, config.learning_rates, heads)))


def linear_probe(
    model: Classifier,
    train: LabelledImages,
    validation: LabelledImages,
    test: LabelledImages,
    config: ProbeConfig = ProbeConfig(),
) -> ProbeResult:
    """Train a new last layer on the frozen model for each learning rate. Leaves the model
    unchanged.

    Args:
        train: Images and labels to train on. The classes may differ from the model's.
        validation: Data to choose the learning rate on.
        test: Data of the reported accuracy.

    Raises:
        ValueError: As probe_features.
    """
    features = [(embed(model, images), labels) for images, labels in (train, validation, test)]
    return probe_features(*features, config=config)
