"""Curvature of the training loss: eigenvalues of largest magnitude of mini-batch Hessians, and how many of them are negative.

The process of Park & Kim 2022 (arXiv:2202.06709; README of how-do-vits-work): the loss is NLL + L2 on augmented data, in eval mode; the
top five eigenvalues by magnitude of every mini-batch are pooled. "Share of negatives" is their share among these, not of the spectrum.

Ours is Lanczos by scipy's eigsh (ARPACK) on exact Hessian-vector products, in the place of power iteration. curvlinops would give the
same products; through backpack it requires torchvision, whose wheel breaks transformers beside a CPU build of torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call

from dreamsa.randomness import generator_for
from train_cls.evaluate.metrics import Images, device_of, evaluating

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(images, generator on their device) -> images of the same shape."""


@dataclass(frozen=True)
class HessianConfig:
    """weight_decay: that of the training run. batches: how many to use, None for all. tolerance, iterations: of ARPACK."""

    eigenvalues: int = 5
    batch: int = 128
    batches: int | None = None
    weight_decay: float = 5e-4
    tolerance: float = 1e-3
    iterations: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.eigenvalues, self.batch, self.iterations) < 1 or (self.batches is not None and self.batches < 1):
            raise ValueError(
                "eigenvalues, batch, batches and iterations should be at least 1, "
                f"got {self.eigenvalues}, {self.batch}, {self.batches} and {self.iterations}."
            )


@dataclass(frozen=True)
class HessianSpectrum:
    """The eigenvalues of largest magnitude of each mini-batch's Hessian, in descending magnitude, float64."""

    eigenvalues: Float[Tensor, "batches k"]

    @property
    def maximum(self) -> float:
        """The largest of all."""
        return self.eigenvalues.max().item()

    @property
    def mean_maximum(self) -> float:
        """The mean over mini-batches of each one's largest."""
        return self.eigenvalues.max(1).values.mean().item()

    @property
    def negative_share(self) -> float:
        """Share in [0, 1] of negative ones among all."""
        return (self.eigenvalues < 0).double().mean().item()


def hessian_product(
    model: nn.Module, images: Images, labels: Int[Tensor, "n"], weight_decay: float
) -> Callable[[Float[Tensor, "p"]], Float[Tensor, "p"]]:
    """v -> H v, where H is the Hessian in all parameters, flattened in the order of model.parameters().

    The loss is mean cross-entropy + weight_decay / 2 * |parameters|^2, whose gradient is what SGD with weight decay follows. The graph of
    its gradient is built once and kept, so that a product costs one backward pass through it. The model is used in its present mode.

    Raises:
        ValueError: The loss is not finite.
    """
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters()}
    with torch.enable_grad():
        penalty = weight_decay / 2 * torch.stack([parameter.square().sum() for parameter in parameters.values()]).sum()
        loss = F.cross_entropy(functional_call(model, parameters, (images,)), labels) + penalty
        if not loss.isfinite():
            raise ValueError(f"Found a loss of {loss.item()}, wanted a finite one: the model has diverged, evaluate an earlier checkpoint.")
        inputs = list(parameters.values())
        gradient = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
        gradient = torch.cat([part.flatten() for part in gradient])

    def product(vector: Float[Tensor, "p"]) -> Float[Tensor, "p"]:
        parts = torch.autograd.grad(gradient, inputs, vector, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    return product


def top_eigenvalues(
    product: Callable[[Tensor], Tensor], start: Float[Tensor, "p"], k: int, tolerance: float = 1e-3, iterations: int = 100
) -> Float[Tensor, "k"]:
    """The k eigenvalues of largest magnitude of a symmetric operator, in descending magnitude, float64, by restarted Lanczos.

    Args:
        product: v -> A v on the device and in the dtype of `start`.
        start: The first Lanczos vector; a random one.

    Raises:
        ValueError: k is not below the operator's size, or no convergence in `iterations` restarts.
    """
    if k >= len(start):
        raise ValueError(f"Found {len(start)} parameters, wanted more than the {k} eigenvalues asked for: ask for fewer.")

    def matvec(vector: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(vector.reshape(-1).copy()).to(start)).cpu().numpy()

    first = start.cpu().numpy()
    operator = LinearOperator((len(first), len(first)), matvec=matvec, dtype=first.dtype)  # pyright: ignore[reportCallIssue]
    try:
        values = eigsh(operator, k, which="LM", v0=first, tol=tolerance, maxiter=iterations, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    except ArpackNoConvergence as error:
        raise ValueError(
            f"Found {len(error.eigenvalues)} of {k} eigenvalues in {iterations} restarts: allow more iterations or a larger tolerance."
        ) from error
    return torch.from_numpy(values[np.argsort(-np.abs(values))].astype(np.float64))


def mini_batches(size: int, config: HessianConfig) -> Iterator[Int[Tensor, "b"]]:
    """Indices of the mini-batches in a random order of the images; a short last one is left out unless it is the only one."""
    order = torch.randperm(size, generator=generator_for(config.seed, 0, "hessian: order"))
    full = max(1, size // config.batch)
    yield from order.split(config.batch)[: full if config.batches is None else min(full, config.batches)]


def hessian_spectrum(
    model: nn.Module,
    images: Images,
    labels: Int[Tensor, "n2"],
    augment: Augment | None = None,
    config: HessianConfig = HessianConfig(),
) -> HessianSpectrum:
    """Top eigenvalues by magnitude of the loss Hessian, for each mini-batch. The model is not changed.

    Args:
        images, labels: The training set.
        augment: The augmentation of the training run; None leaves the images as they are, which is another loss than the one trained on.

    A product takes the memory of a training step with its graph kept, and eigsh asks for about 20 to 100 of them.

    Raises:
        ValueError: No images, unequal numbers of images and labels, or as hessian_product and top_eigenvalues.
    """
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(f"Found {len(images)} images and {len(labels)} labels, wanted as many, and at least one.")
    device, weights = device_of(model), [parameter.detach() for parameter in model.parameters()]
    rows = []
    with evaluating(model):
        for step, index in enumerate(mini_batches(len(images), config)):
            part, answer = images[index.to(images.device)].to(device), labels[index.to(labels.device)].to(device, torch.int64)
            if augment is not None:
                part = augment(part, generator_for(config.seed, step, "hessian: augmentation", device))
            start = torch.randn(sum(map(torch.numel, weights)), generator=generator_for(config.seed, step, "hessian: start"))
            product = hessian_product(model, part, answer, config.weight_decay)
            rows.append(top_eigenvalues(product, start.to(weights[0]), config.eigenvalues, config.tolerance, config.iterations))
    return HessianSpectrum(torch.stack(rows))
