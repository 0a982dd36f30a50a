"""Measures against closed forms and hand counts."""

import numpy as np
import pytest
import torch

from dreamsa.evaluation import metrics
from dreamsa.statistics import silhouette_iou


def test_retrieval_is_a_ranking_not_a_cosine():
    """High similarity to the own text is a miss if another text is more similar."""
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.9, 0.95, 0.1], [0.3, 0.3, 0.1]])
    assert metrics.retrieved(similarity).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="at least one distractor"):
        metrics.retrieved(torch.ones(2, 1))


def test_directional_similarity_is_the_cosine_of_the_two_changes(rng):
    before, after, texts = torch.randn(8, 8, generator=rng).split((3, 3, 2))
    texts, changes = torch.nn.functional.normalize(texts, dim=1), (after - before).numpy()
    cosines = metrics.directional_similarity(before, after, *texts)
    b = (texts[1] - texts[0]).numpy()
    expected = changes @ b / np.linalg.norm(changes, axis=1) / np.linalg.norm(b)
    np.testing.assert_allclose(cosines.numpy(), expected, atol=1e-5)
    equal = metrics.directional_similarity(before, before + texts[1] - texts[0], *texts)
    torch.testing.assert_close(equal, torch.ones(3))
    assert metrics.directional_similarity(before, before, *texts).tolist() == [0, 0, 0]


def test_a_front_on_every_side_is_detected():
    similarity = torch.tensor([[0.8, 0.1, 0.1, 0.0], [0.2, 0.7, 0.1, 0.0], [0.6, 0.1, 0.3, 0.0]])
    assert metrics.front_everywhere(similarity, torch.tensor([2, 1, 2])).tolist() == [
        True,
        False,
        True,
    ]


def test_foreground_by_hand():
    opacity = torch.zeros(2, 4, 4)
    opacity[0, :2] = 0.9
    assert metrics.foreground_fraction(opacity).tolist() == [0.5, 0.0]


def test_silhouettes_by_hand():
    """Overlapping, both empty, and one empty."""
    a, b = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    a[0, :2], b[0, 1:3], a[2, :2] = 0.9, 0.9, 0.9
    assert silhouette_iou(a, b).tolist() == [pytest.approx(1 / 3), 1.0, 0.0]


def test_half_opaque_pixels_are_a_fraction_of_the_visible_ones():
    opacity = torch.tensor([[[0.0, 0.05, 0.5, 1.0]]])
    assert metrics.half_opaque_fraction(opacity) == 0.5
    assert metrics.half_opaque_fraction(0 * opacity) is None


def test_fog_is_1_at_half_opacity_and_0_for_solids():
    assert metrics.fog(torch.tensor([[[0.5, 0.0]]])) == 1
    assert metrics.fog(torch.tensor([[[1.0, 0.0]]])) == 0
    assert metrics.fog(torch.zeros(1, 1, 2)) is None


def test_psnr_counts_only_pixels_inside_the_mask():
    one, mask = torch.zeros(1, 3, 1, 2), torch.tensor([[[True, False]]])
    other = torch.full_like(one, 0.1)
    other[..., 1] = 1
    assert metrics.masked_psnr(one, other, mask) == pytest.approx(20)
    assert metrics.masked_psnr(one, one, mask) == 100
