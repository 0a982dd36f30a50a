"""The toybox on one image."""

from pathlib import Path

import numpy as np
import torch

from dreamsa.media import contact_sheet, to_uint8, write_png
from dreamsa.rendering.cameras import Cameras, orbit
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import COLOURS, TOYS, build

SIX_SIDES = ((0.0, 10.0), (90.0, 10.0), (180.0, 10.0), (0.0, 80.0), (45.0, 30.0), (220.0, 30.0))
"""(azimuth, elevation) in degrees: front, side, back, overhead and two corners."""


def six_cameras() -> Cameras:
    azimuth, elevation = (torch.tensor(values) for values in zip(*SIX_SIDES, strict=True))
    return orbit(azimuth, elevation)


def world_sheet(path: Path, resolution: int = 64) -> Path:
    """Write each object from six sides, in natural colours and in one other, two per row."""
    rows, colours = [], list(COLOURS)
    for i, name in enumerate(TOYS):
        for colour in (None, colours[i % len(colours)]):
            render = render_solid(build(name, colour), six_cameras(), resolution, background=0.75)
            rows.append(to_uint8(render.rgb))
    write_png(contact_sheet(np.concatenate(rows), columns=24), path)
    return path
