"""Colours as people see them: CIELAB and CIEDE2000 (Sharma, Wu and Dalal 2005)."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from dreamsa.media import Images

Lab = tuple[float, float, float]
"""Lightness in [0, 100], green to red, blue to yellow."""


class NearestColour(NamedTuple):
    """The valid colour that an object has come nearest to."""

    error: float | None
    """Median over pixels, CIEDE2000; about 1 is just noticeable. None if no pixels are compared."""
    variant: int
    """Index of the nearest valid colour."""
    margin: float | None
    """By how much the second is farther; None if there is only one."""


def to_lab(rgb: Images) -> Float[np.ndarray, "b h w 3"]:
    """CIELAB (D65) of sRGB images in [0, 1]."""
    from skimage.color import rgb2lab

    return rgb2lab(rgb.movedim(1, -1).double().numpy())


def colour_error(one: Images, other: Images, inside: Bool[Tensor, "b h w"]) -> float | None:
    """Median CIEDE2000 difference over the pixels inside; None without any."""
    from skimage.color import deltaE_ciede2000

    if not inside.any():
        return None
    mask = inside.numpy()
    return float(np.median(deltaE_ciede2000(to_lab(one)[mask], to_lab(other)[mask])))


def nearest_colour(errors: Sequence[float | None]) -> NearestColour:
    """The valid colour with the smallest error, of one error each."""
    known = sorted((error, i) for i, error in enumerate(errors) if error is not None)
    if not known:
        return NearestColour(None, 0, None)
    margin = known[1][0] - known[0][0] if len(known) > 1 else None
    return NearestColour(*known[0], margin)


def mean_lab(rgb: Images, inside: Bool[Tensor, "b h w"]) -> Lab | None:
    """Mean colour of the pixels inside; None without any."""
    if not inside.any():
        return None
    lightness, a, b = to_lab(rgb)[inside.numpy()].mean(0).tolist()
    return lightness, a, b


def colour_spread(colours: Sequence[Lab]) -> float | None:
    """Root of the summed variances of colours in CIELAB; None for fewer than two."""
    if len(colours) < 2:
        return None
    return sum(map(statistics.variance, zip(*colours, strict=True))) ** 0.5
