"""Training, validation and test images of a data set: load them, choose classes, images per class
and held-out images."""

import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from dreamsa.device import available_cores
from dreamsa.randomness import generator_for
from train_cls.config import DataConfig
from train_cls.data.arrays import Pool, Source
from train_cls.data.files import abbreviate, plural
from train_cls.data.images import FileImages, Images, Survey
from train_cls.data.sources import open_source

log = logging.getLogger(__name__)
MAX_UNREADABLE = 0.01
"""Max fraction of the images of a split, but at least one image, that are passed over because they
cannot be read."""


class DataLost(ValueError):
    """Images that were there when the data set was opened cannot be read any more."""


@dataclass(frozen=True, eq=False)
class Dataset:
    images: Images
    """In memory, or files that are decoded when they are needed."""
    labels: Int64[Tensor, " n"]
    """Indices into `classes`."""
    classes: tuple[str, ...]
    fingerprint: str = ""
    """See `Pool.fingerprint`; including unreadable images."""
    unreadable: Mapping[int, str] = field(default_factory=dict)
    """Why images are left out, by their position before."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Dataset":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def select(self, index: Int64[Tensor, " k"] | Bool[Tensor, " n"]) -> "Dataset":
        """The images at these positions, or where a mask is True, in memory; the classes stay the
        same."""
        return Dataset(self.images[index], self.labels[index], self.classes)

    def batches(
        self, order: Sequence[Int64[Tensor, " b"]]
    ) -> Iterator[tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]]:
        """Images and labels at the positions of each batch; files are decoded ahead by workers.

        Raises:
            DataLost: A file cannot be read any more.
        """
        device, images = self.labels.device, self.images
        if isinstance(images, FileImages):
            parts = images.batches(order)
        else:
            parts = (images[positions.to(device)] for positions in order)
        try:
            for positions, part in zip(order, parts, strict=True):
                yield part, self.labels[positions.to(device)]
        except ValueError as error:
            raise DataLost(str(error)) from error


class Splits(NamedTuple):
    train: Dataset
    validation: Dataset
    """May be empty."""
    test: Dataset


def load_splits(
    source: str | Path,
    config: DataConfig | None = None,
    surveys: Mapping[str, Survey] | None = None,
) -> Splits:
    """Load the splits of "digits", a folder, a .zip or an .npz file (see `train_cls.data.sources`).

    The choice of images is a function of the seed and the file names. The training images of a
    class for a smaller `per_class` are a subset of those for a larger one, and do not depend on the
    other classes; neither do the validation images. Only chosen image files are decoded. If they
    take more memory than `config.resident`, they stay files. What is passed over is logged.

    Args:
        surveys: Of earlier calls, by fingerprint: these files are not read for another survey.

    Raises:
        ValueError: One sentence: what was found, what was expected, what to do.
    """
    config = config or DataConfig()
    with _reading(source):
        found = open_source(source, config.size)
        chosen = choose(found, source, config)
        files = [d.images for d in chosen.values() if isinstance(d.images, FileImages)]
        total = sum(images.shape.numel() for images in files)
        stream = total > config.resident * 2**30
        if stream:
            _log_once(
                f"{source}: {plural(sum(map(len, files)), 'image')} would take "
                f"{total / 2**30:,.3g} GiB of memory, more than splits.resident="
                f"{config.resident:g}, and are streamed."
            )
        read = {
            name: readable(data, f"{source}: {name}", config, stream, surveys or {})
            for name, data in chosen.items()
        }
    train = read["train"]
    splits = Splits(train, read.get("validation", train.select(torch.arange(0))), read["test"])
    for name, split in splits._asdict().items():
        if split.images.shape[1:] != train.images.shape[1:]:
            found_size, size = (" x ".join(map(str, d.images.shape[2:])) for d in (split, train))
            raise ValueError(
                f"{source}: {name} images are {found_size} pixels, train images {size}. Set size "
                "to resize them."
            )
    for note in found.notes:
        _log_once(note)
    return splits


@contextmanager
def _reading(source: str | Path) -> Iterator[None]:
    """Failures of the system as a ValueError that names the data set."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{source} cannot be read: {error}. Check that it exists and is readable."
        ) from error
    except (MemoryError, RuntimeError) as error:  # torch raises the latter
        reason = (str(error).splitlines() or ["there is not enough"])[0]
        raise ValueError(
            f"{source} does not fit into memory: {reason}. Set size, lower per_class, or lower "
            "splits.resident to stream image files."
        ) from error


