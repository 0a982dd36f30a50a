"""The toybox on one picture."""

from pathlib import Path

import numpy as np
import torch

from dreamsa.export.video import contact_sheet, write_png
from dreamsa.render.cameras import Cameras, orbit
from dreamsa.toybox.renderer import render_solid, to_uint8
from dreamsa.toybox.shapes import COLOURS, TOYS, build

SIX_SIDES = ((0.0, 10.0), (90.0, 10.0), (180.0, 10.0), (0.0, 80.0), (45.0, 30.0), (220.0, 30.0))
"""(azimuth, elevation) in degrees: front, side, back, overhead and two corners."""


def six_cameras() -> Cameras:
    azimuth, elevation = (torch.tensor(values) for values in zip(*SIX_SIDES, strict=True))
    return orbit(azimuth, elevation)


def world_sheet(path: Path, resolution: int = 64) -> Path:
    """Each object from six sides, in its natural colours and in one of the twelve, two objects to a row."""
    rows = []
    for i, name in enumerate(TOYS):
        colours = list(COLOURS)
        for colour in (None, colours[i % len(colours)]):
            view = render_solid(build(name, colour), six_cameras(), resolution, background=0.75)
            rows.append(to_uint8(view.rgb))
    write_png(contact_sheet(np.concatenate(rows), columns=24), path)
    return path
