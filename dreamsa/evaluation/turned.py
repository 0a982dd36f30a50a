"""Objects that face the wrong way, or the front on every side, by comparison with true images."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dreamsa.evaluation.views import AZIMUTHS, Views

MIN_DIFFERENCE = 0.04
"""Difference of two sides of a true object that counts, per area of the object. Below it are the
patches of a ball, a table from its two ends, and front and back of a house, which differ by the
door."""
MIN_MARGIN = 0.25
"""Margin from which an object counts as turned; one that is exactly turned has about 1."""

Channels = Float[Tensor, "b 4 h w"]


class Turn(NamedTuple):
    """How an object stands compared with the true one."""

    turned: bool
    """Whether another orientation fits the true images clearly better."""
    offset_deg: float
    """The best fitting one: it is rotated counter-clockwise by this."""
    margin: float
    """By how much it fits better, relative to how much the true object's own images differ at this
    offset; 0 if none fits better."""


def channels(views: Views) -> Channels:
    """Colour over the background, and opacity."""
    return torch.cat([views.rgb, views.opacity[:, None]], 1)


def rotation_errors(one: Channels, other: Channels) -> Float[Tensor, "b"]:
    """Mean squared difference from `other` rotated by 0, 1, ... steps of the azimuth.

    An object that is rotated by k steps shows at azimuth i what it would show at i - k.
    """
    rotated = (other.roll(k, 0) for k in range(len(other)))
    return torch.stack([(one - images).square().mean() for images in rotated])


def turn_of(views: Views, truth: Views, flat: Views) -> Turn:
    """Compare a scene's eight views with the true ones at all offsets.

    Args:
        flat: The true object without shading, whose sides differ only where the object does.
    """
    area = flat.opacity.mean()
    eligible = rotation_errors(channels(flat), channels(flat)) / area > MIN_DIFFERENCE
    errors = rotation_errors(channels(views), channels(truth))
    offsets = [0, *eligible.nonzero().flatten().tolist()]
    best = min(offsets, key=lambda k: float(errors[k]))
    if best == 0:
        return Turn(False, 0.0, 0.0)
    difference = rotation_errors(channels(truth), channels(truth))[best]
    margin = float((errors[0] - errors[best]) / difference)
    return Turn(margin >= MIN_MARGIN, AZIMUTHS[best], margin)


def two_faced(views: Views, truth: Views, flat: Views) -> float | None:
    """Fraction of the side and back views that resemble the true front more than the true view of
    their own side; None if no side of the object differs clearly from its front.

    Views at 90 degrees or more from the front, of objects that have it there.
    """
    area = flat.opacity.mean()
    sides = [i for i, azimuth in enumerate(AZIMUTHS) if 90 <= azimuth <= 270]

    def from_front(images: Channels) -> Float[Tensor, "sides"]:
        return (images[sides] - channels(truth)[:1]).square().mean((1, 2, 3))

    own = (channels(views)[sides] - channels(truth)[sides]).square().mean((1, 2, 3))
    differences = (channels(flat)[sides] - channels(flat)[:1]).square().mean((1, 2, 3))
    clear = differences / area > MIN_DIFFERENCE
    if not clear.any():
        return None
    return float((from_front(channels(views)) < own)[clear].float().mean())
