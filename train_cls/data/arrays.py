"""Data sets of arrays: CIFAR's binary files, IDX (MNIST) and .npz. Reading them never runs code."""

import gzip
import hashlib
import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from train_cls.data.files import (
    MAX_DATASET_BYTES,
    Tree,
    abbreviate,
    check_inflation,
    join,
    read_at_most,
    read_text,
    too_large,
)
from train_cls.data.images import Images


class Pool(NamedTuple):
    """The images of one split, read on demand."""

    labels: Int64[Tensor, " n"]
    read: Callable[[Int64[Tensor, " k"]], Images]
    """Images at the given positions."""
    fingerprint: Callable[[Int64[Tensor, " k"]], str]
    """A hash that tells whether these are the same images with the same labels: of the values of
    arrays, of the names and sizes of files."""


class Source(NamedTuple):
    classes: tuple[str, ...]
    train: Pool
    validation: Pool | None
    """The source's own validation split, if it also has a test split."""
    test: Pool
    notes: tuple[str, ...] = ()
    """What a user should know of how it was read, in sentences."""


def from_arrays(
    name: str,
    splits: Mapping[str, tuple[UInt8[Tensor, "n c h w"], Shaped[Tensor, " m"]]],
    size: int,
    names: Sequence[str] = (),
) -> Source:
    """A source from arrays. Its classes are the labels of the training split, named `names[label]`
    or by their number.

    Raises:
        ValueError: An empty split, unequal numbers of images and labels, labels without a name or
            not in the training split, or images of different shapes.
    """
    train_images, train_labels = splits["train"]
    values = train_labels.unique()
    for split, (images, labels) in splits.items():
        if len(images) != len(labels) or len(images) == 0:
            raise ValueError(
                f"{name}: the {split} split has {len(images)} images and {len(labels)} labels. "
                "Both must be equal and above 0."
            )
        if images.shape[1:] != train_images.shape[1:]:
            raise ValueError(
                f"{name}: {split} images are {list(images.shape[1:])}, train images "
                f"{list(train_images.shape[1:])}."
            )
        unknown = sorted(set(labels.unique().tolist()) - set(values.tolist()))
        if unknown:
            raise ValueError(
                f"{name}: the {split} split has labels that the train split lacks: "
                f"{abbreviate(map(str, unknown))}."
            )
    if names and int(values[-1]) >= len(names):
        raise ValueError(
            f"{name}: label {int(values[-1])} has no name, there are {len(names)} names. Download "
            "the data again."
        )
    classes = tuple(str(names[label]) if names else str(label) for label in values.tolist())
    pools = {
        split: in_memory(images, torch.searchsorted(values, labels), size)
        for split, (images, labels) in splits.items()
    }
    return Source(classes, pools["train"], pools.get("validation"), pools["test"])


def in_memory(images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], size: int) -> Pool:
    def fingerprint(positions: Int64[Tensor, " k"]) -> str:
        digest = hashlib.sha256(repr(tuple(images.shape[1:])).encode())
        digest.update(labels[positions].contiguous().numpy().data)
        for part in positions.split(4096):
            digest.update(images[part].contiguous().numpy().data)
        return digest.hexdigest()

    return Pool(labels, lambda positions: resized(images[positions], size), fingerprint)


def resized(images: UInt8[Tensor, "n c h w"], size: int) -> UInt8[Tensor, "n c h2 w2"]:
    """Resize to size x size (bilinear, antialiased); unchanged if `size` is 0."""
    if size == 0 or tuple(images.shape[2:]) == (size, size) or len(images) == 0:
        return images
    parts = [
        F.interpolate(part, (size, size), mode="bilinear", antialias=True)
        for part in images.split(4096)
    ]
    return torch.cat(parts)


# ---------------------------------------------------------------- CIFAR


def has_cifar(tree: Tree, base: str) -> bool:
    return any(re.fullmatch(r"data_batch_\d+\.bin|train\.bin", name) for name in tree.files(base))


