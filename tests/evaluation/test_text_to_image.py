import numpy as np
import pytest

from dreamsa.evaluation.judge import Judge
from dreamsa.evaluation.text_to_image import evaluate_model, score
from dreamsa.toybox.dataset import render_images, wild_backgrounds


def test_wrong_requests_score_badly():
    """A cosine would be high for the wrong caption, too; a ranking is not."""
    dataset, rng = render_images(100, seed=5, judge=True), np.random.default_rng(0)
    images = dataset.over(np.arange(100), wild_backgrounds(100, rng))
    assert score(Judge.load(), images, [("rabbit", "purple", "front")] * 100)["object"] < 0.2


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="per_object"):
        evaluate_model("toybox", 0, 5.0, 0)
    with pytest.raises(ValueError, match="give a folder"):
        evaluate_model("somebody/some-model", 1, 5.0, 0)
