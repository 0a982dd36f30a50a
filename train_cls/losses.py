"""Terms of the loss, and sharpness-aware gradients, as methods use them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Distillation:
    """Fit a teacher's softmax: (1 - weight) * loss + weight * soften^2 * H(teacher, student)
    (arXiv:1503.02531, sec. 2; born-again networks, arXiv:1805.04770, with weight 1)."""

    teacher: nn.Module
    begin: int
    """First step with a teacher."""
    weight: float = 1.0
    soften: float = 1.0
    """Temperature of both softmaxes."""

    def __call__(self, loss: Tensor, logits: Tensor, images: Tensor, step: int) -> Tensor:
        if step < self.begin:
            return loss
        with torch.no_grad():
            target = (self.teacher(images).float() / self.soften).softmax(1)
        fit = nn.functional.cross_entropy(logits / self.soften, target) * self.soften**2
        return fit if self.weight == 1 else (1 - self.weight) * loss + self.weight * fit


@dataclass(frozen=True)
class OverconfidencePenalty:
    """weight times the gap between the most likely class and the mean of the next four
    (arXiv:1805.05551, sec. 3.3)."""

    weight: float

    def __call__(self, loss: Tensor, logits: Tensor, images: Tensor, step: int) -> Tensor:
        top = logits.softmax(1).topk(min(5, logits.shape[1]), dim=1).values
        return loss + self.weight * (top[:, 0] - top[:, 1:].mean(1)).mean()


@dataclass(frozen=True)
class UpdateTeacher:
    """An event that copies the student into the teacher, including batch-norm statistics."""

    student: nn.Module
    teacher: nn.Module

    def __call__(self, optimizer: torch.optim.Optimizer, groups: Any, step: int) -> None:
        self.teacher.load_state_dict(self.student.state_dict())


def sharpness_aware(model: nn.Module, rho: float) -> Callable[[Callable[[bool], None]], None]:
    """Gradients at the weights moved by rho along their gradient (SAM, arXiv:2010.01412, eq. 2).

    Batch-norm statistics are those of the first pass.
    """

    def gradients(backward: Callable[[bool], None]) -> None:
        backward(True)
        with _moved_along_gradient(model, rho), _fixed_statistics(model):
            backward(False)

    return gradients


@contextmanager
def _moved_along_gradient(model: nn.Module, rho: float) -> Iterator[None]:
    parameters = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    with torch.no_grad():
        before = [p.clone() for p in parameters]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_add_(
            [p.detach() for p in parameters], torch._foreach_mul(gradients, rho / (norm + 1e-12))
        )
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_([p.detach() for p in parameters], before)


@contextmanager
def _fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch, and leave their running statistics alone."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [module.track_running_stats for module in norms]
    for module in norms:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module, tracks in zip(norms, before, strict=True):
            module.track_running_stats = tracks
