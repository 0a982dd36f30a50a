"""Images held in memory as uint8: which ones (splits), in which order (batches), and how they vary (augmentation).

    splits = load_splits("digits", DataConfig(per_class=20, validation=500))
    for positions in batch_order(len(splits.train), 32, epoch, seed):
        images = augment(splits.train.images[positions], generator_for(seed, step, "augment"), flip=False, pad=1)

Where the images come from is in data_sources, data_arrays and data_files.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from dreamsa.randomness import generator_for
from train_cls.data_arrays import Pool, Source, listed
from train_cls.data_sources import open_source


@dataclass(frozen=True, eq=False)
class Dataset:
    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    """Positions in `classes`."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Dataset":
        return Dataset(self.images.to(device), self.labels.to(device), self.classes)

    def select(self, index: Int64[Tensor, " k"] | Bool[Tensor, " n"]) -> "Dataset":
        """The images at these positions (or where `index` is true), with the same classes."""
        return Dataset(self.images[index], self.labels[index], self.classes)


class Splits(NamedTuple):
    train: Dataset
    validation: Dataset
    """May be empty."""
    test: Dataset


@dataclass(frozen=True)
class DataConfig:
    per_class: int = 0
    """Training images of each class, those left over unused; 0 takes all."""
    test_per_class: int = 0
    """Test images of each class, or fewer where there are not so many: always the same ones, whatever the seed; 0 takes all."""
    validation: int = 0
    """Images taken out of the training split for validation, each class in proportion; 0 takes none, or the source's own."""
    only_classes: str = ""
    """Classes to keep, by name or position from 0, with commas, ranges by a hyphen: "0-4" or "cat,dog". Empty keeps all."""
    size: int = 0
    """Resize images to size x size pixels; 0 keeps them as they are, when all must be equal."""
    seed: int = 0
    """Of the choice of training and validation images. The test split never depends on it."""

    def __post_init__(self) -> None:
        for name in ("per_class", "test_per_class", "validation", "size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if self.size > 1024:
            raise ValueError(f"size must be at most 1024 pixels, got {self.size}: the whole data set is held in memory.")


def load_splits(source: str | Path, config: DataConfig | None = None) -> Splits:
    """Training, validation and test images of "digits", a folder, a .zip or an .npz file (see data_sources).

    The choice is a function of the seed and the file names. Of one class, the training images for a smaller `per_class` are among
    those for a larger one, and neither they nor the validation images depend on which other classes are kept. Only chosen image
    files are decoded.

    Raises:
        ValueError: One sentence on what was found, what was wanted and what to do.
    """
    config = config or DataConfig()
    try:
        with open_source(source, config.size) as found:
            kept = choose_classes(found.classes, config.only_classes)
            if len(kept) < 2:
                raise ValueError(f"{source} leaves one class, {found.classes[kept[0]]}. A classifier needs at least two.")
            classes = tuple(found.classes[i] for i in kept)
            members = [positions_of(found.train, label) for label in kept]
            train, validation = choose_images(members, classes, config)
            dataset = take(found.train, train, kept, classes)
            if len(validation):
                held_out = take(found.train, validation, kept, classes)
            elif found.validation is not None:
                held_out = take(found.validation, all_of(found.validation, kept), kept, classes)
            else:
                held_out = dataset.select(validation)
            splits = Splits(dataset, held_out, take(found.test, test_images(found, kept, config.test_per_class), kept, classes))
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error}. Check that it is there and that you may read it.") from error
    for name, split in splits._asdict().items():
        if len(split) == 0 and name != "validation":
            raise ValueError(f"{source}: the {name} split has no image of {listed(classes)}. Choose other classes.")
        if split.images.shape[1:] != dataset.images.shape[1:]:
            found_size, size = (" x ".join(map(str, d.images.shape[2:])) for d in (split, dataset))
            raise ValueError(f"{source}: {name} images are {found_size} pixels, train images {size}. Set size to resize them.")
    return splits


def count_training_images(source: str | Path, config: DataConfig) -> int:
    """How many images `load_splits` would train on with nothing held out for validation; no image is decoded.

    Raises:
        ValueError: As load_splits.
    """
    with open_source(source, config.size) as found:
        kept = choose_classes(found.classes, config.only_classes)
        return config.per_class * len(kept) or len(all_of(found.train, kept))


def choose_classes(classes: Sequence[str], wanted: str) -> list[int]:
    """Positions of the classes that `wanted` names (see DataConfig.only_classes), ascending.

    A name goes before a position, so for digits "3" is the digit 3 however the classes are sorted.

    Raises:
        ValueError: An entry that is neither, with the nearest name; a range that runs backwards.
    """
    if not wanted.strip():
        return list(range(len(classes)))
    positions = {name: i for i, name in enumerate(classes)}

    def position(entry: str) -> int:
        if entry in positions:
            return positions[entry]
        if entry.isascii() and entry.isdigit() and int(entry) < len(classes):
            return int(entry)
        near = difflib.get_close_matches(entry, classes, n=1)
        raise ValueError(
            f"only_classes: {entry!r} is neither a class nor a position below {len(classes)}. "
            + (f"Did you mean {near[0]!r}?" if near else f"The classes are {listed(classes)}.")
        )

    kept: set[int] = set()
    for entry in (part.strip() for part in wanted.split(",")):
        match = None if entry in positions else re.fullmatch(r"(\d+)\s*-\s*(\d+)", entry)
        first, last = (position(match[1]), position(match[2])) if match else (position(entry),) * 2
        if first > last:
            raise ValueError(f"only_classes: the range {entry!r} runs backwards. Write the smaller number first.")
        kept.update(range(first, last + 1))
    return sorted(kept)


