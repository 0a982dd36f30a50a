"""Images of the page."""

import numpy as np
from PIL import Image
from tiny import tiny_config

from dreamsa.media import contact_sheet
from dreamsa.runs import new_run
from dreamsa.web import images

FACTS = {"device": "cpu", "backend": "numba"}


def turning(path, shades, size=16):
    frames = [Image.fromarray(np.full((size, size, 3), shade, np.uint8)) for shade in shades]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=50, loop=0, lossless=True
    )


def test_frames_are_chosen_by_time_because_equal_ones_are_merged(tmp_path):
    turning(tmp_path / "a.webp", [0] * 30 + [200] * 10)
    with Image.open(tmp_path / "a.webp") as image:
        assert image.n_frames < 40  # the premise
    shades = images.animation(tmp_path / "a.webp", 40)[:, 0, 0, 0]
    assert shades.tolist() == [0] * 30 + [200] * 10


def test_two_turntables_become_one_animation_in_step(tmp_path):
    runs = [new_run(tiny_config(), None, tmp_path, FACTS) for _ in range(2)]
    assert images.side_by_side(*runs) is None
    turning(runs[0].path / "turntable.webp", range(0, 240, 4))
    turning(runs[1].path / "turntable.webp", range(0, 240, 4), size=32)
    (tmp_path / "both.webp").write_bytes(images.side_by_side(*runs))
    both = images.animation(tmp_path / "both.webp", 60)
    assert both.shape == (60, 16, 36, 3)
    assert np.abs(both[:, :, :16].astype(int) - both[:, :, 20:]).max() <= 6  # lossy


def test_before_and_after_have_one_camera_and_one_size(tmp_path):
    runs = [new_run(tiny_config(), None, tmp_path, FACTS) for _ in range(2)]
    for run, size in zip(runs, (16, 24), strict=True):
        views = (
            np.zeros((12, size, size, 3), np.uint8)
            + (np.arange(12, dtype=np.uint8) * 20)[:, None, None, None]
        )
        sheet = contact_sheet(views, 4)
        Image.fromarray(sheet).save(run.path / "contact_sheet.png")
    first, second = images.before_and_after(*runs)
    assert first.shape == second.shape == (512, 512, 3)
    assert (first == 20).all() and (second == 20).all()
