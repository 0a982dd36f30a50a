"""RandAugment's operations are PIL's, and the whole is a function of its generator."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from train_cls.data import rand_augment
from train_cls.data.rand_augment import (
    ENHANCEMENT,
    FILL,
    OPERATIONS,
    ROTATION,
    SHEAR,
    TRANSLATION,
    autocontrast,
    brightness,
    color,
    contrast,
    equalize,
    posterize,
    rotate,
    sharpness,
    shear_x,
    solarize,
    translate_x,
    translate_y,
)

LEVEL = -0.6


def pictures(count: int = 3) -> torch.Tensor:
    """Random blobs whose values do not span [0, 255]."""
    rng = torch.Generator().manual_seed(0)
    coarse = 30 + 180 * torch.rand(count, 3, 6, 8, generator=rng)
    return torch.nn.functional.interpolate(coarse, (32, 40), mode="bicubic").clamp(20, 240).byte()


def by_pil(function, images: torch.Tensor) -> torch.Tensor:
    one = [np.asarray(function(Image.fromarray(i.movedim(0, -1).numpy()))) for i in images]
    return torch.from_numpy(np.stack(one)).movedim(-1, 1).float()


def ours(operation, images: torch.Tensor, level: float = LEVEL) -> torch.Tensor:
    return operation(images.float(), torch.full((len(images), 1, 1, 1), level)).round()


@pytest.mark.parametrize(
    ("operation", "function", "tolerance"),
    [
        (autocontrast, ImageOps.autocontrast, 1),
        (equalize, ImageOps.equalize, 0),
        (posterize, lambda image: ImageOps.posterize(image, 6), 0),
        (solarize, lambda image: ImageOps.solarize(image, 103), 0),
        (color, lambda image: ImageEnhance.Color(image).enhance(1 + ENHANCEMENT * LEVEL), 1),
        (contrast, lambda image: ImageEnhance.Contrast(image).enhance(1 + ENHANCEMENT * LEVEL), 1),
        (brightness, lambda i: ImageEnhance.Brightness(i).enhance(1 + ENHANCEMENT * LEVEL), 1),
        (sharpness, lambda i: ImageEnhance.Sharpness(i).enhance(1 + ENHANCEMENT * LEVEL), 1),
        (
            rotate,
            lambda image: image.rotate(
                ROTATION * LEVEL, Image.Resampling.BILINEAR, fillcolor=(int(FILL),) * 3
            ),
            2,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_operations_are_those_of_pil(operation, function, tolerance):
    images = pictures()
    expected, found = by_pil(function, images), ours(operation, images)
    edge = 8 if operation is rotate else 1  # at which PIL fills sharply, and keeps or reflects
    away = (found - expected).abs()[:, :, edge:-edge, edge:-edge]
    assert away.max() <= tolerance
    assert not torch.equal(found, images.float())


def test_displacements_are_fractions_of_the_sides():
    images = pictures()
    right = ours(translate_x, images, 0.5 / TRANSLATION)
    assert torch.equal(right[..., :20], images[..., 20:].float()) and bool(
        (right[..., 20:] == FILL).all()
    )
    down = ours(translate_y, images, -0.25 / TRANSLATION)
    assert torch.equal(down[:, :, 8:], images[:, :, :24].float()) and bool(
        (down[:, :, :8] == FILL).all()
    )
    lines = torch.zeros(1, 1, 33, 33, dtype=torch.uint8)
    lines[..., 16] = 255  # a vertical line
    sheared = ours(shear_x, lines, -1.0)
    top, bottom = (int(sheared[0, 0, row].sub(FILL).clamp(min=0).argmax()) for row in (2, 30))
    assert bottom - top == pytest.approx(28 * SHEAR, abs=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_takes_grey_and_colour_and_tiny_images(channels):
    for size in (2, 8):
        images = torch.randint(0, 256, (4, channels, size, size)).float()
        for operation in OPERATIONS:
            found = operation(images, torch.full((4, 1, 1, 1), 0.9))
            assert found.shape == images.shape and found.isfinite().all()


def test_a_batch_is_a_function_of_the_generator():
    images = pictures(40)

    def draw(seed: int, operations: int = 2, magnitude: float = 9.0) -> torch.Tensor:
        return rand_augment(images, torch.Generator().manual_seed(seed), operations, magnitude)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    changed = (draw(1, operations=1) != images).flatten(1).any(1).float().mean()
    assert 0.75 < changed < 1.0  # 13 of 14 operations change an image
    assert draw(1).dtype == torch.uint8 and draw(1, operations=0) is images
