"""CUDA graphs: a frozen network's hundreds of small kernels, launched as one."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before a capture, for libraries to choose their kernels in."""


class Graphed:
    """A function of tensors, captured once for each set of shapes and replayed from then on; without gradients.

    The function must do the same for the same shapes: no branches on values, no tensors from the host.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._captured: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple((value.shape, value.dtype) for value in inputs)
        if key not in self._captured:
            self._captured[key] = self._capture(inputs)
        graph, own, output = self._captured[key]
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given)
        graph.replay()
        return output.clone()

    def _capture(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        own = [value.clone() for value in inputs]
        with torch.cuda.device(own[0].device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self.function(*own)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a page may draw in another thread
                output = self.function(*own)
        return graph, own, output
