"""Images by position: a tensor in memory, or files that are decoded when they are asked for."""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dreamsa.signals import STOPPING
from train_cls.data.files import Tree, decode_image, image_size

CHUNK, CHUNK_BYTES = 256, 2**24
"""Max images, and bytes of them, that a worker decodes at a time when all are read."""
Answer = TypeVar("Answer")


class Survey(NamedTuple):
    """What reading all of some image files has found."""

    unreadable: dict[int, str]
    """The reason by position."""
    histogram: Int64[Tensor, "c 256"]
    """Pixels of each value per channel, of the readable images."""


@dataclass(frozen=True, eq=False)
class FileImages:
    """Image files that stand in for a uint8 tensor [n, c, h, w] which need not fit in memory.

    Offers what training and evaluation use of such a tensor: `len`, `shape`, `device`, `to`,
    `split`, and indexing by positions, a mask or a slice, which decodes.
    """

    tree: Tree
    paths: Sequence[str]
    size: int = 0
    """Resize to size x size; 0 expects one size of all files."""
    workers: int = 0
    """Processes that decode ahead in `split` and `batches`; 0 decodes in this process."""
    channels: int = 3
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Of the tensors that it gives."""
    histogram: Int64[Tensor, "c 256"] | None = None
    """Pixels of each value per channel, if all have been read before."""

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def shape(self) -> torch.Size:
        """[n, c, h, w]; without `size`, of the first image whose header can be read."""
        sides = (self.size, self.size)
        if not self.size:
            sides = next((s for s in map(self._header, self.paths) if s is not None), (0, 0))
        return torch.Size((len(self), self.channels, *sides))

    def _header(self, path: str) -> tuple[int, int] | None:
        try:
            return image_size(self.tree.read(path), path)
        except ValueError:
            return None

    def to(self, device: torch.device | str) -> "FileImages":
        return replace(self, device=torch.device(device))

    def select(self, positions: Iterable[int]) -> "FileImages":
        """The files at these positions, not decoded."""
        return replace(self, paths=[self.paths[i] for i in positions], histogram=None)

    def __getitem__(self, index: Any) -> UInt8[Tensor, "*k c h w"]:
        """Decode the images at these positions.

        Raises:
            ValueError: One of them cannot be read or has another size.
        """
        if not (isinstance(index, Tensor) and index.dtype == torch.int64):
            index = torch.arange(len(self))[index]
        images = self._read(index.flatten().tolist())
        return images.view(*index.shape, *images.shape[1:]).to(self.device)

    def split(self, size: int, /) -> Iterator[UInt8[Tensor, "b c h w"]]:
        """All images in order, `size` at a time."""
        return self.batches(torch.arange(len(self)).split(size))

    def batches(self, order: Sequence[Int64[Tensor, " b"]]) -> Iterator[UInt8[Tensor, "b c h w"]]:
        """The images at the positions of each batch; workers decode the batches ahead.

        Raises:
            ValueError: As indexing.
        """
        chunks = (positions.tolist() for positions in order)
        workers = min(self.workers, len(order))
        assert len(self.shape) == 4  # read here once, not in every worker
        for images in in_workers(self._read, chunks, workers, pin=self.device.type == "cuda"):
            yield images.to(self.device, non_blocking=True)

    def survey(self) -> Survey:
        """Decode every image once."""
        unreadable: dict[int, str] = {}
        total = torch.zeros(self.channels, 256, dtype=torch.int64)
        for bad, counts in in_workers(self._survey, self._chunks(), self.workers):
            unreadable |= bad
            total += counts
        return Survey(unreadable, total)

    def load(self) -> tuple[UInt8[Tensor, "n c h w"], dict[int, str]]:
        """All images as one tensor; those that cannot be read are zero, with the reason by
        position.

        Raises:
            ValueError: An image of another size.
        """
        images = torch.empty(self.shape, dtype=torch.uint8)
        unreadable: dict[int, str] = {}
        chunks = self._chunks()
        workers = self.workers if len(chunks) > 8 else 0  # starting them takes longer than reading
        for chunk, (part, bad) in zip(
            chunks, in_workers(self._read_leniently, chunks, workers), strict=True
        ):
            images[chunk.start : chunk.stop] = part
            unreadable |= bad
        return images.to(self.device), unreadable

    def _chunks(self) -> list[range]:
        bytes_each = max(self.shape[1:].numel(), 1)
        step = max(1, min(CHUNK, CHUNK_BYTES // bytes_each))
        return [range(i, min(i + step, len(self))) for i in range(0, len(self), step)]

    def _read(self, positions: Sequence[int]) -> UInt8[Tensor, "k c h w"]:
        images, unreadable = self._read_leniently(positions)
        for reason in unreadable.values():
            raise ValueError(reason)
        return images

    def _read_leniently(
        self, positions: Sequence[int]
    ) -> tuple[UInt8[Tensor, "k c h w"], dict[int, str]]:
        images = torch.zeros(len(positions), 3, *self.shape[2:], dtype=torch.uint8)
        unreadable: dict[int, str] = {}
        for image, i in zip(images, positions, strict=True):
            name = f"{self.tree.name}: {self.paths[i]}"
            try:
                pixels = decode_image(self.tree.read(self.paths[i]), name, self.size)
            except ValueError as error:
                unreadable[i] = str(error)
                continue
            if pixels.shape[:2] != self.shape[2:]:
                raise ValueError(
                    f"{name} is {pixels.shape[0]} x {pixels.shape[1]} pixels and others are "
                    f"{self.shape[2]} x {self.shape[3]}. Images must have the same size; set size "
                    "to resize them."
                )
            image.copy_(torch.from_numpy(pixels.copy()).movedim(-1, 0))
        return with_channels(images, self.channels), unreadable

    def _survey(self, positions: Sequence[int]) -> tuple[dict[int, str], Tensor]:
        images, bad = self._read_leniently(positions)
        good = [row for row, i in enumerate(positions) if i not in bad]
        return bad, histogram(images[good])


Images = UInt8[Tensor, "n c h w"] | FileImages


def with_channels(images: Any, channels: int) -> Any:
    """Convert a tensor of images or FileImages to 1 or 3 channels: RGB to grey by the mean, grey to
    RGB by repetition."""
    if isinstance(images, FileImages):
        return replace(images, channels=channels)
    if images.shape[1] == 3 and channels == 1:
        return images.float().mean(1, keepdim=True).round().to(torch.uint8)
    if images.shape[1] == 1 and channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    return images


def histogram(images: UInt8[Tensor, "n c h w"]) -> Int64[Tensor, "c 256"]:
    """Pixels of each value per channel, on the CPU."""
    return torch.stack(
        [torch.bincount(channel.flatten(), minlength=256).cpu() for channel in images.unbind(1)]
    )


# ---------------------------------------------------------------- workers


def in_workers(
    function: Callable[[Sequence[int]], Answer],
    chunks: Iterable[Sequence[int]],
    workers: int,
    pin: bool = False,
) -> Iterator[Answer]:
    """`function(chunk)` of each chunk, in order, computed ahead by torch's DataLoader.

    Args:
        workers: Processes; 0 computes in this one.
        pin: Give tensors in pinned memory.

    Raises:
        ValueError: A ValueError, OSError or MemoryError of `function`, with its message; a worker
            has been killed.
    """
    loader = DataLoader(
        _Calls(function),
        batch_size=None,
        sampler=chunks,
        collate_fn=_unchanged,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_parent,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=pin,
        generator=torch.Generator(),  # else it draws from the global one
    )
    try:
        for answer in loader:
            if isinstance(answer, _Failure):
                raise ValueError(answer.message)
            yield answer
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError(
            f"A process that decodes images has ended ({' '.join(str(error).split())}). Give it "
            "more memory, shared memory (/dev/shm) included, or set splits.workers=0."
        ) from error


def _unchanged(answer: Answer) -> Answer:
    return answer


class _Failure(NamedTuple):
    message: str


class _Calls(TorchDataset):
    def __init__(self, function: Callable[[Sequence[int]], Any]) -> None:
        self.function = function

    def __getitem__(self, chunk: Sequence[int]) -> Any:
        try:
            return self.function(chunk)
        except (ValueError, OSError) as error:
            return _Failure(str(error))
        except MemoryError:
            return _Failure("There is not enough memory to decode a batch. Lower batch or size.")


def _leave_signals_to_parent(worker: int) -> None:
    """A terminal or a job scheduler signals the workers too, which the parent needs to finish its
    step; they end when it does."""
    for name in STOPPING:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
