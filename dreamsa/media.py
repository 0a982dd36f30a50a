"""Images, contact sheets and turntables, written atomically."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dreamsa.files import write_atomic

Frames = UInt8[np.ndarray, "n h w 3"]
"""sRGB images."""
Images = Float[Tensor, "b 3 h w"]
"""Images in [0, 1]."""


class NoFfmpeg(RuntimeError):
    """There is no ffmpeg program that can write H.264."""


def to_uint8(
    images: Float[np.ndarray, "*b 3 h w"] | Float[Tensor, "*b 3 h w"],
) -> UInt8[np.ndarray, "*b h w 3"]:
    """Convert images in [0, 1], channels first, to bytes, channels last."""
    values = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else images
    return np.moveaxis((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8), -3, -1)


FPS = 20


def write_mp4(frames: Frames, path: Path) -> None:
    """Write H.264 with yuv420p; width and height must be even.

    Raises:
        NoFfmpeg: `write_webp` needs none.
    """
    import imageio
    import imageio_ffmpeg

    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise NoFfmpeg(
            f"{path.name} was not written: no ffmpeg was found. "
            "Install imageio-ffmpeg or ffmpeg; the webp needs neither."
        ) from error

    def write(part: Path) -> None:
        options = {"codec": "libx264", "quality": 8, "macro_block_size": 2}
        with imageio.get_writer(part, format="FFMPEG", fps=FPS, **options) as writer:  # pyright: ignore[reportArgumentType]
            for frame in frames:
                writer.append_data(frame)  # pyright: ignore[reportAttributeAccessIssue]
        if not part.stat().st_size:
            raise OSError("it wrote nothing")

    try:
        write_atomic(path, write)
    except (OSError, RuntimeError) as error:  # it is not there, lacks libx264, or has crashed
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NoFfmpeg(f"{path.name} was not written: ffmpeg failed: {reason[:200]}.") from error


def write_webp(frames: Frames, path: Path) -> None:
    """Write an animation that loops forever."""
    images = [Image.fromarray(frame) for frame in frames]
    write_atomic(
        path,
        lambda part: images[0].save(
            part, save_all=True, append_images=images[1:], duration=1000 // FPS, loop=0, quality=85
        ),
    )


def write_png(image: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    write_atomic(path, lambda part: Image.fromarray(image).save(part))


def depth_images(depth: Float[np.ndarray, "n h w"], opacity: Float[np.ndarray, "n h w"]) -> Frames:
    """Depths in world units as greys on one scale: white is near, dark grey far, black empty."""
    solid = opacity > 0.5
    near, far = np.percentile(depth[solid], (1, 99)) if solid.any() else (0.0, 1.0)
    grey = 1 - 0.8 * np.clip((depth - near) / max(far - near, 1e-6), 0, 1)
    return np.repeat((255 * grey * opacity.clip(0, 1) + 0.5).astype(np.uint8)[..., None], 3, -1)


def normal_images(
    normals: Float[np.ndarray, "n h w 3"], opacity: Float[np.ndarray, "n h w"]
) -> Frames:
    """Unit normals in camera axes (right, up, backward) as colours (1 + n) / 2; black is empty."""
    return (255 * (1 + normals) / 2 * opacity.clip(0, 1)[..., None] + 0.5).astype(np.uint8)


def contact_sheet(
    images: Frames, columns: int, gap: int = 2, magnify: int = 1
) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Arrange images in rows of `columns`, with white gaps of `gap` pixels."""
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[y : y + h, x : x + w] = image
    return sheet.repeat(magnify, 0).repeat(magnify, 1)