@cache
def _log_once(message: str) -> None:
    log.warning(message)


def choose(found: Source, source: str | Path, config: DataConfig) -> dict[str, Dataset]:
    """The chosen images of each split that has any, files not yet decoded.

    Raises:
        ValueError: As load_splits.
    """
    kept = choose_classes(found.classes, config.only_classes)
    if len(kept) < 2:
        raise ValueError(
            f"{source} has only the class {found.classes[kept[0]]} left. A classifier "
            "needs at least two."
        )
    classes = tuple(found.classes[i] for i in kept)
    members = [positions_of(found.train, label) for label in kept]
    train, validation = choose_images(members, classes, config)
    chosen = {"train": take(found.train, train, kept, classes)}
    if len(validation):
        chosen["validation"] = take(found.train, validation, kept, classes)
    elif found.validation is not None:
        every = positions_of_all(found.validation, kept)
        chosen["validation"] = take(found.validation, every, kept, classes)
    test = choose_test_images(found, kept, config.test_per_class)
    chosen["test"] = take(found.test, test, kept, classes)
    for name in ("train", "test"):
        if len(chosen[name]) == 0:
            raise ValueError(
                f"{source}: the {name} split has no image of {abbreviate(classes)}. Choose other "
                "classes."
            )
    return chosen


def readable(
    data: Dataset, name: str, config: DataConfig, stream: bool, surveys: Mapping[str, Survey]
) -> Dataset:
    """Decode image files into memory, or check them all if they stay files; without the ones that
    cannot be read.

    Raises:
        ValueError: Images of different sizes, or as `without`.
    """
    files = data.images
    if not isinstance(files, FileImages):
        return data
    files = replace(files, workers=available_workers(config))
    if stream:
        survey = surveys.get(data.fingerprint) or files.survey()
        images, unreadable = replace(files, histogram=survey.histogram), survey.unreadable
    else:
        images, unreadable = files.load()
    data = replace(data, images=images)
    return without(data, unreadable, name) if unreadable else data


def without(data: Dataset, unreadable: Mapping[int, str], name: str) -> Dataset:
    """Pass over these images, which cannot be read, and log it.

    Args:
        unreadable: The reason by position.

    Raises:
        ValueError: More than MAX_UNREADABLE of all, or all of a class.
    """
    kept = torch.tensor([i for i in range(len(data)) if i not in unreadable], dtype=torch.int64)
    lost = sorted(set(data.labels.tolist()) - set(data.labels[kept].tolist()))
    limit = ""
    if len(unreadable) > max(1, int(MAX_UNREADABLE * len(data))):
        limit = f"at most {MAX_UNREADABLE:.0%} are passed over"
    if lost:
        limit = f"no image of {abbreviate(data.classes[i] for i in lost)} is left"
    count = f"{len(unreadable):,} of {plural(len(data), 'image')}"
    reasons = " ".join(list(unreadable.values())[:10])
    if limit:
        raise ValueError(f"{name}: {count} cannot be read, and {limit}: {reasons}")
    _log_once(f"{name}: passed over {count} that cannot be read: {reasons}")
    if isinstance(data.images, FileImages):
        files = data.images
        images = replace(files.select(kept.tolist()), histogram=files.histogram)
    else:
        images = data.images[kept]
    return replace(data, images=images, labels=data.labels[kept], unreadable=unreadable)


def available_workers(config: DataConfig) -> int:
    """Processes that decode images: as set, or one for each core, at most 8."""
    return min(available_cores(), 8) if config.workers is None else config.workers


