"""The region in which two prompts disagree, for a score model whose disagreement is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from tiny import tiny_config, tiny_score
from true_scene import TrueScene, _shaded

from dreamsa import api, job, regions
from dreamsa.config import FreeConfig
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.outputs import load_scene
from dreamsa.preservation import OUTLINE
from dreamsa.presets import preset
from dreamsa.regions import Disagreement, automatic_region, cut, disagreement, region_sheet
from dreamsa.rendering.occupancy import cell_centres
from dreamsa.toybox.shapes import build, distances

CAMERA = replace(preset("toybox", "a mushroom").camera, resolution=48)


class RedDiffers:
    """Its predictions for a yellow and another object differ where the image is red."""

    alpha_bar = tiny_score().alpha_bar

    def embed(self, texts):
        return torch.tensor([[[float("yellow" in text)]] for text in texts])

    def encode(self, images):
        self.red = ((images[:, :1] - images[:, 1:2]) > 0.3).float()
        return images

    def predict_noise(self, noisy, timesteps, texts):
        return tuple(noisy + text.view(-1, 1, 1, 1) * (0.01 + self.red) for text in texts)


@pytest.fixture(autouse=True)
def few_views(monkeypatch):
    monkeypatch.setattr(regions, "AZIMUTHS", 5)


def prompts(score, *texts):
    return tuple(ViewPrompt(score, text) for text in texts)


@pytest.fixture(scope="module")
def mushroom():
    return TrueScene("mushroom", samples=96)


def test_the_region_is_the_part_that_the_predictions_differ_about(mushroom):
    """A mushroom's red cap, and neither its stem nor the air around it."""
    score = RedDiffers()
    texts = prompts(score, "a mushroom", "a yellow mushroom")
    volume = automatic_region(mushroom, score, texts, CAMERA)
    centres = cell_centres(32, 0.6).numpy()
    solid, light = build("mushroom"), np.array([0, 0, 1.0])
    rgb = _shaded(*solid[:3], np.ascontiguousarray(centres, dtype=float), light, 1.0)
    inside = distances(solid, centres.astype(float)) < 0.01
    found, wanted = (volume.flatten().numpy() < 0) & inside, (rgb[:, 0] - rgb[:, 1] > 0.3) & inside
    assert (found & wanted).sum() / (found | wanted).sum() > 0.7
    far = distances(solid, centres.astype(float)) > 0.2  # at most 1.7 times the truth
    assert volume.flatten().numpy()[far].min() > 0
    sheet = region_sheet(mushroom, FreeConfig(auto=True), volume, CAMERA)
    assert (sheet == OUTLINE).all(-1).any()


def test_equal_prompts_differ_nowhere(mushroom):
    score = RedDiffers()
    found = disagreement(mushroom, score, prompts(score, "a mushroom", "a mushroom"), CAMERA)
    assert found.seen.any()
    assert not found.mean.any()


def test_an_object_that_differs_all_over_is_cut_nowhere():
    seen = np.zeros((12, 12, 12), bool)
    seen[3:9, 3:9, 3:9] = True
    rng = np.random.default_rng(0)
    mean = seen * rng.uniform(0.9, 1.1, seen.shape)
    assert cut(Disagreement(mean, seen, seen))[seen].all()
    halves = mean * np.where(np.arange(12) < 6, 1.0, 0.05)
    found = cut(Disagreement(halves, seen, seen))
    assert found[4:8, 4:8, :5][seen[4:8, 4:8, :5]].all()
    assert not found[4:8, 4:8, 7:].any()


@pytest.mark.parametrize("region", ["auto", "sphere:0,0,0.3,0.25"])
def test_a_dry_run_shows_the_region_and_creates_no_run(tmp_path, monkeypatch, region):
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(job, "write_outputs", lambda run, scene, frames=8, resolution=16: [])
    monkeypatch.setattr(job, "write_results", lambda *arguments: None)
    field = replace(tiny_config().field, blob_density=400.0, blob_radius=0.3)
    parent = api.generate(config=tiny_config(field=field), runs=tmp_path).wait()
    cut_ = {"region": region, "grow": 0.05, "steps": 6, "runs": tmp_path}
    config, image = api.preview_edit(parent, "a purple rabbit", **cut_)
    assert config.edit.free.regions == (region,)
    assert image == tmp_path / "regions" / f"{parent.id}-a-purple-rabbit.png"
    with Picture.open(image) as picture:
        pixels = np.asarray(picture)
    assert (pixels == OUTLINE).all(-1).any()
    assert len(api.list_runs(tmp_path)) == 1
    running = api.edit(parent, "a purple rabbit", **cut_)
    for progress in running:
        assert (running.run.path / "region.png").read_bytes() == image.read_bytes()
        if progress.step == 3:
            break
    running.stop()
    whole = api.edit(parent, "a purple rabbit", **cut_).wait()
    resumed = api.resume(running.run, runs=tmp_path).wait()
    scenes = [load_scene(run, "cpu").tensors() for run in (whole, resumed)]
    assert all(torch.equal(scenes[0][name], scenes[1][name]) for name in scenes[0])
    assert ("below.distance" in scenes[0]) == (region == "auto")


def test_a_dry_run_of_an_edit_of_everything_needs_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(job, "write_outputs", lambda run, scene, frames=8, resolution=16: [])
    monkeypatch.setattr(job, "write_results", lambda *arguments: None)
    parent = api.generate(config=tiny_config(steps=2), runs=tmp_path).wait()
    config, image = api.preview_edit(parent, "a purple rabbit", keep="shape", runs=tmp_path)
    assert (config.edit.free.keep, image) == ("shape", None)
