"""Uniform access to the files of a folder or a zip archive, and decoding of image files.

Archives are read in memory and never unpacked, so no path inside one can reach outside it.
"""

import io
import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

MAX_FILE_BYTES = 64 * 2**20
"""Max size of an image file."""
MAX_DATASET_BYTES = 16 * 2**30
"""Max size of arrays and decoded images, which are held in memory."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "PPM",
    "TIFF",
    "WEBP",
)  # Pillow's rarer decoders are the vulnerable ones
WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@runtime_checkable
class Tree(Protocol):
    """Folders and files under a root. Paths are relative and separated by "/"; "" is the root;
    hidden names are omitted."""

    name: str

    def folders(self, path: str) -> list[str]:
        """Sorted names of the folders in `path`; empty if it does not exist."""
        ...

    def files(self, path: str) -> list[str]:
        """Sorted names of the files in `path`; empty if it does not exist."""
        ...

    def read(self, path: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """A file's content. Raises ValueError if it is damaged or larger than `limit` bytes."""
        ...


class FolderTree:
    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)

    def folders(self, path: str) -> list[str]:
        return self._names(path, folders=True)

    def files(self, path: str) -> list[str]:
        return self._names(path, folders=False)

    def read(self, path: str, limit: int = MAX_FILE_BYTES) -> bytes:
        where = self.root / path
        if where.stat().st_size > limit:
            raise too_large(f"{where}", where.stat().st_size, limit)
        return where.read_bytes()

    def _names(self, path: str, folders: bool) -> list[str]:
        where = self.root / path
        if not where.is_dir():
            return []
        with os.scandir(where) as entries:
            return sorted(
                e.name
                for e in entries
                if e.name[0] != "." and (e.is_dir() if folders else e.is_file())
            )


class ZipTree:
    def __init__(self, path: Path) -> None:
        """Raises ValueError if the file is no zip archive, or has an entry outside itself."""
        self.name = str(path)
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise ValueError(
                f"{path} is not a readable zip file ({error}). Download or pack it again."
            ) from error
        self._folders: dict[str, set[str]] = {"": set()}
        self._files: dict[str, dict[str, zipfile.ZipInfo]] = {}
        for info in self.archive.infolist():
            parts = info.filename.split("/")
            if info.filename.startswith("/") or ".." in parts:
                raise ValueError(
                    f"{path} holds {info.filename!r}, which points outside the archive. Do not "
                    "use this file."
                )
            if (
                not info.is_dir()
                and parts[0] != "__MACOSX"
                and not any(part.startswith(".") for part in parts)
            ):
                self._add(parts, info)

    def _add(self, parts: list[str], info: zipfile.ZipInfo) -> None:
        for i in range(len(parts) - 1):
            self._folders.setdefault("/".join(parts[:i]), set()).add(parts[i])
        self._files.setdefault("/".join(parts[:-1]), {})[parts[-1]] = info

    def folders(self, path: str) -> list[str]:
        return sorted(self._folders.get(path, ()))

    def files(self, path: str) -> list[str]:
        return sorted(self._files.get(path, ()))

    def read(self, path: str, limit: int = MAX_FILE_BYTES) -> bytes:
        folder, _, file = path.rpartition("/")
        info = self._files[folder][file]
        if info.file_size > limit:  # zipfile never inflates beyond this size
            raise too_large(f"{self.name}: {path}", info.file_size, limit)
        try:
            return self.archive.read(info)
        except Exception as error:  # BadZipFile, zlib.error, RuntimeError (encrypted), ...
            raise ValueError(
                f"{self.name}: {path} cannot be read ({error}). Download or pack the archive again."
            ) from error


def too_large(name: str, found: int, limit: int) -> ValueError:
    return ValueError(
        f"{name} takes {found:,} bytes in memory, more than the {limit:,} allowed. Remove it or "
        "make it smaller."
    )


def join(*parts: str) -> str:
    """Join the parts of a path in a Tree, without the empty ones."""
    return "/".join(part for part in parts if part)


def read_text(tree: Tree, path: str) -> str:
    """Raises ValueError if the file is not UTF-8."""
    try:
        return tree.read(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{join(tree.name, path)} is not text in UTF-8 ({error}). Download it again."
        ) from error


def image_files(tree: Tree, folder: str) -> list[str]:
    """Sorted paths of the image files, by suffix, in `folder` and in its subfolder `images`
    (Tiny-ImageNet's layout)."""
    return [
        join(place, name)
        for place in (folder, join(folder, "images"))
        for name in tree.files(place)
        if name.lower().endswith(SUFFIXES)
    ]


def decode_image(data: bytes, name: str, size: int = 0) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image file to RGB; a `size` above 0 resizes to size x size (bilinear, antialiased).

    Grey, palette, CMYK and transparent images are converted; transparency is dropped and the EXIF
    orientation ignored.

    Raises:
        ValueError: Damaged, an unknown format, more than 8 bits per channel, or more pixels than
            Pillow's MAX_IMAGE_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.mode in WIDE_MODES:
                    raise ValueError(f"its mode is {image.mode}, expected 8 bits per channel")
                image = image.convert("RGB")
                if size:
                    image = image.resize((size, size), Image.Resampling.BILINEAR)
                return np.asarray(image)
    except Exception as error:  # OSError, SyntaxError, struct.error, zlib.error, IndexError, ...
        raise ValueError(
            f"{name} cannot be read as an image ({error}). Replace or remove it."
        ) from error


def read_images(tree: Tree, paths: Sequence[str], size: int = 0) -> UInt8[Tensor, "n 3 h w"]:
    """Decode image files into one tensor; without `size`, all must have the same size.

    Raises:
        ValueError: An unreadable file, different sizes, or more than MAX_DATASET_BYTES in total.
    """
    images = torch.empty(0, 3, size, size, dtype=torch.uint8)
    for i, path in enumerate(paths):
        pixels = decode_image(tree.read(path), f"{tree.name}: {path}", size)
        height, width = pixels.shape[:2]
        if i == 0:
            if len(paths) * pixels.size > MAX_DATASET_BYTES:
                raise ValueError(
                    f"{len(paths)} images of {height} x {width} pixels need "
                    f"{len(paths) * pixels.size:,} bytes of memory, more than the "
                    f"{MAX_DATASET_BYTES:,} allowed. Set size, or lower per_class."
                )
            images = torch.empty(len(paths), 3, height, width, dtype=torch.uint8)
        elif (height, width) != tuple(images.shape[2:]):
            raise ValueError(
                f"{tree.name}: {path} is {height} x {width} pixels and {paths[0]} is "
                f"{images.shape[2]} x {images.shape[3]}. "
                "Images must have the same size; set size to resize them."
            )
        images[i] = torch.tensor(pixels).movedim(-1, 0)
    return images