def count_training_images(source: str | Path, config: DataConfig) -> int:
    """Number of training images that `load_splits` gives without a validation split; decodes none.

    Raises:
        ValueError: As load_splits.
    """
    with _reading(source):
        found = open_source(source, config.size)
    kept = choose_classes(found.classes, config.only_classes)
    return config.per_class * len(kept) or len(positions_of_all(found.train, kept))


def choose_classes(classes: Sequence[str], wanted: str) -> list[int]:
    """Positions of the classes in `wanted` (see DataConfig.only_classes), ascending.

    Names take precedence over positions: for digits, "3" is the digit 3 in any order of the
    classes.

    Raises:
        ValueError: An entry that is neither (suggests the nearest name), or a descending range.
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
            + (f"Did you mean {near[0]!r}?" if near else f"The classes are {abbreviate(classes)}.")
        )

    kept: set[int] = set()
    for entry in (part.strip() for part in wanted.split(",")):
        match = None if entry in positions else re.fullmatch(r"(\d+)\s*-\s*(\d+)", entry)
        first, last = (position(match[1]), position(match[2])) if match else (position(entry),) * 2
        if first > last:
            raise ValueError(
                f"only_classes: the range {entry!r} is descending. Write the smaller number first."
            )
        kept.update(range(first, last + 1))
    return sorted(kept)


def choose_images(
    members: Sequence[Int64[Tensor, " _"]], classes: Sequence[str], config: DataConfig
) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " validation"]]:
    """Positions of the training and the validation images, ascending; `members` are the positions
    of each class.

    Each class is shuffled on its own: training images are the first ones, validation images the
    last.
    """
    held_out = stratified([len(positions) for positions in members], config.validation)
    train, validation = [], []
    for name, positions, held in zip(classes, members, held_out, strict=True):
        count = config.per_class or len(positions) - held
        if count < 1 or count + held > len(positions):
            raise ValueError(
                f"Class {name} has {len(positions)} training images, but {max(count, 1)} are "
                f"needed for training and {held} for "
                "validation. Lower per_class or validation."
            )
        order = torch.randperm(
            len(positions), generator=generator_for(config.seed, 0, f"images of class {name}")
        )
        train.append(positions[order[:count]])
        validation.append(positions[order[len(order) - held :]])
    return torch.cat(train).sort().values, torch.cat(validation).sort().values


def choose_test_images(found: Source, kept: Sequence[int], per_class: int) -> Int64[Tensor, " k"]:
    """Positions of the test images of the kept classes, ascending; at most `per_class` of each
    class unless it is 0."""
    chosen = []
    for label in kept:
        positions = positions_of(found.test, label)
        order = torch.randperm(
            len(positions),
            generator=generator_for(0, 0, f"test images of class {found.classes[label]}"),
        )
        chosen.append(positions[order[: per_class or len(positions)]])
    return torch.cat(chosen).sort().values


def stratified(sizes: Sequence[int], total: int) -> list[int]:
    """Divide `total` in proportion to `sizes`, rounded by the largest remainder (the first one on a
    tie).

    Raises:
        ValueError: `total` exceeds the sum of `sizes`.
    """
    everything = sum(sizes)
    if total > everything:
        raise ValueError(
            f"validation={total} is more than the {everything} training images. Lower it."
        )
    parts = [total * size // everything for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(total * sizes[i] % everything))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def positions_of(pool: Pool, label: int) -> Int64[Tensor, " k"]:
    return (pool.labels == label).nonzero().flatten()


def positions_of_all(pool: Pool, kept: Sequence[int]) -> Int64[Tensor, " k"]:
    """Positions of every image of the kept classes."""
    return torch.isin(pool.labels, torch.tensor(kept)).nonzero().flatten()


def take(
    pool: Pool, positions: Int64[Tensor, " k"], kept: Sequence[int], classes: tuple[str, ...]
) -> Dataset:
    """The images at these positions; labels become indices into the kept classes."""
    return Dataset(
        pool.read(positions),
        torch.searchsorted(torch.tensor(kept), pool.labels[positions]),
        classes,
        pool.fingerprint(positions),
    )
