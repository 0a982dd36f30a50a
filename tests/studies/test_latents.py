"""Latents without a NeRF."""

import json

import pytest
import torch
from tiny import tiny_score

from dreamsa.evaluation.judge import Judge
from dreamsa.evaluation.views import AZIMUTHS, QUARTERS, fixed_cameras, true_views
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.studies import latents
from dreamsa.studies.distillation import new_benchmark
from dreamsa.studies.latents import benchmark_latents, judged, optimized_latents, shrunk
from dreamsa.studies.methods import METHODS

FEW = {"objects": "rabbit", "colours": "none", "seeds": 1}


def test_latents_move_to_the_mean_of_a_gaussian():
    """Where all texts are equal, every view ends at the same image."""
    score = tiny_score()
    conditional = {"distill.guidance_scale": 1}
    (trial,) = new_benchmark("x", "sds", steps=150, overrides=conditional, **FEW).trials
    config = trial.config
    cameras = fixed_cameras(config.camera, QUARTERS)
    found = optimized_latents(
        config, score, ViewPrompt(score, config.prompt), cameras, score.means.shape[1:]
    )
    assert (found - score.means).abs().mean() < 0.1


def test_views_of_the_true_object_are_judged_right():
    (trial,) = new_benchmark("x", "sds", **FEW).trials
    truth = true_views(trial.config.camera, "rabbit", variant=2)
    images = truth.rgb[[AZIMUTHS.index(azimuth) for azimuth in QUARTERS]]
    found = judged(Judge.load(), images, trial)
    assert [view["colour_variant"] for view in found["views"]] == [2] * 4
    assert max(view["colour_error"] for view in found["views"]) == 0
    assert sum(view["object_right"] for view in found["views"]) >= 3
    assert found["colour_spread"] < 10


def test_a_shrunk_mask_loses_its_rim():
    mask = torch.zeros(1, 9, 9)
    mask[0, 1:8, 1:8] = 1
    assert shrunk(mask).sum() == 9


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_runs_and_is_reported(runs, monkeypatch, method):
    monkeypatch.setattr(latents.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(latents, "decode", lambda score, found: found.clamp(0, 1))
    small = {"camera.resolution": 16}
    benchmark = new_benchmark(runs / "b", method, steps=4, overrides=small, **FEW)
    *_, report = benchmark_latents(benchmark, workers=1)
    assert report == str(runs / "b" / "latents" / "report.html")
    (trial,) = json.loads((runs / "b" / "latents" / "results.json").read_text())["trials"]
    assert len(trial["views"]) == 4
    assert len(list(benchmark_latents(benchmark, workers=1))) == 2