def load_cifar(tree: Tree, base: str, size: int) -> Source:
    """CIFAR-10's data_batch_1.bin ... and test_batch.bin, or CIFAR-100's train.bin and test.bin
    with their fine labels.

    A record is 1 label byte (2 in CIFAR-100: coarse, fine) and 3 x 32 x 32 bytes of pixels. Class
    names come from batches.meta.txt or fine_label_names.txt if present.
    """
    files = tree.files(base)
    if "train.bin" in files:
        train, test, names, label_bytes = ["train.bin"], "test.bin", "fine_label_names.txt", 2
    else:
        batches = sum(bool(re.fullmatch(r"data_batch_\d+\.bin", name)) for name in files)
        train = [f"data_batch_{i + 1}.bin" for i in range(batches)]
        test, names, label_bytes = "test_batch.bin", "batches.meta.txt", 1
    missing = [name for name in (*train, test) if name not in files]
    if missing:
        raise ValueError(
            f"{join(tree.name, base)} lacks {abbreviate(missing)}. Unpack the archive again."
        )
    total = sum(tree.size(join(base, name)) for name in (*train, test))
    if total > MAX_DATASET_BYTES:
        raise too_large(join(tree.name, base), total, MAX_DATASET_BYTES)
    images, labels = zip(
        *(cifar_records(tree, join(base, name), label_bytes) for name in (*train, test)),
        strict=True,
    )
    known = read_text(tree, join(base, names)).split("\n") if names in files else []
    return from_arrays(
        join(tree.name, base),
        {
            "train": (torch.cat(images[:-1]), torch.cat(labels[:-1])),
            "test": (images[-1], labels[-1]),
        },
        size,
        [name.strip() for name in known if name.strip()],
    )


def cifar_records(
    tree: Tree, path: str, label_bytes: int
) -> tuple[UInt8[Tensor, "n 3 32 32"], UInt8[Tensor, " n"]]:
    """Images, and the last label byte of each record."""
    data, record = tree.read(path, MAX_DATASET_BYTES), label_bytes + 3 * 32 * 32
    if len(data) == 0 or len(data) % record:
        raise ValueError(
            f"{join(tree.name, path)} has {len(data):,} bytes, expected a multiple of {record:,}. "
            "Download it again."
        )
    records = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, record)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1].clone()


def is_pickle(name: str) -> bool:
    return (
        name.endswith((".pkl", ".pickle"))
        or re.fullmatch(r"data_batch_\d+|test_batch|batches\.meta", name) is not None
    )


def has_pickle(tree: Tree, base: str) -> bool:
    files = tree.files(base)
    return any(is_pickle(name) for name in files) or {"train", "test", "meta"} <= set(files)


def load_pickle(tree: Tree, base: str, size: int) -> Source:
    raise pickle_refused(join(tree.name, base))


def pickle_refused(name: str) -> ValueError:
    return ValueError(
        f"{name} holds Python pickles, which can run arbitrary code when opened and are not "
        "supported. Download CIFAR's binary "
        "version (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz) and unpack it."
    )


# ---------------------------------------------------------------- IDX (MNIST)

IDX = re.compile(r"(?:.+[-_])?(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")


def has_idx(tree: Tree, base: str) -> bool:
    return any((match := IDX.fullmatch(name)) and match[2] == "images" for name in tree.files(base))


def load_idx(tree: Tree, base: str, size: int) -> Source:
    """train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k (or test), plain or
    .gz; plain files take precedence."""
    files: dict[tuple[str, str], str] = {}
    for name in sorted(tree.files(base), key=lambda name: (name.endswith(".gz"), name)):
        if match := IDX.fullmatch(name):
            files.setdefault(
                ("train" if match[1] == "train" else "test", match[2]), join(base, name)
            )
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for part in ("images", "labels"):
            if (split, part) not in files:
                raise ValueError(
                    f"{join(tree.name, base)} lacks "
                    f"{prefix}-{part}-idx{3 if part == 'images' else 1}-ubyte. Add it."
                )
        images = idx_array(tree, files[split, "images"], 3)
        splits[split] = (images.unsqueeze(1), idx_array(tree, files[split, "labels"], 1))
    return from_arrays(join(tree.name, base), splits, size)