def choose_images(
    members: Sequence[Int64[Tensor, " _"]], classes: Sequence[str], config: DataConfig
) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " validation"]]:
    """Positions of the training and the validation images, ascending; `members` are the positions of each class.

    Each class is shuffled by itself; training images come from the front and validation images from the back.
    """
    held_out = stratified([len(positions) for positions in members], config.validation)
    train, validation = [], []
    for name, positions, held in zip(classes, members, held_out, strict=True):
        count = config.per_class or len(positions) - held
        if count < 1 or count + held > len(positions):
            raise ValueError(
                f"Class {name} has {len(positions)} training images, wanted {max(count, 1)} to train on and {held} for validation. "
                "Lower per_class or validation."
            )
        order = torch.randperm(len(positions), generator=generator_for(config.seed, 0, f"images of class {name}"))
        train.append(positions[order[:count]])
        validation.append(positions[order[len(order) - held :]])
    return torch.cat(train).sort().values, torch.cat(validation).sort().values


def test_images(found: Source, kept: Sequence[int], per_class: int) -> Int64[Tensor, " k"]:
    """Positions of the test images of the kept classes, ascending; at most `per_class` of each, unless it is 0."""
    chosen = []
    for label in kept:
        positions = positions_of(found.test, label)
        order = torch.randperm(len(positions), generator=generator_for(0, 0, f"test images of class {found.classes[label]}"))
        chosen.append(positions[order[: per_class or len(positions)]])
    return torch.cat(chosen).sort().values


def stratified(sizes: Sequence[int], total: int) -> list[int]:
    """`total` shared out in proportion to `sizes`, each share rounded so that they add up (largest remainder, the first on a tie).

    Raises:
        ValueError: `total` is more than there is.
    """
    everything = sum(sizes)
    if total > everything:
        raise ValueError(f"validation={total} is more than the {everything} training images there are. Lower it.")
    shares = [total * size // everything for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(total * sizes[i] % everything))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def positions_of(pool: Pool, label: int) -> Int64[Tensor, " k"]:
    return (pool.labels == label).nonzero().flatten()


def all_of(pool: Pool, kept: Sequence[int]) -> Int64[Tensor, " k"]:
    """Positions of every image of the kept classes."""
    return torch.isin(pool.labels, torch.tensor(kept)).nonzero().flatten()


def take(pool: Pool, positions: Int64[Tensor, " k"], kept: Sequence[int], classes: tuple[str, ...]) -> Dataset:
    """Read these images; labels count the kept classes from 0."""
    return Dataset(pool.read(positions), torch.searchsorted(torch.tensor(kept), pool.labels[positions]), classes)


def batch_order(count: int, batch: int, epoch: int, seed: int, drop_last: bool = False) -> list[Int64[Tensor, " k"]]:
    """Positions of every batch of an epoch, shuffled: each of `count` images once, a function of (seed, epoch) alone.

    The last batch may be smaller, or is left out with `drop_last`.
    """
    if count < 1 or batch < 1:
        raise ValueError(f"Wanted at least 1 image and a batch of at least 1, got {count} images and a batch of {batch}.")
    order = torch.randperm(count, generator=generator_for(seed, epoch, "batches"))
    batches = list(order.split(batch))
    return batches[:-1] if drop_last and len(batches[-1]) < batch else batches


def augment(images: UInt8[Tensor, "b c h w"], rng: torch.Generator, flip: bool, pad: int) -> UInt8[Tensor, "b c h w"]:
    """Shift each image by up to `pad` pixels, zeros coming in, and mirror it left to right with probability 1/2 if `flip`.

    Padding by `pad` and cropping at random, as in He et al. (arXiv:1512.03385, section 4.2). On the images' device; the random
    numbers are drawn on the generator's, so that a generator on the CPU gives the same images on every device.
    """
    b, _, h, w = images.shape
    device = images.device
    if pad:
        tops, lefts = torch.randint(0, 2 * pad + 1, (2, b), generator=rng, device=rng.device).to(device)
        windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, h, 1).unfold(3, w, 1)  # b c 2pad+1 2pad+1 h w, a view
        images = windows.movedim(1, 3)[torch.arange(b, device=device), tops, lefts]  # b c h w
    if flip:
        mirrored = torch.rand(b, generator=rng, device=rng.device).to(device) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    return images


def channel_stats(images: UInt8[Tensor, "n c h w"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all images and positions, on the scale of [0, 1].

    Exact: from counts of the 256 values. The deviation is at least 1/255, so that one can divide by it.
    """
    values = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).cpu().double() / channel.numel()
        mean = (share * values).sum()
        means.append(mean.item() / 255)
        stds.append(max((share * (values - mean) ** 2).sum().sqrt().item() / 255, 1 / 255))
    return tuple(means), tuple(stds)
