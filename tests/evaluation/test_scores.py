"""Scores of scenes that are known to be right: the toybox's own objects."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image as PILImage
from tiny import tiny_config, tiny_score

from dreamsa import api, job
from dreamsa.evaluation.judge import Judge
from dreamsa.evaluation.scores import Scores, distractors, evaluate, named, scores_of, succeeded
from dreamsa.evaluation.views import AZIMUTHS, Views, fixed_views
from dreamsa.runs import RunError
from dreamsa.scene import Scene
from dreamsa.toybox.dataset import TOYBOX_CAMERA
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import build


class Painted(Scene):
    """A toy in a colour, as a scene."""

    def __init__(self, name, colour):
        self.solid = build(name, colour)

    def view(self, cameras, resolution, background=None):
        render = render_solid(self.solid, cameras, resolution)
        return Views(*map(torch.from_numpy, render), AZIMUTHS)


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def views(name, colour=None):
    return fixed_views(Painted(name, colour), TOYBOX_CAMERA)


def test_prompts_are_parsed():
    assert named("a purple rabbit") == ("rabbit", "purple")
    assert named("The BLACK gas can!") == ("gas can", "ebony")
    assert named("a rabbit and a duck") == named("a castle") == (None, None)


def test_distractors_name_a_colour_if_the_prompt_does():
    coloured = distractors("a purple rabbit")
    assert "a purple duck" in coloured
    assert "a white rabbit" in coloured
    assert "a purple rabbit" not in coloured
    assert "a duck" in distractors("a rabbit")
    assert "a white rabbit" not in distractors("a rabbit")  # rabbits are white
    assert "an ebony rabbit" not in distractors("a black rabbit")


def test_a_perfect_edit_scores_well_and_an_untouched_parent_does_not(judge):
    parent, after = views("rabbit"), views("rabbit", "purple")
    right = scores_of(judge, after, "a purple rabbit", (parent, "a rabbit"))
    assert right.passes() and right.r_precision >= 0.75
    assert right.silhouette == 1.0  # the shape is the parent's
    assert right.directional_similarity > 0.3
    stuck = scores_of(judge, parent, "a purple rabbit", (parent, "a rabbit"))
    assert not stuck.passes() and stuck.psnr == 100
    assert stuck.r_precision == stuck.directional_similarity == 0
    assert right.probability > 0.5 > stuck.probability


def test_a_change_of_object_leaves_the_parent(judge):
    parent, after = views("rabbit"), views("car")
    scores = scores_of(judge, after, "a car", (parent, "a rabbit"))
    assert scores.passes() and scores.colour_right is None
    assert scores.probability_before < 0.2 and scores.silhouette < 0.9


def test_only_objects_with_a_front_have_view_scores(judge):
    assert scores_of(judge, views("ball"), "a ball").view_right is None
    assert scores_of(judge, views("car"), "a car").view_probability is not None


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    monkeypatch.setattr(job, "write_results", lambda *arguments: None)
    return tmp_path


def test_an_evaluation_writes_a_file_and_an_image(runs):
    parent = api.generate(config=tiny_config(), runs=runs).wait()
    edit = api.edit(parent, "a purple rabbit", steps=4, escape="plain", runs=runs).wait()
    own, facts = evaluate(parent, runs=runs), evaluate(edit.id, runs=runs)
    assert own["parent"] is None
    assert own["scores"]["psnr"] is None
    assert facts["parent"] == {"run": parent.id, "prompt": "a rabbit"}
    assert 0 < facts["scores"]["psnr"] <= 100
    assert json.loads((edit.path / "evaluation.json").read_text()) == facts
    assert len(facts["views"]) == 8
    sizes = [PILImage.open(run.path / "evaluation.png").size for run in (parent, edit)]
    assert sizes == [(8 * 66 + 2, 68), (8 * 66 + 2, 134)]
    assert evaluate(edit, runs=runs) == facts


def test_an_unfinished_run_is_refused(runs):
    work = api.generate(config=tiny_config(), runs=runs)
    next(iter(work))
    work.stop()
    message = "is stopped, not finished. Finish it first: dreamsa resume a-rabbit"
    with pytest.raises(RunError, match=message):
        evaluate(work.run, runs=runs)


def test_a_repair_must_also_show_the_correct_sides():
    plain = Scores(r_precision=1.0, probability=1.0, foreground=0.2, object_right=1.0)
    wrong, right = replace(plain, view_right=0.5), replace(plain, view_right=0.75)
    assert [succeeded(s, repair=True) for s in (wrong, right, plain)] == [False, True, True]
    assert succeeded(wrong, repair=False)
    assert not succeeded(replace(right, object_right=0.5), repair=True)
