"""Images of the page, made from a run's files and small enough to be embedded in it.

The files may be somebody else's: links are not followed, and sizes are bounded before decoding.
"""

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageSequence

from dreamsa.files import read_plain
from dreamsa.runs import Run

FRAMES = 60
"""Frames of a side-by-side turntable."""
MAX_BYTES, MAX_PIXELS = 2**25, 2**26
"""Of a file that is shown; pixels of all frames."""
BROKEN = (ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises, besides OSError, for damaged files."""


def data_uri(data: bytes) -> str:
    """A webp as a data URI, so that the page needs no access to the server's files."""
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def turntable(run: Run) -> str:
    """A run's turntable as a data URI; empty if it has none."""
    path = run.path / "turntable.webp"
    if not path.exists():
        return ""
    data = read_plain(path, MAX_BYTES)
    return data_uri(data) if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Image.Image]:
    """An image file of one kind.

    Raises:
        OSError: No such image, a damaged one, or one that is too large to decode.
    """
    try:
        with Image.open(io.BytesIO(read_plain(path, MAX_BYTES)), formats=(kind,)) as image:
            frames, size = getattr(image, "n_frames", 1), f"{image.width} x {image.height}"
            if min(image.size) < 16 or image.width * image.height * frames > MAX_PIXELS:
                raise OSError(f"{path} cannot be shown: it has {frames} x {size} pixels.")
            yield image
    except BROKEN as error:
        raise OSError(f"{path} is a damaged image: {error}") from error


def side_by_side(before: Run, after: Run) -> bytes | None:
    """Two turntables in one animation, which keeps them in step; None unless both exist."""
    paths = [run.path / "turntable.webp" for run in (before, after)]
    try:
        return _side_by_side(*((path, path.stat().st_mtime_ns) for path in paths))
    except OSError:
        return None


@lru_cache(maxsize=8)
def _side_by_side(left: tuple[Path, int], right: tuple[Path, int]) -> bytes:
    frames = []
    for a, b in zip(animation(left[0], FRAMES), animation(right[0], FRAMES), strict=True):
        height, width = a.shape[:2]
        if b.shape != a.shape:
            resized = Image.fromarray(b).resize((width, height), Image.Resampling.LANCZOS)
            b = np.asarray(resized)
        gap = np.full((height, 4, 3), 128, np.uint8)
        frames.append(Image.fromarray(np.concatenate([a, gap, b], 1)))
    return _webp(
        frames[0],
        save_all=True,
        append_images=frames[1:],
        duration=50,
        loop=0,
        quality=85,
        method=2,
    )


def _webp(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", **options)
    return file.getvalue()


def animation(path: Path, count: int) -> UInt8[np.ndarray, "count h w 3"]:
    """`count` frames of a webp animation, evenly spaced in time.

    By time and not by index, because a file stores a series of equal frames as one long frame.
    """
    with _opened(path, "WEBP") as image:
        frames, ends, end = [], [], 0.0
        for frame in ImageSequence.Iterator(image):
            frame.load()
            end += max(float(frame.info.get("duration", 0)), 1.0)
            frames.append(np.asarray(frame.convert("RGB")))
            ends.append(end)
    times = (np.arange(count) + 0.5) * end / count
    return np.stack([frames[i] for i in np.searchsorted(ends, times)])


def before_and_after(
    before: Run, after: Run
) -> tuple[UInt8[np.ndarray, "512 512 3"], UInt8[np.ndarray, "512 512 3"]] | None:
    """Two runs from one camera, 45 degrees beside the front; None unless both have a sheet."""
    paths = [run.path / "contact_sheet.png" for run in (before, after)]
    try:
        return _second_view(paths[0]), _second_view(paths[1])
    except OSError:
        return None


def _second_view(path: Path) -> UInt8[np.ndarray, "512 512 3"]:
    sheet, gap = read_png(path), 2
    side = (sheet.shape[1] - gap) // 4 - gap
    left = 2 * gap + side
    view = Image.fromarray(sheet[gap : gap + side, left : left + side])
    return np.asarray(view.resize((512, 512), Image.Resampling.BICUBIC))


def read_png(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A png file as RGB."""
    with _opened(path, "PNG") as image:
        return np.asarray(image.convert("RGB"))


def thumbnail(run: Run) -> str | None:
    """The first view of a run's contact sheet, or else newest preview, as a data URI."""
    path = run.path / "contact_sheet.png"
    path = path if path.exists() else run.newest_preview or path
    try:
        return _thumbnail(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=500)
def _thumbnail(path: Path, changed: int) -> str:
    sheet = read_png(path)
    side = sheet.shape[1] // 4
    view = Image.fromarray(sheet[2:side, 2:side])
    return data_uri(_webp(view.resize((96, 96), Image.Resampling.LANCZOS), quality=80))