def idx_array(tree: Tree, path: str, axes: int) -> UInt8[Tensor, "..."]:
    """Read an IDX file of unsigned bytes: 0, 0, 8, number of axes, each axis as a big-endian
    uint32, then the values."""
    name, data = join(tree.name, path), tree.read(path, MAX_DATASET_BYTES)
    with gzip.open(io.BytesIO(data)) if path.endswith(".gz") else io.BytesIO(data) as file:
        try:
            header = read_at_most(file.read, 4 + 4 * axes)
            if len(header) < 4 + 4 * axes or header[:4] != bytes((0, 0, 8, axes)):
                raise ValueError(
                    f"{name} does not begin with the header of an IDX file of bytes with {axes} "
                    f"axes (0, 0, 8, {axes}). Download it again."
                )
            shape = struct.unpack(f">{axes}I", header[4:])
            count = math.prod(shape)
            if path.endswith(".gz"):
                if count > MAX_DATASET_BYTES:
                    raise too_large(name, count, MAX_DATASET_BYTES)
                check_inflation(name, len(data), count)
            values = read_at_most(file.read, count + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{name} is damaged ({error}). Download it again.") from error
    if len(values) != count:
        raise ValueError(
            f"{name} has {f'{len(values):,}' if len(values) < count else 'more'} values after its "
            f"header, which declares {shape}. Download it again."
        )
    if not count:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(values, dtype=torch.uint8).view(shape)


# ---------------------------------------------------------------- .npz

NPZ_NAMES = {
    "train": ("train_{}", "{1}_train"),
    "validation": ("val_{}", "{1}_val"),
    "test": ("test_{}", "{1}_test"),
}


def load_npz(path: Path, size: int = 0) -> Source:
    """Arrays train_images, train_labels, test_images, test_labels, or x_train, y_train, x_test,
    y_test; optionally val_* or x_val, y_val.

    Images are uint8 [n, h, w], [n, h, w, c] or [n, c, h, w] with 1 or 3 channels, labels integers
    [n] or [n, 1].
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > MAX_DATASET_BYTES:
            raise too_large(str(path), total, MAX_DATASET_BYTES)
        check_inflation(str(path), path.stat().st_size, total)
        with np.load(path, allow_pickle=False) as arrays:
            splits = {split: npz_split(path, arrays, split) for split in NPZ_NAMES}
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # BadZipFile, KeyError, EOFError, zlib.error, ...
        raise ValueError(
            f"{path} is not a readable .npz file ({error}). Write it again with numpy.savez."
        ) from error
    return from_arrays(
        str(path), {split: pair for split, pair in splits.items() if pair is not None}, size
    )


def npz_split(
    path: Path, arrays: Mapping[str, np.ndarray], split: str
) -> tuple[Tensor, Tensor] | None:
    """Images and labels of one split under either naming scheme; None if there is no validation
    split."""
    names_of = {
        letter: [form.format(part, letter) for form in NPZ_NAMES[split]]
        for part, letter in (("images", "x"), ("labels", "y"))
    }
    found = {
        letter: next((name for name in names if name in arrays), "")
        for letter, names in names_of.items()
    }
    if split == "validation" and not any(found.values()):
        return None
    for letter, name in found.items():
        if not name:
            raise ValueError(
                f"{path} has no array {' or '.join(names_of[letter])}; it holds "
                f"{abbreviate(sorted(arrays))}. Rename its arrays."
            )
    images, labels = (npz_array(path, arrays, name) for name in found.values())
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: {found['y']} is {labels.dtype} {labels.shape}, expected integers of shape "
            "(n,). Convert it."
        )
    return channels_first(path, found["x"], images), torch.tensor(labels.astype(np.int64))


def npz_array(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    try:
        return arrays[name]
    except ValueError as error:
        raise ValueError(
            f"{path}: {name} cannot be read without running code, or is damaged ({error}). Save "
            "it as plain numbers."
        ) from error


def channels_first(path: Path, name: str, images: np.ndarray) -> UInt8[Tensor, "n c h w"]:
    """Convert [n, h, w], [n, h, w, c] or [n, c, h, w] to [n, c, h, w]."""
    expected = (
        "Expected uint8 in [0, 255] of shape (n, h, w), (n, h, w, c) or (n, c, h, w) with 1 or 3 "
        "channels. Convert it."
    )
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"{path}: {name} is {images.dtype} {images.shape}. {expected}")
    if images.ndim == 3:
        return torch.tensor(images).unsqueeze(1)
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        raise ValueError(
            f"{path}: {name} has shape {images.shape}, whose channel axis is "
            f"{'ambiguous' if first else 'missing'}. {expected}"
        )
    return torch.tensor(images if first else np.moveaxis(images, -1, 1))
