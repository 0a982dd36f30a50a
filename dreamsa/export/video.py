"""Turntables and contact sheets. Every file is written under a temporary name first."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Frames = UInt8[np.ndarray, "n h w 3"]


class NoFfmpeg(RuntimeError):
    """mp4 cannot be written here."""


def write_mp4(frames: Frames, path: Path, fps: int = 20) -> None:
    """H.264, yuv420p: plays in every browser. Sides must be even.

    Raises:
        NoFfmpeg: No ffmpeg program was found; webp needs none.
    """
    import imageio
    import imageio_ffmpeg

    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise NoFfmpeg(
            f"{path.name} was not written: no ffmpeg was found. Install imageio-ffmpeg or ffmpeg; the webp needs neither."
        ) from error

    def write(part: Path) -> None:
        with imageio.get_writer(part, format="FFMPEG", fps=fps, codec="libx264", quality=8, macro_block_size=2) as writer:  # pyright: ignore[reportArgumentType]
            for frame in frames:
                writer.append_data(frame)  # pyright: ignore[reportAttributeAccessIssue]

    atomic(path, write)


def write_webp(frames: Frames, path: Path, fps: int = 20) -> None:
    """An endlessly looping animation."""
    pictures = [Image.fromarray(frame) for frame in frames]
    atomic(path, lambda part: pictures[0].save(part, save_all=True, append_images=pictures[1:], duration=1000 // fps, loop=0, quality=85))


def write_png(picture: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    """One picture, without loss."""
    atomic(path, lambda part: Image.fromarray(picture).save(part))


def depth_pictures(depth: Float[np.ndarray, "n h w"], opacity: Float[np.ndarray, "n h w"]) -> Frames:
    """Depths in world units as greys: white is near, dark grey far, one scale for all pictures; black where there is nothing."""
    solid = opacity > 0.5
    near, far = np.percentile(depth[solid], (1, 99)) if solid.any() else (0.0, 1.0)
    grey = 1 - 0.8 * np.clip((depth - near) / max(far - near, 1e-6), 0, 1)
    return np.repeat((255 * grey * opacity.clip(0, 1) + 0.5).astype(np.uint8)[..., None], 3, -1)


def normal_pictures(normals: Float[np.ndarray, "n h w 3"], opacity: Float[np.ndarray, "n h w"]) -> Frames:
    """Unit normals in the camera's axes (right, up, towards it) as colours (1 + n) / 2; black where there is nothing."""
    return (255 * (1 + normals) / 2 * opacity.clip(0, 1)[..., None] + 0.5).astype(np.uint8)


def contact_sheet(pictures: Frames, columns: int, gap: int = 2, magnify: int = 1) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Pictures in rows of `columns`, with white gaps."""
    n, h, w, _ = pictures.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[y : y + h, x : x + w] = picture
    return sheet.repeat(magnify, 0).repeat(magnify, 1)


def atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: under its name a file is whole or not there."""
    handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
