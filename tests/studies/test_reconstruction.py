"""Reconstruction from real multi-view images."""

import re

import numpy as np
import pytest
import torch
from studies.reconstruction import load_views, over, reconstruct


def test_rays_of_a_real_scene_point_at_its_centre(shared_data):
    views = load_views(shared_data / "nerf" / "mic_100.npz", "test")
    assert views.rgba.shape == (200, 100, 100, 4)
    origin, direction = views.origins[0, 50, 50], views.directions[0, 50, 50]
    assert (origin + direction * origin.norm()).norm() < 0.2
    with pytest.raises(ValueError, match="not a NeRF scene file"):
        load_views(shared_data / "README.md", "test")


def test_straight_alpha_is_composited_correctly(tmp_path):
    """A half-covered red pixel over white is (1, 0.5, 0.5), as PNG's alpha means it."""
    image = np.zeros((1, 8, 8, 4), np.uint8)
    image[..., 0], image[..., 3] = 255, 128
    arrays = {"images": image, "poses": np.eye(4)[None]}
    named = {f"{split}_{kind}": a for split in ("train", "test") for kind, a in arrays.items()}
    np.savez(tmp_path / "scene.npz", focal=8.0, **named)
    views = load_views(tmp_path / "scene.npz", "train")
    pixel = over(views.rgba, torch.ones(3))[0, 0, 0]
    torch.testing.assert_close(pixel, torch.tensor([1.0, 0.498, 0.498]), atol=1e-3, rtol=0)


def decibels(line):
    return float(re.search(r"([\d.]+) dB", line)[1])


def test_a_short_fit_learns_a_real_scene(shared_data):
    """`make test-slow` checks the published PSNR of lego and mic."""
    file = shared_data / "nerf" / "mic_100.npz"
    *_, last = reconstruct(file, steps=300, samples=2**13, views=10)
    assert decibels(last) > 19


@pytest.mark.slow
@pytest.mark.parametrize(("scene", "target"), [("lego_100", 29.1), ("mic_100", 29.0)])
def test_real_scenes_reach_their_published_psnr(shared_data, scene, target):
    *_, last = reconstruct(shared_data / "nerf" / f"{scene}.npz")
    assert decibels(last) >= target
