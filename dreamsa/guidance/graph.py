"""CUDA graphs: replay the many small kernels of a frozen network in one launch."""

from collections.abc import Callable

import torch
from torch import Tensor

Capture = tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]
"""(graph, inputs, output)."""

WARM_UP = 3
"""Calls before a capture, in which libraries choose their kernels."""


class Graphed:
    """A function of tensors, captured once per set of shapes and dtypes; no gradients.

    The function must run the same kernels for the same shapes: no branches on values, no tensors
    from the host.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._captured: dict[tuple, Capture] = {}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple((value.shape, value.dtype) for value in inputs)
        if key not in self._captured:
            self._captured[key] = self._capture(inputs)
        graph, static, output = self._captured[key]
        for buffer, value in zip(static, inputs, strict=True):
            buffer.copy_(value)
        graph.replay()
        return output.clone()

    def _capture(self, inputs: tuple[Tensor, ...]) -> Capture:
        static = [value.clone() for value in inputs]
        with torch.cuda.device(static[0].device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self.function(*static)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may use CUDA meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = self.function(*static)
        return graph, static, output
