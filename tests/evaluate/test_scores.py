"""Scores of scenes that are known to be right: the toybox's own objects."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import tiny_config, tiny_score

from dreamsa import api
from dreamsa.evaluate.judge import Judge
from dreamsa.evaluate.scores import Named, Scores, distractors, evaluate_run, fixed_views, named, scores_of, succeeded
from dreamsa.render.occupancy import OccupancyGrid
from dreamsa.render.volume import View
from dreamsa.runs import RunError
from dreamsa.scene import Scene
from dreamsa.toybox.dataset import TOYBOX_CAMERA
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import build


class Painted(Scene):
    """A toy in a colour, as a scene."""

    def __init__(self, name, colour):
        torch.nn.Module.__init__(self)
        self.solid = build(name, colour)
        self.occupancy = OccupancyGrid(8, 0.5, 0.1)

    def look(self, cameras, resolution):
        view = render_solid(self.solid, cameras, resolution)
        return View(torch.from_numpy(view.rgb), torch.from_numpy(view.opacity), torch.from_numpy(view.depth), torch.zeros(()), 0)


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def views(name, colour=None):
    return fixed_views(Painted(name, colour), TOYBOX_CAMERA)


def test_prompts_are_read():
    assert named("a purple rabbit") == Named("rabbit", "purple")
    assert named("The BLACK gas can!") == Named("gas can", "ebony")
    assert named("a rabbit and a duck") == Named(None, None)
    assert named("a castle") == Named(None, None)


def test_distractors_ask_for_what_the_prompt_asks_for():
    coloured = distractors("a purple rabbit")
    assert "a purple duck" in coloured
    assert "a white rabbit" in coloured
    assert "a purple rabbit" not in coloured
    assert "a duck" in distractors("a rabbit")
    assert "a white rabbit" not in distractors("a rabbit")  # rabbits are white: that would be right too
    assert "an ebony rabbit" not in distractors("a black rabbit")


def test_a_perfect_edit_scores_well_and_an_untouched_parent_does_not(judge):
    parent, after = views("rabbit"), views("rabbit", "purple")
    right = scores_of(judge, after, "a purple rabbit", (parent, "a rabbit"))
    assert right.passes()
    assert right.r_precision >= 0.75
    assert right.silhouette == 1.0  # the shape is the parent's
    assert right.directional_similarity > 0.3
    stuck = scores_of(judge, parent, "a purple rabbit", (parent, "a rabbit"))
    assert not stuck.passes()
    assert stuck.r_precision == 0
    assert stuck.directional_similarity == 0
    assert stuck.psnr == 100
    assert right.probability > 0.5 > stuck.probability


def test_a_change_of_object_is_seen_to_leave_the_parent(judge):
    parent, after = views("rabbit"), views("car")
    scores = scores_of(judge, after, "a car", (parent, "a rabbit"))
    assert scores.passes()
    assert scores.colour_right is None
    assert scores.probability_before < 0.2
    assert scores.silhouette < 0.9


def test_views_are_asked_for_only_where_they_can_be_told(judge):
    assert scores_of(judge, views("ball"), "a ball").view_right is None
    assert scores_of(judge, views("car"), "a car").view_probability is not None


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(api.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(api, "write_outputs", lambda run, scene, frames=8, resolution=16: [])
    return tmp_path


def test_a_run_is_evaluated_to_a_file_and_a_picture(runs):
    from PIL import Image

    parent = api.generate(config=tiny_config(), runs=runs).wait()
    edit = api.edit(parent, "a purple rabbit", steps=4, escape="plain", runs=runs).wait()
    own, facts = evaluate_run(parent, runs=runs), evaluate_run(edit.id, runs=runs)
    assert own["parent"] is None
    assert own["scores"]["psnr"] is None
    assert facts["parent"] == {"run": parent.id, "prompt": "a rabbit"}
    assert 0 < facts["scores"]["psnr"] <= 100
    assert json.loads((edit.path / "evaluation.json").read_text()) == facts
    assert len(facts["views"]) == 8
    sizes = [Image.open(run.path / "evaluation.png").size for run in (parent, edit)]
    assert sizes == [(8 * 66 + 2, 68), (8 * 66 + 2, 134)]
    assert evaluate_run(edit, runs=runs) == facts


def test_an_unfinished_run_is_refused(runs):
    job = api.generate(config=tiny_config(), runs=runs)
    next(iter(job))
    job.stop()
    with pytest.raises(RunError, match="is stopped, not finished. Finish it first: dreamsa resume a-rabbit"):
        evaluate_run(job.run, runs=runs)


def test_a_repair_must_also_show_its_right_sides():
    plain = Scores(r_precision=1.0, probability=1.0, foreground=0.2, object_right=1.0)
    wrong, right, untold = replace(plain, view_right=0.5), replace(plain, view_right=0.75), plain
    assert [succeeded(s, repair=True) for s in (wrong, right, untold)] == [False, True, True]
    assert succeeded(wrong, repair=False)
    assert not succeeded(replace(right, object_right=0.5), repair=True)
