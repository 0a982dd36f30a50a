"""Predictions and features of a model, and its accuracy, log-likelihood and calibration error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from train_cls.data import FileImages
from train_cls.models.classifier import Classifier

Images = UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"] | FileImages
"""uint8 in [0, 255] or floating point in [0, 1]."""
LabelledImages = tuple[
    UInt8[Tensor, "_ c _ _"] | Float[Tensor, "_ c _ _"] | FileImages, Int[Tensor, "_"]
]
"""Images, and one label per image."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which the model is in eval mode; restores the mode of each module at exit."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's parameters."""
    return next(model.parameters()).device


def in_batches(
    function: Callable[[Tensor], Tensor], model: nn.Module, images: Images, batch: int
) -> Tensor:
    """Apply `function` to the images on the model's device, `batch` at a time, in eval mode and
    without gradients."""
    if len(images) == 0:
        raise ValueError("Found no images, expected at least one. Check the split or the filter.")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}.")
    device = device_of(model)
    with evaluating(model), torch.no_grad():
        return torch.cat([function(part.to(device)) for part in images.split(batch)])


def predict(model: nn.Module, images: Images, batch: int = 256) -> Float[Tensor, "n k"]:
    """Logits of all images, on the model's device.

    Raises:
        ValueError: No images, or a batch below 1.
    """
    return in_batches(model, model, images, batch)


def predict_classes(model: nn.Module, images: Images, batch: int = 256) -> Int[Tensor, "n"]:
    """The class with the largest logit of each image, on the model's device.

    Raises:
        ValueError: No images, or a batch below 1.
    """
    return in_batches(lambda part: model(part).argmax(1), model, images, batch)


def embed(model: Classifier, images: Images, batch: int = 256) -> Float[Tensor, "n d"]:
    """Inputs of the last layer, `model.features(model.pixels(images))`, on the model's device.

    Raises:
        ValueError: No images, or a batch below 1.
    """
    return in_batches(lambda part: model.features(model.pixels(part)), model, images, batch)


def on_same_device(logits: Float[Tensor, "n k"], labels: Int[Tensor, "n2"]) -> Int[Tensor, "n"]:
    """The labels as int64 on the device of the logits, after a check of their number and range.

    Raises:
        ValueError: Unequal or zero lengths, or a label that is not a column of the logits.
    """
    if len(logits) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"Found {len(logits)} rows of logits and {len(labels)} labels, expected one label per "
            "row and at least one row."
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"Found labels from {int(labels.min())} to {int(labels.max())}, expected 0 to "
            f"{logits.shape[1] - 1}. "
            "The model has other classes."
        )
    return labels.to(logits.device, torch.int64)


def accuracy(logits: Float[Tensor, "n k"], labels: Int[Tensor, "n2"]) -> float:
    """Fraction in [0, 1] of rows whose largest logit is that of the label. Rows with NaN predict
    the first NaN.

    Raises:
        ValueError: As on_same_device.
    """
    return (logits.argmax(1) == on_same_device(logits, labels)).double().mean().item()


def negative_log_likelihood(logits: Float[Tensor, "n k"], labels: Int[Tensor, "n2"]) -> float:
    """Mean of -log softmax(logits)[label] in nats, at least 0; log(k) for a uniform guess, NaN for
    logits that are not finite.

    Raises:
        ValueError: As on_same_device.
    """
    return F.cross_entropy(logits.double(), on_same_device(logits, labels)).item()


def top_accuracy(logits: Float[Tensor, "n k"], labels: Int[Tensor, "n2"], top: int = 5) -> float:
    """Fraction in [0, 1] of rows with fewer than `top` logits above that of the label. Rows with
    NaN do not count as correct.

    Raises:
        ValueError: As on_same_device, or `top` below 1.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}.")
    own = logits.gather(1, on_same_device(logits, labels)[:, None])
    within = (logits > own).sum(1) < top
    return (within & ~logits.isnan().any(1)).double().mean().item()


def expected_calibration_error(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, "n2"], bins: int = 15
) -> float:
    """Mean |accuracy - confidence| over bins of equal width, weighted by their size (Guo et al.
    2017, arXiv:1706.04599, eq. 3).

    Bin m holds the confidences in ((m - 1) / bins, m / bins]. In [0, 1], with an upward bias of
    about sqrt(bins / n). torchmetrics 1.9 has [(m - 1) / bins, m / bins) and a bin of its own for
    certain predictions, and imports matplotlib and transformers, so this is kept by hand.

    Raises:
        ValueError: As on_same_device, or fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}.")
    confidence, predicted = logits.double().softmax(1).max(1)
    surplus = confidence - (predicted == on_same_device(logits, labels)).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return surplus.new_zeros(bins).index_add_(0, index, surplus).abs().sum().item() / len(surplus)


def scores(logits: Float[Tensor, "n k"], labels: Int[Tensor, "n2"]) -> dict[str, float]:
    """{"accuracy", "nll", "ece"}, and "top-5 accuracy" with more than 5 classes: the functions
    above."""
    top = {"top-5 accuracy": top_accuracy(logits, labels)} if logits.shape[1] > 5 else {}
    return {
        "accuracy": accuracy(logits, labels),
        **top,
        "nll": negative_log_likelihood(logits, labels),
        "ece": expected_calibration_error(logits, labels),
    }
