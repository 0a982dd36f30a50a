"""Linear probe: how well one new linear layer does on the frozen features of a model.

The protocol of the SEAL paper: the last layer anew, the rest frozen; SGD with momentum 0.9 and weight decay 1e-4, constant learning
rates 1e-1, 1e-2 and 1e-3, 120 epochs. Its batch size is not given; ours is that of its training recipe. Frozen here means eval mode,
and no augmentation, so the features are computed once. The paper reports the learning rate that does best on the test set; we
choose on a validation split and report the other number under its own name.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dreamsa.randomness import generator_for
from train_cls.evaluate.linear_heads import SGD, random_head, train_heads, with_bias_column
from train_cls.evaluate.metrics import LabelledImages, accuracy, embed
from train_cls.models.classifier import Classifier

LabelledFeatures = tuple[Float[Tensor, "_ d"], Int[Tensor, "_"]]


@dataclass(frozen=True)
class ProbeConfig:
    learning_rates: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    epochs: int = 120
    batch: int = 32
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"learning_rates should be one or more numbers above 0, got {self.learning_rates}.")
        if self.epochs < 1 or self.batch < 1:
            raise ValueError(f"epochs and batch should be at least 1, got {self.epochs} and {self.batch}.")


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
        """The learning rate that does best on the validation split; the first of equals. Its `test` is the number to report."""
        return max(self.scores, key=lambda score: score.validation)

    @property
    def best_on_test(self) -> float:
        """The highest test accuracy of any learning rate: the SEAL paper's number, chosen with the test labels in hand."""
        return max(score.test for score in self.scores)


def shuffled_batches(size: int, config: ProbeConfig, device: torch.device) -> Iterator[Int[Tensor, "1 b"]]:
    """Indices of all mini-batches of all epochs, each epoch in a new order; an epoch's last batch may be short."""
    for epoch in range(config.epochs):
        order = torch.randperm(size, generator=generator_for(config.seed, epoch, "linear probe: order")).to(device)
        yield from order[None].split(config.batch, dim=1)


def probe_features(
    train: LabelledFeatures, validation: LabelledFeatures, test: LabelledFeatures, config: ProbeConfig = ProbeConfig()
) -> ProbeResult:
    """The probe on features that are already there; all learning rates start from one head and see the same batches.

    Raises:
        ValueError: A split without examples, with unequal numbers of features and labels, or with negative labels.
    """
    for name, (features, labels) in (("train", train), ("validation", validation), ("test", test)):
        if len(features) != len(labels) or len(labels) == 0:
            raise ValueError(
                f"Found {len(features)} images and {len(labels)} labels in the {name} split, wanted as many, and at least one."
            )
    device = train[0].device
    inputs, labels = with_bias_column(train[0]), train[1].to(device, torch.int64)
    classes = 1 + max(int(split[1].max()) for split in (train, validation, test))
    head = random_head(inputs.shape[1] - 1, classes, generator_for(config.seed, 0, "linear probe: head")).to(inputs)
    heads = train_heads(
        head.expand(len(config.learning_rates), -1, -1),
        inputs[None],
        labels[None],
        shuffled_batches(len(inputs), config, device),
        SGD(inputs.new_tensor(config.learning_rates)[:, None, None], config.momentum, 0, config.weight_decay),
    )

    def score(lr: float, head: Tensor) -> ProbeScore:
        on = [accuracy(with_bias_column(features) @ head.T, labels) for features, labels in (train, validation, test)]
        return ProbeScore(lr, train=on[0], validation=on[1], test=on[2])

    return ProbeResult(tuple(map(score, config.learning_rates, heads)))


def linear_probe(
    model: Classifier,
    train: LabelledImages,
    validation: LabelledImages,
    test: LabelledImages,
    config: ProbeConfig = ProbeConfig(),
) -> ProbeResult:
    """A new last layer on the frozen model, for each learning rate. The model is not changed.

    Args:
        train: Images and labels that the layer is trained on. The classes need not be the model's own.
        validation: What the learning rate is chosen on.
        test: What is reported.

    Raises:
        ValueError: As probe_features.
    """
    features = [(embed(model, images), labels) for images, labels in (train, validation, test)]
    return probe_features(*features, config=config)
