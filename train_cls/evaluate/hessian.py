"""Curvature of the training loss: top eigenvalues by magnitude of mini-batch Hessians, and the
fraction of negative ones.

Procedure of Park & Kim 2022 (arXiv:2202.06709; README of how-do-vits-work): the loss is NLL + L2 on
augmented data, in eval mode; the top five eigenvalues of all mini-batches are pooled. The fraction
of negative ones is among these, not in the spectrum.

Uses Lanczos (scipy's eigsh) on exact Hessian-vector products instead of power iteration. curvlinops
gives the same products but requires torchvision, whose wheel breaks transformers next to a CPU
build of torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call

from dreamsa.randomness import generator_for
from dreamsa.settings import settings
from train_cls.evaluate.metrics import Images, device_of, evaluating

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(images, generator on their device) -> images of the same shape."""


@settings()
class HessianConfig:
    eigenvalues: int = Field(default=5, ge=1)
    batch: int = Field(default=128, ge=1)
    batches: int | None = Field(default=None, ge=1)
    """Number of mini-batches; None for all."""
    weight_decay: float = 5e-4
    """That of the training run."""
    tolerance: float = 1e-3
    """Relative accuracy of the eigenvalues (ARPACK)."""
    iterations: int = Field(default=100, ge=1)
    """Max restarts of ARPACK."""
    seed: int = 0


@dataclass(frozen=True)
class HessianSpectrum:
    """Top eigenvalues of each mini-batch's Hessian, in descending magnitude, float64."""

    eigenvalues: Float[Tensor, "batches k"]

    @property
    def maximum(self) -> float:
        """The largest eigenvalue of all mini-batches."""
        return self.eigenvalues.max().item()

    @property
    def mean_maximum(self) -> float:
        """The largest eigenvalue, averaged over mini-batches."""
        return self.eigenvalues.max(1).values.mean().item()

    @property
    def negative_fraction(self) -> float:
        """Fraction in [0, 1] of negative eigenvalues."""
        return (self.eigenvalues < 0).double().mean().item()


def hessian_product(
    model: nn.Module, images: Images, labels: Int[Tensor, "n"], weight_decay: float
) -> Callable[[Float[Tensor, "p"]], Float[Tensor, "p"]]:
    """The function v -> H v, where H is the Hessian in all parameters, flattened in the order of
    model.parameters().

    The loss is mean cross-entropy + weight_decay / 2 * |parameters|^2, which SGD with weight decay
    minimises. The graph of the gradient is kept, so that a product costs one backward pass. The
    mode of the model is unchanged.

    Raises:
        ValueError: The loss is not finite.
    """
    parameters = {
        name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters()
    }
    with torch.enable_grad():
        penalty = (
            weight_decay
            / 2
            * torch.stack([parameter.square().sum() for parameter in parameters.values()]).sum()
        )
        loss = F.cross_entropy(functional_call(model, parameters, (images,)), labels) + penalty
        if not loss.isfinite():
            raise ValueError(
                f"The loss is {loss.item()}: the model has diverged. Evaluate an earlier "
                "checkpoint."
            )
        inputs = list(parameters.values())
        gradient = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
        gradient = torch.cat([part.flatten() for part in gradient])

    def product(vector: Float[Tensor, "p"]) -> Float[Tensor, "p"]:
        parts = torch.autograd.grad(
            gradient, inputs, vector, retain_graph=True, materialize_grads=True
        )
        return torch.cat([part.flatten() for part in parts])

    return product


def top_eigenvalues(
    product: Callable[[Tensor], Tensor],
    start: Float[Tensor, "p"],
    k: int,
    tolerance: float = 1e-3,
    iterations: int = 100,
) -> Float[Tensor, "k"]:
    """Top k eigenvalues of a symmetric operator in descending magnitude, float64, by restarted
    Lanczos.

    Args:
        product: v -> A v on the device and in the dtype of `start`.
        start: First Lanczos vector; random.

    Raises:
        ValueError: k is not below the size of the operator, or no convergence in `iterations`
            restarts.
    """
    if k >= len(start):
        raise ValueError(
            f"The model has {len(start)} parameters, expected more than the {k} eigenvalues. "
            "Lower eigenvalues."
        )

    def matvec(vector: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(vector.reshape(-1).copy()).to(start)).cpu().numpy()

    first = start.cpu().numpy()
    operator = LinearOperator((len(first), len(first)), matvec=matvec, dtype=first.dtype)  # pyright: ignore[reportCallIssue]
    try:
        values = eigsh(
            operator,
            k,
            which="LM",
            v0=first,
            tol=tolerance,  # pyright: ignore[reportArgumentType]
            maxiter=iterations,
            return_eigenvectors=False,
        )
    except ArpackNoConvergence as error:
        raise ValueError(
            f"Found {len(error.eigenvalues)} of {k} eigenvalues in {iterations} restarts. Raise "
            "iterations or tolerance."
        ) from error
    return torch.from_numpy(values[np.argsort(-np.abs(values))].astype(np.float64))


def mini_batches(size: int, config: HessianConfig) -> Iterator[Int[Tensor, "b"]]:
    """Indices of shuffled mini-batches; omits an incomplete last one unless it is the only one."""
    order = torch.randperm(size, generator=generator_for(config.seed, 0, "hessian: order"))
    full = max(1, size // config.batch)
    yield from order.split(config.batch)[
        : full if config.batches is None else min(full, config.batches)
    ]


def hessian_spectrum(
    model: nn.Module,
    images: Images,
    labels: Int[Tensor, "n2"],
    augment: Augment | None = None,
    config: HessianConfig = HessianConfig(),
) -> HessianSpectrum:
    """Top eigenvalues of the loss Hessian for each mini-batch. Leaves the model unchanged.

    A product takes the memory of a training step plus its graph; eigsh needs about 20 to 100
    products.

    Args:
        images, labels: The training set.
        augment: The augmentation of the training run; None for none, which changes the loss.

    Raises:
        ValueError: No images, unequal numbers of images and labels, or as hessian_product and
            top_eigenvalues.
    """
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"Found {len(images)} images and {len(labels)} labels, expected equal numbers of at "
            "least 1."
        )
    device, weights = device_of(model), [parameter.detach() for parameter in model.parameters()]
    rows = []
    with evaluating(model):
        for step, index in enumerate(mini_batches(len(images), config)):
            part, targets = (
                images[index.to(images.device)].to(device),
                labels[index.to(labels.device)].to(device, torch.int64),
            )
            if augment is not None:
                part = augment(
                    part, generator_for(config.seed, step, "hessian: augmentation", device)
                )
            start = torch.randn(
                sum(map(torch.numel, weights)),
                generator=generator_for(config.seed, step, "hessian: start"),
            )
            product = hessian_product(model, part, targets, config.weight_decay)
            rows.append(
                top_eigenvalues(
                    product,
                    start.to(weights[0]),
                    config.eigenvalues,
                    config.tolerance,
                    config.iterations,
                )
            )
    return HessianSpectrum(torch.stack(rows))
