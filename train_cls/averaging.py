"""Averages of a network's weights over training, on torch.optim.swa_utils."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@dataclass
class Average:
    """Averaged weights and when they are updated."""

    module: AveragedModel
    due: Callable[[int], bool]
    """Whether to update after that many batches."""
    has_statistics: bool
    """Whether batch-norm statistics are averaged too; else they must be computed anew."""

    @property
    def started(self) -> bool:
        return int(self.module.n_averaged) > 0

    def update(self, model: nn.Module, batches: int) -> None:
        if self.due(batches):
            self.module.update_parameters(model)


def exponential_average(model: nn.Module, decay: float) -> Average:
    """Exponential moving average of weights and statistics, updated after every batch."""
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return Average(averaged, lambda batches: True, has_statistics=True)


def stochastic_average(model: nn.Module, begin: float, every: int) -> Average:
    """Equal average of the weights after every `every` batches from batch `begin` on (SWA,
    arXiv:1803.05407)."""
    first = ceil(begin)
    return Average(
        AveragedModel(model),
        lambda batches: batches % every == 0 and batches >= first,
        has_statistics=False,
    )
