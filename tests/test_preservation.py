"""What an edit has changed, on scenes whose difference is known."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from tiny import tiny_config, tiny_score
from true_scene import TrueScene

from dreamsa import api, job
from dreamsa.outputs import load_scene
from dreamsa.preservation import (
    OUTLINE,
    changes_sheet,
    eight_views,
    kept_points,
    outline,
    preservation,
)
from dreamsa.presets import preset

CAMERA = preset("toybox", "a ball").camera


def compared(before, after):
    views = eight_views(before, CAMERA, 48), eight_views(after, CAMERA, 48)
    return preservation(before, after, views), views


def test_an_unchanged_scene_has_changed_nowhere():
    found, views = compared(TrueScene("ball"), TrueScene("ball"))
    assert (found.changed, found.silhouette, found.colour_difference) == (0, 1, 0)
    assert found.density_outside is None  # nothing had to be kept
    sheet = changes_sheet(*views)
    assert not (sheet == OUTLINE).all(-1).any()


def test_another_colour_changes_all_of_the_volume_and_none_of_the_silhouette():
    found, _ = compared(TrueScene("ball"), TrueScene("ball", "blue"))
    assert found.changed > 0.9
    assert found.silhouette == 1
    assert found.colour_difference > 0.1


def test_a_part_added_is_outlined_and_measured():
    """A ball of radius 0.06 upon one of radius 0.5."""
    beside = TrueScene("ball", balls=(((0.0, 0.0, 0.53), 0.06),))
    found, views = compared(TrueScene("ball"), beside)
    assert 0 < found.changed < 0.01
    assert 0.97 < found.silhouette < 1
    sheet = changes_sheet(*views)
    rows = np.nonzero((sheet == OUTLINE).all(-1).any(1))[0]
    assert len(rows)
    assert (rows % (len(sheet) // 2) < 0.3 * len(sheet) / 2).mean() > 0.9  # at the top of each row


def test_an_outline_surrounds_its_mask():
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = True
    assert np.argwhere(outline(mask)).tolist() == [[1, 2], [2, 1], [2, 3], [3, 2]]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(job, "write_outputs", lambda run, scene, frames=8, resolution=16: [])
    monkeypatch.setattr(job, "write_results", lambda *arguments: None)


@pytest.mark.usefixtures("quick")
def test_every_edit_reports_what_it_has_kept(tmp_path):
    field = replace(tiny_config().field, blob_density=400.0, blob_radius=0.3)
    parent = api.generate(config=tiny_config(field=field), runs=tmp_path).wait()
    assert "preservation" not in parent.record
    cut = {"steps": 6, "eta": 0.6, "runs": tmp_path}
    shape = api.edit(parent, "a purple rabbit", keep="shape", **cut).wait()
    region = api.edit(parent, "a purple rabbit", region="sphere:0,0,0.3,0.25", **cut).wait()
    everything = api.edit(parent, "a purple rabbit", **cut).wait()
    kept = [json.loads((r.path / "run.json").read_text())["preservation"]
            for r in (shape, region, everything)]  # fmt: skip
    assert (kept[0]["density_outside"], kept[0]["silhouette"], kept[0]["outside"]) == (0, 1, 1)
    assert kept[0]["colour_outside"] is None
    assert (kept[1]["density_outside"], kept[1]["colour_outside"]) == (0, 0)
    assert 0.5 < kept[1]["outside"] < 1
    assert kept[1]["changed"] < kept[2]["changed"]
    assert kept[2]["density_outside"] is None
    assert kept[2]["colour_difference"] > kept[1]["colour_difference"] == 0
    with Picture.open(region.path / "changes.png") as picture:
        assert picture.width > picture.height


@pytest.mark.usefixtures("quick")
def test_an_edit_whose_parent_is_deleted_meanwhile_finishes_without_a_report(tmp_path):
    parent = api.generate(config=tiny_config(steps=2), runs=tmp_path).wait()
    running = api.edit(parent, "a purple rabbit", steps=3, runs=tmp_path)
    for progress in running:
        if progress.step == 1:
            shutil.rmtree(parent.path)
    assert running.run.status == "finished"
    assert "preservation" not in running.run.record


@pytest.mark.usefixtures("quick")
def test_the_scene_beneath_is_the_parents(tmp_path):
    parent = api.generate(config=tiny_config(), runs=tmp_path).wait()
    child = api.edit(parent, "a purple rabbit", keep="shape", steps=4, runs=tmp_path).wait()
    scene = load_scene(child, "cpu")
    beneath, old = scene.beneath(), load_scene(parent, "cpu")
    at = torch.rand(1000, 3) - 0.5
    assert old.beneath() is None
    for one, other in zip(beneath.query(at), old.query(at), strict=True):
        assert torch.equal(one, other)
    density, colour, everything = kept_points(scene, at)
    assert density.all()
    assert not colour.any()
    assert everything.all()
