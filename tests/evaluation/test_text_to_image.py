import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from dreamsa.choices import VIEWS
from dreamsa.evaluation.judge import Judge, Verdict
from dreamsa.evaluation.text_to_image import _requests, evaluate_model, score
from dreamsa.guidance.prompts import view_of
from dreamsa.toybox.captions import HELD_OUT, LOOK_ALIKE
from dreamsa.toybox.dataset import render_images, wild_backgrounds
from dreamsa.toybox.shapes import COLOURS, TOYS


class Told(Judge):
    """Names what requests ask for, but the azimuth off by some degrees."""

    names_azimuths = True

    def __init__(self, requests, off_deg=0):
        self.requests, self.off_deg = requests, off_deg

    def __call__(self, images):
        names, colours, angles = zip(*self.requests, strict=True)
        azimuths = [(azimuth + self.off_deg) % 360 // 15 for azimuth, _ in angles]
        best = (
            ([list(TOYS).index(name) for name in names], len(TOYS)),
            ([list(COLOURS).index(name) for name in colours], len(COLOURS)),
            ([VIEWS.index(view_of(*pair)) for pair in angles], len(VIEWS)),
            (azimuths, 24),
        )
        return Verdict(*(one_hot(torch.tensor(i), count).float() for i, count in best))


class Untrained(Told):
    names_azimuths = False


def test_no_azimuth_is_reported_of_a_judge_that_never_learnt_any():
    requests = [("duck", "red", (15, 0))]
    facts = score(Untrained(requests), torch.zeros(1, 3, 1, 1), requests)
    assert set(facts) == {"object", "colour", "view"}


def scored(requests, off_deg=0):
    images = torch.zeros(len(requests), 3, 1, 1)
    return score(Told(requests, off_deg), images, requests)


def test_wrong_requests_score_badly():
    """A cosine would be high for the wrong caption, too; a ranking is not."""
    dataset, rng = render_images(100, seed=5, judge=True), np.random.default_rng(0)
    images = dataset.over(np.arange(100), wild_backgrounds(100, rng))
    facts = score(Judge.load(), images, [("rabbit", "purple", (0, 0))] * 100)
    assert facts["object"]["fraction"] < 0.2
    assert facts["object"]["of"] == 100
    assert facts["object"]["most often wrong"].startswith("rabbit ")


def test_a_judge_that_agrees_scores_one_and_counts_what_is_not_ambiguous():
    trained, _ = _requests(12, seed=0)
    facts = scored(trained)
    assert all(fact["fraction"] == 1 for fact in facts.values())
    assert all(fact["most often wrong"] == "none" for fact in facts.values())
    fronts = 12 * (len(TOYS) - len(LOOK_ALIKE))
    counts = [fact["of"] for fact in facts.values()]
    assert counts[:2] == [12 * len(TOYS)] * 2
    assert fronts / 2 < counts[2] < fronts
    assert fronts / 2 < counts[3] < fronts


@pytest.mark.parametrize(("off", "right"), [(-30, 4), (15, 4), (30, 4), (45, 0), (180, 0)])
def test_azimuths_are_right_within_thirty_degrees_around_the_circle(off, right):
    requests = [("duck", "red", (azimuth, 0)) for azimuth in (0, 15, 345, 180)]
    facts = scored([*requests, ("ball", "red", (0, 0)), ("duck", "red", (0, 75))], off)
    azimuth = facts["azimuth within 30 degrees"]
    assert (azimuth["right"], azimuth["of"]) == (right, 4)


def test_nothing_to_count_is_no_fraction():
    assert scored([("ball", "red", (0, 0))])["view"]["fraction"] is None


def test_requests_go_all_around_and_a_fourth_is_overhead():
    trained, held_out = _requests(12, seed=0)
    assert [len(trained), len(held_out)] == [12 * len(TOYS), 12 * len(HELD_OUT)]
    assert not {(colour, name) for name, colour, _ in trained} & HELD_OUT
    assert {(colour, name) for name, colour, _ in held_out} == HELD_OUT
    for start in range(0, len(trained), 12):
        names, _, angles = zip(*trained[start : start + 12], strict=True)
        azimuths, elevations = zip(*angles, strict=True)
        assert len(set(names)) == 1
        assert set(np.diff(sorted(azimuths))) == {30}
        assert sum(elevation >= 75 for elevation in elevations[3::4]) == 3
        assert all(-15 <= elevation <= 75 for i, elevation in enumerate(elevations) if i % 4 != 3)
    assert len({azimuth for _, _, (azimuth, _) in trained}) == 24


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="per_object"):
        evaluate_model("toybox", 0, 5.0, 0)
    with pytest.raises(ValueError, match="give a folder"):
        evaluate_model("somebody/some-model", 1, 5.0, 0)
