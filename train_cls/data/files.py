"""Uniform access to the files of a folder or a zip archive, and decoding of image files.

Archives are read in memory and never unpacked, so no path inside one can reach outside it.
"""

import io
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

MAX_FILE_BYTES = 64 * 2**20
"""Max size of an image file."""
MAX_DATASET_BYTES = 16 * 2**30
"""Max size of arrays, which are held in memory."""
MAX_INFLATION, INFLATION_FLOOR = 300, 256 * 2**20
"""Max ratio of inflated to packed size, of data that inflate to more than the floor. Packed image
arrays rarely shrink 20-fold; deflate's limit, which bombs reach, is about 1,030."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "PPM",
    "TIFF",
    "WEBP",
)  # Pillow's rarer decoders are the vulnerable ones
WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
IMAGES = "images"
"""Name of the one folder inside a class folder that is read too (Tiny-ImageNet's layout)."""


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

    def size(self, path: str) -> int:
        """A file's size in bytes, in an archive when inflated."""
        ...

    def read(self, path: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """A file's content. Raises ValueError if it is damaged or larger than `limit` bytes."""
        ...


class FolderTree:
    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)
        self._listed: dict[str, tuple[list[str], list[str]]] = {}

    def folders(self, path: str) -> list[str]:
        return self._list(path)[0]

    def files(self, path: str) -> list[str]:
        return self._list(path)[1]

    def size(self, path: str) -> int:
        return (self.root / path).stat().st_size

    def read(self, path: str, limit: int = MAX_FILE_BYTES) -> bytes:
        if (size := self.size(path)) > limit:
            raise too_large(f"{self.root / path}", size, limit)
        return (self.root / path).read_bytes()

    def _list(self, path: str) -> tuple[list[str], list[str]]:
        """Names of the folders and the files in `path`; broken links and devices are neither."""
        if path not in self._listed:
            found: tuple[list[str], list[str]] = ([], [])
            where = self.root / path
            with os.scandir(where) if where.is_dir() else nullcontext(()) as entries:
                for entry in entries:
                    with suppress(OSError):  # a link that leads to itself
                        if entry.name[0] != "." and (entry.is_dir() or entry.is_file()):
                            found[entry.is_file()].append(entry.name)
            for names in found:
                names.sort()
            self._listed[path] = found
        return self._listed[path]


class _OwnPosition(io.RawIOBase):
    """A file to read whose position a forked process does not share."""

    def __init__(self, path: Path) -> None:
        self._file, self._at = path.open("rb"), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        end = os.fstat(self._file.fileno()).st_size
        self._at = (0, self._at, end)[whence] + offset
        if self._at < 0:
            raise ValueError(f"position {self._at} is negative")
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        data = os.pread(self._file.fileno(), len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class ZipTree:
    def __init__(self, path: Path) -> None:
        """Raises ValueError if the file is no zip archive, has an entry outside itself, or declares
        far more bytes than it can hold."""
        self.path, self.name = path, str(path)
        self._archive: zipfile.ZipFile | None = None
        try:
            entries = self._open().infolist()
        except OSError:
            raise
        except Exception as error:  # BadZipFile, NotImplementedError, struct.error, ...
            raise ValueError(
                f"{path} is not a readable zip file ({error}). Download or pack it again."
            ) from error
        check_inflation(self.name, path.stat().st_size, sum(info.file_size for info in entries))
        self._folders: dict[str, set[str]] = {"": set()}
        self._files: dict[str, dict[str, zipfile.ZipInfo]] = {}
        for info in entries:
            name = info.filename.replace("\\", "/")  # as some Windows programs write it
            parts = name.split("/")
            if name.startswith("/") or ".." in parts:
                raise ValueError(
                    f"{path} holds {info.filename!r}, which points outside the archive. Do not "
                    "use this file."
                )
            if (
                not name.endswith("/")
                and parts[0] != "__MACOSX"
                and not any(part.startswith(".") for part in parts)
            ):
                self._add(parts, info)

    def _add(self, parts: list[str], info: zipfile.ZipInfo) -> None:
        for i in range(len(parts) - 1):
            self._folders.setdefault("/".join(parts[:i]), set()).add(parts[i])
        self._files.setdefault("/".join(parts[:-1]), {})[parts[-1]] = info

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None:
            forkable = hasattr(os, "pread")
            self._archive = zipfile.ZipFile(_OwnPosition(self.path) if forkable else self.path)
        return self._archive

    def __getstate__(self) -> dict[str, Any]:  # of a worker that is not forked
        return {**self.__dict__, "_archive": None}

    def folders(self, path: str) -> list[str]:
        return sorted(self._folders.get(path, ()))

    def files(self, path: str) -> list[str]:
        return sorted(self._files.get(path, ()))

    def size(self, path: str) -> int:
        return self._info(path).file_size

    def read(self, path: str, limit: int = MAX_FILE_BYTES) -> bytes:
        info = self._info(path)
        if info.file_size > limit:  # zipfile never inflates beyond this size
            raise too_large(f"{self.name}: {path}", info.file_size, limit)
        archive = self._open()
        try:
            return archive.read(info)
        except OSError:
            raise
        except Exception as error:  # BadZipFile, zlib.error, RuntimeError (encrypted), ...
            raise ValueError(
                f"{self.name}: {path} cannot be read ({error}). Download or pack the archive again."
            ) from error

    def _info(self, path: str) -> zipfile.ZipInfo:
        folder, _, file = path.rpartition("/")
        return self._files[folder][file]


def too_large(name: str, found: int, limit: int) -> ValueError:
    return ValueError(
        f"{name} takes {found:,} bytes in memory, more than the {limit:,} allowed. Remove it or "
        "make it smaller."
    )


def check_inflation(name: str, packed: int, inflated: int) -> None:
    """Raises ValueError if `packed` bytes that declare to become `inflated` must be a bomb."""
    if inflated > INFLATION_FLOOR and inflated > MAX_INFLATION * packed:
        raise ValueError(
            f"{name} has {packed:,} bytes and declares {inflated:,}: a {inflated // packed:,}-fold "
            f"compression, where at most {MAX_INFLATION}-fold is accepted. Do not use this file, "
            "or unpack it yourself."
        )


def read_at_most(read: Callable[[int], bytes], count: int, chunk: int = 2**24) -> bytearray:
    """Up to `count` bytes of a file, by its method `read`. Takes memory for the bytes that come,
    not for `count`."""
    data = bytearray()
    while len(data) < count and (part := read(min(chunk, count - len(data)))):
        data += part
    return data


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


def abbreviate(names: Iterable[str], count: int = 5) -> str:
    """The first `count` names, comma-separated, and the number of further ones."""
    known = list(names)
    return (", ".join(known[:count]) or "nothing") + (
        f" and {len(known) - count} more" if len(known) > count else ""
    )


def plural(count: int, noun: str) -> str:
    """ "1 image", "2 images" """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def image_files(tree: Tree, folder: str) -> list[str]:
    """Sorted paths of the image files, by suffix, in `folder` and in its subfolder `images`."""
    return [
        join(place, name)
        for place in (folder, join(folder, IMAGES))
        for name in tree.files(place)
        if name.lower().endswith(SUFFIXES)
    ]


def passed_over(tree: Tree, folders: Iterable[str]) -> str:
    """How many files and folders `image_files` leaves out of these folders, and why; empty if
    none."""
    suffixes: Counter[str] = Counter()
    inner: list[str] = []
    for folder in folders:
        inner += [join(folder, name) for name in tree.folders(folder) if name != IMAGES]
        inner += [join(folder, IMAGES, name) for name in tree.folders(join(folder, IMAGES))]
        for name in tree.files(folder) + tree.files(join(folder, IMAGES)):
            if not name.lower().endswith(SUFFIXES):
                suffixes[os.path.splitext(name)[1].lower() or "no suffix"] += 1
    reasons = []
    if suffixes:
        by_count = sorted(suffixes.items(), key=lambda pair: (-pair[1], pair[0]))
        kinds = abbreviate(f"{suffix} {count}" for suffix, count in by_count)
        reasons.append(f"{plural(suffixes.total(), 'file')} of other types ({kinds})")
    if inner:
        files = plural(sum(len(tree.files(folder)) for folder in inner), "file")
        reasons.append(
            f"{plural(len(inner), 'folder')} with {files} inside class folders "
            f"({abbreviate(inner)}; only {IMAGES}/ is read there)"
        )
    return f"{tree.name}: passed over {' and '.join(reasons)}." if reasons else ""


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """An image whose header has been read; whatever is wrong with it becomes a ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that are not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                yield image
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise _unreadable(name, f"it has none of the formats {', '.join(FORMATS)}") from error
    except Exception as error:  # OSError, SyntaxError, struct.error, zlib.error, IndexError, ...
        reason = re.sub(r"<_io\.\w+[^>]*>", "its data", str(error)) or type(error).__name__
        raise _unreadable(name, reason) from error


def _unreadable(name: str, reason: str) -> ValueError:
    return ValueError(f"{name} cannot be read as an image ({reason}). Replace or remove it.")


def decode_image(data: bytes, name: str, size: int = 0) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image file to RGB; a `size` above 0 resizes to size x size (bilinear, antialiased).

    Grey, palette, CMYK and transparent images are converted; transparency is dropped and the EXIF
    orientation ignored. An animation gives its first frame.

    Raises:
        ValueError: Damaged, an unknown format, more than 8 bits per channel, or more pixels than
            Pillow's MAX_IMAGE_PIXELS.
    """
    with _opened(data, name) as image:
        if image.mode in WIDE_MODES:
            raise ValueError(f"its mode is {image.mode}, expected 8 bits per channel")
        pixels = image.convert("RGB")
        if size:
            pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(pixels)


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Height and width in the header of an image file.

    Raises:
        ValueError: As decode_image, as far as the header tells.
    """
    with _opened(data, name) as image:
        return image.height, image.width
