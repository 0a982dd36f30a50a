"""Measures against closed forms, hand counts and other implementations."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dreamsa.evaluate.metrics import (
    PairedTest,
    bootstrap_mean,
    directional_similarity,
    foreground_fraction,
    front_everywhere,
    holm,
    mcnemar,
    psnr,
    retrieved,
    silhouette_overlap,
    student_mean,
    wilson,
)


def test_retrieval_is_a_ranking_not_a_cosine():
    """High similarity with the own text is a miss where another text is more similar; stable-dreamfusion's script prints the cosine."""
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.9, 0.95, 0.1], [0.3, 0.3, 0.1]])
    assert retrieved(similarity).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="at least one distractor"):
        retrieved(torch.ones(2, 1))


def test_directional_similarity_is_the_cosine_of_the_two_changes(rng):
    before, after, t1, t2 = (torch.nn.functional.normalize(torch.randn(n, 8, generator=rng), dim=1) for n in (3, 3, 1, 1))
    got = directional_similarity(before, after, t1[0], t2[0])
    for i in range(3):
        a, b = (after[i] - before[i]).numpy(), (t2[0] - t1[0]).numpy()
        assert got[i].item() == pytest.approx(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), abs=1e-5)
    moved_alike = directional_similarity(before, before + (t2 - t1), t1[0], t2[0])
    torch.testing.assert_close(moved_alike, torch.ones(3))
    assert directional_similarity(before, before, t1[0], t2[0]).tolist() == [0, 0, 0]


def test_a_face_on_every_side_is_seen():
    similarity = torch.tensor([[0.8, 0.1, 0.1, 0.0], [0.2, 0.7, 0.1, 0.0], [0.6, 0.1, 0.3, 0.0]])
    assert front_everywhere(similarity, torch.tensor([2, 1, 2])).tolist() == [True, False, True]


def test_foreground_psnr_and_silhouettes_by_hand():
    opacity = torch.zeros(2, 4, 4)
    opacity[0, :2] = 0.9
    assert foreground_fraction(opacity).tolist() == [0.5, 0.0]
    grey = torch.full((1, 3, 4, 4), 0.5)
    assert psnr(grey, grey + 0.1).item() == pytest.approx(20, abs=1e-4)
    assert psnr(grey, grey).item() == pytest.approx(100)
    other = torch.zeros(2, 4, 4)
    other[0, 1:3] = 0.9
    assert silhouette_overlap(opacity, other).tolist() == [pytest.approx(1 / 3), 1.0]


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 9), (24, 24)])
def test_wilson_interval_by_its_formula(successes, trials):
    z, p = stats.norm.ppf(0.975), successes / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    rate = wilson(successes, trials)
    assert (rate.low, rate.high) == pytest.approx((centre - half, centre + half))


def test_without_trials_nothing_is_known():
    assert wilson(0, 0)[2:] == (0.0, 1.0)


def test_mcnemar_looks_at_what_differs_only():
    """8 to 1: two-sided binomial p = 2 (1 + 9) / 2^9."""
    pairs = [(True, False)] * 8 + [(False, True)] + [(True, True)] * 30 + [(False, False)] * 5
    test = mcnemar(pairs)
    assert test[:4] == (8, 1, 30, 5)
    assert test.p == pytest.approx(2 * 10 / 2**9)
    assert mcnemar([(True, True)] * 9).p == 1


def test_holm_by_hand():
    tests = {name: PairedTest(0, 0, 0, 0, p, p) for name, p in (("B", 0.01), ("E", 0.04), ("F", 0.03))}
    assert {name: test.p_holm for name, test in holm(tests).items()} == pytest.approx({"B": 0.03, "E": 0.06, "F": 0.06})


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.normal(1.0, 1.0, 30).tolist(), seed=i) for i in range(100)]
    assert 88 <= sum(d.low <= 1.0 <= d.high for d in intervals) <= 100
    assert bootstrap_mean([2.0, 2.0]) == (2.0, 2.0, 2.0, 2)
    assert math.isnan(bootstrap_mean([2.0]).low)


def test_student_interval_by_scipys_own_test():
    values = [0.1, 0.4, 0.2]
    wanted = stats.ttest_1samp(values, 0.0).confidence_interval()
    got = student_mean(values)
    assert (got.low, got.high) == pytest.approx((wanted.low, wanted.high))
    assert got.mean == pytest.approx(0.7 / 3)
    assert math.isnan(student_mean([0.1]).high)
